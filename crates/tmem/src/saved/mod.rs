//! Saved stores: the file that a store is written to and opened from, byte by byte in `docs/format.md`.
//!
//! A file is a [`header`] and [`blocks`] of [`record`]s, each block sealed, the last record being the end. It knows nothing of
//! frames, handles or tiers, so that any store can open it. What is written and where it goes is the business of `store`;
//! here nothing is believed of a file that was not checked, and no length in it decides how much memory is taken.

mod blocks;
mod file;
mod header;
mod record;

pub(crate) use blocks::{BlockReader, BlockWriter, block_bytes_for, repair};
pub(crate) use file::NewFile;
pub(crate) use header::{Counts, Header};
pub(crate) use record::{Kind, LEAF_BYTES, POOL_BYTES, Record, SHARED_SLOT, read_u32, read_u64};

/// What a store was [saved](crate::Store::save) as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// Pools that live, ephemeral ones included.
    pub pools: u64,
    /// Pages, all of them of persistent pools.
    pub pages: u64,
    /// Payloads of those pages: fewer than pages when pages are shared or in groups.
    pub zpages: u64,
    /// Bytes of the file.
    pub bytes: u64,
}
