//! A segment: sixty-four frames in a row that are filled from front to back, and the account of what lives in them.

use super::{Class, Queue};
use crate::page::PAGE_SIZE;

pub(super) const FRAMES: usize = 64;
pub(super) const SEGMENT_BYTES: usize = FRAMES * PAGE_SIZE;
/// No zpage starts in the frame.
pub(super) const NO_START: u16 = u16::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing lives here; may be filled again.
    Free,
    /// The same, with its first frames in memory.
    Spare,
    /// A head appends here.
    Open,
    /// Full.
    Closed,
}

/// The account of one segment. Offsets are in bytes from the segment's start.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) state: State,
    pub(super) class: Class,
    pub(super) queue: Queue,
    /// The segment waits in the list of those with dead frames.
    pub(super) queued: bool,
    /// Where the next zpage goes; the end of the last one once closed.
    pub(super) end: u32,
    /// Bytes of live zpages.
    pub(super) live: u32,
    /// When it was opened, in segments.
    pub(super) opened: u64,
    /// Frames that are in memory.
    pub(super) resident: u64,
    /// Frames that are in memory though nothing lives in them, and nothing will be put there.
    pub(super) dead: u64,
    /// Live bytes per frame.
    pub(super) live_in: [u16; FRAMES],
    /// Offset in the frame, in units of four bytes, of the first zpage that starts there, alive or not.
    pub(super) first_in: [u16; FRAMES],
}

impl Segment {
    pub(super) fn new() -> Self {
        Self {
            state: State::Free,
            class: Class::Persistent,
            queue: Queue::Small,
            queued: false,
            end: 0,
            live: 0,
            opened: 0,
            resident: 0,
            dead: 0,
            live_in: [0; FRAMES],
            first_in: [NO_START; FRAMES],
        }
    }

    /// Starts to fill the segment. Frames that are still in memory are used again; says how many were dead.
    pub(super) fn open(&mut self, class: Class, queue: Queue, opened: u64) -> u32 {
        debug_assert!(matches!(self.state, State::Free | State::Spare) && self.live == 0);
        let revived = self.dead.count_ones();
        self.state = State::Open;
        (self.class, self.queue) = (class, queue);
        self.opened = opened;
        self.end = 0;
        self.dead = 0;
        self.first_in = [NO_START; FRAMES];
        revived
    }

    /// Whether enough of the first frames are in memory, and no others, to fill the segment again rather than bring in others.
    pub(super) fn is_worth_keeping(&self) -> bool {
        const FRAMES_MIN: u32 = 16;
        self.dead.trailing_ones() >= FRAMES_MIN && self.dead.trailing_ones() == self.dead.count_ones()
    }

    /// Bytes of frames that are in memory.
    pub(super) fn resident_bytes(&self) -> u64 {
        u64::from(self.resident.count_ones()) * PAGE_SIZE as u64
    }

    /// Whether something lives here that ages in this queue.
    pub(super) fn holds(&self, class: Class, queue: Queue) -> bool {
        self.live > 0 && self.class == class && self.queue == queue
    }

    /// The frames that `len` bytes at `start` touch.
    pub(super) fn frames(start: usize, len: usize) -> std::ops::RangeInclusive<usize> {
        start / PAGE_SIZE..=(start + len - 1) / PAGE_SIZE
    }

    /// The frames that an append of `len` bytes would bring into memory, as bits.
    pub(super) fn missing(&self, len: usize) -> u64 {
        let mut touched = 0;
        for frame in Self::frames(self.end as usize, len) {
            touched |= 1u64 << frame;
        }
        touched & !self.resident
    }

    /// The frames from `first` on that are not in memory, up to the next that is and at most `max`, as bits.
    pub(super) fn ahead(&self, first: usize, max: u32) -> u64 {
        let room = (FRAMES - first) as u32;
        let absent = (self.resident >> first).trailing_zeros().min(room).min(max);
        ((1 << absent) - 1) << first
    }

    /// Frames that are in memory though nothing has come to them yet, as bits.
    pub(super) fn waiting(&self) -> u64 {
        let used = (self.end as usize).div_ceil(PAGE_SIZE);
        match self.state {
            State::Open if used < FRAMES => self.resident & u64::MAX << used,
            _ => 0,
        }
    }

    /// Bytes in memory that nothing has come to yet: the rest of the last frame and what is [waiting](Self::waiting).
    pub(super) fn waiting_bytes(&self) -> usize {
        let rest = (self.end as usize).next_multiple_of(PAGE_SIZE) - self.end as usize;
        rest + self.waiting().count_ones() as usize * PAGE_SIZE
    }

    /// Books a zpage of `len` bytes at the end and says where it starts.
    pub(super) fn append(&mut self, len: usize) -> usize {
        let start = self.end as usize;
        debug_assert!(start + len <= SEGMENT_BYTES);
        let frame = start / PAGE_SIZE;
        if self.first_in[frame] == NO_START {
            self.first_in[frame] = (start % PAGE_SIZE / 4) as u16;
        }
        self.end += len as u32;
        self.live += len as u32;
        for frame in Self::frames(start, len) {
            self.live_in[frame] += Self::overlap(frame, start, len);
            self.resident |= 1 << frame;
        }
        start
    }

    /// Takes a zpage of `len` bytes at `start` out of the books. Says which frames died of it, as bits.
    pub(super) fn remove(&mut self, start: usize, len: usize) -> u64 {
        self.live -= len as u32;
        let mut died = 0;
        for frame in Self::frames(start, len) {
            self.live_in[frame] -= Self::overlap(frame, start, len);
            if self.live_in[frame] == 0 && self.passed(frame) {
                died |= 1 << frame;
            }
        }
        self.dead |= died;
        died
    }

    /// Whether nothing more will be put into the frame.
    pub(super) fn passed(&self, frame: usize) -> bool {
        self.state == State::Closed || (frame + 1) * PAGE_SIZE <= self.end as usize
    }

    /// Marks frames between `from` and the end that hold nothing although they are passed; says which, as bits.
    pub(super) fn bury_passed(&mut self, from: usize) -> u64 {
        let mut died = 0;
        for frame in from..FRAMES {
            let bit = 1u64 << frame;
            let alive = self.live_in[frame] > 0 || !self.passed(frame);
            if !alive && self.resident & bit != 0 && self.dead & bit == 0 {
                died |= bit;
            }
        }
        self.dead |= died;
        died
    }

    /// How many of the `len` bytes at `start` lie in `frame`.
    fn overlap(frame: usize, start: usize, len: usize) -> u16 {
        let from = start.max(frame * PAGE_SIZE);
        let to = (start + len).min((frame + 1) * PAGE_SIZE);
        (to - from) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zpage_across_frames_is_booked_in_each() {
        let mut segment = Segment::new();
        segment.open(Class::Persistent, Queue::Small, 0);
        assert_eq!(segment.append(4000), 0);
        assert_eq!(segment.append(200), 4000);
        assert_eq!(segment.live_in[..2], [4096, 104]);
        assert_eq!(segment.first_in[..2], [0, NO_START]);
        assert_eq!(segment.append(24), 4200);
        assert_eq!(segment.first_in[1], 26);
        assert_eq!(segment.remove(0, 4000), 0);
        assert_eq!(segment.remove(4000, 200), 1, "the first frame is passed and empty");
        assert_eq!(segment.remove(4200, 24), 0, "the second frame is still being filled");
        segment.state = State::Closed;
        assert_eq!(segment.bury_passed(0), 2);
    }
}
