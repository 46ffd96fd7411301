//! The store: the contract of transcendent memory over codecs, allocator and index.

mod clone;
mod config;
mod fetch;
mod groups;
mod late;
mod open;
mod ranges;
mod reclaim;
mod save;
mod spill;
#[cfg(all(test, not(loom)))]
mod tests;
mod words;

pub use config::Config;
pub use fetch::Location;
use fetch::{Fetch, Found};
use late::Room;
pub use open::OpenOptions;
pub use reclaim::WriteBack;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::alloc::{
    Allocator, AllocatorKind, Class, HEADER_BYTES, NewZpage, NoRoom, PART_BYTES_MAX, PARTS_MAX, Queue, Zpage, Zpages,
};
use crate::budget::{Budget, Purpose};
use crate::codec::{Contexts, Effort, Encoding, Lz4};
use crate::error::{Error, ErrorKind};
use crate::ghosts::Ghosts;
use crate::index::{Directory, LeafKey, Place, SHARDS_MAX, Shards, Slot, Word};
use crate::key::Key;
use crate::page::{PAGE_SIZE, Page, payload_check, same_filled};
use crate::pool::{PoolId, PoolKind, PoolOptions, PoolSlot, PoolState, Pools, SavedPool};
use crate::shared::SharedTable;
use crate::stats::{PoolStats, Put, Reclaim, Stats};
use crate::sync::{Mutex, Rank, read, write};
use crate::threads::GetCounters;
use crate::tier::{SpillFile, Tiers};

/// The smallest budget: contexts, tables, and a few frames to move pages through.
const BUDGET_BYTES_MIN: u64 = 1 << 20;

/// Address space per budget byte: segments that hold a few survivors take addresses, not memory, and the budget can be
/// raised later.
const RESERVE_FACTOR: u64 = 16;
const RESERVE_BYTES_MIN: usize = 64 << 30;
/// What each part of the allocator can do with where address space is limited (`ulimit -v`).
const RESERVE_BYTES_LEAST: usize = 64 << 20;

/// How often a put makes room before it gives up.
const PUT_ATTEMPTS_MAX: u32 = 4;

#[derive(Debug, Default)]
struct Events {
    refusals: AtomicU64,
    reclaimed_frames: AtomicU64,
    evictions: AtomicU64,
    written_back: AtomicU64,
    second_chances: AtomicU64,
    lost_races: AtomicU64,
    declined: AtomicU64,
    recompressed: AtomicU64,
    group_gets: AtomicU64,
    packed_late: AtomicU64,
    moves: AtomicU64,
    moved_bytes: AtomicU64,
    corrupt: AtomicU64,
}

impl Events {
    fn add(&self, report: &Reclaim) {
        for (counter, more) in [
            (&self.reclaimed_frames, report.frames),
            (&self.evictions, report.evicted),
            (&self.written_back, report.written_back),
            (&self.second_chances, report.second_chances),
            (&self.lost_races, report.lost_races),
            (&self.declined, report.declined),
        ] {
            counter.fetch_add(more, Relaxed);
        }
    }
}

/// A store of pages with a hard byte budget. See the [crate] for what it promises.
pub struct Store {
    budget: Arc<Budget>,
    contexts: Contexts,
    zpages: Zpages,
    /// New pages stay as they are until room is needed.
    packs_late: bool,
    /// Threads that pack old ones.
    packing: AtomicU64,
    shards: Shards,
    directory: Directory,
    shared: SharedTable,
    pools: Pools,
    /// Made with the first ephemeral pool.
    ghosts: OnceLock<Ghosts>,
    /// Counts the regions that the allocator began.
    clock: Arc<AtomicU64>,
    gets: GetCounters,
    events: Events,
    /// The live bytes in a frame, in sixteenths of it, up to which compaction takes it at present.
    clean_level: AtomicU64,
    /// Where recompression is.
    walk: Mutex<groups::Walk>,
    /// Where persistent pages go that RAM has no room for.
    tiers: Tiers,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// A page on its way into the store.
#[derive(Clone, Copy)]
struct Parcel<'a> {
    /// Where it is to age, unless it is a known ghost.
    queue: Queue,
    encoding: Encoding,
    payload: &'a [u8],
    check: u32,
}

/// Why a put found no place.
enum Refusal {
    NoRoom,
    Other(Error),
}

impl Store {
    /// An empty store.
    ///
    /// # Errors
    /// When the budget is smaller than the store's own tables, or the system gives no address space.
    pub fn new(config: Config) -> Result<Self, Error> {
        let (budget_bytes, min) = (config.budget_bytes, BUDGET_BYTES_MIN);
        if budget_bytes < min {
            let budget = budget_bytes;
            return Err(ErrorKind::BudgetTooSmall { budget, min }.into());
        }
        let packs_late = config.packs_late && config.allocator == AllocatorKind::Zsmalloc;
        let movers = if packs_late { config.threads.max(1) } else { 1 };
        let budget = Budget::new(budget_bytes).with_overwrites(config.overwrite_bytes).with_movers(movers);
        let budget = Arc::new(budget);
        let parts = config.threads.clamp(1, PARTS_MAX);
        let wanted = usize::try_from(budget_bytes.saturating_mul(RESERVE_FACTOR)).unwrap_or(usize::MAX);
        let wanted = wanted.max(RESERVE_BYTES_MIN).min(PART_BYTES_MAX * parts);
        let clock = Arc::default();
        let zpages = Zpages::new(config.allocator, &budget, &clock, parts, wanted / parts, RESERVE_BYTES_LEAST)?;
        let shards = Shards::new(config.shards.clamp(1, SHARDS_MAX).next_power_of_two());
        budget.charge((size_of::<Self>() + shards.fixed_bytes()) as u64);
        let contexts = Contexts::new(config.codec, config.threads);
        if packs_late {
            contexts.make_packers(&budget)?;
        }
        Ok(Self {
            tiers: Tiers::new(contexts.threads()),
            contexts,
            zpages,
            packs_late,
            packing: AtomicU64::new(0),
            budget,
            shards,
            directory: Directory::new(),
            shared: SharedTable::new(),
            pools: Pools::new(),
            ghosts: OnceLock::new(),
            clock,
            gets: GetCounters::default(),
            events: Events::default(),
            clean_level: AtomicU64::new(reclaim::LEVEL_MIN),
            walk: Mutex::new(Rank::Walk, groups::Walk::default()),
        })
    }

    /// A new pool.
    ///
    /// # Errors
    /// When there are as many pools as the store can name.
    pub fn create_pool(&self, kind: PoolKind, options: PoolOptions) -> Result<PoolId, Error> {
        let (pool, made) = self.pools.create(kind, &options)?;
        if made {
            self.budget.charge(Pools::CHUNK_BYTES as u64);
        }
        self.prepare_for(kind);
        Ok(pool)
    }

    /// Makes what a store needs that has a pool of this kind.
    fn prepare_for(&self, kind: PoolKind) {
        if kind == PoolKind::Ephemeral {
            self.ghosts.get_or_init(|| {
                let ghosts = Ghosts::new(self.budget.limit());
                self.budget.charge(ghosts.bytes());
                ghosts
            });
        }
    }

    /// The pools that live, ephemeral or persistent, in the order of their slots.
    pub fn pools(&self) -> Vec<(PoolId, PoolKind)> {
        self.pools.saved().filter(SavedPool::is_live).map(|pool| (pool.id, pool.kind())).collect()
    }

    /// Freezes a pool, so that puts only flush, or thaws it. `false` if there is no such pool.
    pub fn set_frozen(&self, pool: PoolId, frozen: bool) -> bool {
        self.pools.set_frozen(pool, frozen)
    }

    /// Copies a page in. Whatever the key held before is gone afterwards, also when the put is refused.
    ///
    /// # Errors
    /// [`is_no_room`](Error::is_no_room) when the page does not fit even after ephemeral pages were dropped and holes
    /// were closed; [`is_frozen`](Error::is_frozen), [`is_no_pool`](Error::is_no_pool).
    pub fn put(&self, key: Key, page: &Page) -> Result<Put, Error> {
        self.put_with(key, page, Effort::Usual)
    }

    /// Copies a page in like [`put`](Self::put), packed with LZ4 whatever the store's codec is: for pages that will soon leave RAM
    /// for a fast disk, where packing and expanding take longer than writing and reading the bytes that zstd would save.
    ///
    /// # Errors
    /// As those of [`put`](Self::put).
    pub fn put_quickly(&self, key: Key, page: &Page) -> Result<Put, Error> {
        self.put_with(key, page, Effort::Quick)
    }

    fn put_with(&self, key: Key, page: &Page, effort: Effort) -> Result<Put, Error> {
        let put = self.overwrite_with(key, page, effort);
        if put.as_ref().is_err_and(|error| error.is_no_room() || error.is_frozen()) {
            self.flush_page(key);
        }
        put
    }

    /// Copies a page in like [`put`](Self::put), with another answer to what a disk must not do: when it is refused, the key holds
    /// what it held before. What replaces a page may use [`Config::overwrite_bytes`] of the budget more than a new one.
    ///
    /// # Errors
    /// As those of [`put`](Self::put).
    pub fn overwrite(&self, key: Key, page: &Page) -> Result<Put, Error> {
        self.overwrite_with(key, page, Effort::Usual)
    }

    /// Copies a page in like [`overwrite`](Self::overwrite), one that is used no sooner than older ones: where pages are
    /// [packed late](Config::packs_late) and there is little room, this one is packed and not an older one.
    ///
    /// # Errors
    /// As those of [`put`](Self::put).
    pub fn overwrite_aside(&self, key: Key, page: &Page) -> Result<Put, Error> {
        self.overwrite_with(key, page, Effort::Aside)
    }

    fn overwrite_with(&self, key: Key, page: &Page, effort: Effort) -> Result<Put, Error> {
        let (state, slot) = self.pools.find(key.pool).ok_or(ErrorKind::NoPool)?;
        if state.frozen() {
            return Err(ErrorKind::Frozen.into());
        }
        if let Some(pattern) = same_filled(page) {
            let word = Word::fill(pattern);
            let payload = &pattern.to_ne_bytes();
            return self.put_parcel(key, slot, word, &Parcel::new(Encoding::Fill, payload));
        }
        let room = if effort == Effort::Aside { Room::Ample } else { Room::ByPackingFew };
        if let Some(put) = self.put_unpacked(key, slot, page, room)? {
            return Ok(put);
        }
        // Room is made without the packer, which who makes it may need.
        let mut copy = [0; PAGE_SIZE];
        let packed = self.contexts.packer(&self.budget, |packer| {
            let (encoding, payload) = packer.compress(&self.budget, page, effort);
            let parcel = Parcel::new(encoding, payload);
            self.check_cap(slot, &parcel)?;
            match self.try_put(key, None, &parcel) {
                Ok(put) => Ok(Ok(put)),
                Err(Refusal::Other(error)) => Err(error),
                Err(Refusal::NoRoom) => {
                    copy[..payload.len()].copy_from_slice(payload);
                    Ok(Err((encoding, parcel.check, payload.len())))
                }
            }
        })??;
        let (encoding, check, bytes) = match packed {
            Ok(put) => return Ok(put),
            Err(packed) => packed,
        };
        let parcel = Parcel { queue: Queue::Small, encoding, payload: &copy[..bytes], check };
        let put = self.put_parcel(key, slot, None, &parcel);
        if put.as_ref().is_err_and(Error::is_no_room)
            && let Some(put) = self.put_unpacked(key, slot, page, Room::ByPackingAll)?
        {
            // All that lies unpacked was in use, and some of it had to be packed all the same.
            self.events.refusals.fetch_sub(1, Relaxed);
            return Ok(put);
        }
        put
    }

    /// Refuses what would go past the cap of its pool.
    fn check_cap(&self, pool: &PoolSlot, parcel: &Parcel<'_>) -> Result<(), Error> {
        let cap = pool.cap.load(Relaxed);
        if cap != u64::MAX && pool.bytes.load(Relaxed) + parcel.payload.len() as u64 > cap {
            self.events.refusals.fetch_add(1, Relaxed);
            return Err(ErrorKind::PoolFull { cap }.into());
        }
        Ok(())
    }

    fn put_parcel(&self, key: Key, pool: &PoolSlot, word: Option<Word>, parcel: &Parcel<'_>) -> Result<Put, Error> {
        self.check_cap(pool, parcel)?;
        for _ in 0..PUT_ATTEMPTS_MAX {
            match self.try_put(key, word, parcel) {
                Ok(put) => return Ok(put),
                Err(Refusal::Other(error)) => return Err(error),
                Err(Refusal::NoRoom) => {}
            }
            let purpose = if self.contains(key) { Purpose::Overwrite } else { Purpose::Admit };
            if !self.make_room(parcel.payload.len() + HEADER_BYTES, purpose) {
                break;
            }
        }
        self.events.refusals.fetch_add(1, Relaxed);
        let (budget, used) = (self.budget.limit(), self.budget.used());
        Err(ErrorKind::NoRoom { budget, used }.into())
    }

    fn try_put(&self, key: Key, word: Option<Word>, parcel: &Parcel<'_>) -> Result<Put, Refusal> {
        let (leaf_key, slot) = LeafKey::of(key);
        let hash = self.shards.hasher.hash(&leaf_key);
        let number = self.shards.number(hash);
        let mut shard = write(self.shards.get(number));
        // Asked under the lock: a pool that is destroyed empties this shard after it has ended.
        let Some((state, pool)) = self.pools.find(key.pool) else {
            return Err(Refusal::Other(ErrorKind::NoPool.into()));
        };
        let leaf = self.leaf(&mut shard, hash, leaf_key, Purpose::Admit)?;
        let replaced = shard.leaf(leaf).and_then(|leaf| leaf.get(slot));
        let purpose = if replaced.is_some() { Purpose::Overwrite } else { Purpose::Admit };
        let placed = match word {
            Some(word) => Ok(word),
            None => {
                let owner = Slot::Entry { shard: number, leaf, slot }.into();
                let (encoding, check, payload) = (parcel.encoding, parcel.check, parcel.payload);
                let zpage = NewZpage { encoding, check, owner, payload };
                let queue = match (state.class(), self.ghosts.get()) {
                    (Class::Ephemeral, Some(ghosts)) if parcel.queue == Queue::Small => ghosts.admit(hash, slot),
                    _ => parcel.queue,
                };
                let stored = self.zpages.store(state.class(), queue, &zpage, purpose);
                if let Ok(handle) = stored
                    && queue == Queue::Unpacked
                    && replaced.is_some_and(|old| self.is_whole(old))
                {
                    // Written again before it was packed: it may well be once more.
                    self.zpages.read(handle, true, |_| ());
                }
                stored.map(Word::ram)
            }
        };
        let word = match placed {
            Ok(word) => word,
            Err(NoRoom) => {
                self.drop_leaf_if_empty(&mut shard, hash, leaf);
                return Err(Refusal::NoRoom);
            }
        };
        let replaced = self.set_word(&mut shard, leaf, slot, word, pool);
        shard.counters.puts += 1;
        let stored_bytes = if parcel.encoding == Encoding::Fill { 0 } else { parcel.payload.len() as u32 };
        Ok(Put { stored_bytes, replaced })
    }

    /// Copies a page out; `false` if it is not there. In a pool of exclusive gets it is gone from the store afterwards.
    ///
    /// # Errors
    /// [`is_corrupt`](Error::is_corrupt) when the stored page is damaged; it stays where it is.
    pub fn get(&self, key: Key, out: &mut Page) -> Result<bool, Error> {
        let found = self.find_and_expand(key, out)?;
        self.gets.add(found);
        Ok(found)
    }

    /// Shows a part of a page to `with`, and says what that says; nothing if the page is not there. For those who keep many small things
    /// in a page: of one that lies as it is ([`Config::packs_late`]) no more than the part is touched, of one that LZ4 has packed no more
    /// is expanded than what leads to it. `with` runs under a lock of the store and must not use it.
    ///
    /// Damage is found as by [`get`](Self::get), but not in a page that lies as it is: whoever reads parts has checks of his own in
    /// them.
    ///
    /// # Errors
    /// As those of [`get`](Self::get).
    ///
    /// # Panics
    /// When the part is not one of a page.
    pub fn with_part<R>(
        &self,
        key: Key,
        part: Range<usize>,
        with: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, Error> {
        assert!(part.start <= part.end && part.end <= PAGE_SIZE, "{part:?} is no part of a page");
        let mut with = Some(with);
        let shown = self.with_word(key, |_, word| {
            let Place::Ram(handle) = word.place() else { return None };
            self.pools.find(key.pool).filter(|(state, _)| !state.exclusive_gets())?;
            self.zpages.read_part(handle, true, &part, |zpage| self.show_part(&zpage, &part, &mut with))
        });
        if let Some(shown) = shown.flatten() {
            self.gets.add(true);
            return shown.map(Some);
        }
        let mut page = [0; PAGE_SIZE];
        let found = self.get(key, &mut page)?;
        Ok(with.take().filter(|_| found).map(|with| with(&page[part])))
    }

    /// Shows a part of a page of its own, if less than all of it need be looked at for that.
    fn show_part<R>(
        &self,
        zpage: &Zpage<'_>,
        part: &Range<usize>,
        with: &mut Option<impl FnOnce(&[u8]) -> R>,
    ) -> Option<Result<R, Error>> {
        match zpage.encoding? {
            Encoding::Raw => {
                let part = zpage.payload.get(part.clone())?;
                with.take().map(|with| Ok(with(part)))
            }
            Encoding::Lz4 => {
                let mut page = [0; PAGE_SIZE];
                let expanded = examine(zpage).and_then(|_| {
                    let what = "it does not expand to a page";
                    Lz4::expand_to(zpage.payload, part.end, &mut page).map_err(|_| ErrorKind::Corrupt { what }.into())
                });
                self.events.corrupt.fetch_add(expanded.is_err().into(), Relaxed);
                expanded.map(|()| with.take().map(|with| with(&page[part.clone()]))).transpose()
            }
            _ => None,
        }
    }

    fn find_and_expand(&self, key: Key, out: &mut Page) -> Result<bool, Error> {
        let Some((state, slot)) = self.pools.find(key.pool) else {
            return Ok(false);
        };
        if state.exclusive_gets() {
            return self.get_and_forget(key, slot, out);
        }
        match self.look_up(key, out)? {
            Found::Nothing => Ok(false),
            Found::Page => Ok(true),
            Found::Spilled(fetch, slot) => self.fetch_and_promote(&fetch, slot, out).map(|()| true),
        }
    }

    /// Expands a page that is in RAM, or says what has to be fetched. Its pool keeps what is read.
    fn look_up(&self, key: Key, out: &mut Page) -> Result<Found<'_>, Error> {
        let found = self.with_word(key, |place, word| {
            let fetch = match self.expand_word(word, true, out)? {
                None => return Ok(Found::Page),
                Some(fetch) => fetch,
            };
            let zpage = match word.place() {
                Place::Shared(row) | Place::Member { row, .. } => Slot::Shared(row),
                _ => place,
            };
            Ok(Found::Spilled(fetch, zpage))
        });
        found.unwrap_or(Ok(Found::Nothing))
    }

    /// Shows the word of a key and where it stands, under the lock of its shard.
    fn with_word<R>(&self, key: Key, with: impl FnOnce(Slot, Word) -> R) -> Option<R> {
        let (leaf_key, slot) = LeafKey::of(key);
        let hash = self.shards.hasher.hash(&leaf_key);
        let number = self.shards.number(hash);
        let shard = read(self.shards.get(number));
        let leaf = shard.find(hash, &leaf_key)?;
        let word = shard.leaf(leaf)?.get(slot)?;
        Some(with(Slot::Entry { shard: number, leaf, slot }, word))
    }

    /// A spilled page is read without the lock, so it may be another one by the time it is to be forgotten; then that one is
    /// looked at.
    fn get_and_forget(&self, key: Key, pool: &PoolSlot, out: &mut Page) -> Result<bool, Error> {
        let (leaf_key, slot) = LeafKey::of(key);
        let hash = self.shards.hasher.hash(&leaf_key);
        let mut fetched: Option<Fetch<'_>> = None;
        loop {
            let mut shard = write(self.shards.get(self.shards.number(hash)));
            let Some(leaf) = shard.find(hash, &leaf_key) else {
                return Ok(false);
            };
            let Some(word) = shard.leaf(leaf).and_then(|leaf| leaf.get(slot)) else {
                return Ok(false);
            };
            if fetched.is_none_or(|fetch| !self.leads_to(word, &fetch))
                && let Some(fetch) = self.expand_word(word, false, out)?
            {
                drop(shard);
                self.fetch(&fetch, out)?;
                fetched = Some(fetch);
                continue;
            }
            self.forget(&mut shard, leaf, slot, pool);
            self.drop_leaf_if_empty(&mut shard, hash, leaf);
            return Ok(true);
        }
    }

    /// Expands a zpage; of a group, the page at `position`.
    fn expand_zpage(&self, zpage: &Zpage<'_>, position: usize, out: &mut Page) -> Result<(), Error> {
        let expand = |encoding| self.contexts.expand(&self.budget, encoding, zpage.payload, position, out);
        let answer = examine(zpage).and_then(expand);
        if answer.is_err() {
            self.events.corrupt.fetch_add(1, Relaxed);
        }
        answer
    }

    /// Whether the store holds a page for the key. In an ephemeral pool the answer may be out of date at once.
    pub fn contains(&self, key: Key) -> bool {
        self.with_word(key, |_, _| self.pools.find(key.pool).is_some()) == Some(true)
    }

    /// Whether the stored page equals this one, byte for byte. Never takes the page out; a damaged page equals nothing.
    pub fn matches(&self, key: Key, page: &Page) -> bool {
        let mut stored = [0; PAGE_SIZE];
        let expanded = self.with_word(key, |_, word| {
            self.pools.find(key.pool)?;
            self.expand_word(word, false, &mut stored).ok()
        });
        let fetched = match expanded.flatten() {
            Some(Some(fetch)) => self.fetch(&fetch, &mut stored).is_ok(),
            expanded => expanded.is_some(),
        };
        fetched && stored == *page
    }

    /// The class and the counters of a pool.
    fn pool(&self, pool: PoolId) -> Option<(PoolState, &PoolSlot)> {
        self.pools.find(pool)
    }

    /// Changes the budget. Lowering it makes room as far as that is possible at once; what is stored in persistent pools
    /// stays, and puts are refused until the store is below its budget.
    pub fn set_budget(&self, bytes: u64) {
        let bytes = bytes.max(BUDGET_BYTES_MIN);
        let lacking = self.budget.used().saturating_sub(self.budget.room_for_pages(bytes));
        if lacking > 0 && self.unpacked_bytes() > 0 {
            // As long as the old budget holds, there is room to pack into.
            self.reclaim(lacking.div_ceil(PAGE_SIZE as u64), None);
        }
        self.budget.set_limit(bytes);
        while self.budget.used() > self.budget.limit() {
            if !self.make_room(0, Purpose::Admit) {
                break;
            }
        }
    }

    /// Bytes that the store holds at present, all counted: [`Stats::memory_bytes`] without the rest.
    pub fn memory_bytes(&self) -> u64 {
        self.budget.used()
    }

    /// What the store may hold at present: [`Stats::budget_bytes`] without the rest.
    pub fn budget_bytes(&self) -> u64 {
        self.budget.limit()
    }

    /// Figures of one pool.
    pub fn pool_stats(&self, pool: PoolId) -> Option<PoolStats> {
        let (_, slot) = self.pool(pool)?;
        Some(PoolStats { pages: slot.pages.load(Relaxed), compressed_bytes: slot.bytes.load(Relaxed) })
    }

    /// Figures of the store. Shard by shard: with puts going on, they are of slightly different moments.
    pub fn stats(&self) -> Stats {
        let usage = self.zpages.usage();
        let mut stats = Stats {
            zpages: usage.zpages,
            compressed_bytes: usage.payload_bytes,
            unpacked_bytes: self.unpacked_bytes(),
            zpage_bytes: usage.live_bytes,
            frame_bytes: usage.frame_bytes,
            memory_bytes: self.budget.used(),
            budget_bytes: self.budget.limit(),
            pools: self.pools.count(),
            refusals: self.events.refusals.load(Relaxed),
            reclaimed_frames: self.events.reclaimed_frames.load(Relaxed),
            written_back: self.events.written_back.load(Relaxed),
            second_chances: self.events.second_chances.load(Relaxed),
            lost_races: self.events.lost_races.load(Relaxed),
            declined: self.events.declined.load(Relaxed),
            recompressed: self.events.recompressed.load(Relaxed),
            packed_late: self.events.packed_late.load(Relaxed),
            group_gets: self.events.group_gets.load(Relaxed),
            refaults: self.ghosts.get().map_or(0, Ghosts::hits),
            evictions: self.events.evictions.load(Relaxed),
            moves: self.events.moves.load(Relaxed),
            moved_bytes: self.events.moved_bytes.load(Relaxed),
            corrupt: self.events.corrupt.load(Relaxed),
            spill: self.tiers.iter().map(SpillFile::stats).sum(),
            ..Stats::default()
        };
        for number in self.shards.numbers() {
            let shard = read(self.shards.get(number));
            stats.pages += shard.counters.pages;
            stats.same_filled += shard.counters.same_filled;
            stats.puts += shard.counters.puts;
            stats.replaced += shard.counters.replaced;
            stats.flushed += shard.counters.flushed;
        }
        let (hits, misses) = self.gets.sums();
        (stats.hits, stats.gets) = (hits, hits + misses);
        stats.original_bytes = stats.pages * PAGE_SIZE as u64;
        stats
    }
}

/// How a zpage is to be read, if it is what was stored.
fn examine(zpage: &Zpage<'_>) -> Result<Encoding, Error> {
    if payload_check(zpage.payload) != zpage.check {
        let what = "its checksum is wrong";
        return Err(ErrorKind::Corrupt { what }.into());
    }
    let what = "its header is wrong";
    zpage.encoding.ok_or_else(|| ErrorKind::Corrupt { what }.into())
}

impl<'a> Parcel<'a> {
    fn new(encoding: Encoding, payload: &'a [u8]) -> Self {
        Self { queue: Queue::Small, encoding, payload, check: payload_check(payload) }
    }
}
