//! Real stores filled with the pages: what they take, and how long a put and a get last on this machine.
//!
//! Everything that a store holds is counted, by the store itself. What it holds once, however many pages come (tables, codec
//! contexts, size classes that are not full), is not multiplied when a sample stands for more: what more pages would take is
//! read off the growth while the later part of the sample was put.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tmem::{AllocatorKind, CodecKind, Config, Key, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Stats, Store};

use super::margin::{Clusters, slope};
use super::sample::{SAMPLE_PAGES_MAX, Sample};
use super::source::Block;

/// Codecs, one line of the table each.
const CODECS: [(&str, CodecKind); 3] =
    [("lz4", CodecKind::Lz4), ("zstd -1", CodecKind::Zstd { level: -1 }), ("zstd 1", CodecKind::Zstd { level: 1 })];

/// Allocators, one line for each codec.
const ALLOCATORS: [(&str, AllocatorKind); 4] = [
    ("zsmalloc", AllocatorKind::Zsmalloc),
    ("log", AllocatorKind::Log),
    ("xvmalloc", AllocatorKind::Xvmalloc),
    ("zbud", AllocatorKind::Zbud),
];

/// Threads of `tmem run` that compress, at most; it has one per processor.
const WORKERS_MAX: usize = 4;

/// Never reached: what is measured is how much memory pages take that must all be accepted.
const BUDGET_BYTES: u64 = 1 << 50;

/// What one kind of store made of the pages.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub codec: &'static str,
    pub allocator: &'static str,
    /// This is what `tmem run` uses.
    pub default: bool,
    /// What all pages would take.
    pub bytes: f64,
    /// Half of the 95 % interval around that.
    pub margin_bytes: f64,
    /// What they would take once all of them are cold and were packed again, together with their neighbours.
    pub cold_bytes: f64,
    /// What the store holds before the first page.
    pub fixed_bytes: u64,
    /// Pages that were put.
    pub pages: u64,
    /// Those among them that were stored as they are.
    pub incompressible: u64,
    /// Mean time of a put.
    pub put_ns: f64,
    /// Mean time of a get.
    pub get_ns: f64,
}

/// Fills a store of each kind, one after the other.
///
/// # Errors
/// When pages cannot be read, or a store fails.
pub fn rows(sample: &Sample<'_>) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (codec, codec_kind) in CODECS {
        for (allocator, allocator_kind) in ALLOCATORS {
            let config = Config::new(BUDGET_BYTES).codec(codec_kind).allocator(allocator_kind);
            let trial = Trial::new(config).and_then(|trial| trial.run(sample));
            let outcome = trial.with_context(|| format!("a store with {codec} and {allocator}"))?;
            let default = codec_kind == CodecKind::default() && allocator_kind == AllocatorKind::default();
            rows.push(outcome.row(sample, codec, allocator, default));
        }
    }
    Ok(rows)
}

/// An empty store whose contexts are there.
struct Trial {
    store: Store,
    pool: PoolId,
    empty: Stats,
}

/// A store that was filled.
struct Outcome {
    empty: Stats,
    full: Stats,
    cold: Stats,
    clusters: Clusters,
    /// Payload bytes and bytes of frames after each cluster.
    growth: Vec<(f64, f64)>,
    pages: u64,
    incompressible: u64,
    put: Duration,
    get_ns: f64,
}

impl Trial {
    fn new(config: Config) -> anyhow::Result<Self> {
        let store = Store::new(config)?;
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default())?;
        let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        for _ in 0..workers {
            thread::scope(|scope| scope.spawn(|| warm_up(&store, pool)).join()).expect("puts and gets do not panic")?;
        }
        warm_up(&store, pool)?;
        let empty = store.stats();
        Ok(Self { store, pool, empty })
    }

    fn key(&self, page: u64) -> Key {
        Key::new(self.pool, page >> 32, page as u32)
    }

    fn run(self, sample: &Sample<'_>) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome {
            empty: self.empty,
            full: self.empty,
            cold: self.empty,
            clusters: Clusters::default(),
            growth: Vec::new(),
            pages: 0,
            incompressible: 0,
            put: Duration::ZERO,
            get_ns: 0.0,
        };
        let mut stored = Vec::new();
        let mut payload_bytes = 0;
        sample.each(|cluster| {
            let mut bytes = 0;
            let start = Instant::now();
            for (number, page) in cluster.entries() {
                let put = self.store.put(self.key(number), page)?;
                bytes += u64::from(put.stored_bytes);
                outcome.incompressible += u64::from(put.stored_bytes as usize >= PAGE_SIZE);
            }
            outcome.put += start.elapsed();
            outcome.pages += cluster.pages.len() as u64;
            outcome.clusters.add(cluster.pages.len() as u64, bytes);
            stored.push(cluster.block);
            if outcome.pages <= SAMPLE_PAGES_MAX {
                payload_bytes += bytes;
                outcome.growth.push((payload_bytes as f64, self.store.stats().frame_bytes as f64));
            }
            Ok(())
        })?;
        outcome.full = self.store.stats();
        outcome.get_ns = self.time_gets(&stored)?;
        // The first walk forgets the gets, the second one finds all pages unread, the third one finds them cold.
        for _ in 0..3 {
            self.store.recompress(Duration::MAX);
        }
        while self.store.maintain().more {}
        outcome.cold = self.store.stats();
        Ok(outcome)
    }

    /// Mean time of a get, over as many pages as a sample has.
    fn time_gets(&self, stored: &[Block]) -> anyhow::Result<f64> {
        let mut out = [0; PAGE_SIZE];
        let mut gets = 0_u32;
        let start = Instant::now();
        for number in stored.iter().flat_map(|block| block.numbers()).take(SAMPLE_PAGES_MAX as usize) {
            self.store.get(self.key(number), &mut out)?;
            gets += 1;
        }
        Ok(start.elapsed().as_nanos() as f64 / f64::from(gets.max(1)))
    }
}

/// Has this thread put and get a page that needs the codec, so that its context is made, and takes the page away again.
fn warm_up(store: &Store, pool: PoolId) -> Result<(), tmem::Error> {
    let mut page: Page = [0; PAGE_SIZE];
    page.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 16) as u8);
    let key = Key::new(pool, u64::MAX, 0);
    store.put(key, &page)?;
    store.get(key, &mut page)?;
    store.flush_page(key);
    Ok(())
}

impl Outcome {
    fn row(&self, sample: &Sample<'_>, codec: &'static str, allocator: &'static str, default: bool) -> Row {
        let payload_cost = self.payload_cost();
        let rest = |stats: &Stats| (stats.memory_bytes - stats.frame_bytes) as f64;
        let pages = self.pages.max(1) as f64;
        let rest_per_page = (rest(&self.full) - rest(&self.empty)) / pages;
        let unread = sample.pages_total.saturating_sub(self.pages) as f64;
        let per_page = self.clusters.ratio() * payload_cost + rest_per_page;
        let (fixed_bytes, bytes) = (self.empty.memory_bytes, self.full.memory_bytes as f64 + unread * per_page);
        let grown = |stats: &Stats| stats.memory_bytes.saturating_sub(fixed_bytes) as f64;
        let cold_share = grown(&self.cold) / grown(&self.full).max(1.0);
        Row {
            codec,
            allocator,
            default,
            bytes,
            cold_bytes: fixed_bytes as f64 + (bytes - fixed_bytes as f64) * cold_share,
            margin_bytes: payload_cost * self.clusters.margin_bytes(sample.clusters_total, sample.pages_total),
            fixed_bytes,
            pages: self.pages,
            incompressible: self.incompressible,
            put_ns: self.put.as_nanos() as f64 / pages,
            get_ns: self.get_ns,
        }
    }

    /// Bytes of frames for each byte of payload. Read off the later three quarters of the growth: at the beginning every size is
    /// new and opens frames of its own.
    fn payload_cost(&self) -> f64 {
        let later = &self.growth[self.growth.len() / 4..];
        let whole = self.full.frame_bytes as f64 / (self.full.compressed_bytes as f64).max(1.0);
        if later.len() < 8 { whole } else { slope(later).unwrap_or(whole) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_one_line_of_the_table() {
        let codecs = CODECS.iter().filter(|(_, kind)| *kind == CodecKind::default()).count();
        let allocators = ALLOCATORS.iter().filter(|(_, kind)| *kind == AllocatorKind::default()).count();
        assert_eq!((codecs, allocators), (1, 1));
    }
}
