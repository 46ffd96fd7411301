//! Records: what a saved store consists of, in the order in which it is to be read: pools, shared zpages, then leaves, each
//! with its pages, and the end.
//!
//! A record is a head of four bytes (length, kind, slot) and as many bytes as that says.

use crate::codec::{Encoding, GROUP_PAGES, PACKED_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::page::PAGE_SIZE;

pub(crate) const HEAD_BYTES: usize = 4;
/// The longest record.
pub(crate) const RECORD_BYTES_MAX: usize = HEAD_BYTES + PAYLOAD_BYTES_MAX;
const _: () = assert!(PAYLOAD_BYTES_MAX <= u16::MAX as usize);

/// Pool, flags, cap, weight.
pub(crate) const POOL_BYTES: usize = 20;
/// Pool, number, object.
pub(crate) const LEAF_BYTES: usize = 32;
/// Numbers of things.
const END_BYTES: usize = super::header::COUNTS_BYTES;

/// The slot of a zpage that belongs to no leaf, because several words name it.
pub(crate) const SHARED_SLOT: u8 = 64;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The zpage of a slot of the last leaf, or one that several words name.
    Zpage(Encoding),
    Pool,
    Leaf,
    /// A page of the last leaf whose zpage is shared.
    Shared,
    /// A page of the last leaf that is one of a group.
    Member,
    End,
}

impl Kind {
    fn to_u8(self) -> u8 {
        match self {
            Self::Zpage(encoding) => encoding as u8,
            Self::Pool => 8,
            Self::Leaf => 9,
            Self::Shared => 10,
            Self::Member => 11,
            Self::End => 12,
        }
    }

    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            8 => Self::Pool,
            9 => Self::Leaf,
            10 => Self::Shared,
            11 => Self::Member,
            12 => Self::End,
            encoding => Self::Zpage(Encoding::from_u8(encoding)?),
        })
    }

    /// Whether a record of this kind can have these bytes: of the right length, and of a group, with a number of pages.
    fn admits(self, bytes: &[u8]) -> bool {
        match self {
            Self::Zpage(Encoding::Raw) => bytes.len() == PAGE_SIZE,
            Self::Zpage(Encoding::Fill) => bytes.len() == size_of::<u64>(),
            Self::Zpage(Encoding::Lz4 | Encoding::Zstd) => (1..=PACKED_BYTES_MAX).contains(&bytes.len()),
            Self::Zpage(Encoding::Group) => {
                let pages = bytes.first().map_or(0, |pages| usize::from(*pages));
                (2..=GROUP_PAGES).contains(&pages) && (2..=PAYLOAD_BYTES_MAX).contains(&bytes.len())
            }
            Self::Pool => bytes.len() == POOL_BYTES,
            Self::Leaf => bytes.len() == LEAF_BYTES,
            Self::Shared => bytes.len() == 4,
            Self::Member => bytes.len() == 5,
            Self::End => bytes.len() == END_BYTES,
        }
    }

    /// Whether a record of this kind can have this slot.
    fn admits_slot(self, slot: u8) -> bool {
        match self {
            Self::Zpage(Encoding::Group) => slot == SHARED_SLOT,
            Self::Zpage(_) => slot <= SHARED_SLOT,
            Self::Shared | Self::Member => slot < SHARED_SLOT,
            Self::Pool | Self::Leaf | Self::End => slot == 0,
        }
    }
}

/// A record as it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    /// Where it begins in the file.
    pub(crate) at: u64,
    pub(crate) kind: Kind,
    pub(crate) slot: u8,
    pub(crate) bytes: &'a [u8],
}

/// The head of a record.
pub(super) fn head(kind: Kind, slot: u8, bytes: &[u8]) -> [u8; HEAD_BYTES] {
    debug_assert!(kind.admits(bytes) && kind.admits_slot(slot));
    let [low, high] = (bytes.len() as u16).to_le_bytes();
    [low, high, kind.to_u8(), slot]
}

/// The record at the start of `bytes`, which begin at `at` in the file; `None` if there is none.
pub(super) fn first(bytes: &[u8], at: u64) -> Option<Record<'_>> {
    let ([low, high, kind, slot], rest) = bytes.split_first_chunk()?;
    let bytes = rest.get(..usize::from(u16::from_le_bytes([*low, *high])))?;
    let kind = Kind::from_u8(*kind).filter(|kind| kind.admits(bytes) && kind.admits_slot(*slot))?;
    Some(Record { at, kind, slot: *slot, bytes })
}

/// The number at `at` of bytes that are known to be long enough.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the length was checked"))
}

/// The same for eight bytes.
pub(crate) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the length was checked"))
}
