//! Pages that are packed when room is needed: what stays as it is, what is packed first, and that nothing is lost or refused by it.
#![cfg(not(loom))]

use tmem::testing::{Random, sample_page};
use tmem::{
    AllocatorKind, CodecKind, Config, Key, Location, MemoryTier, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Spill,
    Store,
};

const BUDGET: u64 = 8 << 20;

fn config() -> Config {
    Config::new(BUDGET).codec(CodecKind::Lz4).threads(1).packs_late(true)
}

fn late(kind: PoolKind) -> (Store, PoolId) {
    let store = Store::new(config()).unwrap();
    let pool = store.create_pool(kind, PoolOptions::default()).unwrap();
    (store, pool)
}

fn noise(random: &mut Random) -> Page {
    std::array::from_fn(|_| random.number() as u8)
}

/// A page that packs to about a quarter.
fn text(random: &mut Random) -> Page {
    let mut page = [b' '; PAGE_SIZE];
    page[..PAGE_SIZE / 4].iter_mut().for_each(|byte| *byte = random.number() as u8);
    page
}

fn key(pool: PoolId, index: usize) -> Key {
    Key::new(pool, 1, index as u32)
}

fn is_whole(store: &Store, key: Key) -> bool {
    matches!(store.location(key), Some(Location::Ram { bytes }) if bytes as usize == PAGE_SIZE)
}

/// Puts pages until one is refused.
fn fill(store: &Store, pool: PoolId, mut page: impl FnMut() -> Page) -> Vec<Page> {
    let mut pages = Vec::new();
    loop {
        let page = page();
        match store.put(key(pool, pages.len()), &page) {
            Ok(_) => pages.push(page),
            Err(error) if error.is_no_room() => return pages,
            Err(error) => panic!("{error}"),
        }
        assert!(store.memory_bytes() <= BUDGET, "{} bytes", store.memory_bytes());
    }
}

fn assert_all(store: &Store, pool: PoolId, pages: &[Page]) {
    let mut out = [0; PAGE_SIZE];
    for (index, page) in pages.iter().enumerate() {
        assert!(store.get(key(pool, index), &mut out).unwrap(), "page {index} is gone");
        assert!(out == *page, "page {index}");
    }
}

#[test]
fn pages_stay_as_they_are_while_there_is_room_and_no_longer() {
    let (store, pool) = late(PoolKind::Persistent);
    let mut random = Random::new(1);
    let first: Vec<Page> = (0..1000).map(|_| text(&mut random)).collect();
    first.iter().enumerate().for_each(|(index, page)| {
        store.put(key(pool, index), page).unwrap();
    });
    assert!((0..1000).all(|index| is_whole(&store, key(pool, index))));
    assert_eq!(store.stats().packed_late, 0);
    let all = fill(&store, pool, || text(&mut random));
    assert_all(&store, pool, &all);
    let stats = store.stats();
    // As many as if each had been packed at once, but for a part of a region that is left over.
    let eager = Store::new(config().packs_late(false)).unwrap();
    let eager_pool = eager.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    let packed = fill(&eager, eager_pool, || text(&mut random)).len();
    println!("{} pages, {packed} if packed at once, {stats:?}", all.len());
    assert!(all.len() >= packed - packed / 50, "{} of {packed}", all.len());
    assert!(stats.unpacked_bytes < BUDGET / 50, "{} bytes", stats.unpacked_bytes);
}

#[test]
fn what_is_used_stays_as_it_is() {
    let (store, pool) = late(PoolKind::Persistent);
    let mut random = Random::new(2);
    let mut out = [0; PAGE_SIZE];
    let hot = 200;
    let mut pages = Vec::new();
    for index in 0..4000 {
        pages.push(text(&mut random));
        store.put(key(pool, index), &pages[index]).unwrap();
        if index >= hot {
            let read = random.below(hot as u64) as usize;
            assert!(store.get(key(pool, read), &mut out).unwrap() && out == pages[read]);
        }
    }
    let whole = |range: std::ops::Range<usize>| range.filter(|index| is_whole(&store, key(pool, *index))).count();
    let (used, unused) = (whole(0..hot), whole(hot..3000));
    println!("{used} of {hot} that are used, {unused} of {} that are not; {:?}", 3000 - hot, store.stats());
    assert!(used > hot * 8 / 10, "{used} of {hot}");
    assert!(unused < (3000 - hot) / 10, "{unused} of {}", 3000 - hot);
    assert_all(&store, pool, &pages);
}

#[test]
fn what_is_written_again_and_again_stays_as_it_is() {
    let (store, pool) = late(PoolKind::Persistent);
    let mut random = Random::new(3);
    let mut pages: Vec<Page> = (0..4000).map(|_| text(&mut random)).collect();
    pages.iter().enumerate().for_each(|(index, page)| {
        store.put(key(pool, index), page).unwrap();
    });
    let before = store.stats().packed_late;
    for round in 0..20_000 {
        // Nine in ten go to a twentieth of the pages.
        let index = random.below(if round % 10 > 0 { 200 } else { 4000 }) as usize;
        pages[index] = text(&mut random);
        store.put(key(pool, index), &pages[index]).unwrap();
    }
    let stats = store.stats();
    println!("{} packed for 20000 puts", stats.packed_late - before);
    assert!(stats.packed_late - before < 20_000 / 3, "{stats:?}");
    assert!(stats.memory_bytes <= BUDGET);
    assert_all(&store, pool, &pages);
}

#[test]
fn what_cannot_be_packed_takes_no_place_that_could_be() {
    let (store, pool) = late(PoolKind::Persistent);
    let mut random = Random::new(4);
    // A quarter noise, all of it first; what comes then can be packed.
    let mut left = BUDGET as usize / PAGE_SIZE / 4;
    let noisy = left;
    let pages = fill(&store, pool, || {
        left = left.saturating_sub(1);
        if left > 0 { noise(&mut random) } else { text(&mut random) }
    });
    let rest = (BUDGET as usize - noisy * PAGE_SIZE) / (PAGE_SIZE / 4 + 100);
    println!("{noisy} of noise, {} in all", pages.len());
    assert!(pages.len() - noisy > rest * 8 / 10, "{} of {rest}", pages.len() - noisy);
    assert_all(&store, pool, &pages);
}

#[test]
fn nothing_is_dropped_while_something_can_be_packed() {
    let (store, pool) = late(PoolKind::Ephemeral);
    let mut random = Random::new(5);
    let pages: Vec<Page> = (0..9000).map(|_| text(&mut random)).collect();
    for (index, page) in pages.iter().enumerate() {
        store.put(key(pool, index), page).unwrap();
        let stats = store.stats();
        if stats.evictions > 0 {
            println!("{index} pages before the first was dropped, {} unpacked bytes", stats.unpacked_bytes);
            assert!(index > 6500 && stats.unpacked_bytes < BUDGET / 20, "{stats:?}");
            return;
        }
    }
    panic!("nothing was ever dropped");
}

#[test]
fn less_ram_and_frames_that_are_asked_for_come_from_packing() {
    let (store, pool) = late(PoolKind::Persistent);
    let mut random = Random::new(6);
    let pages: Vec<Page> = (0..1800).map(|_| text(&mut random)).collect();
    pages.iter().enumerate().for_each(|(index, page)| {
        store.put(key(pool, index), page).unwrap();
    });
    let before = store.memory_bytes();
    let done = store.reclaim(300, None);
    assert!(done.frames >= 300 && done.short.is_none(), "{done:?}");
    assert!(store.memory_bytes() <= before - 300 * PAGE_SIZE as u64);
    store.set_budget(4 << 20);
    assert!(store.memory_bytes() <= 4 << 20, "{} bytes", store.memory_bytes());
    assert_all(&store, pool, &pages);
    // Until nothing is left to be packed; then it says so.
    let done = store.reclaim(10_000, None);
    assert_eq!(done.short, Some(tmem::Short::Persistent), "{done:?}");
    assert_eq!(store.stats().unpacked_bytes, 0);
    assert_all(&store, pool, &pages);
}

#[test]
fn parts_of_pages_are_what_is_there() {
    for (codec, late) in [(CodecKind::Lz4, true), (CodecKind::Lz4, false), (CodecKind::default(), false)] {
        let store = Store::new(config().codec(codec).packs_late(late)).unwrap();
        store.add_spill(Spill::new(MemoryTier::new(), 64 << 20)).unwrap();
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        let mut random = Random::new(11);
        let pages: Vec<Page> = (0..9000).map(|_| sample_page(&mut random)).collect();
        pages.iter().enumerate().for_each(|(index, page)| {
            store.put(key(pool, index), page).unwrap();
        });
        let mut left = std::collections::HashMap::<_, u32>::new();
        for _ in 0..20_000 {
            let index = random.below(pages.len() as u64) as usize;
            let start = random.below(PAGE_SIZE as u64 + 1) as usize;
            let end = start + random.below((PAGE_SIZE - start) as u64 + 1) as usize;
            *left.entry(store.location(key(pool, index)) == Some(Location::Spilled)).or_default() += 1;
            let is_there = |part: &[u8]| part == &pages[index][start..end];
            let shown = store.with_part(key(pool, index), start..end, is_there).unwrap();
            assert_eq!(shown, Some(true), "{codec:?} {late}: {start}..{end} of page {index}");
        }
        assert!(left[&true] > 100 && left[&false] > 100, "{left:?}");
        assert!(store.with_part(key(pool, pages.len()), 0..1, <[u8]>::len).unwrap().is_none());
    }
}

#[test]
fn what_is_put_aside_does_not_displace_what_is_there() {
    let (store, pool) = late(PoolKind::Persistent);
    let mut random = Random::new(12);
    let pages: Vec<Page> = (0..2400).map(|_| text(&mut random)).collect();
    pages.iter().enumerate().for_each(|(index, page)| {
        store.overwrite_aside(key(pool, index), page).unwrap();
    });
    assert!((0..1500).all(|index| is_whole(&store, key(pool, index))), "{:?}", store.stats());
    assert!((1900..2400).all(|index| !is_whole(&store, key(pool, index))), "{:?}", store.stats());
    assert_eq!(store.stats().packed_late, 0);
    assert_all(&store, pool, &pages);
}

#[test]
fn clones_share_what_is_not_packed() {
    let (store, pool) = late(PoolKind::Persistent);
    let mut random = Random::new(7);
    let pages: Vec<Page> = (0..500).map(|_| text(&mut random)).collect();
    pages.iter().enumerate().for_each(|(index, page)| {
        store.put(key(pool, index), page).unwrap();
    });
    let clone = store.clone_pool(pool).unwrap();
    store.reclaim(10_000, None);
    assert_eq!(store.stats().unpacked_bytes, 0, "all of it can leave");
    assert_all(&store, pool, &pages);
    assert_all(&store, clone, &pages);
    store.destroy_pool(pool);
    assert_all(&store, clone, &pages);
    store.destroy_pool(clone);
    assert_eq!(store.stats().zpages, 0);
}

#[test]
fn what_is_packed_late_is_spilled_then() {
    let (store, pool) = late(PoolKind::Persistent);
    store.add_spill(Spill::new(MemoryTier::new(), 64 << 20)).unwrap();
    let mut random = Random::new(8);
    let mut pages: Vec<Page> = (0..12_000).map(|_| sample_page(&mut random)).collect();
    for (index, page) in pages.iter().enumerate() {
        store.put(key(pool, index), page).unwrap();
        assert!(store.memory_bytes() <= BUDGET);
    }
    let stats = store.stats();
    assert!(stats.spill.zpages > 0 && stats.packed_late > 0, "{stats:?}");
    assert_all(&store, pool, &pages);
    for _ in 0..3000 {
        let index = random.below(pages.len() as u64) as usize;
        pages[index] = sample_page(&mut random);
        store.put(key(pool, index), &pages[index]).unwrap();
    }
    assert_all(&store, pool, &pages);
}

#[test]
fn it_is_for_one_allocator_and_for_pools_without_a_cap() {
    let mut random = Random::new(9);
    for allocator in [AllocatorKind::Log, AllocatorKind::Xvmalloc, AllocatorKind::Zbud] {
        let store = Store::new(config().allocator(allocator)).unwrap();
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        store.put(key(pool, 0), &text(&mut random)).unwrap();
        assert!(!is_whole(&store, key(pool, 0)) && store.stats().unpacked_bytes == 0, "{allocator:?}");
    }
    let store = Store::new(config()).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default().cap_bytes(Some(1 << 20))).unwrap();
    store.put(key(pool, 0), &text(&mut random)).unwrap();
    assert!(!is_whole(&store, key(pool, 0)));
}

#[test]
fn threads_that_pack_at_the_same_time_are_refused_no_sooner() {
    let store = Store::new(config().threads(4)).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let counts: Vec<usize> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                store.balance(None);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let fillers: Vec<_> = (0..3_u32)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    let mut random = Random::new(u64::from(thread) + 10);
                    let key = |index: usize| Key::new(pool, u64::from(thread), index as u32);
                    let mut pages = Vec::new();
                    loop {
                        let page = text(&mut random);
                        match store.put(key(pages.len()), &page) {
                            Ok(_) => pages.push(page),
                            Err(error) if error.is_no_room() => break,
                            Err(error) => panic!("{error}"),
                        }
                        assert!(store.memory_bytes() <= BUDGET);
                    }
                    let mut out = [0; PAGE_SIZE];
                    for (index, page) in pages.iter().enumerate() {
                        assert!(store.get(key(index), &mut out).unwrap() && out == *page, "page {index}");
                    }
                    pages.len()
                })
            })
            .collect();
        let counts = fillers.into_iter().map(|filler| filler.join().unwrap()).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        counts
    });
    let all: usize = counts.iter().sum();
    println!("{counts:?}: {all} pages; {} bytes unpacked", store.stats().unpacked_bytes);
    assert!(all > 7200, "{all} pages");
}
