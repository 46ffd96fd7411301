//! Clones of pools: what a fork needs.

use std::sync::atomic::Ordering::Relaxed;

use super::Store;
use crate::alloc::Allocator;
use crate::budget::Purpose;
use crate::error::{Error, ErrorKind};
use crate::index::{LEAF_SLOTS, LeafKey, Place, Shard, Slot, Word};
use crate::page::PAGE_SIZE;
use crate::pool::{PoolId, PoolKind, PoolOptions, PoolSlot};
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
            if let Place::Shared(row) = word.place() {
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
