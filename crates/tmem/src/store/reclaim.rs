//! The shrinker: whole frames are taken back, roughly in order of age.
//!
//! Holes are closed by moving what lives beside them. Where that is not enough, the coldest frames are emptied one after the
//! other: an ephemeral page is dropped, a persistent one is written back to its owner, what was used since it was stored gets
//! a second chance and moves on. All of it replaces one word at a time, under its lock, and only if it is still the word that
//! the frame's account named: there is no lock over a whole pass, nobody waits for more than one page's work, and what
//! changed meanwhile is left alone.

use std::sync::atomic::Ordering::Relaxed;

use super::Store;
use super::groups::{Name, Names, holds};
use crate::alloc::{Allocator, Class, FrameId, Handle, NoRoom, Queue, Tenant, Tenants, Usage};
use crate::budget::Purpose;
use crate::ghosts::{Fate, Ghosts};
use crate::index::{LEAF_SLOTS, LeafKey, Slot, Word};
use crate::key::Key;
use crate::page::{PAGE_SIZE, Page};
use crate::stats::{Maintenance, Reclaim, Short};
use crate::sync::{MutexGuard, read, write};
use crate::tier::Writer;

/// Live sixteenths of a frame up to which compaction takes it. It starts with the emptiest frames and goes on to fuller
/// ones only when a whole round has found none.
pub(super) const LEVEL_MIN: u64 = 4;
const LEVEL_MAX: u64 = 15;
/// Frames that one step of maintenance empties at most.
const STEP_FRAMES_MAX: u32 = 256;
/// Waste that is not worth a move: the frames at the heads.
const WASTE_FLOOR_BYTES: u64 = 6 * PAGE_SIZE as u64;
/// Background compaction keeps the waste below this part of the live bytes.
const WASTE_PART_BUSY: u64 = 14;
/// The same when nobody uses the store: what is moved then need not be moved again soon.
const WASTE_PART_IDLE: u64 = 64;
/// Reclaim closes holes first if they are more than this part of the live bytes, else it drops pages first.
const WASTE_PART_SHORT: u64 = 8;
/// Below this part, moving costs more than refusing.
const WASTE_PART_MIN: u64 = 48;
/// Rounds without a frame taken back after which reclaim says that there is nothing more, if there are not more frames than that.
const IDLE_ROUNDS_MAX: u64 = 64;
/// Pages of pools below their share that one call moves out of the way before it takes them as well.
const PROTECTED_MAX: u64 = 512;
/// A put that finds no room takes back a little more than it needs.
const FRAMES_AT_ONCE: u64 = 16;
/// Persistent pages are written back when they are this many times as old as the oldest ephemeral ones.
const PERSISTENT_AGE_FACTOR: u64 = 2;

/// Where persistent pages go when frames are taken back: the owner's swap device, another store, a file.
///
/// A page is first [written](Self::write) while gets are still served from the store. If nobody changed it meanwhile it is
/// [committed](Self::commit) in the same moment in which the store forgets it; otherwise its copy is
/// [discarded](Self::discard). The owner looks for a page in the store first and among the committed copies next. Before it
/// puts or flushes the page again it flushes it in the store, then forgets its committed copy, and only then puts: what the
/// store does not hold cannot be committed meanwhile.
pub trait WriteBack {
    /// Takes a copy of a page and says under which number; `None` if it cannot. Runs without any lock of the store, which
    /// it may use.
    fn write(&self, key: Key, page: &Page) -> Option<u64>;

    /// The store forgets the page: its copy is the only one from now on. Runs under a lock of the store and must not use it.
    fn commit(&self, key: Key, copy: u64);

    /// The page was replaced or flushed meanwhile: the copy is out of date. Runs without any lock of the store.
    fn discard(&self, key: Key, copy: u64);
}

/// What became of a tenant that was to move.
pub(super) enum Move {
    Moved,
    /// Its word is another one by now.
    Gone,
    NoRoom,
}

fn waste_exceeds(usage: &Usage, part: u64) -> bool {
    let floor = if part == WASTE_PART_IDLE { PAGE_SIZE as u64 } else { WASTE_FLOOR_BYTES };
    usage.waste_bytes() > usage.live_bytes / part + floor
}

/// One call of the shrinker: what it may do and what it did.
pub(super) struct Pass<'a> {
    pub(super) store: &'a Store,
    write_back: Option<&'a dyn WriteBack>,
    /// Frames are for the next puts and stay in memory; whole regions are emptied.
    keeps: bool,
    /// Frames taken back and bytes taken for moves when it began.
    before: (u64, u64),
    protected: u64,
    /// Persistent pages can be spilled, as far as is known.
    pub(super) spills: bool,
    /// The spill file they go to: those before it take nothing more.
    pub(super) tier: usize,
    /// Its writer, held while pages are gathered for it.
    pub(super) writer: Option<MutexGuard<'a, Writer>>,
    pub(super) report: Reclaim,
}

impl Store {
    /// Takes back at least `frames` whole frames, or says in [`Reclaim::short`] why not. Ephemeral pages are dropped, oldest
    /// first, and holes closed; persistent pages are handed to `write_back` if there is one. May be called from any thread
    /// at any time.
    pub fn reclaim(&self, frames: u64, write_back: Option<&dyn WriteBack>) -> Reclaim {
        let mut pass = Pass::new(self, write_back, false);
        pass.run(|pass| pass.net_frames() >= frames);
        pass.finish()
    }

    /// Background reclaim: when less is free than was asked for since the last call, takes frames back until half as much
    /// again is free, so that puts need not wait. The frames stay in memory for those puts. Call it from a thread of its own,
    /// every few milliseconds under load.
    pub fn balance(&self, write_back: Option<&dyn WriteBack>) -> Reclaim {
        let low = self.budget.wanted_room();
        let has_room = |bytes: u64| {
            let usage = self.zpages.usage();
            self.budget.has_room(bytes.saturating_sub(usage.waiting_bytes + usage.spare_bytes), Purpose::Admit)
        };
        let mut pass = Pass::new(self, write_back, true);
        if !has_room(low) {
            pass.run(|_| has_room(low + low / 2));
        }
        pass.finish()
    }

    /// A step of background work: closes holes and gives frames back, a bounded amount per call. May be called from any
    /// thread at any time; a good time is after every few hundred puts or flushes, and again while it answers `more`.
    pub fn maintain(&self) -> Maintenance {
        self.tidy(WASTE_PART_BUSY, false)
    }

    /// A step of [`maintain`](Self::maintain) that goes further, for times in which nobody uses the store: it closes all holes
    /// that a move closes, gives back the frames that wait for new pages, and the packing contexts that nobody used since it
    /// was called last. What the next put needs of it comes back with that put.
    pub fn trim(&self) -> Maintenance {
        if !self.packs_late {
            self.contexts.release_unused(&self.budget);
        }
        self.tidy(WASTE_PART_IDLE, true)
    }

    fn tidy(&self, waste_part: u64, urgent: bool) -> Maintenance {
        let before = self.zpages.usage().frame_bytes;
        let cleaned = self.tend_spill_files();
        let moved = self.compact(waste_part, STEP_FRAMES_MAX);
        self.zpages.give_back(urgent);
        let usage = self.zpages.usage();
        Maintenance {
            moved,
            returned_bytes: before.saturating_sub(usage.frame_bytes),
            more: cleaned || moved > 0 && waste_exceeds(&usage, waste_part),
        }
    }

    /// Moves what lives in the next sparse frame, whether that pays or not, and says how many zpages that were.
    #[cfg(loom)]
    pub fn move_sparse(&self) -> u64 {
        self.zpages.sparse_frame(PAGE_SIZE).map_or(0, |frame| self.empty(frame))
    }

    /// Empties a frame or so for that, and says how many zpages moved.
    pub(super) fn close_holes(&self) -> u64 {
        self.compact(WASTE_PART_MIN, 16)
    }

    /// Makes room for a zpage of `bytes`. `false` when nothing more can be taken back.
    pub(super) fn make_room(&self, bytes: usize, purpose: Purpose) -> bool {
        // The zpage may lie across one frame more than its length says.
        let needed = ((bytes / PAGE_SIZE + 2) * PAGE_SIZE) as u64;
        let wanted = needed.max(FRAMES_AT_ONCE.min(self.budget.limit() / PAGE_SIZE as u64 / 256) * PAGE_SIZE as u64);
        let mut pass = Pass::new(self, None, false);
        pass.run(|pass| pass.store.budget.has_room(wanted, Purpose::Admit));
        pass.finish();
        self.budget.has_room(needed, purpose)
    }

    /// Bytes of live zpages in the small and in the main queue.
    fn queue_bytes(&self, class: Class) -> [u64; 2] {
        [Queue::Small, Queue::Main].map(|queue| self.zpages.queue_bytes(class, queue))
    }

    /// Empties sparse frames, and whole regions where there are none, until the waste is below its part of the live bytes. Says
    /// how many zpages moved.
    fn compact(&self, waste_part: u64, frames_max: u32) -> u64 {
        let mut level = self.clean_level.load(Relaxed);
        let mut moved = 0;
        let mut enough = false;
        let mut left = frames_max;
        while left > 0 {
            left -= 1;
            enough = !waste_exceeds(&self.zpages.usage(), waste_part);
            if enough {
                break;
            }
            match self.zpages.sparse_frame(level as usize * PAGE_SIZE / 16) {
                Some(frame) => moved += self.empty(frame),
                None if level < LEVEL_MAX => level += 1,
                None => match self.zpages.sparse_region() {
                    Some(frames) => {
                        left = left.saturating_sub(frames.len() as u32);
                        moved += frames.map(|frame| self.empty(FrameId(frame))).sum::<u64>();
                    }
                    None => break,
                },
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
        let relocate = |tenant: &&Tenant| matches!(self.replace(tenant, |h| self.zpages.relocate(h)), Move::Moved);
        tenants.as_slice().iter().filter(relocate).count() as u64
    }

    /// Replaces the word that names a zpage by what `to` makes of its handle, if the zpage is still where it was seen.
    pub(super) fn replace(&self, tenant: &Tenant, to: impl FnOnce(Handle) -> Result<Handle, NoRoom>) -> Move {
        let handle = tenant.handle;
        let (bytes, target) = match Slot::from(tenant.owner) {
            Slot::Entry { shard, leaf, slot } => {
                let mut shard = write(self.shards.get(shard));
                let Some(leaf) = shard.leaf_mut(leaf).filter(|leaf| leaf.get(slot) == Some(Word::ram(handle))) else {
                    return Move::Gone;
                };
                let bytes = self.zpages.payload_bytes(handle);
                let Ok(target) = to(handle) else {
                    return Move::NoRoom;
                };
                leaf.replace(slot, Word::ram(target));
                (bytes, target)
            }
            Slot::Shared(row) => {
                let mut rows = write(self.shared.part(row));
                if rows.find(row) != Some(Word::ram(handle)) {
                    return Move::Gone;
                }
                let bytes = self.zpages.payload_bytes(handle);
                let Ok(target) = to(handle) else {
                    return Move::NoRoom;
                };
                rows.set_zpage(row, Word::ram(target));
                (bytes, target)
            }
        };
        if target != handle {
            self.events.moves.fetch_add(1, Relaxed);
            self.events.moved_bytes.fetch_add(bytes.into(), Relaxed);
        }
        Move::Moved
    }

    /// Drops an ephemeral page, if it is still where it was seen.
    fn evict(&self, name: &Name, fate: Fate) -> bool {
        let mut shard = write(self.shards.get(name.shard));
        if !holds(&shard, name) {
            return false;
        }
        let hash = self.shards.hasher.hash(&name.key);
        let pool = self.pools.slot(name.key.pool).expect("a pool with pages keeps its slot");
        self.forget(&mut shard, name.leaf, name.slot, pool);
        self.drop_leaf_if_empty(&mut shard, hash, name.leaf);
        if let Some(ghosts) = self.ghosts.get() {
            ghosts.add(hash, name.slot, fate);
        }
        true
    }

    /// Forgets a page if it still is this one, and runs `then` in the same moment.
    fn forget_if_still(&self, name: &Name, page: &Page, then: impl FnOnce()) -> bool {
        let mut shard = write(self.shards.get(name.shard));
        if !self.is_still(&shard, name, page) {
            return false;
        }
        let pool = self.pools.slot(name.key.pool).expect("a pool with pages keeps its slot");
        self.forget(&mut shard, name.leaf, name.slot, pool);
        self.drop_leaf_if_empty(&mut shard, self.shards.hasher.hash(&name.key), name.leaf);
        then();
        true
    }
}

impl<'a> Pass<'a> {
    fn new(store: &'a Store, write_back: Option<&'a dyn WriteBack>, keeps: bool) -> Self {
        let (spills, report) = (!store.tiers.is_empty(), Reclaim::default());
        let mut pass =
            Self { store, write_back, keeps, before: (0, 0), protected: 0, spills, tier: 0, writer: None, report };
        pass.before = (pass.frames_taken_back(), store.budget.moved());
        pass
    }

    /// Frames that went back to the system so far and, if the pass keeps them, those that wait for the next puts.
    fn frames_taken_back(&self) -> u64 {
        let usage = self.store.zpages.usage();
        usage.returned_frames + if self.keeps { usage.spare_bytes / PAGE_SIZE as u64 } else { 0 }
    }

    /// Frames taken back since the pass began, less those that moves took. Puts may use kept ones meanwhile.
    fn net_frames(&self) -> u64 {
        let taken = (self.store.budget.moved() - self.before.1) / PAGE_SIZE as u64;
        self.frames_taken_back().saturating_sub(self.before.0 + taken)
    }

    fn give_back(&self) {
        self.store.zpages.give_back(!self.keeps);
    }

    fn run(&mut self, enough: impl Fn(&Self) -> bool) {
        // Moves take a frame in one round and free one in another: only more than ever before is progress.
        let (mut idle_rounds, mut most) = (0, 0);
        // Where everything was used, once around: each frame gets its second chance.
        let idle_rounds_max = IDLE_ROUNDS_MAX.max(self.store.zpages.usage().frame_bytes / PAGE_SIZE as u64);
        self.give_back();
        while !enough(self) {
            let usage = self.store.zpages.usage();
            let progress = if waste_exceeds(&usage, WASTE_PART_SHORT) {
                self.compact(WASTE_PART_SHORT) || self.pack_coldest() || self.empty_coldest(&enough)
            } else {
                self.pack_coldest() || self.empty_coldest(&enough) || self.compact(WASTE_PART_MIN)
            };
            // Frames of what was gathered for the spill file come free only when it is written, which may take more rounds
            // than may be idle.
            let progress =
                progress && idle_rounds < idle_rounds_max || self.write_spills().is_some_and(|spilled| spilled > 0);
            self.give_back();
            idle_rounds = if self.net_frames() > most { 0 } else { idle_rounds + 1 };
            most = most.max(self.net_frames());
            if !progress {
                if !enough(self) {
                    self.report.short = Some(self.why_short());
                }
                return;
            }
        }
    }

    fn why_short(&self) -> Short {
        let [ephemeral, persistent] = [Class::Ephemeral, Class::Persistent].map(|class| {
            let unpacked = self.store.zpages.queue_bytes(class, Queue::Unpacked);
            self.store.queue_bytes(class).iter().sum::<u64>() + unpacked
        });
        match (ephemeral, persistent) {
            (0, 0) => Short::Empty,
            (0, _) if self.write_back.is_none() && self.store.tiers.is_empty() => Short::Persistent,
            (0, _) if self.write_back.is_none() && !self.spills => Short::Spill,
            _ if self.report.declined > 0 => Short::Declined,
            _ => Short::Pinned,
        }
    }

    fn finish(mut self) -> Reclaim {
        self.forget_spills();
        self.report.frames = self.net_frames();
        self.store.events.add(&self.report);
        self.report
    }

    fn compact(&mut self, waste_part: u64) -> bool {
        let moved = self.store.compact(waste_part, 16);
        self.report.moved += moved;
        moved > 0
    }

    /// Packs what lies unpacked for the longest time, and says whether there was anything.
    fn pack_coldest(&mut self) -> bool {
        // A writer comes after packers in the order of locks.
        self.writer.is_none() && self.store.pack_coldest(u64::MAX, true) == Ok(true)
    }

    /// Empties the coldest frames until it is `enough` or their region ends. Says whether anything changed.
    fn empty_coldest(&mut self, enough: impl Fn(&Self) -> bool) -> bool {
        let Some((class, queue)) = self.coldest_queue() else {
            return false;
        };
        let Some(frames) = self.store.zpages.coldest(class, queue) else {
            return false;
        };
        let mut tenants = Tenants::new();
        let mut changed = false;
        for frame in frames {
            self.store.zpages.tenants(FrameId(frame), &mut tenants);
            for tenant in tenants.as_slice() {
                // A region may have been emptied and filled again by somebody else meanwhile.
                if tenant.class == class {
                    changed |= self.take(tenant, queue);
                }
            }
            if changed && !tenants.as_slice().is_empty() && !self.keeps {
                self.give_back();
                if enough(self) {
                    break;
                }
            }
        }
        changed
    }

    /// Which queue has the coldest frames that may be emptied.
    fn coldest_queue(&self) -> Option<(Class, Queue)> {
        let zpages = &self.store.zpages;
        let age = |class, queue| zpages.coldest_age(class, queue);
        let [small, main] = self.store.queue_bytes(Class::Ephemeral);
        let small_max = self.store.ghosts.get().map_or(0, |ghosts| ghosts.small_bytes(small + main));
        let queue = if main == 0 || small > small_max { Queue::Small } else { Queue::Main };
        let ephemeral = age(Class::Ephemeral, queue).map(|age| (age, queue));
        let persistent = [Queue::Small, Queue::Main].map(|queue| Some((age(Class::Persistent, queue)?, queue)));
        let persistent = persistent
            .into_iter()
            .flatten()
            .min_by_key(|(age, _)| *age)
            .filter(|_| self.spills || self.write_back.is_some());
        let now = self.store.clock.load(Relaxed);
        match (ephemeral, persistent) {
            (Some((young, queue)), Some((old, _))) if now - old <= PERSISTENT_AGE_FACTOR * (now - young) => {
                Some((Class::Ephemeral, queue))
            }
            (Some((_, queue)), None) => Some((Class::Ephemeral, queue)),
            (_, persistent) => persistent.map(|(_, queue)| (Class::Persistent, queue)),
        }
    }

    /// Gets a tenant out of its frame, one way or another. Says whether anything changed.
    fn take(&mut self, tenant: &Tenant, queue: Queue) -> bool {
        if self.has_spilled(tenant) {
            return false;
        }
        let names = self.store.names_of(tenant);
        let spills = tenant.class == Class::Persistent && self.spills;
        let nameless = tenant.class == Class::Persistent && names.is_empty() && !spills;
        if self.earned_more(tenant, queue) || nameless || self.protects(tenant, &names) {
            match self.store.replace(tenant, |handle| self.store.zpages.keep(handle)) {
                Move::Moved => {
                    // Nobody knows all the names of what was cloned: it moves out of the way.
                    self.report.shared += u64::from(nameless);
                    self.report.second_chances += u64::from(!nameless);
                    return true;
                }
                Move::Gone => {
                    self.report.lost_races += 1;
                    return false;
                }
                Move::NoRoom => self.report.no_room += 1,
            }
        }
        if spills && let Some(gathered) = self.spill(tenant) {
            return gathered;
        }
        if self.has_spilled(tenant) {
            return false;
        }
        let taken = |pass: &mut Self, name: &Name| match tenant.class {
            Class::Ephemeral => pass.evict(name, Fate::of(queue, tenant.used)),
            Class::Persistent => pass.write_back(name),
        };
        names.iter().filter(|name| taken(self, name)).count() > 0
    }

    /// Whether this pass has spilled a tenant itself, with others, before the last file took nothing more.
    fn has_spilled(&self, tenant: &Tenant) -> bool {
        !self.spills && self.report.spilled > 0 && self.store.is_spilled(tenant.owner)
    }

    /// Whether a tenant gets a second chance for having been used.
    fn earned_more(&self, tenant: &Tenant, queue: Queue) -> bool {
        let is_new = tenant.class == Class::Ephemeral && queue == Queue::Small;
        tenant.used && (!is_new || self.store.ghosts.get().is_none_or(Ghosts::keeps_used))
    }

    /// Whether the page's pool is below its share, so that pages of others go first.
    fn protects(&mut self, tenant: &Tenant, names: &Names) -> bool {
        if tenant.class == Class::Persistent || self.protected >= PROTECTED_MAX || self.store.pools.ephemeral() < 2 {
            return false;
        }
        let all_bytes = self.store.queue_bytes(Class::Ephemeral).iter().sum();
        let below = |name: Name| self.store.pools.is_below_share(name.key.pool, all_bytes);
        let protects = names.iter().next().is_some_and(below);
        self.protected += u64::from(protects);
        protects
    }

    fn evict(&mut self, name: &Name, fate: Fate) -> bool {
        let evicted = self.store.evict(name, fate);
        let counter = if evicted { &mut self.report.evicted } else { &mut self.report.lost_races };
        *counter += 1;
        evicted
    }

    /// Hands a persistent page to its owner, if it is still where it was seen, and forgets it if nobody changed it
    /// meanwhile.
    fn write_back(&mut self, name: &Name) -> bool {
        let Some(owner) = self.write_back else {
            return false;
        };
        let mut page = [0; PAGE_SIZE];
        let shard = read(self.store.shards.get(name.shard));
        if !holds(&shard, name) {
            self.report.lost_races += 1;
            return false;
        }
        match self.store.expand_word(name.word, false, &mut page) {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.report.lost_races += 1;
                return false;
            }
            Err(_) => {
                self.report.damaged += 1;
                return false;
            }
        }
        drop(shard);
        let LeafKey { object, pool, number } = name.key;
        let key = Key { pool, object, index: number * LEAF_SLOTS + name.slot };
        let Some(copy) = owner.write(key, &page) else {
            self.report.declined += 1;
            return false;
        };
        // That the word is the same would not be enough: the place may have been freed and used again.
        let gone = self.store.forget_if_still(name, &page, || owner.commit(key, copy));
        if gone {
            self.report.written_back += 1;
        } else {
            owner.discard(key, copy);
            self.report.lost_races += 1;
        }
        gone
    }
}
