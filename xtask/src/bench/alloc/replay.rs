//! Plays a trace against a store, one operation after the other on one thread.

use anyhow::ensure;
use tmem::{AllocatorKind, CodecKind, Key, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Reclaim, Store, WriteBack};

use super::figures::{self, Times};
use super::samples::{self, Pages};
use super::trace::{Op, Trace};

/// Frames taken back at once when a cache comes near its budget.
const RECLAIM_FRAMES: u64 = 16;
/// The store keeps this much of its budget to itself; near the budget is near this.
const RESERVE_BYTES: u64 = 64 << 10;
/// Operations between two looks at the memory of a cache: no more than eight whole pages can have come.
const LOOK_EVERY: usize = 8;
/// Operations between two calls for maintenance of a persistent pool.
const MAINTAIN_EVERY: usize = 512;
/// Points of the curve of memory over time.
const SAMPLES: usize = 300;

/// What the shrinker took back, and what that cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    pub frames: u64,
    /// Pages that had to leave: dropped, or written back to their owner.
    pub evicted: u64,
    pub moved: u64,
    pub second_chances: u64,
    /// Zpages and frames of the store, summed over the calls: what one frame holds.
    pub zpages_seen: u64,
    pub frames_seen: u64,
}

impl Taken {
    fn reclaim(
        &mut self,
        store: &Store,
        frames: u64,
        write_back: Option<&dyn WriteBack>,
        times: &mut Times,
    ) -> Reclaim {
        let stats = store.stats();
        self.zpages_seen += stats.zpages;
        self.frames_seen += stats.frame_bytes / PAGE_SIZE as u64;
        let report = times.time(|| store.reclaim(frames, write_back));
        self.frames += report.frames;
        self.evicted += report.evicted + report.written_back;
        self.moved += report.moved;
        self.second_chances += report.second_chances;
        report
    }
}

/// What a replay showed.
#[derive(Default)]
pub struct Replay {
    pub put: Times,
    /// Gets that hit.
    pub get: Times,
    pub miss: Times,
    /// Reclaim and maintenance.
    pub upkeep: Times,
    pub gets: u64,
    pub hits: u64,
    pub puts: u64,
    pub refused: u64,
    /// By the calls of the shrinker while the trace ran (caches), or by one at its end (persistent pools).
    pub taken: Taken,
    /// Dropped by puts that found no room, beside what the shrinker dropped.
    pub evicted_by_puts: u64,
    /// Moves of maintenance, and the frames that it gave back.
    pub maintained_moves: u64,
    pub maintained_frames: u64,
    /// Share of the trace, memory without fixed bytes per live compressed byte.
    pub curve: Vec<(f64, f64)>,
}

impl Replay {
    pub fn sum_ns(&self) -> f64 {
        [&self.put, &self.get, &self.miss, &self.upkeep].map(Times::sum_ns).into_iter().sum()
    }
}

/// What is played, and on what.
pub struct Setup<'a> {
    pub trace: &'a Trace,
    pub pages: &'a Pages,
    pub codec: CodecKind,
    pub allocator: AllocatorKind,
    pub budget_bytes: u64,
    pub fixed_bytes: u64,
}

/// Takes every page, as a swap device would.
struct Device;

impl WriteBack for Device {
    fn write(&self, key: Key, _: &Page) -> Option<u64> {
        Some(key.index.into())
    }

    fn commit(&self, _: Key, _: u64) {}

    fn discard(&self, _: Key, _: u64) {}
}

struct Player<'a> {
    setup: &'a Setup<'a>,
    store: Store,
    pool: PoolId,
    /// The page that each key holds in the store, unless it was dropped.
    held: Vec<Option<u32>>,
    replay: Replay,
}

/// Plays the whole trace.
///
/// # Errors
///
/// When the store gives back another page than was put, or we are interrupted.
pub fn play(setup: &Setup<'_>) -> anyhow::Result<Replay> {
    let store = samples::store(setup.allocator, setup.codec, setup.budget_bytes)?;
    let pool = store.create_pool(setup.trace.kind, PoolOptions::default())?;
    let mut player = Player { setup, store, pool, held: Vec::new(), replay: Replay::default() };
    let ops = &setup.trace.ops;
    for (number, &op) in ops.iter().enumerate() {
        if number % LOOK_EVERY == 0 && setup.trace.is_cache() {
            player.reclaim_if_near();
        }
        if number % MAINTAIN_EVERY == 0 {
            crate::interrupt::check()?;
            if !setup.trace.is_cache() {
                player.maintain();
            }
        }
        if number % ops.len().div_ceil(SAMPLES) == 0 {
            player.sample(number as f64 / ops.len() as f64);
        }
        match op {
            Op::Put { key, page } => player.put(key, page),
            Op::Take { key } => player.take(key)?,
            Op::Fetch { key } => {
                if !player.get(key)? {
                    player.put(key, key);
                }
            }
        }
    }
    Ok(player.finish())
}

impl Player<'_> {
    fn key(&self, key: u32) -> Key {
        Key::new(self.pool, 1, key)
    }

    fn page(&self, page: u32) -> &Page {
        let pages = &self.setup.pages.pages;
        &pages[page as usize % pages.len()]
    }

    fn put(&mut self, key: u32, page: u32) {
        let (name, contents) = (self.key(key), &self.setup.pages.pages);
        let contents = &contents[page as usize % contents.len()];
        let accepted = self.replay.put.time(|| self.store.put(name, contents)).is_ok();
        let at = key as usize;
        if self.held.len() <= at {
            self.held.resize(at + 1, None);
        }
        self.held[at] = accepted.then_some(page);
        self.replay.puts += 1;
        self.replay.refused += u64::from(!accepted);
    }

    fn get(&mut self, key: u32) -> anyhow::Result<bool> {
        let mut out = [0; PAGE_SIZE];
        let name = self.key(key);
        let (hit, ns) = figures::timed(|| self.store.get(name, &mut out));
        let hit = hit?;
        let held = self.held.get(key as usize).copied().flatten();
        self.replay.gets += 1;
        let times = if hit { &mut self.replay.get } else { &mut self.replay.miss };
        times.add(ns);
        self.replay.hits += u64::from(hit);
        match held {
            Some(page) if hit => ensure!(out == *self.page(page), "a get gave another page than was put"),
            Some(_) => ensure!(self.setup.trace.kind == PoolKind::Ephemeral, "a persistent page was lost"),
            None => ensure!(!hit, "a get found what was never put"),
        }
        Ok(hit)
    }

    fn take(&mut self, key: u32) -> anyhow::Result<()> {
        self.get(key)?;
        self.store.flush_page(self.key(key));
        self.held[key as usize] = None;
        Ok(())
    }

    fn reclaim_if_near(&mut self) {
        let near = self.setup.budget_bytes.saturating_sub(RESERVE_BYTES + (LOOK_EVERY * PAGE_SIZE) as u64);
        if self.store.stats().memory_bytes > near {
            self.replay.taken.reclaim(&self.store, RECLAIM_FRAMES, None, &mut self.replay.upkeep);
        }
    }

    fn maintain(&mut self) {
        loop {
            let done = self.replay.upkeep.time(|| self.store.maintain());
            self.replay.maintained_moves += done.moved;
            self.replay.maintained_frames += done.returned_bytes / PAGE_SIZE as u64;
            if !done.more {
                return;
            }
        }
    }

    fn sample(&mut self, at: f64) {
        let stats = self.store.stats();
        if stats.compressed_bytes > 0 {
            let memory = stats.memory_bytes.saturating_sub(self.setup.fixed_bytes) as f64;
            self.replay.curve.push((at, memory / stats.compressed_bytes as f64));
        }
    }

    /// For persistent pools: how many pages have to leave for an eighth of all frames?
    fn finish(mut self) -> Replay {
        if self.setup.trace.is_cache() {
            self.replay.evicted_by_puts = self.store.stats().evictions - self.replay.taken.evicted;
        } else {
            self.maintain();
            self.sample(1.0);
            let frames = self.store.stats().frame_bytes / PAGE_SIZE as u64 / 8;
            let mut not_counted = Times::default();
            self.replay.taken.reclaim(&self.store, frames, Some(&Device), &mut not_counted);
        }
        self.replay
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{ALLOCATORS, AMPLE_BYTES};
    use super::super::trace;
    use super::*;

    #[test]
    fn with_ample_room_a_cache_misses_what_is_new_and_nothing_else() {
        let pages = Pages::of(&samples::load(&[], 1).unwrap(), CodecKind::Lz4);
        let trace = &trace::all(true, 0.25)[0];
        let keys: std::collections::HashSet<_> = trace.ops.iter().map(|op| format!("{op:?}")).collect();
        for (allocator, _) in ALLOCATORS {
            let (budget_bytes, codec) = (AMPLE_BYTES, CodecKind::Lz4);
            let replay = play(&Setup { trace, pages: &pages, codec, allocator, budget_bytes, fixed_bytes: 0 }).unwrap();
            assert_eq!(replay.gets - replay.hits, keys.len() as u64);
            assert_eq!((replay.puts, replay.refused), (keys.len() as u64, 0));
            assert_eq!(replay.taken.frames + replay.evicted_by_puts, 0);
        }
    }
}
