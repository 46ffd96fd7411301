//! Taking frames back: holes are closed by moving what lives beside them, ephemeral pages are dropped, oldest first.
//!
//! A move replaces one word, under its lock, and only if it is still the word that the frame's account named. So there is
//! no lock over a whole pass, nobody waits for more than one copy of a zpage, and what changed meanwhile is left alone.

use std::sync::atomic::Ordering::Relaxed;

use super::Store;
use crate::alloc::{Allocator, Class, FrameId, Tenant, Tenants, Usage};
use crate::budget::Purpose;
use crate::index::{Slot, Word};
use crate::page::PAGE_SIZE;
use crate::stats::Maintenance;
use crate::sync::write;

/// Live sixteenths of a frame up to which compaction takes it. It starts with the emptiest frames and goes on to fuller
/// ones only when a whole round has found none.
pub(super) const LEVEL_MIN: u64 = 4;
const LEVEL_MAX: u64 = 15;
/// Frames that one step of maintenance empties at most.
const STEP_FRAMES_MAX: u32 = 256;
/// Waste that is not worth a move: the frames at the heads.
const WASTE_FLOOR_BYTES: u64 = 6 * PAGE_SIZE as u64;
/// Background compaction keeps the waste below this part of the live bytes.
const WASTE_PART_IDLE: u64 = 14;
/// A put that needs room closes holes first if they are more than this part of the live bytes, else drops pages first.
const WASTE_PART_SHORT: u64 = 8;
/// Below this part, moving costs more than refusing.
const WASTE_PART_MIN: u64 = 48;
/// Rounds of making room for one put.
const ROUNDS_MAX: u32 = 64;

fn waste_exceeds(usage: &Usage, part: u64) -> bool {
    usage.waste_bytes() > usage.live_bytes / part + WASTE_FLOOR_BYTES
}

impl Store {
    /// A step of background work: closes holes and gives frames back, a bounded amount per call. May be called from any
    /// thread at any time; a good time is after every few hundred puts or flushes, and again while it answers `more`.
    pub fn maintain(&self) -> Maintenance {
        let before = self.zpages.usage().frame_bytes;
        let moved = self.compact(WASTE_PART_IDLE, STEP_FRAMES_MAX);
        self.zpages.give_back(false);
        let usage = self.zpages.usage();
        Maintenance {
            moved,
            returned_bytes: before.saturating_sub(usage.frame_bytes),
            more: moved > 0 && waste_exceeds(&usage, WASTE_PART_IDLE),
        }
    }

    /// Moves what lives in the next sparse frame, whether that pays or not, and says how many zpages that were.
    #[cfg(loom)]
    pub fn move_sparse(&self) -> u64 {
        self.zpages.sparse_frame(PAGE_SIZE).map_or(0, |frame| self.empty(frame))
    }

    /// Empties sparse frames until the waste is below its part of the live bytes. Says how many zpages moved.
    fn compact(&self, waste_part: u64, frames_max: u32) -> u64 {
        let mut level = self.clean_level.load(Relaxed);
        let mut moved = 0;
        let mut enough = false;
        for _ in 0..frames_max {
            enough = !waste_exceeds(&self.zpages.usage(), waste_part);
            if enough {
                break;
            }
            match self.zpages.sparse_frame(level as usize * PAGE_SIZE / 16) {
                Some(frame) => moved += self.empty(frame),
                None if level < LEVEL_MAX => level += 1,
                None => break,
            }
        }
        if enough && level > LEVEL_MIN {
            level -= 1;
        }
        self.clean_level.store(level, Relaxed);
        moved
    }

    /// Moves all zpages out of a frame.
    fn empty(&self, frame: FrameId) -> u64 {
        let mut tenants = Tenants::new();
        self.zpages.tenants(frame, &mut tenants);
        let moved = tenants.as_slice().iter().filter(|tenant| self.relocate(tenant));
        moved.count() as u64
    }

    /// Moves a zpage, if it is still where it was seen.
    fn relocate(&self, tenant: &Tenant) -> bool {
        let handle = tenant.handle;
        let moved = match Slot::from(tenant.owner) {
            Slot::Entry { shard, leaf, slot } => {
                let mut shard = write(self.shards.get(shard));
                let Some(leaf) = shard.leaf_mut(leaf) else {
                    return false;
                };
                if leaf.get(slot) != Some(Word::ram(handle)) {
                    return false;
                }
                let bytes = self.zpages.payload_bytes(handle);
                let Ok(target) = self.zpages.relocate(handle) else {
                    return false;
                };
                leaf.replace(slot, Word::ram(target));
                bytes
            }
            Slot::Shared(row) => {
                let mut rows = write(self.shared.part(row));
                if rows.find(row) != Some(handle) {
                    return false;
                }
                let bytes = self.zpages.payload_bytes(handle);
                let Ok(target) = self.zpages.relocate(handle) else {
                    return false;
                };
                rows.set_handle(row, target);
                bytes
            }
        };
        self.events.moves.fetch_add(1, Relaxed);
        self.events.moved_bytes.fetch_add(moved.into(), Relaxed);
        true
    }

    /// Makes room for a zpage of `bytes`. `false` when nothing more can be taken back.
    pub(super) fn make_room(&self, bytes: usize) -> bool {
        // The zpage may lie across one frame more than its length says.
        let wanted = ((bytes / PAGE_SIZE + 2) * PAGE_SIZE) as u64;
        for _ in 0..ROUNDS_MAX {
            if self.zpages.give_back(true) > 0 && self.budget.has_room(wanted, Purpose::Admit) {
                return true;
            }
            let usage = self.zpages.usage();
            let progress = if waste_exceeds(&usage, WASTE_PART_SHORT) {
                self.compact(WASTE_PART_SHORT, 16) > 0 || self.evict_coldest()
            } else {
                self.evict_coldest() || self.compact(WASTE_PART_MIN, 16) > 0
            };
            self.zpages.give_back(true);
            if self.budget.has_room(wanted, Purpose::Admit) {
                return true;
            }
            if !progress {
                return false;
            }
        }
        false
    }

    /// Drops the ephemeral pages of the oldest segment; those used since they were stored move on, once.
    fn evict_coldest(&self) -> bool {
        let Some(frames) = self.zpages.coldest(Class::Ephemeral) else {
            return false;
        };
        let mut tenants = Tenants::new();
        let mut gone = 0;
        for frame in frames {
            self.zpages.tenants(FrameId(frame), &mut tenants);
            for tenant in tenants.as_slice() {
                if tenant.class != Class::Ephemeral {
                    // The segment was emptied and filled again by somebody else meanwhile.
                    continue;
                }
                let stays = tenant.used && self.relocate(tenant);
                gone += u32::from(!stays && self.evict(tenant));
            }
        }
        gone > 0
    }

    /// Drops an ephemeral page, if it is still where it was seen.
    fn evict(&self, tenant: &Tenant) -> bool {
        let Slot::Entry { shard, leaf, slot } = Slot::from(tenant.owner) else {
            return false;
        };
        let mut shard = write(self.shards.get(shard));
        let Some(key) = shard.leaf(leaf).map(|leaf| leaf.key()) else {
            return false;
        };
        let word = shard.leaf(leaf).and_then(|leaf| leaf.get(slot));
        if word != Some(Word::ram(tenant.handle)) {
            return false;
        }
        let pool = self.pools.slot(key.pool).expect("a pool with pages keeps its slot");
        self.forget(&mut shard, leaf, slot, pool);
        self.drop_leaf_if_empty(&mut shard, self.shards.hasher.hash(&key), leaf);
        self.events.evictions.fetch_add(1, Relaxed);
        true
    }
}
