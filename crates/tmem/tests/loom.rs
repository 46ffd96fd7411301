//! Every order in which a get, a put or a flush and a move of the same page can take the store's locks.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p tmem --test loom`
#![cfg(loom)]

use loom::sync::Arc;
use tmem::{AllocatorKind, CodecKind, Config, Key, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Store};

fn page(version: u8) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (at, byte) in page.iter_mut().enumerate() {
        *byte = version.wrapping_mul(at as u8 | 1);
    }
    page
}

/// A store with one page in a frame that compaction wants to empty.
fn store() -> (Arc<Store>, PoolId) {
    let config = Config::new(2 << 20).codec(CodecKind::Lz4).allocator(AllocatorKind::Log).threads(1).shards(1);
    let store = Store::new(config).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    store.put(Key::new(pool, 0, 0), &page(1)).unwrap();
    // Enough to pass the frame, gone again.
    for index in 1..40 {
        store.put(Key::new(pool, 0, index), &page(index as u8)).unwrap();
    }
    store.flush_range(pool, 0.into(), 1..40);
    (Arc::new(store), pool)
}

fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.max_branches = 100_000;
    // Loom's own threads have too little stack for a page and a frame's tenants.
    let test = std::sync::Arc::new(test);
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = orders.clone();
    model.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let test = test.clone();
        spawn(move || test()).join().unwrap();
    });
    let orders = orders.load(std::sync::atomic::Ordering::Relaxed);
    println!("{orders} orders");
    assert!(orders > 2, "loom tried only {orders} orders");
}

fn spawn<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> loom::thread::JoinHandle<R> {
    const STACK: usize = 1 << 16;
    loom::thread::Builder::new().stack_size(STACK).spawn(work).unwrap()
}

#[test]
fn a_get_during_a_move_finds_the_page() {
    check(|| {
        let (store, pool) = store();
        let mover = {
            let store = store.clone();
            spawn(move || store.move_sparse())
        };
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap());
        assert!(out == page(1));
        assert_eq!(mover.join().unwrap(), 1);
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == page(1));
    });
}

#[test]
fn a_put_during_a_move_wins() {
    check(|| {
        let (store, pool) = store();
        let mover = {
            let store = store.clone();
            spawn(move || store.move_sparse())
        };
        store.put(Key::new(pool, 0, 0), &page(2)).unwrap();
        mover.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == page(2));
        assert_eq!(store.stats().zpages, 1);
    });
}

#[test]
fn a_flush_during_a_move_is_not_undone() {
    check(|| {
        let (store, pool) = store();
        let mover = {
            let store = store.clone();
            spawn(move || store.move_sparse())
        };
        assert!(store.flush_page(Key::new(pool, 0, 0)));
        mover.join().unwrap();
        assert!(!store.contains(Key::new(pool, 0, 0)));
        assert_eq!(store.stats().zpages, 0);
    });
}

#[test]
fn a_shared_page_can_move_while_one_side_lets_go() {
    check(|| {
        let (store, pool) = store();
        let clone = store.clone_pool(pool).unwrap();
        let mover = {
            let store = store.clone();
            spawn(move || store.move_sparse())
        };
        assert!(store.flush_page(Key::new(pool, 0, 0)));
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(clone, 0, 0), &mut out).unwrap() && out == page(1));
        mover.join().unwrap();
        assert!(store.get(Key::new(clone, 0, 0), &mut out).unwrap() && out == page(1));
        assert_eq!(store.stats().zpages, 1);
    });
}
