//! What a program under memory pressure does to the store: batches of puts, gets followed by flushes at random, a fork now
//! and then. Shows what memory the holes take, what closing them costs, and what a clone costs per entry.
//!
//! `cargo bench -p tmem --bench churn -- [--quick] [FILE.pages]`

use std::time::{Duration, Instant};

use tmem::testing::Random;
use tmem::{Config, Key, ObjectId, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Store};

const BATCH: usize = 500;

struct Churn {
    store: Store,
    pool: PoolId,
    pages: Vec<Page>,
    /// Indexes that are in the store, and those that are not.
    stored: Vec<u32>,
    absent: Vec<u32>,
    random: Random,
}

impl Churn {
    fn key(&self, index: u32) -> Key {
        Key { pool: self.pool, object: ObjectId::from(1), index }
    }

    fn put(&mut self) {
        let at = self.random.below(self.absent.len() as u64) as usize;
        let index = self.absent.swap_remove(at);
        let page = &self.pages[index as usize % self.pages.len()];
        self.store.put(self.key(index), page).expect("the budget is ample");
        self.stored.push(index);
    }

    fn take_back(&mut self) {
        let at = self.random.below(self.stored.len() as u64) as usize;
        let index = self.stored.swap_remove(at);
        let mut out = [0; PAGE_SIZE];
        assert!(self.store.get(self.key(index), &mut out).expect("nothing is damaged"));
        assert!(self.store.flush_page(self.key(index)));
        self.absent.push(index);
    }
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick" || argument == "--test");
    let file = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let bytes =
        file.map_or_else(|| include_bytes!("data/python.pages").to_vec(), |name| std::fs::read(&name).expect(&name));
    let count: u32 = if quick { 2_000 } else { 50_000 };
    let store = Store::new(Config::new(1 << 30)).expect("a store");
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).expect("a pool");
    let mut churn = Churn {
        store,
        pool,
        pages: bytes.as_chunks::<PAGE_SIZE>().0.to_vec(),
        stored: Vec::new(),
        absent: (0..count * 5 / 4).collect(),
        random: Random::new(1),
    };
    for _ in 0..count {
        churn.put();
    }
    run(&mut churn, if quick { 10 } else { 1000 });
    clone(&churn);
}

fn run(churn: &mut Churn, batches: usize) {
    let fixed = churn.store.stats().memory_bytes - churn.store.stats().frame_bytes;
    let (mut worst, mut sum) = (0.0_f64, 0.0);
    let (mut put_time, mut maintain_time, mut longest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let (mut calls, mut peak_calls) = (0, 0);
    let moves = churn.store.stats().moves;
    for _ in 0..batches {
        let start = Instant::now();
        for _ in 0..BATCH {
            churn.take_back();
            churn.put();
        }
        put_time += start.elapsed();
        let start = Instant::now();
        let mut now = 1;
        loop {
            let start = Instant::now();
            let more = churn.store.maintain().more;
            longest = longest.max(start.elapsed());
            if !more {
                break;
            }
            now += 1;
        }
        maintain_time += start.elapsed();
        calls += now;
        peak_calls = peak_calls.max(now);
        let stats = churn.store.stats();
        let ratio = stats.memory_bytes as f64 / stats.compressed_bytes as f64;
        worst = worst.max(ratio);
        sum += ratio;
    }
    let puts = (batches * BATCH) as f64;
    let stats = churn.store.stats();
    println!("memory / live compressed bytes after maintenance: mean {:.3}, worst {worst:.3}", sum / batches as f64);
    println!("  of it tables, index and contexts: {fixed} bytes; {stats:?}");
    println!(
        "a get, a flush and a put: {:.2} us; maintenance per put: {:.2} us, {:.2} moves; calls per batch {:.2}, at most {peak_calls}; longest {longest:?}",
        put_time.as_secs_f64() * 1e6 / puts,
        maintain_time.as_secs_f64() * 1e6 / puts,
        (stats.moves - moves) as f64 / puts,
        f64::from(calls) / batches as f64
    );
}

fn clone(churn: &Churn) {
    let entries = churn.stored.len() as f64;
    let before = churn.store.stats().memory_bytes;
    for name in ["first", "second"] {
        let start = Instant::now();
        let clone = churn.store.clone_pool(churn.pool).expect("the budget is ample");
        let took = start.elapsed();
        let bytes = churn.store.stats().memory_bytes - before;
        let start = Instant::now();
        churn.store.destroy_pool(clone);
        println!(
            "{name} clone: {:.0} ns and {:.1} bytes per entry; destroying it {:.0} ns",
            took.as_nanos() as f64 / entries,
            bytes as f64 / entries,
            start.elapsed().as_nanos() as f64 / entries
        );
    }
    let start = Instant::now();
    let flushed = churn.store.flush_object(churn.pool, ObjectId::from(1));
    println!("flushing {flushed} pages: {:.0} ns each", start.elapsed().as_nanos() as f64 / entries);
}
