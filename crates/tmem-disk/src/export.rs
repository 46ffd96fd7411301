//! A disk as clients see it: a name, a size, and blocks that are kept one way or the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tmem::{PoolId, PoolKind, Store};

use crate::cached::CachedBlocks;
use crate::error::Error;
use crate::options::{Contents, ExportOptions};
use crate::pages::Pages;
use crate::protocol::{Errno, Extent, Refusal};
use crate::ram::RamBlocks;

/// What happened to an export since the start.
#[derive(Debug, Default)]
pub struct Tally {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub trims: AtomicU64,
    pub trimmed_bytes: AtomicU64,
    pub failed_reads: AtomicU64,
    pub failed_writes: AtomicU64,
    pub no_space: AtomicU64,
    pub invalid: AtomicU64,
}

/// What a piece of an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Something is stored.
    Data,
    /// Nothing is stored, so that all of it is zero.
    Nothing,
}

/// How much of a [`CachedBlocks`] was found in RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    pub hits: u64,
    pub misses: u64,
}

/// How blocks are kept. Offsets and lengths are in bytes, of any alignment, and lie in the disk. Any thread may do anything at any
/// time; what is done to one page is done in some order.
pub trait Blocks: Send + Sync {
    /// Reads bytes from `offset` on, and says whether any of them are stored.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<Held, Refusal>;
    /// Writes bytes from `offset` on. After a refusal, those behind it are as they were.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Refusal>;
    /// Makes a stretch zero: by forgetting its pages, or by storing zeroes if it is to keep its room.
    fn zero(&self, offset: u64, bytes: u64, keep_room: bool) -> Result<(), Refusal>;
    /// Forgets the pages that lie in a stretch as a whole.
    fn trim(&self, offset: u64, bytes: u64) -> Result<(), Refusal>;
    /// Brings to RAM what is on disk, as far as there is room.
    fn cache(&self, offset: u64, bytes: u64) -> Result<(), Refusal>;
    /// Makes safe what was written.
    fn flush(&self) -> Result<(), Refusal>;
    /// What of a stretch is stored: up to so many extents, in order, from its beginning.
    fn status(&self, offset: u64, bytes: u64, extents_max: usize, with: &mut dyn FnMut(Extent));
    /// Whether the page at `offset` has to be fetched from disk.
    fn is_away(&self, offset: u64) -> bool;
    /// Where they are, or copies of them.
    fn pages(&self) -> &Pages;
    /// How much of what has another place as well was found in RAM.
    fn hits(&self) -> Hits {
        Hits::default()
    }
}

/// Shows up to so many extents of a stretch, one after the other. `look` says of a place whether it is a hole, and where that ends, if
/// not before the end of the stretch.
pub fn show_extents(
    offset: u64,
    bytes: u64,
    extents_max: usize,
    look: impl Fn(u64) -> (bool, u64),
    with: &mut dyn FnMut(Extent),
) {
    let end = offset + bytes;
    let mut at = offset;
    for _ in 0..extents_max {
        if at >= end {
            break;
        }
        let (hole, to) = look(at);
        let to = to.clamp(at + 1, end);
        with(Extent { bytes: (to - at) as u32, hole });
        at = to;
    }
}

/// A disk.
pub struct Export {
    pub name: String,
    pub size_bytes: u64,
    pub read_only: bool,
    pub tally: Tally,
    /// What it is a cache of, if it is one.
    pub backing: Option<String>,
    pub blocks: Box<dyn Blocks>,
}

impl Export {
    /// An empty disk, one whose pages are in a pool already, or a cache that is empty.
    pub fn new(
        store: &Arc<Store>,
        spills: bool,
        options: &ExportOptions,
        saved: Option<PoolId>,
    ) -> Result<Self, Error> {
        let (size_bytes, backing, blocks): (_, _, Box<dyn Blocks>) = match &options.contents {
            Contents::Empty { size_bytes } => {
                let pages = match saved {
                    Some(pool) => Pages::of(store, pool),
                    None => Pages::new(store, PoolKind::Persistent)?,
                };
                (*size_bytes, None, Box::new(RamBlocks::new(pages, spills)))
            }
            Contents::Backing(path) => {
                let blocks = CachedBlocks::open(store, path, options.read_only)?;
                (blocks.size_bytes(), Some(path.display().to_string()), Box::new(blocks))
            }
        };
        if size_bytes > i64::MAX as u64 {
            return Err(Error::new(format!("{size_bytes} bytes are more than a disk can have")));
        }
        let (name, read_only) = (options.name.clone(), options.read_only);
        Ok(Self { name, size_bytes, read_only, tally: Tally::default(), backing, blocks })
    }
}

impl Tally {
    /// Counts a refusal.
    pub fn refused(&self, refusal: &Refusal, reads: bool) {
        let counter = match (refusal.errno, reads) {
            (Errno::NoSpace, _) => &self.no_space,
            (Errno::Io, true) => &self.failed_reads,
            (Errno::Io, false) => &self.failed_writes,
            _ => &self.invalid,
        };
        counter.fetch_add(1, Relaxed);
    }
}
