//! A write budget: how much may be written to a disk that wears out by being written.
//!
//! A bucket of bytes that time fills, evenly over the day, and writes empty. What it holds at most bounds what is written at
//! once after a time of rest; what it holds at first bounds what short programs write that are started one after the other.
//! It knows no clock: whoever asks says what time it is.

use std::time::{Duration, Instant};

const NANOS_PER_DAY: u128 = 24 * 3600 * 1_000_000_000;
/// The part of a day's bytes that is there at the start: an hour's.
const START_PART: u64 = 24;
/// The part of a day's bytes that can be saved up: six hours'.
const MAX_PART: u64 = 4;
/// With less than this at the start and saved up, a program would hardly have begun to spill when it has to stop.
const BUCKET_BYTES_MIN: u64 = 96 << 20;

/// Bytes that may be written.
#[derive(Debug)]
pub struct WriteBudget {
    bytes_per_day: u64,
    left_bytes: u64,
    /// What was gained of the next byte, in parts of which a byte has [`NANOS_PER_DAY`].
    fraction: u128,
    /// Up to when time has been turned into bytes.
    filled_until: Instant,
}

impl WriteBudget {
    /// With an hour's share of a day's bytes, at least 96 MiB.
    pub fn new(bytes_per_day: u64, now: Instant) -> WriteBudget {
        let left_bytes = (bytes_per_day / START_PART).max(BUCKET_BYTES_MIN);
        WriteBudget { bytes_per_day, left_bytes, fraction: 0, filled_until: now }
    }

    /// What the budget gains in a day.
    pub fn bytes_per_day(&self) -> u64 {
        self.bytes_per_day
    }

    /// What may be written now.
    pub fn left_bytes(&mut self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.filled_until).as_nanos();
        let gained = nanos * u128::from(self.bytes_per_day) + self.fraction;
        let bytes_max = (self.bytes_per_day / MAX_PART).max(BUCKET_BYTES_MIN);
        let left_bytes = u128::from(self.left_bytes) + gained / NANOS_PER_DAY;
        self.left_bytes = u64::try_from(left_bytes).map_or(bytes_max, |bytes| bytes.min(bytes_max));
        self.fraction = gained % NANOS_PER_DAY;
        self.filled_until = self.filled_until.max(now);
        self.left_bytes
    }

    /// Takes the bytes of a write. False if there are fewer: then they are all left.
    pub fn take(&mut self, bytes: u64, now: Instant) -> bool {
        let suffices = bytes <= self.left_bytes(now);
        if suffices {
            self.left_bytes -= bytes;
        }
        suffices
    }

    /// How long it takes until so much may be written, if nothing is meanwhile.
    pub fn time_until(&mut self, bytes: u64, now: Instant) -> Duration {
        let missing = bytes.saturating_sub(self.left_bytes(now));
        let parts = (u128::from(missing) * NANOS_PER_DAY).saturating_sub(self.fraction);
        let nanos = parts.div_ceil(self.bytes_per_day.max(1).into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn it_begins_with_an_hour_and_saves_up_six() {
        let start = Instant::now();
        let mut budget = WriteBudget::new(24 * GIB, start);
        assert_eq!(budget.left_bytes(start), GIB);
        assert_eq!(budget.left_bytes(start + HOUR), 2 * GIB);
        assert_eq!(budget.left_bytes(start + 5 * HOUR), 6 * GIB);
        assert_eq!(budget.left_bytes(start + 500 * HOUR), 6 * GIB);
        // What was gained beyond that is lost, not owed.
        assert!(budget.take(6 * GIB, start + 500 * HOUR));
        assert_eq!(budget.left_bytes(start + 501 * HOUR), GIB);
    }

    #[test]
    fn a_small_one_has_enough_to_work_with() {
        let start = Instant::now();
        let mut budget = WriteBudget::new(24 * MIB, start);
        assert_eq!(budget.left_bytes(start), 96 * MIB);
        assert_eq!(budget.left_bytes(start + 100 * HOUR), 96 * MIB);
        assert!(budget.take(96 * MIB, start + 100 * HOUR));
        assert_eq!(budget.left_bytes(start + 101 * HOUR), MIB);
    }

    #[test]
    fn what_would_exceed_it_is_refused_and_costs_nothing() {
        let start = Instant::now();
        let mut budget = WriteBudget::new(24 * GIB, start);
        assert!(budget.take(GIB - MIB, start));
        assert!(!budget.take(MIB + 1, start));
        assert!(budget.take(MIB, start));
        assert!(!budget.take(1, start));
        assert_eq!(budget.time_until(GIB, start), HOUR);
        assert!(!budget.take(GIB, start + HOUR - Duration::from_nanos(1)));
        assert!(budget.take(GIB, start + HOUR));
        assert_eq!(budget.time_until(0, start + HOUR), Duration::ZERO);
    }

    #[test]
    fn asking_often_neither_gains_nor_loses() {
        let start = Instant::now();
        // A byte in 86.4 ms, asked for every 7 ms, for 864 s.
        let mut budget = WriteBudget::new(1_000_000, start);
        assert!(budget.take(96 * MIB, start));
        let mut written = 0;
        for step in 0..=123_429 {
            let now = start + Duration::from_millis(7 * step);
            written += u64::from(budget.take(1, now));
        }
        assert_eq!(written, 10_000);
    }

    #[test]
    fn a_clock_that_runs_backwards_and_absurd_budgets_do_no_harm() {
        let start = Instant::now() + HOUR;
        let mut budget = WriteBudget::new(24 * GIB, start);
        assert_eq!(budget.left_bytes(start - HOUR), GIB);
        let mut most = WriteBudget::new(u64::MAX, start);
        assert_eq!(most.left_bytes(start + 1000 * HOUR), u64::MAX / MAX_PART);
        let mut least = WriteBudget::new(1, start);
        assert!(least.take(96 * MIB, start) && !least.take(1, start + HOUR));
        assert!(least.time_until(u64::MAX, start) > 1000 * HOUR);
    }
}
