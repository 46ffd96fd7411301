//! A part of all keys: where each value lies, and the page that small ones are being written to.
//!
//! A small value lies in a page together with others, each as a *record*: its database, its key, the value. The page that is being
//! filled is in the shard, as it is; when it is full it goes to the store, where it is packed as a whole, so that short texts are packed
//! together. A large value has pages of its own, so that each can be read into an answer directly; its key stands behind it. An entry of the
//! [table](crate::table) has 20 bytes: 96 bits of a keyed hash, which stand for the key, and a word that says where the value lies. When it
//! expires, if it does, stands in a table of its own. Keys are read again only when somebody wants to see them all.
//!
//! Records that are dead are counted by page. A page that is less than nine sixteenths alive is taken apart: what lives goes on to the
//! open page. When there is little room, and nothing may be dropped, those are that are less than thirteen sixteenths alive.

use tmem::{Key, ObjectId, PAGE_SIZE, Page, PoolId, Store};

use crate::numbers::{NUMBERS_MAX, Numbers};
use crate::record::{RECORD_BYTES_MAX, Record};
use crate::table::Table;

/// Databases, as Redis has them if nothing else is said.
pub const DATABASES: usize = 16;
/// The length of a key behind a large value.
const TAIL_BYTES: usize = 4;
/// A page with less that lives in it is taken apart, as long as there is room.
const LIVE_BYTES_MIN: u16 = (PAGE_SIZE * 9 / 16) as u16;
/// The same where there is hardly any: more work for less waste.
const LIVE_BYTES_MOST: u16 = (PAGE_SIZE * 13 / 16) as u16;
/// With less than this part of the budget free it begins to be more, with less than that it is most.
const ROOM_PARTS: (u64, u64) = (16, 64);

/// A key, as the table knows it: its hash, in its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The keyed hash of database and key.
    pub hash: u128,
    /// The database.
    pub db: u8,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A record of so many bytes in a page, from there on.
    Small { page: u32, offset: u16, bytes: u16 },
    /// A value of so many bytes, from the beginning of a page on.
    Large { page: u32, bytes: u32 },
}

/// What the table has of a key, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    place: Place,
    db: u8,
    /// The other table says when.
    expires: bool,
}

impl Entry {
    const LARGE: u64 = 1 << 63;
    const EXPIRES: u64 = 1 << 62;
    const DB_SHIFT: u32 = 58;

    fn to_word(self) -> u64 {
        let place = match self.place {
            Place::Small { page, offset, bytes } => u64::from(page) << 24 | u64::from(offset) << 12 | u64::from(bytes),
            Place::Large { page, bytes } => Self::LARGE | u64::from(page) << 30 | u64::from(bytes),
        };
        place | u64::from(self.db) << Self::DB_SHIFT | if self.expires { Self::EXPIRES } else { 0 }
    }

    fn from_word(word: u64) -> Self {
        let page = |shift: u32| (word >> shift) as u32 & (NUMBERS_MAX - 1) as u32;
        let place = if word & Self::LARGE != 0 {
            Place::Large { page: page(30), bytes: word as u32 & 0x3fff_ffff }
        } else {
            Place::Small { page: page(24), offset: (word >> 12) as u16 & 0xfff, bytes: word as u16 & 0xfff }
        };
        Self { place, db: (word >> Self::DB_SHIFT) as u8 & 15, expires: word & Self::EXPIRES != 0 }
    }
}

const _: () = assert!(NUMBERS_MAX << 30 == 1 << Entry::DB_SHIFT && DATABASES <= 16);

/// Why a value was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What is common to all shards.
pub trait Around: Sync {
    /// Room for so many more bytes of tables; makes some, if it can.
    fn make_room(&self, bytes: u64) -> Result<(), Full>;
    /// What a shard takes was so many bytes and is so many now.
    fn recount(&self, before: u64, after: u64);
    /// The keyed hash of a key in its database.
    fn hash(&self, db: u8, key: &[u8]) -> u128;
}

/// What a shard needs of its surroundings.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    pub store: &'a Store,
    pub pool: PoolId,
    /// Values may be dropped when there is no room.
    pub drops: bool,
    /// What else there is to ask.
    pub around: &'a dyn Around,
    /// Milliseconds since 1970.
    pub now: u64,
}

/// A part of all keys.
pub struct Shard {
    number: u64,
    /// Entries, as words.
    table: Table,
    /// When those expire that do, in milliseconds since 1970.
    expiries: Table,
    numbers: Numbers,
    /// Bytes of living records, by page.
    live: Vec<u16>,
    /// Pages of which too little lives.
    sparse: Vec<u32>,
    /// The page that is being filled, where it will be, and how much of it is.
    open: Box<Page>,
    open_page: Option<u32>,
    open_bytes: usize,
    /// Bytes that were said to be taken.
    charged: u64,
    /// Keys of each database.
    keys: [u32; DATABASES],
    /// Those of them that expire.
    expiring: [u32; DATABASES],
    /// What the store had dropped when it was looked for that last.
    seen_evictions: u64,
    /// Reads of values that were there, and of those that were not.
    pub hits: u64,
    pub misses: u64,
    /// Values that the store has dropped.
    pub evicted: u64,
    /// Keys that have expired.
    pub expired: u64,
}

/// When a key expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// As it did before.
    Keep,
    /// At a time, in milliseconds since 1970; never for 0.
    At(u64),
}

impl Shard {
    /// An empty one.
    pub fn new(number: usize) -> Self {
        Self {
            number: number as u64,
            table: Table::default(),
            expiries: Table::default(),
            numbers: Numbers::default(),
            live: Vec::new(),
            sparse: Vec::new(),
            open: Box::new([0; PAGE_SIZE]),
            open_page: None,
            open_bytes: 0,
            charged: 0,
            keys: [0; DATABASES],
            expiring: [0; DATABASES],
            seen_evictions: 0,
            hits: 0,
            misses: 0,
            evicted: 0,
            expired: 0,
        }
    }

    /// Bytes that it takes beside the store.
    fn bytes(&self) -> u64 {
        let lists =
            self.numbers.bytes() + self.live.capacity() * size_of::<u16>() + self.sparse.capacity() * size_of::<u32>();
        let tables = self.table.bytes() + self.expiries.bytes() + lists;
        (size_of::<Self>() + PAGE_SIZE + tables) as u64
    }

    /// Says what it takes now.
    pub fn recount(&mut self, around: &dyn Around) {
        let after = self.bytes();
        around.recount(std::mem::replace(&mut self.charged, after), after);
    }

    /// Takes room for so many more bytes of tables, before it takes them.
    fn charge(&mut self, ground: Ground<'_>, bytes: usize) -> Result<(), Full> {
        ground.around.make_room(bytes as u64)?;
        self.charged += bytes as u64;
        Ok(())
    }

    /// Lets one more entry have room in a table.
    fn make_room(&mut self, ground: Ground<'_>, table: fn(&mut Self) -> &mut Table) -> Result<(), Full> {
        if table(self).is_full() {
            let bytes = table(self).bytes_to_grow();
            self.charge(ground, bytes)?;
            table(self).grow();
            self.recount(ground.around);
        }
        Ok(())
    }

    /// Keys of a database, and those of them that expire.
    pub fn keys(&self, db: u8) -> (u32, u32) {
        (self.keys[usize::from(db)], self.expiring[usize::from(db)])
    }

    /// What all of its pages belong to.
    fn object(&self) -> ObjectId {
        ObjectId([self.number, 0, 0])
    }

    fn key_of(&self, ground: Ground<'_>, page: u32) -> Key {
        Key::new(ground.pool, self.object(), page)
    }

    /// Keys of all databases.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Looks a key up; what has expired is removed on the way.
    fn find(&mut self, ground: Ground<'_>, name: Name) -> Option<Entry> {
        let entry = Entry::from_word(self.table.get(name.hash)?);
        if entry.expires && self.expiries.get(name.hash).is_some_and(|at| at <= ground.now) {
            self.expired += 1;
            self.forget_key(ground, name.hash);
            return None;
        }
        Some(entry)
    }

    /// When a key expires, 0 for never; nothing if it is not there.
    pub fn expiry(&mut self, ground: Ground<'_>, name: Name) -> Option<u64> {
        self.find(ground, name).map(|entry| self.expires_at(entry, name))
    }

    fn expires_at(&self, entry: Entry, name: Name) -> u64 {
        if entry.expires { self.expiries.get(name.hash).unwrap_or_default() } else { 0 }
    }

    /// Lets a key expire at a time, or never for 0. `false` if it is not there.
    ///
    /// # Errors
    /// When there is no room to note it; then nothing has changed.
    pub fn set_expiry(&mut self, ground: Ground<'_>, name: Name, at: u64) -> Result<bool, Full> {
        let Some(entry) = self.find(ground, name) else { return Ok(false) };
        if at != 0 {
            self.make_room(ground, |shard| &mut shard.expiries)?;
        }
        self.enter(name, entry.place, at);
        Ok(true)
    }

    /// Puts an entry in place of the one that there is, if there is one, and counts it. The tables have room for it.
    fn enter(&mut self, name: Name, place: Place, at: u64) {
        let (db, expires) = (usize::from(name.db), at != 0);
        let before = self.table.insert(name.hash, Entry { place, db: name.db, expires }.to_word());
        let did_expire = before.is_some_and(|word| Entry::from_word(word).expires);
        if expires {
            self.expiries.insert(name.hash, at);
        } else if did_expire {
            self.expiries.remove(name.hash);
        }
        self.keys[db] += u32::from(before.is_none());
        self.expiring[db] = self.expiring[db] + u32::from(expires) - u32::from(did_expire);
    }

    /// Bytes of a value; nothing if it is not there.
    pub fn length(&mut self, ground: Ground<'_>, name: Name) -> Option<usize> {
        match self.find(ground, name)?.place {
            Place::Large { bytes, .. } => Some(bytes as usize),
            // The page may have been dropped, so it has to be looked at.
            place @ Place::Small { .. } => self.with_record(ground, name, place, |record| record.value.len()),
        }
    }

    /// Shows the record of a small value. One that the store has dropped is removed.
    fn with_record<T>(
        &mut self,
        ground: Ground<'_>,
        name: Name,
        place: Place,
        with: impl FnOnce(Record<'_>) -> T,
    ) -> Option<T> {
        let Place::Small { page, offset, bytes } = place else { return None };
        let range = usize::from(offset)..usize::from(offset + bytes);
        if self.open_page == Some(page) {
            return Some(with(Record::read(&self.open[range])?));
        }
        let whole = |bytes: &[u8]| Record::read_whole(bytes).map(with);
        if let Ok(Some(Some(shown))) = ground.store.with_part(self.key_of(ground, page), range, whole) {
            return Some(shown);
        }
        self.evicted += 1;
        self.forget_key(ground, name.hash);
        None
    }

    /// Reads a part of a value behind what `out` has: that which `part` says when it is told how long the value is; it may add to
    /// `out` what is to stand in front. `false` if the key is not there; then `out` is as it was.
    pub fn read(
        &mut self,
        ground: Ground<'_>,
        name: Name,
        out: &mut Vec<u8>,
        part: impl FnOnce(usize, &mut Vec<u8>) -> std::ops::Range<usize>,
    ) -> bool {
        let Some(entry) = self.find(ground, name) else { return false };
        let before = out.len();
        match entry.place {
            place @ Place::Small { .. } => self
                .with_record(ground, name, place, |record| {
                    let range = part(record.value.len(), out);
                    out.extend_from_slice(&record.value[range]);
                })
                .is_some(),
            Place::Large { page, bytes } => {
                let range = part(bytes as usize, out);
                if self.read_large(ground, page, range, out) {
                    return true;
                }
                out.truncate(before);
                self.evicted += 1;
                self.forget_key(ground, name.hash);
                false
            }
        }
    }

    /// Reads bytes of a run of pages; `false` if one is gone.
    fn read_large(&self, ground: Ground<'_>, first: u32, range: std::ops::Range<usize>, out: &mut Vec<u8>) -> bool {
        let mut at = range.start;
        out.reserve(range.len());
        while at < range.end {
            let (number, within) = (first + (at / PAGE_SIZE) as u32, at % PAGE_SIZE);
            let bytes = (PAGE_SIZE - within).min(range.end - at);
            let key = self.key_of(ground, number);
            let start = out.len();
            let found = if bytes == PAGE_SIZE {
                out.resize(start + PAGE_SIZE, 0);
                let page = out[start..].first_chunk_mut().expect("a page was made room for");
                ground.store.get(key, page)
            } else {
                let mut page = [0; PAGE_SIZE];
                let found = ground.store.get(key, &mut page);
                out.extend_from_slice(&page[within..within + bytes]);
                found
            };
            if !found.unwrap_or(false) {
                return false;
            }
            at += bytes;
        }
        true
    }

    /// Stores a value. If there is no room for it the key has what it had before.
    pub fn write(
        &mut self,
        ground: Ground<'_>,
        name: Name,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
    ) -> Result<(), Full> {
        let before = self.find(ground, name);
        let at = match (expiry, before) {
            (Expiry::At(at), _) => at,
            (Expiry::Keep, Some(entry)) => self.expires_at(entry, name),
            (Expiry::Keep, None) => 0,
        };
        if before.is_none() {
            self.make_room(ground, |shard| &mut shard.table)?;
        }
        if at != 0 {
            self.make_room(ground, |shard| &mut shard.expiries)?;
        }
        let record = Record { db: name.db, key, value };
        let place = if record.bytes() <= RECORD_BYTES_MAX {
            self.append(ground, record.bytes(), |out| record.write(out))?
        } else {
            self.write_large(ground, before, key, value)?
        };
        // What there was before may have moved when a page was taken apart, and a large value may have been written over.
        let before = self.table.get(name.hash).map(|word| Entry::from_word(word).place);
        let same_page =
            matches!((before, place), (Some(Place::Large { page: old, .. }), Place::Large { page, .. }) if old == page);
        if let Some(before) = before.filter(|_| !same_page) {
            self.forget(ground, before);
        }
        self.enter(name, place, at);
        self.clean(ground);
        Ok(())
    }

    /// Adds a record to the open page, or to the next one. `write` is given room for so many bytes.
    fn append(&mut self, ground: Ground<'_>, bytes: usize, write: impl FnOnce(&mut [u8])) -> Result<Place, Full> {
        if self.open_bytes + bytes > PAGE_SIZE {
            self.seal(ground)?;
        }
        let page = match self.open_page {
            Some(page) => page,
            None => {
                let page = self.take_numbers(ground, 1)?;
                self.open_page = Some(page);
                page
            }
        };
        let offset = self.open_bytes;
        write(&mut self.open[offset..offset + bytes]);
        self.open_bytes += bytes;
        self.live[page as usize] += bytes as u16;
        Ok(Place::Small { page, offset: offset as u16, bytes: bytes as u16 })
    }

    /// Gives the open page to the store. If it has no room, the page stays open.
    fn seal(&mut self, ground: Ground<'_>) -> Result<(), Full> {
        let Some(page) = self.open_page else { return Ok(()) };
        if self.live[page as usize] > 0 {
            // What is left of older records behind the end is not to be packed.
            self.open[self.open_bytes..].fill(0);
            ground.store.overwrite_aside(self.key_of(ground, page), &self.open).map_err(|_| Full)?;
            if self.live[page as usize] < live_bytes_min(ground) {
                self.sparse.push(page);
            }
        } else {
            self.numbers.give_back(page);
        }
        (self.open_page, self.open_bytes) = (None, 0);
        Ok(())
    }

    fn take_numbers(&mut self, ground: Ground<'_>, count: usize) -> Result<u32, Full> {
        let first = self.numbers.take(count).ok_or(Full)?;
        let end = first as usize + count;
        if end > self.live.len() {
            if end > self.live.capacity() {
                let more = end.max(self.live.capacity() + self.live.capacity() / 4 + 64) - self.live.len();
                if self.charge(ground, more * size_of::<u16>()).is_err() {
                    self.numbers.give_back(first);
                    return Err(Full);
                }
                self.live.reserve_exact(more);
            }
            self.live.resize(end, 0);
        }
        Ok(first)
    }

    /// Writes a value, and its key behind it, to pages of its own: those that the value before has, if only the first of them changes
    /// by that, which the store replaces or leaves as it is.
    fn write_large(
        &mut self,
        ground: Ground<'_>,
        before: Option<Entry>,
        key: &[u8],
        value: &[u8],
    ) -> Result<Place, Full> {
        let all = value.len() + TAIL_BYTES + key.len();
        let tail = (key.len() as u32).to_le_bytes();
        if let Some(Place::Large { page, bytes: old }) = before.map(|before| before.place) {
            let old = old as usize;
            let fits = all.max(old + TAIL_BYTES + key.len()) <= PAGE_SIZE;
            if fits || (old == value.len() && old <= PAGE_SIZE) {
                let mut first = [0; PAGE_SIZE];
                first[..value.len()].copy_from_slice(value);
                first[value.len()..].iter_mut().zip(tail.iter().chain(key)).for_each(|(to, byte)| *to = *byte);
                ground.store.overwrite(self.key_of(ground, page), &first).map_err(|_| Full)?;
                return Ok(Place::Large { page, bytes: value.len() as u32 });
            }
        }
        let count = all.div_ceil(PAGE_SIZE);
        let first = self.take_numbers(ground, count)?;
        let rest = [&value[value.len() / PAGE_SIZE * PAGE_SIZE..], &tail, key].concat();
        let (whole, _) = value.as_chunks::<PAGE_SIZE>();
        let (rest_whole, end) = rest.as_chunks::<PAGE_SIZE>();
        let mut last = [0; PAGE_SIZE];
        last[..end.len()].copy_from_slice(end);
        let last = (!end.is_empty()).then_some(&last);
        for (number, page) in (first..).zip(whole.iter().chain(rest_whole).chain(last)) {
            if ground.store.put(self.key_of(ground, number), page).is_err() {
                self.flush_run(ground, first);
                return Err(Full);
            }
        }
        Ok(Place::Large { page: first, bytes: value.len() as u32 })
    }

    /// Forgets the pages of a run, and its numbers.
    fn flush_run(&mut self, ground: Ground<'_>, first: u32) {
        let count = self.numbers.run(first);
        ground.store.flush_range(ground.pool, self.object(), first..first + count);
        self.numbers.give_back(first);
    }

    /// What lies there is needed no more.
    fn forget(&mut self, ground: Ground<'_>, place: Place) {
        match place {
            Place::Large { page, .. } => self.flush_run(ground, page),
            Place::Small { page, bytes, .. } => {
                self.live[page as usize] -= bytes;
                let left = self.live[page as usize];
                if self.open_page == Some(page) {
                    if left == 0 {
                        self.open_bytes = 0;
                    }
                } else if left == 0 {
                    self.flush_run(ground, page);
                } else if left < live_bytes_min(ground) {
                    self.sparse.push(page);
                }
            }
        }
    }

    /// Takes apart the pages that have become sparse. Where there is no room for it they stay as they are, until more of them dies.
    fn clean(&mut self, ground: Ground<'_>) {
        while let Some(page) = self.sparse.pop() {
            // It may have become another one meanwhile.
            if self.open_page == Some(page) || !(1..live_bytes_min(ground)).contains(&self.live[page as usize]) {
                continue;
            }
            if !self.take_apart(ground, page) {
                return;
            }
        }
    }

    /// Moves what lives in a page to the open one. `false` if there was no room for all of it.
    fn take_apart(&mut self, ground: Ground<'_>, page: u32) -> bool {
        let mut copy = [0; PAGE_SIZE];
        if !ground.store.get(self.key_of(ground, page), &mut copy).unwrap_or(false) {
            // Dropped: its keys are found out one by one.
            return true;
        }
        let mut offset = 0;
        while let Some(record) = Record::read(&copy[offset..]) {
            let bytes = record.bytes();
            let here = Place::Small { page, offset: offset as u16, bytes: bytes as u16 };
            let whole = &copy[offset..offset + bytes];
            offset += bytes;
            let hash = ground.around.hash(record.db, record.key);
            let entry = self.table.get(hash).map(Entry::from_word);
            let Some(entry) = entry.filter(|entry| entry.place == here) else { continue };
            // With its check, as it is.
            let moved = self.append(ground, bytes, |out| out.copy_from_slice(whole));
            let Ok(place) = moved else { return false };
            self.table.insert(hash, Entry { place, ..entry }.to_word());
            self.live[page as usize] -= bytes as u16;
        }
        self.live[page as usize] = 0;
        self.flush_run(ground, page);
        true
    }

    /// Removes a key. `false` if it is not there.
    pub fn remove(&mut self, ground: Ground<'_>, name: Name) -> bool {
        self.find(ground, name).is_some() && self.forget_key(ground, name.hash)
    }

    /// The same, whether it has expired or not.
    fn forget_key(&mut self, ground: Ground<'_>, hash: u128) -> bool {
        let Some(entry) = self.table.remove(hash).map(Entry::from_word) else { return false };
        let db = usize::from(entry.db);
        self.keys[db] -= 1;
        if entry.expires {
            self.expiries.remove(hash);
            self.expiring[db] -= 1;
        }
        self.forget(ground, entry.place);
        true
    }

    /// The key of an entry.
    fn key(&mut self, ground: Ground<'_>, name: Name) -> Option<Vec<u8>> {
        let entry = self.find(ground, name)?;
        match entry.place {
            place @ Place::Small { .. } => self.with_record(ground, name, place, |record| record.key.to_vec()),
            Place::Large { page, bytes } => {
                let (at, mut tail, mut key) = (bytes as usize, Vec::new(), Vec::new());
                let found = self.read_large(ground, page, at..at + TAIL_BYTES, &mut tail);
                let length = tail.first_chunk().map(|tail| u32::from_le_bytes(*tail) as usize).filter(|_| found)?;
                let start = at + TAIL_BYTES;
                self.read_large(ground, page, start..start + length, &mut key).then_some(key)
            }
        }
    }

    /// Shows keys of a database in the order of their hashes, from one on: at least `count` of them, if there are so many. Says which hash
    /// comes next.
    pub fn scan(
        &mut self,
        ground: Ground<'_>,
        db: u8,
        from: u64,
        count: usize,
        with: &mut dyn FnMut(Vec<u8>),
    ) -> Option<u64> {
        let of_db = |(_, word): &(u128, u64)| Entry::from_word(*word).db == db;
        let (mut hashes, mut next) = (Vec::new(), None);
        for (hash, _) in self.table.from(u128::from(from) << ORDER_SHIFT).filter(of_db) {
            // Those that are equal as far as the cursor tells come together.
            if hashes.len() >= count && hashes.last().is_some_and(|last| order(*last) < order(hash)) {
                next = Some(order(hash));
                break;
            }
            hashes.push(hash);
        }
        for hash in hashes {
            if let Some(key) = self.key(ground, Name { hash, db }) {
                with(key);
            }
        }
        next
    }

    /// A key of a database, if there is one: the first whose hash is not less, or else the first of all.
    pub fn any(&mut self, ground: Ground<'_>, db: u8, from: u64) -> Option<Vec<u8>> {
        let mut found = None;
        for start in [from, 0] {
            let mut next = Some(start);
            while let (Some(at), None) = (next, &found) {
                next = self.scan(ground, db, at, 1, &mut |key| found = Some(key));
            }
        }
        found
    }

    /// Removes all keys of a database, or of all.
    pub fn flush(&mut self, ground: Ground<'_>, db: Option<u8>) {
        if db.is_none() || self.keys.iter().enumerate().all(|(at, keys)| Some(at as u8) == db || *keys == 0) {
            ground.store.flush_object(ground.pool, self.object());
            let Self { charged, hits, misses, evicted, expired, .. } = *self;
            *self = Self { charged, hits, misses, evicted, expired, ..Self::new(self.number as usize) };
            self.recount(ground.around);
            return;
        }
        let of_db = |(_, word): &(u128, u64)| Some(Entry::from_word(*word).db) == db;
        let gone: Vec<u128> = self.table.iter().filter(of_db).map(|(hash, _)| hash).collect();
        for hash in gone {
            self.forget_key(ground, hash);
        }
        self.shrink();
    }

    /// Removes what has expired and, if the store has dropped anything since the last time, what is no longer there. `evictions` is how
    /// many pages it has dropped so far.
    pub fn sweep(&mut self, ground: Ground<'_>, evictions: u64) {
        let dropped = std::mem::replace(&mut self.seen_evictions, evictions) != evictions;
        let due = |(_, at): &(u128, u64)| *at <= ground.now;
        let gone: Vec<u128> = self.expiries.iter().filter(due).map(|(hash, _)| hash).collect();
        for hash in gone {
            self.expired += u64::from(self.forget_key(ground, hash));
        }
        if dropped {
            let is_gone = |(_, word): &(u128, u64)| {
                let (Place::Small { page, .. } | Place::Large { page, .. }) = Entry::from_word(*word).place;
                self.open_page != Some(page) && !ground.store.contains(self.key_of(ground, page))
            };
            let gone: Vec<u128> = self.table.iter().filter(is_gone).map(|(hash, _)| hash).collect();
            for hash in gone {
                self.evicted += u64::from(self.forget_key(ground, hash));
            }
        }
        self.clean(ground);
        self.shrink();
    }

    fn shrink(&mut self) {
        self.table.shrink();
        self.expiries.shrink();
        if self.sparse.is_empty() {
            self.sparse = Vec::new();
        }
    }
}

/// What has to live in a page so that it is not taken apart.
fn live_bytes_min(ground: Ground<'_>) -> u16 {
    // A cache is always full: what it drops makes room, and costs less.
    if ground.drops {
        return LIVE_BYTES_MIN;
    }
    let budget = ground.store.budget_bytes();
    let room = budget.saturating_sub(ground.store.memory_bytes());
    let (ample, least) = (budget / ROOM_PARTS.0, budget / ROOM_PARTS.1);
    let lacking = ample.saturating_sub(room).min(ample - least);
    let more = u64::from(LIVE_BYTES_MOST - LIVE_BYTES_MIN) * lacking / (ample - least).max(1);
    LIVE_BYTES_MIN + more as u16
}

/// What a cursor has of a hash stands so high in it.
const ORDER_SHIFT: u32 = 80;

/// What is left of a hash in a cursor.
fn order(hash: u128) -> u64 {
    (hash >> ORDER_SHIFT) as u64
}
