//! Many threads: nobody ever sees an older page than the last one put, whatever reclaim does meanwhile.
#![cfg(not(loom))]

mod checker;
mod shrink;
mod stress;

use std::sync::atomic::{AtomicBool, Ordering};

use tmem::testing::{Random, sample_page};
use tmem::{AllocatorKind, Config, Key, ObjectId, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Store};

/// A page that says whose it is and how old.
fn page(random: &mut Random, owner: u64, index: u32, version: u64) -> Page {
    let mut page = sample_page(random);
    for (at, word) in [(0, owner), (1, index.into()), (2, version), (511, version)] {
        page[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    page
}

fn word(page: &Page, at: usize) -> u64 {
    u64::from_le_bytes(page[at * 8..at * 8 + 8].try_into().unwrap())
}

/// One thread's keys: it knows each one's version, zero for none.
fn own_keys(store: &Store, pool: PoolId, kind: PoolKind, owner: u64, steps: u32) {
    let mut random = Random::new(owner);
    let mut versions = vec![0; 400];
    let mut next = 1;
    let mut out = [0; PAGE_SIZE];
    for _ in 0..steps {
        let index = random.below(versions.len() as u64) as u32;
        let version = &mut versions[index as usize];
        let key = Key::new(pool, owner, index);
        match random.below(10) {
            0..=4 => {
                let page = page(&mut random, owner, index, next);
                *version = match store.put(key, &page) {
                    Ok(_) => next,
                    Err(error) if error.is_no_room() => 0,
                    Err(error) => panic!("{error}"),
                };
                next += 1;
            }
            5..=8 => {
                let found = store.get(key, &mut out).unwrap();
                assert!(!found || *version > 0, "a page that was flushed");
                if found {
                    let seen = [0, 1, 2, 511].map(|at| word(&out, at));
                    assert_eq!(seen, [owner, index.into(), *version, *version]);
                } else {
                    assert!(*version == 0 || kind == PoolKind::Ephemeral, "a page is lost");
                    *version = 0;
                }
            }
            _ => {
                store.flush_page(key);
                *version = 0;
            }
        }
    }
}

#[test]
fn no_thread_sees_an_old_page() {
    let allocators = [AllocatorKind::Log, AllocatorKind::Zsmalloc, AllocatorKind::Zbud, AllocatorKind::Xvmalloc];
    for (budget, allocator) in [2 << 20, 16 << 20].into_iter().flat_map(|b| allocators.map(|a| (b, a))) {
        let store = Store::new(Config::new(budget).allocator(allocator).threads(3)).unwrap();
        let kinds = [PoolKind::Ephemeral, PoolKind::Persistent];
        let pools = kinds.map(|kind| store.create_pool(kind, PoolOptions::default()).unwrap());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let background = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    store.maintain();
                    let stats = store.stats();
                    assert!(stats.memory_bytes <= budget + (64 << 10), "{stats:?}");
                }
            });
            let workers: Vec<_> = (0..4)
                .map(|owner| {
                    let (store, which) = (&store, owner as usize % 2);
                    let (pool, kind) = (pools[which], kinds[which]);
                    scope.spawn(move || own_keys(store, pool, kind, owner, 10_000))
                })
                .collect();
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            done.store(true, Ordering::Relaxed);
            background.join().unwrap();
            results.into_iter().for_each(|result| result.unwrap());
        });
        let stats = store.stats();
        assert_eq!(stats.corrupt, 0);
        println!("{stats:?}");
    }
}

/// Forks of forks, each written to by a thread of its own, while another one compacts.
#[test]
fn clones_do_not_see_each_other() {
    let store = Store::new(Config::new(64 << 20)).unwrap();
    let first = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    let mut random = Random::new(9);
    let object = ObjectId::from(0);
    for index in 0..2000 {
        let page = page(&mut random, 0, index, 1);
        store.put(Key { pool: first, object, index }, &page).unwrap();
    }
    let before = store.stats().zpages;
    let second = store.clone_pool(first).unwrap();
    let third = store.clone_pool(second).unwrap();
    assert_eq!(store.stats().zpages, before);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let background = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.maintain();
            }
        });
        let workers = [first, second, third].map(|pool| {
            let store = &store;
            scope.spawn(move || diverge(store, pool))
        });
        let results = workers.map(|worker| worker.join());
        done.store(true, Ordering::Relaxed);
        background.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
    });
    for pool in [second, first, third] {
        store.destroy_pool(pool);
    }
    assert_eq!(store.stats().zpages, 0);
}

fn diverge(store: &Store, pool: PoolId) {
    let object = ObjectId::from(0);
    let owner = u64::from(format!("{pool:?}").bytes().map(u32::from).sum::<u32>()) + 100;
    let mut random = Random::new(owner);
    let mut expected = vec![(0, 1); 2000];
    let mut out = [0; PAGE_SIZE];
    for step in 2..12_000 {
        let index = random.below(2000) as u32;
        let key = Key { pool, object, index };
        let slot = &mut expected[index as usize];
        match random.below(4) {
            0 => {
                store.put(key, &page(&mut random, owner, index, step)).unwrap();
                *slot = (owner, step);
            }
            1 => {
                store.flush_page(key);
                *slot = (0, 0);
            }
            _ => {
                assert_eq!(store.get(key, &mut out).unwrap(), slot.1 != 0);
                if slot.1 != 0 {
                    let seen = [0, 1, 2, 511].map(|at| word(&out, at));
                    assert_eq!(seen, [slot.0, index.into(), slot.1, slot.1]);
                }
            }
        }
    }
}
