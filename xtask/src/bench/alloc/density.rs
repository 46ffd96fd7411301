//! How many bytes of RAM pages take: every allocator with every codec, beside the kernel's zram.
//!
//! Same-filled pages count as pages on both sides and take no frame on either. What zram says leaves out the table of its
//! disk and its codec contexts, so the store is shown with and without its fixed bytes; both count the index.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use tmem::testing::Random;
use tmem::{AllocatorKind, CodecKind, Key, PAGE_SIZE, PoolKind, PoolOptions, Store};

use super::figures::geometric_mean;
use super::samples::{self, ALL, ALLOCATORS, AMPLE_BYTES, CODECS, Sample};
use crate::interrupt;
use crate::table::Table;
use crate::zram;

/// Compressors of the kernel; the first one is what the ratios are to.
const KERNEL_ALGORITHMS: [&str; 2] = ["lz4", "lzo-rle"];
/// Pages that are left after the drain.
const LEFT_PERCENT: u64 = 20;
/// A bound on the calls for maintenance.
const MAINTAIN_CALLS_MAX: u32 = 100_000;

/// What the kernel takes for one file.
#[derive(Serialize)]
pub struct KernelRow {
    pub file: String,
    pub algorithm: &'static str,
    pages: u64,
    same_filled: u64,
    compressed_bytes: u64,
    used_bytes: u64,
    pub density: f64,
    write_us_per_page: f64,
    read_us_per_page: f64,
}

/// What a store takes for one file.
#[derive(Clone, Serialize)]
pub struct Row {
    pub file: String,
    pub codec: &'static str,
    pub allocator: &'static str,
    fixed_bytes: u64,
    frames_per_compressed: f64,
    memory_per_compressed: f64,
    /// Without fixed bytes.
    growing_per_compressed: f64,
    pub density: f64,
    /// Original bytes per byte of memory without fixed bytes.
    pub density_growing: f64,
    drained_memory_per_compressed: f64,
    drain_moves: u64,
    /// Density after cold pages were packed again in groups, and the time of a page for that.
    recompressed: f64,
    recompress_us_per_page: f64,
    /// Density / that of zram with lz4, all memory and without fixed bytes.
    ratio_to_zram: Option<f64>,
    ratio_to_zram_growing: Option<f64>,
    recompressed_to_zram: Option<f64>,
}

/// All figures of density. Means are rows of the file `MEAN`, those of one store for all files of the file `ALL`.
#[derive(Serialize)]
pub struct Density {
    pub kernel: Vec<KernelRow>,
    pub rows: Vec<Row>,
}

pub const MEAN: &str = "geom. mean";

/// Measures and prints.
pub fn measure(samples: &[Sample]) -> anyhow::Result<Density> {
    let kernel = measure_kernel(samples)?;
    let zram: BTreeMap<&str, f64> = kernel
        .iter()
        .filter(|row| row.algorithm == KERNEL_ALGORITHMS[0])
        .map(|row| (row.file.as_str(), row.density))
        .collect();
    println!(
        "\nDensity of stores. frames, memory, growing: bytes of frames, of everything, of everything but fixed bytes, per\n\
         compressed byte. density: original bytes / memory. drained: memory per live compressed byte after {} % of the\n\
         pages were flushed at random and the store was trimmed. / zram: density to that of zram with lz4.\n\
         regrouped: density after all pages were cold and packed again in groups; us: the time of a page for that.\n\
         {ALL}: the pages of all files in one store.\n",
        100 - LEFT_PERCENT
    );
    let table = head();
    let mut rows = Vec::new();
    let all = (samples.len() > 1).then(|| Sample::all(samples));
    for (codec, codec_name) in CODECS {
        for (allocator, name) in ALLOCATORS {
            let mut own: Vec<Row> = Vec::new();
            for sample in samples {
                interrupt::check()?;
                let row = measure_one(sample, (codec, codec_name), (allocator, name), zram.get(sample.name.as_str()))?;
                table.row(&row.cells());
                own.push(row);
            }
            let mean = mean(&own);
            table.row(&mean.cells());
            own.push(mean);
            if let Some(all) = &all {
                let row = measure_one(all, (codec, codec_name), (allocator, name), None)?;
                table.row(&row.cells());
                own.push(row);
            }
            rows.extend(own);
        }
    }
    Ok(Density { kernel, rows })
}

fn measure_kernel(samples: &[Sample]) -> anyhow::Result<Vec<KernelRow>> {
    if let Some(reason) = zram::unavailable() {
        println!("\nSKIPPED: kernel zram: {reason}");
        return Ok(Vec::new());
    }
    println!("\nThe kernel's zram on the same pages, through O_DIRECT in steps of 1 MiB.\n");
    let table = Table::head(&[
        ("file", 12),
        ("algorithm", 9),
        ("pages", 7),
        ("same-filled", 11),
        ("used/compr", 10),
        ("density", 7),
        ("write us", 8),
        ("read us", 7),
    ]);
    let mut rows = Vec::new();
    for algorithm in KERNEL_ALGORITHMS {
        if !zram::has_algorithm(algorithm) {
            println!("SKIPPED: this kernel has no {algorithm} for zram");
            continue;
        }
        let first = rows.len();
        for sample in samples {
            rows.push(kernel_row(sample, algorithm)?);
            table.row(&rows[rows.len() - 1].cells());
        }
        let density = geometric_mean(rows[first..].iter().map(|row: &KernelRow| row.density));
        let mut cells = vec![MEAN.to_owned(), algorithm.to_owned(), String::new(), String::new(), String::new()];
        cells.push(format!("{density:.3}"));
        table.row(&cells);
    }
    Ok(rows)
}

fn kernel_row(sample: &Sample, algorithm: &'static str) -> anyhow::Result<KernelRow> {
    let measured = zram::measure(algorithm, &sample.bytes)?;
    let (stat, pages) = (measured.stat, sample.pages());
    let same_filled = pages.iter().filter(|page| samples::is_same_filled(page)).count() as u64;
    anyhow::ensure!(stat.original_bytes == sample.bytes.len() as u64, "zram counts other pages: {stat:?}");
    anyhow::ensure!(stat.same_pages == same_filled, "zram sees other same-filled pages than {same_filled}: {stat:?}");
    Ok(KernelRow {
        file: sample.name.clone(),
        algorithm,
        pages: pages.len() as u64,
        same_filled,
        compressed_bytes: stat.compressed_bytes,
        used_bytes: stat.used_bytes,
        density: stat.original_bytes as f64 / stat.used_bytes as f64,
        write_us_per_page: measured.write_us_per_page,
        read_us_per_page: measured.read_us_per_page,
    })
}

impl KernelRow {
    fn cells(&self) -> Vec<String> {
        vec![
            self.file.clone(),
            self.algorithm.to_owned(),
            self.pages.to_string(),
            self.same_filled.to_string(),
            format!("{:.3}", self.used_bytes as f64 / self.compressed_bytes as f64),
            format!("{:.3}", self.density),
            format!("{:.2}", self.write_us_per_page),
            format!("{:.2}", self.read_us_per_page),
        ]
    }
}

fn measure_one(
    sample: &Sample,
    (codec, codec_name): (CodecKind, &'static str),
    (allocator, name): (AllocatorKind, &'static str),
    zram: Option<&f64>,
) -> anyhow::Result<Row> {
    let page = sample.pages().iter().find(|page| !samples::is_same_filled(page)).expect("checked when it was read");
    let fixed_bytes = samples::fixed_bytes(allocator, codec, page)?;
    let store = samples::store(allocator, codec, AMPLE_BYTES)?;
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default())?;
    for (index, page) in (0..).zip(sample.pages()) {
        store.put(Key::new(pool, 1, index), page)?;
    }
    // The context for expanding is made by the first get.
    store.get(Key::new(pool, 1, 0), &mut [0; PAGE_SIZE])?;
    let full = store.stats();
    let growing = (full.memory_bytes - fixed_bytes) as f64;
    let mut random = Random::new(1);
    for index in 0..sample.pages().len() as u32 {
        if random.below(100) >= LEFT_PERCENT {
            store.flush_page(Key::new(pool, 1, index));
        }
    }
    trim_fully(&store);
    let drained = store.stats();
    let (recompressed, recompress_us_per_page) = recompress(sample, codec, allocator)?;
    let density = full.original_bytes as f64 / full.memory_bytes as f64;
    let density_growing = full.original_bytes as f64 / growing;
    Ok(Row {
        file: sample.name.clone(),
        codec: codec_name,
        allocator: name,
        fixed_bytes,
        frames_per_compressed: full.frame_bytes as f64 / full.compressed_bytes as f64,
        memory_per_compressed: full.memory_bytes as f64 / full.compressed_bytes as f64,
        growing_per_compressed: growing / full.compressed_bytes as f64,
        density,
        density_growing,
        drained_memory_per_compressed: drained.memory_bytes as f64 / drained.compressed_bytes as f64,
        drain_moves: drained.moves,
        recompressed,
        recompress_us_per_page,
        ratio_to_zram: zram.map(|zram| density / zram),
        ratio_to_zram_growing: zram.map(|zram| density_growing / zram),
        recompressed_to_zram: zram.map(|zram| recompressed / zram),
    })
}

/// The density of all memory when every page is cold and was packed again, and the time that took.
fn recompress(sample: &Sample, codec: CodecKind, allocator: AllocatorKind) -> anyhow::Result<(f64, f64)> {
    let store = samples::store(allocator, codec, AMPLE_BYTES)?;
    let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default())?;
    for (index, page) in (0..).zip(sample.pages()) {
        store.put(Key::new(pool, 1, index), page)?;
    }
    // At the first walk nothing is old.
    store.recompress(Duration::MAX);
    let start = Instant::now();
    store.recompress(Duration::MAX);
    let took = start.elapsed();
    trim_fully(&store);
    // The contexts for expanding pages and groups are made by the first gets.
    let mut out = [0; PAGE_SIZE];
    for (index, page) in (0..).zip(sample.pages()) {
        store.get(Key::new(pool, 1, index), &mut out)?;
        anyhow::ensure!(out == *page, "{}: page {index} is not what it was", sample.name);
    }
    let stats = store.stats();
    Ok((stats.original_bytes as f64 / stats.memory_bytes as f64, took.as_secs_f64() * 1e6 / stats.pages as f64))
}

/// What a store does when nobody uses it, until there is nothing to do: contexts go with the second call.
fn trim_fully(store: &Store) {
    store.trim();
    for _ in 0..MAINTAIN_CALLS_MAX {
        if !store.trim().more {
            return;
        }
    }
    println!("    there is still more to do after {MAINTAIN_CALLS_MAX} calls");
}

fn mean(rows: &[Row]) -> Row {
    let mean = |pick: fn(&Row) -> f64| geometric_mean(rows.iter().map(pick));
    let ratio = |pick: fn(&Row) -> Option<f64>| {
        let known: Option<Vec<f64>> = rows.iter().map(pick).collect();
        known.map(geometric_mean)
    };
    Row {
        file: MEAN.to_owned(),
        frames_per_compressed: mean(|row| row.frames_per_compressed),
        memory_per_compressed: mean(|row| row.memory_per_compressed),
        growing_per_compressed: mean(|row| row.growing_per_compressed),
        density: mean(|row| row.density),
        density_growing: mean(|row| row.density_growing),
        drained_memory_per_compressed: mean(|row| row.drained_memory_per_compressed),
        ratio_to_zram: ratio(|row| row.ratio_to_zram),
        ratio_to_zram_growing: ratio(|row| row.ratio_to_zram_growing),
        recompressed: mean(|row| row.recompressed),
        recompress_us_per_page: mean(|row| row.recompress_us_per_page),
        recompressed_to_zram: ratio(|row| row.recompressed_to_zram),
        ..rows[0].clone()
    }
}

fn head() -> Table {
    Table::head(&[
        ("file", 12),
        ("codec", 7),
        ("allocator", 9),
        ("frames", 6),
        ("memory", 6),
        ("growing", 7),
        ("density", 7),
        ("growing", 7),
        ("drained", 7),
        ("/ zram", 6),
        ("growing", 7),
        ("regrouped", 9),
        ("/ zram", 6),
        ("us", 5),
    ])
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.file.clone(), self.codec.to_owned(), self.allocator.to_owned()];
        let figures = [
            Some(self.frames_per_compressed),
            Some(self.memory_per_compressed),
            Some(self.growing_per_compressed),
            Some(self.density),
            Some(self.density_growing),
            Some(self.drained_memory_per_compressed),
            self.ratio_to_zram,
            self.ratio_to_zram_growing,
            Some(self.recompressed),
            self.recompressed_to_zram,
            Some(self.recompress_us_per_page),
        ];
        cells.extend(figures.map(|figure| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.3}"))));
        cells
    }
}
