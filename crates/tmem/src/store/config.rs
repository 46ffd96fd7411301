//! How a store is set up.

use crate::alloc::AllocatorKind;
use crate::codec::CodecKind;

/// How a store is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Bytes that everything together may take.
    pub budget_bytes: u64,
    /// What packs new pages.
    pub codec: CodecKind,
    /// How packed pages are laid into frames.
    pub allocator: AllocatorKind,
    /// Pages that can be packed, and pages that can be expanded, at the same time. More threads than that wait for each
    /// other. Each takes about 200 KiB with zstd once it is used.
    pub threads: usize,
    /// Parts of the index with a lock each; rounded up to a power of two, at most 4096.
    pub shards: usize,
    /// Bytes of the budget that are closed to new pages, so that [`Store::overwrite`](crate::Store::overwrite) finds room for a
    /// new version beside the old one when all else is full; a sixteenth of the budget at most.
    pub overwrite_bytes: u64,
    /// Pages are packed when room is needed, those first that were used least lately, and stay as they are until then: for stores
    /// whose budget is theirs to use. Only with [`AllocatorKind::Zsmalloc`], and not in pools with a cap; others pack every page at
    /// once. What packs is made with the store then, for all [`threads`](Self::threads), because later there is no room for it.
    pub packs_late: bool,
}

impl Config {
    /// A store of `budget_bytes` with the codec that measured best and contexts for up to eight processors.
    #[must_use]
    pub fn new(budget_bytes: u64) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            budget_bytes,
            codec: CodecKind::default(),
            allocator: AllocatorKind::default(),
            threads: processors.min(8),
            shards: 8 * processors.min(8),
            overwrite_bytes: 0,
            packs_late: false,
        }
    }

    /// Sets [`codec`](Self::codec).
    #[must_use]
    pub fn codec(mut self, codec: CodecKind) -> Self {
        self.codec = codec;
        self
    }

    /// Sets [`allocator`](Self::allocator).
    #[must_use]
    pub fn allocator(mut self, allocator: AllocatorKind) -> Self {
        self.allocator = allocator;
        self
    }

    /// Sets [`threads`](Self::threads).
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets [`overwrite_bytes`](Self::overwrite_bytes).
    #[must_use]
    pub fn overwrite_bytes(mut self, bytes: u64) -> Self {
        self.overwrite_bytes = bytes;
        self
    }

    /// Sets [`packs_late`](Self::packs_late).
    #[must_use]
    pub fn packs_late(mut self, late: bool) -> Self {
        self.packs_late = late;
        self
    }

    /// Sets [`shards`](Self::shards).
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }
}
