//! What a store says about itself.

use std::iter::Sum;

/// Figures of a store at one moment. Counters run from the store's creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Pages that gets would find.
    pub pages: u64,
    /// Those among them that are one repeated 64-bit pattern and take nothing but their entry.
    pub same_filled: u64,
    /// Bytes of all those pages as their users see them.
    pub original_bytes: u64,
    /// Zpages that are stored; fewer than pages when pages are shared or same-filled.
    pub zpages: u64,
    /// Bytes of the zpages, without headers.
    pub compressed_bytes: u64,
    /// Bytes of pages that lie as they are until room is needed ([`Config::packs_late`](crate::Config::packs_late)).
    pub unpacked_bytes: u64,
    /// Bytes of the zpages with headers and padding: what would be left if frames were packed without any loss.
    pub zpage_bytes: u64,
    /// Bytes of frames in memory.
    pub frame_bytes: u64,
    /// Everything the store holds: frames, index, tables, contexts.
    pub memory_bytes: u64,
    /// What `memory_bytes` must not pass.
    pub budget_bytes: u64,
    /// Pools that exist.
    pub pools: u64,
    /// Puts that were accepted.
    pub puts: u64,
    /// Those among them that replaced a page.
    pub replaced: u64,
    /// Puts that were refused for lack of room.
    pub refusals: u64,
    /// Gets.
    pub gets: u64,
    /// Gets that found their page.
    pub hits: u64,
    /// Pages that flushes took away.
    pub flushed: u64,
    /// Ephemeral pages that were dropped for room.
    pub evictions: u64,
    /// Whole frames that reclaim took back.
    pub reclaimed_frames: u64,
    /// Persistent pages that were handed to their owner.
    pub written_back: u64,
    /// Pages that reclaim let stay because they were used or because their pool is below its share.
    pub second_chances: u64,
    /// Pages that changed while reclaim was at them.
    pub lost_races: u64,
    /// Persistent pages that their owner would not take.
    pub declined: u64,
    /// Pages that were put again soon after they were dropped.
    pub refaults: u64,
    /// Pages that were packed again in groups.
    pub recompressed: u64,
    /// Pages that were packed because room was needed ([`Config::packs_late`](crate::Config::packs_late)).
    pub packed_late: u64,
    /// Gets of pages that are in groups.
    pub group_gets: u64,
    /// Zpages that were moved to close holes.
    pub moves: u64,
    /// Bytes that those moves copied.
    pub moved_bytes: u64,
    /// Pages that were found damaged.
    pub corrupt: u64,
    /// The spill files, taken together; all zero if there is none.
    pub spill: SpillStats,
}

/// Figures of a spill file, or of all. Counters run from its opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpillStats {
    /// Zpages that live in it.
    pub zpages: u64,
    /// Bytes of those, with heads and seals.
    pub live_bytes: u64,
    /// Bytes of the file that were written and not given back.
    pub file_bytes: u64,
    /// What the file may grow to.
    pub bytes_max: u64,
    /// Zpages that were moved from RAM to the file, or from one place in it to another.
    pub spilled: u64,
    /// Zpages that were read from it for a get or a comparison.
    pub fetched: u64,
    /// Those among them that came back to RAM.
    pub promoted: u64,
    /// Zpages that were [called back](crate::Store::recall) to RAM.
    pub recalled: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Writes that failed. No page is lost by that.
    pub write_failures: u64,
    /// Reads that failed.
    pub read_failures: u64,
    /// Records that are not what was written.
    pub damaged: u64,
    /// Zpages that changed while they were being written.
    pub lost_races: u64,
    /// Times that there was no room for another segment.
    pub full: u64,
    /// Segments whose space was given back.
    pub discards: u64,
    /// Segments whose space could not be given back.
    pub discard_failures: u64,
    /// Segments that were cleaned.
    pub cleaned: u64,
    /// Zpages that cleaning moved.
    pub moved: u64,
    /// Zpages that went on to the next file.
    pub demoted: u64,
}

impl Sum for SpillStats {
    fn sum<I: Iterator<Item = Self>>(files: I) -> Self {
        files.fold(Self::default(), |all, file| Self {
            zpages: all.zpages + file.zpages,
            live_bytes: all.live_bytes + file.live_bytes,
            file_bytes: all.file_bytes + file.file_bytes,
            bytes_max: all.bytes_max + file.bytes_max,
            spilled: all.spilled + file.spilled,
            fetched: all.fetched + file.fetched,
            promoted: all.promoted + file.promoted,
            recalled: all.recalled + file.recalled,
            writes: all.writes + file.writes,
            written_bytes: all.written_bytes + file.written_bytes,
            write_failures: all.write_failures + file.write_failures,
            read_failures: all.read_failures + file.read_failures,
            damaged: all.damaged + file.damaged,
            lost_races: all.lost_races + file.lost_races,
            full: all.full + file.full,
            discards: all.discards + file.discards,
            discard_failures: all.discard_failures + file.discard_failures,
            cleaned: all.cleaned + file.cleaned,
            moved: all.moved + file.moved,
            demoted: all.demoted + file.demoted,
        })
    }
}

/// Figures of one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Pages that gets would find.
    pub pages: u64,
    /// Payload bytes of the pages that this pool put; those it shares with others since a clone count for none.
    pub compressed_bytes: u64,
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Put {
    /// Bytes the page takes in packed form; nothing for a same-filled page.
    pub stored_bytes: u32,
    /// The key held a page before.
    pub replaced: bool,
}

/// What a call of the shrinker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reclaim {
    /// Whole frames that went back to the system meanwhile, less those that moves took.
    pub frames: u64,
    /// Ephemeral pages that were dropped.
    pub evicted: u64,
    /// Persistent pages that were handed to their owner.
    pub written_back: u64,
    /// Persistent zpages that went to the spill file.
    pub spilled: u64,
    /// Zpages that were moved to close holes.
    pub moved: u64,
    /// Pages that were let stay because they were used or because their pool is below its share.
    pub second_chances: u64,
    /// Pages that changed meanwhile, which were left alone.
    pub lost_races: u64,
    /// Persistent pages that their owner would not take.
    pub declined: u64,
    /// Persistent pages that have several names since a clone, which nobody can write back.
    pub shared: u64,
    /// Persistent pages that are damaged.
    pub damaged: u64,
    /// Pages that would have stayed if there had been room to move them to.
    pub no_room: u64,
    /// Why it was not more; nothing if it was enough.
    pub short: Option<Short>,
}

/// Why the shrinker could not take back what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Short {
    /// There is no page left to take.
    Empty,
    /// What is left is persistent, and there is neither a spill file nor an owner to write it back to.
    Persistent,
    /// What is left is persistent, and the spill file is full or failing.
    Spill,
    /// What is left is persistent, and its owner declined some of it.
    Declined,
    /// What is left is shared, damaged or changing too fast, or its frames hold other pages as well.
    Pinned,
}

/// What a step of recompression did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recompression {
    /// Groups that were made.
    pub groups: u64,
    /// Their pages.
    pub pages: u64,
    /// Payload bytes that this saved.
    pub saved_bytes: u64,
    /// Pages that win nothing in a group and are left alone from now on.
    pub dense: u64,
    /// Pages that were taken out of groups that had lost most of theirs.
    pub dissolved: u64,
    /// Groups that were not made because a page changed meanwhile.
    pub lost_races: u64,
    /// Groups for which the budget had no room.
    pub no_room: u64,
    /// The walk over the whole store came to its end.
    pub walked: bool,
}

/// What a step of background work did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintenance {
    /// Zpages that were moved.
    pub moved: u64,
    /// Bytes that were given back to the system.
    pub returned_bytes: u64,
    /// There is more to do: call again soon.
    pub more: bool,
}
