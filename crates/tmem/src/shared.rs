//! Shared rows: zpages that several words name, because they belong to several pools
//! since a clone or because they hold a group of pages, each with its handle and the number of words that name it.
//!
//! A row is read and moved under the lock of its part, which is taken after an index shard's lock and before the
//! allocator's. Rows come in chunks; a chunk of which no row is used goes back to the system.

use crate::alloc::{Handle, Owner};
use crate::budget::Budget;
use crate::sync::{Mutex, Rank, RwLock, lock, write};

const PARTS: u32 = 16;
const CHUNK: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Row {
    handle: Handle,
    /// The index slot of the first page of a group, as long as it was not given another key: where whoever empties a frame
    /// finds the others.
    home: Owner,
    /// Words that name the row; none if it is free.
    words: u32,
    /// The next free row of the chunk.
    next_free: u16,
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

    /// The part of a row: its low bits.
    pub(crate) fn part(&self, part: u32) -> &RwLock<Rows> {
        &self.parts[(part % PARTS) as usize]
    }

    /// One more word names the row.
    pub(crate) fn add_word(&self, row: u32) {
        write(self.part(row)).row_mut(row).words += 1;
    }

    /// One word fewer names the row. The handle of a row that nobody names any more is the caller's to free.
    pub(crate) fn remove_word(&self, row: u32, budget: &Budget) -> Option<Handle> {
        write(self.part(row)).remove_word(row, budget)
    }
}

impl Rows {
    fn split(row: u32) -> (usize, usize) {
        let at = (row / PARTS) as usize;
        (at / CHUNK, at % CHUNK)
    }

    /// The zpage of a row that a word names.
    pub(crate) fn handle(&self, row: u32) -> Handle {
        self.find(row).expect("a word names the row")
    }

    /// The zpage of a row, if it is used.
    pub(crate) fn find(&self, row: u32) -> Option<Handle> {
        let (chunk, at) = Self::split(row);
        let row = self.chunks.get(chunk)?.as_ref()?.rows[at];
        (row.words > 0).then_some(row.handle)
    }

    fn row_mut(&mut self, row: u32) -> &mut Row {
        let (chunk, at) = Self::split(row);
        &mut self.chunks[chunk].as_mut().expect("a word names the row").rows[at]
    }

    /// Notes where the zpage is now.
    pub(crate) fn set_handle(&mut self, row: u32, handle: Handle) {
        self.row_mut(row).handle = handle;
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

    /// A new row of a group, named by `words` words in the leaf of `home`. `part` is the number of this part.
    pub(crate) fn add_group(&mut self, part: u32, handle: Handle, words: u32, home: Owner, budget: &Budget) -> u32 {
        let row = self.add(part, handle, words, budget);
        self.row_mut(row).home = home;
        row
    }

    /// A new row, named by `words` words. `part` is the number of this part.
    pub(crate) fn add(&mut self, part: u32, handle: Handle, words: u32, budget: &Budget) -> u32 {
        let number = self.free_chunk(budget);
        let chunk = self.chunks[number].as_mut().expect("chosen because it is there");
        let at = chunk.first_free;
        let row = &mut chunk.rows[at as usize];
        chunk.first_free = row.next_free;
        chunk.used += 1;
        (row.handle, row.words, row.home) = (handle, words, NO_HOME);
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

    fn remove_word(&mut self, row: u32, budget: &Budget) -> Option<Handle> {
        let (number, at) = Self::split(row);
        let chunk = self.chunks[number].as_mut().expect("a word names the row");
        let row = &mut chunk.rows[at];
        row.words -= 1;
        if row.words > 0 {
            return None;
        }
        let handle = row.handle;
        row.next_free = chunk.first_free;
        chunk.first_free = at as u16;
        chunk.used -= 1;
        self.search_from = self.search_from.min(number);
        if chunk.used == 0 {
            self.chunks[number] = None;
            self.recharge(budget);
        }
        Some(handle)
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
            handle: Handle::untagged(0),
            home: NO_HOME,
            words: 0,
            next_free: if at + 1 < CHUNK { at as u16 + 1 } else { NO_ROW },
        };
        Self { rows: Box::new(std::array::from_fn(row)), first_free: 0, used: 0 }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::read;

    #[test]
    fn rows_come_back_and_chunks_go_back() {
        let budget = Budget::new(1 << 30);
        let table = SharedTable::new();
        let rows: Vec<u32> =
            (0..1000u64).map(|i| write(table.part(3)).add(3, Handle::untagged(i * 8), 2, &budget)).collect();
        assert!(budget.used() >= 1000 * size_of::<Row>() as u64);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row % PARTS, 3);
            assert_eq!(read(table.part(*row)).handle(*row), Handle::untagged(i as u64 * 8));
            assert_eq!(table.remove_word(*row, &budget), None);
        }
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(table.remove_word(*row, &budget), Some(Handle::untagged(i as u64 * 8)));
            assert_eq!(read(table.part(*row)).find(*row), None);
        }
        assert!(budget.used() < 1000);
    }
}
