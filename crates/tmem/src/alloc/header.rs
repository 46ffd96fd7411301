//! The header of a zpage, the same in every allocator that keeps it beside the payload.
//!
//! A zpage: sixteen bytes of header, the payload, padding to eight bytes.
//!
//! | word | bits | |
//! |---|---|---|
//! | 0 | 0-15 | payload bytes |
//! | 0 | 16-23 | encoding |
//! | 0 | 24-31 | flags: dead, used |
//! | 0 | 32-63 | check of the payload |
//! | 1 | 0-63 | owner |

use super::NewZpage;
use crate::codec::Encoding;
use crate::page::PAGE_SIZE;

pub(crate) const HEADER_BYTES: usize = 16;
/// The zpage was freed, its place not yet used again.
pub(super) const DEAD: u64 = 1 << 24;
/// The zpage was read since it was stored or moved.
pub(super) const USED: u64 = 1 << 25;

const _: () = assert!(PAGE_SIZE < 1 << 16, "the payload length has sixteen bits");

/// The first word.
#[derive(Clone, Copy)]
pub(super) struct Header(pub(super) u64);

impl Header {
    pub(super) fn of(zpage: &NewZpage<'_>) -> Self {
        Self(zpage.payload.len() as u64 | (zpage.encoding as u64) << 16 | u64::from(zpage.check) << 32)
    }

    pub(super) fn payload_bytes(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    pub(super) fn zpage_bytes(self) -> usize {
        zpage_bytes(self.payload_bytes())
    }

    pub(super) fn encoding(self) -> Option<Encoding> {
        Encoding::from_u8((self.0 >> 16) as u8)
    }

    pub(super) fn is(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    pub(super) fn check(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Bytes that a zpage takes with header and padding.
pub(super) fn zpage_bytes(payload_bytes: usize) -> usize {
    HEADER_BYTES + payload_bytes.next_multiple_of(8)
}
