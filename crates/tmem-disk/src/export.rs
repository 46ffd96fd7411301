//! A disk: its bytes are pages of an object in a pool of its own. What is not stored reads as zeroes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tmem::{Key, Location, ObjectId, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Store};

use crate::error::Error;
use crate::options::ExportOptions;
use crate::protocol::{Errno, Extent, Refusal};
use crate::stripes::{RUN_PAGES, Stripes};

const PAGE: u64 = PAGE_SIZE as u64;
const ZEROES: Page = [0; PAGE_SIZE];

/// Pages of an object. Half of what an index can name, so that the end of a range can be named, too.
const OBJECT_PAGES: u64 = 1 << 31;

/// What happened to an export since the start.
#[derive(Debug, Default)]
pub struct Tally {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub trims: AtomicU64,
    pub trimmed_bytes: AtomicU64,
    pub failed_reads: AtomicU64,
    pub failed_writes: AtomicU64,
    pub no_space: AtomicU64,
    pub invalid: AtomicU64,
}

/// What a piece of an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Something is stored.
    Data,
    /// Nothing is stored, so that all of it is zero.
    Nothing,
}

/// A disk. Any thread may do anything at any time; what is done to one page is done in some order.
pub struct Export {
    pub name: String,
    pub size_bytes: u64,
    pub read_only: bool,
    pub tally: Tally,
    store: Arc<Store>,
    /// There is a spill file.
    spills: bool,
    pool: PoolId,
    stripes: Stripes,
}

impl Export {
    /// An empty disk.
    pub fn new(store: &Arc<Store>, spills: bool, options: &ExportOptions) -> Result<Self, Error> {
        let refused = |e: tmem::Error| Error::new(format!("no room for the export '{}': {e}", options.name));
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).map_err(refused)?;
        Ok(Self {
            name: options.name.clone(),
            size_bytes: options.size_bytes,
            read_only: options.read_only,
            tally: Tally::default(),
            store: Arc::clone(store),
            spills,
            pool,
            stripes: Stripes::new(),
        })
    }

    /// Pages that are stored, and what they take packed.
    pub fn stored(&self) -> tmem::PoolStats {
        self.store.pool_stats(self.pool).unwrap_or_default()
    }

    /// Whether the page at `offset` has to be fetched from disk.
    pub fn is_spilled(&self, offset: u64) -> bool {
        self.spills && self.store.location(self.key(offset / PAGE)) == Some(Location::Spilled)
    }

    fn key(&self, page: u64) -> Key {
        Key::new(self.pool, page / OBJECT_PAGES, (page % OBJECT_PAGES) as u32)
    }

    /// Reads bytes from `offset` on, and says whether any of them are stored.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<Held, Refusal> {
        let mut held = Held::Nothing;
        let mut at = offset;
        let mut left = out;
        while !left.is_empty() {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let fetched = if self.spills && within == 0 { self.get_many(page, left)? } else { 0 };
            if fetched > 0 {
                held = Held::Data;
                (at, left) = (at + fetched as u64, &mut left[fetched..]);
                continue;
            }
            let bytes = left.len().min(PAGE_SIZE - within);
            let (part, rest) = left.split_at_mut(bytes);
            let found = match <&mut Page>::try_from(&mut *part) {
                Ok(whole) => self.get(page, whole)?,
                Err(_) => {
                    let mut whole = ZEROES;
                    let found = self.get(page, &mut whole)?;
                    part.copy_from_slice(&whole[within..within + bytes]);
                    found
                }
            };
            if found {
                held = Held::Data;
            } else {
                part.fill(0);
            }
            (at, left) = (at + bytes as u64, rest);
        }
        Ok(held)
    }

    /// Writes bytes from `offset` on. After a refusal, those behind it are as they were.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let mut at = offset;
        let mut left = bytes;
        while !left.is_empty() {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let (part, rest) = left.split_at(left.len().min(PAGE_SIZE - within));
            let _held = self.stripes.lock(page);
            match <&Page>::try_from(part) {
                Ok(whole) => self.put(page, whole)?,
                Err(_) => self.change(page, within, |whole| whole.copy_from_slice(part), part.len())?,
            }
            (at, left) = (at + part.len() as u64, rest);
        }
        Ok(())
    }

    /// Changes a part of a page. Its lock is held.
    fn change(&self, page: u64, at: usize, with: impl FnOnce(&mut [u8]), bytes: usize) -> Result<(), Refusal> {
        let mut whole = ZEROES;
        self.get(page, &mut whole)?;
        with(&mut whole[at..at + bytes]);
        self.put(page, &whole)
    }

    /// Makes a stretch zero: by forgetting its pages, or by storing zeroes if it is to keep its room.
    pub fn zero(&self, offset: u64, bytes: u64, keep_room: bool) -> Result<(), Refusal> {
        let end = offset + bytes;
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        if whole.start >= whole.end {
            return self.zero_parts(offset, end);
        }
        self.zero_parts(offset, whole.start * PAGE)?;
        if keep_room {
            for page in whole.clone() {
                let _held = self.stripes.lock(page);
                self.store.overwrite(self.key(page), &ZEROES).map_err(refusal)?;
            }
        } else {
            self.forget(whole.clone());
        }
        self.zero_parts(whole.end * PAGE, end)
    }

    /// Makes parts of pages zero.
    fn zero_parts(&self, mut offset: u64, end: u64) -> Result<(), Refusal> {
        while offset < end {
            let (page, within) = (offset / PAGE, (offset % PAGE) as usize);
            let bytes = (end - offset).min(PAGE - within as u64) as usize;
            let _held = self.stripes.lock(page);
            self.change(page, within, |part| part.fill(0), bytes)?;
            offset += bytes as u64;
        }
        Ok(())
    }

    /// Forgets the pages that lie in a stretch as a whole.
    pub fn trim(&self, offset: u64, bytes: u64) {
        self.forget(offset.div_ceil(PAGE)..(offset + bytes) / PAGE);
    }

    /// Forgets pages, run by run. Where nothing is stored there is nothing to do.
    fn forget(&self, pages: Range<u64>) {
        let mut from = pages.start;
        while let Some(stored) = self.next_stored(from..pages.end) {
            let end = ((stored / RUN_PAGES + 1) * RUN_PAGES).min(pages.end);
            let _held = self.stripes.lock_run(stored..end);
            let Key { pool, object, index } = self.key(stored);
            self.store.flush_range(pool, object, index..index + (end - stored) as u32);
            from = end;
        }
    }

    /// Brings back to RAM what is on disk, as far as there is room.
    pub fn cache(&self, offset: u64, bytes: u64) -> Result<(), Refusal> {
        if !self.spills {
            return Ok(());
        }
        let mut page = ZEROES;
        (offset / PAGE..(offset + bytes).div_ceil(PAGE)).try_for_each(|at| self.get(at, &mut page).map(drop))
    }

    /// What of a stretch is stored: up to `out.len()` extents, in order, from its beginning.
    pub fn status(&self, offset: u64, bytes: u64, extents_max: usize, mut with: impl FnMut(Extent)) {
        let end = offset + bytes;
        let mut at = offset;
        for _ in 0..extents_max {
            if at >= end {
                break;
            }
            let pages = at / PAGE..end.div_ceil(PAGE);
            let (hole, next) = match self.next_stored(pages.clone()) {
                Some(first) if first == pages.start => (false, self.next_gap(pages.clone())),
                next => (true, next),
            };
            let to = next.map_or(end, |page| page * PAGE);
            with(Extent { bytes: (to - at) as u32, hole });
            at = to;
        }
    }

    fn next_stored(&self, pages: Range<u64>) -> Option<u64> {
        self.in_objects(pages, |object, range| self.store.next_page(self.pool, object, range))
    }

    fn next_gap(&self, pages: Range<u64>) -> Option<u64> {
        self.in_objects(pages, |object, range| self.store.next_gap(self.pool, object, range))
    }

    /// Asks each object that has a part of the pages, up to the first that finds something.
    fn in_objects(&self, pages: Range<u64>, find: impl Fn(ObjectId, Range<u32>) -> Option<u32>) -> Option<u64> {
        let mut from = pages.start;
        while from < pages.end {
            let (object, first) = (from / OBJECT_PAGES, from % OBJECT_PAGES);
            let last = (first + (pages.end - from)).min(OBJECT_PAGES);
            if let Some(index) = find(object.into(), first as u32..last as u32) {
                return Some(object * OBJECT_PAGES + u64::from(index));
            }
            from += last - first;
        }
        None
    }

    /// Reads the pages from `page` on that are stored, up to the first that is not, neighbours on disk together. Says how many bytes.
    fn get_many(&self, page: u64, out: &mut [u8]) -> Result<usize, Refusal> {
        let (pages, _) = out.as_chunks_mut::<PAGE_SIZE>();
        let found = if pages.len() < 2 { 0 } else { self.store.get_range(self.key(page), pages).map_err(refusal)? };
        Ok(found * PAGE_SIZE)
    }

    fn get(&self, page: u64, out: &mut Page) -> Result<bool, Refusal> {
        self.store.get(self.key(page), out).map_err(refusal)
    }

    /// Stores a page; zeroes are stored by storing nothing. Its lock is held.
    fn put(&self, page: u64, bytes: &Page) -> Result<(), Refusal> {
        if *bytes == ZEROES {
            self.store.flush_page(self.key(page));
            return Ok(());
        }
        self.store.overwrite(self.key(page), bytes).map(drop).map_err(refusal)
    }
}

fn refusal(error: tmem::Error) -> Refusal {
    if error.is_no_room() {
        return Refusal::new(Errno::NoSpace, "the RAM of this tmem disk is full: trim something, or give it more");
    }
    Refusal { errno: Errno::Io, why: error.to_string().into() }
}

impl Tally {
    /// Counts a refusal.
    pub fn refused(&self, refusal: &Refusal, reads: bool) {
        let counter = match (refusal.errno, reads) {
            (Errno::NoSpace, _) => &self.no_space,
            (Errno::Io, true) => &self.failed_reads,
            (Errno::Io, false) => &self.failed_writes,
            _ => &self.invalid,
        };
        counter.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tmem::Config;
    use tmem::testing::Random;

    fn export(size_bytes: u64) -> Export {
        let store = Arc::new(Store::new(Config::new(8 << 20)).unwrap());
        let options = ExportOptions { name: String::new(), size_bytes, read_only: false };
        Export::new(&store, false, &options).unwrap()
    }

    fn extents(export: &Export, offset: u64, bytes: u64) -> Vec<(u32, bool)> {
        let mut all = Vec::new();
        export.status(offset, bytes, 100, |extent| all.push((extent.bytes, extent.hole)));
        all
    }

    #[test]
    fn any_alignment_reads_what_was_written_last() {
        const SIZE: usize = 300_001;
        let export = export(SIZE as u64);
        let mut shadow = vec![0_u8; SIZE];
        let mut random = Random::new(1);
        for step in 0..3000 {
            let at = random.below(SIZE as u64) as usize;
            let bytes = (random.below(20_000) as usize + 1).min(SIZE - at);
            let part = &mut shadow[at..at + bytes];
            match random.below(5) {
                0 => {
                    let keep_room = step % 2 == 0;
                    export.zero(at as u64, bytes as u64, keep_room).unwrap();
                    part.fill(0);
                }
                1 => {
                    let value = random.number() as u8;
                    part.fill(value);
                    export.write(at as u64, part).unwrap();
                }
                2 => {
                    part.iter_mut().for_each(|byte| *byte = random.below(7) as u8);
                    export.write(at as u64, part).unwrap();
                }
                _ => {
                    let mut out = vec![9; bytes];
                    export.read(at as u64, &mut out).unwrap();
                    assert!(out == part, "step {step}: {bytes} bytes at {at}");
                }
            }
        }
    }

    #[test]
    fn zeroes_and_trims_leave_holes() {
        let export = export(1 << 40);
        export.write(8192, &[7; 8192]).unwrap();
        assert_eq!(extents(&export, 0, 32768), [(8192, true), (8192, false), (16384, true)]);
        assert_eq!(extents(&export, 9000, 100), [(100, false)]);
        export.write(8192, &[0; 4096]).unwrap();
        assert_eq!(extents(&export, 0, 16384), [(12288, true), (4096, false)]);
        export.trim(12288, 4095);
        assert_eq!(export.stored().pages, 1);
        export.trim(0, 1 << 40);
        assert_eq!((export.stored().pages, extents(&export, 0, 4096)), (0, vec![(4096, true)]));
        export.zero(0, 8192, true).unwrap();
        assert_eq!(extents(&export, 0, 12288), [(8192, false), (4096, true)]);
    }

    #[test]
    fn pages_behind_the_first_object_are_others() {
        let export = export(1 << 50);
        let far = OBJECT_PAGES * PAGE;
        export.write(far - 4, &[1; 8]).unwrap();
        assert_eq!(export.stored().pages, 2);
        assert_eq!(extents(&export, far - PAGE, 3 * PAGE), [(8192, false), (4096, true)]);
        let mut out = [9; 10];
        export.read(far - 5, &mut out).unwrap();
        assert_eq!(out, [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        export.zero(far - PAGE, 2 * PAGE, false).unwrap();
        assert_eq!(export.stored().pages, 0);
    }
}
