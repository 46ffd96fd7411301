//! All allocators on generated traces with equal RAM: what is found, what it costs to take frames back, and how long it takes.

use serde::Serialize;

use super::figures::{SHARES, Times};
use super::replay::{self, Replay, Setup};
use super::samples::{self, ALLOCATORS, AMPLE_BYTES, Pages, Sample};
use super::simulate;
use super::trace::{self, Op, Trace};
use crate::measure::median;
use crate::table::Table;

/// What a cache of the same compressed bytes reaches without any loss.
#[derive(Clone, Copy, Serialize)]
pub struct Ideal {
    pub lru: f64,
    pub min: f64,
    pub bound: f64,
}

/// Percentiles of single operations in microseconds, medians over the rounds: [p50, p99, p99.9].
#[derive(Clone, Copy, Serialize)]
pub struct Latency {
    pub put_us: [f64; 3],
    pub get_us: [f64; 3],
}

/// One allocator on one trace.
#[derive(Serialize)]
pub struct Row {
    pub trace: &'static str,
    pub allocator: &'static str,
    budget_bytes: u64,
    fixed_bytes: u64,
    working_set_bytes: u64,
    /// For caches.
    pub hit_ratio: Option<f64>,
    pub ideal: Option<Ideal>,
    refused_share: f64,
    reclaimed_frames: u64,
    pub evictions_per_frame: f64,
    pub moves_per_frame: f64,
    second_chances_per_frame: f64,
    pub pages_per_frame: f64,
    evictions_by_puts: u64,
    maintenance_moves_per_put: f64,
    maintenance_moves_per_frame: f64,
    /// At the end of the trace, before the last reclaim: memory without fixed bytes per live compressed byte.
    memory_per_live: f64,
    /// Time on the one thread, upkeep included; medians over the rounds.
    us_per_op: f64,
    upkeep_us_per_op: f64,
    /// Near the budget, and with room for all.
    pub near: Latency,
    pub ample: Latency,
    /// Of the first round: share of the trace, memory without fixed bytes per live compressed byte.
    pub curve: Vec<(f64, f64)>,
}

/// Measures and prints.
pub fn measure(samples: &[Sample], quick: bool, cache_share: f64, rounds: u32) -> anyhow::Result<Vec<Row>> {
    let codec = tmem::CodecKind::default();
    let pages = Pages::of(samples, codec);
    println!(
        "\nTraces, {codec:?}, one thread, medians of {rounds} interleaved rounds. Caches may take {cache_share:.3} of their working set's\n\
         compressed bytes (mixed ages: a third of that), others 1.1 of it, and fixed bytes. LRU, MIN and the bound are simulated with\n\
         pages of the same compressed sizes in the budget without fixed bytes, with no loss to frames, headers or index; they see all\n\
         requests. Caches call reclaim(16) near the budget; other pools reclaim an eighth of all frames at the end, with write-back.\n\
         hits and refused in %; fr: per frame that reclaim took back; by puts: pages that puts dropped; mem/live at the end.\n"
    );
    let table = head();
    let mut rows = Vec::new();
    for trace in trace::all(quick, cache_share) {
        let first = rows.len();
        rows.extend(measure_trace(&trace, &pages, rounds)?);
        for row in &rows[first..] {
            table.row(&row.cells());
        }
    }
    print_latency(&rows);
    Ok(rows)
}

fn measure_trace(trace: &Trace, pages: &Pages, rounds: u32) -> anyhow::Result<Vec<Row>> {
    let codec = tmem::CodecKind::default();
    let working_set_bytes = trace.working_set_bytes(&pages.packed_bytes);
    let capacity = (working_set_bytes as f64 * trace.share) as u64;
    let mut setups = Vec::new();
    for (allocator, _) in ALLOCATORS {
        let fixed_bytes = samples::fixed_bytes(allocator, codec, &pages.pages[0])?;
        let budget_bytes = fixed_bytes + capacity;
        let near = Setup { trace, pages, codec, allocator, budget_bytes, fixed_bytes };
        setups.push((Setup { budget_bytes: AMPLE_BYTES, ..near }, near));
    }
    let mut replays: Vec<Vec<(Replay, Replay)>> = ALLOCATORS.map(|_| Vec::new()).into();
    for _ in 0..rounds {
        for ((ample, near), replays) in setups.iter().zip(&mut replays) {
            replays.push((replay::play(ample)?, replay::play(near)?));
        }
    }
    let ideal = trace.is_cache().then(|| ideal(trace, pages, capacity));
    let named = ALLOCATORS.into_iter().zip(&setups).zip(&replays);
    Ok(named.map(|(((_, name), (_, near)), rounds)| row(name, near, working_set_bytes, ideal, rounds)).collect())
}

fn ideal(trace: &Trace, pages: &Pages, capacity: u64) -> Ideal {
    let fetches = trace.ops.iter().filter_map(|op| match op {
        Op::Fetch { key } => Some((*key, trace::size(&pages.packed_bytes, *key))),
        _ => None,
    });
    let requests: Vec<simulate::Request> = fetches.collect();
    let ratio = |hits: u64| hits as f64 / requests.len() as f64;
    Ideal {
        lru: ratio(simulate::lru(&requests, capacity)),
        min: ratio(simulate::min(&requests, capacity)),
        bound: ratio(simulate::bound(&requests, capacity)),
    }
}

fn row(
    allocator: &'static str,
    setup: &Setup<'_>,
    working_set_bytes: u64,
    ideal: Option<Ideal>,
    rounds: &[(Replay, Replay)],
) -> Row {
    let near = || rounds.iter().map(|(_, near)| near);
    let of_near = |pick: &dyn Fn(&Replay) -> f64| median(near().map(pick));
    let ops = setup.trace.ops.len() as f64;
    let per_frame = |pick: fn(&Replay) -> u64| of_near(&|run| pick(run) as f64 / run.taken.frames as f64);
    Row {
        trace: setup.trace.name,
        allocator,
        budget_bytes: setup.budget_bytes,
        fixed_bytes: setup.fixed_bytes,
        working_set_bytes,
        hit_ratio: setup.trace.is_cache().then(|| of_near(&|run| run.hits as f64 / run.gets as f64)),
        ideal,
        refused_share: of_near(&|run| run.refused as f64 / run.puts as f64),
        reclaimed_frames: of_near(&|run| run.taken.frames as f64) as u64,
        evictions_per_frame: per_frame(|run| run.taken.evicted),
        moves_per_frame: per_frame(|run| run.taken.moved),
        second_chances_per_frame: per_frame(|run| run.taken.second_chances),
        pages_per_frame: of_near(&|run| run.taken.zpages_seen as f64 / run.taken.frames_seen as f64),
        evictions_by_puts: of_near(&|run| run.evicted_by_puts as f64) as u64,
        maintenance_moves_per_put: of_near(&|run| run.maintained_moves as f64 / run.puts as f64),
        maintenance_moves_per_frame: of_near(&|run| run.maintained_moves as f64 / run.maintained_frames as f64),
        memory_per_live: of_near(&|run| run.curve.last().map_or(f64::NAN, |(_, ratio)| *ratio)),
        us_per_op: of_near(&|run| run.sum_ns() / 1000.0 / ops),
        upkeep_us_per_op: of_near(&|run| run.upkeep.sum_ns() / 1000.0 / ops),
        near: latency(near()),
        ample: latency(rounds.iter().map(|(ample, _)| ample)),
        curve: rounds[0].1.curve.clone(),
    }
}

fn latency<'a>(replays: impl Iterator<Item = &'a Replay> + Clone) -> Latency {
    let us = |pick: fn(&Replay) -> &Times| {
        let all: Vec<[f64; 3]> = replays.clone().map(|replay| pick(replay).percentiles(SHARES)).collect();
        [0, 1, 2].map(|i| median(all.iter().map(|round| round[i])) / 1000.0)
    };
    Latency { put_us: us(|replay| &replay.put), get_us: us(|replay| &replay.get) }
}

fn head() -> Table {
    Table::head(&[
        ("trace", 16),
        ("allocator", 9),
        ("hits", 6),
        ("LRU", 6),
        ("MIN", 6),
        ("bound", 6),
        ("refused", 7),
        ("frames", 7),
        ("evict/fr", 8),
        ("moves/fr", 8),
        ("pages/fr", 8),
        ("by puts", 7),
        ("maint. moves/put", 16),
        ("mem/live", 8),
        ("us/op", 6),
        ("upkeep", 6),
    ])
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let percent =
            |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", 100.0 * ratio));
        vec![
            self.trace.to_owned(),
            self.allocator.to_owned(),
            percent(self.hit_ratio),
            percent(self.ideal.map(|ideal| ideal.lru)),
            percent(self.ideal.map(|ideal| ideal.min)),
            percent(self.ideal.map(|ideal| ideal.bound)),
            format!("{:.2}", 100.0 * self.refused_share),
            self.reclaimed_frames.to_string(),
            format!("{:.2}", self.evictions_per_frame),
            format!("{:.2}", self.moves_per_frame),
            format!("{:.2}", self.pages_per_frame),
            self.evictions_by_puts.to_string(),
            format!("{:.2}", self.maintenance_moves_per_put),
            format!("{:.3}", self.memory_per_live),
            format!("{:.2}", self.us_per_op),
            format!("{:.2}", self.upkeep_us_per_op),
        ]
    }
}

fn print_latency(rows: &[Row]) {
    println!(
        "\nMicroseconds of single operations on these traces, near the budget and with room for all: p50, p99, p99.9.\n"
    );
    let table = Table::head(&[
        ("trace", 16),
        ("allocator", 9),
        ("put near", 21),
        ("put ample", 21),
        ("get near", 21),
        ("get ample", 21),
    ]);
    let show = |us: [f64; 3]| us.map(|us| if us.is_nan() { "-".to_owned() } else { format!("{us:.2}") }).join(" ");
    for row in rows {
        let cells = [row.near.put_us, row.ample.put_us, row.near.get_us, row.ample.get_us].map(show);
        table.row(&[&[row.trace.to_owned(), row.allocator.to_owned()][..], &cells].concat());
    }
}
