//! The budget: one count of every byte the store holds, and the limit it must not pass.
//!
//! What new pages need is asked for first ([`Budget::admit`]); what old pages need in order to stay reachable (a move,
//! a re-key) is charged without asking. A small reserve, closed to new pages, lets compaction start when all is full; another
//! one, as large as the owner likes, lets pages be overwritten then.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::page::PAGE_SIZE;

/// Bytes that only moves of stored pages may use: a few frames for the heads they are moved to.
const RESERVE_BYTES: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicU64,
    /// Below the limit, what only moves may use.
    reserve_bytes: u64,
    /// Below the limit, what only overwritten pages may use.
    overwrite_bytes: u64,
    used: AtomicU64,
    /// Bytes that were admitted so far, for pages from outside and for moves.
    admitted: AtomicU64,
    moved: AtomicU64,
    /// `admitted` when [`wanted_room`](Self::wanted_room) was asked last, and its answer.
    seen: AtomicU64,
    wanted: AtomicU64,
}

/// What [`Budget::wanted_room`] answers at least.
const ROOM_BYTES_MIN: u64 = 64 << 10;

/// On whose behalf memory is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A page from outside.
    Admit,
    /// A page from outside that replaces one, whose place comes free in the same moment.
    Overwrite,
    /// A page that is already here moves, in order to free more than it takes.
    Move,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit: AtomicU64::new(limit),
            reserve_bytes: RESERVE_BYTES,
            overwrite_bytes: 0,
            used: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
        }
    }

    /// Lets so many threads move pages at a time, each with a reserve of its own.
    pub(crate) fn with_movers(self, threads: usize) -> Self {
        Self { reserve_bytes: RESERVE_BYTES * threads as u64, ..self }
    }

    /// Keeps `bytes` below the limit for pages that are overwritten.
    pub(crate) fn with_overwrites(self, bytes: u64) -> Self {
        Self { overwrite_bytes: bytes, ..self }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// How far pages may fill a store with this limit: what is left is for moves.
    pub(crate) fn room_for_pages(&self, limit: u64) -> u64 {
        limit - self.reserve_bytes.min(limit / 16)
    }

    /// Moves have used a good part of their reserve.
    pub(crate) fn reserve_is_short(&self) -> bool {
        let limit = self.limit();
        self.used() > limit - self.reserve_bytes.min(limit / 16) / 2
    }

    /// How far the store may fill up for `purpose`.
    fn ceiling(&self, purpose: Purpose) -> u64 {
        let limit = self.limit();
        let ceiling = self.room_for_pages(limit);
        match purpose {
            Purpose::Admit => ceiling - self.overwrite_bytes.min(limit / 16),
            Purpose::Overwrite => ceiling,
            Purpose::Move => limit,
        }
    }

    /// Takes `bytes` if they fit. The count is a plain counter: no other memory is published through it.
    pub(crate) fn admit(&self, bytes: u64, purpose: Purpose) -> bool {
        let ceiling = self.ceiling(purpose);
        let fits = self.used.fetch_update(Relaxed, Relaxed, |used| {
            let after = used + bytes;
            (after <= ceiling).then_some(after)
        });
        let counter = match purpose {
            Purpose::Admit | Purpose::Overwrite => &self.admitted,
            Purpose::Move => &self.moved,
        };
        if fits.is_ok() {
            counter.fetch_add(bytes, Relaxed);
        }
        fits.is_ok()
    }

    /// Bytes that moves took so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// How much should be free so that nobody has to wait until this is asked again: twice what was admitted since it was
    /// asked last, and at least half of the last answer, up to a sixteenth of all.
    pub(crate) fn wanted_room(&self) -> u64 {
        let admitted = self.admitted.load(Relaxed);
        let recent = admitted - self.seen.swap(admitted, Relaxed).min(admitted);
        let wanted = (2 * recent).max(self.wanted.load(Relaxed) / 2);
        let wanted = wanted.min(self.limit() / 16).max(ROOM_BYTES_MIN);
        self.wanted.store(wanted, Relaxed);
        wanted
    }

    /// Frames that an allocator with `frame_bytes` keeps for what comes next, at least: what [`wanted_room`](Self::wanted_room)
    /// said last, or a little of what there is.
    pub(crate) fn spare_frames_max(&self, frame_bytes: u64) -> u64 {
        /// Frames that may wait for company; on top of it one in 64 of all.
        const FRAMES_MIN: u64 = 16;
        const PART: u64 = 64;
        let frames = |bytes| bytes / PAGE_SIZE as u64;
        (FRAMES_MIN + frames(frame_bytes) / PART).max(frames(self.wanted.load(Relaxed)))
    }

    /// Whether `bytes` would fit now.
    pub(crate) fn has_room(&self, bytes: u64, purpose: Purpose) -> bool {
        self.used() + bytes <= self.ceiling(purpose)
    }

    /// Takes `bytes` whether they fit or not.
    pub(crate) fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn refund(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "refund of {bytes} bytes out of {before}");
    }

    /// Replaces a charge of `old` bytes by one of `new` bytes.
    pub(crate) fn recharge(&self, old: u64, new: u64) {
        if new > old {
            self.charge(new - old);
        } else if old > new {
            self.refund(old - new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserves_are_for_overwrites_and_for_moves() {
        let budget = Budget::new(1 << 20).with_overwrites(8 << 10);
        assert!(budget.admit((1 << 20) - RESERVE_BYTES - (8 << 10), Purpose::Admit));
        assert!(!budget.admit(1, Purpose::Admit));
        assert!(budget.admit(8 << 10, Purpose::Overwrite));
        assert!(!budget.admit(1, Purpose::Overwrite));
        assert!(budget.admit(RESERVE_BYTES, Purpose::Move));
        assert!(!budget.admit(1, Purpose::Move));
        budget.refund(1 << 20);
        assert_eq!(budget.used(), 0);
    }
}
