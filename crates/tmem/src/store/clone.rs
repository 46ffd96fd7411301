//! Clones of pools: what a fork needs.

use std::sync::atomic::Ordering::Relaxed;

use super::{Fetch, Store};
use crate::budget::Purpose;
use crate::error::{Error, ErrorKind};
use crate::index::{LEAF_SLOTS, Leaf, LeafKey, Place, Shard, Slot, Word};
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
                let fits = self.budget.has_room(0, Purpose::Admit) || self.make_room(PAGE_SIZE, Purpose::Admit);
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
        let usable = |(state, _): &(PoolState, &PoolSlot)| state.kind() == PoolKind::Persistent && !state.frozen();
        /// A row, a leaf, and their share of tables.
        const NAME_BYTES: u64 = 512;
        if self.pool(key.pool).filter(usable).is_none() || !self.budget.has_room(NAME_BYTES, Purpose::Admit) {
            return false;
        }
        let Some(word) = self.second_name(page, like) else {
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

    /// A word that names the stored copy of this page under `like` once more, if there is one.
    fn second_name(&self, page: &Page, like: Key) -> Option<Word> {
        let (_, pool) = self.pool(like.pool).filter(|(state, _)| state.kind() == PoolKind::Persistent)?;
        let (leaf_key, slot) = LeafKey::of(like);
        let hash = self.shards.hasher.hash(&leaf_key);
        let mut fetched: Option<Fetch<'_>> = None;
        loop {
            let mut shard = write(self.shards.get(self.shards.number(hash)));
            let leaf = shard.find(hash, &leaf_key)?;
            let word = shard.leaf(leaf)?.get(slot)?;
            if !fetched.as_ref().is_some_and(|fetch| self.leads_to(word, fetch)) {
                let mut stored = [0; PAGE_SIZE];
                let fetch = self.expand_word(word, false, &mut stored).ok()?;
                if let Some(fetch) = fetch {
                    // Compared without the lock, and named if it is still the same one.
                    drop(shard);
                    self.fetch(&fetch, &mut stored).ok().filter(|()| stored == *page)?;
                    fetched = Some(fetch);
                    continue;
                }
                Some(()).filter(|()| stored == *page)?;
            }
            return Some(self.name_again(shard.leaf_mut(leaf)?, slot, word, pool));
        }
    }

    /// One more name for what a word of a leaf names, which becomes a shared row if it was not.
    fn name_again(&self, leaf: &mut Leaf, slot: u32, word: Word, pool: &PoolSlot) -> Word {
        match word.place() {
            Place::Fill(_) => word,
            Place::Shared(row) | Place::Member { row, .. } => {
                self.shared.add_word(row);
                word
            }
            Place::Ram(_) | Place::Spilled(_) => {
                let part = self.shared.next_part();
                let row = write(self.shared.part(part)).add(part, word, 2, &self.budget);
                self.set_owner(word, Slot::Shared(row));
                pool.bytes.fetch_sub(self.payload_bytes(word).into(), Relaxed);
                leaf.replace(slot, Word::shared(row));
                Word::shared(row)
            }
        }
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
            if let Place::Ram(_) | Place::Spilled(_) = word.place() {
                own_bytes += u64::from(self.payload_bytes(*word));
                let row = rows.add(part, *word, 2, &self.budget);
                self.set_owner(*word, Slot::Shared(row));
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
