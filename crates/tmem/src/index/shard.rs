//! Shards: a slab of leaves, a hash table from leaf keys to places in the slab, and the counters of what is in them.

use std::hash::{BuildHasher, Hasher, RandomState};

use hashbrown::HashTable;

use super::leaf::Leaf;
use super::{LeafKey, Word};
use crate::page::fold;
use crate::sync::{Rank, RwLock};

/// Counters of one shard.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) puts: u64,
    pub(crate) replaced: u64,
    pub(crate) flushed: u64,
    pub(crate) pages: u64,
    pub(crate) same_filled: u64,
}

/// One part of the index. Which keys it holds is decided by the hash of their leaf.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    table: HashTable<u32>,
    leaves: Vec<Option<Leaf>>,
    free: Vec<u32>,
    leaf_heap_bytes: usize,
    pub(crate) counters: Counters,
}

impl Shard {
    /// Finds a leaf.
    pub(crate) fn find(&self, hash: u64, key: &LeafKey) -> Option<u32> {
        let is_it = |number: &u32| self.leaf(*number).is_some_and(|leaf| leaf.key() == *key);
        self.table.find(hash, is_it).copied()
    }

    /// The leaf with a number that may be out of date.
    pub(crate) fn leaf(&self, number: u32) -> Option<&Leaf> {
        self.leaves.get(number as usize)?.as_ref()
    }

    /// A leaf whose words may be replaced; those that come or go do so by [`set`](Self::set) and [`take`](Self::take).
    pub(crate) fn leaf_mut(&mut self, number: u32) -> Option<&mut Leaf> {
        self.leaves.get_mut(number as usize)?.as_mut()
    }

    /// How many numbers of leaves have been given out.
    pub(crate) fn numbers(&self) -> u32 {
        self.leaves.len() as u32
    }

    /// The number that the next new leaf gets.
    pub(crate) fn next_number(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.numbers())
    }

    /// Adds a leaf that is not there yet.
    pub(crate) fn insert(&mut self, hash: u64, key: LeafKey, hasher: &LeafHasher) -> u32 {
        let number = self.next_number();
        if self.free.pop().is_none() {
            if self.leaves.len() == self.leaves.capacity() {
                self.leaves.reserve_exact((self.leaves.len() / 8).max(1));
            }
            self.leaves.push(None);
        }
        self.leaves[number as usize] = Some(Leaf::new(key));
        let leaves = &self.leaves;
        self.table.insert_unique(hash, number, |other| {
            let leaf = leaves[*other as usize].as_ref();
            hasher.hash(&leaf.expect("the table names leaves that are there").key())
        });
        number
    }

    /// Takes away a leaf in which nothing is left.
    pub(crate) fn remove(&mut self, hash: u64, number: u32) {
        let leaf = self.leaves[number as usize].take().expect("the leaf is there");
        debug_assert_eq!(leaf.present(), 0);
        self.leaf_heap_bytes -= leaf.heap_bytes();
        let entry = self.table.find_entry(hash, |other| *other == number);
        entry.expect("each leaf is in the table").remove();
        // The slab has at least this capacity, so that the list of free numbers need never grow in a flush.
        if self.free.capacity() < self.leaves.len() {
            self.free.reserve_exact(self.leaves.capacity() - self.free.len());
        }
        self.free.push(number);
    }

    /// Sets a word of a leaf that is there.
    pub(crate) fn set(&mut self, leaf: u32, slot: u32, word: Word) -> Option<Word> {
        let leaf = self.leaves[leaf as usize].as_mut().expect("the leaf is there");
        let before = leaf.heap_bytes();
        let old = leaf.set(slot, word);
        self.leaf_heap_bytes += leaf.heap_bytes() - before;
        old
    }

    /// Takes a word out of a leaf, if both are there.
    pub(crate) fn take(&mut self, leaf: u32, slot: u32) -> Option<Word> {
        let leaf = self.leaves.get_mut(leaf as usize)?.as_mut()?;
        let before = leaf.heap_bytes();
        let word = leaf.take(slot)?;
        self.leaf_heap_bytes -= before - leaf.heap_bytes();
        Some(word)
    }

    /// Counts the bytes of all leaves again and asserts that the account is right.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn assert_valid(&self) {
        let counted: usize = self.leaves.iter().flatten().map(Leaf::heap_bytes).sum();
        assert_eq!(self.leaf_heap_bytes, counted);
    }

    /// Bytes that the shard takes outside of itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.table.allocation_size()
            + self.leaves.capacity() * size_of::<Option<Leaf>>()
            + self.free.capacity() * size_of::<u32>()
            + self.leaf_heap_bytes
    }
}

/// Hashes leaf keys with a seed of the store's own, so that nobody outside can choose keys that collide.
#[derive(Debug)]
pub(crate) struct LeafHasher {
    seeds: [u64; 2],
}

impl LeafHasher {
    fn new() -> Self {
        let random = RandomState::new();
        let seed = |number| {
            let mut hasher = random.build_hasher();
            hasher.write_u64(number);
            hasher.finish()
        };
        Self { seeds: [seed(1), seed(2)] }
    }

    pub(crate) fn hash(&self, key: &LeafKey) -> u64 {
        let [a, b, c] = key.object.0;
        let place = u64::from(key.pool.to_bits()) << 32 | u64::from(key.number);
        let one = fold(a ^ self.seeds[0], place ^ self.seeds[1]);
        let two = fold(b ^ self.seeds[1], c ^ self.seeds[0]);
        fold(one ^ two, 0x9e37_79b9_7f4a_7c15)
    }
}

/// All shards. Each has its cache lines to itself.
#[derive(Debug)]
pub(crate) struct Shards {
    pub(crate) hasher: LeafHasher,
    list: Box<[Padded]>,
}

#[derive(Debug)]
#[repr(align(128))]
struct Padded(RwLock<Shard>);

impl Shards {
    /// `count` must be a power of two of at most `SHARDS_MAX`.
    pub(crate) fn new(count: usize) -> Self {
        assert!(count.is_power_of_two() && count <= super::SHARDS_MAX);
        let shard = |_| Padded(RwLock::new(Rank::Shard, Shard::default()));
        Self { hasher: LeafHasher::new(), list: (0..count).map(shard).collect() }
    }

    /// The shard of a hash. The table inside uses the top and the low bits, so the middle ones choose the shard.
    pub(crate) fn number(&self, hash: u64) -> u16 {
        (hash >> 32) as u16 & (self.list.len() - 1) as u16
    }

    pub(crate) fn get(&self, number: u16) -> &RwLock<Shard> {
        &self.list[number as usize].0
    }

    pub(crate) fn numbers(&self) -> std::ops::Range<u16> {
        0..self.list.len() as u16
    }

    pub(crate) fn fixed_bytes(&self) -> usize {
        self.list.len() * size_of::<Padded>()
    }
}
