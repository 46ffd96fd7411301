//! Spilling: persistent zpages go to the spill file as they are, and what is dead in the file is taken back.
//!
//! A zpage is copied into a batch under the lock of its word. When the batch is long enough it is written, with no lock held
//! but the writer's; then, one after the other and under its lock, each word that still names the zpage that was
//! copied, byte for byte, names the record instead. What changed meanwhile leaves a dead record. A write that fails changes
//! nothing.
//!
//! Cleaning is the same with records in place of zpages in RAM: a segment that is mostly dead is read from end to end, and what
//! its words still name is written again somewhere else. Which word that is, each record says itself; words that were given
//! other keys since then are looked for in the whole index, when they have become many.
//!
//! When there is room again, what lives in the segment that was begun last can be [called back](Store::recall) to RAM.
//!
//! Of several files, the first is the fastest. What leaves RAM goes there; when it is nearly full, what lives in the segment that
//! was begun the longest time ago goes on to the next file in the same way. A file that fails is passed over.

use super::Store;
use super::reclaim::Pass;
use crate::alloc::{Allocator, Handle, Owner, Queue, Tenant, Zpage};
use crate::budget::Purpose;
use crate::error::Error;
use crate::index::{LEAF_SLOTS, Place, Slot, Word};
use crate::page::payload_check;
use crate::stats::SpillStats;
use crate::sync::read;
use crate::tier::{Extent, Head, Homing, Pin, Refusal, Spill, SpillFile, Writer, Written};

/// The file is cleaned when more than this part of what is alive is dead.
const DEAD_PART: u64 = 4;
/// The same when the file is full.
const DEAD_PART_FULL: u64 = 32;
/// Segments that a call of the shrinker cleans or empties at most when the file is full.
const CLEANINGS_MAX: u32 = 4;
/// Segments that one call moves out of a tier that has to be left.
const DEMOTIONS_MAX: u32 = 16;
/// What is called back leaves this part of the budget free, twice of what a get leaves: it was not even asked for.
const RECALL_PART: u64 = 8;

/// The zpages of a leaf that may leave RAM, by their slots.
type LeafMates = [Option<Handle>; LEAF_SLOTS as usize];

/// What became of a zpage that was to be spilled.
enum Gathered {
    Taken,
    /// It is in the file already, perhaps with one that was gathered before.
    Spilled,
    /// Its word is another one by now.
    Gone,
    Damaged,
    Refused(Refusal),
}

impl Store {
    /// From now on persistent pages for which there is no room in RAM go to a file, the coldest first, packed as they are. What
    /// is read comes back to RAM if there is room. May be called at any time.
    ///
    /// Up to four files may be added, in order of speed. Only the first takes what leaves RAM, as long as it works; when it is
    /// nearly full, what has been there the longest goes on to the second, and so on. When all are full or fail, pages stay in
    /// RAM, and puts are refused when that is full, too.
    ///
    /// # Errors
    /// When there are four files already, when the limit is below 4 MiB, or when the system gives no random numbers for a key.
    pub fn add_spill(&self, spill: Spill) -> Result<(), Error> {
        let file = self.tiers.add(spill, &self.budget)?;
        self.budget.charge(file.fixed_bytes());
        Ok(())
    }

    /// Figures of each spill file, in the order in which they were added.
    #[must_use]
    pub fn spill_stats(&self) -> Vec<SpillStats> {
        self.tiers.iter().map(SpillFile::stats).collect()
    }

    /// Shows the place of a zpage whose header names this owner, and the word that stands there, under its lock.
    fn with_zpage_of<R>(&self, owner: Owner, with: impl FnOnce(Slot, Word) -> R) -> Option<R> {
        let row = match Slot::from(owner) {
            Slot::Shared(row) => row,
            place @ Slot::Entry { shard: number, leaf, slot } => {
                // What a record says of its owner may be damaged.
                let number = Some(number).filter(|number| self.shards.numbers().contains(number))?;
                let shard = read(self.shards.get(number));
                let word = shard.leaf(leaf)?.get(slot)?;
                match word.place() {
                    // It got more names since then.
                    Place::Shared(row) | Place::Member { row, .. } => row,
                    _ => return Some(with(place, word)),
                }
            }
        };
        let rows = read(self.shared.part(row));
        rows.find(row).map(|word| with(Slot::Shared(row), word))
    }

    /// Whether the zpage whose header names this owner is in a spill file.
    pub(super) fn is_spilled(&self, owner: Owner) -> bool {
        self.with_zpage_of(owner, |_, word| matches!(word.place(), Place::Spilled(_))) == Some(true)
    }

    /// The zpages that may leave RAM together with a tenant: those of its leaf that nobody used, and itself, each in its slot.
    /// `None` if it has no leaf of its own, or is not there any more.
    fn leaf_mates(&self, tenant: &Tenant) -> Option<(Slot, LeafMates)> {
        let place @ Slot::Entry { shard, leaf, slot: own } = Slot::from(tenant.owner) else {
            return None;
        };
        let shard = read(self.shards.get(shard));
        let leaf = shard.leaf(leaf).filter(|leaf| leaf.get(own) == Some(Word::ram(tenant.handle)))?;
        let may_leave = |slot: u32| match leaf.get(slot)?.place() {
            Place::Ram(handle) if slot == own || !self.zpages.read(handle, false, |zpage| zpage.used) => Some(handle),
            _ => None,
        };
        Some((place, std::array::from_fn(|slot| may_leave(slot as u32))))
    }

    /// Copies a zpage into the batch, if it is still where it was seen.
    fn gather(&self, file: &SpillFile, writer: &mut Writer, owner: Owner, handle: Handle) -> Gathered {
        let word = Word::ram(handle);
        let mut push = |slot: Slot, zpage: Zpage<'_>| {
            let Some(encoding) = zpage.encoding.filter(|_| payload_check(zpage.payload) == zpage.check) else {
                return Gathered::Damaged;
            };
            match writer.push(file, slot.into(), word, (encoding, zpage.payload), false) {
                Ok(()) => Gathered::Taken,
                Err(refusal) => Gathered::Refused(refusal),
            }
        };
        let gathered = self.with_zpage_of(owner, |slot, found| match found.place() {
            Place::Spilled(_) => Gathered::Spilled,
            _ if found == word => self.zpages.read(handle, false, |zpage| push(slot, zpage)),
            _ => Gathered::Gone,
        });
        gathered.unwrap_or(Gathered::Gone)
    }

    /// Writes the batch and has the words name what was written. `None` when that failed.
    fn write_batch(&self, file: &SpillFile, writer: &mut Writer) -> Option<u64> {
        writer.write(file, |written| self.commit_written(file, written))
    }

    /// Has the word of a zpage name its record, if it still names what was copied. That a handle is the same would not be enough:
    /// its place may have been freed and used again meanwhile. A record that was copied is still the same one, because only
    /// the writer uses places again.
    fn commit_written(&self, file: &SpillFile, written: &Written<'_>) -> bool {
        let is_same =
            |zpage: Zpage<'_>| zpage.encoding == Some(written.extent.encoding) && zpage.payload == written.payload;
        self.replace_zpage(Slot::from(written.owner), written.word, || {
            let same = match written.word.place() {
                Place::Ram(handle) => self.zpages.read(handle, false, is_same),
                _ => true,
            };
            same.then(|| {
                file.add(written.extent);
                Word::spilled(written.extent)
            })
        })
    }

    /// Background work on the files: gives the space of dead segments back, cleans one that is mostly dead, and moves one on from
    /// a file that is nearly full. Says whether there may be more to do. If somebody else is at a file, that can wait.
    pub(super) fn tend_spill_files(&self) -> bool {
        let tend = |file: &SpillFile| {
            let overflows = file.is_nearly_full() && self.tiers.below(file).is_some();
            if !overflows && !file.wants_tending(DEAD_PART) {
                return false;
            }
            let Some(mut writer) = file.try_writer() else {
                return false;
            };
            let cleaned = self.clean(file, &mut writer, DEAD_PART);
            let demoted = overflows && self.demote(file, &mut writer);
            writer.discard_idle(file);
            cleaned || demoted
        };
        // All of them, each time.
        self.tiers.iter().filter(|file| tend(file)).count() > 0
    }

    /// Makes room in a file whose batch is empty. Says whether anything changed.
    fn make_room_in(&self, file: &SpillFile, writer: &mut Writer) -> bool {
        self.clean(file, writer, DEAD_PART_FULL) || self.demote(file, writer)
    }

    /// Calls back what lies in tiers that are [lent](Homing::Return): up to about `bytes` bytes of packed pages come back to RAM that
    /// nobody asked for, those first that left it last. An eighth of the budget stays free, so nothing is pushed out. What has to
    /// [leave](Homing::Leave) goes on to the next tier, if there is one, and otherwise to RAM as well. Says how many bytes came to
    /// RAM. What cannot be read stays where it is, for whoever asks for it.
    ///
    /// For times in which there is room again: it reads from those tiers, and one that does not answer keeps it waiting.
    pub fn recall(&self, bytes: u64) -> u64 {
        let mut done = 0;
        for file in self.tiers.iter() {
            let homing = file.homing();
            let leaves = homing == Homing::Leave;
            if leaves && self.leave(file) {
                continue;
            }
            if leaves || homing == Homing::Return {
                done += self.recall_from(file, bytes.saturating_sub(done));
            }
        }
        done
    }

    /// Moves what lives in a file on to the next one, some segments of it. Says whether any of it was.
    fn leave(&self, file: &SpillFile) -> bool {
        let mut writer = file.writer();
        writer.end_segment(file);
        let moved = (0..DEMOTIONS_MAX).take_while(|_| self.demote(file, &mut writer)).count() > 0;
        writer.discard_idle(file);
        moved
    }

    fn recall_from(&self, file: &SpillFile, bytes: u64) -> u64 {
        let reserve = self.budget.limit() / RECALL_PART;
        let goes_on = |done: u64| done < bytes && self.budget.has_room(reserve, Purpose::Admit);
        let mut done = 0;
        while goes_on(done) {
            // Whoever is writing there has no room.
            let Some(mut writer) = file.try_writer() else { break };
            let Some((number, pin)) = writer.choose_to_recall(file) else { break };
            // With the pin, nobody writes there while it is read.
            drop(writer);
            // What could not be read is counted there.
            let _ = file.walk(number, |extent, record| {
                if goes_on(done)
                    && let Some(slot) = Head::at_start(record).and_then(|head| self.name_of(extent, head.owner))
                    && let Ok(payload) = file.open_walked(extent, &pin, record)
                    && self.bring_back(extent, slot, payload, Queue::Small)
                {
                    done += payload.len() as u64;
                    file.count_recalled();
                }
            });
            if !goes_on(done) {
                file.writer().may_recall_again(pin.fill);
            }
        }
        done
    }

    /// Moves what lives in the oldest segment of the first file on to the second. Says whether any of it was.
    #[cfg(loom)]
    pub fn demote_oldest(&self) -> bool {
        self.tiers.get(0).is_some_and(|file| self.demote(file, &mut file.writer()))
    }

    /// Moves what lives in the oldest segment of a file on to the next file. Says whether any of it was. The batch of the file
    /// is empty and stays so.
    fn demote(&self, file: &SpillFile, writer: &mut Writer) -> bool {
        let Some(below) = self.tiers.below(file) else {
            return false;
        };
        let mut target = below.writer();
        if !target.has_room(below) && !self.make_room_in(below, &mut target) {
            return false;
        }
        let Some((number, pin)) = writer.choose_to_demote(file) else {
            return false;
        };
        let done = self.empty_segment(file, (number, &pin), below, &mut target);
        if !done {
            writer.may_choose_again(file, number);
        }
        done
    }

    /// Cleans one segment if more than a part of the file is dead. Says whether it did. The batch is empty.
    fn clean(&self, file: &SpillFile, writer: &mut Writer, dead_part: u64) -> bool {
        let Some((number, pin)) = writer.choose_to_clean(file, dead_part) else {
            return self.sweep(file, writer, dead_part);
        };
        let done = self.empty_segment(file, (number, &pin), file, writer);
        if !done {
            writer.clean_again(file, number);
        }
        done
    }

    /// Moves what lives in a segment to another place in its file or to another file, whose batch is empty and whose writer this
    /// is. The caller also is the writer of the segment's own file. Says whether all of it was moved that could be read and
    /// found.
    fn empty_segment(&self, file: &SpillFile, segment: (u32, &Pin<'_>), to: &SpillFile, writer: &mut Writer) -> bool {
        let (number, pin) = segment;
        let mut works = true;
        let walked = file.walk(number, |extent, record| {
            let Some(slot) = Head::at_start(record).and_then(|head| self.name_of(extent, head.owner)) else {
                return;
            };
            if works && let Ok(payload) = file.open_walked(extent, pin, record) {
                works = self.move_record(file, slot, extent, payload, to, writer);
            }
        });
        // What could not be read stays where it is: whoever asks for it has to be told.
        drop(walked);
        works && self.write_batch(to, writer).is_some()
    }

    /// Where the word stands that names a record.
    fn name_of(&self, extent: Extent, owner: Owner) -> Option<Slot> {
        self.with_zpage_of(owner, |slot, word| (word == Word::spilled(extent)).then_some(slot)).flatten()
    }

    /// Puts a record of `file` that is alive into the batch of the same or another file. `false` when that takes nothing more.
    fn move_record(
        &self,
        file: &SpillFile,
        slot: Slot,
        from: Extent,
        payload: &[u8],
        to: &SpillFile,
        writer: &mut Writer,
    ) -> bool {
        let (word, zpage) = (Word::spilled(from), (from.encoding, payload));
        // The last free segment of a file is for its own cleaning.
        let cleans = file.number() == to.number();
        let mut pushed = writer.push(to, slot.into(), word, zpage, cleans);
        if pushed == Err(Refusal::Batch) && self.write_batch(to, writer).is_some() {
            pushed = writer.push(to, slot.into(), word, zpage, cleans);
        }
        if pushed.is_ok() {
            file.count_moved(to);
        }
        pushed.is_ok()
    }

    /// Looks through the whole index for records in segments that cleaning did not get empty, and moves them, if that is
    /// worth it.
    fn sweep(&self, file: &SpillFile, writer: &mut Writer, dead_part: u64) -> bool {
        if !writer.begin_sweep(file, dead_part) {
            return false;
        }
        let mut works = true;
        for number in self.shards.numbers() {
            let mut at = (0, 0);
            while let Some((slot, extent)) = self.next_to_sweep(file, number, &mut at).filter(|_| works) {
                works = self.sweep_record(file, writer, slot, extent);
            }
        }
        for part in self.shared.parts() {
            let mut from = 0;
            while let Some((row, extent)) = self.next_row_to_sweep(file, part, from).filter(|_| works) {
                from = row + 1;
                works = self.sweep_record(file, writer, Slot::Shared(row), extent);
            }
        }
        let done = works && self.write_batch(file, writer).is_some();
        if !done {
            writer.sweep_again(file);
        }
        done
    }

    /// The next word of a shard that names a record to be swept, from a leaf and a slot on.
    fn next_to_sweep(&self, file: &SpillFile, number: u16, at: &mut (u32, u32)) -> Option<(Slot, Extent)> {
        let shard = read(self.shards.get(number));
        while at.0 < shard.numbers() {
            let (leaf, slot) = *at;
            *at = if slot + 1 < LEAF_SLOTS { (leaf, slot + 1) } else { (leaf + 1, 0) };
            match shard.leaf(leaf).and_then(|leaf| leaf.get(slot)).map(Word::place) {
                Some(Place::Spilled(extent)) if file.is_swept(extent) => {
                    return Some((Slot::Entry { shard: number, leaf, slot }, extent));
                }
                _ => {}
            }
        }
        None
    }

    fn next_row_to_sweep(&self, file: &SpillFile, part: u32, from: u32) -> Option<(u32, Extent)> {
        let rows = read(self.shared.part(part));
        rows.iter_from(part, from).find_map(|(row, word)| match word.place() {
            Place::Spilled(extent) if file.is_swept(extent) => Some((row, extent)),
            _ => None,
        })
    }

    /// Moves one record. Its segment is not filled again meanwhile, because only the writer does that.
    fn sweep_record(&self, file: &SpillFile, writer: &mut Writer, slot: Slot, extent: Extent) -> bool {
        let pin = file.pin_as_writer(writer, extent);
        // What cannot be read stays where it is.
        let move_on = |payload: &[u8]| self.move_record(file, slot, extent, payload, file, writer);
        file.read_to_move(extent, &pin, |payload| payload.map_or(true, move_on))
    }
}

impl Pass<'_> {
    /// Gathers a persistent tenant for the spill file, and says whether anything changed; nothing if the file takes no more.
    ///
    /// What lies beside it in the index goes with it, in the order of the indexes: what is asked for together was often stored
    /// together, and is then read in one go. Lists of frames are in the order of sizes.
    pub(super) fn spill(&mut self, tenant: &Tenant) -> Option<bool> {
        let Some((Slot::Entry { shard, leaf, .. }, mates)) = self.store.leaf_mates(tenant) else {
            return self.spill_zpage(tenant.owner, tenant.handle);
        };
        let mut changed = false;
        for (slot, handle) in (0..).zip(mates) {
            if let Some(handle) = handle {
                changed |= self.spill_zpage(Slot::Entry { shard, leaf, slot }.into(), handle)?;
            }
        }
        Some(changed)
    }

    fn spill_zpage(&mut self, owner: Owner, handle: Handle) -> Option<bool> {
        let store = self.store;
        let mut cleanings = 0;
        loop {
            let file = store.tiers.get(self.tier)?;
            let writer = self.writer.get_or_insert_with(|| file.writer());
            if writer.holds(Word::ram(handle)) {
                return Some(false);
            }
            match store.gather(file, writer, owner, handle) {
                Gathered::Taken => return Some(true),
                Gathered::Spilled => return Some(false),
                Gathered::Gone => {
                    self.report.lost_races += 1;
                    return Some(false);
                }
                Gathered::Damaged => {
                    self.report.damaged += 1;
                    return Some(false);
                }
                Gathered::Refused(Refusal::Full) if cleanings < CLEANINGS_MAX && store.make_room_in(file, writer) => {
                    cleanings += 1;
                }
                Gathered::Refused(Refusal::Batch) if self.write_spills().is_some() => {}
                Gathered::Refused(_) => self.pass_over()?,
            }
        }
    }

    /// Writes what was gathered and says how many zpages went out of RAM by that. `None` when it failed.
    pub(super) fn write_spills(&mut self) -> Option<u64> {
        let (Some(file), Some(mut writer)) = (self.store.tiers.get(self.tier), self.writer.take()) else {
            return Some(0);
        };
        let spilled = self.store.write_batch(file, &mut writer);
        self.report.spilled += spilled.unwrap_or(0);
        drop(writer);
        spilled.or_else(|| self.pass_over().map(|()| 0))
    }

    /// Goes on with the next file, for this one takes nothing more. `None` when it was the last one.
    fn pass_over(&mut self) -> Option<()> {
        self.forget_spills();
        self.tier += 1;
        self.spills = self.store.tiers.get(self.tier).is_some();
        self.spills.then_some(())
    }

    /// Leaves what was gathered where it is. Nobody waits for the writer any longer.
    pub(super) fn forget_spills(&mut self) {
        if let Some(mut writer) = self.writer.take() {
            writer.clear();
        }
    }
}
