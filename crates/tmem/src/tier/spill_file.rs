//! The spill file: records in segments on a tier, how they are read, and what is counted of it.
//!
//! A reader holds no lock but that of its buffer, and waits for nobody who writes. What it reads stays as it is because its
//! segment is pinned.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::buffer::Buffer;
use super::record::{self, Extent, FILE_BYTES_MAX, Head, SEGMENT_BYTES, SEGMENT_HEADER_BYTES, Step};
use super::seal::{Place, Seal};
use super::segments::{Pin, Segments};
use super::writer::SWEEPING;
use super::{Homing, Spill, TIER_BLOCK_BYTES, Tier, Writer};
use crate::budget::Budget;
use crate::codec::Encoding;
use crate::error::{Error, ErrorKind};
use crate::stats::SpillStats;
use crate::sync::{Mutex, MutexGuard, Rank, lock, try_lock};
use crate::threads::own_slot;

/// One segment is kept for cleaning, and one is being filled.
const SEGMENTS_MIN: u64 = 4;
/// This part of a file is kept free if there is another one behind it.
const RESERVE_PART: u64 = 16;
/// What one read takes at most: the longest record, wherever in a block it begins.
const READ_BYTES_MAX: usize = (record::RECORD_BYTES_MAX + TIER_BLOCK_BYTES).next_multiple_of(TIER_BLOCK_BYTES);

/// What one read of several records takes at most.
const READ_MANY_BYTES_MAX: u64 = 288 << 10;
/// Reading this much for nothing takes less time than another read.
const GAP_BYTES_MAX: u64 = 16 << 10;

/// The blocks that a record lies in, by the bytes of the file.
fn blocks(extent: Extent) -> Range<u64> {
    const BLOCK: u64 = TIER_BLOCK_BYTES as u64;
    let (start, bytes) = (extent.offset(), extent.record_bytes() as u64);
    start / BLOCK * BLOCK..(start + bytes).next_multiple_of(BLOCK)
}

/// Why something could not be read.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    Tier(io::Error),
    /// It is not what was written.
    Damaged,
}

impl From<ReadFailure> for Error {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Tier(source) => ErrorKind::Spill { source }.into(),
            ReadFailure::Damaged => ErrorKind::Corrupt { what: "its seal in the spill file is broken" }.into(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) file_bytes: AtomicU64,
    pub(super) spilled: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) write_failures: AtomicU64,
    pub(super) lost_races: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) discards: AtomicU64,
    pub(super) discard_failures: AtomicU64,
    pub(super) cleaned: AtomicU64,
    pub(super) moved: AtomicU64,
    demoted: AtomicU64,
    fetched: AtomicU64,
    promoted: AtomicU64,
    recalled: AtomicU64,
    read_failures: AtomicU64,
    damaged: AtomicU64,
}

/// One more of what is counted.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// A tier and what lies in it.
pub(crate) struct SpillFile {
    /// Which of the store's files it is.
    number: u8,
    pub(super) tier: Box<dyn Tier>,
    pub(super) seal: Seal,
    pub(super) segments: Segments,
    pub(super) counters: Counters,
    pub(super) budget: Arc<Budget>,
    /// Bytes that lay there, dead or alive, when the tier had no room for more, although it should have; [`u64::MAX`] if that is not
    /// so. Changed by the writer.
    took_bytes: AtomicU64,
    /// See [`Spill::flushed_after_gets`].
    flushed_after_gets: bool,
    writer: Mutex<Writer>,
    readers: Arc<Readers>,
}

/// What all files of a store are read with: buffers, made when they are needed.
pub(super) struct Readers {
    fetchers: Box<[Mutex<Option<Buffer>>]>,
    /// What writers read with, so that nobody who reads a page waits for them.
    cleaner: Mutex<Option<Buffer>>,
}

impl Readers {
    /// For so many threads that read at the same time; more than that wait for each other.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            fetchers: (0..threads.max(1)).map(|_| Mutex::new(Rank::Fetcher, None)).collect(),
            cleaner: Mutex::new(Rank::Fetcher, None),
        }
    }
}

impl SpillFile {
    /// An empty file.
    ///
    /// # Errors
    /// When the limit is too small, or there are no random numbers for a key.
    pub(super) fn new(spill: Spill, readers: &Arc<Readers>, budget: &Arc<Budget>) -> Result<Self, Error> {
        let (bytes, min) = (spill.bytes_max, SEGMENTS_MIN * SEGMENT_BYTES);
        if bytes < min {
            return Err(ErrorKind::SpillTooSmall { bytes, min }.into());
        }
        let max = bytes.min(FILE_BYTES_MAX) / SEGMENT_BYTES;
        let seal = if spill.plain { Seal::plain() } else { Seal::encrypting()? };
        Ok(Self {
            number: 0,
            tier: spill.tier,
            seal,
            segments: Segments::new(u32::try_from(max).unwrap_or(u32::MAX)),
            counters: Counters::default(),
            budget: Arc::clone(budget),
            took_bytes: AtomicU64::new(u64::MAX),
            flushed_after_gets: spill.flushed_after_gets,
            writer: Mutex::new(Rank::WRITERS[0], Writer::new(budget.limit())),
            readers: Arc::clone(readers),
        })
    }

    /// The same as another one of the store's files.
    pub(super) fn numbered(mut self, number: u8) -> Self {
        self.number = number;
        self.writer.set_rank(Rank::WRITERS[usize::from(number)]);
        self
    }

    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// What is to become of what lies in the file.
    pub(crate) fn homing(&self) -> Homing {
        self.tier.homing()
    }

    /// Whether so much of the file lives that there will be no room for more soon, however well it is cleaned. A tier that is lent
    /// may have less room than it was said to have: what that is shows when it takes no more.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let mut bytes_max = u64::from(self.segments.max) * SEGMENT_BYTES;
        let took_bytes = self.took_bytes.load(Relaxed);
        // One that does not answer is not asked for what it has.
        if took_bytes < bytes_max && self.homing() != Homing::Stay {
            bytes_max = took_bytes;
        }
        // One for cleaning, one that is being filled, one that is next.
        let reserve = (bytes_max / RESERVE_PART).max(3 * SEGMENT_BYTES);
        self.segments.live_bytes.load(Relaxed) + reserve > bytes_max
    }

    /// The tier had no room for a write.
    pub(super) fn note_full(&self) {
        self.took_bytes.store(self.counters.file_bytes.load(Relaxed), Relaxed);
    }

    /// The tier may have more room by now.
    pub(super) fn forget_full(&self) {
        self.took_bytes.store(u64::MAX, Relaxed);
    }

    /// Bytes that the file takes in RAM from the start.
    pub(crate) fn fixed_bytes(&self) -> u64 {
        (self.segments.fixed_bytes() + self.writer().memory_bytes()) as u64
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        lock(&self.writer)
    }

    /// The same if nobody else has it.
    pub(crate) fn try_writer(&self) -> Option<MutexGuard<'_, Writer>> {
        try_lock(&self.writer)
    }

    /// Whether there is something to clean or to give back.
    pub(crate) fn wants_tending(&self, dead_part: u64) -> bool {
        self.segments.has_drained() || self.dead_bytes_over(dead_part)
    }

    /// Whether more than a part of what lives in the file, and one segment, is dead in it.
    pub(super) fn dead_bytes_over(&self, dead_part: u64) -> bool {
        let live_bytes = self.segments.live_bytes.load(Relaxed);
        let dead_bytes = self.counters.file_bytes.load(Relaxed).saturating_sub(live_bytes);
        dead_bytes > live_bytes / dead_part + SEGMENT_BYTES
    }

    /// Whether a record lies where the present sweep, or the last one, looks.
    pub(crate) fn is_swept(&self, extent: Extent) -> bool {
        extent.file() == self.number && self.segments.make(extent.segment(), &self.budget).cleanings() == SWEEPING
    }

    /// Keeps the bytes of a record where they are. The caller is the writer: only it fills segments again.
    pub(crate) fn pin_as_writer(&self, _: &Writer, extent: Extent) -> Pin<'_> {
        self.segments.pin(extent.segment())
    }

    /// Keeps the bytes of a record where they are. The caller holds the lock of a word that names the record.
    pub(crate) fn pin(&self, extent: Extent) -> Pin<'_> {
        self.segments.pin(extent.segment())
    }

    /// A word names the record from now on. The caller holds the lock of the word, and the record's segment is pinned.
    pub(crate) fn add(&self, extent: Extent) {
        self.segments.add(extent);
    }

    /// No word names the record any more.
    pub(crate) fn remove(&self, extent: Extent) {
        self.segments.remove(extent);
    }

    /// Reads a record that is pinned and shows its payload to `with`, or why there is none.
    pub(crate) fn read<R>(
        &self,
        extent: Extent,
        pin: &Pin<'_>,
        with: impl FnOnce(Result<&[u8], ReadFailure>) -> R,
    ) -> R {
        self.read_with(&mut own_slot(&self.readers.fetchers), extent, pin.fill, |payload| {
            self.counters.fetched.fetch_add(payload.is_ok().into(), Relaxed);
            with(payload)
        })
    }

    /// Reads records that are pinned, given in the order of their places, and shows the payload of each to `with`. What lies
    /// close together comes with one read. `place` says where each one is, and the number of its segment's filling.
    pub(crate) fn read_many<T>(
        &self,
        many: &[T],
        place: impl Fn(&T) -> (Extent, u64),
        mut with: impl FnMut(&T, Result<&[u8], ReadFailure>),
    ) {
        let mut with = |one: &T, payload: Result<&[u8], ReadFailure>| {
            self.counters.fetched.fetch_add(payload.is_ok().into(), Relaxed);
            with(one, payload);
        };
        let mut fetcher = own_slot(&self.readers.fetchers);
        let blocks_of = |one: &T| blocks(place(one).0);
        let mut rest = many;
        while let Some((first, _)) = rest.split_first() {
            let Range { start, mut end } = blocks_of(first);
            let is_near = |one: &&T| {
                let blocks = blocks_of(one);
                let near = blocks.start <= end + GAP_BYTES_MAX && blocks.end - start <= READ_MANY_BYTES_MAX;
                end = if near { end.max(blocks.end) } else { end };
                near
            };
            let near = rest.iter().take_while(is_near).count();
            let (run, behind) = rest.split_at(near.max(1));
            rest = behind;
            if run.len() > 1 && self.read_run(&mut fetcher, start..end, run, &place, &mut with) {
                continue;
            }
            // One that stands alone, or a read that failed: each by itself shows which ones cannot be read.
            for one in run {
                let (extent, fill) = place(one);
                self.read_with(&mut fetcher, extent, fill, |payload| with(one, payload));
            }
        }
    }

    /// Reads these bytes of the file and shows the records in them. False if they could not be read.
    fn read_run<T>(
        &self,
        fetcher: &mut Option<Buffer>,
        bytes: Range<u64>,
        run: &[T],
        place: impl Fn(&T) -> (Extent, u64),
        mut with: impl FnMut(&T, Result<&[u8], ReadFailure>),
    ) -> bool {
        let part = &mut self.buffer(fetcher, READ_MANY_BYTES_MAX as usize)[..(bytes.end - bytes.start) as usize];
        if self.read_blocks(bytes.start, part).is_err() {
            return false;
        }
        let mut damaged = Vec::new();
        // A record is opened in place, so once: a group may be wanted for several of its pages.
        for same in run.chunk_by(|one, next| place(one).0 == place(next).0) {
            let (extent, fill) = place(&same[0]);
            let at = (extent.offset() - bytes.start) as usize;
            let opened = self.open(extent, fill, &mut part[at..at + extent.record_bytes()]);
            match opened {
                Ok(payload) => same.iter().for_each(|one| with(one, Ok(payload))),
                // By itself, it may be had from another copy.
                Err(_) => damaged.extend(same),
            }
        }
        for one in damaged {
            let (extent, fill) = place(one);
            self.read_with(fetcher, extent, fill, |payload| with(one, payload));
        }
        true
    }

    /// The same as [`read`](Self::read) for the writer, with a buffer of its own.
    pub(crate) fn read_to_move<R>(
        &self,
        extent: Extent,
        pin: &Pin<'_>,
        with: impl FnOnce(Result<&[u8], ReadFailure>) -> R,
    ) -> R {
        self.read_with(&mut lock(&self.readers.cleaner), extent, pin.fill, with)
    }

    fn read_with<R>(
        &self,
        buffer: &mut Option<Buffer>,
        extent: Extent,
        fill: u64,
        with: impl FnOnce(Result<&[u8], ReadFailure>) -> R,
    ) -> R {
        let Range { start, end } = blocks(extent);
        let part = &mut self.buffer(buffer, READ_BYTES_MAX)[..(end - start) as usize];
        let at = (extent.offset() - start) as usize;
        let record = at..at + extent.record_bytes();
        let mut opened = Err(ReadFailure::Damaged);
        let read = self.tier.read_checked(start, part, &mut |part| {
            opened = self.open(extent, fill, &mut part[record.clone()]).map(<[u8]>::len);
            opened.is_ok()
        });
        let payload = self.counted(read).and(opened).map(|bytes| &part[at + record::PREFIX_BYTES..][..bytes]);
        with(payload)
    }

    /// The bytes of a buffer, made the first time, and again when more is needed.
    fn buffer<'a>(&self, buffer: &'a mut Option<Buffer>, bytes: usize) -> &'a mut [u8] {
        if buffer.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
            if let Some(small) = buffer.take() {
                self.budget.refund(Buffer::memory_bytes(small.len()) as u64);
            }
            self.budget.charge(Buffer::memory_bytes(bytes) as u64);
        }
        buffer.get_or_insert_with(|| Buffer::new(bytes)).bytes()
    }

    fn read_blocks(&self, offset: u64, blocks: &mut [u8]) -> Result<(), ReadFailure> {
        self.counted(self.tier.read(offset, blocks))
    }

    fn counted(&self, read: io::Result<()>) -> Result<(), ReadFailure> {
        read.map_err(|error| {
            count(&self.counters.read_failures);
            ReadFailure::Tier(error)
        })
    }

    /// Opens a record in place.
    fn open<'a>(&self, extent: Extent, fill: u64, record: &'a mut [u8]) -> Result<&'a [u8], ReadFailure> {
        let expected =
            |head: &Head| head.encoding == extent.encoding && head.payload_bytes == usize::from(extent.payload_bytes);
        let head = Head::at_start(record).filter(expected);
        let payload = head.and_then(|head| record::open(record, head, extent.place(fill), &self.seal));
        payload.ok_or_else(|| {
            count(&self.counters.damaged);
            ReadFailure::Damaged
        })
    }

    /// Reads a segment from its start and shows each record to `with`, still closed: dead ones are not worth the time, and only what
    /// a word names may be believed. The caller is the writer, or has pinned the segment, and nobody fills it any more.
    ///
    /// # Errors
    /// When not all of it could be read.
    pub(crate) fn walk(&self, number: u32, mut with: impl FnMut(Extent, &mut [u8])) -> Result<(), ReadFailure> {
        let filled = self.segments.make(number, &self.budget).filled() as usize;
        let mut cleaner = lock(&self.readers.cleaner);
        let buffer = self.buffer(&mut cleaner, READ_BYTES_MAX);
        let first = u64::from(number) * SEGMENT_BYTES;
        let mut at = SEGMENT_HEADER_BYTES;
        while at < filled {
            let start = at / TIER_BLOCK_BYTES * TIER_BLOCK_BYTES;
            let part = buffer.len().min(filled - start);
            let part = &mut buffer[..part];
            self.read_blocks(first + start as u64, part)?;
            let end = walk_part(part, at - start, start + part.len() == filled, |at, head, record| {
                let offset = first + (start + at) as u64;
                with(Extent::new(self.number, offset, head.payload_bytes, head.encoding), record);
            });
            match end {
                Some(end) => at = start + end,
                None => {
                    count(&self.counters.damaged);
                    return Err(ReadFailure::Damaged);
                }
            }
        }
        Ok(())
    }

    /// Opens a record that [`walk`](Self::walk) showed, in place. The segment is pinned.
    ///
    /// # Errors
    /// When it is not what was written there.
    pub(crate) fn open_walked<'a>(
        &self,
        extent: Extent,
        pin: &Pin<'_>,
        record: &'a mut [u8],
    ) -> Result<&'a [u8], ReadFailure> {
        self.open(extent, pin.fill, record)
    }

    /// Counts a zpage that was moved out of its segment, to this file or to another.
    pub(crate) fn count_moved(&self, to: &SpillFile) {
        count(if to.number == self.number { &self.counters.moved } else { &self.counters.demoted });
    }

    /// Whether what was read from the file should come back to RAM if there is room.
    pub(crate) fn promotes(&self, extent: Extent) -> bool {
        !self.flushed_after_gets || extent.encoding == Encoding::Group
    }

    pub(crate) fn count_promoted(&self) {
        count(&self.counters.promoted);
    }

    pub(crate) fn count_recalled(&self) {
        count(&self.counters.recalled);
    }

    pub(crate) fn stats(&self) -> SpillStats {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = &self.counters;
        SpillStats {
            zpages: get(&self.segments.zpages),
            live_bytes: get(&self.segments.live_bytes),
            file_bytes: get(&counters.file_bytes),
            bytes_max: u64::from(self.segments.max) * SEGMENT_BYTES,
            spilled: get(&counters.spilled),
            fetched: get(&counters.fetched),
            promoted: get(&counters.promoted),
            recalled: get(&counters.recalled),
            writes: get(&counters.writes),
            written_bytes: get(&counters.written_bytes),
            write_failures: get(&counters.write_failures),
            read_failures: get(&counters.read_failures),
            damaged: get(&counters.damaged),
            lost_races: get(&counters.lost_races),
            full: get(&counters.full),
            discards: get(&counters.discards),
            discard_failures: get(&counters.discard_failures),
            cleaned: get(&counters.cleaned),
            moved: get(&counters.moved),
            demoted: get(&counters.demoted),
        }
    }
}

/// Shows the records of a part of a segment, from `at` on. Answers where to read on; `None` when that cannot be known.
pub(crate) fn walk_part(
    part: &mut [u8],
    mut at: usize,
    is_last: bool,
    mut with: impl FnMut(usize, Head, &mut [u8]),
) -> Option<usize> {
    let from = at;
    while at < part.len() {
        match record::step(&part[at..]) {
            Step::Record(head) => {
                with(at, head, &mut part[at..at + head.record_bytes()]);
                at += head.record_bytes();
            }
            Step::Padding => at = record::next_block(at),
            // A record that was read from its own first block and is cut all the same is none.
            Step::Cut if is_last || at == from => return None,
            Step::Cut => break,
            Step::Damaged => return None,
        }
    }
    Some(at)
}

/// The place of a record that begins in a segment, for its seal.
pub(super) fn place(fill: u64, at: usize) -> Place {
    Place { fill, units: (at as u64 / record::UNIT_BYTES) as u32 }
}
