//! Puts and gets on one thread while another one reclaims, beside the bare codec on the same pages.
//!
//! A second busy thread slows the first one down by itself: caches, memory and clock are shared. So the store with reclaim is
//! shown beside a quiet one, and beside one whose neighbour packs pages of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;
use tmem::testing::{BareCodec, Random};
use tmem::{AllocatorKind, CodecKind, Key, PAGE_SIZE, PoolKind, PoolOptions, Store};

use super::figures::{SHARES, Times, timed};
use super::samples::{self, ALLOCATORS, AMPLE_BYTES, Pages, Sample};
use crate::interrupt;
use crate::measure::median;
use crate::table::Table;

/// What the second thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbour {
    None,
    /// Packs pages without a store.
    Busy,
    /// Takes frames back as fast as puts need them.
    Reclaim,
}

const NEIGHBOURS: [Neighbour; 3] = [Neighbour::None, Neighbour::Busy, Neighbour::Reclaim];

/// What the budget is above the packed pages.
const HEADROOM_BYTES: u64 = 1 << 20;
/// Between two calls of background reclaim.
const PAUSE: Duration = Duration::from_micros(200);

/// One allocator with one neighbour. Percentiles are p50, p99, p99.9 in microseconds, medians over the rounds.
#[derive(Serialize)]
pub struct Row {
    pub allocator: &'static str,
    pub neighbour: Neighbour,
    pub put_us: [f64; 3],
    pub get_us: [f64; 3],
    /// Medians of single operations to those of the bare codec in the same round.
    put_to_bare: f64,
    get_to_bare: f64,
    reclaimed_frames: u64,
}

/// One round.
#[derive(Default)]
struct Round {
    put: Times,
    get: Times,
    reclaimed_frames: u64,
}

/// Measures and prints.
pub fn measure(samples: &[Sample], quick: bool, rounds: u32) -> anyhow::Result<Vec<Row>> {
    let codec = CodecKind::default();
    let pages = Pages::of(samples, codec);
    let keys = if quick { 4_000 } else { 30_000 };
    println!(
        "\nPuts and gets that hit, microseconds: p50, p99, p99.9; {codec:?}, {keys} pages in the store, medians of {rounds} interleaved\n\
         rounds. / bare: p50 to that of the bare codec. / none: p99.9 of gets to that without a second thread.\n"
    );
    let mut bare = Vec::new();
    let mut all: Vec<Vec<Round>> = Vec::new();
    all.resize_with(ALLOCATORS.len() * NEIGHBOURS.len(), Vec::new);
    for _ in 0..rounds {
        bare.push(bare_round(&pages, codec, keys));
        let combinations = ALLOCATORS.iter().flat_map(|(kind, _)| NEIGHBOURS.map(|neighbour| (*kind, neighbour)));
        for ((allocator, neighbour), rounds) in combinations.zip(&mut all) {
            interrupt::check()?;
            rounds.push(round(&pages, codec, keys, allocator, neighbour)?);
        }
    }
    let names = ALLOCATORS.iter().flat_map(|(_, name)| NEIGHBOURS.map(|neighbour| (*name, neighbour)));
    let rows: Vec<Row> =
        names.zip(&all).map(|((name, neighbour), rounds)| row(name, neighbour, rounds, &bare)).collect();
    print(&rows, &bare);
    Ok(rows)
}

/// The bare codec at the same work in the same order: packs a page, expands another one.
fn bare_round(pages: &Pages, codec: CodecKind, keys: u32) -> Round {
    let mut bare = BareCodec::new(codec);
    let page = |number: u32| &pages.pages[number as usize % pages.pages.len()];
    let packed: Vec<Vec<u8>> = (0..keys).map(|number| bare.compress(page(number)).to_vec()).collect();
    let mut round = Round::default();
    let mut random = Random::new(3);
    let mut out = [0; PAGE_SIZE];
    for number in keys..3 * keys {
        round.put.time(|| bare.compress(page(number)).len());
        let wanted = number - random.below(u64::from(keys) / 2) as u32;
        let bytes = &packed[wanted as usize % packed.len()];
        round.get.time(|| bare.expand(bytes, &mut out));
    }
    round
}

fn round(
    pages: &Pages,
    codec: CodecKind,
    keys: u32,
    allocator: AllocatorKind,
    neighbour: Neighbour,
) -> anyhow::Result<Round> {
    let packed: u64 = (0..keys as usize).map(|key| u64::from(pages.packed_bytes[key % pages.packed_bytes.len()])).sum();
    let budget_bytes = match neighbour {
        Neighbour::Reclaim => samples::fixed_bytes(allocator, codec, &pages.pages[0])? + packed + HEADROOM_BYTES,
        _ => AMPLE_BYTES,
    };
    let store = samples::store(allocator, codec, budget_bytes)?;
    let pool = store.create_pool(PoolKind::Ephemeral, PoolOptions::default())?;
    let key = |number: u32| Key::new(pool, 1, number);
    let page = |number: u32| &pages.pages[number as usize % pages.pages.len()];
    for number in 0..keys {
        store.put(key(number), page(number))?;
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| accompany(neighbour, &store, pages, codec, &stop));
        let measured = first_thread(&store, keys, key, page);
        // Relaxed: nothing else is read after it.
        stop.store(true, Ordering::Relaxed);
        let reclaimed_frames = second.join().expect("the second thread does not panic");
        Ok(Round { reclaimed_frames, ..measured? })
    })
}

/// Puts new pages and gets some of the newer half of all.
fn first_thread<'a>(
    store: &Store,
    keys: u32,
    key: impl Fn(u32) -> Key,
    page: impl Fn(u32) -> &'a tmem::Page,
) -> anyhow::Result<Round> {
    let mut round = Round::default();
    let mut random = Random::new(3);
    let mut out = [0; PAGE_SIZE];
    for number in keys..3 * keys {
        round.put.time(|| store.put(key(number), page(number)))?;
        let wanted = number - random.below(u64::from(keys) / 2) as u32;
        let (hit, ns) = timed(|| store.get(key(wanted), &mut out));
        if hit? {
            ensure!(out == *page(wanted), "a get gave another page than was put");
            round.get.add(ns);
        }
    }
    Ok(round)
}

/// Keeps the second thread busy until it is to stop. Says how many frames were taken back.
fn accompany(neighbour: Neighbour, store: &Store, pages: &Pages, codec: CodecKind, stop: &AtomicBool) -> u64 {
    let mut frames = 0;
    let mut bare = BareCodec::new(codec);
    let mut own = pages.pages.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        match neighbour {
            Neighbour::None => return 0,
            Neighbour::Busy => {
                std::hint::black_box(own.next().map(|page| bare.compress(page).len()));
            }
            Neighbour::Reclaim => {
                frames += store.balance(None).frames;
                std::thread::sleep(PAUSE);
            }
        }
    }
    frames
}

fn row(allocator: &'static str, neighbour: Neighbour, rounds: &[Round], bare: &[Round]) -> Row {
    let to_bare = |pick: fn(&Round) -> &Times| {
        let p50 = |round| pick(round).percentiles([0.5])[0];
        median(rounds.iter().zip(bare).map(|(round, bare)| p50(round) / p50(bare)))
    };
    Row {
        allocator,
        neighbour,
        put_us: percentiles(rounds, |round| &round.put),
        get_us: percentiles(rounds, |round| &round.get),
        put_to_bare: to_bare(|round| &round.put),
        get_to_bare: to_bare(|round| &round.get),
        reclaimed_frames: median(rounds.iter().map(|round| round.reclaimed_frames as f64)) as u64,
    }
}

fn percentiles(rounds: &[Round], pick: fn(&Round) -> &Times) -> [f64; 3] {
    let all: Vec<[f64; 3]> = rounds.iter().map(|round| pick(round).percentiles(SHARES)).collect();
    [0, 1, 2].map(|i| median(all.iter().map(|round| round[i])) / 1000.0)
}

fn print(rows: &[Row], bare: &[Round]) {
    let table = Table::head(&[
        ("allocator", 10),
        ("second thread", 13),
        ("put", 21),
        ("/ bare", 6),
        ("get", 21),
        ("/ bare", 6),
        ("/ none", 6),
        ("frames", 7),
    ]);
    let show = |us: [f64; 3]| us.map(|us| format!("{us:.2}")).join(" ");
    let (put, get) = (percentiles(bare, |round| &round.put), percentiles(bare, |round| &round.get));
    let nothing = String::new;
    table.row(&["bare codec".to_owned(), nothing(), show(put), nothing(), show(get)]);
    for group in rows.chunks(NEIGHBOURS.len()) {
        for row in group {
            table.row(&[
                row.allocator.to_owned(),
                format!("{:?}", row.neighbour).to_lowercase(),
                show(row.put_us),
                format!("{:.3}", row.put_to_bare),
                show(row.get_us),
                format!("{:.3}", row.get_to_bare),
                format!("{:.2}", row.get_us[2] / group[0].get_us[2]),
                row.reclaimed_frames.to_string(),
            ]);
        }
    }
}
