//! The shrinker under load: persistent pages go to their owner's swap device and come from there, and nobody ever misses one
//! or sees an old one. As long as the stress test of all operations, and with the same settings.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tmem::testing::Random;
use tmem::{AllocatorKind, Config, Key, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Store, WriteBack};

use crate::stress::{Alarm, Plan, work};
use crate::{page, word};

const BUDGET_BYTES: u64 = 4 << 20;
/// Pages of each thread.
const PAGES: u32 = 1500;

/// Copies by number, and which of them is a page's only one.
#[derive(Default)]
struct Swap {
    copies: Mutex<HashMap<u64, Page>>,
    committed: Mutex<HashMap<Key, u64>>,
    next: AtomicU64,
}

impl Swap {
    /// What was committed of a page, gone from here with this call.
    fn take(&self, key: Key) -> Option<Page> {
        let copy = self.committed.lock().unwrap().remove(&key)?;
        self.copies.lock().unwrap().remove(&copy)
    }
}

impl WriteBack for Swap {
    fn write(&self, _: Key, page: &Page) -> Option<u64> {
        let copy = self.next.fetch_add(1, Relaxed);
        if copy % 16 == 15 {
            return None;
        }
        self.copies.lock().unwrap().insert(copy, *page);
        Some(copy)
    }

    fn commit(&self, key: Key, copy: u64) {
        assert!(self.committed.lock().unwrap().insert(key, copy).is_none(), "two copies of {key:?} are the only one");
    }

    fn discard(&self, _: Key, copy: u64) {
        self.copies.lock().unwrap().remove(&copy).expect("a copy that was made");
    }
}

#[test]
fn reclaim_under_load_loses_nothing() {
    let plan = Plan::from_environment();
    println!("TMEM_SEED={}, {} threads, {:?}", plan.seed, plan.threads, plan.time);
    let allocators = [AllocatorKind::Log, AllocatorKind::Zsmalloc, AllocatorKind::Xvmalloc, AllocatorKind::Zbud];
    for allocator in allocators {
        run(&plan, plan.time / allocators.len() as u32, allocator);
    }
}

fn run(plan: &Plan, time: Duration, allocator: AllocatorKind) {
    let store = Store::new(Config::new(BUDGET_BYTES).allocator(allocator).threads(3).shards(8)).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    let cache = store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
    let swap = Swap::default();
    let done = AtomicBool::new(false);
    let overshoot = AtomicU64::new(0);
    let is_hard = || {
        let stats = store.stats();
        let counts = [stats.written_back, stats.evictions, stats.reclaimed_frames, stats.second_chances];
        counts.iter().all(|count| *count > 0)
    };
    std::thread::scope(|scope| {
        for owner in 0..plan.threads {
            let (store, swap, done) = (&store, &swap, &done);
            scope.spawn(move || {
                let _alarm = Alarm(done);
                own_pages(store, [pool, cache], swap, owner, plan.seed, done);
            });
        }
        // Two shrinkers, because two may meet in a frame.
        for number in 0..2 {
            let (store, swap, done, overshoot) = (&store, &swap, &done, &overshoot);
            scope.spawn(move || {
                let _alarm = Alarm(done);
                let mut random = Random::new(plan.seed ^ (77 + number));
                while !done.load(Relaxed) {
                    match random.below(9) {
                        8 => drop(store.trim()),
                        0 => drop(store.recompress(Duration::from_micros(300))),
                        1 => drop(store.maintain()),
                        2..=4 => drop(store.balance(Some(swap))),
                        _ => drop(store.reclaim(random.below(40), Some(swap))),
                    }
                    let stats = store.stats();
                    overshoot.fetch_max(stats.memory_bytes.saturating_sub(stats.budget_bytes), Relaxed);
                    assert_eq!(stats.corrupt, 0);
                }
            });
        }
        work(time, &done, is_hard);
    });
    let (stats, overshoot) = (store.stats(), overshoot.load(Relaxed));
    println!("{allocator:?}: over the budget by {overshoot} bytes at most; {stats:?}");
    assert!(overshoot <= BUDGET_BYTES / 100, "{overshoot} bytes over the budget");
    assert!(is_hard(), "the run was too easy");
    let (copies, committed) = (swap.copies.lock().unwrap().len(), swap.committed.lock().unwrap().len());
    assert_eq!(copies, committed, "copies that nobody names");
}

/// One thread's pages: it knows the version of each, zero for none. A persistent page is in the store or in the swap device;
/// before it changes, it goes from both, from the store first: what the store does not hold cannot be committed.
fn own_pages(store: &Store, pools: [PoolId; 2], swap: &Swap, owner: u64, seed: u64, done: &AtomicBool) {
    let mut random = Random::new(seed ^ owner << 32);
    let mut versions = vec![[0; 2]; PAGES as usize];
    let mut out = [0; PAGE_SIZE];
    for step in 1.. {
        if done.load(Relaxed) {
            break;
        }
        let index = random.below(PAGES.into()) as u32;
        let kind = random.below(2) as usize;
        let key = Key::new(pools[kind], owner, index);
        let version = &mut versions[index as usize][kind];
        match random.below(8) {
            0..=2 => {
                store.flush_page(key);
                swap.take(key);
                let page = page(&mut random, owner, index, step);
                *version = match store.put(key, &page) {
                    Ok(_) => step,
                    Err(error) if error.is_no_room() => 0,
                    Err(error) => panic!("{error}"),
                };
            }
            3 => {
                store.flush_page(key);
                swap.take(key);
                *version = 0;
            }
            _ => {
                let found = store.get(key, &mut out).unwrap() || {
                    // It comes home: what was swapped out is put again.
                    let page = swap.take(key);
                    out = page.unwrap_or(out);
                    if page.is_some() && store.put(key, &out).is_err() {
                        *version = 0;
                        continue;
                    }
                    page.is_some()
                };
                if found {
                    let seen = [0, 1, 2, 511].map(|at| word(&out, at));
                    assert_eq!(seen, [owner, index.into(), *version, *version]);
                    assert_ne!(*version, 0, "a page that was flushed");
                } else {
                    assert!(*version == 0 || kind == 1, "a persistent page is lost");
                    *version = 0;
                }
            }
        }
    }
}
