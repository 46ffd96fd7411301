//! Saving: what a store holds in persistent pools, as it lies, into a file (`crate::saved`).
//!
//! Whoever saves has the store to itself. The index is walked twice: once to count and to find out which rows of the shared
//! table belong to what is saved (those of ephemeral groups do not), once to write. Zpages of RAM go from their frames to the
//! buffer, spilled ones are read one by one; each is checked on its way.

use std::io::{self, Write};
use std::path::Path;

use super::{Store, examine};
use crate::alloc::Allocator;
use crate::budget::Purpose;
use crate::codec::Encoding;
use crate::error::{Error, ErrorKind};
use crate::index::{LEAF_SLOTS, LeafKey, Place, Word};
use crate::key::Key;
use crate::pool::{PoolKind, SavedPool};
use crate::saved::{
    BlockWriter, Counts, Header, Kind, LEAF_BYTES, NewFile, POOL_BYTES, SHARED_SLOT, Saved, block_bytes_for,
};
use crate::sync::read;

/// The words of a leaf.
struct SavedLeaf {
    key: LeafKey,
    words: [Option<Word>; LEAF_SLOTS as usize],
}

impl SavedLeaf {
    fn words(&self) -> impl Iterator<Item = (u8, Word)> {
        (0..).zip(&self.words).filter_map(|(slot, word)| Some((slot, (*word)?)))
    }

    fn page(&self, slot: u8) -> Key {
        let LeafKey { object, pool, number } = self.key;
        Key { pool, object, index: number * LEAF_SLOTS + u32::from(slot) }
    }
}

/// The numbers that rows of the shared table get in a file: those that are saved, counted. A bit and a half of memory for each
/// row that there is.
#[derive(Default)]
struct RowNumbers {
    saved: Vec<u64>,
    /// Rows that are saved before each word of `saved`.
    before: Vec<u32>,
}

impl RowNumbers {
    fn add(&mut self, row: u32) {
        let word = row as usize / 64;
        if word >= self.saved.len() {
            self.saved.resize(word + 1, 0);
        }
        self.saved[word] |= 1 << (row % 64);
    }

    fn count(&mut self) {
        let mut before = 0;
        self.before.clear();
        for word in &self.saved {
            self.before.push(before);
            before += word.count_ones();
        }
    }

    fn of(&self, row: u32) -> u32 {
        let word = row as usize / 64;
        self.before[word] + (self.saved[word] & ((1 << (row % 64)) - 1)).count_ones()
    }

    fn rows(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.saved).flat_map(|(word, bits)| {
            (0..u64::BITS).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * u64::BITS + bit)
        })
    }
}

fn failed(source: io::Error) -> Error {
    ErrorKind::Save { source }.into()
}

impl Store {
    /// Saves the store to a file, from which [`open`](Self::open) makes the same store again: persistent pools with all their
    /// pages, packed as they are, also those that were spilled. Ephemeral pools keep their names and options and come back
    /// empty. What is forgotten is which pages were used lately.
    ///
    /// The file takes the place of the one at `path` only when it is whole and safe on the disk; whatever happens before, the
    /// old one is as it was. While it is being written it is called `.NAME.new`. Only its owner may read it (mode 0600). It is
    /// not encrypted: [`save_encrypted`](Self::save_encrypted) does that.
    ///
    /// It takes a buffer of a sixteenth of the budget, at most 288 KiB, for which ephemeral pages may be dropped.
    ///
    /// # Errors
    /// When the file cannot be written; when a page cannot be read, which the error names.
    pub fn save(&mut self, path: &Path) -> Result<Saved, Error> {
        self.save_at(path, None)
    }

    /// The same, encrypted and authenticated (AES-256-GCM) by a key that the caller keeps. Each file is encrypted by a key of
    /// its own, derived from this one, so that it may be used for many. How many pages and pools there are, and how long the
    /// packed pages are together, can be read without it.
    ///
    /// # Errors
    /// As [`save`](Self::save), and when the system gives no random numbers.
    pub fn save_encrypted(&mut self, path: &Path, key: &[u8; 32]) -> Result<Saved, Error> {
        self.save_at(path, Some(key))
    }

    fn save_at(&mut self, path: &Path, key: Option<&[u8; 32]>) -> Result<Saved, Error> {
        let mut file = NewFile::create(path).map_err(failed)?;
        let saved = self.save_to(&mut file, key)?;
        file.commit().map_err(failed)?;
        Ok(saved)
    }

    /// The same to any writer, in few large writes. Until it has returned, there is no telling whether all of it was written.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn save_to(&mut self, out: &mut dyn Write, key: Option<&[u8; 32]>) -> Result<Saved, Error> {
        let (counts, rows) = self.count_saved();
        let header = Header::new(counts, block_bytes_for(self.budget.limit()), key.is_some())?;
        let buffer_bytes = BlockWriter::memory_bytes(&header);
        if !self.budget.has_room(buffer_bytes, Purpose::Move) {
            self.make_room(buffer_bytes as usize, Purpose::Admit);
        }
        self.budget.charge(buffer_bytes);
        // Making room may have moved zpages, but changed no persistent page.
        let saved = self.write_saved(out, header, key, &rows);
        self.budget.refund(buffer_bytes);
        let Counts { pages, zpages, .. } = counts;
        Ok(Saved { pools: self.pools.count(), pages, zpages, bytes: saved? })
    }

    fn write_saved(
        &self,
        out: &mut dyn Write,
        header: Header,
        key: Option<&[u8; 32]>,
        rows: &RowNumbers,
    ) -> Result<u64, Error> {
        let mut writer = BlockWriter::new(out, header, key).map_err(failed)?;
        for pool in self.pools.saved() {
            writer.push(Kind::Pool, 0, &pool_bytes(&pool)).map_err(failed)?;
        }
        for row in rows.rows() {
            let zpage = read(self.shared.part(row)).zpage(row);
            let written = self.write_zpage(&mut writer, SHARED_SLOT, zpage);
            written.unwrap_or_else(|error| Err(self.unreadable(self.page_of_row(row), error)))?;
        }
        self.for_saved_leaves(|leaf| {
            writer.push(Kind::Leaf, 0, &leaf_bytes(&leaf.key)).map_err(failed)?;
            leaf.words().try_for_each(|(slot, word)| match word.place() {
                Place::Fill(pattern) => {
                    writer.push(Kind::Zpage(Encoding::Fill), slot, &pattern.to_ne_bytes()).map_err(failed)
                }
                Place::Shared(row) => writer.push(Kind::Shared, slot, &rows.of(row).to_le_bytes()).map_err(failed),
                Place::Member { row, position } => {
                    let [a, b, c, d] = rows.of(row).to_le_bytes();
                    writer.push(Kind::Member, slot, &[a, b, c, d, position as u8]).map_err(failed)
                }
                Place::Ram(_) | Place::Spilled(_) => {
                    let written = self.write_zpage(&mut writer, slot, word);
                    written.unwrap_or_else(|error| Err(self.unreadable(Some(leaf.page(slot)), error)))
                }
            })
        })?;
        writer.finish().map_err(failed)
    }

    /// Writes a zpage; fails on the outside when it cannot be read, and on the inside when it cannot be written.
    fn write_zpage(&self, writer: &mut BlockWriter<'_>, slot: u8, zpage: Word) -> Result<Result<(), Error>, Error> {
        let mut write = |encoding, payload: &[u8]| writer.push(Kind::Zpage(encoding), slot, payload).map_err(failed);
        match zpage.place() {
            Place::Ram(handle) => self.zpages.read(handle, false, |zpage| Ok(write(examine(&zpage)?, zpage.payload))),
            Place::Spilled(extent) => {
                let file = self.tiers.of(extent);
                let pin = file.pin(extent);
                file.read(extent, &pin, |payload| Ok(write(extent.encoding, payload?)))
            }
            place => unreachable!("{place:?} is no place of a zpage"),
        }
    }

    fn unreadable(&self, key: Option<Key>, source: Error) -> Error {
        match key {
            Some(key) => ErrorKind::SavePage { key, source: Box::new(source) }.into(),
            None => source,
        }
    }

    /// A page whose zpage a row names.
    fn page_of_row(&self, wanted: u32) -> Option<Key> {
        let mut found = None;
        let walked = self.for_saved_leaves(|leaf| {
            let of_row =
                |word: Word| matches!(word.place(), Place::Shared(row) | Place::Member { row, .. } if row == wanted);
            found = found.or_else(|| leaf.words().find(|(_, word)| of_row(*word)).map(|(slot, _)| leaf.page(slot)));
            Ok(())
        });
        walked.ok().and(found)
    }

    /// What there is to save.
    fn count_saved(&self) -> (Counts, RowNumbers) {
        let mut counts = Counts { pools: self.pools.saved().count() as u32, ..Counts::default() };
        let mut rows = RowNumbers::default();
        let walked = self.for_saved_leaves(|leaf| {
            for (_, word) in leaf.words() {
                counts.pages += 1;
                let payload_bytes = match word.place() {
                    Place::Fill(pattern) => size_of_val(&pattern) as u64,
                    Place::Ram(_) | Place::Spilled(_) => self.payload_bytes(word).into(),
                    Place::Shared(row) | Place::Member { row, .. } => {
                        rows.add(row);
                        continue;
                    }
                };
                counts.zpages += 1;
                counts.payload_bytes += payload_bytes;
            }
            Ok(())
        });
        walked.expect("counting does not fail");
        rows.count();
        for row in rows.rows() {
            let zpage = read(self.shared.part(row)).zpage(row);
            counts.shared += 1;
            counts.zpages += 1;
            counts.payload_bytes += u64::from(self.payload_bytes(zpage));
        }
        (counts, rows)
    }

    /// Shows all leaves of persistent pools, copied, so that no lock is held meanwhile.
    fn for_saved_leaves(&self, mut with: impl FnMut(&SavedLeaf) -> Result<(), Error>) -> Result<(), Error> {
        for number in self.shards.numbers() {
            let mut next = 0;
            while let Some(leaf) = self.next_saved_leaf(number, &mut next) {
                with(&leaf)?;
            }
        }
        Ok(())
    }

    fn next_saved_leaf(&self, number: u16, next: &mut u32) -> Option<SavedLeaf> {
        let shard = read(self.shards.get(number));
        while *next < shard.numbers() {
            let leaf = shard.leaf(*next);
            *next += 1;
            let Some(leaf) = leaf else { continue };
            let pool = self.pools.find(leaf.key().pool);
            if pool.is_some_and(|(state, _)| state.kind() == PoolKind::Persistent) {
                let words = std::array::from_fn(|slot| leaf.get(slot as u32));
                return Some(SavedLeaf { key: leaf.key(), words });
            }
        }
        None
    }
}

fn pool_bytes(pool: &SavedPool) -> [u8; POOL_BYTES] {
    let mut bytes = [0; POOL_BYTES];
    bytes[..4].copy_from_slice(&pool.id.to_bits().to_le_bytes());
    bytes[4..8].copy_from_slice(&pool.flags.to_le_bytes());
    bytes[8..16].copy_from_slice(&pool.cap.to_le_bytes());
    bytes[16..].copy_from_slice(&pool.weight.to_le_bytes());
    bytes
}

fn leaf_bytes(key: &LeafKey) -> [u8; LEAF_BYTES] {
    let mut bytes = [0; LEAF_BYTES];
    bytes[..4].copy_from_slice(&key.pool.to_bits().to_le_bytes());
    bytes[4..8].copy_from_slice(&key.number.to_le_bytes());
    for (to, word) in bytes[8..].chunks_exact_mut(8).zip(key.object.0) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
