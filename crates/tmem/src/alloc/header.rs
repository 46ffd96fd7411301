//! The header of a zpage, the same in every allocator: where it lies is the allocator's own matter.
//!
//! A zpage: twelve bytes of header, the payload, padding to four bytes.
//!
//! | word | bits | |
//! |---|---|---|
//! | 0 | 0-15 | payload bytes |
//! | 0 | 16-18 | encoding |
//! | 0 | 19-23 | flags: dead, used, aged, dense, behind a hole |
//! | 0 | 24-31 | owner, bits 32-39 |
//! | 1 | 0-31 | owner, bits 0-31 |
//! | 2 | 0-31 | check of the payload |

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use super::{NewZpage, Owner, Zpage};
use crate::codec::{Encoding, PAYLOAD_BYTES_MAX};
use crate::frames::Frames;
use crate::page::PAGE_SIZE;

pub(crate) const HEADER_BYTES: usize = 12;
/// What zpages start at multiples of.
pub(super) const ALIGN: usize = 4;
/// The zpage was freed, its place not yet used again.
pub(super) const DEAD: u32 = 1 << 19;
/// The zpage was read since it was stored or moved.
pub(super) const USED: u32 = 1 << 20;
/// What lies before the zpage is free (`xvmalloc`).
pub(super) const BEHIND_HOLE: u32 = 1 << 23;
/// The zpage was there when recompression came by.
pub(super) const AGED: u32 = 1 << 21;
/// Recompression has tried and won nothing.
pub(super) const DENSE: u32 = 1 << 22;
const OWNER_SHIFT: u32 = 24;
/// What is asked for of a payload before its length is known.
const PREFETCH_BYTES: usize = 1024;
/// Bits of an [`Owner`].
pub(crate) const OWNER_BITS: u32 = 32 + 32 - OWNER_SHIFT;

const _: () = assert!(PAYLOAD_BYTES_MAX < 1 << 16, "the payload length has sixteen bits");

/// A header, read or to be written.
#[derive(Clone, Copy)]
pub(super) struct Header {
    first: u32,
    owner: u32,
    check: u32,
}

impl Header {
    pub(super) fn of(zpage: &NewZpage<'_>) -> Self {
        let first = zpage.payload.len() as u32 | (zpage.encoding as u32) << 16;
        Self { first, owner: 0, check: zpage.check }.owned_by(zpage.owner)
    }

    fn owned_by(self, owner: Owner) -> Self {
        debug_assert!(owner.0 >> OWNER_BITS == 0);
        let first = self.first & ((1 << OWNER_SHIFT) - 1) | ((owner.0 >> 32) as u32) << OWNER_SHIFT;
        Self { first, owner: owner.0 as u32, ..self }
    }

    /// The header at `at`. Its owner may be half of one and half of another while it is being changed; whoever looks for
    /// the word of such an owner does not find one that names the zpage.
    pub(super) fn read(frames: &Frames, at: usize) -> Self {
        let word = |number: usize| frames.word(at + number * 4).load(Relaxed);
        Self { first: word(0), owner: word(1), check: word(2) }
    }

    /// Only the length of the zpage and its flags: the first word, which never lies across frames.
    pub(super) fn read_first(frames: &Frames, at: usize) -> Self {
        Self { first: frames.word(at).load(Relaxed), owner: 0, check: 0 }
    }

    pub(super) fn write(self, frames: &Frames, at: usize) {
        for (number, word) in [self.first, self.owner, self.check].into_iter().enumerate() {
            frames.word(at + number * 4).store(word, Relaxed);
        }
    }

    /// Sets a flag of the header at `at`.
    pub(super) fn mark(frames: &Frames, at: usize, flag: u32) {
        frames.word(at).fetch_or(flag, Relaxed);
    }

    /// Takes a flag out of the header at `at`.
    pub(super) fn unmark(frames: &Frames, at: usize, flag: u32) {
        frames.word(at).fetch_and(!flag, Relaxed);
    }

    /// See [`Allocator::age`](super::Allocator::age).
    pub(super) fn age(frames: &Frames, at: usize, forget_use: bool) -> bool {
        let before = frames.word(at).fetch_or(AGED, Relaxed);
        if forget_use && before & USED != 0 {
            Self::unmark(frames, at, USED | AGED);
        }
        before & (AGED | USED | DENSE) == AGED
    }

    /// Names another owner in the header at `at`.
    pub(super) fn set_owner(frames: &Frames, at: usize, owner: Owner) {
        Self::read(frames, at).owned_by(owner).write(frames, at);
    }

    /// The header without a flag.
    pub(super) fn without(self, flag: u32) -> Self {
        Self { first: self.first & !flag, ..self }
    }

    pub(super) fn payload_bytes(self) -> usize {
        (self.first & 0xffff) as usize
    }

    pub(super) fn zpage_bytes(self) -> usize {
        zpage_bytes(self.payload_bytes())
    }

    pub(super) fn is(self, flag: u32) -> bool {
        self.first & flag != 0
    }

    pub(super) fn owner(self) -> Owner {
        Owner(u64::from(self.first >> OWNER_SHIFT) << 32 | u64::from(self.owner))
    }
}

/// Bytes that a zpage takes with header and padding.
pub(super) fn zpage_bytes(payload_bytes: usize) -> usize {
    HEADER_BYTES + payload_bytes.next_multiple_of(ALIGN)
}

/// Shows the zpage with its header at `header` and its payload at `payload` to `with`, and marks it if it is `used`.
///
/// # Safety
/// The zpage lives during the call, as [`Allocator`](super::Allocator) demands of callers.
pub(super) unsafe fn show<R>(
    frames: (&Frames, usize),
    payload: (&Frames, usize),
    used: bool,
    with: impl FnOnce(Zpage<'_>) -> R,
) -> R {
    // How long it is says the header, which has to come first; most of it can come with that.
    payload.0.prefetch(payload.1, PREFETCH_BYTES);
    let header = Header::read(frames.0, frames.1);
    payload.0.prefetch(payload.1 + PREFETCH_BYTES, header.payload_bytes().saturating_sub(PREFETCH_BYTES));
    // SAFETY: as the caller says.
    unsafe { show_now(header, frames, payload, used, with) }
}

/// The same, for somebody who needs only a `part` of the payload if it is a page as it is.
///
/// # Safety
/// As [`show`].
pub(super) unsafe fn show_part<R>(
    frames: (&Frames, usize),
    payload: (&Frames, usize),
    used: bool,
    part: &Range<usize>,
    with: impl FnOnce(Zpage<'_>) -> R,
) -> R {
    let header = Header::read(frames.0, frames.1);
    let whole = 0..header.payload_bytes();
    let part = if whole.end == PAGE_SIZE { part } else { &whole };
    payload.0.prefetch(payload.1 + part.start, part.len());
    // SAFETY: as the caller says.
    unsafe { show_now(header, frames, payload, used, with) }
}

/// # Safety
/// As [`show`].
unsafe fn show_now<R>(
    header: Header,
    frames: (&Frames, usize),
    payload: (&Frames, usize),
    used: bool,
    with: impl FnOnce(Zpage<'_>) -> R,
) -> R {
    if used && !header.is(USED) {
        Header::mark(frames.0, frames.1, USED);
    }
    // SAFETY: live payloads do not change.
    let payload = unsafe { payload.0.slice(payload.1, header.payload_bytes()) };
    let encoding = Encoding::from_u8((header.first >> 16 & 7) as u8);
    with(Zpage { encoding, check: header.check, used: header.is(USED), payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_packing() {
        let frames = Frames::reserve(1 << 20, 1 << 20).unwrap();
        let owner = Owner((1 << OWNER_BITS) - 2);
        let zpage = NewZpage { encoding: Encoding::Zstd, check: 0xdead_beef, owner, payload: &[7; 99] };
        Header::of(&zpage).write(&frames, 4092);
        Header::mark(&frames, 4092, USED);
        let header = Header::read(&frames, 4092);
        assert_eq!((header.payload_bytes(), header.zpage_bytes()), (99, 112));
        assert_eq!((header.owner(), header.check), (owner, zpage.check));
        assert!(header.is(USED) && !header.is(DEAD) && !header.without(USED).is(USED));
        Header::set_owner(&frames, 4092, Owner(1 << 32));
        let header = Header::read(&frames, 4092);
        assert_eq!((header.owner(), header.payload_bytes(), header.is(USED)), (Owner(1 << 32), 99, true));
    }
}
