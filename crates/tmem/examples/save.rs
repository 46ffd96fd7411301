//! A store that survives its process: pages of files are put, saved, opened again and compared, with the time that takes.
//!
//! `cargo run --release -p tmem --example save -- [FILE.pages ...]`

use std::time::Instant;

use tmem::{Config, Key, PAGE_SIZE, PoolKind, PoolOptions, Store};

const BUDGET_BYTES: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names: Vec<_> = std::env::args().skip(1).collect();
    let files: Vec<_> = match names.is_empty() {
        true => vec![include_bytes!("../benches/data/python.pages").to_vec()],
        false => names.iter().map(std::fs::read).collect::<Result<_, _>>()?,
    };
    let mut store = Store::new(Config::new(BUDGET_BYTES))?;
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default())?;
    for (object, file) in (0_u64..).zip(&files) {
        for (index, page) in (0..).zip(file.as_chunks::<PAGE_SIZE>().0) {
            store.put(Key::new(pool, object, index), page)?;
        }
    }

    let path = std::env::temp_dir().join(format!("tmem-example-{}", std::process::id()));
    let start = Instant::now();
    let saved = store.save(&path)?;
    let save_seconds = start.elapsed().as_secs_f64();
    drop(store);
    // Another process would know the pool by this number.
    let number = pool.to_bits();

    let start = Instant::now();
    let store = Store::open(&path, Config::new(BUDGET_BYTES))?;
    let open_seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;

    let pool = tmem::PoolId::from_bits(number);
    for (object, file) in (0_u64..).zip(&files) {
        for (index, page) in (0..).zip(file.as_chunks::<PAGE_SIZE>().0) {
            assert!(store.matches(Key::new(pool, object, index), page), "page {index} of file {object}");
        }
    }
    let page_mb = (saved.pages * PAGE_SIZE as u64) as f64 / 1e6;
    let file_mb = saved.bytes as f64 / 1e6;
    println!("{} pages, {page_mb:.1} MB, in a file of {file_mb:.1} MB", saved.pages);
    let payload = store.stats().compressed_bytes as f64 / saved.pages as f64;
    println!("bytes of the file per page: {:.1} ({payload:.1} packed)", saved.bytes as f64 / saved.pages as f64);
    for (what, seconds) in [("save", save_seconds), ("open", open_seconds)] {
        let ms = seconds * 1e3;
        println!("{what}: {ms:.0} ms, {:.0} MB/s of pages, {:.0} MB/s of file", page_mb / seconds, file_mb / seconds);
    }
    Ok(())
}
