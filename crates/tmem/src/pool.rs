//! Pools: a client's name space, with its kind and its options.
//!
//! A pool is a slot in a table whose state is one atomic word, so that every put and get can look at it without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::alloc::Class;
use crate::error::{Error, ErrorKind};
use crate::sync::AtomicU32;

/// The name of a pool. Names are not used again soon: that of a destroyed pool finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(u32);

const SLOT_BITS: u32 = 12;

impl PoolId {
    pub(crate) fn new(slot: u32, generation: u32) -> Self {
        Self(generation << SLOT_BITS | slot)
    }

    /// The name as a number, to be kept beside a [saved](crate::Store::save) store, which knows its pools by the same names
    /// when it is opened.
    #[must_use]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// The name that [`to_bits`](Self::to_bits) made a number of. Other numbers name no pool, or one of somebody else.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    fn slot(self) -> usize {
        (self.0 & ((1 << SLOT_BITS) - 1)) as usize
    }

    fn generation(self) -> u32 {
        self.0 >> SLOT_BITS
    }
}

/// Whether the pages of a pool may vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// Pages may be dropped at any time: a cache.
    Ephemeral,
    /// A page that was accepted stays until it is flushed.
    Persistent,
}

/// How a pool behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolOptions {
    /// A get takes the page out of the store.
    pub exclusive_gets: bool,
    /// Puts only flush.
    pub frozen: bool,
    /// The most payload bytes that the pool may hold; `None` for no limit but the budget.
    pub cap_bytes: Option<u64>,
    /// The pool's part of the room that all ephemeral pools share, beside the weights of the others. Pages of pools that are
    /// over their part are dropped first. A persistent pool needs none.
    pub weight: u32,
}

/// What a pool weighs unless it is said.
const WEIGHT: u32 = 100;

impl Default for PoolOptions {
    fn default() -> Self {
        Self { exclusive_gets: false, frozen: false, cap_bytes: None, weight: WEIGHT }
    }
}

impl PoolOptions {
    /// Sets [`exclusive_gets`](Self::exclusive_gets).
    #[must_use]
    pub fn exclusive_gets(mut self, exclusive: bool) -> Self {
        self.exclusive_gets = exclusive;
        self
    }

    /// Sets [`frozen`](Self::frozen).
    #[must_use]
    pub fn frozen(mut self, frozen: bool) -> Self {
        self.frozen = frozen;
        self
    }

    /// Sets [`weight`](Self::weight).
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets [`cap_bytes`](Self::cap_bytes).
    #[must_use]
    pub fn cap_bytes(mut self, cap: Option<u64>) -> Self {
        self.cap_bytes = cap;
        self
    }
}

const LIVE: u32 = 1;
const EPHEMERAL: u32 = 2;
const EXCLUSIVE: u32 = 4;
const FROZEN: u32 = 8;
const FLAG_BITS: u32 = 4;
const FLAGS_MASK: u32 = (1 << FLAG_BITS) - 1;
const GENERATION_MASK: u32 = (1 << (32 - SLOT_BITS)) - 1;

const CHUNK: usize = 64;
const CHUNKS: usize = (1 << SLOT_BITS) / CHUNK;

/// The state of a pool at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolState(u32);

impl PoolState {
    pub(crate) fn class(self) -> Class {
        if self.0 & EPHEMERAL != 0 { Class::Ephemeral } else { Class::Persistent }
    }

    pub(crate) fn kind(self) -> PoolKind {
        match self.class() {
            Class::Ephemeral => PoolKind::Ephemeral,
            Class::Persistent => PoolKind::Persistent,
        }
    }

    pub(crate) fn exclusive_gets(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }

    pub(crate) fn frozen(self) -> bool {
        self.0 & FROZEN != 0
    }
}

/// One slot: generation and flags in `state`.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct PoolSlot {
    state: AtomicU32,
    /// `u64::MAX` for none.
    pub(crate) cap: AtomicU64,
    pub(crate) weight: AtomicU32,
    /// Pages of the pool.
    pub(crate) pages: AtomicU64,
    /// Their payload bytes, as far as the pool put them itself: shared pages count for nobody.
    pub(crate) bytes: AtomicU64,
}

/// What is saved of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedPool {
    /// The pool, or the last one that the slot had.
    pub(crate) id: PoolId,
    /// Bit 0: it lives; 1: ephemeral; 2: exclusive gets; 3: frozen.
    pub(crate) flags: u32,
    pub(crate) cap: u64,
    pub(crate) weight: u32,
}

impl SavedPool {
    pub(crate) fn is_live(&self) -> bool {
        self.flags & LIVE != 0
    }

    pub(crate) fn kind(&self) -> PoolKind {
        PoolState(self.flags).kind()
    }
}

/// All pools.
#[derive(Debug)]
pub(crate) struct Pools {
    chunks: [OnceLock<Box<[PoolSlot; CHUNK]>>; CHUNKS],
    /// Ephemeral pools that live, and their weights together.
    ephemeral: AtomicU64,
    ephemeral_weight: AtomicU64,
}

impl Pools {
    pub(crate) const CHUNK_BYTES: usize = CHUNK * size_of::<PoolSlot>();

    pub(crate) fn new() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
            ephemeral: AtomicU64::new(0),
            ephemeral_weight: AtomicU64::new(0),
        }
    }

    /// The slot of a pool, also when the pool has ended and is being emptied.
    pub(crate) fn slot(&self, id: PoolId) -> Option<&PoolSlot> {
        let chunk = self.chunks[id.slot() / CHUNK].get()?;
        Some(&chunk[id.slot() % CHUNK])
    }

    /// The pool, if it lives.
    pub(crate) fn find(&self, id: PoolId) -> Option<(PoolState, &PoolSlot)> {
        let slot = self.slot(id)?;
        // Acquire pairs with the Release in `create`: whoever sees the pool live sees its cap and its counters reset.
        let state = slot.state.load(Ordering::Acquire);
        let live = state & LIVE != 0 && state >> FLAG_BITS == id.generation();
        live.then_some((PoolState(state), slot))
    }

    /// Takes a slot for a new pool; says also whether a chunk of slots had to be made.
    pub(crate) fn create(&self, kind: PoolKind, options: &PoolOptions) -> Result<(PoolId, bool), Error> {
        let mut flags = LIVE;
        for (flag, on) in
            [(EPHEMERAL, kind == PoolKind::Ephemeral), (EXCLUSIVE, options.exclusive_gets), (FROZEN, options.frozen)]
        {
            flags |= if on { flag } else { 0 };
        }
        let cap = options.cap_bytes.unwrap_or(u64::MAX);
        for (number, chunk) in self.chunks.iter().enumerate() {
            let mut made = false;
            let slots = chunk.get_or_init(|| {
                made = true;
                Box::new(std::array::from_fn(|_| PoolSlot::new()))
            });
            for (at, slot) in slots.iter().enumerate() {
                if let Some(generation) = slot.claim(flags, cap, options.weight) {
                    if kind == PoolKind::Ephemeral {
                        self.count_ephemeral(options.weight);
                    }
                    let id = PoolId::new((number * CHUNK + at) as u32, generation);
                    return Ok((id, made));
                }
            }
        }
        let max = 1 << SLOT_BITS;
        Err(ErrorKind::TooManyPools { max }.into())
    }

    /// Ends a pool: from now on nobody finds it, and nobody puts into it. `false` if it was not there. Its slot is not used again
    /// before the caller has emptied it and says so with [`free`](Self::free).
    pub(crate) fn end(&self, id: PoolId) -> bool {
        let Some(state) = self.change(id, |state| state & !LIVE | FROZEN) else {
            return false;
        };
        if state.kind() == PoolKind::Ephemeral {
            let weight = self.slot(id).map_or(0, |slot| slot.weight.load(Ordering::Relaxed));
            self.ephemeral.fetch_sub(1, Ordering::Relaxed);
            self.ephemeral_weight.fetch_sub(weight.into(), Ordering::Relaxed);
        }
        true
    }

    /// Gives the slot of a pool back that has ended and is empty.
    pub(crate) fn free(&self, id: PoolId) {
        if let Some(slot) = self.slot(id) {
            // Release pairs with the Acquire in `claim`: the counters have gone down before.
            slot.state.store(id.generation() << FLAG_BITS, Ordering::Release);
        }
    }

    pub(crate) fn set_frozen(&self, id: PoolId, frozen: bool) -> bool {
        self.change(id, |state| if frozen { state | FROZEN } else { state & !FROZEN }).is_some()
    }

    /// All slots that have or had a pool.
    pub(crate) fn saved(&self) -> impl Iterator<Item = SavedPool> {
        let chunks = self.chunks.iter().enumerate().filter_map(|(number, chunk)| Some((number, chunk.get()?)));
        let slots = chunks.flat_map(|(number, chunk)| (number * CHUNK..).zip(chunk.iter()));
        slots.filter_map(|(number, slot)| {
            let state = slot.state.load(Ordering::Acquire);
            let id = PoolId::new(number as u32, state >> FLAG_BITS);
            let (cap, weight) = (slot.cap.load(Ordering::Relaxed), slot.weight.load(Ordering::Relaxed));
            (state != 0).then_some(SavedPool { id, flags: state & FLAGS_MASK, cap, weight })
        })
    }

    /// Gives a slot that had no pool yet the pool that it had when it was saved; says whether a chunk of slots had to be made.
    /// `None` when it has one, or there cannot be such a pool.
    pub(crate) fn restore(&self, saved: &SavedPool) -> Option<bool> {
        // A pool that was being emptied is empty in the store that is opened.
        let flags = if saved.is_live() { saved.flags } else { 0 };
        let state = saved.id.generation() << FLAG_BITS | flags;
        if saved.flags & !FLAGS_MASK != 0 || saved.id.generation() == GENERATION_MASK || state == 0 {
            return None;
        }
        let mut made = false;
        let chunk = self.chunks[saved.id.slot() / CHUNK].get_or_init(|| {
            made = true;
            Box::new(std::array::from_fn(|_| PoolSlot::new()))
        });
        let slot = &chunk[saved.id.slot() % CHUNK];
        if slot.state.load(Ordering::Relaxed) != 0 {
            return None;
        }
        slot.cap.store(saved.cap, Ordering::Relaxed);
        slot.weight.store(saved.weight, Ordering::Relaxed);
        // Release pairs with the Acquire in `find`.
        slot.state.store(state, Ordering::Release);
        if saved.is_live() && saved.kind() == PoolKind::Ephemeral {
            self.count_ephemeral(saved.weight);
        }
        Some(made)
    }

    fn count_ephemeral(&self, weight: u32) {
        self.ephemeral.fetch_add(1, Ordering::Relaxed);
        self.ephemeral_weight.fetch_add(weight.into(), Ordering::Relaxed);
    }

    /// Ephemeral pools that live.
    pub(crate) fn ephemeral(&self) -> u64 {
        self.ephemeral.load(Ordering::Relaxed)
    }

    /// Whether an ephemeral pool has clearly less than its part of the bytes that all of them hold together.
    pub(crate) fn is_below_share(&self, id: PoolId, all_bytes: u64) -> bool {
        let Some((_, slot)) = self.find(id) else {
            return false;
        };
        let [bytes, weight] = [slot.bytes.load(Ordering::Relaxed), slot.weight.load(Ordering::Relaxed).into()];
        let weights = self.ephemeral_weight.load(Ordering::Relaxed);
        u128::from(bytes + bytes / 16) * u128::from(weights) < u128::from(weight) * u128::from(all_bytes)
    }

    /// Changes the state of a pool that lives and answers what it was.
    fn change(&self, id: PoolId, to: impl Fn(u32) -> u32) -> Option<PoolState> {
        let changed = self.slot(id)?.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let live = state & LIVE != 0 && state >> FLAG_BITS == id.generation();
            live.then(|| to(state))
        });
        changed.ok().map(PoolState)
    }

    /// The pools that live.
    pub(crate) fn count(&self) -> u64 {
        let slots = self.chunks.iter().filter_map(|chunk| chunk.get()).flat_map(|chunk| chunk.iter());
        slots.filter(|slot| slot.state.load(Ordering::Relaxed) & LIVE != 0).count() as u64
    }
}

/// Held by the slot's state while its maker resets it.
const CLAIMED: u32 = u32::MAX << FLAG_BITS;

impl PoolSlot {
    fn new() -> Self {
        Self {
            state: AtomicU32::new(0),
            cap: AtomicU64::new(u64::MAX),
            weight: AtomicU32::new(0),
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Makes a pool of a slot that has none and answers its generation.
    fn claim(&self, flags: u32, cap: u64, weight: u32) -> Option<u32> {
        let state = self.state.load(Ordering::Relaxed);
        // A pool that is being emptied keeps a flag until nobody counts pages of it any more.
        if state & FLAGS_MASK != 0 || state == CLAIMED {
            return None;
        }
        self.state.compare_exchange(state, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // One value less than fits, so that no generation looks like `CLAIMED`.
        let generation = ((state >> FLAG_BITS) + 1) % GENERATION_MASK;
        self.cap.store(cap, Ordering::Relaxed);
        self.weight.store(weight, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        // Release pairs with the Acquire in `find`.
        self.state.store(generation << FLAG_BITS | flags, Ordering::Release);
        Some(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_slots_keep_their_names_to_themselves() {
        let pools = Pools::new();
        let options = PoolOptions::default().exclusive_gets(true).frozen(true).weight(7).cap_bytes(Some(99));
        let (dead, _) = pools.create(PoolKind::Ephemeral, &options).unwrap();
        let (first, _) = pools.create(PoolKind::Ephemeral, &options).unwrap();
        assert!(pools.end(dead));
        let emptying: Vec<_> = pools.saved().collect();
        pools.free(dead);
        let restored = Pools::new();
        for (number, saved) in emptying.iter().enumerate() {
            assert_eq!(restored.restore(saved), Some(number == 0));
            assert_eq!(restored.restore(saved), None);
        }
        assert!(restored.saved().eq(pools.saved()));
        assert!(restored.find(dead).is_none());
        let (state, slot) = restored.find(first).unwrap();
        assert!(state.exclusive_gets() && state.frozen() && state.kind() == PoolKind::Ephemeral);
        assert_eq!((slot.cap.load(Ordering::Relaxed), restored.ephemeral()), (99, 1));
        let (next, made) = restored.create(PoolKind::Persistent, &options).unwrap();
        assert!(next != dead && next.slot() == dead.slot() && !made);
        let none = SavedPool { id: PoolId(u32::MAX), flags: LIVE, cap: 0, weight: 0 };
        assert_eq!(restored.restore(&none), None);
        assert_eq!(restored.restore(&SavedPool { id: PoolId(9), flags: 16, ..none }), None);
        assert_eq!(restored.restore(&SavedPool { id: PoolId(9), flags: 0, ..none }), None);
    }

    #[test]
    fn the_name_of_a_destroyed_pool_finds_nothing() {
        let pools = Pools::new();
        let options = PoolOptions::default().exclusive_gets(true);
        let (first, made) = pools.create(PoolKind::Ephemeral, &options).unwrap();
        assert!(made);
        let (state, _) = pools.find(first).unwrap();
        assert!(state.exclusive_gets() && !state.frozen());
        assert_eq!(state.kind(), PoolKind::Ephemeral);
        assert!(pools.set_frozen(first, true));
        assert!(pools.find(first).unwrap().0.frozen());
        assert!(pools.end(first));
        assert!(!pools.end(first) && pools.find(first).is_none() && !pools.set_frozen(first, false));
        // Until it is empty, another pool must not have its counters.
        let (beside, _) = pools.create(PoolKind::Persistent, &PoolOptions::default()).unwrap();
        assert_ne!(first.slot(), beside.slot());
        pools.free(first);
        let (second, _) = pools.create(PoolKind::Persistent, &PoolOptions::default()).unwrap();
        assert!(first != second && first.slot() == second.slot());
        assert!(pools.find(first).is_none() && pools.find(second).is_some());
    }
}
