//! Pages that are packed late: they lie as they are while there is room, and when there is none, those are packed that were used
//! least lately.
//!
//! A put that finds no room packs what is in the coldest frames of unpacked pages, and what was used since they were looked at
//! last gets a second chance. What comes free so is the next pages' room; as many frames go back as packed pages took from the
//! reserve for moves, so that the next time there is room to pack into. The page is copied under the lock of its shard, packed
//! without a lock, and its word is replaced if it still names the same bytes.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::groups::{Name, holds};
use super::reclaim::Move;
use super::{Parcel, Refusal, Store};
use crate::alloc::{Allocator, Class, FrameId, NewZpage, NoRoom, Queue, Tenant, Tenants, Zpage};
use crate::budget::Purpose;
use crate::codec::{Effort, Encoding};
use crate::error::Error;
use crate::index::{Leaf, Place, Slot, Word};
use crate::key::Key;
use crate::page::{PAGE_SIZE, Page, payload_check};
use crate::pool::PoolSlot;
use crate::stats::Put;
use crate::sync::{read, write};

const CLASSES: [Class; 2] = [Class::Ephemeral, Class::Persistent];
/// Regions that a put goes through in which all pages were used since the last time, before it packs its own instead.
const FEW_REGIONS: u64 = 4;
/// This part of the budget is more than background reclaim keeps free.
const AMPLE_PART: u64 = 8;
/// How long somebody waits for others who pack.
const MOMENT: Duration = Duration::from_micros(100);
/// How often that is done for one page: where nothing can be packed, it makes no room.
const ATTEMPTS_MAX: u32 = 1 << 14;

/// Half of a page is zeros: it packs well and quickly, and is not worth the RAM that it would take as it is.
fn is_half_empty(page: &Page) -> bool {
    let (front, back) = page.split_at(PAGE_SIZE / 2);
    [front, back].iter().any(|half| half[..64] == [0; 64] && half[64..] == [0; PAGE_SIZE / 2 - 64])
}

/// Which room a page may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// What is free, if that is more than background reclaim keeps free.
    Ample,
    /// What comes free when older pages are packed, if some are found soon that were not used lately.
    ByPackingFew,
    /// All else has failed: everything is packed that can be.
    ByPackingAll,
}

impl Store {
    /// Stores a page as it is, if the store does that and there is room.
    pub(super) fn put_unpacked(
        &self,
        key: Key,
        pool: &PoolSlot,
        page: &Page,
        room: Room,
    ) -> Result<Option<Put>, Error> {
        let last = room == Room::ByPackingAll;
        // What counts against a cap is packed bytes.
        if !self.packs_late || pool.cap.load(Relaxed) != u64::MAX || is_half_empty(page) && !last {
            return Ok(None);
        }
        if room == Room::Ample && !self.budget.has_room(self.budget.limit() / AMPLE_PART, Purpose::Admit) {
            return Ok(None);
        }
        let parcel = Parcel { queue: Queue::Unpacked, ..Parcel::new(Encoding::Raw, page) };
        let put = || match self.try_put(key, None, &parcel) {
            Ok(put) => Ok(Some(put)),
            Err(Refusal::Other(error)) => Err(error),
            Err(Refusal::NoRoom) => Ok(None),
        };
        if let Some(put) = put()? {
            return Ok(Some(put));
        }
        let attempts = if room == Room::Ample { 0 } else { ATTEMPTS_MAX };
        for _ in 0..attempts {
            let more = match self.pack_coldest(if last { u64::MAX } else { FEW_REGIONS }, false) {
                Ok(packed) => packed,
                Err(NoRoom) if last => self.close_holes() > 0 || self.wait_for_others(),
                Err(NoRoom) => false,
            };
            if !more {
                break;
            }
            if let Some(put) = put()? {
                return Ok(Some(put));
            }
        }
        Ok(None)
    }

    /// Waits for a moment if somebody else packs: what he takes for that he gives back. Says whether there is anybody.
    fn wait_for_others(&self) -> bool {
        let others = self.packing.load(Relaxed) > 0;
        if others {
            std::thread::sleep(MOMENT);
        }
        others
    }

    /// Bytes of pages that lie as they are and may be packed.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        CLASSES.map(|class| self.zpages.queue_bytes(class, Queue::Unpacked)).iter().sum()
    }

    /// Packs the unpacked pages of the coldest frames.
    #[cfg(loom)]
    pub fn pack_late(&self) -> bool {
        self.pack_coldest(1, false) == Ok(true)
    }

    /// Whether a page of one word lies in RAM as it is. The caller holds the lock of the word.
    pub(super) fn is_whole(&self, word: Word) -> bool {
        matches!(word.place(), Place::Ram(handle) if self.zpages.payload_bytes(handle) as usize == PAGE_SIZE)
    }

    /// Packs the unpacked pages of the coldest frames, and says whether that were any, in as many regions as may be. Frames that
    /// come free go back if frames are what is wanted, else they are kept for other pages as they are. No lock is held.
    ///
    /// # Errors
    /// When there is no room to pack into. It is small, so somebody else may have taken it for a moment.
    pub(super) fn pack_coldest(&self, regions_max: u64, for_frames: bool) -> Result<bool, NoRoom> {
        let age = |class: &Class| self.zpages.coldest_age(*class, Queue::Unpacked);
        // Once around, and what lives in a region for each of its pages then.
        for _ in 0..regions_max.min(1 + self.unpacked_bytes() / PAGE_SIZE as u64) {
            let coldest = CLASSES.into_iter().filter(|class| age(class).is_some()).min_by_key(age);
            let Some(frames) = coldest.and_then(|class| self.zpages.coldest(class, Queue::Unpacked)) else {
                return Ok(false);
            };
            self.packing.fetch_add(1, Relaxed);
            let packed = self.pack_region(&frames);
            if for_frames || !self.budget.has_room(0, Purpose::Admit) {
                self.zpages.give_back_gaps(frames);
            }
            self.packing.fetch_sub(1, Relaxed);
            let packed = packed?;
            if packed > 0 {
                self.events.packed_late.fetch_add(packed, Relaxed);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Packs the unpacked pages of a region, and says how many. If there is no room for all of them, for some.
    fn pack_region(&self, frames: &Range<u32>) -> Result<u64, NoRoom> {
        let (mut tenants, mut packed, mut last) = (Tenants::new(), 0, None);
        for frame in frames.clone() {
            self.zpages.tenants(FrameId(frame), &mut tenants);
            // One that reaches in from the frame before had its turn.
            for tenant in tenants.as_slice().iter().filter(|tenant| Some(tenant.handle) != last) {
                match self.pack_unless_used(tenant, frames) {
                    Ok(true) => packed += 1,
                    Ok(false) => continue,
                    Err(NoRoom) if packed > 0 => return Ok(packed),
                    Err(NoRoom) => return Err(NoRoom),
                }
                if self.budget.reserve_is_short() {
                    self.zpages.give_back_gaps(frames.clone());
                }
            }
            last = tenants.as_slice().last().map(|tenant| tenant.handle);
        }
        Ok(packed)
    }

    /// Packs an unpacked page that was not used lately, or says that the next time it is one. `true` if its place is free.
    fn pack_unless_used(&self, tenant: &Tenant, region: &Range<u32>) -> Result<bool, NoRoom> {
        if tenant.used {
            self.replace(tenant, |handle| self.zpages.keep(handle));
            return Ok(false);
        }
        if matches!(Slot::from(tenant.owner), Slot::Shared(_)) {
            return self.leave_unpacked(tenant);
        }
        let mut page = [0; PAGE_SIZE];
        let Some(name) = self.copy_unpacked(tenant, &mut page) else {
            return Ok(false);
        };
        let packed = self.contexts.packer(&self.budget, |packer| {
            let (encoding, payload) = packer.compress(&self.budget, &page, Effort::Usual);
            self.replace_by_packed(&name, &page, (encoding, payload), region)
        });
        // Without memory for a packer nothing is packed.
        packed.unwrap_or(Ok(false))
    }

    /// Puts a page that several words name among those that were packed, as it is: there it can leave like them.
    fn leave_unpacked(&self, tenant: &Tenant) -> Result<bool, NoRoom> {
        let Tenant { class, owner, .. } = *tenant;
        let moved = self.replace(tenant, |handle| {
            let stored = self.zpages.read(handle, false, |Zpage { encoding, check, payload, .. }| {
                let zpage = NewZpage { encoding: encoding?, check, owner, payload };
                Some(self.zpages.store(class, Queue::Small, &zpage, Purpose::Move))
            });
            let to = stored.unwrap_or(Err(NoRoom))?;
            self.zpages.free(handle);
            Ok(to)
        });
        match moved {
            Move::Moved => Ok(true),
            Move::Gone => Ok(false),
            Move::NoRoom => Err(NoRoom),
        }
    }

    /// Copies a page that is not packed, if it is still where it was seen, and says where its word stands.
    fn copy_unpacked(&self, tenant: &Tenant, page: &mut Page) -> Option<Name> {
        let Slot::Entry { shard: number, leaf, slot } = Slot::from(tenant.owner) else {
            return None;
        };
        let shard = read(self.shards.get(number));
        let key = shard.leaf(leaf).map(Leaf::key)?;
        let name = Name { shard: number, leaf, key, slot, word: Word::ram(tenant.handle) };
        if !holds(&shard, &name) {
            return None;
        }
        self.zpages.read(tenant.handle, false, |zpage| {
            // What is damaged stays as it is: whoever reads it has to be told.
            let whole = zpage.encoding == Some(Encoding::Raw) && payload_check(zpage.payload) == zpage.check;
            *page = zpage.payload.try_into().ok().filter(|_| whole)?;
            Some(name)
        })
    }

    /// Puts the packed form of a page in its place, if it still is this one.
    fn replace_by_packed(
        &self,
        name: &Name,
        page: &Page,
        (encoding, payload): (Encoding, &[u8]),
        region: &Range<u32>,
    ) -> Result<bool, NoRoom> {
        let Name { shard, leaf, key, slot, word } = *name;
        let mut shard = write(self.shards.get(shard));
        let Place::Ram(handle) = word.place() else { return Ok(false) };
        let unchanged = |zpage: Zpage<'_>| zpage.encoding == Some(Encoding::Raw) && zpage.payload == page;
        // That the word is the same would not be enough: the place may have been freed and used again.
        let Some((state, _)) = self.pools.find(key.pool) else { return Ok(false) };
        if !holds(&shard, name) || !self.zpages.read(handle, false, unchanged) {
            return Ok(false);
        }
        let owner = Slot::Entry { shard: name.shard, leaf, slot }.into();
        let zpage = NewZpage { encoding, check: payload_check(payload), owner, payload };
        let store = || self.zpages.store(state.class(), Queue::Small, &zpage, Purpose::Move);
        // What its neighbours left may be all the room there is.
        let more = |no_room| if self.zpages.give_back_gaps(region.clone()) > 0 { store() } else { Err(no_room) };
        let handle = store().or_else(more)?;
        let pool = self.pools.slot(key.pool).expect("a pool with pages keeps its slot");
        self.replace_word(&mut shard, leaf, slot, Word::ram(handle), pool);
        Ok(true)
    }
}
