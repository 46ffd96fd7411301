//! Flushes and moves of many pages.

use std::ops::Range;

use super::Store;
use crate::alloc::Allocator;
use crate::budget::Purpose;
use crate::index::{LEAF_SLOTS, LeafKey, Place, Slot, Word};
use crate::key::{Key, ObjectId};
use crate::pool::{PoolId, PoolSlot};
use crate::sync::{read, write};

const _: () = assert!(LEAF_SLOTS == u64::BITS, "a leaf has as many slots as a word has bits");

/// Indexes of an object, both ends included, so that the last index can be named.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u32,
    last: u32,
}

impl Span {
    const ALL: Self = Self { first: 0, last: u32::MAX };

    fn of(range: &Range<u32>) -> Option<Self> {
        (range.start < range.end).then(|| Self { first: range.start, last: range.end - 1 })
    }

    /// The slots of a leaf that lie in the span, as bits.
    fn slots(self, leaf: u32) -> u64 {
        let first = leaf * LEAF_SLOTS;
        let from = self.first.saturating_sub(first).min(63);
        let to = (self.last - first).min(63);
        (u64::MAX << from) & (u64::MAX >> (63 - to))
    }
}

impl Store {
    /// Forgets a page and says whether there was one.
    pub fn flush_page(&self, key: Key) -> bool {
        let Some((_, pool)) = self.pool(key.pool) else {
            return false;
        };
        let (leaf, slot) = LeafKey::of(key);
        self.flush_slots(leaf, 1 << slot, pool) > 0
    }

    /// Forgets the pages of an object with indexes in `range` and says how many there were. What is not there costs
    /// nothing: the whole range of indexes may be given.
    pub fn flush_range(&self, pool: PoolId, object: ObjectId, range: Range<u32>) -> u64 {
        Span::of(&range).map_or(0, |span| self.flush_span(pool, object, span))
    }

    /// Forgets all pages of an object and says how many there were.
    pub fn flush_object(&self, pool: PoolId, object: ObjectId) -> u64 {
        self.flush_span(pool, object, Span::ALL)
    }

    fn flush_span(&self, pool: PoolId, object: ObjectId, span: Span) -> u64 {
        let Some((_, slot)) = self.pool(pool) else {
            return 0;
        };
        let mut flushed = 0;
        self.for_leaves(pool, object, span, |leaf| {
            flushed += self.flush_slots(leaf, span.slots(leaf.number), slot);
        });
        flushed
    }

    /// The first index in `range` whose page is stored, if there is one. Empty stretches cost nothing.
    pub fn next_page(&self, pool: PoolId, object: ObjectId, range: Range<u32>) -> Option<u32> {
        let span = Span::of(&range)?;
        self.pool(pool)?;
        let mut from = span.first / LEAF_SLOTS;
        loop {
            let batch = self.directory.leaves(&self.shards.hasher, pool, object, from);
            for number in batch.as_slice().iter().copied().take_while(|number| *number <= span.last / LEAF_SLOTS) {
                let present = self.present(&LeafKey { object, pool, number }) & span.slots(number);
                if present != 0 {
                    return Some(number * LEAF_SLOTS + present.trailing_zeros());
                }
            }
            match batch.as_slice().last() {
                Some(number) if *number < span.last / LEAF_SLOTS => from = number + 1,
                _ => return None,
            }
        }
    }

    /// The first index in `range` whose page is not stored, if there is one.
    pub fn next_gap(&self, pool: PoolId, object: ObjectId, range: Range<u32>) -> Option<u32> {
        let span = Span::of(&range)?;
        (span.first / LEAF_SLOTS..=span.last / LEAF_SLOTS).find_map(|number| {
            let absent = !self.present(&LeafKey { object, pool, number }) & span.slots(number);
            (absent != 0).then(|| number * LEAF_SLOTS + absent.trailing_zeros())
        })
    }

    /// Calls `with` for the leaves of a span that are there, in ascending order.
    fn for_leaves(&self, pool: PoolId, object: ObjectId, span: Span, mut with: impl FnMut(LeafKey)) {
        let last = span.last / LEAF_SLOTS;
        let mut from = span.first / LEAF_SLOTS;
        loop {
            let batch = self.directory.leaves(&self.shards.hasher, pool, object, from);
            for number in batch.as_slice().iter().copied().take_while(|number| *number <= last) {
                with(LeafKey { object, pool, number });
            }
            match batch.as_slice().last() {
                Some(number) if *number < last => from = number + 1,
                _ => return,
            }
        }
    }

    /// Forgets the pages of a leaf that stand in `slots`.
    fn flush_slots(&self, key: LeafKey, slots: u64, pool: &PoolSlot) -> u64 {
        let hash = self.shards.hasher.hash(&key);
        let mut shard = write(self.shards.get(self.shards.number(hash)));
        let Some(leaf) = shard.find(hash, &key) else {
            return 0;
        };
        let mut present = slots & shard.leaf(leaf).map_or(0, |leaf| leaf.present());
        let flushed = u64::from(present.count_ones());
        while present != 0 {
            self.forget(&mut shard, leaf, present.trailing_zeros(), pool);
            present &= present - 1;
        }
        shard.counters.flushed += flushed;
        self.drop_leaf_if_empty(&mut shard, hash, leaf);
        flushed
    }

    /// Ends a pool, forgets its pages and says how many there were. The name finds nothing from now on.
    pub fn destroy_pool(&self, pool: PoolId) -> u64 {
        let Some((_, slot)) = self.pool(pool) else {
            return 0;
        };
        if !self.pools.end(pool) {
            return 0;
        }
        let mut flushed = 0;
        for number in self.shards.numbers() {
            let mut shard = write(self.shards.get(number));
            for leaf in 0..shard.numbers() {
                let Some(key) = shard.leaf(leaf).map(|leaf| leaf.key()) else {
                    continue;
                };
                if key.pool != pool {
                    continue;
                }
                let mut present = shard.leaf(leaf).map_or(0, |leaf| leaf.present());
                flushed += u64::from(present.count_ones());
                shard.counters.flushed += u64::from(present.count_ones());
                while present != 0 {
                    self.forget(&mut shard, leaf, present.trailing_zeros(), slot);
                    present &= present - 1;
                }
                let hash = self.shards.hasher.hash(&key);
                self.drop_leaf_if_empty(&mut shard, hash, leaf);
            }
        }
        self.pools.free(pool);
        flushed
    }

    /// Gives the pages of `from_object` in `from` new keys in `to_object`, starting at `to_start`, and says how many there
    /// were. What the target range held is forgotten. The ranges may overlap. Indexes past the last one are forgotten.
    ///
    /// Each page is in neither place for a moment; the caller keeps gets and puts away from both ranges meanwhile.
    pub fn rekey_range(
        &self,
        pool: PoolId,
        from_object: ObjectId,
        from: Range<u32>,
        to_object: ObjectId,
        to_start: u32,
    ) -> u64 {
        let (Some(source), Some((_, slot))) = (Span::of(&from), self.pool(pool)) else {
            return 0;
        };
        if from_object == to_object && from.start == to_start {
            return 0;
        }
        let last = u64::from(to_start) + u64::from(source.last - source.first);
        let target = Span { first: to_start, last: last.min(u32::MAX.into()) as u32 };
        self.flush_target(pool, (from_object, source), (to_object, target));
        let mut moved = 0;
        let rekey = |index: u32| {
            let offset = index - source.first;
            let from = Key { pool, object: from_object, index };
            let to = to_start.checked_add(offset).map(|index| Key { pool, object: to_object, index });
            moved += u64::from(self.rekey(from, to, slot));
        };
        if to_start > source.first && from_object == to_object {
            self.for_pages_back(pool, from_object, source, rekey);
        } else {
            self.for_pages(pool, from_object, source, rekey);
        }
        moved
    }

    /// Flushes the part of the target that is not also source.
    fn flush_target(&self, pool: PoolId, source: (ObjectId, Span), target: (ObjectId, Span)) {
        let ((from_object, from), (to_object, to)) = (source, target);
        if from_object != to_object || from.last < to.first || to.last < from.first {
            self.flush_span(pool, to_object, to);
            return;
        }
        if to.first < from.first {
            self.flush_span(pool, to_object, Span { first: to.first, last: from.first - 1 });
        }
        if to.last > from.last {
            self.flush_span(pool, to_object, Span { first: from.last + 1, last: to.last });
        }
    }

    fn for_pages(&self, pool: PoolId, object: ObjectId, span: Span, mut with: impl FnMut(u32)) {
        self.for_leaves(pool, object, span, |leaf| {
            let mut present = self.present(&leaf) & span.slots(leaf.number);
            while present != 0 {
                with(leaf.number * LEAF_SLOTS + present.trailing_zeros());
                present &= present - 1;
            }
        });
    }

    fn for_pages_back(&self, pool: PoolId, object: ObjectId, span: Span, mut with: impl FnMut(u32)) {
        let first = span.first / LEAF_SLOTS;
        let mut to = span.last / LEAF_SLOTS;
        loop {
            let batch = self.directory.leaves_back(&self.shards.hasher, pool, object, to);
            for number in batch.as_slice().iter().rev().copied().take_while(|number| *number >= first) {
                let mut present = self.present(&LeafKey { object, pool, number }) & span.slots(number);
                while present != 0 {
                    let slot = 63 - present.leading_zeros();
                    with(number * LEAF_SLOTS + slot);
                    present &= !(1 << slot);
                }
            }
            match batch.as_slice().first() {
                Some(number) if *number > first => to = number - 1,
                _ => return,
            }
        }
    }

    fn present(&self, key: &LeafKey) -> u64 {
        let hash = self.shards.hasher.hash(key);
        let shard = read(self.shards.get(self.shards.number(hash)));
        let leaf = shard.find(hash, key).and_then(|leaf| shard.leaf(leaf));
        leaf.map_or(0, |leaf| leaf.present())
    }

    /// Moves one word. Between the two locks nobody but this call knows it, so the zpage stays where it is: compaction
    /// leaves alone what it cannot find.
    fn rekey(&self, from: Key, to: Option<Key>, pool: &PoolSlot) -> bool {
        let (leaf_key, slot) = LeafKey::of(from);
        let hash = self.shards.hasher.hash(&leaf_key);
        let mut shard = write(self.shards.get(self.shards.number(hash)));
        let Some(leaf) = shard.find(hash, &leaf_key) else {
            return false;
        };
        let Some(word) = self.take_word(&mut shard, leaf, slot) else {
            return false;
        };
        self.count_out(&mut shard, word, pool);
        self.drop_leaf_if_empty(&mut shard, hash, leaf);
        drop(shard);
        match to {
            Some(to) => self.insert_word(to, word),
            None => self.free_place(word),
        }
        true
    }

    /// Notes in a zpage in RAM which word names it. In the spill file the old owner stays: whoever cleans it asks the word that
    /// stands there, and looks through all words for the few that do not stand where they stood.
    pub(super) fn set_owner(&self, zpage: Word, owner: Slot) {
        if let Place::Ram(handle) = zpage.place() {
            self.zpages.set_owner(handle, owner.into());
        }
    }

    /// Puts a word that no leaf holds into one, or frees what it names if the pool has ended meanwhile.
    pub(super) fn insert_word(&self, key: Key, word: Word) {
        let (leaf_key, slot) = LeafKey::of(key);
        let hash = self.shards.hasher.hash(&leaf_key);
        let number = self.shards.number(hash);
        let mut shard = write(self.shards.get(number));
        let Some((_, pool)) = self.pool(key.pool) else {
            return self.free_place(word);
        };
        let Ok(leaf) = self.leaf(&mut shard, hash, leaf_key, Purpose::Move) else {
            unreachable!("a leaf for a page that is stored is not refused");
        };
        self.set_owner(word, Slot::Entry { shard: number, leaf, slot });
        self.set_word(&mut shard, leaf, slot, word, pool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cut_leaves() {
        let span = Span { first: 70, last: 200 };
        assert_eq!(span.slots(1), u64::MAX << 6);
        assert_eq!(span.slots(2), u64::MAX);
        assert_eq!(span.slots(3), (1 << 9) - 1);
        assert_eq!(Span::ALL.slots(u32::MAX / 64), u64::MAX);
        assert!(Span::of(&(5..5)).is_none());
    }
}
