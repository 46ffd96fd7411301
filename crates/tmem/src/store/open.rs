//! Opening: a store made from a file that another one was saved to (`crate::saved`).
//!
//! Pages come in as by puts, only packed already: within the budget, and what does not fit is spilled. Shared zpages come
//! before what names them, into rows that no word names at first. Nothing that stands in the file can do more than fill the
//! store; what is impossible is refused.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{Config, PUT_ATTEMPTS_MAX, Parcel, Refusal, Store};
use crate::alloc::{Allocator, Class, HEADER_BYTES, NewZpage, NoRoom, Queue};
use crate::budget::Purpose;
use crate::codec::Encoding;
use crate::error::{Error, ErrorKind};
use crate::index::{LEAF_SLOTS, LeafKey, Slot, Word};
use crate::key::{Key, ObjectId};
use crate::page::payload_check;
use crate::pool::{PoolId, PoolKind, Pools, SavedPool};
use crate::saved::{BlockReader, Counts, Kind, Record, read_u32, read_u64};
use crate::sync::{read, write};
use crate::tier::Spill;

/// How a saved store is opened: as which store, with which key, with which spill file.
pub struct OpenOptions {
    config: Config,
    key: Option<[u8; 32]>,
    spills: Vec<Spill>,
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { config, key: _, spills } = self;
        f.debug_struct("OpenOptions").field("config", config).field("spills", spills).finish_non_exhaustive()
    }
}

impl OpenOptions {
    /// Opens as a store that is set up so. Budget, codec, allocator and all else may be other ones than when it was saved.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, key: None, spills: Vec::new() }
    }

    /// With the key of an [encrypted](Store::save_encrypted) one. One that is not encrypted does not open with a key.
    #[must_use]
    pub fn key(mut self, key: &[u8; 32]) -> Self {
        self.key = Some(*key);
        self
    }

    /// With a spill file, or one more, for what does not fit into the budget: see [`Store::add_spill`].
    #[must_use]
    pub fn spill(mut self, spill: Spill) -> Self {
        self.spills.push(spill);
        self
    }

    /// Opens a file. It is only read, and not needed any more afterwards.
    ///
    /// # Errors
    /// When it cannot be read, is torn, damaged or no saved store at all, or does not fit; there is no store then.
    pub fn open(self, path: &Path) -> Result<Store, Error> {
        let file = File::open(path).map_err(|source| ErrorKind::Open { at: 0, source });
        self.read_from(&mut file?)
    }

    /// The same from any reader, to its end.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read_from(self, from: &mut dyn Read) -> Result<Store, Error> {
        let mut reader = BlockReader::new(from, self.key.as_ref())?;
        let store = Store::new(self.config)?;
        for spill in self.spills {
            store.add_spill(spill)?;
        }
        let buffer_bytes = reader.memory_bytes();
        store.budget.charge(buffer_bytes);
        let mut loader = Loader {
            total: reader.counts(),
            counts: Counts::default(),
            leaf: None,
            used_before: store.budget.used(),
            store: &store,
        };
        while loader.take(&reader.next_record()?)? {}
        reader.expect_end()?;
        store.budget.refund(buffer_bytes);
        Ok(store)
    }
}

impl Store {
    /// Opens a store that was [saved](Self::save): [`OpenOptions`] with a configuration alone.
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open(path: &Path, config: Config) -> Result<Self, Error> {
        OpenOptions::new(config).open(path)
    }
}

/// A store on its way in.
struct Loader<'a> {
    store: &'a Store,
    /// What the header says there is, and what there was so far.
    total: Counts,
    counts: Counts,
    /// Whose pages come now.
    leaf: Option<LeafKey>,
    /// Bytes of the empty store.
    used_before: u64,
}

fn damaged(record: &Record<'_>, what: &'static str) -> Error {
    ErrorKind::SavedDamaged { at: record.at, what }.into()
}

impl Loader<'_> {
    /// Takes the next record and says whether there are more.
    fn take(&mut self, record: &Record<'_>) -> Result<bool, Error> {
        match record.kind {
            Kind::Pool if self.counts.shared == 0 && self.leaf.is_none() => self.take_pool(record)?,
            Kind::Zpage(encoding) if self.leaf.is_none() => self.take_shared(record, encoding)?,
            Kind::Leaf => self.take_leaf(record)?,
            Kind::Zpage(_) | Kind::Shared | Kind::Member => self.take_page(record)?,
            Kind::End => self.take_end(record)?,
            Kind::Pool => return Err(damaged(record, "a pool comes too late")),
        }
        self.counts.count(record.kind, record.slot, record.bytes);
        Ok(record.kind != Kind::End)
    }

    fn take_pool(&self, record: &Record<'_>) -> Result<(), Error> {
        let saved = SavedPool {
            id: PoolId::from_bits(read_u32(record.bytes, 0)),
            flags: read_u32(record.bytes, 4),
            cap: read_u64(record.bytes, 8),
            weight: read_u32(record.bytes, 16),
        };
        let made = self.store.pools.restore(&saved).ok_or_else(|| damaged(record, "such a pool cannot be"))?;
        if made {
            self.store.budget.charge(Pools::CHUNK_BYTES as u64);
        }
        if saved.is_live() {
            self.store.prepare_for(saved.kind());
        }
        Ok(())
    }

    fn take_leaf(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let pool = PoolId::from_bits(read_u32(record.bytes, 0));
        let object = ObjectId(std::array::from_fn(|word| read_u64(record.bytes, 8 + 8 * word)));
        let number = read_u32(record.bytes, 4);
        let is_persistent = self.store.pool(pool).is_some_and(|(state, _)| state.kind() == PoolKind::Persistent);
        if !is_persistent || number > u32::MAX / LEAF_SLOTS {
            return Err(damaged(record, "pages of a pool that has none"));
        }
        self.leaf = Some(LeafKey { object, pool, number });
        Ok(())
    }

    /// A zpage that several words will name.
    fn take_shared(&self, record: &Record<'_>, encoding: Encoding) -> Result<(), Error> {
        if record.slot != crate::saved::SHARED_SLOT {
            return Err(damaged(record, "a page of no object"));
        }
        let pages = if encoding == Encoding::Group { record.bytes[0] } else { 1 };
        let (store, row) = (self.store, self.counts.shared);
        let zpage = NewZpage {
            encoding,
            check: payload_check(record.bytes),
            owner: Slot::Shared(row).into(),
            payload: record.bytes,
        };
        self.with_room(record, || {
            let mut rows = write(store.shared.part(row));
            let handle = store.zpages.store(Class::Persistent, Queue::Main, &zpage, Purpose::Admit);
            let handle = handle.map_err(|NoRoom| Refusal::NoRoom)?;
            // The parts take turns, and each gives its rows out in order: so the row is as its number says.
            let made = rows.add_unnamed(store.shared.part_of(row), Word::ram(handle), pages, &store.budget);
            assert_eq!(made, row, "a new table gives its rows out in order");
            Ok(())
        })
    }

    /// A page of the last leaf.
    fn take_page(&self, record: &Record<'_>) -> Result<(), Error> {
        let slot = u32::from(record.slot);
        let Some(leaf) = self.leaf.filter(|_| slot < LEAF_SLOTS) else {
            return Err(damaged(record, "a page of no object"));
        };
        let replaced = match record.kind {
            Kind::Zpage(encoding) => {
                let key = Key { pool: leaf.pool, object: leaf.object, index: leaf.number * LEAF_SLOTS + slot };
                let pattern = record.bytes.first_chunk().filter(|_| encoding == Encoding::Fill);
                let word = pattern.and_then(|pattern| Word::fill(u64::from_ne_bytes(*pattern)));
                let parcel = Parcel::new(encoding, record.bytes);
                self.with_room(record, || self.store.try_put(key, word, &parcel))?.replaced
            }
            _ => {
                let (row, position) = (read_u32(record.bytes, 0), record.bytes.get(4).copied());
                let pages = if row < self.counts.shared { read(self.store.shared.part(row)).pages(row) } else { 0 };
                // A group has more than one page, and its pages have positions in it.
                if position.map_or(pages != 1, |position| pages < 2 || position >= pages) {
                    return Err(damaged(record, "a page that is not in what it is said to be in"));
                }
                self.with_room(record, || self.name(leaf, slot, row, position))?
            }
        };
        if replaced { Err(damaged(record, "a page comes twice")) } else { Ok(()) }
    }

    /// Gives a page the zpage of a row, or a place in the group that is there, and says whether it replaced another one.
    fn name(&self, key: LeafKey, slot: u32, row: u32, position: Option<u8>) -> Result<bool, Refusal> {
        let store = self.store;
        let hash = store.shards.hasher.hash(&key);
        let number = store.shards.number(hash);
        let mut shard = write(store.shards.get(number));
        let (_, pool) = store.pool(key.pool).ok_or(Refusal::Other(ErrorKind::NoPool.into()))?;
        let leaf = store.leaf(&mut shard, hash, key, Purpose::Admit)?;
        let word = match position {
            None => {
                store.shared.add_word(row);
                Word::shared(row)
            }
            Some(position) => {
                let slot = Slot::Entry { shard: number, leaf, slot };
                write(store.shared.part(row)).add_member(row, slot.into());
                Word::member(row, position.into())
            }
        };
        let replaced = store.set_word(&mut shard, leaf, slot, word, pool);
        shard.counters.puts += 1;
        Ok(replaced)
    }

    fn take_end(&self, record: &Record<'_>) -> Result<(), Error> {
        if Counts::from_bytes(record.bytes) != self.counts || self.total != self.counts {
            return Err(damaged(record, "there is not what there should be"));
        }
        let named = |row: u32| read(self.store.shared.part(row)).words(row) > 0;
        if !(0..self.counts.shared).all(named) {
            return Err(damaged(record, "something in it belongs to no page"));
        }
        Ok(())
    }

    /// Tries as often as there is room to be made.
    fn with_room<T>(&self, record: &Record<'_>, mut attempt: impl FnMut() -> Result<T, Refusal>) -> Result<T, Error> {
        /// New rows, leaves and their tables are not asked for one by one.
        const TABLE_BYTES: usize = 16 << 10;
        let bytes = record.bytes.len() + HEADER_BYTES + TABLE_BYTES;
        for _ in 0..PUT_ATTEMPTS_MAX {
            if self.store.budget.has_room(bytes as u64, Purpose::Admit) {
                match attempt() {
                    Ok(done) => return Ok(done),
                    Err(Refusal::Other(error)) => return Err(error),
                    Err(Refusal::NoRoom) => {}
                }
            }
            if !self.store.make_room(bytes, Purpose::Admit) {
                break;
            }
        }
        Err(self.no_room())
    }

    /// How large a budget has to be, reckoned from what has come in so far.
    fn no_room(&self) -> Error {
        /// For what is at the end of frames and tables, and what an empty store does not have yet.
        const SPARE_BYTES: u64 = 512 << 10;
        let weight = |counts: &Counts| {
            u128::from(counts.payload_bytes) + 12 * u128::from(counts.zpages) + 12 * u128::from(counts.pages)
        };
        let (all, done) = (weight(&self.total), weight(&self.counts));
        let taken = u128::from(self.store.budget.used().saturating_sub(self.used_before));
        // The first pages say little: frames and tables come many at a time.
        let part = if done > 1 << 20 { taken * all / done } else { all * 5 / 4 };
        let needed = part + part / 16 + u128::from(self.used_before + SPARE_BYTES);
        let (budget, needed) = (self.store.budget.limit(), needed.try_into().unwrap_or(u64::MAX));
        ErrorKind::SavedNoRoom { budget, needed }.into()
    }
}
