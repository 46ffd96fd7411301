//! The whole contract against a naive model: one thread, random operations from a seed that is printed.
#![cfg(not(loom))]

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use tmem::testing::{Lent, Random, sample_page};
use tmem::{
    AllocatorKind, CodecKind, Config, Error, ErrorKind, Fault, FaultRate, FaultyTier, Key, Location, MemoryTier,
    ObjectId, OpenOptions, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Spill, Store, Tier, WriteBack,
};

/// The disk that the store spills to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    None,
    /// Nothing goes wrong.
    Good,
    /// The same with three of them, each as small as may be.
    Several,
    /// Every operation fails now and then, and what is read is wrong now and then: no page may be lost by that.
    Failing,
    /// Some of what is written is not what can be read later: a page may be damaged, but never wrong.
    Lying,
}

impl Disk {
    /// Where a store spills to on disks of this kind, and what can be done about their faults.
    fn spills(self, seed: u64) -> (Vec<Spill>, Vec<FaultRate>) {
        let mut rates = Vec::new();
        let sizes_mib: &[u64] = match self {
            Self::None => &[],
            Self::Several => &[4, 4, 4],
            Self::Failing => &[6, 6],
            Self::Good | Self::Lying => &[12],
        };
        let spills = sizes_mib.iter().map(|mib| Spill::new(self.tier(seed, &mut rates), mib << 20)).collect();
        (spills, rates)
    }

    fn tier(self, seed: u64, rates: &mut Vec<FaultRate>) -> Box<dyn Tier> {
        let faults: &[(Fault, u64)] = match self {
            Self::None | Self::Good | Self::Several => &[],
            Self::Failing => &[
                (Fault::FailRead, 20),
                (Fault::CorruptRead, 20),
                (Fault::FailWrite, 10),
                (Fault::TearWrite, 10),
                (Fault::FailDiscard, 2),
                (Fault::Delay(Duration::from_micros(50)), 50),
                (Fault::Full(4 << 20), 1),
            ],
            Self::Lying => &[(Fault::CorruptWrite, 4), (Fault::LoseWrite, 20)],
        };
        // All of them are lent, so that they are called back.
        let mut tier: Box<dyn Tier> = Box::new(Lent::new(MemoryTier::new()));
        for (number, (fault, one_in)) in faults.iter().enumerate() {
            let faulty = FaultyTier::new(tier, *fault, *one_in, seed + number as u64 + rates.len() as u64);
            rates.push(faulty.rate());
            tier = Box::new(faulty);
        }
        tier
    }
}

/// What the model knows of a pool.
struct Pool {
    kind: PoolKind,
    exclusive: bool,
    frozen: bool,
    pages: HashMap<(ObjectId, u32), Page>,
}

struct World {
    random: Random,
    store: Store,
    pools: Vec<(PoolId, Pool)>,
    dead: Vec<PoolId>,
    refused: u64,
    liked: u64,
    written_back: u64,
    budget: u64,
    disk: Disk,
    faults: Vec<FaultRate>,
    failed_gets: u64,
    /// Pages that came in ranges, and pages that were kept because they were spilled.
    ranged: u64,
    kept: u64,
}

/// Where persistent pages go: remembers them until the model has compared them.
struct Owner {
    random: RefCell<Random>,
    committed: RefCell<Vec<(Key, Page)>>,
}

impl WriteBack for Owner {
    fn write(&self, key: Key, page: &Page) -> Option<u64> {
        if self.random.borrow_mut().below(4) == 0 {
            return None;
        }
        let mut committed = self.committed.borrow_mut();
        committed.push((key, *page));
        Some(committed.len() as u64)
    }

    fn commit(&self, key: Key, copy: u64) {
        let committed = self.committed.borrow();
        assert!(copy == committed.len() as u64 && committed.last().unwrap().0 == key);
    }

    fn discard(&self, _: Key, _: u64) {
        panic!("nobody changes pages meanwhile");
    }
}

const BUDGET: u64 = 2 << 20;
const INDEXES: u64 = 300;

impl World {
    fn new(seed: u64, codec: CodecKind, allocator: AllocatorKind, disk: Disk) -> Self {
        println!("seed {seed:#x}, {codec:?}, {allocator:?}, {disk:?}");
        let config = Config::new(BUDGET).codec(codec).allocator(allocator).threads(1).overwrite_bytes(32 << 10);
        // Where the allocator can do that, of each two seeds one packs late.
        let config = config.packs_late(seed % 2 == 1);
        let mut world = Self {
            random: Random::new(seed),
            faults: Vec::new(),
            disk,
            failed_gets: 0,
            ranged: 0,
            kept: 0,
            store: Store::new(config).unwrap(),
            pools: Vec::new(),
            dead: Vec::new(),
            refused: 0,
            liked: 0,
            written_back: 0,
            budget: BUDGET,
        };
        let (spills, faults) = disk.spills(seed);
        world.faults = faults;
        spills.into_iter().for_each(|spill| world.store.add_spill(spill).unwrap());
        world.create();
        world
    }

    /// A get may fail if the disk does, and leaves everything as it is.
    fn assert_excused(&self, error: &Error) {
        let excused = match self.disk {
            Disk::None | Disk::Good | Disk::Several => false,
            Disk::Failing => error.is_spill() || error.is_corrupt(),
            Disk::Lying => error.is_corrupt(),
        };
        assert!(excused, "{error}");
    }

    fn create(&mut self) {
        let kind = [PoolKind::Ephemeral, PoolKind::Persistent][self.random.below(2) as usize];
        let exclusive = self.random.below(4) == 0;
        let options = PoolOptions::default().exclusive_gets(exclusive);
        let id = self.store.create_pool(kind, options).unwrap();
        let pages = HashMap::new();
        self.pools.push((id, Pool { kind, exclusive, frozen: false, pages }));
    }

    fn pick(&mut self) -> usize {
        self.random.below(self.pools.len() as u64) as usize
    }

    fn object(&mut self) -> ObjectId {
        ObjectId([self.random.below(3), 0, self.random.below(2)])
    }

    /// Mostly near zero, sometimes at the far end.
    fn index(&mut self) -> u32 {
        let index = self.random.below(INDEXES) as u32;
        if self.random.below(10) == 0 { u32::MAX - index } else { index }
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..=629 => self.put(),
            630..=649 => self.put_like(),
            650..=889 => self.get(),
            890..=899 => self.get_range(),
            900..=929 => self.flush_page(),
            930..=939 => self.keep_if(),
            940..=949 => self.flush_range(),
            950..=951 => self.flush_object(),
            952..=959 => self.rekey(),
            960..=968 => drop(self.store.maintain()),
            969 => drop(self.store.trim()),
            970..=972 => self.recompress(),
            973 => self.reclaim(),
            974 => drop(self.store.balance(None)),
            975..=977 if self.pools.len() < 5 => self.create(),
            978 if self.pools.len() < 7 => self.clone_pool(),
            979 if self.pools.len() > 3 => self.destroy(),
            980 => self.freeze(),
            981 => self.resize(),
            982 => drop(self.store.recall(self.random.below(2 << 20))),
            _ => self.dead_pool(),
        }
    }

    /// Before a page is spilled, two walks have to find it unread.
    fn recompress(&self) {
        let walks = if self.disk == Disk::None { 1 } else { 10 };
        for _ in 0..walks {
            self.store.recompress(Duration::from_micros(200));
        }
    }

    fn put(&mut self) {
        let (at, object, index) = (self.pick(), self.object(), self.index());
        let page = sample_page(&mut self.random);
        let keeps = self.random.below(4) == 0;
        let (id, pool) = &mut self.pools[at];
        let key = Key { pool: *id, object, index };
        let put = match (keeps, key.index % 3) {
            (true, _) => self.store.overwrite(key, &page),
            (false, 0) => self.store.put_quickly(key, &page),
            (false, _) => self.store.put(key, &page),
        };
        match put {
            Ok(put) => {
                assert!(!pool.frozen);
                if pool.kind == PoolKind::Persistent {
                    assert_eq!(put.replaced, pool.pages.contains_key(&(object, index)));
                }
                pool.pages.insert((object, index), page);
            }
            Err(error) => {
                assert!(error.is_frozen() == pool.frozen && (pool.frozen || error.is_no_room()), "{error}");
                self.refused += u64::from(!pool.frozen);
                // Only an overwrite that is refused leaves what was there.
                if !keeps {
                    pool.pages.remove(&(object, index));
                }
            }
        }
    }

    /// A page that is stored, or nearly, is put under another key.
    fn put_like(&mut self) {
        let (from, to) = (self.pick(), self.pick());
        let Some((&(object, index), page)) = self.pools[from].1.pages.iter().next() else {
            return;
        };
        let like = Key { pool: self.pools[from].0, object, index };
        let (mut page, equal) = (*page, self.random.below(4) > 0);
        page[99] ^= u8::from(!equal);
        let (object, index) = (self.object(), self.index());
        let key = Key { pool: self.pools[to].0, object, index };
        let persistent = [from, to].iter().all(|&at| self.pools[at].1.kind == PoolKind::Persistent);
        let done = self.store.put_like(key, &page, like);
        assert!(!done || (equal && persistent && !self.pools[to].1.frozen));
        if done {
            self.liked += 1;
            self.pools[to].1.pages.insert((object, index), page);
        }
    }

    fn get(&mut self) {
        let (at, from) = (self.pick(), (self.object(), self.index()));
        // Now and then one that is there.
        let seek = self.random.below(4) == 0;
        let (id, pool) = &mut self.pools[at];
        let there = || pool.pages.keys().copied().filter(|key| *key >= from).min();
        let (object, index) = if seek { there().unwrap_or(from) } else { from };
        let key = Key { pool: *id, object, index };
        let mut out = [0x5a; PAGE_SIZE];
        let expected = pool.pages.get(&(object, index));
        let found = match self.store.get(key, &mut out) {
            Ok(found) => found,
            Err(error) => {
                assert!(expected.is_some());
                self.failed_gets += 1;
                return self.assert_excused(&error);
            }
        };
        match expected {
            Some(page) if found => assert_eq!(out, *page),
            Some(_) => assert_eq!(pool.kind, PoolKind::Ephemeral, "a persistent page is lost"),
            None => assert!(!found, "a page that nobody put"),
        }
        if !found || pool.exclusive {
            pool.pages.remove(&(object, index));
            assert!(!self.store.contains(key));
        } else {
            assert!(self.store.matches(key, &out) || !self.faults.is_empty());
            out[77] ^= 1;
            assert!(!self.store.matches(key, &out));
        }
    }

    fn get_range(&mut self) {
        let (at, from) = (self.pick(), (self.object(), self.index()));
        let mut out = vec![[0x5a; PAGE_SIZE]; 1 + self.random.below(12) as usize];
        let (id, pool) = &mut self.pools[at];
        let (object, first) = pool.pages.keys().copied().filter(|key| *key >= from).min().unwrap_or(from);
        let key = Key { pool: *id, object, index: first };
        let index = |i: usize| first.checked_add(i as u32);
        let found = match self.store.get_range(key, &mut out) {
            Ok(found) => found,
            Err(error) => {
                assert!(pool.pages.contains_key(&(object, first)));
                self.failed_gets += 1;
                return self.assert_excused(&error);
            }
        };
        for (i, page) in out[..found].iter().enumerate() {
            let expected = pool.pages.get(&(object, index(i).unwrap()));
            assert_eq!(page, expected.expect("a page that nobody put"));
        }
        if found < out.len() && self.disk != Disk::Failing && self.disk != Disk::Lying {
            let next = index(found).and_then(|index| pool.pages.remove(&(object, index)));
            assert!(next.is_none() || pool.kind == PoolKind::Ephemeral, "a persistent page is lost");
        }
        if pool.exclusive {
            for i in 0..found {
                pool.pages.remove(&(object, index(i).unwrap()));
            }
        }
        self.ranged += found as u64;
    }

    fn keep_if(&mut self) {
        let (at, from) = (self.pick(), (self.object(), self.index()));
        let (bytes_max, spilled) = (self.random.below(PAGE_SIZE as u64) as u32, self.random.below(4) > 0);
        let (id, pool) = &mut self.pools[at];
        // Mostly one that is there.
        let (object, index) = pool.pages.keys().copied().filter(|key| *key >= from).min().unwrap_or(from);
        let key = Key { pool: *id, object, index };
        let mut found = None;
        let kept = self.store.keep_if(key, |location| {
            found = Some(location);
            match location {
                Location::Ram { bytes } => bytes <= bytes_max,
                _ => spilled,
            }
        });
        let was = pool.pages.contains_key(&(object, index));
        if !kept {
            pool.pages.remove(&(object, index));
        }
        assert!(was || found.is_none(), "a page that nobody put");
        let on_disk = found == Some(Location::Spilled);
        assert!(!on_disk || (pool.kind == PoolKind::Persistent && self.disk != Disk::None));
        self.kept += u64::from(kept && on_disk);
    }

    fn flush_page(&mut self) {
        let (at, object, index) = (self.pick(), self.object(), self.index());
        let (id, pool) = &mut self.pools[at];
        let was = pool.pages.remove(&(object, index)).is_some();
        let flushed = self.store.flush_page(Key { pool: *id, object, index });
        assert!(flushed == was || (was && pool.kind == PoolKind::Ephemeral));
    }

    fn flush_range(&mut self) {
        let (at, object, start) = (self.pick(), self.object(), self.index());
        let end = match self.random.below(8) {
            0 if self.random.below(8) == 0 => u32::MAX,
            _ => start.saturating_add(self.random.below(80) as u32),
        };
        self.expect_flushed(
            at,
            |key| key.0 == object && (start..end).contains(&key.1),
            |store, id| store.flush_range(id, object, start..end),
        );
    }

    fn flush_object(&mut self) {
        let (at, object) = (self.pick(), self.object());
        self.expect_flushed(at, |key| key.0 == object, |store, id| store.flush_object(id, object));
    }

    fn expect_flushed(
        &mut self,
        at: usize,
        hit: impl Fn(&(ObjectId, u32)) -> bool,
        flush: impl Fn(&Store, PoolId) -> u64,
    ) {
        let (id, pool) = &mut self.pools[at];
        let before = pool.pages.len();
        pool.pages.retain(|key, _| !hit(key));
        let gone = (before - pool.pages.len()) as u64;
        let flushed = flush(&self.store, *id);
        assert!(flushed == gone || (flushed < gone && pool.kind == PoolKind::Ephemeral));
    }

    fn rekey(&mut self) {
        let (at, from, to) = (self.pick(), self.object(), self.object());
        let (start, to_start) = (self.index(), self.index());
        let len = self.random.below(150) as u32;
        let range = start..start.saturating_add(len);
        let (id, pool) = &mut self.pools[at];
        let moved = self.store.rekey_range(*id, from, range.clone(), to, to_start);
        if from == to && start == to_start {
            return;
        }
        let mut taken = Vec::new();
        for index in range.clone() {
            if let Some(page) = pool.pages.remove(&(from, index)) {
                taken.push((index - start, page));
            }
        }
        for offset in 0..range.len() as u32 {
            if let Some(index) = to_start.checked_add(offset) {
                pool.pages.remove(&(to, index));
            }
        }
        assert!(moved == taken.len() as u64 || pool.kind == PoolKind::Ephemeral);
        for (offset, page) in taken {
            if let Some(index) = to_start.checked_add(offset) {
                pool.pages.insert((to, index), page);
            }
        }
    }

    fn clone_pool(&mut self) {
        let at = self.pick();
        let (id, pool) = &self.pools[at];
        match self.store.clone_pool(*id) {
            Ok(clone) => {
                let pages = match pool.kind {
                    PoolKind::Ephemeral => HashMap::new(),
                    PoolKind::Persistent => pool.pages.clone(),
                };
                let twin = Pool { pages, ..*pool };
                self.pools.push((clone, twin));
            }
            Err(error) => assert!(error.is_no_room(), "{error}"),
        }
    }

    fn destroy(&mut self) {
        let at = self.pick();
        let (id, pool) = self.pools.swap_remove(at);
        let flushed = self.store.destroy_pool(id);
        let expected = pool.pages.len() as u64;
        assert!(flushed == expected || (flushed < expected && pool.kind == PoolKind::Ephemeral));
        self.dead.push(id);
    }

    fn freeze(&mut self) {
        let at = self.pick();
        let (id, pool) = &mut self.pools[at];
        pool.frozen = !pool.frozen;
        assert!(self.store.set_frozen(*id, pool.frozen));
    }

    /// Some frames are taken back; what is persistent goes to its owner, which takes three of four pages.
    fn reclaim(&mut self) {
        let owner = Owner { random: RefCell::new(self.random.clone()), committed: RefCell::default() };
        let frames = self.random.below(20);
        let done = self.store.reclaim(frames, Some(&owner));
        assert!(done.frames >= frames || done.short.is_some(), "{done:?}");
        let committed = owner.committed.into_inner();
        assert_eq!((done.written_back, done.lost_races), (committed.len() as u64, 0));
        self.written_back += done.written_back;
        for (key, page) in committed {
            let (_, pool) = self.pools.iter_mut().find(|(id, _)| *id == key.pool).unwrap();
            assert!(pool.kind == PoolKind::Persistent && !self.store.contains(key));
            assert!(pool.pages.remove(&(key.object, key.index)) == Some(page));
        }
    }

    /// The store is saved and opened again as one of any kind. What the disk has damaged has to be flushed for that.
    fn reopen(&mut self, codec: CodecKind, allocator: AllocatorKind) {
        self.set_faults(false);
        let mut file = Vec::new();
        while let Err(error) = self.store.save_to(&mut file, None) {
            let &ErrorKind::SavePage { key, .. } = error.kind() else { panic!("{error}") };
            assert!(self.is_damaged(key), "{error}");
            self.store.flush_page(key);
            let (_, pool) = self.pools.iter_mut().find(|(id, _)| *id == key.pool).unwrap();
            assert!(pool.pages.remove(&(key.object, key.index)).is_some());
            file.clear();
        }
        let options = |world: &mut Self, budget| {
            let (spills, faults) = world.disk.spills(budget);
            faults.iter().for_each(|fault| fault.set(0));
            world.faults = faults;
            let options = OpenOptions::new(Config::new(budget).codec(codec).allocator(allocator).threads(1));
            spills.into_iter().fold(options, OpenOptions::spill)
        };
        let opened = options(self, self.budget).read_from(&mut &file[..]);
        self.store = opened.unwrap_or_else(|error| {
            let &ErrorKind::SavedNoRoom { needed, .. } = error.kind() else { panic!("{error}") };
            // What is too much for this allocator is flushed.
            let store = options(self, needed).read_from(&mut &file[..]).unwrap();
            for (id, pool) in self.pools.iter_mut().filter(|(_, pool)| pool.kind == PoolKind::Persistent) {
                pool.pages.retain(|(object, index), _| {
                    let stays = store.stats().memory_bytes <= self.budget * 7 / 8;
                    let key = Key { pool: *id, object: *object, index: *index };
                    assert!(stays || store.flush_page(key));
                    while !stays && store.maintain().more {}
                    stays
                });
            }
            store
        });
        self.store.set_budget(self.budget);
        for (_, pool) in self.pools.iter_mut().filter(|(_, pool)| pool.kind == PoolKind::Ephemeral) {
            pool.pages.clear();
        }
        self.assert_valid();
    }

    fn resize(&mut self) {
        self.budget = BUDGET - self.random.below(BUDGET / 3);
        self.store.set_budget(self.budget);
    }

    /// The names of pools that are gone find nothing.
    fn dead_pool(&mut self) {
        let (object, index) = (self.object(), self.index());
        let Some(pool) = self.dead.last().copied() else {
            return;
        };
        let key = Key { pool, object, index };
        assert!(self.store.put(key, &[9; PAGE_SIZE]).unwrap_err().is_no_pool());
        assert!(!self.store.get(key, &mut [0; PAGE_SIZE]).unwrap());
        assert!(!self.store.contains(key) && !self.store.flush_page(key));
        assert_eq!(self.store.destroy_pool(pool), 0);
        assert!(self.store.clone_pool(pool).unwrap_err().is_no_pool());
    }

    /// Whether a page cannot be read because of a disk that lies.
    fn is_damaged(&self, key: Key) -> bool {
        let answer = self.store.get(key, &mut [0; PAGE_SIZE]);
        self.disk == Disk::Lying && answer.is_err_and(|error| error.is_corrupt())
    }

    fn set_faults(&self, on: bool) {
        let one_in = if on { 20 } else { 0 };
        self.faults.iter().for_each(|fault| fault.set(one_in));
    }

    /// Compares everything, while the disk works.
    fn assert_valid(&self) {
        self.set_faults(false);
        self.compare();
        self.set_faults(true);
    }

    fn compare(&self) {
        let stats = self.store.stats();
        let mut persistent = 0;
        let mut all = 0;
        for (id, pool) in &self.pools {
            let pages = self.store.pool_stats(*id).unwrap().pages;
            all += pages;
            if pool.kind == PoolKind::Persistent {
                assert_eq!(pages, pool.pages.len() as u64);
                persistent += pages;
                for ((object, index), page) in &pool.pages {
                    let key = Key { pool: *id, object: *object, index: *index };
                    assert!(self.store.matches(key, page) || self.is_damaged(key));
                }
            }
        }
        assert_eq!(stats.pages, all);
        assert!(stats.pages >= persistent);
        assert!(stats.zpages <= stats.pages);
        assert!(stats.frame_bytes >= stats.zpage_bytes);
        assert!(stats.memory_bytes >= stats.frame_bytes);
        assert!(stats.corrupt == 0 || !self.faults.is_empty());
        // Lowering the budget, clones and re-keys may overshoot by what their entries take.
        assert!(stats.memory_bytes <= BUDGET + (64 << 10), "{stats:?}");
    }
}

/// Runs a world to its end and says how hard it was: how often pages were refused, dropped, moved and grouped, and written back or
/// spilled.
fn run(seed: u64, codec: CodecKind, allocator: AllocatorKind, disk: Disk, steps: usize) -> Vec<u64> {
    let mut world = World::new(seed, codec, allocator, disk);
    for step in 0..steps {
        world.step();
        if step % 500 == 0 {
            world.assert_valid();
        }
    }
    world.assert_valid();
    let stats = world.store.stats();
    println!("{} gets failed, {stats:?}", world.failed_gets);
    let hard = [world.liked, world.ranged, stats.evictions, stats.moves];
    let spill = stats.spill;
    let of_disk = match disk {
        Disk::None => vec![world.refused, world.written_back, stats.recompressed],
        Disk::Good => vec![spill.spilled, spill.fetched, spill.promoted, spill.recalled, world.kept],
        Disk::Several => vec![spill.demoted, spill.fetched, spill.promoted, world.kept],
        Disk::Failing => vec![spill.spilled, spill.write_failures, spill.read_failures, spill.promoted],
        Disk::Lying => vec![spill.spilled, spill.damaged, world.failed_gets],
    };
    let hard = hard.into_iter().chain(of_disk).collect();
    for (id, _) in world.pools.drain(..) {
        world.store.destroy_pool(id);
    }
    while world.store.maintain().more {}
    let stats = world.store.stats();
    assert_eq!((stats.pages, stats.zpages, stats.zpage_bytes), (0, 0, 0));
    assert_eq!((stats.spill.zpages, stats.spill.live_bytes), (0, 0));
    assert!(stats.spill.file_bytes <= 3 << 20, "{stats:?}");
    // Each file has a writer's batch.
    assert!(stats.memory_bytes < 5 << 18, "{stats:?}");
    hard
}

fn seed() -> u64 {
    match std::env::var("TMEM_SEED") {
        Ok(seed) => seed.parse().expect("TMEM_SEED is a number"),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    }
}

const ALLOCATORS: [AllocatorKind; 4] =
    [AllocatorKind::Log, AllocatorKind::Zsmalloc, AllocatorKind::Zbud, AllocatorKind::Xvmalloc];

/// Everything that a run is to see happened.
fn assert_hard(counts: &[u64]) {
    assert!(counts.iter().all(|count| *count > 0), "too easy: {counts:?}");
}

/// A file that failed rests for a time by the clock, so one run may see few faults.
fn assert_together_hard(runs: impl IntoIterator<Item = Vec<u64>>) {
    let runs: Vec<Vec<u64>> = runs.into_iter().collect();
    let sums = (0..runs[0].len()).map(|i| runs.iter().map(|run| run[i]).sum());
    let sums: Vec<u64> = sums.collect();
    println!("together {sums:?}");
    assert_hard(&sums);
}

/// Runs without a disk, each of which sees everything, but for refusals: which shard a key is in is random, and now and then a run
/// has room for all.
fn assert_hard_without_disk(runs: impl IntoIterator<Item = Vec<u64>>) {
    const REFUSED: usize = 4;
    let runs: Vec<Vec<u64>> = runs.into_iter().collect();
    for run in &runs {
        let others = [&run[..REFUSED], &run[REFUSED + 1..]].concat();
        assert_hard(&others);
    }
    assert_together_hard(runs);
}

#[test]
fn lz4_store_behaves_like_the_model() {
    assert_hard_without_disk(ALLOCATORS.map(|allocator| run(1, CodecKind::Lz4, allocator, Disk::None, 30_000)));
}

#[test]
fn zstd_store_behaves_like_the_model() {
    assert_hard_without_disk(ALLOCATORS.map(|allocator| run(2, CodecKind::default(), allocator, Disk::None, 90_000)));
}

#[test]
fn a_new_seed_each_time() {
    for allocator in ALLOCATORS {
        run(seed(), CodecKind::default(), allocator, Disk::None, 30_000);
    }
}

#[test]
fn a_store_that_spills_behaves_like_the_model() {
    assert_together_hard(ALLOCATORS.map(|allocator| run(3, CodecKind::default(), allocator, Disk::Good, 25_000)));
}

#[test]
fn a_store_that_spills_to_several_files_behaves_like_the_model() {
    // How much there is to spill depends on which pools are there, and so on the seed.
    let runs = (12..).zip(ALLOCATORS.into_iter().cycle()).take(8);
    assert_together_hard(
        runs.map(|(seed, allocator)| run(seed, CodecKind::default(), allocator, Disk::Several, 25_000)),
    );
}

#[test]
fn a_failing_disk_loses_nothing() {
    assert_together_hard(ALLOCATORS.map(|allocator| run(4, CodecKind::default(), allocator, Disk::Failing, 50_000)));
}

#[test]
fn a_lying_disk_is_found_out() {
    assert_together_hard(ALLOCATORS.map(|allocator| run(5, CodecKind::default(), allocator, Disk::Lying, 25_000)));
}

/// After every thousand steps the store is saved and opened with another allocator and another codec.
fn run_reopened(seed: u64, disk: Disk) {
    let codecs = [CodecKind::default(), CodecKind::Lz4];
    let mut world = World::new(seed, codecs[0], ALLOCATORS[0], disk);
    for life in 1..=24 {
        (0..1000).for_each(|_| world.step());
        world.reopen(codecs[life % codecs.len()], ALLOCATORS[life % ALLOCATORS.len()]);
    }
    for (id, pool) in world.pools.drain(..) {
        assert!(pool.kind == PoolKind::Ephemeral || world.store.destroy_pool(id) == pool.pages.len() as u64);
        world.store.destroy_pool(id);
    }
    let stats = world.store.stats();
    assert_eq!((stats.pages, stats.zpages, stats.spill.zpages), (0, 0, 0));
}

#[test]
fn a_store_that_is_saved_and_opened_behaves_like_the_model() {
    for disk in [Disk::None, Disk::Good, Disk::Several, Disk::Failing, Disk::Lying] {
        run_reopened(6, disk);
        run_reopened(seed(), disk);
    }
}

#[test]
fn any_disk_with_a_new_seed() {
    for (allocator, disk) in
        ALLOCATORS.into_iter().flat_map(|a| [Disk::Good, Disk::Several, Disk::Failing, Disk::Lying].map(|d| (a, d)))
    {
        run(seed(), CodecKind::default(), allocator, disk, 10_000);
    }
}
