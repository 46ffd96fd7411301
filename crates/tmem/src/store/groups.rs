//! Recompression: cold neighbours are packed again, together and tighter.
//!
//! It walks the index, leaf by leaf, eight neighbouring indexes at a time. A page is cold when it was there at the last walk
//! too and nobody has read it since it was put. Its packed form is copied under the lock of its shard, all work is done
//! without a lock, and the words are replaced together if the packed forms are still the same. A group whose pages have
//! mostly gone is taken apart again; what is left of it is packed page by page, and may become part of another group later.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Store;
use crate::alloc::{Allocator, Class, Handle, NewZpage, Owner, Queue, Tenant};
use crate::budget::Purpose;
use crate::codec::{Effort, Encoding, GROUP_PAGES, GROUP_PAGES_MIN, GroupPacker, PACKED_BYTES_MAX};
use crate::index::{LEAF_SLOTS, LeafKey, Place, Shard, Slot, Word};
use crate::page::{PAGE_SIZE, Page, payload_check};
use crate::pool::PoolSlot;
use crate::stats::Recompression;
use crate::sync::{read, try_lock, write};

const SLOTS: u32 = GROUP_PAGES as u32;
const _: () = assert!(LEAF_SLOTS.is_multiple_of(SLOTS));
/// A group has to win this part of what its pages take one by one.
const GAIN_PART: usize = 16;
/// A group is taken apart when at most this part of its pages is left.
const SPARSE_PART: usize = 2;

/// Where the walk is, and what it works with.
#[derive(Default)]
pub(super) struct Walk {
    shard: u16,
    leaf: u32,
    work: Option<Work>,
}

struct Work {
    packer: GroupPacker,
    members: Vec<Member>,
    /// The packed forms of all members, one after the other.
    packed: Vec<u8>,
    /// What was charged for all of it. What zstd says of its context may be another figure later.
    charged_bytes: u64,
}

/// A page that is to become part of a group.
struct Member {
    slot: u32,
    handle: Handle,
    /// Bytes of its packed form.
    bytes: usize,
    encoding: Encoding,
    check: u32,
}

/// Eight neighbouring indexes of a leaf.
#[derive(Clone, Copy)]
struct Octet {
    shard: u16,
    leaf: u32,
    first: u32,
}

impl Store {
    /// A step of background work for at most about `time`: packs cold pages again, in groups of neighbours, where that makes
    /// them smaller. Pages are cold when two walks over the whole store have found them unread, so the time between two walks
    /// is what the caller takes for old: after a walk ([`walked`](Recompression::walked)), wait that long.
    ///
    /// Reading one page of a group costs expanding the group: some ten times the time of a page of its own, once for all of
    /// its pages that are read one after the other.
    pub fn recompress(&self, time: Duration) -> Recompression {
        let mut done = Recompression::default();
        let Some(mut walk) = try_lock(&self.walk) else {
            // Somebody else is at it.
            return done;
        };
        let start = Instant::now();
        loop {
            if !self.shards.numbers().contains(&walk.shard) {
                // What it worked with takes some 300 KiB; until the next walk that is better used for pages.
                if let Some(work) = std::mem::take(&mut *walk).work {
                    self.budget.refund(work.charged_bytes);
                }
                done.walked = true;
                return done;
            }
            if walk.leaf >= read(self.shards.get(walk.shard)).numbers() {
                (walk.shard, walk.leaf) = (walk.shard + 1, 0);
                continue;
            }
            let (shard, leaf) = (walk.shard, walk.leaf);
            walk.leaf += 1;
            for first in (0..LEAF_SLOTS).step_by(GROUP_PAGES) {
                self.recompress_octet(Octet { shard, leaf, first }, &mut walk.work, &mut done);
            }
            if start.elapsed() >= time {
                return done;
            }
        }
    }

    fn recompress_octet(&self, octet: Octet, work: &mut Option<Work>, done: &mut Recompression) {
        let shard = read(self.shards.get(octet.shard));
        let Some(leaf) = shard.leaf(octet.leaf).filter(|leaf| octet.present(leaf.present()) != 0) else {
            return;
        };
        let key = leaf.key();
        let Some((state, _)) = self.pools.find(key.pool) else {
            return;
        };
        let words = octet.slots().filter_map(|slot| Some((slot, leaf.get(slot)?)));
        let mut sparse = false;
        let mut members = [None; GROUP_PAGES];
        let mut count = 0;
        for (slot, word) in words {
            match word.place() {
                Place::Ram(handle) if self.is_cold(handle, state.class()) => {
                    members[count] = Some((slot, handle));
                    count += 1;
                }
                Place::Member { row, .. } => sparse |= self.is_sparse(row),
                _ => {}
            }
        }
        if sparse {
            drop(shard);
            for slot in octet.slots() {
                done.dissolved += u64::from(self.repack(octet, key, slot, state.class()));
            }
            return;
        }
        if count < GROUP_PAGES_MIN {
            return;
        }
        // Making room needs the shards itself.
        drop(shard);
        let Some(work) = self.work(work) else {
            done.no_room += 1;
            return;
        };
        let shard = read(self.shards.get(octet.shard));
        if !work.copy(self, &shard, octet, key, members.into_iter().flatten()) {
            done.lost_races += 1;
            return;
        }
        drop(shard);
        self.group(octet, key, state.class(), work, done);
    }

    /// Whether a page is cold and not known to be incompressible.
    fn is_cold(&self, handle: Handle, class: Class) -> bool {
        // What was used in an ephemeral pool has a second chance to come, which must not be forgotten.
        let cold = self.zpages.age(handle, class == Class::Persistent);
        cold && self.zpages.payload_bytes(handle) as usize <= PACKED_BYTES_MAX
    }

    /// What a walk works with, made the first time; `None` when there is no memory for it, in the system or in the budget.
    fn work<'a>(&self, work: &'a mut Option<Work>) -> Option<&'a mut Work> {
        if work.is_none() {
            let packer = GroupPacker::new()?;
            let (members, packed) = (Vec::with_capacity(GROUP_PAGES), Vec::with_capacity(GROUP_PAGES * PAGE_SIZE));
            let charged_bytes = (packer.memory_bytes() + packed.capacity()) as u64;
            let fits = || self.budget.admit(charged_bytes, Purpose::Move);
            if !(fits() || self.make_room(charged_bytes as usize, Purpose::Admit) && fits()) {
                return None;
            }
            *work = Some(Work { packer, members, packed, charged_bytes });
        }
        work.as_mut()
    }

    /// Packs the members together and puts the group into their place.
    fn group(&self, octet: Octet, key: LeafKey, class: Class, work: &mut Work, done: &mut Recompression) {
        let Work { packer, members, packed, .. } = work;
        packer.clear();
        let mut at = 0;
        for member in &*members {
            let payload = &packed[at..at + member.bytes];
            at += member.bytes;
            // What is damaged stays as it is: whoever reads it has to be told.
            let page = packer.next_page();
            let whole = payload_check(payload) == member.check;
            if !whole || self.contexts.expand(&self.budget, member.encoding, payload, 0, page).is_err() {
                return;
            }
        }
        let payload = packer.pack().filter(|payload| payload.len() <= packed.len() - packed.len() / GAIN_PART);
        let mut shard = write(self.shards.get(octet.shard));
        if !self.are_unchanged(&shard, octet, key, members, packed) {
            done.lost_races += 1;
            return;
        }
        let Some(payload) = payload else {
            members.iter().for_each(|member| self.zpages.set_dense(member.handle));
            done.dense += members.len() as u64;
            return;
        };
        let home: Owner = Slot::Entry { shard: octet.shard, leaf: octet.leaf, slot: members[0].slot }.into();
        let (encoding, check) = (Encoding::Group, payload_check(payload));
        let zpage = NewZpage { encoding, check, owner: home, payload };
        let Ok(handle) = self.zpages.store(class, Queue::Small, &zpage, Purpose::Move) else {
            done.no_room += 1;
            return;
        };
        let part = self.shared.next_part();
        let row =
            write(self.shared.part(part)).add_group(part, Word::ram(handle), members.len() as u32, home, &self.budget);
        self.zpages.set_owner(handle, Slot::Shared(row).into());
        let pool = self.pools.slot(key.pool).expect("a pool with pages keeps its slot");
        for (position, member) in members.iter().enumerate() {
            let word = Word::member(row, position);
            self.replace_word(&mut shard, octet.leaf, member.slot, word, pool);
        }
        done.groups += 1;
        done.pages += members.len() as u64;
        done.saved_bytes += (packed.len() - payload.len()) as u64;
        self.events.recompressed.fetch_add(members.len() as u64, Relaxed);
    }

    /// Puts another name of the same page into its place and frees what the old one named.
    pub(super) fn replace_word(&self, shard: &mut Shard, leaf: u32, slot: u32, word: Word, pool: &PoolSlot) {
        let old = shard.leaf_mut(leaf).and_then(|leaf| leaf.replace(slot, word)).expect("a page is replaced by itself");
        self.count_replaced(shard, old, word, pool);
        self.free_place(old);
    }

    /// Whether all members are where they were, in the same packed form. Their handles alone would not do: a place may have
    /// been freed and used again.
    fn are_unchanged(&self, shard: &Shard, octet: Octet, key: LeafKey, members: &[Member], packed: &[u8]) -> bool {
        let Some(leaf) = shard.leaf(octet.leaf).filter(|leaf| leaf.key() == key) else {
            return false;
        };
        let mut at = 0;
        self.pools.find(key.pool).is_some()
            && members.iter().all(|member| {
                let payload = &packed[at..at + member.bytes];
                at += member.bytes;
                leaf.get(member.slot) == Some(Word::ram(member.handle))
                    && self.zpages.read(member.handle, false, |zpage| {
                        zpage.encoding == Some(member.encoding) && zpage.payload == payload
                    })
            })
    }

    /// Whether a group has lost most of its pages.
    fn is_sparse(&self, row: u32) -> bool {
        self.bytes_per_page_left(row).is_some()
    }

    /// What a group that has lost most of its pages takes for each of those that are left, if it is in RAM.
    fn bytes_per_page_left(&self, row: u32) -> Option<usize> {
        let rows = read(self.shared.part(row));
        let Place::Ram(handle) = rows.zpage(row).place() else {
            return None;
        };
        let left = rows.words(row) as usize;
        let bytes = self.zpages.payload_bytes(handle) as usize;
        (left * SPARSE_PART <= usize::from(rows.pages(row))).then(|| bytes / left)
    }

    /// Packs a page by itself again if it is of a group that has lost most of its pages, and takes less then.
    fn repack(&self, octet: Octet, key: LeafKey, slot: u32, class: Class) -> bool {
        let mut page = [0; PAGE_SIZE];
        let (word, bytes_max) = {
            let shard = read(self.shards.get(octet.shard));
            let leaf = shard.leaf(octet.leaf).filter(|leaf| leaf.key() == key);
            let Some(word) = leaf.and_then(|leaf| leaf.get(slot)) else {
                return false;
            };
            let bytes_max = match word.place() {
                Place::Member { row, .. } => self.bytes_per_page_left(row),
                _ => None,
            };
            match bytes_max {
                Some(bytes_max) if self.expand_from_ram(word, &mut page) => (word, bytes_max),
                _ => return false,
            }
        };
        let repacked = self.contexts.packer(&self.budget, |packer| {
            let (encoding, payload) = packer.compress(&self.budget, &page, Effort::Usual);
            if payload.len() > bytes_max {
                return false;
            }
            let owner = Slot::Entry { shard: octet.shard, leaf: octet.leaf, slot }.into();
            let zpage = NewZpage { encoding, check: payload_check(payload), owner, payload };
            let mut shard = write(self.shards.get(octet.shard));
            if !self.is_still(&shard, &Name { shard: octet.shard, leaf: octet.leaf, key, slot, word }, &page) {
                return false;
            }
            let Ok(handle) = self.zpages.store(class, Queue::Main, &zpage, Purpose::Move) else {
                return false;
            };
            let pool = self.pools.slot(key.pool).expect("a pool with pages keeps its slot");
            self.replace_word(&mut shard, octet.leaf, slot, Word::ram(handle), pool);
            true
        });
        repacked.unwrap_or(false)
    }

    /// Whether a page is still named by this word, in RAM, and has these bytes. The caller holds the lock of its shard.
    pub(super) fn is_still(&self, shard: &Shard, name: &Name, page: &Page) -> bool {
        let mut stored = [0; PAGE_SIZE];
        self.pools.find(name.key.pool).is_some()
            && holds(shard, name)
            && self.expand_from_ram(name.word, &mut stored)
            && stored == *page
    }

    /// The bytes of a group that count for each page that it was made of.
    pub(super) fn member_bytes(&self, row: u32) -> u64 {
        let rows = read(self.shared.part(row));
        u64::from(self.payload_bytes(rows.zpage(row)) / u32::from(rows.pages(row)))
    }

    /// The words that name a zpage, as far as whoever empties its frame can find them: the one of its own entry, or those of
    /// its group that are still in the leaf in which it was made.
    pub(super) fn names_of(&self, tenant: &Tenant) -> Names {
        let (home, row) = match Slot::from(tenant.owner) {
            Slot::Shared(row) => (read(self.shared.part(row)).home(row).map(Slot::from), Some(row)),
            entry @ Slot::Entry { .. } => (Some(entry), None),
        };
        let mut names = Names::default();
        let Some(Slot::Entry { shard: number, leaf: leaf_number, slot }) = home else {
            return names;
        };
        let shard = read(self.shards.get(number));
        let Some(leaf) = shard.leaf(leaf_number) else {
            return names;
        };
        let first = slot / SLOTS * SLOTS;
        let slots = if row.is_some() { first..first + SLOTS } else { slot..slot + 1 };
        for slot in slots {
            let word = leaf.get(slot).filter(|word| match (word.place(), row) {
                (Place::Member { row, .. }, Some(ours)) => row == ours,
                (Place::Ram(handle), None) => handle == tenant.handle,
                _ => false,
            });
            names.list[names.len] =
                word.map(|word| Name { shard: number, leaf: leaf_number, key: leaf.key(), slot, word });
            names.len += usize::from(word.is_some());
        }
        names
    }
}

/// A word and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Name {
    pub(super) shard: u16,
    pub(super) leaf: u32,
    pub(super) key: LeafKey,
    pub(super) slot: u32,
    pub(super) word: Word,
}

/// The names of one zpage, in place: reclaim allocates nothing.
#[derive(Default)]
pub(super) struct Names {
    list: [Option<Name>; GROUP_PAGES],
    len: usize,
}

impl Names {
    pub(super) fn iter(&self) -> impl Iterator<Item = Name> {
        self.list[..self.len].iter().copied().flatten()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Whether a word stands where it was seen. The caller holds the lock of its shard.
pub(super) fn holds(shard: &Shard, name: &Name) -> bool {
    let leaf = shard.leaf(name.leaf).filter(|leaf| leaf.key() == name.key);
    leaf.and_then(|leaf| leaf.get(name.slot)) == Some(name.word)
}

impl Octet {
    fn slots(self) -> std::ops::Range<u32> {
        self.first..self.first + SLOTS
    }

    fn present(self, present: u64) -> u64 {
        present >> self.first & ((1 << SLOTS) - 1)
    }
}

impl Work {
    /// Copies the packed forms of pages, if all of them are still there. The caller holds the lock of the shard.
    fn copy(
        &mut self,
        store: &Store,
        shard: &Shard,
        octet: Octet,
        key: LeafKey,
        pages: impl Iterator<Item = (u32, Handle)>,
    ) -> bool {
        self.members.clear();
        self.packed.clear();
        for (slot, handle) in pages {
            if !holds(shard, &Name { shard: octet.shard, leaf: octet.leaf, key, slot, word: Word::ram(handle) }) {
                return false;
            }
            let copied = store.zpages.read(handle, false, |zpage| {
                let bytes = zpage.payload.len();
                self.packed.extend_from_slice(zpage.payload);
                self.members.push(Member { slot, handle, bytes, encoding: zpage.encoding?, check: zpage.check });
                Some(())
            });
            if copied.is_none() {
                return false;
            }
        }
        true
    }
}
