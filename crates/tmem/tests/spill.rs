//! Stores that spill: what goes out comes back, whatever the tier does, and the file does not grow without end.
#![cfg(not(loom))]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tmem::testing::{Lent, Random, sample_page};
use tmem::{
    AllocatorKind, Config, Fault, FaultyTier, FileTier, Key, Location, MemoryTier, PAGE_SIZE, Page, PoolId, PoolKind,
    PoolOptions, Spill, SpillStats, Store, Tier,
};

const BUDGET: u64 = 2 << 20;
const FILE: u64 = 64 << 20;

fn page(index: u32) -> Page {
    let mut page = sample_page(&mut Random::new(index.into()));
    page[..4].copy_from_slice(&index.to_le_bytes());
    page
}

fn store_with(budget: u64, allocator: AllocatorKind, spill: Spill) -> (Store, PoolId) {
    let store = Store::new(Config::new(budget).allocator(allocator).threads(1)).unwrap();
    store.add_spill(spill).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    (store, pool)
}

fn store(tier: impl Tier + 'static) -> (Store, PoolId) {
    store_with(BUDGET, AllocatorKind::default(), Spill::new(tier, FILE))
}

fn put_all(store: &Store, pool: PoolId, indexes: std::ops::Range<u32>) {
    for index in indexes {
        store.put(Key::new(pool, 0, index), &page(index)).unwrap();
    }
}

fn assert_all(store: &Store, pool: PoolId, indexes: impl IntoIterator<Item = u32>) {
    let mut out = [0; PAGE_SIZE];
    for index in indexes {
        assert!(store.get(Key::new(pool, 0, index), &mut out).unwrap(), "page {index} is lost");
        assert!(out == page(index), "page {index} is another one");
    }
}

const ALLOCATORS: [AllocatorKind; 4] =
    [AllocatorKind::Log, AllocatorKind::Zsmalloc, AllocatorKind::Zbud, AllocatorKind::Xvmalloc];

#[test]
fn what_is_flushed_after_gets_does_not_come_back_to_ram() {
    let spill = Spill::new(MemoryTier::new(), FILE).flushed_after_gets();
    let (store, pool) = store_with(BUDGET, AllocatorKind::default(), spill);
    put_all(&store, pool, 0..4000);
    for index in 2000..4000 {
        store.flush_page(Key::new(pool, 0, index));
    }
    assert_all(&store, pool, 0..2000);
    let spill = store.stats().spill;
    assert!(spill.fetched > 500 && spill.promoted < spill.fetched / 4, "{spill:?}");
}

#[test]
fn many_times_more_than_the_budget_comes_back() {
    for allocator in ALLOCATORS {
        for plain in [false, true] {
            let tier = FileTier::unnamed(&std::env::temp_dir()).unwrap();
            let spill = Spill::new(tier, FILE);
            let (store, pool) = store_with(BUDGET, allocator, if plain { spill.plain() } else { spill });
            put_all(&store, pool, 0..8000);
            let stats = store.stats();
            println!("{allocator:?}: {stats:?}");
            assert!(stats.spill.zpages > 5000 && stats.memory_bytes <= BUDGET, "{stats:?}");
            let mean = stats.spill.written_bytes / stats.spill.writes;
            assert!(mean >= 48 << 10, "writes of {mean} bytes");
            assert_all(&store, pool, 0..8000);
            assert!(store.matches(Key::new(pool, 0, 1), &page(1)));
            assert!(!store.matches(Key::new(pool, 0, 1), &page(2)));
            assert_eq!(store.destroy_pool(pool), 8000);
            store.maintain();
            let spill = store.stats().spill;
            assert_eq!((spill.zpages, spill.live_bytes), (0, 0));
            assert!(spill.file_bytes <= 1 << 20 && spill.discards > 0, "{spill:?}");
        }
    }
}

/// A batch was larger than what an allocator that empties frame by frame gathers before reclaim gave up.
#[test]
fn no_put_is_refused_while_there_is_room_in_the_file() {
    for allocator in ALLOCATORS {
        for budget in [2 << 20, 4 << 20, 8 << 20, 16 << 20] {
            let (store, pool) = store_with(budget, allocator, Spill::new(MemoryTier::new(), FILE));
            put_all(&store, pool, 0..(budget >> 10) as u32 * 3 / 4);
            let spill = store.stats().spill;
            assert!(spill.zpages > 100, "{allocator:?}, {budget}: {spill:?}");
            assert!(spill.written_bytes / spill.writes > 48 << 10, "{allocator:?}, {budget}: {spill:?}");
        }
    }
}

#[test]
fn what_is_read_comes_back_to_ram_when_there_is_room() {
    let (store, pool) = store(MemoryTier::new());
    put_all(&store, pool, 0..6000);
    let spilled = store.stats().spill.zpages;
    store.set_budget(32 << 20);
    assert_all(&store, pool, 0..6000);
    let spill = store.stats().spill;
    assert_eq!((spill.zpages, spill.promoted), (0, spilled));
    assert_all(&store, pool, 0..6000);
    assert_eq!(store.stats().spill.fetched, spilled);
}

/// Without anybody asking for it, those first that left last; an eighth of the budget stays free, and nothing is pushed out.
#[test]
fn what_is_called_back_comes_as_far_as_there_is_room() {
    for allocator in ALLOCATORS {
        let spill = Spill::new(Lent::new(MemoryTier::new()), FILE).flushed_after_gets();
        let (store, pool) = store_with(BUDGET, allocator, spill);
        assert_eq!(store.recall(1 << 20), 0, "there is nothing");
        put_all(&store, pool, 0..6000);
        let before = store.stats().spill;
        assert_eq!(store.recall(1 << 20), 0, "there is no room");

        store.set_budget(4 << 20);
        while store.recall(256 << 10) > 0 {}
        let stats = store.stats();
        assert!(stats.memory_bytes <= (4 << 20) / 8 * 7 + (8 << 10), "{allocator:?}: {stats:?}");
        assert!(stats.memory_bytes > 3 << 20 && stats.spill.recalled > 300, "{allocator:?}: {stats:?}");
        assert_eq!((stats.spill.spilled, stats.spill.zpages + stats.spill.recalled), (before.spilled, before.zpages));
        // What is in RAM is what was put last.
        let in_ram = |index| matches!(store.location(Key::new(pool, 0, index)), Some(Location::Ram { .. }));
        let in_ram = |indexes: std::ops::Range<u32>| indexes.filter(|index| in_ram(*index)).count();
        assert!(in_ram(5000..6000) > 2 * in_ram(0..1000), "{allocator:?}");
        assert_all(&store, pool, 0..6000);

        store.set_budget(64 << 20);
        assert!(store.recall(u64::MAX) > 0);
        while store.maintain().more {}
        let stats = store.stats();
        assert_eq!((stats.spill.zpages, stats.spill.file_bytes), (0, 0), "{allocator:?}");
        assert_eq!(stats.spill.recalled, before.zpages);
        assert_all(&store, pool, 0..6000);
        assert_eq!(store.stats().spill.fetched, stats.spill.fetched, "they were in RAM");
        // The file takes new pages afterwards.
        store.set_budget(BUDGET);
        put_all(&store, pool, 6000..9000);
        store.set_budget(64 << 20);
        assert!(store.recall(u64::MAX) > 0);
        assert_all(&store, pool, 0..9000);
    }
}

#[test]
fn what_is_on_a_disk_is_not_called_back() {
    let (store, pool) = store(MemoryTier::new());
    put_all(&store, pool, 0..6000);
    store.set_budget(64 << 20);
    assert_eq!(store.recall(u64::MAX), 0);
    assert_eq!(store.stats().spill.recalled, 0);
}

#[test]
fn what_cannot_be_called_back_stays_where_it_is() {
    for fault in [Fault::CorruptRead, Fault::FailRead] {
        let tier = FaultyTier::new(MemoryTier::new(), fault, 3, 5);
        let rate = tier.rate();
        let (store, pool) = store(Lent::new(tier));
        put_all(&store, pool, 0..6000);
        store.set_budget(64 << 20);
        while store.recall(256 << 10) > 0 {}
        let spill = store.stats().spill;
        assert!(spill.zpages > 100 && spill.recalled > 100 && spill.damaged + spill.read_failures > 0, "{spill:?}");
        rate.set(0);
        assert_all(&store, pool, 0..6000);
    }
}

#[test]
fn spilled_pages_are_cloned_rekeyed_liked_taken_and_replaced() {
    let (store, pool) = store(MemoryTier::new());
    put_all(&store, pool, 0..6000);
    let clone = store.clone_pool(pool).unwrap();
    store.rekey_range(pool, 0.into(), 0..3000, 0.into(), 10_000);
    store.flush_range(pool, 0.into(), 3000..6000);
    assert_all(&store, clone, 0..6000);
    let mut out = [0; PAGE_SIZE];
    for index in 0..3000 {
        assert!(store.get(Key::new(pool, 0, 10_000 + index), &mut out).unwrap() && out == page(index));
        assert!(!store.contains(Key::new(pool, 0, index)));
    }
    // A name for a page that is stored is not worth a page's place in RAM.
    store.set_budget(4 << 20);
    let liked = (0..3000).filter(|index| {
        let (key, like) = (Key::new(pool, 1, *index), Key::new(clone, 0, *index));
        assert!(!store.put_like(key, &page(index + 1), like));
        store.put_like(key, &page(*index), like)
    });
    assert_eq!(liked.count(), 3000);
    assert!(store.get(Key::new(pool, 1, 5), &mut out).unwrap() && out == page(5));
    put_all(&store, clone, 6000..9000);
    for index in 0..6000 {
        store.put(Key::new(clone, 0, index), &page(index ^ 1)).unwrap();
    }
    for index in 0..6000 {
        assert!(store.get(Key::new(clone, 0, index), &mut out).unwrap() && out == page(index ^ 1));
    }
    store.destroy_pool(pool);
    store.destroy_pool(clone);
    assert_eq!((store.stats().zpages, store.stats().spill.zpages), (0, 0));
}

#[test]
fn exclusive_gets_take_spilled_pages() {
    let (store, _) = store(MemoryTier::new());
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default().exclusive_gets(true)).unwrap();
    put_all(&store, pool, 0..6000);
    assert_all(&store, pool, 0..6000);
    assert_eq!((store.stats().pages, store.stats().spill.zpages), (0, 0));
}

#[test]
fn groups_are_spilled_whole() {
    let (store, pool) = store_with(8 << 20, AllocatorKind::Log, Spill::new(MemoryTier::new(), FILE));
    put_all(&store, pool, 0..4000);
    for _ in 0..4 {
        store.recompress(Duration::from_secs(60));
    }
    assert!(store.stats().recompressed > 1000);
    let clone = store.clone_pool(pool).unwrap();
    store.set_budget(2 << 20);
    let before = store.stats();
    assert!(before.spill.zpages > 100, "{before:?}");
    assert_all(&store, clone, 0..4000);
    store.set_budget(32 << 20);
    assert_all(&store, pool, 0..4000);
    store.destroy_pool(pool);
    assert_all(&store, clone, 0..4000);
    store.destroy_pool(clone);
    assert_eq!((store.stats().zpages, store.stats().spill.zpages), (0, 0));
}

#[test]
fn a_full_file_refuses_puts_and_keeps_what_it_has() {
    let (store, pool) = store_with(BUDGET, AllocatorKind::default(), Spill::new(MemoryTier::new(), 4 << 20));
    let accepted = (0..9000).filter(|index| store.put(Key::new(pool, 0, *index), &page(*index)).is_ok());
    let accepted: Vec<_> = accepted.collect();
    let stats = store.stats();
    assert!(accepted.len() < 9000 && stats.spill.full > 0 && stats.refusals > 0, "{stats:?}");
    let mut out = [0; PAGE_SIZE];
    for index in &accepted {
        assert!(store.get(Key::new(pool, 0, *index), &mut out).unwrap() && out == page(*index));
    }
    // Room in the file is room again.
    assert!(accepted[..accepted.len() / 2].iter().all(|index| store.flush_page(Key::new(pool, 0, *index))));
    let again = (20_000..20_500).filter(|index| store.put(Key::new(pool, 0, *index), &page(*index)).is_ok()).count();
    assert_eq!(again, 500);
}

#[test]
fn failing_writes_cost_no_page() {
    for fault in [Fault::FailWrite, Fault::TearWrite, Fault::Full(3 << 20)] {
        let tier = FaultyTier::new(MemoryTier::new(), fault, 1, 1);
        let rate = tier.rate();
        let (store, pool) = store(tier);
        let keys: Vec<_> = (0..6000).filter(|i| store.put(Key::new(pool, 0, *i), &page(*i)).is_ok()).collect();
        let stats = store.stats();
        assert!(stats.spill.write_failures > 0 && keys.len() < 6000, "{fault:?}: {stats:?}");
        let mut out = [0; PAGE_SIZE];
        for index in &keys {
            assert!(store.get(Key::new(pool, 0, *index), &mut out).unwrap() && out == page(*index));
        }
        // The disk works again, and after a rest it is tried again.
        rate.set(0);
        std::thread::sleep(Duration::from_millis(20));
        let mut taken = false;
        for _ in 0..1000 {
            taken = store.put(Key::new(pool, 1, 0), &page(1)).is_ok();
            if taken {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(taken && store.stats().spill.zpages > 0, "{fault:?}");
    }
}

#[test]
fn what_could_not_be_cleaned_is_cleaned_when_writes_work_again() {
    let tier = FaultyTier::new(MemoryTier::new(), Fault::FailWrite, 0, 1);
    let rate = tier.rate();
    let (store, pool) = store(tier);
    put_all(&store, pool, 0..8000);
    // A cleaning takes several writes, and a sweep many: while every other one fails, none gets far.
    rate.set(2);
    (0..8000).filter(|index| index % 3 > 0).for_each(|index| _ = store.flush_page(Key::new(pool, 0, index)));
    let tend = || {
        store.maintain();
        std::thread::sleep(Duration::from_millis(5));
        store.stats().spill
    };
    (0..400).for_each(|_| _ = tend());
    let tended = store.stats().spill;
    assert!(tended.write_failures > 2, "{tended:?}");
    rate.set(0);
    let is_small = |spill: &SpillStats| spill.file_bytes < spill.live_bytes * 5 / 4 + (2 << 20);
    assert!((0..1000).any(|_| is_small(&tend())), "{:?}", store.stats().spill);
    assert_all(&store, pool, (0..8000).step_by(3));
}

#[test]
fn wrong_bytes_are_noticed_and_failed_reads_are_no_loss() {
    let faults = [Fault::CorruptWrite, Fault::LoseWrite, Fault::CorruptRead, Fault::FailRead];
    for (fault, plain) in faults.into_iter().flat_map(|fault| [(fault, false), (fault, true)]) {
        let tier = FaultyTier::new(MemoryTier::new(), fault, 3, 5);
        let rate = tier.rate();
        let spill = Spill::new(tier, FILE);
        let (store, pool) = store_with(BUDGET, AllocatorKind::default(), if plain { spill.plain() } else { spill });
        put_all(&store, pool, 0..6000);
        let read_all = || {
            let mut out = [0; PAGE_SIZE];
            let outcome = (0..6000).filter(|index| match store.get(Key::new(pool, 0, *index), &mut out) {
                Ok(found) => {
                    assert!(found && out == page(*index), "{fault:?}: page {index}");
                    false
                }
                Err(error) => {
                    assert_eq!(error.is_spill(), fault == Fault::FailRead, "{error}");
                    assert!(error.is_spill() || error.is_corrupt(), "{error}");
                    true
                }
            });
            outcome.count() as u64
        };
        let bad = read_all();
        let spill = store.stats().spill;
        assert!(bad > 0 && bad == spill.damaged + spill.read_failures, "{fault:?}: {bad}, {spill:?}");
        rate.set(0);
        let still_bad = read_all();
        assert_eq!(still_bad > 0, matches!(fault, Fault::CorruptWrite | Fault::LoseWrite), "{fault:?}");
    }
}

/// A disk that counts its reads.
struct CountedReads(MemoryTier, Arc<AtomicU64>);

impl Tier for CountedReads {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(offset, bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.1.fetch_add(1, Relaxed);
        self.0.read(offset, bytes)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.0.discard(offset, bytes)
    }
}

#[test]
fn neighbours_come_back_with_one_read() {
    for allocator in ALLOCATORS {
        let reads = Arc::new(AtomicU64::new(0));
        let tier = CountedReads(MemoryTier::new(), Arc::clone(&reads));
        let (store, pool) = store_with(BUDGET, allocator, Spill::new(tier, FILE));
        put_all(&store, pool, 0..6000);
        let before = (reads.load(Relaxed), store.stats().spill.fetched);
        let mut out = vec![[0; PAGE_SIZE]; 50];
        for first in (0..6000).step_by(50) {
            assert_eq!(store.get_range(Key::new(pool, 0, first), &mut out).unwrap(), 50);
            assert!((first..).zip(&out).all(|(index, out)| *out == page(index)), "{allocator:?}, from {first}");
        }
        let (reads, fetched) = (reads.load(Relaxed) - before.0, store.stats().spill.fetched - before.1);
        println!("{allocator:?}: {reads} reads for {fetched} zpages");
        // zsmalloc frees frames of one size class each, so what goes out together are no neighbours.
        let least = if allocator == AllocatorKind::Zsmalloc { 3 } else { 6 };
        assert!(fetched > 3000 && reads * least < fetched);
        // Up to what is not there, and nothing where the first is not.
        store.flush_page(Key::new(pool, 0, 777));
        assert_eq!(store.get_range(Key::new(pool, 0, 760), &mut out).unwrap(), 17);
        assert_eq!(store.get_range(Key::new(pool, 0, 777), &mut out).unwrap(), 0);
        assert_eq!(store.get_range(Key::new(pool, 0, u32::MAX), &mut out).unwrap(), 0);
        assert_eq!(store.get_range(Key::new(pool, 0, 0), &mut []).unwrap(), 0);
    }
}

#[test]
fn a_range_ends_before_what_cannot_be_read() {
    let tier = FaultyTier::new(MemoryTier::new(), Fault::CorruptWrite, 3, 5);
    let (store, pool) = store(tier);
    put_all(&store, pool, 0..6000);
    let mut out = vec![[0; PAGE_SIZE]; 32];
    let (mut read, mut failed) = (0, 0);
    for first in 0..6000 {
        match store.get_range(Key::new(pool, 0, first), &mut out[..32.min(6000 - first as usize)]) {
            Ok(found) => {
                assert!(found > 0 && (first..).zip(&out[..found]).all(|(index, out)| *out == page(index)));
                read += found;
            }
            Err(error) => {
                assert!(error.is_corrupt());
                failed += 1;
            }
        }
    }
    assert!(read > 6000 && failed > 0, "{read} read, {failed} failed");
}

#[test]
fn a_range_ends_with_the_last_index() {
    for exclusive in [false, true] {
        let store = Store::new(Config::new(BUDGET).threads(1)).unwrap();
        let options = PoolOptions::default().exclusive_gets(exclusive);
        let pool = store.create_pool(PoolKind::Persistent, options).unwrap();
        for index in [u32::MAX - 1, u32::MAX] {
            store.put(Key::new(pool, 0, index), &page(index)).unwrap();
        }
        let mut out = vec![[0; PAGE_SIZE]; 5];
        assert_eq!(store.get_range(Key::new(pool, 0, u32::MAX - 1), &mut out).unwrap(), 2);
        assert!(out[0] == page(u32::MAX - 1) && out[1] == page(u32::MAX));
        assert_eq!(store.stats().pages, if exclusive { 0 } else { 2 });
    }
}

#[test]
fn a_page_is_kept_where_that_is_wanted() {
    let (store, pool) = store(MemoryTier::new());
    put_all(&store, pool, 0..6000);
    store.put(Key::new(pool, 0, 6000), &[7; PAGE_SIZE]).unwrap();
    let spilled = store.stats().spill.zpages;
    let mut seen = Vec::new();
    let mut keep = |index, wanted: &dyn Fn(Location) -> bool| {
        store.keep_if(Key::new(pool, 0, index), |location| {
            seen.push(location);
            wanted(location)
        })
    };
    assert!(keep(6000, &|location| location == Location::Ram { bytes: 0 }), "a filled page takes nothing");
    assert!(!keep(6001, &|_| true), "it was never put");
    let kept = (0..6000).filter(|&index| keep(index, &|location| location == Location::Spilled)).count();
    assert_eq!(kept as u64, spilled);
    assert_eq!(seen.len(), 6001);
    let is_packed = |location: &Location| matches!(*location, Location::Ram { bytes: 1..=4096 } | Location::Spilled);
    assert!(seen[1..].iter().all(is_packed));
    assert_eq!(store.pool_stats(pool).unwrap().pages, spilled + 1);
}

/// A disk on which a write can take half a second.
struct SlowWrites {
    memory: MemoryTier,
    slow: Arc<AtomicBool>,
    writing: Arc<AtomicBool>,
}

const SLOW: Duration = Duration::from_millis(500);

impl Tier for SlowWrites {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.slow.load(Relaxed) {
            self.writing.store(true, Relaxed);
            std::thread::sleep(SLOW);
            self.writing.store(false, Relaxed);
        }
        self.memory.write(offset, bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, bytes)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.memory.discard(offset, bytes)
    }
}

#[test]
fn readers_do_not_wait_for_writers() {
    let (slow, writing) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (store, pool) =
        store(SlowWrites { memory: MemoryTier::new(), slow: Arc::clone(&slow), writing: Arc::clone(&writing) });
    put_all(&store, pool, 0..6000);
    slow.store(true, Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| store.reclaim(100, None));
        while !writing.load(Relaxed) {
            std::thread::yield_now();
        }
        // As long as the first write takes: what is spilled, what is in RAM, and what is being spilled.
        let mut out = [0; PAGE_SIZE];
        let mut got = 0;
        for index in (0..6000).rev().step_by(5) {
            assert!(store.get(Key::new(pool, 0, index), &mut out).unwrap() && out == page(index));
            if !writing.load(Relaxed) {
                break;
            }
            got += 1;
        }
        assert!(got > 100, "{got} gets in {SLOW:?}");
    });
}

#[test]
fn a_file_must_not_be_too_small() {
    let store = Store::new(Config::new(BUDGET)).unwrap();
    let error = store.add_spill(Spill::new(MemoryTier::new(), 1 << 20)).unwrap_err();
    assert!(error.to_string().contains("at least"), "{error}");
}

#[test]
fn a_file_that_others_spoil_is_found_out() {
    let path = std::env::temp_dir().join(format!("tmem-spoilt-{}", std::process::id()));
    let (store, pool) = store(FileTier::open(&path).unwrap());
    put_all(&store, pool, 0..6000);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    let outcomes = |store: &Store| {
        let mut out = [0; PAGE_SIZE];
        let mut counts = [0; 3];
        for index in 0..6000 {
            match store.get(Key::new(pool, 0, index), &mut out) {
                Ok(found) => {
                    assert!(found && out == page(index));
                    counts[0] += 1;
                }
                Err(error) if error.is_corrupt() => counts[1] += 1,
                Err(error) => {
                    assert!(error.is_spill(), "{error}");
                    counts[2] += 1;
                }
            }
        }
        counts
    };
    // A megabyte of it is another one.
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0x55; 1 << 20], 1 << 20).unwrap();
    let [good, damaged, unreadable] = outcomes(&store);
    assert!(good > 4000 && damaged > 300 && unreadable == 0, "{good} {damaged}");
    file.set_len(len / 2).unwrap();
    let [good, damaged, unreadable] = outcomes(&store);
    assert!(good > 2000 && damaged > 300 && unreadable > 1000, "{good} {damaged} {unreadable}");
    // What is spoilt can be replaced and flushed like anything else, and cleaning passes it by.
    put_all(&store, pool, 0..6000);
    while store.maintain().more {}
    assert_all(&store, pool, 0..6000);
    std::fs::remove_file(&path).unwrap();
}

/// The owners that records name are out of date: cleaning has to look for the words that name them now.
#[test]
fn records_are_found_whatever_became_of_their_owners() {
    let (store, first) = store(MemoryTier::new());
    put_all(&store, first, 0..12_000);
    store.rekey_range(first, 0.into(), 0..12_000, 1.into(), 100_000);
    // A clone of which only the clone is left.
    let pool = store.clone_pool(first).unwrap();
    store.rekey_range(pool, 1.into(), 100_000..106_000, 0.into(), 0);
    store.destroy_pool(first);
    let old = |index: u32| if index < 6000 { Key::new(pool, 0, index) } else { Key::new(pool, 1, 100_000 + index) };
    for index in (0..12_000).filter(|index| index % 3 > 0) {
        assert!(store.flush_page(old(index)));
    }
    let before = store.stats().spill;
    while store.maintain().more {}
    let spill = store.stats().spill;
    assert!(before.file_bytes > 2 * before.live_bytes && spill.moved > 3000, "{before:?} {spill:?}");
    assert!(spill.file_bytes <= spill.live_bytes * 13 / 10 + (1 << 20), "{spill:?}");
    let mut out = [0; PAGE_SIZE];
    for index in 0..12_000 {
        assert_eq!(store.get(old(index), &mut out).unwrap(), index % 3 == 0);
        assert!(index % 3 > 0 || out == page(index));
    }
    store.destroy_pool(pool);
    assert_eq!((store.stats().zpages, store.stats().spill.zpages), (0, 0));
}

/// Pages come and go for long: what is dead in the file is taken back, also where pages got other keys, so that owners that
/// the records name are out of date.
fn churn(rekeys: bool) -> f64 {
    let (store, pool) = store(MemoryTier::new());
    let mut random = Random::new(3);
    const PAGES: u64 = 24_000;
    let mut object_of = vec![0; PAGES as usize];
    put_all(&store, pool, 0..PAGES as u32);
    let (mut worst, mut sum, mut samples) = (0.0f64, 0.0, 0.0);
    for step in 0..6 * PAGES {
        // Four in five of the pages that change are from a fifth of all.
        let among = if random.below(5) == 0 { PAGES } else { PAGES / 5 };
        let index = random.below(among) as u32;
        let object = &mut object_of[index as usize];
        if rekeys && random.below(4) == 0 {
            store.rekey_range(pool, (*object).into(), index..index + 1, (*object + 1).into(), index);
            *object += 1;
        }
        store.put(Key::new(pool, *object, index), &page(index ^ (step as u32) << 16)).unwrap();
        if step % 64 == 0 {
            store.maintain();
        }
        if step % 512 == 0 && step > PAGES {
            let spill = store.stats().spill;
            let amplification = spill.file_bytes as f64 / spill.live_bytes as f64;
            (worst, sum, samples) = (worst.max(amplification), sum + amplification, samples + 1.0);
        }
    }
    let stats = store.stats();
    println!("rekeys {rekeys}: space amplification mean {:.3}, worst {worst:.3}; {:?}", sum / samples, stats.spill);
    assert!(stats.spill.cleaned > 0 && stats.spill.moved > 0);
    assert_eq!(stats.spill.damaged, 0);
    assert_eq!(stats.pages, PAGES);
    store.destroy_pool(pool);
    assert_eq!(store.stats().spill.zpages, 0);
    worst
}

#[test]
fn the_file_stays_small_while_pages_come_and_go() {
    let worst = churn(false);
    assert!(worst <= 1.3, "{worst}");
}

#[test]
fn the_file_stays_small_while_pages_get_other_keys() {
    let worst = churn(true);
    assert!(worst <= 1.3, "{worst}");
}
/// Reclaim gave up when it had given second chances for a while: a store in which everything was read could not be made smaller.
#[test]
fn what_was_all_used_leaves_when_the_budget_is_lowered() {
    for allocator in ALLOCATORS {
        let (store, pool) = store_with(64 << 20, allocator, Spill::new(MemoryTier::new(), FILE));
        put_all(&store, pool, 0..6000);
        assert_all(&store, pool, 0..6000);
        store.set_budget(BUDGET);
        let stats = store.stats();
        assert!(stats.memory_bytes <= BUDGET && stats.spill.zpages > 4000, "{allocator:?}: {stats:?}");
        assert_all(&store, pool, 0..6000);
    }
}
