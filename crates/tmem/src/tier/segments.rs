//! Segments of a spill file: what lives in each, and who reads from it.
//!
//! One count per segment holds both, in units of four bytes below and readers above bit 32: it is zero when the segment may be
//! used again. Records are counted before a word names them and counted off when no word names them any more. Whoever reads
//! one pins its segment first, while a lock keeps the word that names it where it is; so a count that has come to zero stays
//! zero until the writer fills the segment again, and no reader ever finds the bytes of a later filling.
//!
//! The writer pins the segment that it fills.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64 as Counter, Ordering};

use super::record::{Extent, SEGMENT_BYTES, UNIT_BYTES};
use crate::budget::Budget;
use crate::sync::AtomicU64;

/// Segments that are made together.
const CHUNK: usize = if cfg!(loom) { 4 } else { 1024 };
const PIN: u64 = 1 << 32;
const _: () = assert!(SEGMENT_BYTES / UNIT_BYTES < PIN);

#[derive(Debug)]
pub(super) struct Segment {
    /// Living units and pins.
    count: AtomicU64,
    /// Which filling of any segment this is: part of each record's seal. Changes only while the count is zero.
    fill: Counter,
    /// Bytes that were written in this filling. Changed by the writer alone, as is `cleanings`.
    filled: AtomicU32,
    /// How often cleaning has tried to empty it.
    cleanings: AtomicU8,
}

/// All segments.
#[derive(Debug)]
pub(crate) struct Segments {
    chunks: Box<[OnceLock<Box<[Segment]>>]>,
    /// Segments that there may be.
    pub(super) max: u32,
    pub(super) live_bytes: Counter,
    pub(super) zpages: Counter,
    drained: Counter,
}

/// A segment that is not filled again while this lives.
#[derive(Debug)]
#[must_use = "the segment may be filled again as soon as the pin is dropped"]
pub(crate) struct Pin<'a> {
    segments: &'a Segments,
    number: u32,
    /// Which filling it was. If a pin did not hold, the seal of what is read would be of another one.
    pub(crate) fill: u64,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.segments.unpin(self.number);
    }
}

impl Segment {
    fn new() -> Self {
        Self { count: AtomicU64::new(0), fill: Counter::new(0), filled: AtomicU32::new(0), cleanings: AtomicU8::new(0) }
    }

    /// Whether nothing lives in it and nobody reads from it.
    pub(super) fn is_idle(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(super) fn live_bytes(&self) -> u64 {
        (self.count.load(Ordering::Relaxed) % PIN) * UNIT_BYTES
    }

    pub(super) fn fill(&self) -> u64 {
        self.fill.load(Ordering::Relaxed)
    }

    pub(super) fn filled(&self) -> u32 {
        self.filled.load(Ordering::Relaxed)
    }

    pub(super) fn set_filled(&self, bytes: u32) {
        self.filled.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn cleanings(&self) -> u8 {
        self.cleanings.load(Ordering::Relaxed)
    }

    pub(super) fn set_cleanings(&self, cleanings: u8) {
        self.cleanings.store(cleanings, Ordering::Relaxed);
    }
}

impl Segments {
    /// No segments yet, at most `max`.
    pub(super) fn new(max: u32) -> Self {
        let chunks: Box<[_]> = (0..(max as usize).div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { chunks, max, live_bytes: Counter::new(0), zpages: Counter::new(0), drained: Counter::new(0) }
    }

    /// Bytes of what is there before the first segment is.
    pub(super) fn fixed_bytes(&self) -> usize {
        size_of_val(&*self.chunks)
    }

    /// A segment, made if it is the first time.
    pub(super) fn make(&self, number: u32, budget: &Budget) -> &Segment {
        let (chunk, at) = (number as usize / CHUNK, number as usize % CHUNK);
        let chunk = self.chunks[chunk].get_or_init(|| {
            budget.charge((CHUNK * size_of::<Segment>()) as u64);
            (0..CHUNK).map(|_| Segment::new()).collect()
        });
        &chunk[at]
    }

    fn get(&self, number: u32) -> &Segment {
        let chunk = self.chunks[number as usize / CHUNK].get();
        &chunk.expect("a word names only what was written")[number as usize % CHUNK]
    }

    /// All segments that were ever used, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Segment)> {
        let made = self.chunks.iter().map_while(OnceLock::get).flatten();
        (0..self.max).zip(made)
    }

    /// The first idle segment; if it is not the only one, or the last one may be taken.
    pub(super) fn idle(&self, last_one: bool) -> Option<u32> {
        let is_idle = |number: &u32| {
            let chunk = self.chunks[*number as usize / CHUNK].get();
            chunk.is_none_or(|chunk| chunk[*number as usize % CHUNK].is_idle())
        };
        let mut idle = (0..self.max).filter(is_idle);
        let first = idle.next()?;
        (last_one || idle.next().is_some()).then_some(first)
    }

    /// Whether segments have become idle since they were asked for.
    pub(super) fn has_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed) > 0
    }

    /// How many segments have become idle since this was asked.
    pub(super) fn take_drained(&self) -> u64 {
        self.drained.swap(0, Ordering::Relaxed)
    }

    /// Keeps a segment from being filled again. The caller holds the lock of a word that names a record in it, or is the
    /// writer.
    pub(super) fn pin(&self, number: u32) -> Pin<'_> {
        let segment = self.get(number);
        segment.count.fetch_add(PIN, Ordering::Relaxed);
        // Set before any word named the segment, and published with the first of them by the lock of its shard.
        Pin { segments: self, number, fill: segment.fill.load(Ordering::Relaxed) }
    }

    fn unpin(&self, number: u32) {
        self.count_off(number, PIN);
    }

    /// Begins to fill an idle segment: it is pinned until its filling [ends](Self::end).
    pub(super) fn begin(&self, number: u32, fill: u64, budget: &Budget) {
        let segment = self.make(number, budget);
        debug_assert!(segment.is_idle());
        segment.fill.store(fill, Ordering::Relaxed);
        segment.set_filled(0);
        segment.set_cleanings(0);
        segment.count.fetch_add(PIN, Ordering::Relaxed);
    }

    /// Ends the filling of a segment.
    pub(super) fn end(&self, number: u32) {
        self.unpin(number);
    }

    /// A word names the record from now on. The caller holds the lock of the word, and the segment is pinned.
    pub(super) fn add(&self, extent: Extent) {
        let bytes = extent.record_bytes() as u64;
        self.get(extent.segment()).count.fetch_add(bytes / UNIT_BYTES, Ordering::Relaxed);
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.zpages.fetch_add(1, Ordering::Relaxed);
    }

    /// No word names the record any more.
    pub(super) fn remove(&self, extent: Extent) {
        let bytes = extent.record_bytes() as u64;
        self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.zpages.fetch_sub(1, Ordering::Relaxed);
        self.count_off(extent.segment(), bytes / UNIT_BYTES);
    }

    fn count_off(&self, number: u32, count: u64) {
        // Release pairs with the Acquire in `is_idle`: reading is over before the segment is filled again.
        let before = self.get(number).count.fetch_sub(count, Ordering::Release);
        debug_assert!(before >= count);
        self.drained.fetch_add(u64::from(before == count), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::codec::Encoding;

    #[test]
    fn a_segment_is_idle_when_nothing_lives_and_nobody_reads() {
        let budget = Budget::new(1 << 30);
        let segments = Segments::new(3000);
        segments.begin(2000, 7, &budget);
        let segment = segments.make(2000, &budget);
        assert!(!segment.is_idle());
        let extent = Extent::new(0, 2000 * SEGMENT_BYTES + 32, 100, Encoding::Raw);
        segments.add(extent);
        assert_eq!(segments.live_bytes.load(Ordering::Relaxed), 124);
        segments.end(2000);
        let reader = segments.pin(extent.segment());
        assert_eq!(reader.fill, 7);
        segments.remove(extent);
        assert!(!segment.is_idle());
        assert_eq!(segments.take_drained(), 0);
        drop(reader);
        assert_eq!(segments.take_drained(), 1);
        assert!(segment.is_idle() && segment.live_bytes() == 0);
    }
}
