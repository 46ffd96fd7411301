//! Blocks that are in RAM and, where there is a spill file, there: what is not stored reads as zeroes.

use std::ops::Range;
use tmem::{Location, PAGE_SIZE, Page};

use crate::export::{Blocks, Held, show_extents};
use crate::pages::Pages;
use crate::protocol::{Errno, Extent, Refusal};
use crate::stripes::{RUN_PAGES, Stripes};

const PAGE: u64 = PAGE_SIZE as u64;
const ZEROES: Page = [0; PAGE_SIZE];

/// The blocks of a disk that is nowhere else.
pub struct RamBlocks {
    pages: Pages,
    /// There is a spill file.
    spills: bool,
    stripes: Stripes,
}

impl RamBlocks {
    pub fn new(pages: Pages, spills: bool) -> Self {
        Self { pages, spills, stripes: Stripes::new() }
    }

    /// Changes a part of a page. Its lock is held.
    fn change(&self, page: u64, at: usize, with: impl FnOnce(&mut [u8]), bytes: usize) -> Result<(), Refusal> {
        let mut whole = ZEROES;
        self.get(page, &mut whole)?;
        with(&mut whole[at..at + bytes]);
        self.put(page, &whole)
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

    /// Forgets pages, run by run. Where nothing is stored there is nothing to do.
    fn forget(&self, pages: Range<u64>) {
        let mut from = pages.start;
        while let Some(stored) = self.pages.next_stored(from..pages.end) {
            let end = ((stored / RUN_PAGES + 1) * RUN_PAGES).min(pages.end);
            let _held = self.stripes.lock_run(stored..end);
            self.pages.flush(stored..end);
            from = end;
        }
    }

    /// Reads the pages from `page` on that are stored, up to the first that is not, neighbours on disk together. Says how many bytes.
    fn get_many(&self, page: u64, out: &mut [u8]) -> Result<usize, Refusal> {
        let (pages, _) = out.as_chunks_mut::<PAGE_SIZE>();
        let found = if pages.len() < 2 {
            0
        } else {
            self.pages.store.get_range(self.pages.key(page), pages).map_err(refusal)?
        };
        Ok(found * PAGE_SIZE)
    }

    fn get(&self, page: u64, out: &mut Page) -> Result<bool, Refusal> {
        self.pages.store.get(self.pages.key(page), out).map_err(refusal)
    }

    /// Stores a page; zeroes are stored by storing nothing. Its lock is held.
    fn put(&self, page: u64, bytes: &Page) -> Result<(), Refusal> {
        if *bytes == ZEROES {
            self.pages.store.flush_page(self.pages.key(page));
            return Ok(());
        }
        self.pages.store.overwrite(self.pages.key(page), bytes).map(drop).map_err(refusal)
    }
}

impl Blocks for RamBlocks {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<Held, Refusal> {
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

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
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

    fn zero(&self, offset: u64, bytes: u64, keep_room: bool) -> Result<(), Refusal> {
        let end = offset + bytes;
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        if whole.start >= whole.end {
            return self.zero_parts(offset, end);
        }
        self.zero_parts(offset, whole.start * PAGE)?;
        if keep_room {
            for page in whole.clone() {
                let _held = self.stripes.lock(page);
                self.pages.store.overwrite(self.pages.key(page), &ZEROES).map_err(refusal)?;
            }
        } else {
            self.forget(whole.clone());
        }
        self.zero_parts(whole.end * PAGE, end)
    }

    fn trim(&self, offset: u64, bytes: u64) -> Result<(), Refusal> {
        self.forget(offset.div_ceil(PAGE)..(offset + bytes) / PAGE);
        Ok(())
    }

    fn cache(&self, offset: u64, bytes: u64) -> Result<(), Refusal> {
        if !self.spills {
            return Ok(());
        }
        let mut page = ZEROES;
        (offset / PAGE..(offset + bytes).div_ceil(PAGE)).try_for_each(|at| self.get(at, &mut page).map(drop))
    }

    /// What was answered is in RAM, or in a spill file that ends with us: nothing makes it safer.
    fn flush(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn status(&self, offset: u64, bytes: u64, extents_max: usize, with: &mut dyn FnMut(Extent)) {
        let last = (offset + bytes).div_ceil(PAGE);
        let look = |at| {
            let pages = at / PAGE..last;
            let (hole, next) = match self.pages.next_stored(pages.clone()) {
                Some(first) if first == pages.start => (false, self.pages.next_gap(pages)),
                next => (true, next),
            };
            (hole, next.unwrap_or(last) * PAGE)
        };
        show_extents(offset, bytes, extents_max, look, with);
    }

    fn is_away(&self, offset: u64) -> bool {
        self.spills && self.pages.store.location(self.pages.key(offset / PAGE)) == Some(Location::Spilled)
    }

    fn pages(&self) -> &Pages {
        &self.pages
    }
}

fn refusal(error: tmem::Error) -> Refusal {
    if error.is_no_room() {
        return Refusal::new(Errno::NoSpace, "the RAM of this tmem disk is full: trim something, or give it more");
    }
    Refusal { errno: Errno::Io, why: error.to_string().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::OBJECT_PAGES;
    use std::sync::Arc;
    use tmem::testing::Random;
    use tmem::{Config, PoolKind, Store};

    fn blocks() -> RamBlocks {
        let store = Arc::new(Store::new(Config::new(8 << 20)).unwrap());
        RamBlocks::new(Pages::new(&store, PoolKind::Persistent).unwrap(), false)
    }

    fn extents(blocks: &RamBlocks, offset: u64, bytes: u64) -> Vec<(u32, bool)> {
        let mut all = Vec::new();
        blocks.status(offset, bytes, 100, &mut |extent| all.push((extent.bytes, extent.hole)));
        all
    }

    #[test]
    fn any_alignment_reads_what_was_written_last() {
        const SIZE: usize = 300_001;
        let blocks = blocks();
        let mut shadow = vec![0_u8; SIZE];
        let mut random = Random::new(1);
        for step in 0..3000 {
            let at = random.below(SIZE as u64) as usize;
            let bytes = (random.below(20_000) as usize + 1).min(SIZE - at);
            let part = &mut shadow[at..at + bytes];
            match random.below(5) {
                0 => {
                    let keep_room = step % 2 == 0;
                    blocks.zero(at as u64, bytes as u64, keep_room).unwrap();
                    part.fill(0);
                }
                1 => {
                    let value = random.number() as u8;
                    part.fill(value);
                    blocks.write(at as u64, part).unwrap();
                }
                2 => {
                    part.iter_mut().for_each(|byte| *byte = random.below(7) as u8);
                    blocks.write(at as u64, part).unwrap();
                }
                _ => {
                    let mut out = vec![9; bytes];
                    blocks.read(at as u64, &mut out).unwrap();
                    assert!(out == part, "step {step}: {bytes} bytes at {at}");
                }
            }
        }
    }

    #[test]
    fn zeroes_and_trims_leave_holes() {
        let blocks = blocks();
        blocks.write(8192, &[7; 8192]).unwrap();
        assert_eq!(extents(&blocks, 0, 32768), [(8192, true), (8192, false), (16384, true)]);
        assert_eq!(extents(&blocks, 9000, 100), [(100, false)]);
        blocks.write(8192, &[0; 4096]).unwrap();
        assert_eq!(extents(&blocks, 0, 16384), [(12288, true), (4096, false)]);
        blocks.trim(12288, 4095).unwrap();
        assert_eq!(blocks.pages.stats().pages, 1);
        blocks.trim(0, 1 << 40).unwrap();
        assert_eq!((blocks.pages.stats().pages, extents(&blocks, 0, 4096)), (0, vec![(4096, true)]));
        blocks.zero(0, 8192, true).unwrap();
        assert_eq!(extents(&blocks, 0, 12288), [(8192, false), (4096, true)]);
    }

    #[test]
    fn pages_behind_the_first_object_are_others() {
        let blocks = blocks();
        let far = OBJECT_PAGES * PAGE;
        blocks.write(far - 4, &[1; 8]).unwrap();
        assert_eq!(blocks.pages.stats().pages, 2);
        assert_eq!(extents(&blocks, far - PAGE, 3 * PAGE), [(8192, false), (4096, true)]);
        let mut out = [9; 10];
        blocks.read(far - 5, &mut out).unwrap();
        assert_eq!(out, [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        blocks.zero(far - PAGE, 2 * PAGE, false).unwrap();
        assert_eq!(blocks.pages.stats().pages, 0);
    }
}
