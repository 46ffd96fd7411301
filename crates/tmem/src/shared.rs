//! Shared rows: zpages that several words name, because they belong to several pools
//! since a clone or because they hold a group of pages. A row says where its zpage is, by a word as the index has them, and
//! how many words of the index name the row.
//!
//! A row is read and moved under the lock of its part, which is taken after an index shard's lock and before the
//! allocator's. Rows come in chunks; a chunk of which no row is used goes back to the system.

use crate::alloc::Owner;
use crate::budget::Budget;
use crate::index::Word;
use crate::sync::{Mutex, Rank, RwLock, lock, write};

const PARTS: u32 = 16;
const CHUNK: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Row {
    /// In RAM or spilled; nothing if the row is free.
    zpage: Option<Word>,
    /// The index slot of the first page of a group, as long as it was not given another key: where whoever empties a frame
    /// finds the others.
    home: Owner,
    /// Words that name the row; none if it is free.
    words: u32,
    /// The next free row of the chunk.
    next_free: u16,
    /// Pages that a group was made of.
    pages: u8,
}

const NO_ROW: u16 = u16::MAX;
const NO_HOME: Owner = Owner(u64::MAX);

#[derive(Debug)]
struct Chunk {
    rows: Box<[Row; CHUNK]>,
    first_free: u16,
    used: u16,
}

/// The rows of one part.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    chunks: Vec<Option<Chunk>>,
    /// Chunks before this one are full.
    search_from: usize,
    charged: u64,
}

#[derive(Debug)]
pub(crate) struct SharedTable {
    parts: Box<[RwLock<Rows>]>,
    next: Mutex<u32>,
}

impl SharedTable {
    pub(crate) fn new() -> Self {
        let part = |_| RwLock::new(Rank::Rows, Rows::default());
        Self { parts: (0..PARTS).map(part).collect(), next: Mutex::new(Rank::NextRows, 0) }
    }

    /// A part for new rows, in turn.
    pub(crate) fn next_part(&self) -> u32 {
        let mut next = lock(&self.next);
        *next = (*next + 1) % PARTS;
        *next
    }

    /// The numbers of all parts.
    pub(crate) fn parts(&self) -> std::ops::Range<u32> {
        0..PARTS
    }

    /// The number of the part of a row.
    pub(crate) fn part_of(&self, row: u32) -> u32 {
        row % PARTS
    }

    /// The part of a row: its low bits.
    pub(crate) fn part(&self, part: u32) -> &RwLock<Rows> {
        &self.parts[(part % PARTS) as usize]
    }

    /// One more word names the row.
    pub(crate) fn add_word(&self, row: u32) {
        write(self.part(row)).row_mut(row).words += 1;
    }

    /// One word fewer names the row. The zpage of a row that nobody names any more is the caller's to free.
    pub(crate) fn remove_word(&self, row: u32, budget: &Budget) -> Option<Word> {
        write(self.part(row)).remove_word(row, budget)
    }
}

impl Rows {
    fn split(row: u32) -> (usize, usize) {
        let at = (row / PARTS) as usize;
        (at / CHUNK, at % CHUNK)
    }

    /// Where the zpage of a row is that a word names.
    pub(crate) fn zpage(&self, row: u32) -> Word {
        self.find(row).expect("a word names the row")
    }

    /// Where the zpage of a row is, if it is used.
    pub(crate) fn find(&self, row: u32) -> Option<Word> {
        let (chunk, at) = Self::split(row);
        self.chunks.get(chunk)?.as_ref()?.rows[at].zpage
    }

    fn row_mut(&mut self, row: u32) -> &mut Row {
        let (chunk, at) = Self::split(row);
        &mut self.chunks[chunk].as_mut().expect("a word names the row").rows[at]
    }

    /// Notes where the zpage is now.
    pub(crate) fn set_zpage(&mut self, row: u32, zpage: Word) {
        self.row_mut(row).zpage = Some(zpage);
    }

    /// Pages that a group was made of.
    pub(crate) fn pages(&self, row: u32) -> u8 {
        let (chunk, at) = Self::split(row);
        self.chunks[chunk].as_ref().expect("a word names the row").rows[at].pages
    }

    /// The rows from `from` on that are used, by their numbers, and where their zpages are. `part` is the number of this part.
    pub(crate) fn iter_from(&self, part: u32, from: u32) -> impl Iterator<Item = (u32, Word)> {
        let first = from.saturating_sub(part).div_ceil(PARTS);
        let rows = (first as usize..self.chunks.len() * CHUNK).map(move |at| at as u32 * PARTS + part);
        rows.filter_map(|row| Some((row, self.find(row)?)))
    }

    /// Where a group was made, if the row is one's and used.
    pub(crate) fn home(&self, row: u32) -> Option<Owner> {
        let (chunk, at) = Self::split(row);
        let row = &self.chunks.get(chunk)?.as_ref()?.rows[at];
        (row.words > 0 && row.home != NO_HOME).then_some(row.home)
    }

    /// Words that name the row.
    pub(crate) fn words(&self, row: u32) -> u32 {
        let (chunk, at) = Self::split(row);
        self.chunks.get(chunk).and_then(Option::as_ref).map_or(0, |chunk| chunk.rows[at].words)
    }

    /// A new row that no word names yet, of a zpage that was made of `pages` pages. `part` is the number of this part.
    pub(crate) fn add_unnamed(&mut self, part: u32, zpage: Word, pages: u8, budget: &Budget) -> u32 {
        let number = self.add(part, zpage, 0, budget);
        self.row_mut(number).pages = pages;
        number
    }

    /// Notes that one more word names a row of a group, which is at home where the first of its words stands.
    pub(crate) fn add_member(&mut self, row: u32, slot: Owner) {
        let row = self.row_mut(row);
        row.words += 1;
        if row.home == NO_HOME {
            row.home = slot;
        }
    }

    /// A new row of a group, named by `words` words in the leaf of `home`. `part` is the number of this part.
    pub(crate) fn add_group(&mut self, part: u32, zpage: Word, words: u32, home: Owner, budget: &Budget) -> u32 {
        let number = self.add(part, zpage, words, budget);
        let row = self.row_mut(number);
        (row.home, row.pages) = (home, words as u8);
        number
    }

    /// A new row, named by `words` words. `part` is the number of this part.
    pub(crate) fn add(&mut self, part: u32, zpage: Word, words: u32, budget: &Budget) -> u32 {
        let number = self.free_chunk(budget);
        let chunk = self.chunks[number].as_mut().expect("chosen because it is there");
        let at = chunk.first_free;
        let row = &mut chunk.rows[at as usize];
        chunk.first_free = row.next_free;
        chunk.used += 1;
        (row.zpage, row.words, row.home, row.pages) = (Some(zpage), words, NO_HOME, 1);
        let at = number * CHUNK + at as usize;
        u32::try_from(at).expect("fewer rows than words") * PARTS + part
    }

    /// The first chunk with a free row.
    fn free_chunk(&mut self, budget: &Budget) -> usize {
        while let Some(chunk) = self.chunks.get(self.search_from) {
            match chunk {
                Some(chunk) if chunk.first_free == NO_ROW => self.search_from += 1,
                Some(_) => return self.search_from,
                None => break,
            }
        }
        let chunk = Some(Chunk::new());
        match self.chunks.get_mut(self.search_from) {
            Some(gap) => *gap = chunk,
            None => self.chunks.push(chunk),
        }
        self.recharge(budget);
        self.search_from
    }

    fn remove_word(&mut self, row: u32, budget: &Budget) -> Option<Word> {
        let (number, at) = Self::split(row);
        let chunk = self.chunks[number].as_mut().expect("a word names the row");
        let row = &mut chunk.rows[at];
        row.words -= 1;
        if row.words > 0 {
            return None;
        }
        let zpage = row.zpage.take();
        row.next_free = chunk.first_free;
        chunk.first_free = at as u16;
        chunk.used -= 1;
        self.search_from = self.search_from.min(number);
        if chunk.used == 0 {
            self.chunks[number] = None;
            self.recharge(budget);
        }
        zpage
    }

    fn recharge(&mut self, budget: &Budget) {
        let chunks = self.chunks.iter().flatten().count();
        let bytes = chunks * size_of::<[Row; CHUNK]>() + self.chunks.capacity() * size_of::<Option<Chunk>>();
        budget.recharge(self.charged, bytes as u64);
        self.charged = bytes as u64;
    }
}

impl Chunk {
    fn new() -> Self {
        let row = |at: usize| Row {
            zpage: None,
            home: NO_HOME,
            words: 0,
            pages: 0,
            next_free: if at + 1 < CHUNK { at as u16 + 1 } else { NO_ROW },
        };
        Self { rows: Box::new(std::array::from_fn(row)), first_free: 0, used: 0 }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::alloc::Handle;
    use crate::sync::read;

    #[test]
    fn rows_come_back_and_chunks_go_back() {
        let budget = Budget::new(1 << 30);
        let table = SharedTable::new();
        let zpage = |i: usize| Word::ram(Handle::untagged(i as u64 * 8));
        let rows: Vec<u32> = (0..1000).map(|i| write(table.part(3)).add(3, zpage(i), 2, &budget)).collect();
        assert!(budget.used() >= 1000 * size_of::<Row>() as u64);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row % PARTS, 3);
            assert_eq!(read(table.part(*row)).zpage(*row), zpage(i));
            assert_eq!(table.remove_word(*row, &budget), None);
        }
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(table.remove_word(*row, &budget), Some(zpage(i)));
            assert_eq!(read(table.part(*row)).find(*row), None);
        }
        assert!(budget.used() < 1000);
    }
}
