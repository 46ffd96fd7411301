//! Tiers: where zpages go when RAM is not enough.
//!
//! A [`Tier`] is a range of bytes, written in large pieces and read in small ones; [`FileTier`] is the one for use,
//! [`MemoryTier`] is for tests, [`FaultyTier`] for trying what happens when a disk fails. What lies where in it is the business of [`SpillFile`]: zpages go
//! out as they are, as [`record`]s one after the other, in [`segments`] that are filled in order and used again when
//! nothing lives in them any more. Which zpages go out, and which word names them, is decided in `store`.

mod buffer;
mod faulty;
mod file;
mod memory;
pub(crate) mod record;
mod seal;
mod segments;
mod spill_file;
mod tiers;
mod writer;

use std::io;

pub use faulty::{Fault, FaultRate, FaultyTier, Strike};
pub use file::FileTier;
pub use memory::MemoryTier;
pub(crate) use record::{Extent, Head};
pub(crate) use seal::{Place, Seal};
pub(crate) use segments::Pin;
pub(crate) use spill_file::{ReadFailure, SpillFile};
pub(crate) use tiers::Tiers;
pub(crate) use writer::{Refusal, Writer, Written};

/// Reads any bytes as a segment and shows the encoding and the payload of each record, opened or not. For the fuzzer.
pub(crate) fn walk_any(bytes: &mut [u8], mut with: impl FnMut(u8, &[u8])) {
    let seal = seal::Seal::plain();
    spill_file::walk_part(bytes, 0, true, |at, head, bytes| {
        record::open(bytes, head, spill_file::place(1, at), &seal);
        with(head.encoding as u8, &bytes[record::PREFIX_BYTES..][..head.payload_bytes]);
    });
}

/// What every offset, every length and every buffer that a tier is given is a multiple of.
pub const TIER_BLOCK_BYTES: usize = 4096;

/// Bytes that are kept elsewhere than in RAM.
///
/// Every offset, length and buffer address is a multiple of [`TIER_BLOCK_BYTES`]. What was not written yet, or was
/// discarded, need not read as anything. The store never reads what is being written, and checks all that it reads: a
/// tier that gives back wrong bytes costs the page, but nobody is given wrong bytes.
pub trait Tier: Send + Sync {
    /// Writes `bytes` at `offset`. After an error anything may stand there; the store does not read it.
    ///
    /// # Errors
    /// When not all of it could be written.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads `bytes` from `offset`. May be called by many threads at once, and during a write to another place, for
    /// which it should not wait.
    ///
    /// # Errors
    /// When not all of it could be read.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Reads as [`read`](Self::read) does, and shows what was read to `is_right`, which may change it. A tier that keeps several
    /// copies goes on to the next one as long as the answer is no; what was shown last stands in `bytes` at the end.
    ///
    /// # Errors
    /// When not all of it could be read. That what was read is not right is no error.
    fn read_checked(
        &self,
        offset: u64,
        bytes: &mut [u8],
        is_right: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<()> {
        self.read(offset, bytes)?;
        is_right(bytes);
        Ok(())
    }

    /// Gives the space of `bytes` bytes at `offset` back to whoever it came from. They may be written again.
    ///
    /// # Errors
    /// When that is not possible; the store goes on as if it had been.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Whether what lies here may stay. Asked when the store [calls back](crate::Store::recall) what is elsewhere.
    fn homing(&self) -> Homing {
        Homing::Stay
    }
}

/// What is to become of what lies in a tier, if nobody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Homing {
    /// It is as good there as anywhere.
    Stay,
    /// It should come back as soon as there is room in RAM: the tier is lent.
    Return,
    /// It has to leave as soon as that is possible, for RAM or for the next tier.
    Leave,
}

impl<T: Tier + ?Sized> Tier for Box<T> {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write(offset, bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        (**self).read(offset, bytes)
    }

    fn read_checked(
        &self,
        offset: u64,
        bytes: &mut [u8],
        is_right: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<()> {
        (**self).read_checked(offset, bytes, is_right)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        (**self).discard(offset, bytes)
    }

    fn homing(&self) -> Homing {
        (**self).homing()
    }
}

/// Where and how a store spills: see [`Store::add_spill`](crate::Store::add_spill).
pub struct Spill {
    pub(crate) tier: Box<dyn Tier>,
    pub(crate) bytes_max: u64,
    pub(crate) plain: bool,
    pub(crate) flushed_after_gets: bool,
}

impl Spill {
    /// Spills into the first `bytes_max` bytes of a tier, encrypted with a key that nobody but this process knows and
    /// that is gone with it.
    pub fn new(tier: impl Tier + 'static, bytes_max: u64) -> Self {
        Self { tier: Box::new(tier), bytes_max, plain: false, flushed_after_gets: false }
    }

    /// Does not encrypt. What is read is checked all the same, against accidents, not against people.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Says that whoever gets a page keeps it and flushes it here soon. Such a page does not come back to RAM, except with a
    /// group, because the other pages of that are likely to be wanted next.
    #[must_use]
    pub fn flushed_after_gets(mut self) -> Self {
        self.flushed_after_gets = true;
        self
    }
}

impl std::fmt::Debug for Spill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes_max, plain, flushed_after_gets, tier: _ } = self;
        f.debug_struct("Spill")
            .field("bytes_max", bytes_max)
            .field("plain", plain)
            .field("flushed_after_gets", flushed_after_gets)
            .finish_non_exhaustive()
    }
}
