//! Every order in which a get, a put or a flush and a move of the same page can take the store's locks.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p tmem --test loom`
#![cfg(loom)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use loom::sync::{Arc, Mutex};
use tmem::testing::Lent;
use tmem::{
    AllocatorKind, CodecKind, Config, Key, MemoryTier, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Spill, Store,
    WriteBack,
};

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
    check_with(None, test);
}

/// Every order in which at most `preemptions` times a thread is interrupted that could have gone on: the shrinker takes too
/// many locks for all orders, and two interruptions are what a race between two threads needs.
fn check_with(preemptions: Option<usize>, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.max_branches = 100_000;
    model.preemption_bound = preemptions;
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
    assert!(orders > 1, "loom tried only {orders} orders");
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
fn a_put_into_a_pool_that_is_destroyed_leaves_nothing() {
    check_with(Some(2), || {
        let (store, pool) = store();
        let putter = {
            let store = store.clone();
            spawn(move || store.put(Key::new(pool, 0, 1), &page(2)).is_ok())
        };
        assert!(store.destroy_pool(pool) > 0);
        putter.join().unwrap();
        assert!(!store.contains(Key::new(pool, 0, 0)) && !store.contains(Key::new(pool, 0, 1)));
        let stats = store.stats();
        assert_eq!((stats.pages, stats.zpages, stats.pools), (0, 0, 0));
    });
}

#[test]
fn a_clone_has_the_page_from_before_or_after_a_put() {
    check_with(Some(2), || {
        let (store, pool) = store();
        let putter = {
            let store = store.clone();
            spawn(move || store.put(Key::new(pool, 0, 0), &page(2)).map(|_| ()).unwrap())
        };
        let clone = store.clone_pool(pool).unwrap();
        putter.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == page(2));
        assert!(store.get(Key::new(clone, 0, 0), &mut out).unwrap() && (out == page(1) || out == page(2)));
        store.destroy_pool(pool);
        store.destroy_pool(clone);
        assert_eq!(store.stats().zpages, 0);
    });
}

#[test]
fn a_page_can_get_another_key_during_a_move() {
    check_with(Some(2), || {
        let (store, pool) = store();
        let mover = {
            let store = store.clone();
            spawn(move || store.move_sparse())
        };
        store.rekey_range(pool, 0.into(), 0..1, 7.into(), 70);
        mover.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(!store.contains(Key::new(pool, 0, 0)));
        assert!(store.get(Key::new(pool, 7, 70), &mut out).unwrap() && out == page(1));
        // Whoever moves it now finds it by its new owner.
        store.move_sparse();
        assert!(store.get(Key::new(pool, 7, 70), &mut out).unwrap() && out == page(1));
        assert_eq!(store.stats().zpages, 1);
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

const PREEMPTIONS: Option<usize> = Some(2);

/// A store with some pages that can be taken back, all of them in two frames.
fn full(kind: PoolKind) -> (Arc<Store>, PoolId) {
    let config = Config::new(2 << 20).codec(CodecKind::Lz4).allocator(AllocatorKind::Log).threads(1).shards(1);
    let store = Store::new(config).unwrap();
    let pool = store.create_pool(kind, PoolOptions::default()).unwrap();
    for index in 0..2 {
        store.put(Key::new(pool, 0, index), &noise(index as u8)).unwrap();
    }
    // Frames that were brought in ahead go back, so that the next one costs a page.
    store.reclaim(0, None);
    (Arc::new(store), pool)
}

/// A page that takes a frame of its own.
fn noise(version: u8) -> Page {
    let mut random = tmem::testing::Random::new(version.into());
    let mut page = [0; PAGE_SIZE];
    page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.number().to_le_bytes()));
    page
}

#[test]
fn a_get_during_reclaim_finds_the_page_or_nothing() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = full(PoolKind::Ephemeral);
        let shrinker = {
            let store = store.clone();
            spawn(move || store.reclaim(1, None))
        };
        let mut out = [0; PAGE_SIZE];
        let found = store.get(Key::new(pool, 0, 0), &mut out).unwrap();
        assert!(!found || out == noise(0));
        let done = shrinker.join().unwrap();
        assert!(done.frames >= 1 || done.short.is_some(), "{done:?}");
        let stats = store.stats();
        assert_eq!((stats.pages, stats.evictions), (stats.zpages, 2 - stats.pages));
    });
}

#[test]
fn a_flush_during_reclaim_frees_once() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = full(PoolKind::Ephemeral);
        let shrinker = {
            let store = store.clone();
            spawn(move || store.reclaim(1, None))
        };
        let flushed = store.flush_page(Key::new(pool, 0, 0));
        let done = shrinker.join().unwrap();
        let stats = store.stats();
        assert_eq!(stats.pages + done.evicted + u64::from(flushed), 2, "{done:?}");
        assert!(!store.contains(Key::new(pool, 0, 0)) && stats.pages == stats.zpages);
    });
}

/// The owner's swap device: which version of a page it holds, and how many copies nobody committed or discarded.
#[derive(Default)]
struct Owner {
    committed: Mutex<Vec<(u32, Page)>>,
    written: Mutex<Option<Page>>,
    loose: AtomicU64,
}

impl WriteBack for Owner {
    fn write(&self, _: Key, page: &Page) -> Option<u64> {
        *self.written.lock().unwrap() = Some(*page);
        self.loose.fetch_add(1, Relaxed);
        Some(0)
    }

    fn commit(&self, key: Key, _: u64) {
        self.loose.fetch_sub(1, Relaxed);
        let page = self.written.lock().unwrap().take().unwrap();
        self.committed.lock().unwrap().push((key.index, page));
    }

    fn discard(&self, _: Key, _: u64) {
        self.loose.fetch_sub(1, Relaxed);
    }
}

#[test]
fn an_overwrite_during_write_back_is_not_lost() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = full(PoolKind::Persistent);
        let owner = Arc::new(Owner::default());
        let shrinker = {
            let (store, owner) = (store.clone(), owner.clone());
            spawn(move || store.reclaim(1, Some(&*owner)))
        };
        let key = Key::new(pool, 0, 0);
        store.put(key, &noise(9)).unwrap();
        shrinker.join().unwrap();
        assert_eq!(owner.loose.load(Relaxed), 0);
        // The new version is in the store, or it was written back itself. Never is the old one alone left.
        let mut out = [0; PAGE_SIZE];
        let committed = owner.committed.lock().unwrap();
        let last = committed.iter().rev().find(|(index, _)| *index == 0).map(|(_, page)| *page);
        assert!(match store.get(key, &mut out).unwrap() {
            true => out == noise(9),
            false => last == Some(noise(9)),
        });
    });
}

#[test]
fn two_shrinkers_side_by_side_take_each_page_once() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = full(PoolKind::Persistent);
        let owners = [(); 2].map(|()| Arc::new(Owner::default()));
        let shrinker = {
            let (store, owner) = (store.clone(), owners[1].clone());
            spawn(move || store.reclaim(1, Some(&*owner)))
        };
        let first = store.reclaim(1, Some(&*owners[0]));
        let second = shrinker.join().unwrap();
        let mut places = [0; 2];
        for owner in &owners {
            assert_eq!(owner.loose.load(Relaxed), 0);
            owner.committed.lock().unwrap().iter().for_each(|(index, page)| {
                places[*index as usize] += 1;
                assert!(*page == noise(*index as u8));
            });
        }
        for index in 0..2 {
            places[index as usize] += u32::from(store.contains(Key::new(pool, 0, index)));
        }
        assert_eq!(places, [1, 1], "{first:?} {second:?}");
        assert!(store.stats().pages == store.stats().zpages);
    });
}

#[test]
fn puts_that_make_room_at_the_same_time_keep_to_the_budget() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = full(PoolKind::Ephemeral);
        // No room for one more: what is there has to go first.
        let budget = store.stats().memory_bytes + (64 << 10);
        store.set_budget(budget);
        let putter = {
            let store = store.clone();
            spawn(move || store.put(Key::new(pool, 0, 2), &noise(2)).is_ok())
        };
        let own = store.put(Key::new(pool, 0, 3), &noise(3)).is_ok();
        let other = putter.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        for (index, accepted) in [(2, other), (3, own)] {
            let found = store.get(Key::new(pool, 0, index), &mut out).unwrap();
            assert!(!found || (accepted && out == noise(index as u8)));
        }
        let stats = store.stats();
        assert!(stats.memory_bytes <= stats.budget_bytes, "{stats:?}");
    });
}

#[test]
fn a_put_during_recompression_wins() {
    check_with(PREEMPTIONS, || {
        let config = Config::new(2 << 20).codec(CodecKind::Lz4).allocator(AllocatorKind::Log).threads(1).shards(1);
        let store = Arc::new(Store::new(config).unwrap());
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        for index in 0..4 {
            let mut page = noise(0);
            page[2048..].fill(index as u8);
            store.put(Key::new(pool, 0, index), &page).unwrap();
        }
        store.recompress(Duration::from_secs(60));
        let walker = {
            let store = store.clone();
            spawn(move || store.recompress(Duration::from_secs(60)))
        };
        store.put(Key::new(pool, 0, 1), &noise(7)).unwrap();
        let done = walker.join().unwrap();
        // None of both if the put came before the walk.
        assert!(done.groups + done.lost_races <= 1, "{done:?}");
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 1), &mut out).unwrap() && out == noise(7));
        assert!(
            store.get(Key::new(pool, 0, 3), &mut out).unwrap() && out[4000] == 3 && out[..2048] == noise(0)[..2048]
        );
        store.flush_range(pool, 0.into(), 0..4);
        assert_eq!(store.stats().zpages, 0);
    });
}

/// A full store that can spill. Under loom a segment of the file is as long as a write, so that each write ends one.
fn spilling() -> (Arc<Store>, PoolId) {
    let (store, pool) = full(PoolKind::Persistent);
    store.add_spill(Spill::new(MemoryTier::new(), 4 * (64 << 10)).plain()).unwrap();
    (store, pool)
}

/// The same after its two pages were spilled. There is no room for them to come back if `full`.
fn spilled(full: bool) -> (Arc<Store>, PoolId) {
    let (store, pool) = spilling();
    store.reclaim(2, None);
    assert_eq!((store.stats().zpages, store.stats().spill.zpages), (0, 2));
    if full {
        store.set_budget(1 << 20);
    }
    (store, pool)
}

/// Two pages in the first of two files, from where they do not come back to RAM.
fn spilled_to_the_first_of_two() -> (Arc<Store>, PoolId) {
    let (store, pool) = full(PoolKind::Persistent);
    for _ in 0..2 {
        store.add_spill(Spill::new(MemoryTier::new(), 4 * (64 << 10)).plain().flushed_after_gets()).unwrap();
    }
    store.reclaim(2, None);
    assert_eq!(store.spill_stats()[0].zpages, 2);
    (store, pool)
}

/// Pages that are stored, wherever.
fn zpages(store: &Store) -> u64 {
    let stats = store.stats();
    assert_eq!((stats.corrupt, stats.spill.damaged), (0, 0));
    stats.zpages + stats.spill.zpages
}

#[test]
fn a_get_during_a_spill_finds_the_page() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = spilling();
        let shrinker = {
            let store = store.clone();
            spawn(move || store.reclaim(1, None))
        };
        let mut out = [0; PAGE_SIZE];
        for _ in 0..2 {
            assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == noise(0));
        }
        shrinker.join().unwrap();
        assert!(store.get(Key::new(pool, 0, 1), &mut out).unwrap() && out == noise(1));
        assert_eq!(zpages(&store), 2);
    });
}

#[test]
fn a_flush_during_a_spill_is_not_undone() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = spilling();
        let shrinker = {
            let store = store.clone();
            spawn(move || store.reclaim(1, None))
        };
        assert!(store.flush_page(Key::new(pool, 0, 0)));
        shrinker.join().unwrap();
        assert!(!store.contains(Key::new(pool, 0, 0)));
        assert_eq!(zpages(&store), 1);
    });
}

#[test]
fn a_put_during_a_spill_wins() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = spilling();
        let shrinker = {
            let store = store.clone();
            spawn(move || store.reclaim(1, None))
        };
        store.put(Key::new(pool, 0, 0), &noise(9)).unwrap();
        shrinker.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == noise(9));
        assert_eq!(zpages(&store), 2);
    });
}

/// With size classes, what is put next lies where the flushed page lay: its handle is the one that the spill has seen.
#[test]
fn another_page_in_the_same_place_is_not_taken_for_the_one_that_was_spilled() {
    check_with(PREEMPTIONS, || {
        let config = Config::new(2 << 20).codec(CodecKind::Lz4).allocator(AllocatorKind::Zsmalloc).threads(1).shards(1);
        let store = Arc::new(Store::new(config).unwrap());
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        store.put(Key::new(pool, 0, 0), &noise(0)).unwrap();
        store.reclaim(0, None);
        store.add_spill(Spill::new(MemoryTier::new(), 4 * (64 << 10)).plain()).unwrap();
        let shrinker = {
            let store = store.clone();
            spawn(move || store.reclaim(8, None))
        };
        store.flush_page(Key::new(pool, 0, 0));
        store.put(Key::new(pool, 0, 0), &noise(9)).unwrap();
        shrinker.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == noise(9));
        assert_eq!(zpages(&store), 1);
    });
}

/// Two pages that lie as they are. Packing them races with a put, a get and a flush.
fn unpacked() -> (Arc<Store>, PoolId) {
    let config = Config::new(2 << 20).codec(CodecKind::Lz4).threads(2).shards(1).packs_late(true);
    let store = Arc::new(Store::new(config).unwrap());
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    for index in 0..2 {
        store.put(Key::new(pool, 0, index), &page(index as u8 + 1)).unwrap();
    }
    assert!(store.stats().unpacked_bytes > 0);
    (store, pool)
}

#[test]
fn what_changes_while_it_is_packed_late_stays_changed() {
    let packed = std::sync::Arc::new(AtomicU64::new(0));
    let most = std::sync::Arc::clone(&packed);
    check_with(PREEMPTIONS, move || {
        let (store, pool) = unpacked();
        let packer = {
            let store = store.clone();
            spawn(move || store.pack_late())
        };
        store.put(Key::new(pool, 0, 0), &page(9)).unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 1), &mut out).unwrap() && out == page(2));
        packer.join().unwrap();
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == page(9));
        assert!(store.get(Key::new(pool, 0, 1), &mut out).unwrap() && out == page(2));
        assert_eq!(zpages(&store), 2);
        most.fetch_max(store.stats().packed_late, Relaxed);
    });
    assert_eq!(packed.load(Relaxed), 2, "both can be packed");
}

#[test]
fn what_is_flushed_while_it_is_packed_late_is_gone() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = unpacked();
        let packer = {
            let store = store.clone();
            spawn(move || store.pack_late())
        };
        // What comes next lies where the flushed page lay.
        assert!(store.flush_page(Key::new(pool, 0, 0)));
        store.put(Key::new(pool, 0, 0), &page(9)).unwrap();
        assert!(store.flush_page(Key::new(pool, 0, 1)));
        packer.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == page(9));
        assert!(!store.contains(Key::new(pool, 0, 1)));
        assert_eq!(zpages(&store), 1);
    });
}

#[test]
fn a_clone_while_a_page_is_packed_late_has_it() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = unpacked();
        let packer = {
            let store = store.clone();
            spawn(move || store.pack_late())
        };
        let clone = store.clone_pool(pool).unwrap();
        store.flush_page(Key::new(pool, 0, 0));
        packer.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(clone, 0, 0), &mut out).unwrap() && out == page(1));
        assert!(store.get(Key::new(pool, 0, 1), &mut out).unwrap() && out == page(2));
        assert_eq!(zpages(&store), 2);
    });
}

#[test]
fn a_clone_during_a_spill_has_the_page() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = spilling();
        let shrinker = {
            let store = store.clone();
            spawn(move || store.reclaim(1, None))
        };
        let clone = store.clone_pool(pool).unwrap();
        store.flush_page(Key::new(pool, 0, 0));
        shrinker.join().unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(clone, 0, 0), &mut out).unwrap() && out == noise(0));
        assert_eq!(zpages(&store), 2);
        store.destroy_pool(clone);
        assert_eq!(zpages(&store), 1);
    });
}

/// What goes on to another file is replaced, flushed and read meanwhile.
#[test]
fn what_changes_while_it_goes_on_to_the_next_file_stays_changed() {
    let went_on = std::sync::Arc::new(AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&went_on);
    check_with(PREEMPTIONS, move || {
        let (store, pool) = spilled_to_the_first_of_two();
        let mover = {
            let store = store.clone();
            spawn(move || store.demote_oldest())
        };
        store.put(Key::new(pool, 0, 0), &noise(9)).unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 1), &mut out).unwrap() && out == noise(1));
        mover.join().unwrap();
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == noise(9));
        assert!(store.get(Key::new(pool, 0, 1), &mut out).unwrap() && out == noise(1));
        assert_eq!(zpages(&store), 2);
        seen.fetch_or(store.spill_stats()[1].zpages > 0, Relaxed);
    });
    assert!(went_on.load(Relaxed), "nothing ever went on");
}

#[test]
fn what_is_flushed_while_it_goes_on_to_the_next_file_is_gone() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = spilled_to_the_first_of_two();
        let mover = {
            let store = store.clone();
            spawn(move || store.demote_oldest())
        };
        assert!(store.flush_page(Key::new(pool, 0, 0)));
        mover.join().unwrap();
        assert!(!store.contains(Key::new(pool, 0, 0)));
        assert_eq!(zpages(&store), 1);
    });
}

/// What comes back to RAM by itself is replaced, flushed and read meanwhile.
#[test]
fn what_changes_while_it_is_called_back_stays_changed() {
    let came = std::sync::Arc::new(AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&came);
    check_with(PREEMPTIONS, move || {
        let (store, pool) = full(PoolKind::Persistent);
        store.add_spill(Spill::new(Lent::new(MemoryTier::new()), 4 * (64 << 10)).plain()).unwrap();
        store.reclaim(2, None);
        assert_eq!(store.stats().spill.zpages, 2);
        let caller = {
            let store = store.clone();
            spawn(move || store.recall(u64::MAX))
        };
        store.put(Key::new(pool, 0, 0), &noise(9)).unwrap();
        let mut out = [0; PAGE_SIZE];
        assert!(store.get(Key::new(pool, 0, 1), &mut out).unwrap() && out == noise(1));
        assert!(store.flush_page(Key::new(pool, 0, 1)));
        caller.join().unwrap();
        assert!(store.get(Key::new(pool, 0, 0), &mut out).unwrap() && out == noise(9));
        assert_eq!(zpages(&store), 1);
        seen.fetch_or(store.stats().spill.recalled > 0, Relaxed);
    });
    assert!(came.load(Relaxed), "nothing ever came back");
}

/// The segment that the reader reads from is drained and filled again as soon as that is allowed.
#[test]
fn a_get_never_reads_what_comes_later() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = spilled(true);
        let reader = {
            let store = store.clone();
            spawn(move || {
                let mut out = [0; PAGE_SIZE];
                store.get(Key::new(pool, 0, 0), &mut out).unwrap().then_some(out)
            })
        };
        for index in 0..2 {
            store.flush_page(Key::new(pool, 0, index));
        }
        for index in 0..2 {
            // In the place of one page now lies the other one's.
            store.put(Key::new(pool, 0, 1 - index), &noise(5 + index as u8)).unwrap();
        }
        store.reclaim(0, None);
        store.reclaim(2, None);
        assert!(store.stats().spill.spilled >= 4);
        let page = reader.join().unwrap();
        assert!(page.is_none_or(|page| page == noise(0) || page == noise(6)));
        assert_eq!(zpages(&store), 2);
    });
}

#[test]
fn a_page_that_comes_back_while_it_is_flushed_is_gone() {
    check_with(PREEMPTIONS, || {
        let (store, pool) = spilled(false);
        let reader = {
            let store = store.clone();
            spawn(move || {
                let mut out = [0; PAGE_SIZE];
                store.get(Key::new(pool, 0, 0), &mut out).unwrap().then_some(out)
            })
        };
        assert!(store.flush_page(Key::new(pool, 0, 0)));
        let page = reader.join().unwrap();
        assert!(page.is_none_or(|page| page == noise(0)));
        assert!(!store.contains(Key::new(pool, 0, 0)));
        assert_eq!(zpages(&store), 1);
    });
}

#[test]
fn one_of_two_exclusive_gets_takes_a_spilled_page() {
    check_with(PREEMPTIONS, || {
        let config = Config::new(2 << 20).codec(CodecKind::Lz4).allocator(AllocatorKind::Log).threads(1).shards(1);
        let store = Arc::new(Store::new(config).unwrap());
        let options = PoolOptions::default().exclusive_gets(true);
        let pool = store.create_pool(PoolKind::Persistent, options).unwrap();
        for index in 0..2 {
            store.put(Key::new(pool, 0, index), &noise(index as u8)).unwrap();
        }
        store.reclaim(0, None);
        store.add_spill(Spill::new(MemoryTier::new(), 4 * (64 << 10)).plain()).unwrap();
        store.reclaim(2, None);
        assert_eq!(store.stats().spill.zpages, 2);
        let get = move |store: &Store| {
            let mut out = [0; PAGE_SIZE];
            let found = store.get(Key::new(pool, 0, 0), &mut out).unwrap();
            assert!(!found || out == noise(0));
            u32::from(found)
        };
        let other = {
            let store = store.clone();
            spawn(move || get(&store))
        };
        let own = get(&store);
        assert_eq!(own + other.join().unwrap(), 1);
        assert_eq!(zpages(&store), 1);
    });
}
