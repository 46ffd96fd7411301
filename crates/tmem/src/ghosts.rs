//! The ghost list: which ephemeral pages were dropped lately, and from which queue.
//!
//! A page that is put again while its ghost is still here was dropped too early: it is admitted to the main queue at once, and
//! the queue that lost it gets more room (S3-FIFO, Yang et al., SOSP 2023; the balance after ARC, Megiddo and Modha, FAST
//! 2003). Buckets of eight, in which a new ghost pushes out the oldest; all of it atomics, because a ghost that is lost in a
//! race costs a miss at most.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::alloc::Queue;
use crate::page::fold;

const BUCKET: usize = 8;
/// Bytes of budget per ghost: about as many ghosts as pages can be there.
const BUDGET_BYTES_PER_GHOST: u64 = 1024;
const NOBODY: u32 = 0;
const FROM_MAIN: u32 = 1;

/// What the small queue gets of the ephemeral bytes, in parts of 65536: a tenth at first.
const SHARE_ONE: u64 = 1 << 16;
const SHARE_START: u64 = SHARE_ONE / 10;
const SHARE_MIN: u64 = SHARE_ONE / 100;
const SHARE_MAX: u64 = SHARE_ONE / 2;

pub(crate) struct Ghosts {
    buckets: Box<[[AtomicU32; BUCKET]]>,
    small_share: AtomicU64,
    hits: AtomicU64,
}

impl Ghosts {
    /// A list for a store of `budget_bytes`.
    pub(crate) fn new(budget_bytes: u64) -> Self {
        let buckets = (budget_bytes / BUDGET_BYTES_PER_GHOST / BUCKET as u64).clamp(16, 1 << 24) as usize;
        Self {
            buckets: (0..buckets).map(|_| [const { AtomicU32::new(NOBODY) }; BUCKET]).collect(),
            small_share: AtomicU64::new(SHARE_START),
            hits: AtomicU64::new(0),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        size_of_val(&*self.buckets) as u64
    }

    /// Pages that came back soon after they were dropped.
    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Relaxed)
    }

    /// What the small queue may take of this many ephemeral bytes.
    pub(crate) fn small_bytes(&self, ephemeral_bytes: u64) -> u64 {
        let share = self.small_share.load(Relaxed);
        (u128::from(ephemeral_bytes) * u128::from(share) / u128::from(SHARE_ONE)) as u64
    }

    /// The bucket of a page and its name there, which is never [`NOBODY`].
    fn find(&self, leaf_hash: u64, slot: u32) -> (&[AtomicU32; BUCKET], u32) {
        let hash = fold(leaf_hash ^ u64::from(slot), 0x9e37_79b9_7f4a_7c15);
        let bucket = (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize;
        (&self.buckets[bucket], (hash as u32 | 2) & !FROM_MAIN)
    }

    /// Remembers a page that was dropped.
    pub(crate) fn add(&self, leaf_hash: u64, slot: u32, queue: Queue) {
        let (bucket, name) = self.find(leaf_hash, slot);
        let mut name = name | if queue == Queue::Main { FROM_MAIN } else { 0 };
        for ghost in bucket {
            name = ghost.swap(name, Relaxed);
            if name == NOBODY {
                return;
            }
        }
    }

    /// The queue that a page should be put into, given whether it was dropped lately.
    pub(crate) fn admit(&self, leaf_hash: u64, slot: u32) -> Queue {
        let (bucket, name) = self.find(leaf_hash, slot);
        let Some(ghost) = bucket.iter().find(|ghost| ghost.load(Relaxed) & !FROM_MAIN == name) else {
            return Queue::Small;
        };
        let was = ghost.swap(NOBODY, Relaxed);
        self.hits.fetch_add(1, Relaxed);
        let step = (SHARE_ONE / (self.buckets.len() * BUCKET) as u64).max(1);
        let share = self.small_share.load(Relaxed);
        let share = if was & FROM_MAIN == 0 { share + step } else { share.saturating_sub(step) };
        self.small_share.store(share.clamp(SHARE_MIN, SHARE_MAX), Relaxed);
        Queue::Main
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_is_found_once_and_moves_the_balance() {
        let ghosts = Ghosts::new(1 << 20);
        let share = ghosts.small_bytes(1 << 20);
        assert_eq!(ghosts.admit(5, 1), Queue::Small);
        ghosts.add(5, 1, Queue::Small);
        assert_eq!(ghosts.admit(5, 1), Queue::Main);
        assert_eq!(ghosts.admit(5, 1), Queue::Small, "a ghost comes once");
        assert!(ghosts.small_bytes(1 << 20) > share);
        ghosts.add(6, 2, Queue::Main);
        assert_eq!(ghosts.admit(6, 2), Queue::Main);
        assert_eq!(ghosts.small_bytes(1 << 20), share);
        assert_eq!(ghosts.hits(), 2);
    }

    #[test]
    fn the_oldest_ghosts_are_forgotten() {
        let ghosts = Ghosts::new(1 << 20);
        for page in 0..10_000_u64 {
            ghosts.add(fold(page, 77), 0, Queue::Small);
        }
        let recent = (9_500..10_000).filter(|page| ghosts.admit(fold(*page, 77), 0) == Queue::Main).count();
        let old = (0..5_000).filter(|page| ghosts.admit(fold(*page, 77), 0) == Queue::Main).count();
        assert!(recent > 350, "{recent} of 500");
        assert!(old < 50, "{old} of 5000");
    }
}
