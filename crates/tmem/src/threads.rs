//! What threads do not have to share: a number each, slots that they keep to, and counters that they add to without meeting.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::sync::{Mutex, MutexGuard, lock, try_lock};

const STRIPES: usize = 16;

/// A number for the calling thread, counted from zero in the order in which threads first ask.
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) });
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Relaxed));
        }
        number.get()
    })
}

/// A free slot: the thread's own one, or the next that is free, or else its own as soon as it becomes free.
pub(crate) fn own_slot<T>(slots: &[Mutex<T>]) -> MutexGuard<'_, T> {
    let own = thread_number() % slots.len();
    for distance in 0..slots.len() {
        if let Some(slot) = try_lock(&slots[(own + distance) % slots.len()]) {
            return slot;
        }
    }
    lock(&slots[own])
}

/// Gets and hits, counted in one of sixteen places each.
#[derive(Debug, Default)]
pub(crate) struct GetCounters {
    stripes: [Stripe; STRIPES],
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl GetCounters {
    pub(crate) fn add(&self, hit: bool) {
        let stripe = &self.stripes[thread_number() % STRIPES];
        let counter = if hit { &stripe.hits } else { &stripe.misses };
        counter.fetch_add(1, Relaxed);
    }

    /// Hits and misses.
    pub(crate) fn sums(&self) -> (u64, u64) {
        let sum =
            |(hits, misses), stripe: &Stripe| (hits + stripe.hits.load(Relaxed), misses + stripe.misses.load(Relaxed));
        self.stripes.iter().fold((0, 0), sum)
    }
}
