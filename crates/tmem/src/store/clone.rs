//! Clones of pools: what a fork needs.

use std::sync::atomic::Ordering::Relaxed;

use super::Store;
use crate::alloc::Allocator;
use crate::budget::Purpose;
use crate::error::{Error, ErrorKind};
use crate::index::{LEAF_SLOTS, LeafKey, Place, Shard, Slot, Word};
use crate::key::Key;
use crate::page::{PAGE_SIZE, Page};
use crate::pool::{PoolId, PoolKind, PoolOptions, PoolSlot, PoolState};
use crate::sync::write;

/// The words of one leaf, copied.
struct Copied {
    key: LeafKey,
    words: [Option<Word>; LEAF_SLOTS as usize],
}

impl Store {
    /// A new pool with the same options and the same pages. No page is copied: both pools name the same zpages until one
    /// of them flushes or replaces its own name.
    ///
    /// The clone of an ephemeral pool starts empty, which an ephemeral pool may do at any time. Pages that are put or
    /// flushed in the source during the call may or may not be in the clone; keep others away for an exact copy.
    ///
    /// # Errors
    /// [`is_no_room`](Error::is_no_room) when the new entries do not fit into the budget, [`is_no_pool`](Error::is_no_pool);
    /// nothing is left of the clone then.
    pub fn clone_pool(&self, from: PoolId) -> Result<PoolId, Error> {
        let (state, slot) = self.pool(from).ok_or(ErrorKind::NoPool)?;
        let cap = slot.cap.load(Relaxed);
        let options = PoolOptions {
            exclusive_gets: state.exclusive_gets(),
            frozen: state.frozen(),
            cap_bytes: (cap != u64::MAX).then_some(cap),
            weight: slot.weight.load(Relaxed),
        };
        let to = self.create_pool(state.kind(), options)?;
        if state.kind() == PoolKind::Ephemeral {
            return Ok(to);
        }
        for number in self.shards.numbers() {
            let mut leaf = 0;
            while let Some(found) = self.share_leaf(number, &mut leaf, from, slot) {
                let fits = self.budget.has_room(0, Purpose::Admit) || self.make_room(PAGE_SIZE);
                self.insert_copied(&found, to);
                if !fits {
                    self.destroy_pool(to);
                    let (budget, used) = (self.budget.limit(), self.budget.used());
                    return Err(ErrorKind::NoRoom { budget, used }.into());
                }
            }
        }
        Ok(to)
    }

    /// If the store holds exactly this page under `like`, gives `key` the same stored copy, as if the pool of `like` had been
    /// cloned with it, and says so. Nothing is packed or stored then, and whatever the key held before is gone. Otherwise
    /// nothing changes, also not when the budget has no room for another name. For pages that forked processes still have in
    /// common.
    pub fn put_like(&self, key: Key, page: &Page, like: Key) -> bool {
        let named_twice = |store: &Self| {
            let (_, pool) = store.pool(like.pool).filter(|(state, _)| state.kind() == PoolKind::Persistent)?;
            let (leaf_key, slot) = LeafKey::of(like);
            let hash = store.shards.hasher.hash(&leaf_key);
            let mut shard = write(store.shards.get(store.shards.number(hash)));
            let leaf = shard.find(hash, &leaf_key)?;
            let leaf = shard.leaf_mut(leaf)?;
            let word = leaf.get(slot)?;
            let mut stored = [0; PAGE_SIZE];
            store.expand_word(word, false, &mut stored).ok().filter(|()| stored == *page)?;
            match word.place() {
                Place::Fill(_) => Some(word),
                Place::Shared(row) | Place::Member { row, .. } => {
                    store.shared.add_word(row);
                    Some(word)
                }
                Place::Ram(handle) => {
                    let part = store.shared.next_part();
                    let row = write(store.shared.part(part)).add(part, handle, 2, &store.budget);
                    store.zpages.set_owner(handle, Slot::Shared(row).into());
                    pool.bytes.fetch_sub(store.zpages.payload_bytes(handle).into(), Relaxed);
                    leaf.replace(slot, Word::shared(row));
                    Some(Word::shared(row))
                }
            }
        };
        let usable = |(state, _): &(PoolState, &PoolSlot)| state.kind() == PoolKind::Persistent && !state.frozen();
        /// A row, a leaf, and their share of tables.
        const NAME_BYTES: u64 = 512;
        if self.pool(key.pool).filter(usable).is_none() || !self.budget.has_room(NAME_BYTES, Purpose::Admit) {
            return false;
        }
        let Some(word) = named_twice(self) else {
            return false;
        };
        let (leaf_key, slot) = LeafKey::of(key);
        let hash = self.shards.hasher.hash(&leaf_key);
        let mut shard = write(self.shards.get(self.shards.number(hash)));
        // Asked again under the lock: a pool that is destroyed empties this shard after it has ended.
        let Some((_, pool)) = self.pool(key.pool) else {
            self.free_place(word);
            return false;
        };
        let Ok(leaf) = self.leaf(&mut shard, hash, leaf_key, Purpose::Move) else {
            unreachable!("a leaf for a page that is stored is not refused");
        };
        self.set_word(&mut shard, leaf, slot, word, pool);
        shard.counters.puts += 1;
        true
    }

    /// Finds the next leaf of the pool in a shard, from `*next` on, makes all its zpages shared, with one more name each, and
    /// copies its words.
    fn share_leaf(&self, number: u16, next: &mut u32, pool: PoolId, slot: &PoolSlot) -> Option<Copied> {
        let mut shard = write(self.shards.get(number));
        let found = (*next..shard.numbers()).find(|leaf| {
            let leaf = shard.leaf(*leaf);
            leaf.is_some_and(|leaf| leaf.key().pool == pool)
        })?;
        *next = found + 1;
        Some(self.share_words(&mut shard, found, slot))
    }

    fn share_words(&self, shard: &mut Shard, leaf: u32, pool: &PoolSlot) -> Copied {
        let leaf = shard.leaf_mut(leaf).expect("found under the same lock");
        let mut copied = Copied { key: leaf.key(), words: [None; LEAF_SLOTS as usize] };
        // Rows that are shared already lie in any part, so each is locked by itself before the part for the new ones is.
        for (_, word) in leaf.iter_mut() {
            if let Place::Shared(row) | Place::Member { row, .. } = word.place() {
                self.shared.add_word(row);
            }
        }
        let part = self.shared.next_part();
        let mut rows = write(self.shared.part(part));
        let mut own_bytes = 0;
        for (slot, word) in leaf.iter_mut() {
            if let Place::Ram(handle) = word.place() {
                own_bytes += u64::from(self.zpages.payload_bytes(handle));
                let row = rows.add(part, handle, 2, &self.budget);
                self.zpages.set_owner(handle, Slot::Shared(row).into());
                *word = Word::shared(row);
            }
            copied.words[slot as usize] = Some(*word);
        }
        pool.bytes.fetch_sub(own_bytes, Relaxed);
        copied
    }

    /// Puts copied words into the pool of the clone, or lets go of what they name if that pool was destroyed meanwhile.
    fn insert_copied(&self, copied: &Copied, to: PoolId) {
        let words = (0..LEAF_SLOTS).zip(&copied.words);
        let words = words.filter_map(|(slot, word)| word.map(|word| (slot, word)));
        let key = LeafKey { pool: to, ..copied.key };
        let hash = self.shards.hasher.hash(&key);
        let mut shard = write(self.shards.get(self.shards.number(hash)));
        let Some((_, pool)) = self.pool(to) else {
            words.for_each(|(_, word)| self.free_place(word));
            return;
        };
        let Ok(leaf) = self.leaf(&mut shard, hash, key, Purpose::Move) else {
            unreachable!("a leaf for pages that are stored is not refused");
        };
        for (slot, word) in words {
            self.set_word(&mut shard, leaf, slot, word, pool);
        }
    }
}
