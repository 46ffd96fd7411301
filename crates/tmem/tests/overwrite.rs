//! A full store: pages can be overwritten, what is refused leaves what was there, and nothing goes past the budget.
#![cfg(not(loom))]

use tmem::testing::{Random, sample_page};
use tmem::{AllocatorKind, Config, Key, ObjectId, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Store};

const BUDGET: u64 = 8 << 20;
const KINDS: [AllocatorKind; 4] =
    [AllocatorKind::Zsmalloc, AllocatorKind::Log, AllocatorKind::Xvmalloc, AllocatorKind::Zbud];

fn full(allocator: AllocatorKind, random: &mut Random) -> (Store, PoolId, Vec<Page>) {
    let config = Config::new(BUDGET).allocator(allocator).overwrite_bytes(256 << 10);
    let store = Store::new(config).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    let mut pages = Vec::new();
    loop {
        let page = sample_page(random);
        match store.overwrite(Key::new(pool, 1, pages.len() as u32), &page) {
            Ok(_) => pages.push(page),
            Err(error) if error.is_no_room() => return (store, pool, pages),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_store_can_be_overwritten_and_loses_nothing() {
    for allocator in KINDS {
        let mut random = Random::new(7);
        let (store, pool, mut pages) = full(allocator, &mut random);
        let (mut done, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let at = random.below(pages.len() as u64) as usize;
            // The same kinds of pages in the same proportions: as many get larger as get smaller.
            let page = sample_page(&mut random);
            match store.overwrite(Key::new(pool, 1, at as u32), &page) {
                Ok(put) => {
                    assert!(put.replaced);
                    pages[at] = page;
                    done += 1;
                }
                Err(error) => {
                    assert!(error.is_no_room(), "{error}");
                    refused += 1;
                }
            }
            assert!(store.memory_bytes() <= BUDGET, "{allocator:?}: {} bytes", store.memory_bytes());
        }
        println!("{allocator:?}: {} pages, {done} overwritten, {refused} refused", pages.len());
        assert!(done > 10 * refused, "{allocator:?}: {done} overwritten, {refused} refused");
        let mut out = [0; PAGE_SIZE];
        for (index, page) in pages.iter().enumerate() {
            assert!(store.get(Key::new(pool, 1, index as u32), &mut out).unwrap());
            assert!(out == *page, "{allocator:?}: page {index}");
        }
    }
}

#[test]
fn a_refused_put_forgets_where_a_refused_overwrite_does_not() {
    let mut random = Random::new(3);
    let (store, pool, pages) = full(AllocatorKind::Zsmalloc, &mut random);
    let mut noise = || std::array::from_fn(|_| random.number() as u8);
    let key = |index: usize| Key::new(pool, 1, index as u32);
    let refused = (0..pages.len()).find(|&index| store.overwrite(key(index), &noise()).is_err());
    let refused = refused.expect("noise everywhere does not fit");
    let mut out = [0; PAGE_SIZE];
    assert!(store.get(key(refused), &mut out).unwrap() && out == pages[refused]);
    store.put(key(refused), &noise()).unwrap_err();
    assert!(!store.get(key(refused), &mut out).unwrap());
}

#[test]
fn stretches_of_pages_are_found() {
    let store = Store::new(Config::new(BUDGET)).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    let object = ObjectId::from(1);
    for index in (100..300).chain([u32::MAX]) {
        store.put(Key::new(pool, 1, index), &[1; PAGE_SIZE]).unwrap();
    }
    assert_eq!(store.next_page(pool, object, 0..u32::MAX), Some(100));
    assert_eq!(store.next_page(pool, object, 0..100), None);
    assert_eq!(store.next_page(pool, object, 299..1000), Some(299));
    assert_eq!(store.next_page(pool, object, 300..u32::MAX), None);
    assert_eq!(store.next_page(pool, ObjectId::from(2), 0..u32::MAX), None);
    assert_eq!(store.next_gap(pool, object, 100..u32::MAX), Some(300));
    assert_eq!(store.next_gap(pool, object, 100..300), None);
    assert_eq!(store.next_gap(pool, object, 5..10), Some(5));
}
