//! Headers that lie apart from their zpages, where a frame has no room for them: a page that does not compress takes all
//! of its frame.
//!
//! They lie at the end of the same reserved range, so many for each frame and in the order of the frames: where a header is
//! follows from the frame's number alone, and readers find it without a lock. The frames that hold headers are paid for like
//! others, when the first frame comes into use whose headers they hold, and are given back when none is left in use.

use super::NoRoom;
use super::header::HEADER_BYTES;
use crate::budget::{Budget, Purpose};
use crate::frames::Frames;
use crate::page::PAGE_SIZE;

/// Where things lie in a range with `HEADERS` headers apart for each frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout<const HEADERS: usize> {
    frames: usize,
}

impl<const HEADERS: usize> Layout<HEADERS> {
    /// Frames whose headers lie in one frame.
    const SPAN: usize = PAGE_SIZE / (HEADERS * HEADER_BYTES);

    /// The layout of a range of `bytes`.
    pub(super) fn of(bytes: usize) -> Self {
        let all = bytes / PAGE_SIZE;
        Self { frames: all - all.div_ceil(Self::SPAN + 1) }
    }

    /// Frames for zpages. They come first.
    pub(super) fn frames(self) -> usize {
        self.frames
    }

    /// Where header `number` of a frame lies, in bytes from the start of the range.
    pub(super) fn header_at(self, frame: usize, number: usize) -> usize {
        debug_assert!(frame < self.frames && number < HEADERS);
        (self.frames + frame / Self::SPAN) * PAGE_SIZE + (frame % Self::SPAN * HEADERS + number) * HEADER_BYTES
    }
}

/// A frame of headers.
#[derive(Clone, Copy, Debug, Default)]
struct HeaderFrame {
    /// Frames in use that have their headers here.
    users: u16,
    /// It is in memory, or paid for at least.
    resident: bool,
}

/// The account of the frames that hold headers.
#[derive(Debug)]
pub(super) struct HeaderFrames<const HEADERS: usize> {
    layout: Layout<HEADERS>,
    table: Vec<HeaderFrame>,
    resident: u64,
    /// Those of them that have no users.
    idle: u64,
}

impl<const HEADERS: usize> HeaderFrames<HEADERS> {
    pub(super) fn new(layout: Layout<HEADERS>) -> Self {
        Self { layout, table: Vec::new(), resident: 0, idle: 0 }
    }

    /// Frames in memory.
    pub(super) fn resident(&self) -> u64 {
        self.resident
    }

    pub(super) fn table_bytes(&self) -> usize {
        self.table.capacity() * size_of::<HeaderFrame>()
    }

    /// From now on the headers of a frame can be written.
    ///
    /// # Errors
    /// When the budget has no room for the frame that they lie in.
    pub(super) fn hold(&mut self, frame: u32, budget: &Budget, purpose: Purpose) -> Result<(), NoRoom> {
        let number = frame as usize / Layout::<HEADERS>::SPAN;
        self.grow(number + 1, budget, purpose)?;
        let it = &mut self.table[number];
        if !it.resident {
            if !budget.admit(PAGE_SIZE as u64, purpose) {
                return Err(NoRoom);
            }
            it.resident = true;
            self.resident += 1;
        } else if it.users == 0 {
            self.idle -= 1;
        }
        it.users += 1;
        Ok(())
    }

    /// Nobody reads the headers of a frame any more.
    pub(super) fn let_go(&mut self, frame: u32) {
        let it = &mut self.table[frame as usize / Layout::<HEADERS>::SPAN];
        it.users -= 1;
        self.idle += u64::from(it.users == 0);
    }

    /// Gives back the frames that have no users, and says how many.
    pub(super) fn give_back(&mut self, frames: &Frames, budget: &Budget) -> u64 {
        if self.idle == 0 {
            return 0;
        }
        for (number, it) in self.table.iter_mut().enumerate().filter(|(_, it)| it.resident && it.users == 0) {
            // SAFETY: no live zpage has its header there, and the lock around this account keeps new ones out.
            unsafe { frames.release(self.layout.frames + number, 1) };
            it.resident = false;
        }
        let given = std::mem::take(&mut self.idle);
        self.resident -= given;
        budget.refund(given * PAGE_SIZE as u64);
        given
    }

    fn grow(&mut self, len: usize, budget: &Budget, purpose: Purpose) -> Result<(), NoRoom> {
        if len <= self.table.len() {
            return Ok(());
        }
        if len > self.table.capacity() {
            let more = (len + (len / 8).max(16)) - self.table.capacity();
            if !budget.admit((more * size_of::<HeaderFrame>()) as u64, purpose) {
                return Err(NoRoom);
            }
            self.table.reserve_exact(self.table.capacity() + more - self.table.len());
        }
        self.table.resize(len, HeaderFrame::default());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_fit_behind_the_frames_and_do_not_overlap() {
        for frames in [2, 171, 172, 342, 100_000] {
            let layout = Layout::<2>::of(frames * PAGE_SIZE);
            let mut end = layout.frames() * PAGE_SIZE;
            for frame in 0..layout.frames() {
                for number in 0..2 {
                    let at = layout.header_at(frame, number);
                    assert!(at >= end && at % PAGE_SIZE + HEADER_BYTES <= PAGE_SIZE);
                    end = at + HEADER_BYTES;
                }
            }
            assert!(end <= frames * PAGE_SIZE && frames * PAGE_SIZE - end < 2 * PAGE_SIZE);
        }
    }

    #[test]
    fn a_frame_of_headers_goes_back_with_its_last_user() {
        let (frames, budget) = (Frames::reserve(16 << 20, 16 << 20).unwrap(), Budget::new(1 << 20));
        let mut headers = HeaderFrames::new(Layout::<2>::of(frames.bytes()));
        for frame in [0, 169, 170] {
            headers.hold(frame, &budget, Purpose::Admit).unwrap();
        }
        assert_eq!(headers.resident(), 2);
        headers.let_go(0);
        assert_eq!(headers.give_back(&frames, &budget), 0);
        headers.let_go(169);
        assert_eq!(headers.give_back(&frames, &budget), 1);
        headers.let_go(170);
        headers.hold(200, &budget, Purpose::Admit).unwrap();
        assert_eq!(headers.give_back(&frames, &budget), 0, "it is used again");
        assert_eq!(budget.used(), (PAGE_SIZE + headers.table_bytes()) as u64);
    }
}
