//! Recompression: cold neighbours become groups, every page of them stays what it was, and groups end when their pages do.
#![cfg(not(loom))]

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use tmem::testing::{Random, sample_page};
use tmem::{AllocatorKind, Config, Key, ObjectId, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Store};

const PAGES: u32 = 2000;
const AMPLE: Duration = Duration::from_secs(60);

/// Neighbours are of one kind, as in a heap, but no two pages are the same.
fn page(index: u32) -> Page {
    let mut page = sample_page(&mut Random::new((index / 8).into()));
    let mut random = Random::new(index.into());
    for _ in 0..100 {
        page[random.below(PAGE_SIZE as u64) as usize] = random.below(16) as u8;
    }
    page
}

fn key(pool: PoolId, index: u32) -> Key {
    Key { pool, object: ObjectId::from(7), index }
}

fn filled(kind: PoolKind, allocator: AllocatorKind) -> (Store, PoolId) {
    let store = Store::new(Config::new(64 << 20).allocator(allocator).threads(1)).unwrap();
    let pool = store.create_pool(kind, PoolOptions::default()).unwrap();
    for index in 0..PAGES {
        store.put(key(pool, index), &page(index)).unwrap();
    }
    (store, pool)
}

fn check(store: &Store, pool: PoolId, indexes: impl Iterator<Item = u32>) {
    let mut out = [0; PAGE_SIZE];
    for index in indexes {
        assert!(store.get(key(pool, index), &mut out).unwrap() && out == page(index), "page {index}");
    }
}

#[test]
fn cold_pages_take_less_and_stay_what_they_were() {
    for (kind, allocator) in
        [(PoolKind::Persistent, AllocatorKind::Zsmalloc), (PoolKind::Ephemeral, AllocatorKind::Log)]
    {
        let (store, pool) = filled(kind, allocator);
        let before = store.stats();
        let first = store.recompress(AMPLE);
        assert!(first.walked && first.groups == 0, "nothing is old at the first walk: {first:?}");
        let second = store.recompress(AMPLE);
        assert!(second.walked && second.pages > u64::from(PAGES) / 2, "{second:?}");
        while store.maintain().more {}
        store.reclaim(0, None);
        let after = store.stats();
        assert_eq!((after.pages, after.recompressed), (before.pages, second.pages));
        assert!(after.compressed_bytes < before.compressed_bytes * 95 / 100, "{before:?} {after:?}");
        assert_eq!(before.compressed_bytes - after.compressed_bytes, second.saved_bytes);
        check(&store, pool, 0..PAGES);
        check(&store, pool, (0..PAGES).rev());
        let third = store.recompress(AMPLE);
        assert!(third.groups == 0, "what was read just now is not cold: {third:?}");
        for index in 0..PAGES {
            assert!(store.flush_page(key(pool, index)));
        }
        let stats = store.stats();
        assert_eq!((stats.pages, stats.zpages, stats.zpage_bytes, stats.corrupt), (0, 0, 0, 0));
        assert_eq!(store.pool_stats(pool).unwrap().compressed_bytes, 0);
    }
}

#[test]
fn what_was_read_is_not_cold() {
    let (store, pool) = filled(PoolKind::Persistent, AllocatorKind::Zsmalloc);
    store.recompress(AMPLE);
    check(&store, pool, 0..PAGES / 2);
    let done = store.recompress(AMPLE);
    assert!(done.pages > 0 && done.pages <= u64::from(PAGES) / 2, "{done:?}");
    // Unread for two walks more, the rest follows.
    store.recompress(AMPLE);
    let done = store.recompress(AMPLE);
    assert!(done.pages > u64::from(PAGES) / 4, "{done:?}");
    check(&store, pool, 0..PAGES);
}

#[test]
fn a_group_that_has_lost_most_pages_is_taken_apart() {
    let (store, pool) = filled(PoolKind::Persistent, AllocatorKind::Zsmalloc);
    store.recompress(AMPLE);
    store.recompress(AMPLE);
    for index in (0..PAGES).filter(|index| index % 8 > 1) {
        store.flush_page(key(pool, index));
    }
    let left = || (0..PAGES).filter(|index| index % 8 <= 1);
    let sparse = store.stats();
    let done = store.recompress(AMPLE);
    assert!(done.dissolved > u64::from(PAGES) / 16, "{done:?}");
    while store.maintain().more {}
    let after = store.stats();
    assert!(after.compressed_bytes < sparse.compressed_bytes * 9 / 10, "{sparse:?} {after:?}");
    assert_eq!(after.pages, u64::from(PAGES) / 4);
    check(&store, pool, left());
}

#[test]
fn clones_and_new_keys_share_groups() {
    let (store, pool) = filled(PoolKind::Persistent, AllocatorKind::Log);
    store.recompress(AMPLE);
    store.recompress(AMPLE);
    let clone = store.clone_pool(pool).unwrap();
    store.rekey_range(pool, ObjectId::from(7), 3..1003, ObjectId::from(8), 50);
    check(&store, clone, 0..PAGES);
    check(&store, pool, (0..3).chain(1003..PAGES));
    let mut out = [0; PAGE_SIZE];
    for index in 0..1000 {
        let key = Key { pool, object: ObjectId::from(8), index: index + 50 };
        assert!(store.get(key, &mut out).unwrap() && out == page(index + 3));
    }
    store.destroy_pool(pool);
    store.recompress(AMPLE);
    store.recompress(AMPLE);
    check(&store, clone, 0..PAGES);
    store.destroy_pool(clone);
    assert_eq!(store.stats().zpages, 0);
}

/// A count that is one too high for a moment was seen once in many runs of the stress test.
#[test]
fn pages_are_not_counted_twice_while_they_are_replaced() {
    let (store, pool) = filled(PoolKind::Persistent, AllocatorKind::Zsmalloc);
    let (done, counted) = (AtomicBool::new(false), AtomicU64::new(0));
    let pages = || store.pool_stats(pool).unwrap().pages;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                assert_eq!(pages(), PAGES.into());
                counted.fetch_add(1, Relaxed);
            }
        });
        // Both ways of replacing: by a put, and by a group.
        for _ in 0..5 {
            (0..PAGES).for_each(|index| assert!(store.put(key(pool, index), &page(index)).unwrap().replaced));
            (0..2).for_each(|_| assert!(store.recompress(AMPLE).walked));
        }
        done.store(true, Relaxed);
    });
    let stats = store.stats();
    assert!(counted.into_inner() > 10_000 && stats.recompressed > u64::from(PAGES) && stats.replaced > 0, "{stats:?}");
}

#[test]
fn groups_can_be_dropped() {
    let (store, pool) = filled(PoolKind::Ephemeral, AllocatorKind::Log);
    store.recompress(AMPLE);
    assert!(store.recompress(AMPLE).pages > 0);
    let done = store.reclaim(1 << 20, None);
    assert_eq!(done.short, Some(tmem::Short::Empty), "{done:?}");
    assert_eq!(done.evicted + store.pool_stats(pool).unwrap().pages, PAGES.into());
    assert_eq!(store.stats().zpages, 0);
}

#[test]
fn pages_packed_quickly_are_packed_well_once_they_are_cold() {
    let stored = |quickly: bool| {
        let store = Store::new(Config::new(64 << 20).allocator(AllocatorKind::Zsmalloc).threads(1)).unwrap();
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        for index in 0..PAGES {
            let put = if quickly {
                store.put_quickly(key(pool, index), &page(index))
            } else {
                store.put(key(pool, index), &page(index))
            };
            put.unwrap();
        }
        check(&store, pool, 0..PAGES);
        let at_first = store.stats().compressed_bytes;
        (0..3).for_each(|_| _ = store.recompress(AMPLE));
        check(&store, pool, 0..PAGES);
        (at_first, store.stats().compressed_bytes)
    };
    let (well, quick) = (stored(false), stored(true));
    assert!(quick.0 > well.0 * 11 / 10, "{quick:?} {well:?}");
    assert!(quick.1 < quick.0 * 9 / 10, "{quick:?} {well:?}");
}
