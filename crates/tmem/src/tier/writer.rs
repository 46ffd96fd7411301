//! The writer: zpages are gathered in a batch, written together, and only then named by the words of the index.
//!
//! There is one writer to a file, and whoever spills or cleans holds its lock for a batch. Its memory is taken once.
//! A batch is sealed and, after it was written, opened again in place, so that what was written can be compared with
//! what is in RAM by then.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::record::{self, Extent, Head, SEGMENT_BYTES, SEGMENT_HEADER_BYTES};
use super::segments::Segment;
use super::spill_file::{SpillFile, count, place};
use super::{Pin, TIER_BLOCK_BYTES};
use crate::alloc::Owner;
use crate::codec::Encoding;
use crate::index::Word;

/// A disk is written in pieces of at least this size; only the last one of a pass may be smaller.
pub(crate) const WRITE_BYTES_MIN: usize = 64 << 10;
/// A region of the log of 64 frames, with the longer heads that records have.
const WRITE_BYTES_MAX: usize = 288 << 10;
/// The part of the budget that a batch may take.
const BUDGET_PART: u64 = 16;
/// Zpages of a batch. The smallest records take 32 bytes: even of those, a batch is as long as a write has to be.
const ZPAGES_MAX: usize = WRITE_BYTES_MIN / 32;
/// How long no spill is tried after a write failed; twice as long after each failure that follows.
const REST_MIN: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_secs(10);
/// A tier that had no room for a write is believed to have no more for so long; then it is found out anew.
const FULL_TIME: Duration = Duration::from_secs(60);
/// A segment is cleaned if at most this many tenths of it are alive.
const CLEAN_TENTHS_MAX: u64 = 9;

/// What was tried to empty a segment: it was read and its living records moved, as far as their words were found.
const CLEANED: u8 = 1;
/// The words that name records in it are looked for in the whole index, or were.
pub(super) const SWEEPING: u8 = 2;
/// That was in vain: what lives in it cannot be read, or was on its way to another key.
const GIVEN_UP: u8 = 3;

/// Why a zpage was not taken into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The batch is full: it has to be written first.
    Batch,
    /// There is no room in the file.
    Full,
    /// A write has failed a short while ago.
    Resting,
}

/// A zpage of the batch: the word that named it when it was copied, and where its record begins in the batch.
struct Entry {
    word: Word,
    at: u32,
}

/// The segment that is being filled.
struct Open {
    number: u32,
    fill: u64,
    filled: usize,
}

pub(crate) struct Writer {
    batch: Buffer,
    len: usize,
    entries: Vec<Entry>,
    open: Option<Open>,
    /// Segments that were begun so far: the number of a filling, never used twice.
    fills: u64,
    rest: Duration,
    rest_until: Option<Instant>,
    /// Until when the tier is believed to have no more room than it had once.
    full_until: Option<Instant>,
    /// Fillings from this one on were called back already, as far as they could be.
    recalled: u64,
}

/// A zpage that was written, as it was copied.
pub(crate) struct Written<'a> {
    pub(crate) owner: Owner,
    pub(crate) word: Word,
    pub(crate) extent: Extent,
    pub(crate) payload: &'a [u8],
}

impl Writer {
    /// With a batch that is no large part of the budget.
    pub(super) fn new(budget_bytes: u64) -> Self {
        let part = (budget_bytes / BUDGET_PART).clamp(WRITE_BYTES_MIN as u64, WRITE_BYTES_MAX as u64) as usize;
        let bytes = part / TIER_BLOCK_BYTES * TIER_BLOCK_BYTES;
        Self {
            batch: Buffer::new(bytes),
            len: 0,
            entries: Vec::with_capacity(ZPAGES_MAX),
            open: None,
            fills: 0,
            rest: REST_MIN,
            rest_until: None,
            full_until: None,
            recalled: u64::MAX,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        Buffer::memory_bytes(self.batch.len()) + self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether a write has failed a short while ago.
    fn is_resting(&mut self) -> bool {
        self.rest_until = self.rest_until.filter(|end| Instant::now() < *end);
        self.rest_until.is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a zpage that this word names is in the batch.
    pub(crate) fn holds(&self, word: Word) -> bool {
        self.entries.iter().any(|entry| entry.word == word)
    }

    /// Copies a zpage, named by `word` which stands at `owner`, into the batch. The last free segment is for cleaning.
    pub(crate) fn push(
        &mut self,
        file: &SpillFile,
        owner: Owner,
        word: Word,
        zpage: (Encoding, &[u8]),
        cleaning: bool,
    ) -> Result<(), Refusal> {
        if self.is_empty() {
            self.begin(file, cleaning)?;
        }
        let (encoding, payload) = zpage;
        let head = Head { payload_bytes: payload.len(), encoding, owner };
        let filled = self.open.as_ref().map_or(0, |open| open.filled);
        let room = self.batch.len().min(SEGMENT_BYTES as usize - filled);
        if self.len + head.record_bytes() > room || self.entries.len() == ZPAGES_MAX {
            return Err(Refusal::Batch);
        }
        record::write(&mut self.batch.bytes()[self.len..], head, payload);
        self.entries.push(Entry { word, at: self.len as u32 });
        self.len += head.record_bytes();
        Ok(())
    }

    /// Begins a batch, in a segment with room for one.
    fn begin(&mut self, file: &SpillFile, cleaning: bool) -> Result<(), Refusal> {
        if self.is_resting() {
            return Err(Refusal::Resting);
        }
        if self.open.is_none() {
            let Some(number) = file.segments.idle(cleaning) else {
                count(&file.counters.full);
                return Err(Refusal::Full);
            };
            // What was there before counts no more, whether its space was given back or not.
            let stale = file.segments.make(number, &file.budget).filled();
            file.counters.file_bytes.fetch_sub(stale.into(), Relaxed);
            self.fills += 1;
            self.recalled = u64::MAX;
            file.segments.begin(number, self.fills, &file.budget);
            self.open = Some(Open { number, fill: self.fills, filled: 0 });
        }
        let open = self.open.as_ref().expect("opened above");
        self.len = 0;
        if open.filled == 0 {
            let header = record::segment_header(open.fill, open.number, &file.seal);
            self.batch.bytes()[..SEGMENT_HEADER_BYTES].copy_from_slice(&header);
            self.len = SEGMENT_HEADER_BYTES;
        }
        Ok(())
    }

    /// Forgets the batch: every zpage stays where it is.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.len = 0;
    }

    /// Writes the batch and shows each zpage of it to `commit`, which answers whether a word names the record now. Answers how
    /// many do; `None` when the write failed, and every zpage is where it was.
    pub(crate) fn write(&mut self, file: &SpillFile, mut commit: impl FnMut(&Written<'_>) -> bool) -> Option<u64> {
        if self.is_empty() {
            return Some(0);
        }
        let open = self.open.as_ref().expect("a batch begins in a segment");
        let (number, fill, start) = (open.number, open.fill, open.filled);
        let len = self.len.next_multiple_of(TIER_BLOCK_BYTES);
        let bytes = &mut self.batch.bytes()[..len];
        bytes[self.len..].fill(0);
        for entry in &self.entries {
            let record = &mut bytes[entry.at as usize..];
            let head = Head::at_start(record).expect("written by `push`");
            record::close(record, head, place(fill, start + entry.at as usize), &file.seal);
        }
        let first = u64::from(number) * SEGMENT_BYTES + start as u64;
        if let Err(e) = file.tier.write(first, bytes) {
            if e.kind() == io::ErrorKind::StorageFull {
                self.full_until = Some(Instant::now() + FULL_TIME);
                file.note_full();
            }
            self.fail(file);
            return None;
        }
        if self.full_until.is_some_and(|end| Instant::now() >= end) {
            self.full_until = None;
            file.forget_full();
        }
        count(&file.counters.writes);
        file.counters.written_bytes.fetch_add(len as u64, Relaxed);
        file.counters.file_bytes.fetch_add(len as u64, Relaxed);
        file.segments.make(number, &file.budget).set_filled((start + len) as u32);
        (self.rest, self.rest_until) = (REST_MIN, None);

        let mut committed = 0;
        for entry in self.entries.drain(..) {
            let at = entry.at as usize;
            let record = &mut bytes[at..];
            let head = Head::at_start(record).expect("written by `push`");
            let payload = record::open(record, head, place(fill, start + at), &file.seal);
            let extent = Extent::new(file.number(), first + at as u64, head.payload_bytes, head.encoding);
            let written = |payload| Written { owner: head.owner, word: entry.word, extent, payload };
            let done = payload.is_some_and(|payload| commit(&written(payload)));
            committed += u64::from(done);
            count(if done { &file.counters.spilled } else { &file.counters.lost_races });
        }
        self.len = 0;
        self.go_on_at(file, start + len);
        Some(committed)
    }

    /// Goes on in the same segment if there is room for a batch, else ends it.
    fn go_on_at(&mut self, file: &SpillFile, filled: usize) {
        let open = self.open.as_mut().expect("it was written to");
        open.filled = filled;
        if SEGMENT_BYTES as usize - filled < WRITE_BYTES_MIN {
            file.segments.end(open.number);
            self.open = None;
        }
    }

    /// A write failed. Part of it may have been written, so nothing is ever written there again in this filling: the same
    /// place of the same filling would mean the same nonce for other contents.
    fn fail(&mut self, file: &SpillFile) {
        count(&file.counters.write_failures);
        self.clear();
        if let Some(open) = self.open.take() {
            file.segments.end(open.number);
        }
        self.rest_until = Some(Instant::now() + self.rest);
        self.rest = (2 * self.rest).min(REST_MAX);
    }

    /// Gives the space of idle segments back.
    pub(crate) fn discard_idle(&mut self, file: &SpillFile) {
        if file.segments.take_drained() == 0 {
            return;
        }
        for (number, segment) in file.segments.iter() {
            if segment.filled() == 0 || !segment.is_idle() {
                continue;
            }
            let done = file.tier.discard(u64::from(number) * SEGMENT_BYTES, SEGMENT_BYTES);
            count(if done.is_ok() { &file.counters.discards } else { &file.counters.discard_failures });
            file.counters.file_bytes.fetch_sub(segment.filled().into(), Relaxed);
            segment.set_filled(0);
        }
    }

    /// The segment that is best to clean, pinned, if enough of the file is dead.
    pub(crate) fn choose_to_clean<'a>(&mut self, file: &'a SpillFile, dead_part: u64) -> Option<(u32, Pin<'a>)> {
        if !file.dead_bytes_over(dead_part) || self.is_resting() {
            return None;
        }
        let own = self.open.as_ref().map(|open| open.number);
        let all = file.segments.iter().filter(|(number, segment)| {
            let (live, filled) = (segment.live_bytes(), u64::from(segment.filled()));
            let wins = live > 0 && live * 10 <= filled * CLEAN_TENTHS_MAX;
            wins && segment.cleanings() == 0 && Some(*number) != own
        });
        let (number, segment) =
            all.min_by_key(|(_, segment)| 1000 * segment.live_bytes() / u64::from(segment.filled()))?;
        segment.set_cleanings(CLEANED);
        count(&file.counters.cleaned);
        Some((number, file.segments.pin(number)))
    }

    /// The segment that was begun the longest time ago, pinned: what lives in it goes to the next file. One from which not all
    /// could be moved is not chosen again.
    pub(crate) fn choose_to_demote<'a>(&mut self, file: &'a SpillFile) -> Option<(u32, Pin<'a>)> {
        let own = self.open.as_ref().map(|open| open.number);
        let all = file
            .segments
            .iter()
            .filter(|(number, segment)| segment.live_bytes() > 0 && segment.cleanings() == 0 && Some(*number) != own);
        let (number, segment) = all.min_by_key(|(_, segment)| segment.fill())?;
        segment.set_cleanings(CLEANED);
        Some((number, file.segments.pin(number)))
    }

    /// Goes on in another segment than the one that is being filled. The batch is empty.
    pub(crate) fn end_segment(&mut self, file: &SpillFile) {
        debug_assert!(self.is_empty());
        if let Some(open) = self.open.take() {
            file.segments.end(open.number);
        }
    }

    /// The segment that was begun last of those that were not chosen since anything was begun, pinned: what lives in it is to come
    /// back to RAM. The batch is empty, and goes on in another segment.
    pub(crate) fn choose_to_recall<'a>(&mut self, file: &'a SpillFile) -> Option<(u32, Pin<'a>)> {
        self.end_segment(file);
        let all =
            file.segments.iter().filter(|(_, segment)| segment.live_bytes() > 0 && segment.fill() < self.recalled);
        let (number, segment) = all.max_by_key(|(_, segment)| segment.fill())?;
        self.recalled = segment.fill();
        Some((number, file.segments.pin(number)))
    }

    /// Has [`choose_to_recall`](Self::choose_to_recall) not pass a filling by for which there was no room in RAM.
    pub(crate) fn may_recall_again(&mut self, fill: u64) {
        self.recalled = self.recalled.max(fill + 1);
    }

    /// Has [`choose_to_demote`](Self::choose_to_demote) not pass a segment by for which the next file had no room.
    pub(crate) fn may_choose_again(&mut self, file: &SpillFile, number: u32) {
        file.segments.make(number, &file.budget).set_cleanings(0);
    }

    /// Whether there is a free segment for what comes from elsewhere.
    pub(crate) fn has_room(&self, file: &SpillFile) -> bool {
        file.segments.idle(false).is_some()
    }

    /// Has a segment chosen again that was not emptied because a write failed: after a rest, so not over and over.
    pub(crate) fn clean_again(&mut self, file: &SpillFile, number: u32) {
        if self.is_resting() {
            file.segments.make(number, &file.budget).set_cleanings(0);
        }
    }

    /// Has a sweep done again that ended because a write failed.
    pub(crate) fn sweep_again(&mut self, file: &SpillFile) {
        if self.is_resting() {
            let swept = file.segments.iter().filter(|(_, segment)| segment.cleanings() == SWEEPING);
            swept.for_each(|(_, segment)| segment.set_cleanings(CLEANED));
        }
    }

    /// Whether so much is dead in segments that cleaning did not get empty that it is worth looking for the words that name
    /// what lives in them. If so, they are the ones to be swept, this once.
    pub(crate) fn begin_sweep(&mut self, file: &SpillFile, dead_part: u64) -> bool {
        if self.is_resting() {
            return false;
        }
        for (_, segment) in file.segments.iter().filter(|(_, segment)| segment.cleanings() == SWEEPING) {
            segment.set_cleanings(GIVEN_UP);
        }
        let stuck = || file.segments.iter().filter(|(_, segment)| segment.cleanings() == CLEANED && !segment.is_idle());
        let dead_bytes = |segment: &Segment| u64::from(segment.filled()).saturating_sub(segment.live_bytes());
        let dead_bytes: u64 = stuck().map(|(_, segment)| dead_bytes(segment)).sum();
        let worth = dead_bytes > file.segments.live_bytes.load(Relaxed) / (2 * dead_part) + SEGMENT_BYTES / 2;
        if worth {
            stuck().for_each(|(_, segment)| segment.set_cleanings(SWEEPING));
        }
        worth
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::alloc::Handle;
    use crate::budget::Budget;
    use crate::tier::spill_file::Readers;
    use crate::tier::{Spill, Tier};

    fn file_on(tier: &Notes) -> SpillFile {
        let readers = Arc::new(Readers::new(1));
        SpillFile::new(Spill::new(tier.clone(), 8 << 20), &readers, &Arc::new(Budget::new(1 << 30))).unwrap()
    }

    /// Remembers what was written where, and fails when it is told to.
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Writes>>);

    #[derive(Default)]
    struct Writes {
        list: Vec<(u64, Vec<u8>)>,
        fails: bool,
    }

    impl Tier for Notes {
        fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            let mut notes = self.0.lock().unwrap();
            notes.list.push((offset, bytes.to_vec()));
            if notes.fails { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        }

        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            unreachable!("nothing is read")
        }

        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    fn push(writer: &mut Writer, file: &SpillFile, number: u64) -> Result<(), Refusal> {
        let word = Word::ram(Handle::untagged(number * 8));
        writer.push(file, Owner(number), word, (Encoding::Zstd, &[number as u8; 1000]), false)
    }

    #[test]
    fn no_place_of_a_filling_is_written_twice_even_if_writes_fail() {
        let tier = Notes::default();
        let file = file_on(&tier);
        let mut writer = file.writer();
        for round in 0..60 {
            tier.0.lock().unwrap().fails = round % 3 == 1;
            writer.rest_until = None;
            for number in 0..80 {
                push(&mut writer, &file, number).unwrap();
            }
            let written = writer.write(&file, |written| {
                assert_eq!(written.payload, [written.owner.0 as u8; 1000]);
                false
            });
            assert_eq!(written.is_none(), round % 3 == 1);
            assert!(writer.is_empty());
        }
        let notes = tier.0.lock().unwrap();
        let mut places = Vec::new();
        let mut fill = 0;
        for (offset, bytes) in &notes.list {
            assert!(offset % TIER_BLOCK_BYTES as u64 == 0 && bytes.len() % TIER_BLOCK_BYTES == 0);
            assert!(bytes.len() >= WRITE_BYTES_MIN);
            if offset % SEGMENT_BYTES == 0 {
                assert_eq!(&bytes[..8], b"tmemspil");
                let number = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
                assert!(number > fill, "filling {number} after {fill}");
                fill = number;
            }
            places.push((fill, offset % SEGMENT_BYTES));
        }
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), count);
    }

    #[test]
    fn after_a_failure_there_is_a_rest_and_a_full_batch_has_to_be_written() {
        let tier = Notes::default();
        let file = file_on(&tier);
        let mut writer = file.writer();
        let taken = (0..1000).take_while(|number| push(&mut writer, &file, *number).is_ok()).count();
        assert!(taken as u64 * 1024 > WRITE_BYTES_MAX as u64 * 9 / 10);
        assert_eq!(push(&mut writer, &file, 0), Err(Refusal::Batch));
        assert!(writer.holds(Word::ram(Handle::untagged(8))));
        tier.0.lock().unwrap().fails = true;
        assert_eq!(writer.write(&file, |_| true), None);
        assert_eq!(push(&mut writer, &file, 0), Err(Refusal::Resting));
        assert_eq!(file.stats().write_failures, 1);
    }
}
