//! What the store says it takes is what the process takes. Alone in its file, so that no other test's memory is in the way.
#![cfg(not(loom))]

use tmem::testing::{Random, sample_page};
use tmem::{AllocatorKind, Config, Key, PAGE_SIZE, PoolKind, PoolOptions, Stats, Store};

/// What a packing context takes at least.
const PACKER_BYTES_MIN: u64 = 40 << 10;

fn beside_frames(stats: &Stats) -> u64 {
    stats.memory_bytes - stats.frame_bytes
}

fn resident_bytes() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: i64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Within two in a hundred, and half a MiB for what the test itself and the C library take.
fn assert_honest(store: &Store, before: i64, when: &str) {
    let (said, taken) = (store.stats().memory_bytes as i64, resident_bytes() - before);
    println!("{when}: said {said}, taken {taken}");
    assert!((said - taken).abs() <= said / 50 + (512 << 10), "{when}: said {said}, taken {taken}");
}

#[test]
fn reported_memory_is_resident_memory() {
    // What crosses no frame leaves room at its end, and with zbud all of a frame but two zpages: these are no holes that
    // maintenance could close.
    for (allocator, frame_bytes_per_live_byte) in [
        (AllocatorKind::Log, 1.1),
        (AllocatorKind::Zsmalloc, 1.1),
        (AllocatorKind::Zbud, 1.6),
        (AllocatorKind::Xvmalloc, 1.25),
    ] {
        reported_by(allocator, frame_bytes_per_live_byte);
    }
}

fn reported_by(allocator: AllocatorKind, frame_bytes_per_live_byte: f64) {
    let mut random = Random::new(1);
    let page = sample_page(&mut random);
    // Once through everything, so that the code itself is resident.
    let warm = Store::new(Config::new(8 << 20).allocator(allocator)).unwrap();
    let pool = warm.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    warm.put(Key::new(pool, 1, 1), &page).unwrap();
    drop(warm);
    let before = resident_bytes();
    let store = Store::new(Config::new(128 << 20).allocator(allocator)).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    for index in 0..40_000 {
        store.put(Key::new(pool, 1, index), &sample_page(&mut random)).unwrap();
    }
    assert_honest(&store, before, "filled");
    for index in (0..40_000).filter(|index| index % 8 != 0) {
        store.flush_page(Key::new(pool, 1, index));
    }
    while store.maintain().more {}
    assert_honest(&store, before, "drained to an eighth");
    let stats = store.stats();
    println!("{:.3} frame bytes per live byte", stats.frame_bytes as f64 / stats.zpage_bytes as f64);
    assert!(stats.frame_bytes as f64 <= stats.zpage_bytes as f64 * frame_bytes_per_live_byte + 65536.0, "{stats:?}");
    while store.trim().more {}
    // Nobody packed anything between two calls.
    store.trim();
    assert_honest(&store, before, "trimmed");
    let trimmed = store.stats();
    assert!(beside_frames(&trimmed) + PACKER_BYTES_MIN <= beside_frames(&stats), "{stats:?}, then {trimmed:?}");
    assert!(trimmed.frame_bytes <= stats.frame_bytes, "{stats:?}, then {trimmed:?}");
    if allocator == AllocatorKind::Log {
        assert!(trimmed.frame_bytes as f64 <= trimmed.zpage_bytes as f64 * 1.02 + 16384.0, "{trimmed:?}");
    }
    store.put(Key::new(pool, 1, 1), &page).unwrap();
    assert!(store.get(Key::new(pool, 1, 1), &mut [0; PAGE_SIZE]).unwrap());
}
