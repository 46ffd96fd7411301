//! Where pages come from, seen as clusters of 64 neighbouring pages, which is what a leaf of the store's index holds.

use serde_json::Value;
use tmem::{PAGE_SIZE, Page};

/// Pages of a cluster.
pub const CLUSTER_PAGES: u64 = 64;

/// Which pages there are among 64 neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number of the first of the 64: a multiple of 64.
    pub first: u64,
    /// One bit for each page that is there.
    pub present: u64,
}

/// Pages that were read.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Which ones.
    pub block: Block,
    /// Their bytes, in order and without gaps.
    pub pages: Vec<Page>,
}

/// What gives pages.
pub trait Source {
    /// All pages that there are.
    fn blocks(&self) -> &[Block];

    /// Reads a run of neighbouring pages and says how many could be read from the first on; `None` when the source has ended.
    ///
    /// # Errors
    /// When pages that must be there cannot be read.
    fn read_run(&self, first: u64, out: &mut [Page]) -> anyhow::Result<Option<usize>>;

    /// What this is, in a few words that can start a sentence.
    fn title(&self) -> String;

    /// Sentences that the reader of the figures should know.
    fn notes(&self) -> Vec<String>;

    /// The same for programs.
    fn json(&self) -> Value;
}

impl Block {
    /// How many pages there are.
    pub fn pages(self) -> u64 {
        self.present.count_ones().into()
    }

    /// Numbers of the pages, in order.
    pub fn numbers(self) -> impl Iterator<Item = u64> {
        (0..CLUSTER_PAGES).filter(move |at| self.present >> at & 1 == 1).map(move |at| self.first + at)
    }

    /// Runs of neighbouring pages: the first one's place among the 64, and how many.
    fn runs(self) -> impl Iterator<Item = (u32, u32)> {
        let mut left = self.present;
        std::iter::from_fn(move || {
            let start = left.trailing_zeros();
            let count = left.checked_shr(start)?.trailing_ones();
            left &= !ones(start, count);
            Some((start, count))
        })
    }
}

fn ones(start: u32, count: u32) -> u64 {
    u64::MAX.checked_shr(64 - count).unwrap_or(0) << start
}

impl Cluster {
    /// Room for one cluster.
    pub fn new() -> Self {
        Self { block: Block { first: 0, present: 0 }, pages: Vec::with_capacity(CLUSTER_PAGES as usize) }
    }

    /// Reads what can be read of a block; `false` when the source has ended.
    pub fn read(&mut self, source: &dyn Source, block: Block) -> anyhow::Result<bool> {
        self.pages.clear();
        self.block = Block { first: block.first, present: 0 };
        for (start, count) in block.runs() {
            let mut done = 0;
            while done < count {
                let (at, before) = (start + done, self.pages.len());
                self.pages.resize(before + (count - done) as usize, [0; PAGE_SIZE]);
                let Some(got) = source.read_run(block.first + u64::from(at), &mut self.pages[before..])? else {
                    return Ok(false);
                };
                self.pages.truncate(before + got);
                self.block.present |= ones(at, got as u32);
                // The page at which it stopped is gone; those behind it may be there.
                done += got as u32 + 1;
            }
        }
        Ok(true)
    }

    /// Pages with their numbers.
    pub fn entries(&self) -> impl Iterator<Item = (u64, &Page)> {
        self.block.numbers().zip(&self.pages)
    }
}

/// Adds the pages `first..end` to the blocks; pages come in ascending order.
pub fn add_run(blocks: &mut Vec<Block>, mut first: u64, end: u64) {
    while first < end {
        let block = first - first % CLUSTER_PAGES;
        let count = (end - first).min(block + CLUSTER_PAGES - first);
        let bits = ones((first - block) as u32, count as u32);
        match blocks.last_mut() {
            Some(last) if last.first == block => last.present |= bits,
            _ => blocks.push(Block { first: block, present: bits }),
        }
        first += count;
    }
}

/// A source whose pages hold their number, of which some are gone, and which ends after some reads.
#[cfg(test)]
pub struct Fake {
    pub blocks: Vec<Block>,
    pub gone: Vec<u64>,
    pub reads_left: std::cell::Cell<u32>,
}

#[cfg(test)]
impl Fake {
    pub fn new(pages: u64, reads: u32) -> Self {
        let mut blocks = Vec::new();
        add_run(&mut blocks, 0, pages);
        Self { blocks, gone: Vec::new(), reads_left: reads.into() }
    }
}

#[cfg(test)]
impl Source for Fake {
    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn read_run(&self, first: u64, out: &mut [Page]) -> anyhow::Result<Option<usize>> {
        let Some(left) = self.reads_left.get().checked_sub(1) else { return Ok(None) };
        self.reads_left.set(left);
        let whole = (first..).take(out.len()).take_while(|page| !self.gone.contains(page)).count();
        out[..whole].iter_mut().zip(first..).for_each(|(page, number)| page.fill(number as u8));
        Ok(Some(whole))
    }

    fn title(&self) -> String {
        "It".to_owned()
    }

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    fn json(&self) -> Value {
        Value::Null
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_become_blocks() {
        let mut blocks = Vec::new();
        for (first, end) in [(62, 66), (70, 71), (128, 256)] {
            add_run(&mut blocks, first, end);
        }
        let block = |first, present| Block { first, present };
        assert_eq!(blocks, [block(0, 3 << 62), block(64, 0b100_0011), block(128, u64::MAX), block(192, u64::MAX)]);
        assert_eq!(blocks[1].numbers().collect::<Vec<_>>(), [64, 65, 70]);
        assert_eq!(blocks[1].runs().collect::<Vec<_>>(), [(0, 2), (6, 1)]);
        assert_eq!(blocks[2].runs().collect::<Vec<_>>(), [(0, 64)]);
        assert_eq!(blocks[0].runs().collect::<Vec<_>>(), [(62, 2)]);
    }

    #[test]
    fn pages_behind_one_that_is_gone_are_read() {
        let source = Fake { gone: vec![64, 67, 68, 127], ..Fake::new(0, 100) };
        let mut cluster = Cluster::new();
        let block = Block { first: 64, present: !(1 << 10) };
        assert!(cluster.read(&source, block).unwrap());
        assert_eq!(cluster.block.present, block.present & !(1 | 0b11000 | 1 << 63));
        assert_eq!(cluster.pages.len(), 59);
        assert!(cluster.entries().all(|(number, page)| page[0] == number as u8 && page[4095] == number as u8));
    }
}
