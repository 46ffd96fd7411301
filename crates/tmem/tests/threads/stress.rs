//! Every operation of the store from many threads at once, each of them against a model of what it owns.
//!
//! Some seconds by default, ten minutes with `TMEM_LONG=1`, anything else with `TMEM_STRESS_SECONDS`; longer where a loaded
//! machine has not met everything by then. The seed is printed; `TMEM_SEED` gives each thread the same operations again,
//! though not the same order between threads.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tmem::testing::{Lent, Random};
use tmem::{
    AllocatorKind, CodecKind, Config, Fault, FaultyTier, FileTier, PoolKind, PoolOptions, Spill, SpillStats, Store,
};

use crate::checker::{Counts, Floors, Worker, World};

const ALLOCATORS: [AllocatorKind; 4] =
    [AllocatorKind::Log, AllocatorKind::Zsmalloc, AllocatorKind::Xvmalloc, AllocatorKind::Zbud];
const CODECS: [CodecKind; 2] = [CodecKind::Lz4, CodecKind::Zstd { level: 1 }];
const BUDGET_BYTES_MAX: u64 = 6 << 20;
const BUDGET_BYTES_MIN: u64 = 2 << 20;
/// What clones, re-keys and rows may take beyond the budget, for all threads together.
const OVERSHOOT_BYTES_MAX: u64 = 256 << 10;
/// A run that was too easy goes on, up to this many times its time.
const TIMES_MAX: u32 = 20;

pub(crate) struct Plan {
    pub(crate) threads: u64,
    pub(crate) time: Duration,
    pub(crate) seed: u64,
}

impl Plan {
    pub(crate) fn from_environment() -> Self {
        let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
        let long = std::env::var_os("TMEM_LONG").is_some_and(|value| value != "0");
        let (threads, seconds) = if long { (8, 600) } else { (4, 8) };
        let time = Duration::from_secs(number("TMEM_STRESS_SECONDS").unwrap_or(seconds));
        let now = || std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
        Self { threads, time, seed: number("TMEM_SEED").unwrap_or_else(now) }
    }
}

#[test]
fn every_operation_from_many_threads() {
    let plan = Plan::from_environment();
    println!("TMEM_SEED={}, {} threads, {:?}", plan.seed, plan.threads, plan.time);
    let setups = ALLOCATORS.into_iter().flat_map(|allocator| CODECS.map(|codec| (allocator, codec, false)));
    let setups: Vec<_> = setups.chain([(AllocatorKind::Zsmalloc, CodecKind::Lz4, true)]).collect();
    let part = plan.time / setups.len() as u32;
    for (allocator, codec, late) in setups {
        println!("{allocator:?}, {codec:?}{}", if late { ", packed late" } else { "" });
        run(&plan, part, Config::new(BUDGET_BYTES_MAX).allocator(allocator).codec(codec).packs_late(late), false);
    }
}

/// The same with a file that is small enough to be full now and then, on a disk that is slow and fails now and then.
#[test]
fn every_operation_with_a_spill_file() {
    let plan = Plan::from_environment();
    println!("TMEM_SEED={}, {} threads, {:?}", plan.seed, plan.threads, plan.time);
    for allocator in ALLOCATORS {
        println!("{allocator:?}");
        // Late where the allocator can do that.
        let config = Config::new(BUDGET_BYTES_MAX).allocator(allocator).packs_late(true);
        run(&plan, plan.time / ALLOCATORS.len() as u32, config, true);
    }
}

const SPILL_BYTES_MAX: u64 = 8 << 20;

fn spill(seed: u64) -> Spill {
    let tier = FileTier::unnamed(&std::env::temp_dir()).unwrap();
    let tier = FaultyTier::new(tier, Fault::Delay(Duration::from_millis(1)), 64, seed);
    let tier = FaultyTier::new(tier, Fault::FailDiscard, 4, seed);
    Spill::new(Lent::new(FaultyTier::new(tier, Fault::TearWrite, 8, seed)), SPILL_BYTES_MAX)
}

fn spilled_all_ways(spill: &SpillStats) -> bool {
    let counts = [spill.spilled, spill.fetched, spill.promoted, spill.recalled, spill.write_failures, spill.discards];
    counts.iter().all(|count| *count > 0)
}

/// Ends the run for all threads when one of them fails.
pub(crate) struct Alarm<'a>(pub(crate) &'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Relaxed);
        }
    }
}

/// Lets the threads of a run work until its time is over and it was hard, or one of them failed.
pub(crate) fn work(time: Duration, done: &AtomicBool, is_hard: impl Fn() -> bool) {
    let start = Instant::now();
    let goes_on = || start.elapsed() < time || (start.elapsed() < TIMES_MAX * time && !is_hard());
    while goes_on() && !done.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
    }
    done.store(true, Relaxed);
}

fn run(plan: &Plan, time: Duration, config: Config, spills: bool) {
    // Fewer contexts than threads, and few shards, so that threads meet.
    let store = Store::new(config.threads(3).shards(8)).unwrap();
    if spills {
        store.add_spill(spill(plan.seed)).unwrap();
    }
    let create = |kind| store.create_pool(kind, PoolOptions::default()).unwrap();
    let world = World {
        store: &store,
        pools: [PoolKind::Ephemeral, PoolKind::Persistent].map(|kind| (create(kind), kind)),
        commons: RwLock::new(create(PoolKind::Persistent)),
        floors: (0..plan.threads).map(|_| Floors::default()).collect(),
        counts: Counts::default(),
    };
    let done = AtomicBool::new(false);
    let is_hard = || {
        let stats = store.stats();
        let moved = stats.evictions > 0 && stats.moves > 0;
        moved && world.counts.are_hard() && (!spills || spilled_all_ways(&stats.spill))
    };
    std::thread::scope(|scope| {
        for owner in 0..plan.threads {
            let (world, done) = (&world, &done);
            scope.spawn(move || {
                let _alarm = Alarm(done);
                let mut worker = Worker::new(world, owner, plan.seed);
                while !done.load(Relaxed) {
                    (0..64).for_each(|_| worker.step());
                    worker.assert_some();
                }
                worker.assert_all();
            });
        }
        scope.spawn(|| background(&store, Random::new(!plan.seed), &done));
        work(time, &done, is_hard);
    });
    let stats = store.stats();
    println!("{:?}\n{stats:?}", world.counts);
    assert!(is_hard(), "the run was too easy");
    assert_eq!(stats.spill.damaged, 0);
    world.destroy();
    assert_empty(&store);
}

/// What owners of a store do beside its users: housekeeping, and a budget that comes and goes.
fn background(store: &Store, mut random: Random, done: &AtomicBool) {
    let _alarm = Alarm(done);
    while !done.load(Relaxed) {
        match random.below(40) {
            0 => store.set_budget(BUDGET_BYTES_MAX - random.below(BUDGET_BYTES_MAX - BUDGET_BYTES_MIN)),
            1 => store.set_budget(BUDGET_BYTES_MAX),
            2 => drop(store.reclaim(random.below(50), None)),
            3 => drop(store.balance(None)),
            4..=5 => drop(store.recompress(Duration::from_micros(300))),
            6..=7 => drop(store.trim()),
            8 => std::thread::sleep(Duration::from_millis(1)),
            9 => drop(store.recall(256 << 10)),
            _ => drop(store.maintain()),
        }
        let stats = store.stats();
        assert!(stats.memory_bytes <= BUDGET_BYTES_MAX + OVERSHOOT_BYTES_MAX, "{stats:?}");
        assert_eq!(stats.corrupt, 0);
    }
    store.set_budget(BUDGET_BYTES_MAX);
}

fn assert_empty(store: &Store) {
    while store.maintain().more {}
    let stats = store.stats();
    assert_eq!((stats.pages, stats.zpages, stats.zpage_bytes, stats.same_filled), (0, 0, 0, 0));
    assert_eq!((stats.corrupt, stats.pools, stats.spill.zpages, stats.spill.live_bytes), (0, 0, 0, 0));
    assert!(stats.memory_bytes < 2 << 20, "{stats:?}");
}
