//! The swapcache: a page that came back may keep its stored copy. If it leaves again unchanged, nothing has to be compressed or
//! written.
//!
//! A copy on disk takes no RAM and a very small one next to none: those are kept in any case. A larger one in RAM takes room from
//! the pages that it saves work for. So it is kept only where that costs little, [`Room`], and if it was of use lately: the part of
//! the copies that pages had kept and that were still good when the pages left.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A copy in RAM of at most this many bytes is always kept: what it takes costs less in faults than compressing the page again.
const SMALL_BYTES: u32 = 256;
/// A copy of more than half a page is not kept in RAM, however good copies are.
const LARGE_BYTES: u32 = 2048;
/// Of the pages whose numbers are multiples of this, copies are kept even when that is of no use, to see whether it still is.
const PROBE_PAGES: u64 = 16;
/// Copies over which use is averaged.
const MEMORY: u32 = 256;
/// What `of_use` is when all copies are good.
const ALL: u32 = 1 << 16;

/// What there is for a copy that is not small.
#[derive(Clone, Copy, Debug)]
pub enum Room {
    /// What it takes pushes out a page that has to come back.
    None,
    /// The page is one of a long stream. Such pages are not used again before all of the stream was, whatever is kept of it.
    Passing,
    /// Cold pages can go to disk instead.
    Ample,
}

/// How good kept copies were lately.
pub struct Swapcache {
    /// The part of them that was, of [`ALL`]; a moving average. Two that are noted at once may count as one.
    of_use: AtomicU32,
}

impl Swapcache {
    /// One that expects copies to be good.
    pub fn new() -> Swapcache {
        Swapcache { of_use: AtomicU32::new(ALL) }
    }

    /// Notes whether a copy that was kept was still good when its page left.
    pub fn note(&self, good: bool) {
        let before = self.of_use.load(Relaxed);
        let now = if good { ALL } else { 0 };
        self.of_use.store(before - before / MEMORY + now / MEMORY, Relaxed);
    }

    /// How large a copy of the page with this number may be that stays in RAM.
    pub fn bytes_max(&self, page: u64, room: Room) -> u32 {
        let is_of_use = |needed| self.of_use.load(Relaxed) >= needed || page.is_multiple_of(PROBE_PAGES);
        let large = match room {
            Room::Ample => is_of_use(ALL / 2),
            Room::Passing => is_of_use(ALL / 8 * 7),
            Room::None => false,
        };
        if large { LARGE_BYTES } else { SMALL_BYTES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_kept_while_they_are_of_use() {
        let cache = Swapcache::new();
        let bytes_max = |page| cache.bytes_max(page, Room::Ample);
        let note = |times, good| (0..times).for_each(|_| cache.note(good));
        assert_eq!((bytes_max(1), cache.bytes_max(1, Room::None)), (LARGE_BYTES, SMALL_BYTES));
        note(100, false);
        assert_eq!(bytes_max(1), LARGE_BYTES, "a few say nothing");
        note(10_000, false);
        assert_eq!((bytes_max(1), bytes_max(32)), (SMALL_BYTES, LARGE_BYTES));
        note(400, true);
        assert_eq!(bytes_max(1), LARGE_BYTES);
        note(100_000, true);
        note(100, false);
        assert_eq!(bytes_max(1), LARGE_BYTES);
        (0..1000).for_each(|i| cache.note(i % 4 != 0));
        let passing = |page| cache.bytes_max(page, Room::Passing);
        assert_eq!((bytes_max(1), passing(1), passing(16)), (LARGE_BYTES, SMALL_BYTES, LARGE_BYTES));
        for i in 0..10_000 {
            cache.note(i % 3 == 0);
        }
        assert_eq!(bytes_max(1), SMALL_BYTES);
    }
}
