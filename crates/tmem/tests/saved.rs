//! Stores that are saved and opened again: all pages come back, into any other kind of store, and a file that is not what was
//! written is refused.
#![cfg(not(loom))]

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use tmem::testing::{Random, repair_saved, sample_page};
use tmem::{
    AllocatorKind, CodecKind, Config, Error, ErrorKind, Fault, FaultyTier, FileTier, Key, MemoryTier, OpenOptions,
    PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Spill, Store,
};

const ALLOCATORS: [AllocatorKind; 4] =
    [AllocatorKind::Log, AllocatorKind::Zsmalloc, AllocatorKind::Zbud, AllocatorKind::Xvmalloc];
const CODECS: [CodecKind; 2] = [CodecKind::Lz4, CodecKind::Zstd { level: -1 }];
const KEY: [u8; 32] = [7; 32];

fn page(index: u32) -> Page {
    let mut page = sample_page(&mut Random::new((index / 8).into()));
    page[..4].copy_from_slice(&index.to_le_bytes());
    page
}

fn config(budget_bytes: u64) -> Config {
    Config::new(budget_bytes).threads(1)
}

fn filled(config: Config, pages: u32) -> (Store, PoolId) {
    let store = Store::new(config).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    put_all(&store, pool, 0..pages);
    (store, pool)
}

fn put_all(store: &Store, pool: PoolId, indexes: std::ops::Range<u32>) {
    for index in indexes {
        store.put(Key::new(pool, 3, index), &page(index)).unwrap();
    }
}

fn assert_all(store: &Store, pool: PoolId, indexes: std::ops::Range<u32>) {
    let mut out = [0; PAGE_SIZE];
    for index in indexes {
        assert!(store.get(Key::new(pool, 3, index), &mut out).unwrap(), "page {index} is lost");
        assert!(out == page(index), "page {index} is another one");
    }
}

fn saved(store: &mut Store) -> Vec<u8> {
    let mut file = Vec::new();
    let saved = store.save_to(&mut file, None).unwrap();
    assert_eq!(saved.bytes, file.len() as u64);
    file
}

fn open(file: &[u8]) -> Result<Store, Error> {
    OpenOptions::new(config(4 << 20)).read_from(&mut &*file)
}

/// A directory of its own, removed when the test has passed.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tmem-saved-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> usize {
        std::fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn a_store_comes_back_with_every_codec_into_every_allocator() {
    for codec in CODECS {
        let (mut store, pool) = filled(config(32 << 20).codec(codec), 3000);
        let other = store.create_pool(PoolKind::Persistent, PoolOptions::default().exclusive_gets(true)).unwrap();
        put_all(&store, other, 50..60);
        let cache = store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
        put_all(&store, cache, 0..100);
        let before = store.stats();
        let file = saved(&mut store);
        let after = store.stats();
        assert_eq!((after.memory_bytes, after.pages), (before.memory_bytes, before.pages), "saving changes nothing");
        for allocator in ALLOCATORS {
            let opened = OpenOptions::new(config(32 << 20).allocator(allocator).codec(CODECS[0]));
            let opened = opened.read_from(&mut &file[..]).unwrap();
            let stats = opened.stats();
            assert_eq!(stats.pages, 3010);
            assert_eq!(stats.same_filled, before.same_filled);
            assert_eq!(opened.pools(), store.pools());
            assert_eq!(opened.pool_stats(pool), store.pool_stats(pool), "packed pages are as they were");
            assert_all(&opened, pool, 0..3000);
            assert_all(&opened, other, 50..60);
            assert!(!opened.contains(Key::new(other, 3, 55)), "gets from this pool take pages");
            assert!(!opened.contains(Key::new(cache, 3, 5)) && !opened.contains(Key::new(pool, 3, 3000)));
            // It is a store like any other.
            put_all(&opened, pool, 3000..4000);
            put_all(&opened, cache, 0..10);
            assert_eq!(opened.flush_range(pool, 3.into(), 0..2000), 2000);
            while opened.maintain().more {}
            assert_all(&opened, pool, 2000..4000);
            assert_eq!(opened.destroy_pool(pool), 2000);
            let stats = opened.stats();
            assert_eq!((stats.pages, stats.zpages), (10, stats.pages - stats.same_filled));
        }
    }
}

#[test]
fn clones_and_groups_come_back_as_such() {
    let (mut store, pool) = filled(config(32 << 20), 2000);
    let cache = store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
    put_all(&store, cache, 0..500);
    for _ in 0..3 {
        store.recompress(Duration::from_secs(60));
    }
    assert!(store.stats().recompressed > 1000);
    put_all(&store, pool, 2000..2500);
    let clone = store.clone_pool(pool).unwrap();
    store.rekey_range(clone, 3.into(), 100..200, 3.into(), 5000);
    store.flush_range(pool, 3.into(), 0..50);
    store.flush_range(clone, 3.into(), 0..30);
    store.destroy_pool(cache);
    let before = store.stats();
    let file = saved(&mut store);
    for allocator in ALLOCATORS {
        let opened = OpenOptions::new(config(32 << 20).allocator(allocator)).read_from(&mut &file[..]).unwrap();
        let stats = opened.stats();
        assert_eq!((stats.pages, stats.zpages), (before.pages, before.zpages));
        assert_eq!(stats.compressed_bytes, before.compressed_bytes);
        for pool in [pool, clone] {
            assert_eq!(opened.pool_stats(pool), store.pool_stats(pool));
        }
        assert_all(&opened, pool, 50..2500);
        assert_all(&opened, clone, 30..100);
        assert_all(&opened, clone, 200..2500);
        let mut out = [0; PAGE_SIZE];
        assert!(opened.get(Key::new(clone, 3, 5050), &mut out).unwrap() && out == page(150));
        assert_eq!(opened.destroy_pool(pool), 2450);
        assert_all(&opened, clone, 30..100);
        opened.destroy_pool(clone);
        assert_eq!((opened.stats().pages, opened.stats().zpages), (0, 0));
    }
}

#[test]
fn names_of_pools_that_are_gone_stay_unused() {
    let (mut store, pool) = filled(config(4 << 20), 10);
    let options = PoolOptions::default().frozen(true).cap_bytes(Some(1 << 20));
    let dead = store.create_pool(PoolKind::Persistent, options.clone()).unwrap();
    store.destroy_pool(dead);
    let mut opened = open(&saved(&mut store)).unwrap();
    assert_eq!(opened.pools(), [(pool, PoolKind::Persistent)]);
    assert_eq!(PoolId::from_bits(pool.to_bits()), pool);
    let frozen = opened.create_pool(PoolKind::Persistent, options).unwrap();
    assert_ne!(frozen, dead);
    let again = open(&saved(&mut opened)).unwrap();
    let key = Key::new(frozen, 0, 0);
    assert!(again.put(key, &page(1)).unwrap_err().is_frozen());
    again.set_frozen(frozen, false);
    let put_many = (0..3000).try_for_each(|index| again.put(Key::new(frozen, 0, index), &page(index)).map(|_| ()));
    assert!(matches!(put_many.unwrap_err().kind(), ErrorKind::PoolFull { cap: 0x10_0000 }));
}

#[test]
fn an_empty_store_comes_back() {
    let mut store = Store::new(config(4 << 20)).unwrap();
    let opened = open(&saved(&mut store)).unwrap();
    assert_eq!((opened.stats().pages, opened.pools().len()), (0, 0));
}

#[test]
fn spilled_pages_are_saved_and_what_does_not_fit_is_spilled() {
    for plain in [false, true] {
        let spill = || {
            let spill = Spill::new(MemoryTier::new(), 64 << 20);
            if plain { spill.plain() } else { spill }
        };
        let store = Store::new(config(2 << 20)).unwrap();
        store.add_spill(spill()).unwrap();
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        put_all(&store, pool, 0..6000);
        assert!(store.stats().spill.zpages > 1000);
        let mut store = store;
        let file = saved(&mut store);
        drop(store);
        for allocator in ALLOCATORS {
            let small = config(2 << 20).allocator(allocator);
            let opened = OpenOptions::new(small).spill(spill()).read_from(&mut &file[..]).unwrap();
            let stats = opened.stats();
            assert!(stats.memory_bytes <= 2 << 20 && stats.spill.zpages > 1000, "{stats:?}");
            assert_all(&opened, pool, 0..6000);
            let large = OpenOptions::new(config(32 << 20).allocator(allocator)).read_from(&mut &file[..]).unwrap();
            assert_all(&large, pool, 0..6000);
            let error = OpenOptions::new(config(2 << 20).allocator(allocator)).read_from(&mut &file[..]).unwrap_err();
            let &ErrorKind::SavedNoRoom { budget, needed } = error.kind() else { panic!("{error}") };
            let enough = OpenOptions::new(config(needed).allocator(allocator)).read_from(&mut &file[..]).unwrap();
            let stats = enough.stats();
            println!("{allocator:?}: {budget} of {needed}, {} in use", stats.memory_bytes);
            assert!(stats.memory_bytes <= needed && stats.memory_bytes * 4 / 3 > needed, "{needed}: {stats:?}");
            assert_all(&enough, pool, 0..6000);
        }
    }
}

#[test]
fn a_full_store_opens_within_its_own_budget_with_a_spill_file() {
    for allocator in ALLOCATORS {
        let mut store = Store::new(config(8 << 20).allocator(allocator)).unwrap();
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        let taken =
            (0..).take_while(|index| store.put(Key::new(pool, 3, *index), &page(*index)).is_ok()).count() as u32;
        let file = saved(&mut store);
        let spill = Spill::new(MemoryTier::new(), 16 << 20);
        let opened = OpenOptions::new(config(8 << 20).allocator(allocator)).spill(spill).read_from(&mut &file[..]);
        let opened = opened.unwrap();
        assert!(opened.stats().memory_bytes <= 8 << 20);
        assert_all(&opened, pool, 0..taken);
    }
}

#[test]
fn a_key_opens_what_it_encrypted_and_nothing_else() {
    let (mut store, pool) = filled(config(8 << 20), 400);
    let mut file = Vec::new();
    store.save_to(&mut file, Some(&KEY)).unwrap();
    let mut again = Vec::new();
    store.save_to(&mut again, Some(&KEY)).unwrap();
    assert!(file.len() == again.len() && file[128..] != again[128..], "each file has a key of its own");
    let with = |key: &[u8; 32], file: &[u8]| OpenOptions::new(config(8 << 20)).key(key).read_from(&mut &*file);
    assert_all(&with(&KEY, &file).unwrap(), pool, 0..400);
    for refused in [with(&[8; 32], &file), open(&file), with(&KEY, &saved(&mut store))] {
        let error = refused.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::SavedKey { .. }), "{error}");
    }
    let shown = format!("{:?}", OpenOptions::new(config(8 << 20)).key(&KEY));
    assert!(!shown.contains("key") && !shown.contains("7, 7"), "{shown}");
    // A page that does not shrink stands in a plain file as it is.
    let holds = |file: &[u8], index| file.windows(64).any(|window| window == &page(index)[1024..1088]);
    let plain = saved(&mut store);
    let raw = (0..400).step_by(8).find(|index| holds(&plain, *index)).unwrap();
    assert!(!holds(&file, raw));
}

/// A small store with everything in it that a file can hold.
fn small() -> (Store, PoolId) {
    let (store, pool) = filled(config(4 << 20), 0);
    let packed = |index: u32| {
        let mut page = [0; PAGE_SIZE];
        page[..4].copy_from_slice(&(index + 1).to_le_bytes());
        page
    };
    for index in 0..16 {
        store.put(Key::new(pool, 3, index), &packed(index / 8 * 3 + index % 8)).unwrap();
    }
    for _ in 0..3 {
        store.recompress(Duration::from_secs(60));
    }
    assert!(store.stats().recompressed > 0);
    store.put(Key::new(pool, 4, 0), &[9; PAGE_SIZE]).unwrap();
    store.put(Key::new(pool, 4, 1), &[0xff; PAGE_SIZE]).unwrap();
    store.put(Key::new(pool, 4, 70), &packed(1000)).unwrap();
    let clone = store.clone_pool(pool).unwrap();
    store.put(Key::new(clone, 4, 70), &packed(77)).unwrap();
    store.create_pool(PoolKind::Ephemeral, PoolOptions::default()).unwrap();
    (store, pool)
}

#[test]
fn a_file_that_ends_anywhere_else_is_torn() {
    let (mut store, _) = small();
    let mut encrypted = Vec::new();
    store.save_to(&mut encrypted, Some(&KEY)).unwrap();
    for (file, key) in [(saved(&mut store), None), (encrypted, Some(&KEY))] {
        println!("{} bytes", file.len());
        let open = |file: &[u8]| match key {
            Some(key) => OpenOptions::new(config(4 << 20)).key(key).read_from(&mut &*file),
            None => open(file),
        };
        assert!(open(&file).is_ok());
        for len in 0..file.len() {
            let error = open(&file[..len]).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::SavedTorn { at } if *at == len as u64), "{len}: {error}");
        }
        let longer = [&file[..], &[0]].concat();
        let error = open(&longer).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::SavedDamaged { at, .. } if *at == file.len() as u64), "{error}");
    }
}

#[test]
fn a_file_of_which_any_bit_is_another_one_is_refused() {
    let (mut store, _) = small();
    let mut encrypted = Vec::new();
    store.save_to(&mut encrypted, Some(&KEY)).unwrap();
    for (mut file, key) in [(saved(&mut store), None), (encrypted, Some(&KEY))] {
        for bit in 0..file.len() * 8 {
            file[bit / 8] ^= 1 << (bit % 8);
            let opened = match key {
                Some(key) => OpenOptions::new(config(4 << 20)).key(key).read_from(&mut &file[..]),
                None => open(&file),
            };
            let error = opened.expect_err("a bit is another one");
            match error.kind() {
                ErrorKind::SavedForeign => assert!(bit < 64),
                ErrorKind::SavedDamaged { at, .. } => assert!(*at <= bit as u64 / 8, "bit {bit}: {error}"),
                _ => panic!("bit {bit}: {error}"),
            }
            file[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn parts_of_other_files_do_not_fit() {
    let (mut store, _) = filled(config(16 << 20), 2000);
    let [first, second] = [(); 2].map(|()| saved(&mut store));
    assert_eq!(first.len(), second.len());
    // The first block of another file, saved from the same store.
    let mixed = [&first[..128], &second[128..]].concat();
    let error = open(&mixed).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::SavedDamaged { at: 128, .. }), "{error}");
    // A block is missing.
    let block = 128 + 24 + u32::from_le_bytes(first[128..132].try_into().unwrap()) as usize;
    let gap = [&first[..128], &first[block..]].concat();
    assert!(matches!(open(&gap).unwrap_err().kind(), ErrorKind::SavedDamaged { at: 128, .. }));
    for foreign in [&b"ELF"[..], &[0; 4096], b"tmemspil"] {
        assert!(matches!(open(foreign).unwrap_err().kind(), ErrorKind::SavedForeign));
    }
}

/// Whoever can make the checks right can have anything stand in a plain file: it is refused, or is a store that works.
#[test]
fn files_with_right_checks_do_no_harm() {
    let (mut store, _) = small();
    let file = saved(&mut store);
    let mut random = Random::new(5);
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut file = file.clone();
        for _ in 0..=random.below(3) {
            let at = 128 + 24 + random.below(file.len() as u64 - 152) as usize;
            file[at] = random.number() as u8;
        }
        repair_saved(&mut file);
        let Ok(mut store) = open(&file) else {
            refused += 1;
            continue;
        };
        opened += 1;
        let again = saved(&mut store);
        let twin = open(&again).unwrap();
        assert_eq!((twin.stats().pages, twin.stats().zpages), (store.stats().pages, store.stats().zpages));
        for (pool, _) in store.pools() {
            store.destroy_pool(pool);
        }
        assert_eq!((store.stats().pages, store.stats().zpages), (0, 0));
    }
    println!("{opened} opened, {refused} refused");
    assert!(opened > 1000 && refused > 1000);
}

#[test]
fn files_replace_each_other_as_a_whole() {
    let dir = Dir::new("replace");
    let path = dir.0.join("store");
    assert!(matches!(Store::open(&path, config(4 << 20)).unwrap_err().kind(), ErrorKind::Open { at: 0, .. }));
    let (mut store, pool) = filled(config(8 << 20), 500);
    let first = store.save(&path).unwrap();
    assert_eq!((first.pools, first.pages), (1, 500));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), first.bytes);
    put_all(&store, pool, 500..900);
    store.save(&path).unwrap();
    let opened = Store::open(&path, config(8 << 20)).unwrap();
    assert_all(&opened, pool, 0..900);
    store.save_encrypted(&path, &KEY).unwrap();
    assert!(Store::open(&path, config(8 << 20)).is_err());
    assert_all(&OpenOptions::new(config(8 << 20)).key(&KEY).open(&path).unwrap(), pool, 0..900);
    assert_eq!(dir.files(), 1);
    let error = store.save(&dir.0.join("nowhere/store")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Save { .. }), "{error}");
}

#[test]
fn a_page_that_cannot_be_read_keeps_the_old_file_in_its_place() {
    let dir = Dir::new("unreadable");
    let path = dir.0.join("store");
    let tier = FaultyTier::new(MemoryTier::new(), Fault::FailRead, 0, 1);
    let rate = tier.rate();
    let store = Store::new(config(2 << 20)).unwrap();
    store.add_spill(Spill::new(tier, 64 << 20)).unwrap();
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
    put_all(&store, pool, 0..4000);
    let mut store = store;
    store.save(&path).unwrap();
    let before = std::fs::read(&path).unwrap();
    put_all(&store, pool, 4000..4100);
    rate.set(500);
    let error = store.save(&path).unwrap_err();
    let ErrorKind::SavePage { key, source } = error.kind() else { panic!("{error}") };
    assert!(source.is_spill() && store.contains(*key), "{error}: {source}");
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(dir.files(), 1);
    rate.set(0);
    store.save(&path).unwrap();
    assert_all(&Store::open(&path, config(32 << 20)).unwrap(), pool, 0..4100);
}

/// Remembers how long the pieces are, and fails when it is full.
struct Pieces {
    lens: Vec<usize>,
    room: usize,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= bytes.len();
        self.lens.push(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_is_written_in_large_pieces_and_a_full_disk_is_reported() {
    let (mut store, _) = filled(config(16 << 20), 4000);
    let mut pieces = Pieces { lens: Vec::new(), room: usize::MAX };
    let saved = store.save_to(&mut pieces, None).unwrap();
    let (header, blocks) = pieces.lens.split_first().unwrap();
    assert_eq!(*header, 128);
    assert!(blocks.len() > 5 && blocks[..blocks.len() - 1].iter().all(|len| *len >= 256 << 10), "{blocks:?}");
    for room in [0, 200, saved.bytes as usize - 1] {
        let error = store.save_to(&mut Pieces { lens: Vec::new(), room }, None).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Save { .. }), "{error}");
    }
}

#[test]
fn a_spill_file_that_fails_while_a_store_is_opened_is_no_loss() {
    let (mut store, pool) = filled(config(32 << 20), 6000);
    let file = saved(&mut store);
    for fault in [Fault::FailWrite, Fault::TearWrite, Fault::Full(4 << 20)] {
        let tier = FaultyTier::new(MemoryTier::new(), fault, 1, 3);
        let spill = Spill::new(tier, 64 << 20);
        let error = OpenOptions::new(config(2 << 20)).spill(spill).read_from(&mut &file[..]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::SavedNoRoom { .. }), "{fault:?}: {error}");
    }
    let spill = Spill::new(FileTier::unnamed(&std::env::temp_dir()).unwrap(), 64 << 20);
    assert_all(&OpenOptions::new(config(2 << 20)).spill(spill).read_from(&mut &file[..]).unwrap(), pool, 0..6000);
}
