//! Counters that many threads add to, and the memory account against the budget.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::report::FaultTimes;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Events since the start; each is only ever added to.
        #[derive(Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64),+ }
    };
}

counters! {
    /// Pages moved out of targets.
    pages_evicted,
    /// Pages brought back.
    pages_returned,
    /// Of those, pages that came with a neighbour.
    pages_read_ahead,
    /// Of those, pages that were still in staging.
    pages_from_staging,
    /// Faults for a stored page so soon that it must have been in use all the time.
    pages_refaulted,
    /// Evicted pages whose stored copy was still valid.
    swapcache_hits,
    /// Pages filled with zeros at first touch.
    pages_zero_filled,
    /// Pages that would not move (pinned, shared, locked).
    pages_stuck,
    /// Pages that the store did not take.
    pages_incompressible,
    /// Faults and growth that waited for room.
    faults_parked,
    /// Threads stopped because memory grew where no fault showed it.
    threads_held,
    /// Times over budget with nothing to shrink.
    on_full_events,
    /// Agents injected.
    processes_managed,
    /// Forks followed.
    forks_followed,
    /// Attempts to manage a process that could not be stopped just then.
    process_busy,
    /// Attempts to manage one that ended.
    process_gone,
    /// Attempts to manage one that ptrace was refused for.
    process_ptrace,
    /// Attempts to manage one that cannot take an agent.
    process_unfit,
    /// Attempts to manage one in which a call failed.
    process_failed,
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

/// The memory account: what was sampled last, plus what we know happened since.
#[derive(Default)]
pub struct Account {
    sampled: AtomicI64,
    since: AtomicI64,
}

impl Account {
    /// Bytes in use by targets and supervisor, as far as known now.
    pub fn estimate(&self) -> u64 {
        (self.sampled.load(Relaxed) + self.since.load(Relaxed)).max(0) as u64
    }

    /// Notes memory that was given out or taken back since the last sample.
    pub fn note(&self, bytes: i64) {
        self.since.fetch_add(bytes, Relaxed);
    }

    /// What was noted so far; taken before a sample begins, so that nothing noted during it is lost.
    pub fn noted(&self) -> i64 {
        self.since.load(Relaxed)
    }

    /// Replaces the sample; `noted` is what [`Account::noted`] gave before sampling.
    pub fn sample(&self, bytes: u64, noted: i64) {
        self.sampled.store(bytes as i64, Relaxed);
        self.since.fetch_sub(noted, Relaxed);
    }
}

const SUB_BUCKETS: usize = 16;

/// Times in nanoseconds, in buckets that grow by a sixteenth: percentiles within 6 %.
pub struct Histogram {
    buckets: Vec<AtomicU64>,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: (0..64 * SUB_BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Histogram {
    /// Adds one time.
    pub fn record(&self, ns: u64) {
        self.buckets[Self::bucket(ns)].fetch_add(1, Relaxed);
    }

    fn bucket(ns: u64) -> usize {
        let ns = ns.max(SUB_BUCKETS as u64);
        let power = ns.ilog2() as usize;
        let sub = (ns >> (power - 4)) as usize & (SUB_BUCKETS - 1);
        power * SUB_BUCKETS + sub
    }

    fn floor(bucket: usize) -> u64 {
        let (power, sub) = (bucket / SUB_BUCKETS, bucket % SUB_BUCKETS);
        if power < 4 { 0 } else { (SUB_BUCKETS as u64 + sub as u64) << (power - 4) }
    }

    /// Count and percentiles so far.
    pub fn times(&self) -> FaultTimes {
        let counts: Vec<u64> = self.buckets.iter().map(|b| b.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let percentile = |p: u64| {
            let mut left = (total * p).div_ceil(100);
            for (bucket, &n) in counts.iter().enumerate() {
                if n > 0 && n >= left {
                    return Self::floor(bucket);
                }
                left -= n;
            }
            0
        };
        FaultTimes { count: total, p50: percentile(50), p90: percentile(90), p99: percentile(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_sixteenth() {
        let h = Histogram::default();
        (1..=10_000_u64).for_each(|n| h.record(n * 10));
        let t = h.times();
        assert_eq!(t.count, 10_000);
        for (got, want) in [(t.p50, 50_000_f64), (t.p90, 90_000.0), (t.p99, 99_000.0)] {
            assert!((got as f64) <= want && got as f64 > want * 0.93, "{got} for {want}");
        }
        assert_eq!(Histogram::default().times().p99, 0);
    }

    #[test]
    fn what_happens_during_a_sample_is_not_lost() {
        let a = Account::default();
        a.note(100);
        let noted = a.noted();
        a.note(7);
        a.sample(1000, noted);
        assert_eq!(a.estimate(), 1007);
    }
}
