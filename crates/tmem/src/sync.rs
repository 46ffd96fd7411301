//! The locks of the engine: those of the standard library or of loom, each with its [`Rank`].
//!
//! A thread takes locks in the order of their ranks and never two of one rank, so no circle of threads can wait for each other.
//! Builds with `debug_assertions` check that at every lock; in others a rank takes neither memory nor time. Under
//! loom it is not checked: there all threads of a model are one thread of the system, and loom finds deadlocks itself.

use std::ops::{Deref, DerefMut};

#[cfg(loom)]
use loom::sync as base;
use order::{Held, Place};
#[cfg(not(loom))]
use std::sync as base;

/// For states on which an order of operations depends; mere counters are the standard library's.
pub(crate) use base::atomic::{AtomicU32, AtomicU64};

const POISONED: &str = "a thread panicked inside the store, which may be inconsistent";

/// What a lock guards. Whoever holds one takes only those further down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// The walk of recompression, held for a step of it.
    Walk,
    /// A context for packing: held by a put until its page is stored, but not while it makes room.
    Packer,
    /// The writer of the first spill file, held while a batch is gathered, written and committed, or its file is emptied into
    /// the next one.
    Writer,
    /// Those of the files behind it.
    Writer1,
    Writer2,
    Writer3,
    /// A buffer for reading from the spill file.
    Fetcher,
    /// A shard of the index.
    Shard,
    /// The number of the part that takes the next new shared rows.
    NextRows,
    /// A part of the shared rows.
    Rows,
    /// A part of the directory.
    Directory,
    /// A context for expanding.
    Expander,
    /// The books of an allocator.
    Books,
}

impl Rank {
    /// Of the writers, by the numbers of their files.
    pub(crate) const WRITERS: [Rank; 4] = [Rank::Writer, Rank::Writer1, Rank::Writer2, Rank::Writer3];
}

#[derive(Debug)]
pub(crate) struct Mutex<T> {
    base: base::Mutex<T>,
    place: Place,
}

impl<T> Mutex<T> {
    pub(crate) fn new(rank: Rank, value: T) -> Self {
        Self { base: base::Mutex::new(value), place: Place::new(rank) }
    }

    /// Gives it another rank, before anybody locks it.
    pub(crate) fn set_rank(&mut self, rank: Rank) {
        self.place = Place::new(rank);
    }
}

#[derive(Debug)]
pub(crate) struct RwLock<T> {
    base: base::RwLock<T>,
    place: Place,
}

impl<T> RwLock<T> {
    pub(crate) fn new(rank: Rank, value: T) -> Self {
        Self { base: base::RwLock::new(value), place: Place::new(rank) }
    }
}

/// A lock that is held, until the guard is dropped.
#[must_use = "the lock is free again as soon as its guard is dropped"]
pub(crate) struct Guard<G> {
    base: G,
    _held: Held,
}

pub(crate) type MutexGuard<'a, T> = Guard<base::MutexGuard<'a, T>>;
pub(crate) type ReadGuard<'a, T> = Guard<base::RwLockReadGuard<'a, T>>;
pub(crate) type WriteGuard<'a, T> = Guard<base::RwLockWriteGuard<'a, T>>;

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.base
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.base
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    let held = mutex.place.enter();
    Guard { base: mutex.base.lock().expect(POISONED), _held: held }
}

/// Takes the lock if it is free. One that could wait for ever is also wrong when it happens not to wait, so the order is
/// checked all the same.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    let held = mutex.place.enter();
    Some(Guard { base: mutex.base.try_lock().ok()?, _held: held })
}

pub(crate) fn read<T>(lock: &RwLock<T>) -> ReadGuard<'_, T> {
    let held = lock.place.enter();
    Guard { base: lock.base.read().expect(POISONED), _held: held }
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> WriteGuard<'_, T> {
    let held = lock.place.enter();
    Guard { base: lock.base.write().expect(POISONED), _held: held }
}

/// The order, checked.
#[cfg(all(debug_assertions, not(loom)))]
mod order {
    use std::cell::Cell;

    use super::Rank;

    thread_local! {
        /// The ranks that this thread holds, by their numbers: one bit each, because no rank is held twice.
        static HELD: Cell<u32> = const { Cell::new(0) };
    }

    /// The place of a lock in the order.
    #[derive(Debug)]
    pub(super) struct Place(Rank);

    /// A rank that this thread holds; dropped with the guard of the lock, which stays in its thread.
    pub(super) struct Held(Rank);

    impl Place {
        pub(super) fn new(rank: Rank) -> Self {
            Self(rank)
        }

        /// Notes that the lock is being taken.
        ///
        /// # Panics
        /// When a lock of the same rank or a later one is held.
        pub(super) fn enter(&self) -> Held {
            let held = HELD.get();
            if let Some(last) = last(held) {
                assert!(last < self.0, "lock order: {:?} taken while {last:?} is held", self.0);
            }
            HELD.set(held | bit(self.0));
            Held(self.0)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.set(HELD.get() & !bit(self.0));
        }
    }

    fn bit(rank: Rank) -> u32 {
        1 << rank as u32
    }

    /// The last rank of a set.
    fn last(held: u32) -> Option<Rank> {
        use Rank::{Books, Directory, Expander, Fetcher, NextRows, Packer, Rows, Shard, Walk, Writer};
        let all = [Books, Expander, Directory, Rows, NextRows, Shard, Fetcher, Writer, Packer, Walk];
        all.into_iter().find(|rank| held & bit(*rank) != 0)
    }
}

/// The order, trusted.
#[cfg(not(all(debug_assertions, not(loom))))]
mod order {
    use super::{Guard, Rank, base};

    #[derive(Debug)]
    pub(super) struct Place;

    pub(super) struct Held;

    impl Place {
        pub(super) fn new(_: Rank) -> Self {
            Self
        }

        pub(super) fn enter(&self) -> Held {
            Held
        }
    }

    const _: () = assert!(size_of::<super::Mutex<u64>>() == size_of::<base::Mutex<u64>>());
    const _: () = assert!(size_of::<super::RwLock<u64>>() == size_of::<base::RwLock<u64>>());
    const _: () = {
        type Base = base::MutexGuard<'static, u64>;
        assert!(size_of::<Guard<Base>>() == size_of::<Base>());
    };
}

#[cfg(all(test, debug_assertions, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranks_may_be_left_out_and_guards_dropped_in_any_order() {
        let (packer, shard) = (Mutex::new(Rank::Packer, 1), RwLock::new(Rank::Shard, 2));
        let books = Mutex::new(Rank::Books, 3);
        for _ in 0..2 {
            let first = lock(&packer);
            let second = write(&shard);
            let third = lock(&books);
            drop(second);
            drop(first);
            drop(third);
        }
        // A lock that was not got is not held.
        let busy = std::thread::scope(|scope| {
            let _guard = lock(&books);
            scope.spawn(|| try_lock(&books).is_none() && *read(&shard) == 2).join().unwrap()
        });
        assert!(busy);
    }

    #[test]
    #[should_panic(expected = "lock order: Shard taken while Books is held")]
    fn a_wrong_order_panics() {
        let (shard, books) = (RwLock::new(Rank::Shard, ()), Mutex::new(Rank::Books, ()));
        let _books = lock(&books);
        let _shard = read(&shard);
    }

    #[test]
    #[should_panic(expected = "lock order: Shard taken while Shard is held")]
    fn two_of_a_rank_panic() {
        let shards = [RwLock::new(Rank::Shard, ()), RwLock::new(Rank::Shard, ())];
        let _one = read(&shards[0]);
        let _two = write(&shards[1]);
    }

    #[test]
    #[should_panic(expected = "lock order: Packer taken while Expander is held")]
    fn trying_in_a_wrong_order_panics() {
        let (packer, expander) = (Mutex::new(Rank::Packer, ()), Mutex::new(Rank::Expander, ()));
        let _expander = try_lock(&expander);
        let _packer = try_lock(&packer);
    }
}
