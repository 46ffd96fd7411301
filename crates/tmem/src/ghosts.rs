//! The ghost list: which ephemeral pages were dropped lately, and out of what.
//!
//! Small and main queue are those of S3-FIFO (Yang et al., SOSP 2023): a page that is put again while its ghost is still here
//! was dropped too early and is admitted to the main queue. Two things are learned, both by one measure, how many of those
//! that were dropped come back: what returns more often deserves more room.
//!
//! - Whether a page that was used in the small queue goes on to the main one (S3-FIFO) or is dropped all the same, because
//!   uses soon after one another say little about a later one (2Q, Johnson and Shasha, VLDB 1994).
//! - How much room the small queue gets (the balance after ARC, Megiddo and Modha, FAST 2003, but by rates: that more come
//!   back to a queue because more leave it is no reason).
//!
//! Buckets of eight, in which a new ghost pushes out the oldest; all of it atomics, because what is lost in a race costs a
//! miss at most.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::alloc::Queue;
use crate::page::fold;

const BUCKET: usize = 8;
/// Places in a bucket of ghosts that are young: with a little more room their pages would still be there.
const YOUNG: usize = BUCKET / 4;
/// Bytes of budget per ghost: about as many ghosts as pages can be there.
const BUDGET_BYTES_PER_GHOST: u64 = 1024;
const NOBODY: u32 = 0;
/// The bits of a ghost that say what its page was dropped as.
const FATE_BITS: u32 = 0b11;

/// What the small queue gets of the ephemeral bytes, in parts of 65536: a tenth at first.
const SHARE_ONE: u64 = 1 << 16;
const SHARE_START: u64 = SHARE_ONE / 10;
const SHARE_MIN: u64 = SHARE_ONE / 20;
const SHARE_MAX: u64 = SHARE_ONE / 10 * 9;
/// A ghost that comes back from a queue that loses as many as the other moves the share by this part of the ghosts.
const STEP: u64 = 4;
/// What loses fewer pages than this part of all counts as if it lost so many: few drops do not tell a rate.
const RARE: u64 = 16;
/// One of so many pages that were used in the small queue is dropped always, so that it stays known what becomes of them.
const TRIAL_EVERY: u64 = 16;

/// What a page was when it was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// In the small queue, and not used there.
    Unused = 1,
    /// In the small queue, used there.
    Used = 2,
    /// In the main queue.
    Main = 3,
}

impl Fate {
    pub(crate) fn of(queue: Queue, used: bool) -> Self {
        match (queue, used) {
            (Queue::Main, _) => Self::Main,
            (Queue::Small | Queue::Unpacked, true) => Self::Used,
            (Queue::Small | Queue::Unpacked, false) => Self::Unused,
        }
    }
}

/// How many pages of one fate were dropped lately, and how many of those came back.
#[derive(Default)]
struct Rate {
    dropped: AtomicU64,
    returned: AtomicU64,
}

pub(crate) struct Ghosts {
    buckets: Box<[[AtomicU32; BUCKET]]>,
    small_share: AtomicU64,
    /// By [`Fate`]; the first one is nobody's.
    rates: [Rate; 4],
    trials: AtomicU64,
    hits: AtomicU64,
}

impl Ghosts {
    /// A list for a store of `budget_bytes`.
    pub(crate) fn new(budget_bytes: u64) -> Self {
        let buckets = (budget_bytes / BUDGET_BYTES_PER_GHOST / BUCKET as u64).clamp(16, 1 << 24) as usize;
        Self {
            buckets: (0..buckets).map(|_| [const { AtomicU32::new(NOBODY) }; BUCKET]).collect(),
            small_share: AtomicU64::new(SHARE_START),
            rates: Default::default(),
            trials: AtomicU64::new(0),
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

    fn len(&self) -> u64 {
        (self.buckets.len() * BUCKET) as u64
    }

    fn dropped(&self, fate: Fate) -> u64 {
        self.rates[fate as usize].dropped.load(Relaxed)
    }

    fn returned(&self, fate: Fate) -> u64 {
        self.rates[fate as usize].returned.load(Relaxed)
    }

    /// Whether a page that was used in the small queue should go on to the main one: if such pages come back more often than
    /// what the main queue drops to make room. Also as long as that drops nothing, as where there is none.
    pub(crate) fn keeps_used(&self) -> bool {
        let main = self.dropped(Fate::Main);
        let is_trial = || self.trials.fetch_add(1, Relaxed).is_multiple_of(TRIAL_EVERY);
        main == 0
            || self.returned(Fate::Used) * main > self.returned(Fate::Main) * self.dropped(Fate::Used) && !is_trial()
    }

    /// The bucket of a page and its name there, without its fate.
    fn find(&self, leaf_hash: u64, slot: u32) -> (&[AtomicU32; BUCKET], u32) {
        let hash = fold(leaf_hash ^ u64::from(slot), 0x9e37_79b9_7f4a_7c15);
        let bucket = (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize;
        (&self.buckets[bucket], hash as u32 & !FATE_BITS)
    }

    /// Remembers a page that was dropped.
    pub(crate) fn add(&self, leaf_hash: u64, slot: u32, fate: Fate) {
        self.rates[fate as usize].dropped.fetch_add(1, Relaxed);
        if self.dropped_all() > self.len() {
            // The older half of what was learned counts for half.
            for count in self.rates.iter().flat_map(|rate| [&rate.dropped, &rate.returned]) {
                count.store(count.load(Relaxed) / 2, Relaxed);
            }
        }
        let (bucket, name) = self.find(leaf_hash, slot);
        let mut name = name | fate as u32;
        for ghost in bucket {
            name = ghost.swap(name, Relaxed);
            if name == NOBODY {
                return;
            }
        }
    }

    fn dropped_all(&self) -> u64 {
        self.rates.iter().map(|rate| rate.dropped.load(Relaxed)).sum()
    }

    /// The queue that a page should be put into, given whether it was dropped lately.
    pub(crate) fn admit(&self, leaf_hash: u64, slot: u32) -> Queue {
        let (bucket, name) = self.find(leaf_hash, slot);
        let is_it = |ghost: u32| ghost != NOBODY && ghost & !FATE_BITS == name;
        let Some(place) = bucket.iter().position(|ghost| is_it(ghost.load(Relaxed))) else {
            return Queue::Small;
        };
        let fate = bucket[place].swap(NOBODY, Relaxed) & FATE_BITS;
        self.rates[fate as usize].returned.fetch_add(1, Relaxed);
        self.hits.fetch_add(1, Relaxed);
        if place < YOUNG {
            self.give_room(fate == Fate::Main as u32);
        }
        Queue::Main
    }

    /// Gives the main or the small queue more room, the more the fewer pages it drops: so that the rates count, and not the
    /// numbers.
    fn give_room(&self, to_main: bool) {
        let all = self.dropped_all();
        let main = self.dropped(Fate::Main);
        let dropped = if to_main { main } else { all - main.min(all) };
        let step = SHARE_ONE * STEP * all / (2 * self.len() * dropped.max(all / RARE).max(1));
        let share = self.small_share.load(Relaxed);
        let share = if to_main { share.saturating_sub(step) } else { share + step };
        self.small_share.store(share.clamp(SHARE_MIN, SHARE_MAX), Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Drops so many pages of a fate; some of them come back at once.
    fn drop_pages(ghosts: &Ghosts, fate: Fate, count: u64, returning: u64) {
        for page in 0..count {
            ghosts.add(fold(page, fate as u64), 0, fate);
            if page < returning {
                assert_eq!(ghosts.admit(fold(page, fate as u64), 0), Queue::Main);
            }
        }
    }

    fn kept_of_160(ghosts: &Ghosts) -> usize {
        (0..160).filter(|_| ghosts.keeps_used()).count()
    }

    #[test]
    fn a_ghost_is_found_once() {
        let ghosts = Ghosts::new(1 << 20);
        assert_eq!(ghosts.admit(5, 1), Queue::Small);
        for fate in [Fate::Unused, Fate::Used, Fate::Main] {
            ghosts.add(5, 1, fate);
            assert_eq!(ghosts.admit(5, 1), Queue::Main);
            assert_eq!(ghosts.admit(5, 1), Queue::Small, "a ghost comes once");
        }
        assert_eq!(ghosts.hits(), 3);
    }

    #[test]
    fn room_goes_to_the_queue_whose_pages_return_more_often_not_to_the_one_that_drops_more() {
        for (small, main, grows) in [((400, 8), (100, 4), false), ((100, 4), (400, 8), true)] {
            let ghosts = Ghosts::new(1 << 20);
            let share = ghosts.small_bytes(1 << 20);
            for returning in [false, true] {
                for (fate, (count, returned)) in [(Fate::Main, main), (Fate::Unused, small)] {
                    let (count, returned) = if returning { (returned, returned) } else { (count - returned, 0) };
                    drop_pages(&ghosts, fate, count, returned);
                }
            }
            assert_eq!(ghosts.small_bytes(1 << 20) > share, grows);
        }
    }

    #[test]
    fn the_small_queue_keeps_a_part_whatever_returns() {
        let ghosts = Ghosts::new(1 << 20);
        drop_pages(&ghosts, Fate::Main, 2000, 2000);
        assert_eq!(ghosts.small_bytes(100_000), 100_000 * SHARE_MIN / SHARE_ONE);
        drop_pages(&ghosts, Fate::Used, 5000, 5000);
        assert_eq!(ghosts.small_bytes(100_000), 100_000 * SHARE_MAX / SHARE_ONE);
    }

    #[test]
    fn what_was_used_is_kept_if_such_pages_return_more_often_than_those_of_the_main_queue() {
        let ghosts = Ghosts::new(1 << 20);
        let kept = || kept_of_160(&ghosts);
        assert_eq!(kept(), 160, "nothing has to leave the main queue yet");
        drop_pages(&ghosts, Fate::Main, 100, 20);
        assert_eq!(kept(), 0, "nothing is known of used ones");
        drop_pages(&ghosts, Fate::Used, 50, 20);
        assert_eq!(kept(), 150, "one of sixteen is given up to see what becomes of it");
        drop_pages(&ghosts, Fate::Used, 100, 0);
        assert_eq!(kept(), 0);
    }

    #[test]
    fn what_was_learned_long_ago_counts_for_little() {
        let ghosts = Ghosts::new(1 << 20);
        drop_pages(&ghosts, Fate::Main, 500, 0);
        drop_pages(&ghosts, Fate::Used, 500, 500);
        assert_eq!(kept_of_160(&ghosts), 150);
        drop_pages(&ghosts, Fate::Used, 5000, 0);
        drop_pages(&ghosts, Fate::Main, 100, 10);
        assert_eq!(kept_of_160(&ghosts), 0);
        assert!(ghosts.dropped_all() <= ghosts.len());
    }

    #[test]
    fn the_oldest_ghosts_are_forgotten() {
        let ghosts = Ghosts::new(1 << 20);
        for page in 0..10_000_u64 {
            ghosts.add(fold(page, 77), 0, Fate::Unused);
        }
        let recent = (9_500..10_000).filter(|page| ghosts.admit(fold(*page, 77), 0) == Queue::Main).count();
        let old = (0..5_000).filter(|page| ghosts.admit(fold(*page, 77), 0) == Queue::Main).count();
        assert!(recent > 350, "{recent} of 500");
        assert!(old < 50, "{old} of 5000");
    }
}
