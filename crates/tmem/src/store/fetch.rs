//! Pages that come back from the spill file.
//!
//! Whoever holds the lock of a word that names a spilled zpage pins the zpage's segment, lets go of the lock and reads. What a
//! get finds is then the page as it was while the lock was held, whatever becomes of the word meanwhile: the bytes stay as
//! they are until the pin is gone. Whoever changes something afterwards asks under the lock whether the word still leads to
//! the same record; as long as the pin is there, no other record can stand at that place.

use std::sync::atomic::Ordering::Relaxed;

use super::Store;
use crate::alloc::{Allocator, Class, NewZpage, Queue, Zpage};
use crate::budget::Purpose;
use crate::codec::GROUP_PAGES;
use crate::error::Error;
use crate::index::{Place, Slot, Word};
use crate::key::Key;
use crate::page::{Page, fill, payload_check};
use crate::sync::{read, write};
use crate::tier::{Extent, Pin, ReadFailure};

/// A spilled page comes back to RAM when more than this part of the budget is free: what comes back must not push others out.
const PROMOTION_PART: u64 = 16;

/// A spilled page that somebody wants to read.
pub(super) struct Fetch<'a> {
    extent: Extent,
    /// Which page of a group.
    position: usize,
    pin: Pin<'a>,
}

/// What a key leads to.
pub(super) enum Found<'a> {
    Nothing,
    /// It was in RAM and is expanded.
    Page,
    /// To be fetched; the word of the zpage stands in this place.
    Spilled(Fetch<'a>, Slot),
}

/// Where a stored page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// In RAM, packed to so many bytes: none for a page filled with one pattern, its part for a page of a group.
    Ram {
        /// Bytes of its packed form.
        bytes: u32,
    },
    /// In a spill file.
    Spilled,
}

/// A page of a range that is to be fetched.
struct Wanted<'a> {
    /// Which of the range.
    at: usize,
    fetch: Fetch<'a>,
    slot: Slot,
}

impl Store {
    /// Gets the pages with the key `first` and the indexes behind it, one after the other, up to the first that is not there or
    /// cannot be read, and says how many. Those of them that lie close to each other in the spill file are read in one go.
    ///
    /// # Errors
    /// When the first page cannot be read; see [`get`](Self::get).
    pub fn get_range(&self, first: Key, out: &mut [Page]) -> Result<usize, Error> {
        if self.pools.find(first.pool).is_none_or(|(state, _)| state.exclusive_gets()) {
            return self.get_one_by_one(first, out);
        }
        let (mut found, mut failure) = (0, None);
        let mut wanted = Vec::new();
        for (key, page) in keys_from(first).zip(&mut *out) {
            match self.look_up(key, page) {
                Ok(Found::Nothing) => break,
                Ok(Found::Page) => {}
                Ok(Found::Spilled(fetch, slot)) => wanted.push(Wanted { at: found, fetch, slot }),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
            found += 1;
        }
        if !wanted.is_empty() {
            let file_of = |wanted: &Wanted<'_>| wanted.fetch.extent.file();
            wanted.sort_unstable_by_key(|wanted| (file_of(wanted), wanted.fetch.extent.offset()));
            let place = |wanted: &Wanted<'_>| (wanted.fetch.extent, wanted.fetch.pin.fill);
            for wanted in wanted.chunk_by(|one, next| file_of(one) == file_of(next)) {
                self.tiers.of(wanted[0].fetch.extent).read_many(
                    wanted,
                    place,
                    |Wanted { at, fetch, slot }, payload| {
                        let promote = |payload: &[u8]| self.promote(fetch.extent, *slot, payload);
                        let done = self.take(fetch, payload, &mut out[*at], promote);
                        if let Err(error) = done
                            && *at < found
                        {
                            (found, failure) = (*at, Some(error));
                        }
                    },
                );
            }
        }
        (0..found).for_each(|_| self.gets.add(true));
        match failure {
            Some(error) if found == 0 => Err(error),
            _ => Ok(found),
        }
    }

    fn get_one_by_one(&self, first: Key, out: &mut [Page]) -> Result<usize, Error> {
        let mut found = 0;
        for (key, page) in keys_from(first).zip(out) {
            match self.get(key, page) {
                Ok(true) => found += 1,
                Err(error) if found == 0 => return Err(error),
                Ok(false) | Err(_) => break,
            }
        }
        Ok(found)
    }

    /// Where a page lies; `None` if it is not stored. In the next moment it may be elsewhere.
    pub fn location(&self, key: Key) -> Option<Location> {
        self.with_word(key, |_, word| self.location_of(word))
    }

    /// Forgets a page unless `keeps` wants to keep it where it is. Says whether it is still there. `keeps` runs under a lock of the
    /// store and must not use it.
    pub fn keep_if(&self, key: Key, keeps: impl FnOnce(Location) -> bool) -> bool {
        let keeps = self.with_word(key, |_, word| keeps(self.location_of(word))) == Some(true);
        if !keeps {
            self.flush_page(key);
        }
        keeps
    }

    /// The caller holds the lock of the word.
    fn location_of(&self, word: Word) -> Location {
        let sharers = if matches!(word.place(), Place::Member { .. }) { GROUP_PAGES as u32 } else { 1 };
        match self.zpage_of(word).place() {
            Place::Ram(handle) => Location::Ram { bytes: self.zpages.payload_bytes(handle) / sharers },
            Place::Spilled(_) => Location::Spilled,
            _ => Location::Ram { bytes: 0 },
        }
    }

    /// Expands what a word names, or says what has to be fetched for that, after all locks were let go of. The caller holds
    /// the lock of the word.
    pub(super) fn expand_word(&self, word: Word, used: bool, out: &mut Page) -> Result<Option<Fetch<'_>>, Error> {
        match word.place() {
            Place::Fill(pattern) => {
                fill(pattern, out);
                Ok(None)
            }
            Place::Shared(row) => {
                let rows = read(self.shared.part(row));
                self.expand_stored(rows.zpage(row), 0, used, out)
            }
            Place::Member { row, position } => {
                self.events.group_gets.fetch_add(u64::from(used), Relaxed);
                let rows = read(self.shared.part(row));
                self.expand_stored(rows.zpage(row), position, used, out)
            }
            Place::Ram(_) | Place::Spilled(_) => self.expand_stored(word, 0, used, out),
        }
    }

    fn expand_stored(
        &self,
        zpage: Word,
        position: usize,
        used: bool,
        out: &mut Page,
    ) -> Result<Option<Fetch<'_>>, Error> {
        match zpage.place() {
            Place::Ram(handle) => {
                self.zpages.read(handle, used, |zpage| self.expand_zpage(&zpage, position, out)).map(|()| None)
            }
            Place::Spilled(extent) => {
                let pin = self.tiers.of(extent).pin(extent);
                Ok(Some(Fetch { extent, position, pin }))
            }
            place => unreachable!("{place:?} is no place of a zpage"),
        }
    }

    /// Expands what a word names if that is in RAM, and says whether it was. The caller holds the lock of the word.
    pub(super) fn expand_from_ram(&self, word: Word, out: &mut Page) -> bool {
        matches!(self.expand_word(word, false, out), Ok(None))
    }

    /// Where the zpage of a word is. The caller holds the lock of the word.
    fn zpage_of(&self, word: Word) -> Word {
        match word.place() {
            Place::Shared(row) | Place::Member { row, .. } => read(self.shared.part(row)).zpage(row),
            _ => word,
        }
    }

    /// Whether a word still leads to what was fetched. The caller holds the lock of the word.
    pub(super) fn leads_to(&self, word: Word, fetch: &Fetch<'_>) -> bool {
        self.zpage_of(word) == Word::spilled(fetch.extent)
    }

    /// Reads and expands a spilled page. No lock is held.
    pub(super) fn fetch(&self, fetch: &Fetch<'_>, out: &mut Page) -> Result<(), Error> {
        self.tiers.of(fetch.extent).read(fetch.extent, &fetch.pin, |payload| self.take(fetch, payload, out, |_| ()))
    }

    /// Reads and expands a spilled page for a get and brings its zpage back to RAM if there is room. `slot` is where the word
    /// of the zpage was seen.
    pub(super) fn fetch_and_promote(&self, fetch: &Fetch<'_>, slot: Slot, out: &mut Page) -> Result<(), Error> {
        let promote = |payload: &[u8]| self.promote(fetch.extent, slot, payload);
        self.tiers.of(fetch.extent).read(fetch.extent, &fetch.pin, |payload| self.take(fetch, payload, out, promote))
    }

    /// Expands what was read, if it could be, and shows the payload to `then`.
    fn take(
        &self,
        fetch: &Fetch<'_>,
        payload: Result<&[u8], ReadFailure>,
        out: &mut Page,
        then: impl FnOnce(&[u8]),
    ) -> Result<(), Error> {
        let payload = payload.map_err(|failure| {
            let error = Error::from(failure);
            self.events.corrupt.fetch_add(error.is_corrupt().into(), Relaxed);
            error
        })?;
        let (encoding, check) = (Some(fetch.extent.encoding), payload_check(payload));
        let zpage = Zpage { encoding, check, used: false, payload };
        self.expand_zpage(&zpage, fetch.position, out)?;
        then(payload);
        Ok(())
    }

    /// Brings what was read for a get back to RAM, if there is room without pushing others out. Its segment is pinned.
    fn promote(&self, extent: Extent, slot: Slot, payload: &[u8]) {
        let room = self.budget.limit() / PROMOTION_PART + payload.len() as u64;
        let file = self.tiers.of(extent);
        if file.promotes(extent)
            && self.budget.has_room(room, Purpose::Admit)
            && self.bring_back(extent, slot, payload, Queue::Main)
        {
            file.count_promoted();
        }
    }

    /// Brings a zpage back to RAM if its word still names it, and says whether it did. Its segment is pinned.
    pub(super) fn bring_back(&self, extent: Extent, slot: Slot, payload: &[u8], queue: Queue) -> bool {
        let encoding = extent.encoding;
        let zpage = NewZpage { encoding, check: payload_check(payload), owner: slot.into(), payload };
        let store = || self.zpages.store(Class::Persistent, queue, &zpage, Purpose::Admit).ok().map(Word::ram);
        self.replace_zpage(slot, Word::spilled(extent), store)
    }

    /// Replaces the word of a zpage by what `to` makes, if it still is the word that was seen, and frees what that named. `to`
    /// runs under the lock of the word.
    pub(super) fn replace_zpage(&self, slot: Slot, from: Word, to: impl FnOnce() -> Option<Word>) -> bool {
        match slot {
            Slot::Entry { shard, leaf, slot } => {
                let mut shard = write(self.shards.get(shard));
                let Some(leaf) = shard.leaf_mut(leaf).filter(|leaf| leaf.get(slot) == Some(from)) else {
                    return false;
                };
                let Some(word) = to() else {
                    return false;
                };
                leaf.replace(slot, word);
                self.free_place(from);
            }
            Slot::Shared(row) => {
                let mut rows = write(self.shared.part(row));
                if rows.find(row) != Some(from) {
                    return false;
                }
                let Some(word) = to() else {
                    return false;
                };
                rows.set_zpage(row, word);
                self.free_place(from);
            }
        }
        true
    }
}

/// A key and those with the next indexes.
fn keys_from(first: Key) -> impl Iterator<Item = Key> {
    (first.index..=u32::MAX).map(move |index| Key { index, ..first })
}
