//! Words of the index: how they come, go and are counted. All of it under the lock of their shard.

use std::sync::atomic::Ordering::Relaxed;

use super::{Refusal, Store};
use crate::alloc::Allocator;
use crate::budget::Purpose;
use crate::index::{LEAVES_MAX, LeafKey, Place, Shard, Word};
use crate::pool::PoolSlot;

impl Store {
    /// The leaf of a key, made if need be.
    pub(super) fn leaf(&self, shard: &mut Shard, hash: u64, key: LeafKey, purpose: Purpose) -> Result<u32, Refusal> {
        /// A leaf with its first words, its place in slab, table and directory.
        const LEAF_BYTES: u64 = 160;
        const LEAVES_FOR_MOVES: u32 = LEAVES_MAX / 64;
        if let Some(leaf) = shard.find(hash, &key) {
            return Ok(leaf);
        }
        // What is here already finds its leaf among the last.
        let full = shard.next_number() >= LEAVES_MAX - LEAVES_FOR_MOVES;
        if purpose == Purpose::Admit && (full || !self.budget.has_room(LEAF_BYTES, purpose)) {
            return Err(Refusal::NoRoom);
        }
        let before = shard.heap_bytes();
        let leaf = shard.insert(hash, key, &self.shards.hasher);
        self.recharge_shard(shard, before);
        self.directory.add(&self.shards.hasher, &key, &self.budget);
        Ok(leaf)
    }

    pub(super) fn recharge_shard(&self, shard: &Shard, before: usize) {
        self.budget.recharge(before as u64, shard.heap_bytes() as u64);
    }

    /// Sets a word that was not in the index before, frees what it replaces, and says whether it replaced something.
    pub(super) fn set_word(&self, shard: &mut Shard, leaf: u32, slot: u32, word: Word, pool: &PoolSlot) -> bool {
        let before = shard.heap_bytes();
        let old = shard.set(leaf, slot, word);
        self.recharge_shard(shard, before);
        match old {
            Some(old) => {
                self.count_replaced(shard, old, word, pool);
                self.free_place(old);
                shard.counters.replaced += 1;
                true
            }
            None => {
                self.count_in(shard, word, pool);
                false
            }
        }
    }

    /// Counts a word that stands where another one stood. Whoever asks meanwhile how many pages there are is told so many, not
    /// one more.
    pub(super) fn count_replaced(&self, shard: &mut Shard, old: Word, word: Word, pool: &PoolSlot) {
        shard.counters.same_filled += is_fill(word);
        shard.counters.same_filled -= is_fill(old);
        pool.bytes.fetch_add(self.own_bytes(word), Relaxed);
        pool.bytes.fetch_sub(self.own_bytes(old), Relaxed);
    }

    fn count_in(&self, shard: &mut Shard, word: Word, pool: &PoolSlot) {
        shard.counters.pages += 1;
        shard.counters.same_filled += is_fill(word);
        pool.pages.fetch_add(1, Relaxed);
        pool.bytes.fetch_add(self.own_bytes(word), Relaxed);
    }

    pub(super) fn count_out(&self, shard: &mut Shard, word: Word, pool: &PoolSlot) {
        shard.counters.pages -= 1;
        shard.counters.same_filled -= is_fill(word);
        pool.pages.fetch_sub(1, Relaxed);
        pool.bytes.fetch_sub(self.own_bytes(word), Relaxed);
    }

    /// Payload bytes that count for the pool of a word. What clones share counts for nobody.
    pub(super) fn own_bytes(&self, word: Word) -> u64 {
        match word.place() {
            Place::Fill(_) | Place::Shared(_) => 0,
            Place::Ram(_) | Place::Spilled(_) => self.payload_bytes(word).into(),
            Place::Member { row, .. } => self.member_bytes(row),
        }
    }

    /// How many payload bytes a zpage has, wherever it is. The caller holds the lock of its word.
    pub(super) fn payload_bytes(&self, zpage: Word) -> u32 {
        match zpage.place() {
            Place::Ram(handle) => self.zpages.payload_bytes(handle),
            Place::Spilled(extent) => extent.payload_bytes.into(),
            place => unreachable!("{place:?} is no place of a zpage"),
        }
    }

    /// Takes a word that has just left its leaf out of the account and frees what it named.
    pub(super) fn release_word(&self, shard: &mut Shard, word: Word, pool: &PoolSlot) {
        self.count_out(shard, word, pool);
        self.free_place(word);
    }

    pub(super) fn free_place(&self, word: Word) {
        match word.place() {
            Place::Fill(_) => {}
            Place::Ram(handle) => self.zpages.free(handle),
            Place::Spilled(extent) => self.tiers.of(extent).remove(extent),
            Place::Shared(row) | Place::Member { row, .. } => {
                if let Some(zpage) = self.shared.remove_word(row, &self.budget) {
                    self.free_place(zpage);
                }
            }
        }
    }

    /// Takes a word out of its leaf; what it names and what is counted of it is the caller's to deal with.
    pub(super) fn take_word(&self, shard: &mut Shard, leaf: u32, slot: u32) -> Option<Word> {
        let before = shard.heap_bytes();
        let word = shard.take(leaf, slot);
        self.recharge_shard(shard, before);
        word
    }

    /// Takes the word of a slot out and forgets the page. The pool may have ended already.
    pub(super) fn forget(&self, shard: &mut Shard, leaf: u32, slot: u32, pool: &PoolSlot) -> bool {
        match self.take_word(shard, leaf, slot) {
            Some(word) => {
                self.release_word(shard, word, pool);
                true
            }
            None => false,
        }
    }

    pub(super) fn drop_leaf_if_empty(&self, shard: &mut Shard, hash: u64, number: u32) {
        let Some(leaf) = shard.leaf(number) else {
            return;
        };
        if leaf.present() != 0 {
            return;
        }
        let (key, before) = (leaf.key(), shard.heap_bytes());
        shard.remove(hash, number);
        self.recharge_shard(shard, before);
        self.directory.remove(&self.shards.hasher, &key, &self.budget);
    }
}

fn is_fill(word: Word) -> u64 {
    u64::from(matches!(word.place(), Place::Fill(_)))
}
