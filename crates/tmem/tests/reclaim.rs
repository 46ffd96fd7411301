//! The shrinker: what goes, in which order, what stays, and what happens when pages change while it is at them.
#![cfg(not(loom))]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use tmem::testing::{Random, sample_page};
use tmem::{AllocatorKind, Config, Key, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Short, Store, WriteBack};

const ALLOCATORS: [AllocatorKind; 4] =
    [AllocatorKind::Log, AllocatorKind::Zsmalloc, AllocatorKind::Xvmalloc, AllocatorKind::Zbud];

fn store(allocator: AllocatorKind, budget: u64) -> Store {
    Store::new(Config::new(budget).allocator(allocator).threads(1)).unwrap()
}

/// Pages that no codec makes smaller than half, all of a size.
fn page(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut random = Random::new(seed);
    for word in page[..PAGE_SIZE / 2].chunks_exact_mut(8) {
        word.copy_from_slice(&random.number().to_le_bytes());
    }
    page
}

fn fill(store: &Store, pool: PoolId, indexes: std::ops::Range<u32>) {
    for index in indexes {
        store.put(Key::new(pool, 1, index), &page(index.into())).unwrap();
    }
}

fn present(store: &Store, pool: PoolId, indexes: std::ops::Range<u32>) -> Vec<u32> {
    indexes.filter(|index| store.contains(Key::new(pool, 1, *index))).collect()
}

#[test]
fn the_log_drops_the_oldest_and_every_drop_counts_toward_a_frame() {
    let store = store(AllocatorKind::Log, 64 << 20);
    let pool = store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
    fill(&store, pool, 0..4000);
    let before = store.stats();
    let pages_per_frame = before.zpages as f64 / (before.frame_bytes / PAGE_SIZE as u64) as f64;
    let done = store.reclaim(100, None);
    assert!((100..=104).contains(&done.frames), "{done:?}");
    assert_eq!((done.short, done.moved, done.second_chances, done.lost_races), (None, 0, 0, 0), "{done:?}");
    assert!(done.evicted as f64 <= (done.frames + 1) as f64 * pages_per_frame * 1.02, "{done:?}");
    let left = present(&store, pool, 0..4000);
    assert_eq!(left, (done.evicted as u32..4000).collect::<Vec<_>>(), "the oldest went, in order");
    assert_eq!(before.frame_bytes - store.stats().frame_bytes, done.frames * PAGE_SIZE as u64);
}

#[test]
fn what_was_used_stays_once() {
    let store = store(AllocatorKind::Log, 64 << 20);
    let pool = store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
    fill(&store, pool, 0..1000);
    let mut out = [0; PAGE_SIZE];
    for index in (0..500).step_by(10) {
        assert!(store.get(Key::new(pool, 1, index), &mut out).unwrap());
    }
    let done = store.reclaim(150, None);
    assert!(done.short.is_none() && done.second_chances > 20, "{done:?}");
    let left = present(&store, pool, 0..200);
    assert_eq!(left, (0..200).step_by(10).collect::<Vec<_>>());
    // All of it can go in the end.
    let done = store.reclaim(10_000, None);
    assert_eq!(done.short, Some(Short::Empty), "{done:?}");
    assert_eq!(store.stats().zpages, 0);
}

#[test]
fn pages_that_come_back_soon_stay_longer_than_pages_that_are_new() {
    let store = store(AllocatorKind::Log, 4 << 20);
    let pool = store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
    fill(&store, pool, 0..2500);
    let gone = 2500 - present(&store, pool, 0..2500).len() as u32;
    assert!(gone > 500, "{gone}");
    // The last ones that went come back; then a scan of pages that nobody asks for again.
    fill(&store, pool, gone - 200..gone);
    assert!(store.stats().refaults >= 150, "{:?}", store.stats());
    fill(&store, pool, 10_000..13_000);
    let kept = present(&store, pool, gone - 200..gone).len();
    assert!(kept >= 150, "{kept} of 200");
}

#[test]
fn without_an_owner_persistent_pages_stay() {
    for allocator in [AllocatorKind::Log, AllocatorKind::Zsmalloc] {
        let store = store(allocator, 64 << 20);
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        fill(&store, pool, 0..1000);
        let done = store.reclaim(50, None);
        assert_eq!((done.short, done.evicted), (Some(Short::Persistent), 0), "{done:?}");
        assert_eq!(present(&store, pool, 0..1000).len(), 1000);
        let empty = Store::new(Config::new(64 << 20).allocator(allocator)).unwrap();
        assert_eq!(empty.reclaim(1, None).short, Some(Short::Empty));
        assert_eq!(empty.reclaim(0, None).short, None);
    }
}

/// An owner with a swap device: a map of copies, and what it does in the middle of a write.
struct Owner<'a> {
    copies: RefCell<HashMap<u64, (Key, Page)>>,
    committed: RefCell<HashMap<Key, u64>>,
    next: Cell<u64>,
    meanwhile: Box<dyn Fn(Key) + 'a>,
    accepts: Cell<u64>,
}

impl<'a> Owner<'a> {
    fn new(meanwhile: impl Fn(Key) + 'a) -> Self {
        Self {
            copies: RefCell::default(),
            committed: RefCell::default(),
            next: Cell::new(0),
            meanwhile: Box::new(meanwhile),
            accepts: Cell::new(u64::MAX),
        }
    }

    fn page(&self, key: Key) -> Option<Page> {
        let copy = *self.committed.borrow().get(&key)?;
        Some(self.copies.borrow()[&copy].1)
    }
}

impl WriteBack for Owner<'_> {
    fn write(&self, key: Key, page: &Page) -> Option<u64> {
        if self.accepts.get() == 0 {
            return None;
        }
        self.accepts.set(self.accepts.get() - 1);
        let copy = self.next.replace(self.next.get() + 1);
        self.copies.borrow_mut().insert(copy, (key, *page));
        (self.meanwhile)(key);
        Some(copy)
    }

    fn commit(&self, key: Key, copy: u64) {
        assert_eq!(self.copies.borrow()[&copy].0, key);
        assert!(self.committed.borrow_mut().insert(key, copy).is_none());
    }

    fn discard(&self, key: Key, copy: u64) {
        assert_eq!(self.copies.borrow_mut().remove(&copy).unwrap().0, key);
    }
}

#[test]
fn written_back_pages_are_where_their_owner_put_them() {
    for allocator in [AllocatorKind::Log, AllocatorKind::Zsmalloc] {
        let store = store(allocator, 64 << 20);
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        fill(&store, pool, 0..1000);
        let owner = Owner::new(|_| ());
        let done = store.reclaim(100, Some(&owner));
        assert!(done.frames >= 100 && done.short.is_none(), "{done:?}");
        assert_eq!(done.written_back, owner.committed.borrow().len() as u64);
        let mut out = [0; PAGE_SIZE];
        for index in 0..1000 {
            let key = Key::new(pool, 1, index);
            let stored = store.get(key, &mut out).unwrap();
            let written = owner.page(key);
            assert!(stored != written.is_some(), "page {index} is in one place");
            assert!(written.unwrap_or(out) == page(index.into()));
        }
        owner.accepts.set(10);
        let done = store.reclaim(10_000, Some(&owner));
        assert_eq!((done.short, done.written_back), (Some(Short::Declined), 10), "{done:?}");
        assert!(done.declined > 0);
    }
}

#[test]
fn a_page_that_changes_during_its_write_back_is_not_taken() {
    for allocator in [AllocatorKind::Log, AllocatorKind::Zsmalloc] {
        let store = store(allocator, 64 << 20);
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        fill(&store, pool, 0..400);
        // Overwritten by a page of the same size, overwritten after a flush (in size classes it gets the same place),
        // flushed, moved to another key and back, and left alone.
        let owner = Owner::new(|key| match key.index % 5 {
            0 => drop(store.put(key, &page(u64::from(key.index) + 7777)).unwrap()),
            1 => {
                assert!(store.flush_page(key));
                store.put(key, &page(u64::from(key.index) + 7777)).unwrap();
            }
            2 => assert!(store.flush_page(key)),
            3 => {
                let index = key.index;
                store.rekey_range(pool, key.object, index..index + 1, 2.into(), index);
                store.rekey_range(pool, 2.into(), index..index + 1, key.object, index);
            }
            _ => (),
        });
        // Several times, because what the owner itself puts and flushes frees frames as well.
        let done: Vec<_> = (0..6).map(|_| store.reclaim(60, Some(&owner))).collect();
        let sum = |of: fn(&tmem::Reclaim) -> u64| done.iter().map(of).sum::<u64>();
        assert!(sum(|done| done.lost_races) > 20 && sum(|done| done.written_back) > 20, "{done:?}");
        let mut out = [0; PAGE_SIZE];
        for index in 0..400 {
            let key = Key::new(pool, 1, index);
            let touched = owner.next.get() > 0 && owner.committed.borrow().get(&key).is_none();
            match (store.get(key, &mut out).unwrap(), owner.page(key)) {
                (true, Some(_)) => panic!("page {index} is in two places"),
                (true, None) => {
                    let old = out == page(index.into());
                    let new = out == page(u64::from(index) + 7777);
                    assert!(old || (new && index % 5 < 2), "page {index}");
                }
                // The second time it is put with the same bytes again, so that the copy is as good.
                (false, Some(written)) if index % 5 < 2 => assert!(written == page(u64::from(index) + 7777)),
                (false, Some(written)) => assert!(written == page(index.into()) && index % 5 != 2, "page {index}"),
                (false, None) => assert!(touched && index % 5 == 2, "page {index} is lost"),
            }
        }
        // The owner holds no copy that it does not name.
        assert_eq!(owner.copies.borrow().len(), owner.committed.borrow().len());
    }
}

#[test]
fn pages_with_two_names_move_out_of_the_way() {
    let store = store(AllocatorKind::Log, 64 << 20);
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    fill(&store, pool, 0..300);
    let clone = store.clone_pool(pool).unwrap();
    fill(&store, pool, 300..600);
    let owner = Owner::new(|_| ());
    let done = store.reclaim(10_000, Some(&owner));
    assert_eq!((done.short, done.written_back), (Some(Short::Pinned), 300), "{done:?}");
    let mut out = [0; PAGE_SIZE];
    for index in 0..300 {
        for pool in [pool, clone] {
            assert!(store.get(Key::new(pool, 1, index), &mut out).unwrap() && out == page(index.into()));
        }
    }
}

/// A page that does not shrink is longer than a frame, with its header: moved for the few bytes with which it reaches into a
/// sparse frame it frees one and takes one, for ever.
#[test]
fn maintenance_ends_between_pages_that_do_not_shrink() {
    let store = store(AllocatorKind::Log, 64 << 20);
    let mut random = Random::new(9);
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    let mut noise = [0; PAGE_SIZE];
    for index in 0..6000 {
        noise.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.number().to_le_bytes()));
        let page = if index % 3 == 0 { noise } else { page(index.into()) };
        store.put(Key::new(pool, 1, index), &page).unwrap();
    }
    for index in (0..6000).filter(|index| index % 3 != 0) {
        store.flush_page(Key::new(pool, 1, index));
    }
    let calls = (1..=1000).find(|_| !store.maintain().more);
    let stats = store.stats();
    assert!(calls.is_some(), "{stats:?}");
    assert!(stats.frame_bytes as f64 <= stats.zpage_bytes as f64 * 1.1, "{stats:?}");
    assert!(stats.moves < 6000, "{stats:?}");
}

/// Moving what cannot leave takes a frame and frees one, sometimes a round later: that is not progress.
#[test]
fn reclaim_ends_where_everything_only_moves() {
    for (seed, allocator) in (0..40).flat_map(|seed| ALLOCATORS.map(|allocator| (seed, allocator))) {
        let store = store(allocator, 8 << 20);
        let mut random = Random::new(seed);
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        for index in 0..random.below(800) as u32 {
            store.put(Key::new(pool, 1, index), &sample_page(&mut random)).unwrap();
        }
        let owner = Owner::new(|_| ());
        store.clone_pool(pool).unwrap();
        for _ in 0..3 {
            let done = store.reclaim(10_000, Some(&owner));
            assert_eq!((done.written_back, done.short.is_some()), (0, true), "{done:?}");
        }
    }
}

#[test]
fn the_pool_over_its_share_pays_first() {
    for allocator in [AllocatorKind::Log, AllocatorKind::Zsmalloc] {
        let store = store(allocator, 8 << 20);
        let [light, heavy] =
            [1, 3].map(|weight| store.create_pool(PoolKind::Ephemeral, PoolOptions::default().weight(weight)).unwrap());
        for index in 0..20_000 {
            for pool in [light, heavy] {
                store.put(Key::new(pool, 1, index), &page(index.into())).unwrap();
            }
        }
        let [light, heavy] = [light, heavy].map(|pool| store.pool_stats(pool).unwrap().compressed_bytes);
        let ratio = heavy as f64 / light as f64;
        assert!((2.4..3.6).contains(&ratio), "{allocator:?}: {light} and {heavy} bytes");
    }
}

#[test]
fn balance_keeps_room_for_what_is_put_in_between() {
    let store = store(AllocatorKind::Log, 16 << 20);
    let pool = store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
    let mut random = Random::new(3);
    let mut waited = 0;
    for round in 0..300_u32 {
        for index in 0..100 {
            let before = store.stats().evictions;
            store.put(Key::new(pool, 1, round * 100 + index), &sample_page(&mut random)).unwrap();
            waited += u32::from(store.stats().evictions > before);
        }
        store.balance(None);
    }
    assert!(store.stats().evictions > 5000, "{:?}", store.stats());
    assert!(waited < 20, "{waited} puts had to make room themselves");
}
