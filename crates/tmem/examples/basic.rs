//! Stores a few thousand pages in a fraction of their size and brings them back.
//!
//! `cargo run --release -p tmem --example basic`

use tmem::{Config, Error, Key, PAGE_SIZE, PoolKind, PoolOptions, Store, testing::sample_pages};

fn main() -> Result<(), Error> {
    let store = Store::new(Config::new(32 << 20))?;
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default())?;
    for (index, page) in (0..8192).zip(sample_pages(8192, 1)) {
        store.put(Key::new(pool, 1, index), &page)?;
    }
    let mut out = [0; PAGE_SIZE];
    for (index, page) in (0..8192).zip(sample_pages(8192, 1)) {
        assert!(store.get(Key::new(pool, 1, index), &mut out)? && out == page);
    }
    let stats = store.stats();
    println!(
        "{} MiB of pages in {:.1} MiB, everything counted: {:.2} times as many as fit uncompressed",
        stats.original_bytes >> 20,
        stats.memory_bytes as f64 / f64::from(1 << 20),
        stats.original_bytes as f64 / stats.memory_bytes as f64
    );
    Ok(())
}
