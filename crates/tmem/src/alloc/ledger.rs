//! The books of allocators that hand out frames one by one (`zbud`, `xvmalloc`), all under one lock of the allocator.
//!
//! A frame is *in use* (something alive lies in it), *spare* (empty, but in memory: the next one that is needed) or
//! *absent*. The lowest number is taken first, so that frames in use lie close together. A frame in use holds one class of
//! zpages; it stands in the queue of its class by the time of the last allocation from it, and, if its allocator wants that,
//! on a shelf by the free space in it.
//!
//! Tables grow when a frame is taken and at no other time.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::apart::{HeaderFrames, Layout};
use super::frame_set::FrameSet;
use super::{Class, NoRoom, Queue, Usage};
use crate::budget::{Budget, Purpose};
use crate::frames::Frames;
use crate::page::PAGE_SIZE;

/// What shelves measure free space in.
pub(super) const CHUNK_BYTES: usize = 64;
pub(super) const CHUNKS: usize = PAGE_SIZE / CHUNK_BYTES;
const FRAMES_MORE_MIN: usize = 64;

const NOBODY: u32 = u32::MAX;
/// On no shelf.
const NO_SHELF: u8 = CHUNKS as u8;

/// Which of a frame's neighbours: those in the queue, or those on the shelf.
const QUEUE: usize = 0;
const SHELF: usize = 1;

/// A frame, and what its allocator notes of what lies in it.
#[derive(Clone, Copy, Debug)]
struct Frame<C> {
    contents: C,
    class: Class,
    shelf: u8,
    /// When something was last put into it.
    age: u64,
    links: [Links; 2],
}

#[derive(Clone, Copy, Debug)]
struct Links {
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

/// The frames of one class.
#[derive(Debug)]
struct Shelves {
    /// Oldest first.
    queue: List,
    by_free: [List; CHUNKS],
    /// The shelves that are not empty, as bits.
    filled: u64,
    live_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Ledger<C, const HEADERS: usize> {
    layout: Layout<HEADERS>,
    frames: Vec<Frame<C>>,
    spare: FrameSet,
    absent: FrameSet,
    /// By [`Class`].
    shelves: Box<[Shelves; 2]>,
    pub(super) headers: HeaderFrames<HEADERS>,
    /// Frames in use or spare.
    resident: u64,
    /// Frames given back so far, those of headers among them.
    returned: u64,
    zpages: u64,
    payload_bytes: u64,
    table_bytes: usize,
}

impl<C: Copy + Default, const HEADERS: usize> Ledger<C, HEADERS> {
    pub(super) fn new(layout: Layout<HEADERS>, budget: &Budget) -> Self {
        let shelves = || Shelves { queue: List::EMPTY, by_free: [List::EMPTY; CHUNKS], filled: 0, live_bytes: 0 };
        let table_bytes = size_of::<[Shelves; 2]>();
        budget.charge(table_bytes as u64);
        Self {
            layout,
            frames: Vec::new(),
            spare: FrameSet::default(),
            absent: FrameSet::default(),
            shelves: Box::new([shelves(), shelves()]),
            headers: HeaderFrames::new(layout),
            resident: 0,
            returned: 0,
            zpages: 0,
            payload_bytes: 0,
            table_bytes,
        }
    }

    pub(super) fn contents(&self, frame: u32) -> C {
        self.frames[frame as usize].contents
    }

    pub(super) fn contents_mut(&mut self, frame: u32) -> &mut C {
        &mut self.frames[frame as usize].contents
    }

    pub(super) fn class(&self, frame: u32) -> Class {
        self.frames[frame as usize].class
    }

    /// Whether the frame was ever in use.
    pub(super) fn knows(&self, frame: u32) -> bool {
        (frame as usize) < self.frames.len()
    }

    /// Takes an empty frame into use, as the youngest of its class and on no shelf.
    ///
    /// # Errors
    /// When the budget or the address space has no room for another one.
    pub(super) fn take(&mut self, class: Class, now: u64, budget: &Budget, purpose: Purpose) -> Result<u32, NoRoom> {
        let number = match self.spare.first() {
            Some(spare) => {
                self.spare.remove(spare);
                spare
            }
            None => self.bring_in(budget, purpose)?,
        };
        let apart = Links { before: NOBODY, after: NOBODY };
        let frame = Frame { contents: C::default(), class, shelf: NO_SHELF, age: now, links: [apart; 2] };
        self.frames[number as usize] = frame;
        self.shelves[class as usize].queue.push_last(&mut self.frames, QUEUE, number);
        Ok(number)
    }

    fn bring_in(&mut self, budget: &Budget, purpose: Purpose) -> Result<u32, NoRoom> {
        let absent = self.absent.first();
        if absent.is_none() {
            self.grow(budget, purpose)?;
        }
        if !budget.admit(PAGE_SIZE as u64, purpose) {
            return Err(NoRoom);
        }
        self.resident += 1;
        match absent {
            Some(absent) => {
                self.absent.remove(absent);
                Ok(absent)
            }
            None => {
                let nobody = Links { before: NOBODY, after: NOBODY };
                let (contents, class) = (C::default(), Class::Persistent);
                self.frames.push(Frame { contents, class, shelf: NO_SHELF, age: 0, links: [nobody; 2] });
                Ok((self.frames.len() - 1) as u32)
            }
        }
    }

    /// Makes room in the tables for another frame, in steps of an eighth, so that they are never half empty.
    fn grow(&mut self, budget: &Budget, purpose: Purpose) -> Result<(), NoRoom> {
        let len = self.frames.len();
        if len == self.layout.frames() {
            return Err(NoRoom);
        }
        if len < self.frames.capacity() {
            return Ok(());
        }
        let more = (len / 8).max(FRAMES_MORE_MIN);
        let bytes = |frames| frames * size_of::<Frame<C>>() + 2 * FrameSet::table_bytes(frames);
        let more_bytes = bytes(len + more) - bytes(len);
        if !budget.admit(more_bytes as u64, purpose) {
            return Err(NoRoom);
        }
        self.frames.reserve_exact(more);
        self.spare.grow(len + more);
        self.absent.grow(len + more);
        self.table_bytes += more_bytes;
        Ok(())
    }

    /// A frame in use is empty now.
    pub(super) fn put_back(&mut self, frame: u32) {
        self.shelve(frame, None);
        let class = self.class(frame) as usize;
        self.shelves[class].queue.remove(&mut self.frames, QUEUE, frame);
        self.frames[frame as usize].contents = C::default();
        self.spare.insert(frame);
    }

    /// Something was put into the frame: it is the youngest of its class.
    pub(super) fn touch(&mut self, frame: u32, now: u64) {
        let queue = &mut self.shelves[self.frames[frame as usize].class as usize].queue;
        self.frames[frame as usize].age = now;
        queue.remove(&mut self.frames, QUEUE, frame);
        queue.push_last(&mut self.frames, QUEUE, frame);
    }

    /// The frame of a class into which nothing was put for the longest time, and since when.
    fn oldest(&self, class: Class) -> Option<(u32, u64)> {
        let oldest = some(self.shelves[class as usize].queue.first)?;
        Some((oldest, self.frames[oldest as usize].age))
    }

    /// See [`Allocator::coldest_age`](super::Allocator::coldest_age). All frames age in the small queue.
    pub(super) fn coldest_age(&self, class: Class, queue: Queue) -> Option<u64> {
        let (_, age) = self.oldest(class).filter(|_| queue == Queue::Small)?;
        Some(age)
    }

    /// See [`Allocator::coldest`](super::Allocator::coldest).
    pub(super) fn coldest(&mut self, class: Class, queue: Queue, clock: &AtomicU64) -> Option<Range<u32>> {
        let (frame, _) = self.oldest(class).filter(|_| queue == Queue::Small)?;
        // What stays in it, or comes to it from now on, is of a new age.
        self.touch(frame, clock.fetch_add(1, Relaxed));
        Some(frame..frame + 1)
    }

    /// Puts the frame on the shelf for as many free chunks, or on none.
    pub(super) fn shelve(&mut self, frame: u32, free_chunks: Option<usize>) {
        let shelf = free_chunks.map_or(NO_SHELF, |chunks| chunks as u8);
        let before = std::mem::replace(&mut self.frames[frame as usize].shelf, shelf);
        if shelf == before {
            return;
        }
        let shelves = &mut self.shelves[self.frames[frame as usize].class as usize];
        if let Some(list) = shelves.by_free.get_mut(usize::from(before)) {
            list.remove(&mut self.frames, SHELF, frame);
            if list.first == NOBODY {
                shelves.filled &= !(1 << before);
            }
        }
        if let Some(list) = shelves.by_free.get_mut(usize::from(shelf)) {
            list.push_first(&mut self.frames, SHELF, frame);
            shelves.filled |= 1 << shelf;
        }
    }

    /// Puts a frame behind all others on its shelf.
    pub(super) fn put_behind(&mut self, frame: u32) {
        let Frame { class, shelf, .. } = self.frames[frame as usize];
        let list = &mut self.shelves[class as usize].by_free[usize::from(shelf)];
        list.remove(&mut self.frames, SHELF, frame);
        list.push_last(&mut self.frames, SHELF, frame);
    }

    /// The first frame on a shelf.
    pub(super) fn on_shelf(&self, class: Class, free_chunks: usize) -> Option<u32> {
        some(self.shelves[class as usize].by_free[free_chunks].first)
    }

    /// The fullest shelved frame with at least so many free chunks, but not `beside`.
    pub(super) fn find(&self, class: Class, free_chunks_min: usize, beside: Option<u32>) -> Option<u32> {
        let shelves = &self.shelves[class as usize];
        if free_chunks_min >= CHUNKS {
            return None;
        }
        let mut filled = shelves.filled >> free_chunks_min << free_chunks_min;
        while filled != 0 {
            let first = some(shelves.by_free[filled.trailing_zeros() as usize].first)?;
            if Some(first) != beside {
                return Some(first);
            }
            if let Some(next) = some(self.frames[first as usize].links[SHELF].after) {
                return Some(next);
            }
            filled &= filled - 1;
        }
        None
    }

    /// Counts a zpage in.
    pub(super) fn add_zpage(&mut self, class: Class, live_bytes: usize, payload_bytes: usize) {
        self.zpages += 1;
        self.shelves[class as usize].live_bytes += live_bytes as u64;
        self.payload_bytes += payload_bytes as u64;
    }

    /// Counts a zpage out.
    pub(super) fn remove_zpage(&mut self, class: Class, live_bytes: usize, payload_bytes: usize) {
        self.zpages -= 1;
        self.shelves[class as usize].live_bytes -= live_bytes as u64;
        self.payload_bytes -= payload_bytes as u64;
    }

    /// See [`Allocator::queue_bytes`](super::Allocator::queue_bytes).
    pub(super) fn queue_bytes(&self, class: Class, queue: Queue) -> u64 {
        match queue {
            Queue::Small => self.shelves[class as usize].live_bytes,
            Queue::Main | Queue::Unpacked => 0,
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            zpages: self.zpages,
            payload_bytes: self.payload_bytes,
            live_bytes: self.shelves.iter().map(|shelves| shelves.live_bytes).sum(),
            frame_bytes: (self.resident + self.headers.resident()) * PAGE_SIZE as u64,
            waiting_bytes: 0,
            spare_bytes: u64::from(self.spare.len()) * PAGE_SIZE as u64,
            returned_frames: self.returned,
            table_bytes: (self.table_bytes + self.headers.table_bytes()) as u64,
        }
    }

    /// Gives back all spare frames if they are more than `times` as many as are kept, and says how many.
    pub(super) fn trim(&mut self, times: u64, frames: &Frames, budget: &Budget) -> u64 {
        let kept = budget.spare_frames_max(self.resident * PAGE_SIZE as u64);
        if u64::from(self.spare.len()) <= times * kept { 0 } else { self.give_back(frames, budget) }
    }

    /// Gives back all frames that hold nothing, and says how many.
    pub(super) fn give_back(&mut self, frames: &Frames, budget: &Budget) -> u64 {
        let mut given = 0;
        while let Some(first) = self.spare.first() {
            let count = self.spare.run(first);
            // SAFETY: spare frames hold no live zpage, and the lock around these books keeps new ones out.
            unsafe { frames.release(first as usize, count as usize) };
            for frame in first..first + count {
                self.spare.remove(frame);
                self.absent.insert(frame);
            }
            given += u64::from(count);
        }
        self.resident -= given;
        budget.refund(given * PAGE_SIZE as u64);
        let given = given + self.headers.give_back(frames, budget);
        self.returned += given;
        given
    }
}

fn some(frame: u32) -> Option<u32> {
    (frame != NOBODY).then_some(frame)
}

impl List {
    const EMPTY: Self = Self { first: NOBODY, last: NOBODY };

    fn push_first<C>(&mut self, frames: &mut [Frame<C>], which: usize, frame: u32) {
        let after = std::mem::replace(&mut self.first, frame);
        frames[frame as usize].links[which] = Links { before: NOBODY, after };
        match some(after) {
            Some(after) => frames[after as usize].links[which].before = frame,
            None => self.last = frame,
        }
    }

    fn push_last<C>(&mut self, frames: &mut [Frame<C>], which: usize, frame: u32) {
        let before = std::mem::replace(&mut self.last, frame);
        frames[frame as usize].links[which] = Links { before, after: NOBODY };
        match some(before) {
            Some(before) => frames[before as usize].links[which].after = frame,
            None => self.first = frame,
        }
    }

    fn remove<C>(&mut self, frames: &mut [Frame<C>], which: usize, frame: u32) {
        let Links { before, after } = frames[frame as usize].links[which];
        match some(before) {
            Some(before) => frames[before as usize].links[which].after = after,
            None => self.first = after,
        }
        match some(after) {
            Some(after) => frames[after as usize].links[which].before = before,
            None => self.last = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (Ledger<u8, 1>, Frames, Budget) {
        let (frames, budget) = (Frames::reserve(16 << 20, 16 << 20).unwrap(), Budget::new(16 << 20));
        let ledger = Ledger::new(Layout::of(frames.bytes()), &budget);
        (ledger, frames, budget)
    }

    #[test]
    fn the_oldest_is_the_one_nothing_was_put_into() {
        let (mut ledger, _, budget) = ledger();
        for now in 0..3 {
            ledger.take(Class::Ephemeral, now, &budget, Purpose::Admit).unwrap();
        }
        ledger.touch(0, 3);
        assert_eq!(ledger.oldest(Class::Ephemeral), Some((1, 1)));
        ledger.put_back(1);
        assert_eq!(ledger.oldest(Class::Ephemeral), Some((2, 2)));
        assert_eq!(ledger.oldest(Class::Persistent), None);
        assert_eq!(ledger.take(Class::Persistent, 4, &budget, Purpose::Admit), Ok(1), "the lowest is used again");
        assert_eq!(ledger.oldest(Class::Persistent), Some((1, 4)));
    }

    #[test]
    fn the_fullest_frame_with_room_is_found() {
        let (mut ledger, frames, budget) = ledger();
        for (frame, free) in [(0, 10), (1, 20), (2, 20), (3, 63)] {
            assert_eq!(ledger.take(Class::Ephemeral, 0, &budget, Purpose::Admit), Ok(frame));
            ledger.shelve(frame, Some(free));
        }
        assert_eq!(ledger.find(Class::Ephemeral, 10, None), Some(0));
        assert_eq!(ledger.find(Class::Ephemeral, 11, None), Some(2));
        assert_eq!(ledger.find(Class::Ephemeral, 11, Some(2)), Some(1));
        ledger.put_behind(2);
        assert_eq!(ledger.on_shelf(Class::Ephemeral, 20), Some(1));
        assert_eq!(ledger.find(Class::Ephemeral, 63, Some(3)), None);
        assert_eq!(ledger.find(Class::Ephemeral, 64, None), None);
        (0..4).for_each(|frame| ledger.put_back(frame));
        assert_eq!(ledger.find(Class::Ephemeral, 0, None), None);
        assert_eq!((ledger.trim(2, &frames, &budget), ledger.give_back(&frames, &budget)), (0, 4));
        assert_eq!(budget.used(), ledger.usage().table_bytes);
    }
}
