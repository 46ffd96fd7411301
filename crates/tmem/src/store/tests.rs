//! The store's account of its own memory, which nobody outside can count again.

use super::*;
use crate::AllocatorKind;
use crate::key::ObjectId;
use crate::testing::{Random, sample_page};

const INDEXES: u32 = 40 * 64;

fn store(allocator: AllocatorKind) -> (Store, PoolId) {
    let store = Store::new(Config::new(32 << 20).allocator(allocator).threads(1).shards(4)).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    (store, pool)
}

/// What is charged for anything but the shards and the allocator, after the shards were counted again.
fn charged_for_others(store: &Store) -> u64 {
    let shards = store.shards.numbers().map(|number| {
        let shard = read(store.shards.get(number));
        shard.assert_valid();
        shard.heap_bytes() as u64
    });
    let usage = store.zpages.usage();
    store.budget.used() - shards.sum::<u64>() - usage.frame_bytes - usage.table_bytes
}

/// One random operation of those that make words come and go.
fn step(store: &Store, pool: PoolId, random: &mut Random) {
    let object = ObjectId::from(1);
    let index = random.below(INDEXES.into()) as u32;
    let key = Key { pool, object, index };
    match random.below(100) {
        0..=44 => {
            store.put(key, &sample_page(random)).unwrap();
        }
        45 => {
            store.flush_range(pool, object, index..index + random.below(300) as u32);
        }
        46 => {
            store.rekey_range(pool, object, index..index + 150, object, random.below(INDEXES.into()) as u32);
        }
        47 => {
            let like = Key { index: index / 2, ..key };
            let mut page = [0; PAGE_SIZE];
            if store.get(like, &mut page).unwrap() {
                store.put_like(key, &page, like);
            }
        }
        48 => {
            store.maintain();
            store.trim();
        }
        49 => {
            store.destroy_pool(store.clone_pool(pool).unwrap());
        }
        _ => {
            store.flush_page(key);
        }
    }
}

#[test]
fn what_leaves_take_is_charged_to_the_byte() {
    for allocator in [AllocatorKind::Log, AllocatorKind::Zsmalloc] {
        let (store, pool) = store(allocator);
        let mut random = Random::new(5);
        // Once through everything that stays once it is made: contexts, the tables of all parts of the directory.
        for object in 0..500 {
            store.put(Key::new(pool, object, 0), &[1; PAGE_SIZE]).unwrap();
            store.flush_object(pool, object.into());
        }
        for index in 0..INDEXES {
            store.put(Key::new(pool, 1, index), &sample_page(&mut random)).unwrap();
        }
        let mut out = [0; PAGE_SIZE];
        (0..INDEXES).for_each(|index| assert!(store.get(Key::new(pool, 1, index), &mut out).unwrap()));
        store.destroy_pool(store.clone_pool(pool).unwrap());
        store.flush_object(pool, 1.into());
        let start = charged_for_others(&store);
        for _ in 0..4 {
            for round in 0..20_000 {
                step(&store, pool, &mut random);
                if round % 1000 == 0 {
                    charged_for_others(&store);
                }
            }
            store.flush_object(pool, 1.into());
            assert_eq!(store.stats().pages, 0);
            assert_eq!(charged_for_others(&store), start);
        }
    }
}

#[test]
fn a_store_drained_at_random_gives_words_back() {
    let (store, pool) = store(AllocatorKind::default());
    let mut random = Random::new(6);
    let index_bytes = |store: &Store| -> usize {
        store.shards.numbers().map(|number| read(store.shards.get(number)).heap_bytes()).sum()
    };
    let empty = (charged_for_others(&store), index_bytes(&store));
    assert_eq!(empty.1, 0);
    for index in 0..INDEXES {
        store.put(Key::new(pool, 1, index), &[1; PAGE_SIZE]).unwrap();
    }
    let full = (store.budget.used(), index_bytes(&store));
    for index in (0..INDEXES).filter(|_| random.below(5) > 0) {
        store.flush_page(Key::new(pool, 1, index));
    }
    charged_for_others(&store);
    let drained = (store.budget.used(), index_bytes(&store));
    assert_eq!(full.0 - drained.0, (full.1 - drained.1) as u64);
    // Most leaves went from sixty-four words of eight bytes to thirty-two.
    assert!(full.1 - drained.1 >= 30 * 256, "{full:?}, {drained:?}");
}
