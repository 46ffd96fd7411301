//! The log: zpages are appended to segments byte by byte, in order of time.
//!
//! There are four heads, one for new and one for moved zpages of each class: what has survived a move tends to survive
//! longer, and a segment of one class can be dropped or kept as a whole. A frame whose last zpage has gone is dead. Dead
//! frames are given back in batches. Those of a segment in which nothing lives any more are spare: as long as there are
//! some, heads go on there instead of bringing in others, which would cost a page fault each.
//!
//! Zpages start at multiples of four, so that the first word of a header never lies across two frames: whoever walks a
//! frame that holds at least one live zpage can read the length of every zpage that starts in it, dead ones too.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::header::{self, ALIGN, DEAD, DENSE, HEADER_BYTES, Header, USED, zpage_bytes};
use super::segment::{FRAMES, NO_START, SEGMENT_BYTES, Segment, State};
use super::{Allocator, Class, FrameId, Handle, NewZpage, NoRoom, Owner, Queue, Tenant, Tenants, Usage, Zpage};
use crate::budget::{Budget, Purpose};
use crate::codec::PAYLOAD_BYTES_MAX;
use crate::frames::Frames;
use crate::page::PAGE_SIZE;
use crate::sync::{Mutex, Rank, lock};

/// What the four heads append to.
const QUEUES: [(Class, Queue); HEADS] = [
    (Class::Ephemeral, Queue::Small),
    (Class::Ephemeral, Queue::Main),
    (Class::Persistent, Queue::Small),
    (Class::Persistent, Queue::Main),
];
const HEADS: usize = 4;
/// Dead frames that may wait for company before they are given back; on top of it one in 128 of all.
const DEAD_FRAMES_MAX: u64 = 16;
const SEGMENTS_AT_ONCE: usize = 2;
/// How many frames before the one that it reaches into a zpage may start.
const FRAMES_BACK: usize = (HEADER_BYTES + PAYLOAD_BYTES_MAX).div_ceil(PAGE_SIZE);
/// What the zpages of a sparse frame may take together, so that moving them wins a sixteenth of it.
const SPARSE_BYTES_MAX: usize = PAGE_SIZE - PAGE_SIZE / 16;
/// Frames that are looked at closely in one search for a sparse one.
const SPARSE_LOOKS_MAX: usize = 64;
/// Frames that are brought into memory at a time at most, and the part of all that they are otherwise, as long as the budget
/// has this many bytes to spare.
const FRAMES_AHEAD_MAX: u64 = 8;
const FRAMES_AHEAD_PART: u64 = 512;
const ROOM_AMPLE_BYTES: u64 = 1 << 20;

/// The log of segments.
pub(crate) struct Log {
    frames: Frames,
    budget: Arc<Budget>,
    clock: Arc<AtomicU64>,
    books: Mutex<Books>,
}

struct Books {
    segments: Vec<Segment>,
    free: Vec<u32>,
    spare: Vec<u32>,
    /// Segments with dead frames in memory, each once, and some that have none any more.
    with_dead: Vec<u32>,
    heads: [Option<u32>; HEADS],
    /// Where the search for sparse frames goes on.
    cursor: u32,
    /// Dead frames, without those of spare segments.
    dead_frames: u64,
    spare_frames: u64,
    /// Somebody populates frames that are booked already.
    populating: bool,
    /// Bytes of live zpages by queue.
    live_bytes: [u64; HEADS],
    usage: Usage,
}

impl Log {
    /// An empty log. `clock` counts the segments opened, in all logs that share it.
    pub(crate) fn new(frames: Frames, budget: Arc<Budget>, clock: Arc<AtomicU64>) -> Self {
        let books = Books {
            segments: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            with_dead: Vec::new(),
            heads: [None; HEADS],
            cursor: 0,
            dead_frames: 0,
            spare_frames: 0,
            populating: false,
            live_bytes: [0; HEADS],
            usage: Usage::default(),
        };
        Self { frames, budget, clock, books: Mutex::new(Rank::Books, books) }
    }

    fn header(&self, handle: Handle) -> Header {
        Header::read(&self.frames, handle.offset())
    }

    /// Room for a zpage of `len` bytes at a head. The caller holds the books.
    fn place(&self, books: &mut Books, head: usize, len: usize, purpose: Purpose) -> Result<Handle, NoRoom> {
        // Where there are spare frames, no others are brought in: the rest of a segment takes addresses, not memory.
        let fits = |segment: &Segment| {
            segment.end as usize + len <= SEGMENT_BYTES && (segment.missing(len) == 0 || books.spare_frames == 0)
        };
        let number = match books.heads[head] {
            Some(number) if fits(&books.segments[number as usize]) => number,
            _ => self.open(books, head)?,
        };
        self.bring_in(books, number, len, purpose)?;
        let segment = &mut books.segments[number as usize];
        let frame_before = segment.end as usize / PAGE_SIZE;
        let start = segment.append(len);
        if segment.end as usize / PAGE_SIZE > frame_before {
            let died = segment.bury_passed(frame_before);
            books.queue_dead(number, died);
        }
        books.usage.live_bytes += len as u64;
        books.live_bytes[head] += len as u64;
        books.usage.zpages += 1;
        Ok(Handle::at(number as usize * SEGMENT_BYTES + start))
    }

    /// Sees to it that the frames for `len` more bytes are paid for.
    fn bring_in(&self, books: &mut Books, number: u32, len: usize, purpose: Purpose) -> Result<(), NoRoom> {
        let segment = &mut books.segments[number as usize];
        let missing = segment.missing(len);
        let bytes = u64::from(missing.count_ones()) * PAGE_SIZE as u64;
        if missing != 0 {
            if !self.budget.admit(bytes, purpose) {
                return Err(NoRoom);
            }
            segment.resident |= missing;
            books.usage.frame_bytes += bytes;
        }
        Ok(())
    }

    /// Pays for the next frames at a head if it is about to run out of them and the budget is ample. They are then to be
    /// populated without the lock of the books, which would make others wait; until that is done nobody gives them back.
    fn plan_ahead(&self, books: &mut Books, handle: Handle) -> Option<Range<usize>> {
        let number = split(handle).0;
        let segment = &mut books.segments[number as usize];
        let next = (segment.end as usize).div_ceil(PAGE_SIZE) + segment.waiting().count_ones() as usize;
        if books.populating || next >= FRAMES || segment.waiting().count_ones() > 1 {
            return None;
        }
        let frames = books.usage.frame_bytes / PAGE_SIZE as u64;
        let ahead = segment.ahead(next, (frames / FRAMES_AHEAD_PART).clamp(1, FRAMES_AHEAD_MAX) as u32);
        let bytes = u64::from(ahead.count_ones()) * PAGE_SIZE as u64;
        let room = self.budget.has_room(bytes + ROOM_AMPLE_BYTES, Purpose::Admit);
        if ahead == 0 || !room || !self.budget.admit(bytes, Purpose::Admit) {
            return None;
        }
        segment.resident |= ahead;
        books.usage.frame_bytes += bytes;
        books.populating = true;
        let first = number as usize * FRAMES + next;
        Some(first..first + ahead.count_ones() as usize)
    }

    /// Closes the segment at a head and opens a free one.
    fn open(&self, books: &mut Books, head: usize) -> Result<u32, NoRoom> {
        if let Some(number) = books.heads[head].take() {
            books.close(number);
        }
        let number = match books.spare.pop().or_else(|| books.free.pop()) {
            Some(number) => number,
            None => {
                if (books.segments.len() + 1) * SEGMENT_BYTES > self.frames.bytes() {
                    return Err(NoRoom);
                }
                books.grow(&self.budget);
                books.segments.push(Segment::new());
                (books.segments.len() - 1) as u32
            }
        };
        let opened = self.clock.fetch_add(1, Relaxed);
        let (class, queue) = QUEUES[head];
        let segment = &mut books.segments[number as usize];
        let was_spare = segment.state == State::Spare;
        let revived = u64::from(segment.open(class, queue, opened));
        *if was_spare { &mut books.spare_frames } else { &mut books.dead_frames } -= revived;
        books.heads[head] = Some(number);
        Ok(number)
    }

    /// Gives back the frames at the heads that nothing has come to yet.
    fn give_back_waiting(&self, books: &mut Books) -> u64 {
        let heads = books.heads;
        heads.into_iter().flatten().map(|head| self.give_back_frames(books, head, Segment::waiting)).sum()
    }

    /// Gives back the dead frames of up to `segments` segments.
    fn give_back_dead(&self, books: &mut Books, segments: usize) -> u64 {
        let mut given = 0;
        for _ in 0..segments {
            let Some(number) = books.with_dead.pop() else {
                break;
            };
            let segment = &mut books.segments[number as usize];
            segment.queued = false;
            if segment.state != State::Spare {
                given += self.give_back_frames(books, number, |segment| segment.dead);
            }
        }
        books.dead_frames -= given;
        given
    }

    /// Gives back frames of free segments until there are at most `kept`.
    fn give_back_spare(&self, books: &mut Books, kept: u64) -> u64 {
        let mut given = 0;
        while books.spare_frames > kept {
            let number = books.spare.pop().expect("what is spare lies in a segment");
            let more = self.give_back_frames(books, number, |segment| segment.dead);
            books.spare_frames -= more;
            books.segments[number as usize].state = State::Free;
            books.free.push(number);
            given += more;
        }
        given
    }

    fn give_back_frames(&self, books: &mut Books, number: u32, which: impl FnOnce(&Segment) -> u64) -> u64 {
        let segment = &mut books.segments[number as usize];
        let frames = which(segment);
        for run in runs(frames) {
            // SAFETY: nothing lives in frames that are dead or waiting, and the lock of the books keeps new zpages out.
            unsafe { self.frames.release(number as usize * FRAMES + run.start, run.len()) };
        }
        segment.resident &= !frames;
        segment.dead &= !frames;
        let given = u64::from(frames.count_ones());
        books.usage.frame_bytes -= given * PAGE_SIZE as u64;
        books.usage.returned_frames += given;
        self.budget.refund(given * PAGE_SIZE as u64);
        given
    }

    /// Takes a zpage out of the books.
    fn remove(&self, books: &mut Books, handle: Handle, header: Header) {
        let (number, start) = split(handle);
        let len = header.zpage_bytes();
        Header::mark(&self.frames, handle.offset(), DEAD);
        let segment = &mut books.segments[number as usize];
        let died = segment.remove(start, len);
        books.live_bytes[head_of(segment.class, segment.queue)] -= len as u64;
        books.queue_dead(number, died);
        books.free_if_empty(number);
        books.usage.live_bytes -= len as u64;
        books.usage.zpages -= 1;
        books.usage.payload_bytes -= header.payload_bytes() as u64;
        if books.populating {
            return;
        }
        // A few at a time, because others wait for the books meanwhile.
        if books.dead_frames > DEAD_FRAMES_MAX + books.usage.frame_bytes / PAGE_SIZE as u64 / 128 {
            self.give_back_dead(books, SEGMENTS_AT_ONCE);
        }
        if books.spare_frames > FRAMES as u64 + self.budget.spare_frames_max(books.usage.frame_bytes) {
            self.give_back_spare(books, books.spare_frames - FRAMES as u64);
        }
    }

    /// Copies a zpage to the head of its class that `to` chooses, with this header.
    fn append_again(&self, handle: Handle, header: Header, to: impl Fn(&Segment) -> Queue) -> Result<Handle, NoRoom> {
        let mut books = lock(&self.books);
        let segment = &books.segments[split(handle).0 as usize];
        let head = head_of(segment.class, to(segment));
        let target = self.place(&mut books, head, header.zpage_bytes(), Purpose::Move)?;
        books.usage.payload_bytes += header.payload_bytes() as u64;
        let (from, to) = (handle.offset(), target.offset());
        header.write(&self.frames, to);
        drop(books);
        // SAFETY: the zpage lives during the call, as the trait demands of callers, and live payloads do not change.
        let payload = unsafe { self.frames.slice(from + HEADER_BYTES, header.payload_bytes()) };
        // SAFETY: the target was booked just now, no word names it yet, and it does not overlap with the live source.
        unsafe { self.frames.write(to + HEADER_BYTES, payload) };
        self.remove(&mut lock(&self.books), handle, header);
        Ok(target)
    }

    /// Calls `with` for each zpage that starts in the frame, with its offset in the segment.
    fn walk(&self, segment: &Segment, number: u32, frame: usize, mut with: impl FnMut(usize, Header)) {
        if segment.live_in[frame] == 0 || segment.first_in[frame] == NO_START {
            return;
        }
        let mut at = frame * PAGE_SIZE + segment.first_in[frame] as usize * ALIGN;
        let end = ((frame + 1) * PAGE_SIZE).min(segment.end as usize);
        while at < end {
            let header = Header::read_first(&self.frames, number as usize * SEGMENT_BYTES + at);
            with(at, header);
            at += header.zpage_bytes();
        }
    }

    /// Calls `with` for each live zpage that touches the frame, with its offset in the segment.
    fn walk_touching(&self, segment: &Segment, number: u32, frame: usize, mut with: impl FnMut(usize, Header)) {
        for frame_before in frame.saturating_sub(FRAMES_BACK)..=frame {
            self.walk(segment, number, frame_before, |at, header| {
                if !header.is(DEAD) && at + header.zpage_bytes() > frame * PAGE_SIZE {
                    with(at, header);
                }
            });
        }
    }
}

impl Books {
    fn queue_dead(&mut self, number: u32, died: u64) {
        if died == 0 {
            return;
        }
        self.dead_frames += u64::from(died.count_ones());
        let segment = &mut self.segments[number as usize];
        if !segment.queued {
            segment.queued = true;
            self.with_dead.push(number);
        }
    }

    fn close(&mut self, number: u32) {
        let segment = &mut self.segments[number as usize];
        segment.state = State::Closed;
        let died = segment.bury_passed(0);
        self.queue_dead(number, died);
        self.free_if_empty(number);
    }

    fn free_if_empty(&mut self, number: u32) {
        let segment = &mut self.segments[number as usize];
        if segment.live > 0 || segment.state != State::Closed {
            return;
        }
        if segment.is_worth_keeping() {
            segment.state = State::Spare;
            let spare = u64::from(segment.dead.count_ones());
            self.dead_frames -= spare;
            self.spare_frames += spare;
            self.spare.push(number);
        } else {
            segment.state = State::Free;
            self.free.push(number);
        }
    }

    /// Makes room in the tables for one more segment, in steps of an eighth, so that they are never half empty and
    /// nothing but opening a new segment allocates.
    fn grow(&mut self, budget: &Budget) {
        if self.segments.len() < self.segments.capacity() {
            return;
        }
        let more = (self.segments.len() / 8).max(8);
        let capacity = self.segments.len() + more;
        self.segments.reserve_exact(more);
        self.free.reserve_exact(capacity - self.free.len());
        self.spare.reserve_exact(capacity - self.spare.len());
        self.with_dead.reserve_exact(capacity - self.with_dead.len());
        let bytes = capacity * (size_of::<Segment>() + 3 * size_of::<u32>());
        budget.recharge(self.usage.table_bytes, bytes as u64);
        self.usage.table_bytes = bytes as u64;
    }
}

impl Allocator for Log {
    fn store(&self, class: Class, queue: Queue, zpage: &NewZpage<'_>, purpose: Purpose) -> Result<Handle, NoRoom> {
        let payload_bytes = zpage.payload.len();
        let mut books = lock(&self.books);
        let handle = self.place(&mut books, head_of(class, queue), zpage_bytes(payload_bytes), purpose)?;
        books.usage.payload_bytes += payload_bytes as u64;
        let at = handle.offset();
        Header::of(zpage).write(&self.frames, at);
        let ahead = self.plan_ahead(&mut books, handle);
        // The copy needs no lock: whoever walks the frame reads only the header, and moves nothing that no word names.
        drop(books);
        // SAFETY: the place was booked just now, and no word names it yet.
        unsafe { self.frames.write(at + HEADER_BYTES, zpage.payload) };
        if let Some(ahead) = ahead {
            self.frames.populate(ahead.start, ahead.len());
            lock(&self.books).populating = false;
        }
        Ok(handle)
    }

    fn read<R>(&self, handle: Handle, used: bool, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        let at = handle.offset();
        // SAFETY: the zpage lives during the call, as the trait demands of callers.
        unsafe { header::show((&self.frames, at), (&self.frames, at + HEADER_BYTES), used, with) }
    }

    fn age(&self, handle: Handle, forget_use: bool) -> bool {
        Header::age(&self.frames, handle.offset(), forget_use)
    }

    fn set_dense(&self, handle: Handle) {
        Header::mark(&self.frames, handle.offset(), DENSE);
    }

    fn payload_bytes(&self, handle: Handle) -> u32 {
        self.header(handle).payload_bytes() as u32
    }

    fn free(&self, handle: Handle) {
        let header = self.header(handle);
        self.remove(&mut lock(&self.books), handle, header);
    }

    fn relocate(&self, handle: Handle) -> Result<Handle, NoRoom> {
        // What must be kept is told apart from what is new; what may be dropped keeps its place among its like.
        let queue = |segment: &Segment| match segment.class {
            Class::Ephemeral => segment.queue,
            Class::Persistent => Queue::Main,
        };
        self.append_again(handle, self.header(handle), queue)
    }

    fn keep(&self, handle: Handle) -> Result<Handle, NoRoom> {
        self.append_again(handle, self.header(handle).without(USED), |_| Queue::Main)
    }

    fn set_owner(&self, handle: Handle, owner: Owner) {
        Header::set_owner(&self.frames, handle.offset(), owner);
    }

    fn sparse_frame(&self, live_bytes_max: usize) -> Option<FrameId> {
        let mut books = lock(&self.books);
        let frames = (books.segments.len() * FRAMES) as u32;
        let start = if books.cursor < frames { books.cursor } else { 0 };
        let sparse = |number: &u32| {
            let (segment, frame) = (&books.segments[*number as usize / FRAMES], *number as usize % FRAMES);
            let live = segment.live_in[frame] as usize;
            live > 0 && live <= live_bytes_max && segment.passed(frame)
        };
        // A long zpage that reaches into a frame with a few bytes takes more elsewhere than it frees.
        let mut bytes = 0;
        let mut wins = |number: &u32| {
            let (number, frame) = (number / FRAMES as u32, *number as usize % FRAMES);
            bytes = 0;
            self.walk_touching(&books.segments[number as usize], number, frame, |_, header| {
                bytes += header.zpage_bytes()
            });
            bytes <= SPARSE_BYTES_MAX
        };
        let mut sparse_ones = (start..frames).chain(0..start).filter(sparse).take(SPARSE_LOOKS_MAX);
        let found = sparse_ones.find(|number| wins(number))?;
        books.cursor = found + 1;
        Some(FrameId(found))
    }

    fn sparse_region(&self) -> Option<Range<u32>> {
        let books = lock(&self.books);
        let closed = books.segments.iter().zip(0..).filter(|(segment, _)| segment.state == State::Closed);
        let emptiest =
            closed.min_by_key(|(segment, _)| 1000 * u64::from(segment.live) / segment.resident_bytes().max(1));
        let (_, number) = emptiest.filter(|(segment, _)| {
            u64::from(segment.live) <= segment.resident_bytes() / PAGE_SIZE as u64 * SPARSE_BYTES_MAX as u64
        })?;
        let first = number * FRAMES as u32;
        Some(first..first + FRAMES as u32)
    }

    fn coldest_age(&self, class: Class, queue: Queue) -> Option<u64> {
        let books = lock(&self.books);
        let alive = books.segments.iter().filter(|segment| segment.holds(class, queue));
        alive.map(|segment| segment.opened).min()
    }

    fn coldest(&self, class: Class, queue: Queue) -> Option<Range<u32>> {
        let mut books = lock(&self.books);
        let coldest = (0..books.segments.len())
            .filter(|number| books.segments[*number].holds(class, queue))
            .min_by_key(|number| books.segments[*number].opened)? as u32;
        if let Some(head) = books.heads.iter_mut().find(|head| **head == Some(coldest)) {
            *head = None;
            books.close(coldest);
        }
        let first = coldest * FRAMES as u32;
        Some(first..first + FRAMES as u32)
    }

    fn queue_bytes(&self, class: Class, queue: Queue) -> u64 {
        if queue == Queue::Unpacked { 0 } else { lock(&self.books).live_bytes[head_of(class, queue)] }
    }

    fn tenants(&self, frame: FrameId, tenants: &mut Tenants) {
        tenants.clear();
        let books = lock(&self.books);
        let (number, frame) = (frame.0 / FRAMES as u32, frame.0 as usize % FRAMES);
        let segment = &books.segments[number as usize];
        if segment.live_in[frame] == 0 {
            return;
        }
        self.walk_touching(segment, number, frame, |at, header| {
            let handle = Handle::at(number as usize * SEGMENT_BYTES + at);
            let owner = self.header(handle).owner();
            tenants.push(Tenant { handle, owner, class: segment.class, used: header.is(USED) });
        });
    }

    fn give_back(&self, urgent: bool) -> u64 {
        let mut books = lock(&self.books);
        if books.populating {
            return 0;
        }
        let dead = self.give_back_dead(&mut books, usize::MAX);
        let kept = if urgent { 0 } else { self.budget.spare_frames_max(books.usage.frame_bytes) };
        let spare = self.give_back_spare(&mut books, kept);
        let waiting = if urgent { self.give_back_waiting(&mut books) } else { 0 };
        dead + spare + waiting
    }

    fn usage(&self) -> Usage {
        let books = lock(&self.books);
        let heads = books.heads.iter().flatten().map(|number| &books.segments[*number as usize]);
        Usage {
            waiting_bytes: heads.map(|head| head.waiting_bytes() as u64).sum(),
            spare_bytes: books.spare_frames * PAGE_SIZE as u64,
            ..books.usage
        }
    }
}

fn head_of(class: Class, queue: Queue) -> usize {
    debug_assert_ne!(queue, Queue::Unpacked, "the log has no such queue");
    2 * class as usize + queue as usize
}

fn split(handle: Handle) -> (u32, usize) {
    let at = handle.offset();
    ((at / SEGMENT_BYTES) as u32, at % SEGMENT_BYTES)
}

/// The runs of ones in `bits`, lowest first.
fn runs(mut bits: u64) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let start = bits.trailing_zeros() as usize;
        let len = (bits >> start).trailing_ones() as usize;
        let mask = if len == 64 { u64::MAX } else { ((1 << len) - 1) << start };
        bits &= !mask;
        Some(start..start + len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_ones() {
        assert_eq!(runs(0b1101_1000).collect::<Vec<_>>(), [3..5, 6..8]);
        assert_eq!(runs(u64::MAX).collect::<Vec<_>>(), vec![0..64]);
        assert_eq!(runs(0).count(), 0);
    }
}
