//! Whatever stands in a saved store: opening it ends, takes no more memory than its budget, and never panics. What opens is a store
//! that works: it can be read, saved, opened again and emptied.
//!
//! Input: one byte of choices (where to start from, whether checks are made right, which allocator), then changes to a real
//! file (where, what), or a whole file.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tmem::testing::{Random, repair_saved, sample_page};
use tmem::{AllocatorKind, Config, Key, MemoryTier, OpenOptions, PAGE_SIZE, PoolKind, PoolOptions, Spill, Store};

const BUDGET: u64 = 2 << 20;
const ALLOCATORS: [AllocatorKind; 4] =
    [AllocatorKind::Log, AllocatorKind::Zsmalloc, AllocatorKind::Zbud, AllocatorKind::Xvmalloc];

/// A small file with everything in it that there can be.
static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut store = Store::new(Config::new(4 << 20).threads(1)).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    for index in 0..16 {
        let mut page = [0; PAGE_SIZE];
        page[..4].copy_from_slice(&(index + 1_u32).to_le_bytes());
        store.put(Key::new(pool, 3, index), &page).unwrap();
    }
    for _ in 0..3 {
        store.recompress(Duration::from_secs(60));
    }
    store.put(Key::new(pool, 4, 0), &[9; PAGE_SIZE]).unwrap();
    store.put(Key::new(pool, 4, 1), &[0xff; PAGE_SIZE]).unwrap();
    store.put(Key::new(pool, 4, 70), &sample_page(&mut Random::new(1))).unwrap();
    let clone = store.clone_pool(pool).unwrap();
    store.put(Key::new(clone, 4, 70), &sample_page(&mut Random::new(5))).unwrap();
    store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
    let mut file = Vec::new();
    store.save_to(&mut file, None).unwrap();
    file
});

fuzz_target!(|input: &[u8]| {
    let Some((&choices, input)) = input.split_first() else { return };
    let mut file = if choices & 1 != 0 { input.to_vec() } else { FILE.clone() };
    if choices & 1 == 0 {
        for change in input.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % file.len();
            file[at] = change[2];
        }
    }
    if choices & 2 != 0 {
        repair_saved(&mut file);
    }
    let allocator = ALLOCATORS[usize::from(choices >> 2) % ALLOCATORS.len()];
    let mut how = OpenOptions::new(Config::new(BUDGET).threads(1).shards(2).allocator(allocator));
    if choices & 16 != 0 {
        how = how.spill(Spill::new(MemoryTier::new(), 4 << 20));
    }
    let Ok(mut store) = how.read_from(&mut &file[..]) else { return };
    let mut out = [0; PAGE_SIZE];
    for (pool, _) in store.pools() {
        for key in (0..80).flat_map(|index| [3, 4].map(|object| Key::new(pool, object, index))) {
            let _ = store.get(key, &mut out);
        }
    }
    let mut again = Vec::new();
    store.save_to(&mut again, None).unwrap();
    let twin = OpenOptions::new(Config::new(2 * BUDGET).threads(1).shards(2)).read_from(&mut &again[..]).unwrap();
    assert_eq!((twin.stats().pages, twin.stats().zpages), (store.stats().pages, store.stats().zpages));
    store.recompress(Duration::from_millis(1));
    store.maintain();
    for (pool, _) in store.pools() {
        let clone = store.clone_pool(pool);
        store.destroy_pool(pool);
        clone.map(|clone| store.destroy_pool(clone)).ok();
    }
    assert_eq!((store.stats().pages, store.stats().zpages), (0, 0));
});
