//! What the supervisor knows about each page of an address space: four bytes a page, in blocks of 2 MiB of address
//! space that exist only where something is known. Also sets of address ranges. No kernel calls here.

use std::collections::BTreeMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

/// Page number: address divided by 4096.
pub type PageNumber = u64;

const BLOCK_PAGES: u64 = 512;

/// Where a page's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    /// With its owner, or never touched: we hold nothing that is needed.
    Home = 0,
    /// In the store; missing in the owner.
    Stored = 1,
    /// In the staging area of the owner; missing at its own address.
    Staged = 2,
}

/// All that is known about one page, in 32 bits:
///
/// | bits | meaning |
/// |---|---|
/// | 0-1 | [`Place`] |
/// | 2 | *going*: `madvise` was about to drop this page when last heard of; not to be evicted |
/// | 3 | *cached*: at home, and the store still holds a copy that may be valid |
/// | 4 | *stuck*: moving it failed; it may be shared with a forked child |
/// | 5-8 | *credit*: turns of the queue that the page may still sit out |
/// | 9-11 | *heat*: how often in a row it came back soon after it was evicted |
/// | 12 | *passing*: it last came back as a part of a long stream |
/// | 16-31 | *epoch* of the last eviction, modulo 65536 |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta(u32);

const HISTORY: u32 = 0xffff_1e00;

impl Meta {
    /// Greatest heat; a page of heat h sits out 2^h - 1 turns.
    pub const HEAT_MAX: u32 = 4;

    /// The place.
    pub fn place(self) -> Place {
        match self.0 & 3 {
            0 => Place::Home,
            1 => Place::Stored,
            _ => Place::Staged,
        }
    }

    /// At home, nothing else known but its history.
    pub fn home(self) -> Meta {
        Meta(self.0 & HISTORY)
    }

    /// The same page in another place, flags cleared.
    pub fn at(self, place: Place) -> Meta {
        Meta(self.0 & HISTORY | place as u32)
    }

    /// True if the page is about to be dropped by its owner.
    pub fn is_going(self) -> bool {
        self.0 & 4 != 0
    }

    /// Sets or clears *going*.
    pub fn going(self, yes: bool) -> Meta {
        Meta(self.0 & !4 | u32::from(yes) << 2)
    }

    /// True if the store holds a copy of this page, which is at home.
    pub fn is_cached(self) -> bool {
        self.0 & 8 != 0
    }

    /// Sets or clears *cached*.
    pub fn cached(self, yes: bool) -> Meta {
        Meta(self.0 & !8 | u32::from(yes) << 3)
    }

    /// True if moving it failed last time.
    pub fn is_stuck(self) -> bool {
        self.0 & 0x10 != 0
    }

    /// Sets or clears *stuck*.
    pub fn stuck(self, yes: bool) -> Meta {
        Meta(self.0 & !0x10 | u32::from(yes) << 4)
    }

    /// Turns that the page may still sit out.
    pub fn credit(self) -> u32 {
        self.0 >> 5 & 15
    }

    /// Sets the credit.
    pub fn with_credit(self, credit: u32) -> Meta {
        Meta(self.0 & !0x1e0 | credit.min(15) << 5)
    }

    /// Came back soon: hotter, with the credit that goes with it.
    pub fn heated(self) -> Meta {
        let heat = ((self.0 >> 9 & 7) + 1).min(Self::HEAT_MAX);
        Meta(self.0 & !0xe00 | heat << 9).with_credit((1 << heat) - 1)
    }

    /// Came back after a long time: half as hot, no credit.
    pub fn cooled(self) -> Meta {
        Meta(self.0 & !0xe00 | ((self.0 >> 9 & 7) / 2) << 9).with_credit(0)
    }

    /// True if it was never evicted, or last came back as a part of a long stream: nothing says that it will be wanted soon.
    pub fn is_passing(self) -> bool {
        self.epoch() == 0 || self.0 & 0x1000 != 0
    }

    /// Sets or clears *passing*.
    pub fn passing(self, yes: bool) -> Meta {
        Meta(self.0 & !0x1000 | u32::from(yes) << 12)
    }

    /// Epoch of the last eviction.
    pub fn epoch(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Sets the epoch.
    pub fn with_epoch(self, epoch: u16) -> Meta {
        Meta(self.0 & 0xffff | u32::from(epoch) << 16)
    }
}

/// Hashes page numbers, which nobody outside chooses to our harm: one multiplication (Fibonacci hashing).
#[derive(Clone, Copy, Default)]
pub struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The table takes its bucket from the low bits and its tag from the high ones.
        self.0 = mixed ^ mixed >> 32;
    }
}

/// Makes [`PageHasher`]s.
pub type PageHash = BuildHasherDefault<PageHasher>;

/// Page number -> [`Meta`], sparse.
#[derive(Clone, Default)]
pub struct PageTable {
    blocks: BTreeMap<u64, Box<[Meta; BLOCK_PAGES as usize]>>,
}

impl PageTable {
    /// What is known of a page.
    pub fn get(&self, page: PageNumber) -> Meta {
        self.blocks.get(&(page / BLOCK_PAGES)).map_or(Meta::default(), |b| b[(page % BLOCK_PAGES) as usize])
    }

    /// Replaces what is known of a page.
    pub fn set(&mut self, page: PageNumber, meta: Meta) {
        let block = page / BLOCK_PAGES;
        if meta == Meta::default() && !self.blocks.contains_key(&block) {
            return;
        }
        self.blocks.entry(block).or_insert_with(|| Box::new([Meta::default(); BLOCK_PAGES as usize]))
            [(page % BLOCK_PAGES) as usize] = meta;
    }

    /// Calls `f` for every page of the range of which something is known, and stores what it returns.
    pub fn update(&mut self, range: Range<PageNumber>, mut f: impl FnMut(PageNumber, Meta) -> Meta) {
        if range.is_empty() {
            return;
        }
        let blocks = range.start / BLOCK_PAGES..=(range.end - 1) / BLOCK_PAGES;
        for (&block, metas) in self.blocks.range_mut(blocks) {
            let first = block * BLOCK_PAGES;
            let low = range.start.max(first) - first;
            let high = range.end.min(first + BLOCK_PAGES) - first;
            for i in low..high {
                let meta = metas[i as usize];
                if meta != Meta::default() {
                    metas[i as usize] = f(first + i, meta);
                }
            }
        }
    }

    /// Forgets a range, and gives back the blocks that lie in it as a whole.
    pub fn forget(&mut self, range: Range<PageNumber>) {
        self.update(range.clone(), |_, _| Meta::default());
        let whole = range.start.div_ceil(BLOCK_PAGES)..range.end / BLOCK_PAGES;
        if !whole.is_empty() {
            let mut kept = self.blocks.split_off(&whole.start);
            self.blocks.append(&mut kept.split_off(&whole.end));
        }
    }

    /// Moves what is known of a range to another place.
    pub fn rekey(&mut self, from: Range<PageNumber>, to: PageNumber) {
        let mut moved = Vec::new();
        self.update(from.clone(), |page, meta| {
            moved.push((page, meta));
            Meta::default()
        });
        for (page, meta) in moved {
            self.set(page - from.start + to, meta);
        }
    }

    /// Pages from `page` on that are in `place`, contiguous, at most `most`.
    pub fn run_forward(&self, page: PageNumber, place: Place, most: u64) -> u64 {
        (0..most).take_while(|&i| self.get(page + i).place() == place).count() as u64
    }

    /// Every page in `place`, in address order, from `from` on, at most `most` of them.
    pub fn find(&self, place: Place, from: PageNumber, most: usize) -> Vec<PageNumber> {
        let mut out = Vec::new();
        for (&block, metas) in self.blocks.range(from / BLOCK_PAGES..) {
            for (i, meta) in metas.iter().enumerate() {
                let page = block * BLOCK_PAGES + i as u64;
                if page >= from && meta.place() == place {
                    out.push(page);
                    if out.len() == most {
                        return out;
                    }
                }
            }
        }
        out
    }
}

/// Disjoint address ranges, merged where they touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds a range.
    pub fn insert(&mut self, mut start: u64, mut end: u64) {
        let touching: Vec<u64> =
            self.ranges.range(..=end).rev().take_while(|&(_, &e)| e >= start).map(|(&s, _)| s).collect();
        for s in touching {
            let e = self.ranges.remove(&s).expect("the key was just seen");
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, start: u64, end: u64) {
        let touched: Vec<(u64, u64)> =
            self.ranges.range(..end).rev().take_while(|&(_, &e)| e > start).map(|(&s, &e)| (s, e)).collect();
        for (s, e) in touched {
            self.ranges.remove(&s);
            if s < start {
                self.ranges.insert(s, start);
            }
            if e > end {
                self.ranges.insert(end, e);
            }
        }
    }

    /// The range that holds `address`.
    pub fn containing(&self, address: u64) -> Option<(u64, u64)> {
        self.ranges.range(..=address).next_back().map(|(&s, &e)| (s, e)).filter(|&(_, e)| e > address)
    }

    /// The parts of `[start, end)` that are not in the set.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        let mut at = start;
        while at < end {
            if let Some((_, e)) = self.containing(at) {
                at = e;
                continue;
            }
            let next = self.ranges.range(at..end).next().map_or(end, |(&s, _)| s);
            out.push((at, next));
            at = next;
        }
        out
    }

    /// The parts of `[start, end)` that are in the set.
    pub fn overlaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = self
            .ranges
            .range(..end)
            .rev()
            .take_while(|&(_, &e)| e > start)
            .map(|(&s, &e)| (s.max(start), e.min(end)))
            .collect();
        out.reverse();
        out
    }

    /// All ranges.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&s, &e)| (s, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_keeps_its_parts_apart() {
        let m = Meta::default().with_epoch(60_000).heated().heated().cached(true).stuck(true).going(true);
        assert_eq!((m.epoch(), m.credit()), (60_000, 3));
        assert!(m.is_cached() && m.is_stuck() && m.is_going());
        assert!(Meta::default().is_passing() && !m.is_passing() && m.passing(true).is_passing());
        assert_eq!((m.passing(true).home().is_passing(), m.passing(true).passing(false)), (true, m));
        let stored = m.at(Place::Stored);
        assert_eq!((stored.place(), stored.epoch(), stored.credit()), (Place::Stored, 60_000, 0));
        assert_eq!(stored.heated().credit(), 7);
        assert_eq!((stored.cooled().credit(), stored.cooled().heated().credit()), (0, 3));
        assert!(!stored.is_cached() && !stored.is_stuck() && !stored.is_going());
    }

    #[test]
    fn range_set_agrees_with_a_bitmap() {
        let mut set = RangeSet::default();
        let mut model = [false; 64];
        let mut seed = 42_u64;
        for step in 0..20_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let a = (seed >> 33) % 64;
            let b = (a + 1 + (seed >> 40) % 9).min(64);
            let add = seed >> 50 & 1 == 0;
            if add {
                set.insert(a, b)
            } else {
                set.remove(a, b)
            }
            model[a as usize..b as usize].fill(add);
            for i in 0..64 {
                assert_eq!(set.containing(i).is_some(), model[i as usize], "step {step} page {i} of {set:?}");
            }
            let covered: u64 = set.overlaps(10, 50).iter().map(|(s, e)| e - s).sum();
            let gaps: u64 = set.gaps(10, 50).iter().map(|(s, e)| e - s).sum();
            assert_eq!(covered, model[10..50].iter().filter(|&&x| x).count() as u64);
            assert_eq!(covered + gaps, 40);
        }
    }

    #[test]
    fn page_table_moves_and_forgets() {
        let mut t = PageTable::default();
        for p in 1000..3000 {
            t.set(p, Meta::default().at(Place::Stored));
        }
        t.rekey(1000..1500, 9000);
        assert_eq!(t.get(1000).place(), Place::Home);
        assert_eq!(t.get(9499).place(), Place::Stored);
        t.forget(1500..2999);
        assert_eq!(t.find(Place::Stored, 0, 10), vec![2999, 9000, 9001, 9002, 9003, 9004, 9005, 9006, 9007, 9008]);
        assert_eq!(t.run_forward(9000, Place::Stored, 1 << 20), 500);
    }
}
