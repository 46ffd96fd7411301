//! Stores that spill to several files: what is cold goes on to the next one, nothing is lost on the way.
#![cfg(not(loom))]

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use tmem::testing::{Lent, Random, sample_page};
use tmem::{
    Config, Fault, FaultyTier, Key, Location, MemoryTier, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Spill,
    SpillStats, Store, Tier,
};

const BUDGET: u64 = 2 << 20;
const MIB: u64 = 1 << 20;

/// Counts the reads.
struct Counting {
    memory: MemoryTier,
    reads: Arc<AtomicU64>,
}

impl Tier for Counting {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write(offset, bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Relaxed);
        self.memory.read(offset, bytes)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.memory.discard(offset, bytes)
    }
}

/// Takes less than it was said to, as whoever lends it has less, and counts the reads.
struct Small {
    inner: Counting,
    bytes_max: u64,
    /// Bytes that were written, by segment.
    written: Mutex<HashMap<u64, u64>>,
}

impl Tier for Small {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap();
        if written.values().sum::<u64>() + bytes.len() as u64 > self.bytes_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *written.entry(offset / MIB).or_default() += bytes.len() as u64;
        self.inner.write(offset, bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, bytes)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.written.lock().unwrap().remove(&(offset / MIB));
        self.inner.discard(offset, bytes)
    }
}

fn page(index: u32) -> Page {
    let mut page = sample_page(&mut Random::new(index.into()));
    page[..4].copy_from_slice(&index.to_le_bytes());
    page
}

/// What is got is flushed by its user, and does not come back to RAM.
fn store_with(spills: impl IntoIterator<Item = Spill>) -> (Store, PoolId) {
    // Of several shards, each time others would hold what.
    let store = Store::new(Config::new(BUDGET).threads(1).shards(1)).unwrap();
    spills.into_iter().for_each(|spill| store.add_spill(spill.flushed_after_gets()).unwrap());
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    (store, pool)
}

fn put(store: &Store, pool: PoolId, indexes: impl Iterator<Item = u32>) -> Vec<u32> {
    indexes.filter(|index| store.put(Key::new(pool, 0, *index), &page(*index)).is_ok()).collect()
}

fn assert_there(store: &Store, pool: PoolId, indexes: impl IntoIterator<Item = u32>) {
    let mut out = [0; PAGE_SIZE];
    for index in indexes {
        assert!(store.get(Key::new(pool, 0, index), &mut out).unwrap(), "page {index} is lost");
        assert!(out == page(index), "page {index} is another one");
    }
}

fn zpages(stats: &[SpillStats]) -> Vec<u64> {
    stats.iter().map(|file| file.zpages).collect()
}

#[test]
fn what_is_old_goes_on_to_the_next_file() {
    let reads: [Arc<AtomicU64>; 3] = std::array::from_fn(|_| Arc::default());
    let tier = |number: usize| Counting { memory: MemoryTier::new(), reads: Arc::clone(&reads[number]) };
    let files = [(0, 4), (1, 5), (2, 256)];
    let (store, pool) = store_with(files.map(|(number, mib)| Spill::new(tier(number), mib * MIB)));
    assert_eq!(put(&store, pool, 0..20_000).len(), 20_000);
    let stats = store.spill_stats();
    println!("{stats:#?}");
    assert!(zpages(&stats).iter().all(|zpages| *zpages > 300), "{stats:?}");
    assert!(stats[0].demoted >= stats[1].demoted && stats[1].demoted > 3000 && stats[2].demoted == 0, "{stats:?}");
    let sum: SpillStats = stats.iter().copied().sum();
    assert_eq!(store.stats().spill, sum);
    // The first tenth went through all files; what was put last is in RAM and in the first.
    let before = reads.each_ref().map(|reads| reads.swap(0, Relaxed));
    assert!(before[0] > 0 && before[2] == 0, "the last file is read for its own cleaning only: {before:?}");
    assert_there(&store, pool, 0..2000);
    let [first, second, third] = reads.each_ref().map(|reads| reads.swap(0, Relaxed));
    assert!(first == 0 && second < 20 && third > 1900, "{first}, {second}, {third}");
    assert_there(&store, pool, 19_000..20_000);
    let [first, second, third] = reads.each_ref().map(|reads| reads.load(Relaxed));
    assert!(first > 0 && second == 0 && third == 0, "{first}, {second}, {third}");
    // In one go over all files, and gone from all.
    let mut out = vec![[0; PAGE_SIZE]; 20_000];
    assert_eq!(store.get_range(Key::new(pool, 0, 0), &mut out).unwrap(), out.len());
    assert!((0..).zip(&out).all(|(index, out)| *out == page(index)));
    store.destroy_pool(pool);
    while store.maintain().more {}
    assert_eq!(zpages(&store.spill_stats()), [0, 0, 0]);
    assert!(store.stats().spill.file_bytes <= 3 * MIB);
}

/// A file that has other places to go is not filled to the brim, so nobody who needs room has to wait for two disks.
#[test]
fn room_is_made_ahead_of_need() {
    let (store, pool) = store_with([4, 64].map(|mib| Spill::new(MemoryTier::new(), mib * MIB)));
    for index in 0..20_000 {
        store.put(Key::new(pool, 0, index), &page(index)).unwrap();
        if index % 64 == 0 {
            while store.maintain().more {}
        }
    }
    let stats = store.spill_stats();
    assert!(stats[0].demoted > 5000 && stats[0].full == 0, "{stats:?}");
    assert_there(&store, pool, 0..20_000);
}

/// A peer has less room than anybody could know: what is old leaves it for the disk, and what is new finds room there.
#[test]
fn what_is_old_leaves_a_lent_tier_that_is_full() {
    let reads: [Arc<AtomicU64>; 2] = std::array::from_fn(|_| Arc::default());
    let tier = |number: usize| Counting { memory: MemoryTier::new(), reads: Arc::clone(&reads[number]) };
    let small = Small { inner: tier(0), bytes_max: 8 * MIB, written: Mutex::default() };
    let (store, pool) = store_with([Spill::new(Lent::new(small), 1 << 40), Spill::new(tier(1), 256 * MIB)]);
    let mut early = Vec::new();
    for index in 0..20_000 {
        store.put(Key::new(pool, 0, index), &page(index)).unwrap();
        if index % 64 == 0 {
            while store.maintain().more {}
        }
        if index == 10_000 {
            // A page of a rare size may stay in RAM much longer than those that came with it.
            let has_left = |index: &u32| store.location(Key::new(pool, 0, *index)) == Some(Location::Spilled);
            early = (0..2000).filter(has_left).collect();
        }
    }
    let stats = store.spill_stats();
    assert!(stats[0].write_failures > 0 && stats[0].demoted > 5000, "{stats:?}");
    reads.iter().for_each(|reads| reads.store(0, Relaxed));
    assert_there(&store, pool, early);
    let [first, second] = reads.each_ref().map(|reads| reads.swap(0, Relaxed));
    assert!(first == 0 && second > 1900, "{first}, {second}");
    assert_there(&store, pool, 18_500..20_000);
    let [first, second] = reads.each_ref().map(|reads| reads.load(Relaxed));
    assert!(first > 300 && second < 20, "{first}, {second}");
    assert_there(&store, pool, 0..18_500);
}

#[test]
fn files_that_are_all_full_refuse_and_keep_what_they_have() {
    let (store, pool) = store_with([4, 4, 4].map(|mib| Spill::new(MemoryTier::new(), mib * MIB)));
    let accepted = put(&store, pool, 0..30_000);
    let stats = store.spill_stats();
    assert!(accepted.len() < 30_000 && stats.iter().all(|file| file.full > 0), "{stats:?}");
    // One segment of each is kept for cleaning.
    assert!(stats.iter().all(|file| file.live_bytes > 5 * MIB / 2), "{stats:?}");
    assert_there(&store, pool, accepted.iter().copied());
    // Room in any of them is room again.
    assert!(accepted[..4000].iter().all(|index| store.flush_page(Key::new(pool, 0, *index))));
    assert_eq!(put(&store, pool, 40_000..41_000).len(), 1000);
    assert_there(&store, pool, accepted[4000..].iter().copied().chain(40_000..41_000));
}

#[test]
fn a_file_that_fails_is_passed_over() {
    for fault in [Fault::FailWrite, Fault::TearWrite] {
        let tier = FaultyTier::new(MemoryTier::new(), fault, 1, 1);
        let rate = tier.rate();
        let (store, pool) = store_with([Spill::new(tier, 64 * MIB), Spill::new(MemoryTier::new(), 64 * MIB)]);
        assert_eq!(put(&store, pool, 0..6000).len(), 6000, "{fault:?}");
        let stats = store.spill_stats();
        assert!(stats[0].write_failures > 0 && stats[0].zpages == 0 && stats[1].zpages > 1000, "{stats:?}");
        // It works again, and after a rest it is tried again.
        rate.set(0);
        let mut at = 6000;
        while store.spill_stats()[0].zpages == 0 {
            assert!(at < 60_000, "{:?}", store.spill_stats());
            put(&store, pool, at..at + 100);
            at += 100;
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_there(&store, pool, 0..at);
    }
}

/// What has to go on and cannot stays where it is.
#[test]
fn a_next_file_that_fails_costs_no_page() {
    for fault in [Fault::FailWrite, Fault::TearWrite, Fault::Full(2 * MIB)] {
        let tier = FaultyTier::new(MemoryTier::new(), fault, 2, 1);
        let rate = tier.rate();
        let (store, pool) = store_with([Spill::new(MemoryTier::new(), 4 * MIB), Spill::new(tier, 64 * MIB)]);
        let accepted = put(&store, pool, 0..12_000);
        let stats = store.spill_stats();
        assert!(stats[1].write_failures > 0 && accepted.len() > 3000, "{fault:?}: {stats:?}");
        assert_there(&store, pool, accepted.iter().copied());
        rate.set(0);
        for at in (12_000..13_000).step_by(10) {
            put(&store, pool, at..at + 10);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let stats = store.spill_stats();
        assert!(stats[0].demoted > 0, "{fault:?}: {stats:?}");
        assert_there(&store, pool, accepted);
    }
}

/// Reads that fail while a segment is emptied leave its pages where they are.
#[test]
fn what_cannot_be_read_stays_where_it_is() {
    for fault in [Fault::FailRead, Fault::CorruptRead] {
        let tier = FaultyTier::new(MemoryTier::new(), fault, 3, 1);
        let rate = tier.rate();
        let (store, pool) = store_with([Spill::new(tier, 4 * MIB), Spill::new(MemoryTier::new(), 64 * MIB)]);
        let accepted = put(&store, pool, 0..8000);
        let stats = store.spill_stats();
        assert!(stats[0].read_failures + stats[0].damaged > 0 && stats[0].demoted > 0, "{fault:?}: {stats:?}");
        rate.set(0);
        assert_there(&store, pool, accepted);
    }
}

/// A tier whose owner wants it back is left for the next one, whatever is in RAM; without a next one, as far as there is room there.
#[test]
fn a_tier_that_has_to_be_left_is_left() {
    for next in [true, false] {
        let tier = Lent::new(MemoryTier::new());
        let ends = tier.ends();
        let next = next.then(|| Spill::new(MemoryTier::new(), 64 * MIB));
        let (store, pool) = store_with([Spill::new(tier, 64 * MIB)].into_iter().chain(next));
        assert_eq!(put(&store, pool, 0..8000).len(), 8000);
        let lent = store.spill_stats()[0].zpages;
        assert_eq!(store.recall(u64::MAX), 0, "there is no room");
        assert!(lent > 4000 && store.spill_stats()[0].zpages == lent);
        ends.store(true, Relaxed);
        if store.spill_stats().len() == 1 {
            assert_eq!((store.recall(u64::MAX), store.spill_stats()[0].zpages), (0, lent));
            store.set_budget(64 * MIB);
        }
        for _ in 0..10 {
            store.recall(if store.spill_stats().len() == 1 { u64::MAX } else { 0 });
        }
        store.maintain();
        let stats = store.spill_stats();
        assert_eq!((stats[0].zpages, stats[0].file_bytes), (0, 0), "{stats:?}");
        match stats.get(1) {
            Some(next) => assert_eq!((next.zpages, stats[0].demoted, stats[0].recalled), (lent, lent, 0)),
            None => assert_eq!(stats[0].recalled, lent),
        }
        assert_there(&store, pool, 0..8000);
    }
}

#[test]
fn there_are_four_files_at_most() {
    let (store, _) = store_with((0..4).map(|_| Spill::new(MemoryTier::new(), 4 * MIB)));
    let memory = store.stats().memory_bytes;
    let error = store.add_spill(Spill::new(MemoryTier::new(), 4 * MIB)).unwrap_err();
    assert!(error.to_string().contains("4 places"), "{error}");
    assert_eq!(store.stats().memory_bytes, memory);
}
