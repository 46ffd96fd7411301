//! The spill file as the store sees it: [`Watched`] passes its reads and writes on, and [`Notes`] says what became of them.
//!
//! Every byte that the store writes comes through here, also what cleaning moves: so it is here that a write budget is
//! kept. A read that fails is tried again, because the store has no other copy: what passes must not cost the program its
//! life. Whether what was read is what was written is for the store to say.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tmem::{Homing, Tier};

use crate::write_budget::WriteBudget;

/// How long to wait before a read that failed is tried again.
const PAUSES: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(100)];
/// After so many reads in a row that were given up, the next ones are tried once, until one works: those that a window of
/// faults reads one by one must not take minutes.
const GIVEN_UP_MAX: u32 = 8;

/// LZ4 makes about 500 bytes more of a page than zstd -1 and saves 10 us of packing and expanding it; to write and read them
/// takes as long at 100 MB/s. Twice as fast is fast.
const CHEAP_MIB_NS: u64 = 5_000_000;

/// Why the last write did not work.
#[derive(Debug)]
pub enum Obstacle {
    /// The write budget is used up for now.
    Budget,
    /// The disk says no.
    Failure {
        /// What it says.
        error: io::Error,
        /// Writes that failed since one worked.
        in_a_row: u32,
    },
}

/// What became of reads and writes so far.
#[derive(Debug, Default)]
pub struct Notes {
    budget: Option<Mutex<WriteBudget>>,
    writes_put_off: AtomicU64,
    writes_refused: AtomicU64,
    /// Mean time that writing a MiB took lately, in nanoseconds; 0 before the first write.
    write_ns: AtomicU64,
    read_bytes: AtomicU64,
    reads_retried: AtomicU64,
    /// Reads that were given up since one worked.
    given_up_in_a_row: AtomicU32,
    obstacle: Mutex<Option<Obstacle>>,
}

/// The write budget at one moment; all zero without one.
#[derive(Clone, Copy, Debug, Default)]
pub struct WritesLeft {
    /// What it gains in a day.
    pub bytes_per_day: u64,
    /// What may be written.
    pub left_bytes: u64,
}

impl Notes {
    /// With so many bytes to be written in a day, or with as many as anybody likes.
    pub fn new(bytes_per_day: Option<u64>) -> Notes {
        let budget = bytes_per_day.map(|bytes| Mutex::new(WriteBudget::new(bytes, Instant::now())));
        Notes { budget, ..Notes::default() }
    }

    fn budget(&self) -> Option<MutexGuard<'_, WriteBudget>> {
        self.budget.as_ref().map(|budget| budget.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why the last write did not work; nothing if it did.
    pub fn obstacle(&self) -> MutexGuard<'_, Option<Obstacle>> {
        self.obstacle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has whoever wants to write about so many bytes wait, if the budget does not have them: for how long.
    pub fn put_off(&self, bytes: u64) -> Option<Duration> {
        let wait = self.time_until(bytes);
        self.writes_put_off.fetch_add(wait.is_some().into(), Relaxed);
        wait
    }

    /// When so many bytes may be written, if that is not now.
    pub fn time_until(&self, bytes: u64) -> Option<Duration> {
        Some(self.budget()?.time_until(bytes, Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// What may be written.
    pub fn writes_left(&self) -> WritesLeft {
        let now = Instant::now();
        let left = |mut budget: MutexGuard<'_, WriteBudget>| WritesLeft {
            bytes_per_day: budget.bytes_per_day(),
            left_bytes: budget.left_bytes(now),
        };
        self.budget().map(left).unwrap_or_default()
    }

    /// How often the budget put off a write, before or after it was begun.
    pub fn writes_put_off(&self) -> u64 {
        self.writes_put_off.load(Relaxed) + self.writes_refused()
    }

    /// Of those, writes that the store had begun, which counts them as failed.
    pub fn writes_refused(&self) -> u64 {
        self.writes_refused.load(Relaxed)
    }

    /// Whether a byte more or less to write matters little: the disk takes them quickly, and nobody counts them.
    pub fn writes_are_cheap(&self) -> bool {
        let ns = self.write_ns.load(Relaxed);
        self.budget.is_none() && ns > 0 && ns < CHEAP_MIB_NS
    }

    fn note_write(&self, bytes: usize, time: Duration) {
        let ns = (time.as_nanos() << 20) as u64 / bytes.max(1) as u64;
        let mean = self.write_ns.load(Relaxed);
        // Two threads at a time may lose a note.
        self.write_ns.store(if mean == 0 { ns } else { mean - mean / 8 + ns / 8 }, Relaxed);
    }

    /// Attempts to read again what could not be read.
    pub fn reads_retried(&self) -> u64 {
        self.reads_retried.load(Relaxed)
    }

    /// Bytes that were read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Relaxed)
    }
}

/// A tier that notes what becomes of reads and writes and keeps the write budget.
pub struct Watched {
    /// Where the bytes go.
    pub tier: Box<dyn Tier>,
    /// What is noted.
    pub notes: Arc<Notes>,
}

impl Tier for Watched {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Also of a write that fails, some part may have been written.
        if self.notes.budget().is_some_and(|mut budget| !budget.take(bytes.len() as u64, Instant::now())) {
            self.notes.writes_refused.fetch_add(1, Relaxed);
            *self.notes.obstacle() = Some(Obstacle::Budget);
            return Err(io::Error::other("the write budget is used up"));
        }
        let start = Instant::now();
        let written = self.tier.write(offset, bytes);
        self.notes.note_write(bytes.len(), start.elapsed());
        let mut obstacle = self.notes.obstacle();
        let failed_before = match &*obstacle {
            Some(Obstacle::Failure { in_a_row, .. }) => *in_a_row,
            _ => 0,
        };
        let kind = written.as_ref().map_err(io::Error::kind).copied();
        *obstacle = written.err().map(|error| Obstacle::Failure { error, in_a_row: failed_before.saturating_add(1) });
        kind.map_err(io::Error::from)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_checked(offset, bytes, &mut |_| true)
    }

    fn read_checked(
        &self,
        offset: u64,
        bytes: &mut [u8],
        is_right: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> io::Result<()> {
        let notes = &self.notes;
        notes.read_bytes.fetch_add(bytes.len() as u64, Relaxed);
        let mut read = self.tier.read_checked(offset, bytes, is_right);
        for pause in PAUSES {
            // Who says that it took too long has waited already.
            let waited = read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            if read.is_ok() || waited || notes.given_up_in_a_row.load(Relaxed) >= GIVEN_UP_MAX {
                break;
            }
            thread::sleep(pause);
            notes.reads_retried.fetch_add(1, Relaxed);
            read = self.tier.read_checked(offset, bytes, is_right);
        }
        match read {
            Ok(()) => notes.given_up_in_a_row.store(0, Relaxed),
            Err(_) => _ = notes.given_up_in_a_row.fetch_add(1, Relaxed),
        }
        read
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.tier.discard(offset, bytes)
    }

    fn homing(&self) -> Homing {
        self.tier.homing()
    }
}

#[cfg(test)]
mod tests {
    use tmem::{Fault, FaultyTier, MemoryTier, Strike};

    use super::*;

    const BLOCK: [u8; 4096] = [7; 4096];

    fn faulty(fault: Fault, strike: Strike) -> Watched {
        let tier = FaultyTier::at(MemoryTier::new(), fault, strike, 1);
        watched(Box::new(tier), None)
    }

    fn watched(tier: Box<dyn Tier>, bytes_per_day: Option<u64>) -> Watched {
        Watched { tier, notes: Arc::new(Notes::new(bytes_per_day)) }
    }

    #[test]
    fn no_write_exceeds_the_budget() {
        let watched = watched(Box::new(MemoryTier::new()), Some(1));
        let (bytes, notes) = (vec![7; 1 << 20], &watched.notes);
        let written = (0..100_u64).take_while(|mib| watched.write(mib << 20, &bytes).is_ok()).count();
        assert_eq!(written, 96);
        assert!(matches!(*notes.obstacle(), Some(Obstacle::Budget)));
        assert_eq!((notes.writes_put_off(), notes.writes_refused(), notes.writes_left().left_bytes), (1, 1, 0));
        assert!(notes.put_off(4096).is_some_and(|wait| wait > Duration::from_secs(1000 * 3600)));
        assert_eq!((notes.writes_put_off(), notes.writes_refused()), (2, 1));
    }

    #[test]
    fn without_a_budget_nothing_is_put_off() {
        let watched = watched(Box::new(MemoryTier::new()), None);
        (0..200).for_each(|_| watched.write(0, &[7; 1 << 20]).unwrap());
        assert_eq!((watched.notes.put_off(u64::MAX), watched.notes.writes_put_off()), (None, 0));
        assert_eq!(watched.notes.writes_left().bytes_per_day, 0);
    }

    #[test]
    fn a_read_that_fails_is_tried_again() {
        let watched = faulty(Fault::FailRead, Strike::OneIn(3));
        watched.write(0, &BLOCK).unwrap();
        let mut bytes = [0; 4096];
        let read = (0..30).filter(|_| watched.read(0, &mut bytes).is_ok()).count();
        assert!(read > 25 && bytes == BLOCK, "{read}");
        assert!((5..60).contains(&watched.notes.reads_retried()), "{}", watched.notes.reads_retried());
        assert_eq!(watched.notes.read_bytes(), 30 * 4096);
    }

    #[test]
    fn a_disk_that_reads_nothing_is_believed() {
        let watched = faulty(Fault::FailRead, Strike::From(2));
        watched.write(0, &BLOCK).unwrap();
        let mut bytes = [0; 4096];
        watched.read(0, &mut bytes).unwrap();
        let began = Instant::now();
        (0..100).for_each(|_| _ = watched.read(0, &mut bytes).unwrap_err());
        assert_eq!(watched.notes.reads_retried(), 3 * u64::from(GIVEN_UP_MAX));
        assert!(began.elapsed() >= GIVEN_UP_MAX * PAUSES.iter().sum::<Duration>());
    }

    #[test]
    fn what_is_read_wrong_is_not_read_again() {
        let watched = faulty(Fault::CorruptRead, Strike::From(1));
        watched.write(0, &BLOCK).unwrap();
        let mut bytes = [0; 4096];
        watched.read(0, &mut bytes).unwrap();
        assert!(bytes != BLOCK && watched.notes.reads_retried() == 0);
    }

    #[test]
    fn a_write_that_works_forgets_those_that_failed() {
        let failed = |watched: &Watched| match &*watched.notes.obstacle() {
            None => 0,
            Some(Obstacle::Failure { error, in_a_row }) if error.to_string() == "a fault on purpose" => *in_a_row,
            other => panic!("{other:?}"),
        };
        let lasting = faulty(Fault::FailWrite, Strike::From(2));
        lasting.write(0, &BLOCK).unwrap();
        for number in 1..=3 {
            lasting.write(0, &BLOCK).unwrap_err();
            assert_eq!(failed(&lasting), number);
        }
        let passing = faulty(Fault::FailWrite, Strike::Nth(1));
        passing.write(0, &BLOCK).unwrap_err();
        assert_eq!(failed(&passing), 1);
        passing.write(0, &BLOCK).unwrap();
        assert_eq!(failed(&passing), 0);
    }

    #[test]
    fn writes_are_cheap_when_they_are_fast_and_nobody_counts_them() {
        let write = |watched: &Watched| (0..20).for_each(|_| watched.write(0, &vec![7; 1 << 18]).unwrap());
        let delay = |time| FaultyTier::new(MemoryTier::new(), Fault::DelayWrite(time), 1, 1);
        let fast = watched(Box::new(MemoryTier::new()), None);
        assert!(!fast.notes.writes_are_cheap(), "nothing is known yet");
        write(&fast);
        assert!(fast.notes.writes_are_cheap());
        let slow = watched(Box::new(delay(Duration::from_millis(3))), None);
        write(&slow);
        assert!(!slow.notes.writes_are_cheap());
        let counted = watched(Box::new(MemoryTier::new()), Some(u64::MAX));
        write(&counted);
        assert!(!counted.notes.writes_are_cheap());
    }
}
