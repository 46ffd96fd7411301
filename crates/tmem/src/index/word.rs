//! The tagged word of the index, and the owner bits in the header of a zpage.

use std::num::NonZeroU64;

use crate::alloc::{Handle, OWNER_BITS, Owner};
use crate::codec::GROUP_PAGES;
use crate::tier::Extent;

/// What the index knows of one page. The low three bits say how to read the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(NonZeroU64);

const TAG_BITS: u32 = Handle::TAG_BITS;
const TAG: u64 = (1 << TAG_BITS) - 1;
// Tag 0 is kept for "nothing", so that a word that may be missing takes no more room than one that is there.
const TAG_RAM: u64 = 1;
const TAG_FILL: u64 = 2;
const TAG_SHARED: u64 = 3;
const TAG_MEMBER: u64 = 4;
const TAG_SPILLED: u64 = 5;
const POSITION_BITS: u32 = GROUP_PAGES.trailing_zeros();

/// A word, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A zpage of this entry alone.
    Ram(Handle),
    /// A zpage of this entry alone, in the spill file.
    Spilled(Extent),
    /// Eight bytes that fill the page; there is no zpage.
    Fill(u64),
    /// A row of the shared table.
    Shared(u32),
    /// A page of the group whose row this is.
    Member { row: u32, position: usize },
}

impl Word {
    fn new(bits: u64) -> Self {
        Self(NonZeroU64::new(bits).expect("no tag is zero"))
    }

    pub(crate) fn ram(handle: Handle) -> Self {
        Self::new(handle.tagged(TAG_RAM))
    }

    pub(crate) fn spilled(extent: Extent) -> Self {
        Self::new(extent.to_bits() << TAG_BITS | TAG_SPILLED)
    }

    /// `None` when the pattern needs its upper three bits; such a page is stored as a zpage of eight bytes.
    pub(crate) fn fill(pattern: u64) -> Option<Self> {
        (pattern << TAG_BITS >> TAG_BITS == pattern).then(|| Self::new(pattern << TAG_BITS | TAG_FILL))
    }

    pub(crate) fn shared(row: u32) -> Self {
        Self::new(u64::from(row) << TAG_BITS | TAG_SHARED)
    }

    pub(crate) fn member(row: u32, position: usize) -> Self {
        debug_assert!(position < GROUP_PAGES);
        Self::new((u64::from(row) << POSITION_BITS | position as u64) << TAG_BITS | TAG_MEMBER)
    }

    pub(crate) fn place(self) -> Place {
        let bits = self.0.get();
        match bits & TAG {
            TAG_RAM => Place::Ram(Handle::untagged(bits)),
            TAG_SPILLED => Place::Spilled(Extent::from_bits(bits >> TAG_BITS)),
            TAG_FILL => Place::Fill(bits >> TAG_BITS),
            TAG_SHARED => Place::Shared((bits >> TAG_BITS) as u32),
            TAG_MEMBER => Place::Member {
                row: (bits >> (TAG_BITS + POSITION_BITS)) as u32,
                position: (bits >> TAG_BITS) as usize % GROUP_PAGES,
            },
            tag => unreachable!("no word carries the tag {tag}"),
        }
    }
}

/// Where in the index a word stands: the other direction of a handle.
///
/// As an [`Owner`]: bits 0-5 slot, 6-26 leaf, 27-38 shard; bit 39 says that bits 0-31 are a row of the shared table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Entry { shard: u16, leaf: u32, slot: u32 },
    Shared(u32),
}

const LEAF_BITS: u32 = 21;
const SHARD_BITS: u32 = 12;
/// Shards that an index can have.
pub(crate) const SHARDS_MAX: usize = 1 << SHARD_BITS;
/// Leaves that a shard can have.
pub(crate) const LEAVES_MAX: u32 = 1 << LEAF_BITS;
const OWNER_SHARED: u64 = 1 << (6 + LEAF_BITS + SHARD_BITS);
const _: () = assert!(OWNER_SHARED < 1 << OWNER_BITS);

impl From<Slot> for Owner {
    fn from(slot: Slot) -> Self {
        Self(match slot {
            Slot::Entry { shard, leaf, slot } => {
                u64::from(slot) | u64::from(leaf) << 6 | u64::from(shard) << (6 + LEAF_BITS)
            }
            Slot::Shared(row) => OWNER_SHARED | u64::from(row),
        })
    }
}

impl From<Owner> for Slot {
    fn from(owner: Owner) -> Self {
        if owner.0 & OWNER_SHARED != 0 {
            return Self::Shared(owner.0 as u32);
        }
        Self::Entry {
            shard: (owner.0 >> (6 + LEAF_BITS)) as u16,
            leaf: (owner.0 >> 6) as u32 & (LEAVES_MAX - 1),
            slot: (owner.0 & 63) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Encoding;

    #[test]
    fn words_and_owners_survive_packing() {
        for place in [
            Place::Ram(Handle::untagged(8 << 40)),
            Place::Spilled(Extent::new(3, 7 << 40, 30_000, Encoding::Zstd)),
            Place::Fill(77),
            Place::Shared(u32::MAX),
            Place::Member { row: u32::MAX, position: 5 },
        ] {
            let word = match place {
                Place::Ram(handle) => Word::ram(handle),
                Place::Spilled(extent) => Word::spilled(extent),
                Place::Fill(pattern) => Word::fill(pattern).unwrap(),
                Place::Shared(row) => Word::shared(row),
                Place::Member { row, position } => Word::member(row, position),
            };
            assert_eq!(word.place(), place);
        }
        assert_eq!(Word::fill(u64::MAX), None);
        let (shard, leaf, slot) = (SHARDS_MAX as u16 - 1, LEAVES_MAX - 1, 63);
        for place in [Slot::Entry { shard, leaf, slot }, Slot::Shared(u32::MAX)] {
            assert_eq!(Slot::from(Owner::from(place)), place);
        }
    }
}
