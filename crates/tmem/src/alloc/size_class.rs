//! The size classes of `zsmalloc`: which slot a zpage gets, and how slots lie in the frames of a zspage.

use std::sync::LazyLock;

use super::header::HEADER_BYTES;
use crate::page::PAGE_SIZE;

const STEP: usize = 16;
/// The smallest slot: 128 of them fill a frame, as many as a zspage can account for.
const SLOT_BYTES_MIN: usize = 32;
const SLOT_BYTES_MAX: usize = (HEADER_BYTES + PAGE_SIZE).next_multiple_of(STEP);
/// Frames of one zspage. Longer chains leave less over at the end, but more of them stay half empty.
const CHAIN_MAX: usize = 8;
/// The same for zpages of more than this many bytes, of which a short chain would hold few.
const LARGE_BYTES: usize = 2736;
const LARGE_CHAIN_MAX: usize = 16;
/// The same for pages that do not compress at all.
const RAW_CHAIN: usize = 32;

/// The number of size classes.
pub(super) const SIZES: usize = (SLOT_BYTES_MAX - SLOT_BYTES_MIN) / STEP + 1;

/// One size of slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct SizeClass {
    slot_bytes: u32,
    frames: u32,
    slots: u32,
}

static CLASSES: LazyLock<[SizeClass; SIZES]> = LazyLock::new(|| std::array::from_fn(SizeClass::new));

/// The class for a zpage of `bytes`: for sizes that would be cut alike, the largest of them.
pub(super) fn class_of(bytes: usize) -> usize {
    static MERGED: LazyLock<[u8; SIZES]> = LazyLock::new(|| {
        let mut to: [u8; SIZES] = std::array::from_fn(|class| class as u8);
        for class in (0..SIZES - 1).rev() {
            let (this, next) = (CLASSES[class], CLASSES[usize::from(to[class + 1])]);
            if (this.frames, this.slots) == (next.frames, next.slots) {
                to[class] = to[class + 1];
            }
        }
        to
    });
    usize::from(MERGED[bytes.saturating_sub(SLOT_BYTES_MIN).div_ceil(STEP)])
}

const _: () = assert!(SIZES <= 1 << 8, "a class has eight bits");

impl SizeClass {
    fn new(class: usize) -> Self {
        let bytes = SLOT_BYTES_MIN + class * STEP;
        let chain = match bytes {
            SLOT_BYTES_MAX => RAW_CHAIN..=RAW_CHAIN,
            _ if bytes > LARGE_BYTES => 1..=LARGE_CHAIN_MAX,
            _ => 1..=CHAIN_MAX,
        };
        let waste = |frames: &usize| frames * PAGE_SIZE % bytes * 1024 / (frames * PAGE_SIZE);
        let fits = |frames: &usize| frames * PAGE_SIZE / bytes <= 128;
        let frames = chain.filter(fits).min_by_key(waste).expect("one frame holds at most 128 slots");
        let slots = frames * PAGE_SIZE / bytes;
        Self { slot_bytes: bytes as u32, frames: frames as u32, slots: slots as u32 }
    }

    pub(super) fn get(class: usize) -> &'static Self {
        &CLASSES[class]
    }

    pub(super) fn frames(&self) -> usize {
        self.frames as usize
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// What a slot takes with its share of what is left over at the end of the chain.
    pub(super) fn share_bytes(&self) -> u64 {
        u64::from(self.frames) * PAGE_SIZE as u64 / u64::from(self.slots)
    }

    /// Where a slot starts, in bytes from the start of the segment.
    pub(super) fn offset(&self, zspage: usize, slot: u32) -> usize {
        zspage * self.frames() * PAGE_SIZE + (slot * self.slot_bytes) as usize
    }

    /// The zspage and slot that start at `offset` bytes from the start of the segment.
    pub(super) fn slot_at(&self, offset: usize) -> (usize, u32) {
        let chain_bytes = self.frames() * PAGE_SIZE;
        (offset / chain_bytes, (offset % chain_bytes) as u32 / self.slot_bytes)
    }

    /// The frames of the zspage that a slot touches, as bits.
    pub(super) fn frames_of(&self, slot: u32) -> u32 {
        let (start, end) = (slot * self.slot_bytes, (slot + 1) * self.slot_bytes);
        let (first, last) = (start / PAGE_SIZE as u32, (end - 1) / PAGE_SIZE as u32);
        (u64::from(u32::MAX) >> (31 - last)) as u32 & u32::MAX << first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_fits_its_slot_and_little_is_left_over() {
        for bytes in 20..=SLOT_BYTES_MAX {
            let class = SizeClass::get(class_of(bytes));
            assert!(class.slot_bytes as usize >= bytes);
            assert!(class.slots <= 128 && class.frames <= 32, "{class:?}");
            assert!(class.slot_bytes * class.slots <= class.frames * PAGE_SIZE as u32);
            if bytes > 256 {
                assert!(class.share_bytes() as usize <= bytes + bytes / 8, "{bytes} bytes in {class:?}");
            }
        }
    }

    #[test]
    fn slots_know_their_frames() {
        let class = SizeClass::get(class_of(3000));
        let mut touched = 0;
        for slot in 0..class.slots() {
            assert_eq!(class.slot_at(class.offset(1, slot)), (1, slot));
            touched |= class.frames_of(slot);
        }
        assert_eq!(touched, ((1_u64 << class.frames) - 1) as u32);
        assert_eq!(SizeClass { slot_bytes: 4096, frames: 32, slots: 32 }.frames_of(31), 1 << 31);
        assert_eq!(SizeClass { slot_bytes: 3000, frames: 4, slots: 5 }.frames_of(1), 0b11);
    }
}
