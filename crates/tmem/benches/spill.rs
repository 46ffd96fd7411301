//! What spilling costs: bytes written per page that leaves RAM, the size of writes, the time of puts that have to make room
//! and of gets that have to read. On the disk of `TMPDIR`, encrypted and not, and with cold pages packed in groups before they
//! leave.
//!
//! `cargo bench -p tmem --bench spill -- [--quick] [FILE.pages ...]`

use std::time::{Duration, Instant};

use tmem::{AllocatorKind, Config, FileTier, Key, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Spill, Store};

const BUDGET_BYTES: u64 = 8 << 20;
const FILE_BYTES_MAX: u64 = 1 << 30;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick" || argument == "--test");
    let files: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let samples = match files.is_empty() {
        true => vec![("python".to_owned(), include_bytes!("data/python.pages").to_vec())],
        false => files.iter().map(|name| (name.clone(), std::fs::read(name).expect(name))).collect(),
    };
    let count = if quick { 8_000 } else { 40_000 };
    println!("pages, allocator, how: pages spilled, bytes written per page, mean write, put, get of a spilled page");
    for (name, bytes) in &samples {
        let pages = bytes.as_chunks::<PAGE_SIZE>().0;
        for allocator in [AllocatorKind::Zsmalloc, AllocatorKind::Log] {
            for how in [How::Encrypted, How::Plain, How::Grouped] {
                measure(name, pages, allocator, how, count);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Encrypted,
    Plain,
    /// Encrypted, and packed in groups before.
    Grouped,
}

/// Puts all pages; says how long one took, in microseconds.
fn put_all(store: &Store, pool: PoolId, pages: &[Page], count: u32) -> f64 {
    let start = Instant::now();
    for index in 0..count {
        store.put(Key::new(pool, 0, index), &pages[index as usize % pages.len()]).expect("room in the file");
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

fn measure(name: &str, pages: &[Page], allocator: AllocatorKind, how: How, count: u32) {
    let tier = FileTier::unnamed(&std::env::temp_dir()).expect("a file on the disk of TMPDIR");
    let direct = tier.is_direct();
    let spill = Spill::new(tier, FILE_BYTES_MAX);
    let store = Store::new(Config::new(BUDGET_BYTES).allocator(allocator)).expect("a store");
    store.add_spill(if how == How::Plain { spill.plain() } else { spill }).expect("a spill file");
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).expect("a pool");
    if how == How::Grouped {
        store.set_budget(1 << 30);
    }
    let put_us = put_all(&store, pool, pages, count);
    if how == How::Grouped {
        for _ in 0..3 {
            while !store.recompress(Duration::from_secs(1)).walked {}
        }
        store.set_budget(BUDGET_BYTES);
    }
    let spilled = store.stats().spill;
    let mut out = [0; PAGE_SIZE];
    let mut times = Vec::new();
    // In an order in which neighbours do not follow each other.
    for index in (0..count).map(|number| (u64::from(number) * 7919 % u64::from(count)) as u32) {
        let fetched = store.stats().spill.fetched;
        let start = Instant::now();
        assert!(store.get(Key::new(pool, 0, index), &mut out).expect("nothing is damaged"));
        let time = start.elapsed();
        assert!(out == pages[index as usize % pages.len()]);
        if store.stats().spill.fetched > fetched {
            times.push(time);
        }
    }
    if times.is_empty() {
        println!("{name}: everything fits into {BUDGET_BYTES} bytes");
        return;
    }
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e6;
    println!(
        "{name}, {allocator:?}, {how:?}{}: {}, {:.0}, {} KiB, {put_us:.1} us, {:.0} us (p99 {:.0})",
        if direct { "" } else { ", through the page cache" },
        times.len(),
        spilled.written_bytes as f64 / times.len() as f64,
        spilled.written_bytes / spilled.writes / 1024,
        at(50),
        at(99),
    );
}
