//! Holes by size, after xvmalloc (Nitin Gupta; compcache and the first zram), which followed TLSF.
//!
//! A frame is cut into zpages of just the size they need and [holes](super::holes). A new zpage goes into the smallest hole
//! that surely has room for it, and only where there is none a frame is begun; what is left over is a hole again. When a
//! zpage is freed its place is merged with the holes beside it, at once and without a search: holes have tags at both of
//! their ends, and a zpage behind a hole is [marked](BEHIND_HOLE). All of it lies in the frames: nothing is allocated, and
//! whoever starts at the beginning of a frame can walk over all that is in it.
//!
//! A zpage never crosses a frame. What leaves no room for its header in a frame (a page that does not compress) has a frame
//! alone and its header [apart](super::apart).
//!
//! A frame's age is the time of the last allocation from it, as in `zbud`; but a new zpage goes where a hole fits, whatever
//! the age of what is around it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::apart::Layout;
use super::header::{self, BEHIND_HOLE, DENSE, HEADER_BYTES, Header, USED, zpage_bytes};
use super::holes::{HOLE_BYTES_MIN, Holes, hole_at, hole_before};
use super::ledger::{CHUNK_BYTES, CHUNKS, Ledger};
use super::{Allocator, Class, FrameId, Handle, NewZpage, NoRoom, Owner, Queue, Tenant, Tenants, Usage, Zpage};
use crate::budget::{Budget, Purpose};
use crate::frames::Frames;
use crate::page::PAGE_SIZE;
use crate::sync::{Mutex, Rank, lock};

/// Frames that a search for a sparse one looks into.
const LOOKS_MAX: usize = 8;
/// The place in its frame that the handle of a zpage with a header apart names. No other zpage starts there: they start at
/// the beginning of a frame or behind another one, which takes more.
const WHOLE: usize = 4;

const _: () = assert!(WHOLE < HOLE_BYTES_MIN);

/// What lies in a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Blocks {
    /// Bytes that zpages take, with headers and padding.
    live: u16,
    /// It is one zpage with its header apart.
    whole: bool,
}

/// The allocator.
pub(crate) struct Xvmalloc {
    frames: Frames,
    layout: Layout<1>,
    budget: Arc<Budget>,
    clock: Arc<AtomicU64>,
    books: Mutex<Books>,
}

struct Books {
    ledger: Ledger<Blocks, 1>,
    /// By [`Class`].
    holes: Box<[Holes; 2]>,
    /// The class that the search for sparse frames begins with.
    cursor: usize,
}

fn frame_of(at: usize) -> u32 {
    (at / PAGE_SIZE) as u32
}

/// What a zpage takes of a frame that it shares, so that a hole in a list fits into its place when it is gone.
fn block_bytes(payload_bytes: usize) -> usize {
    zpage_bytes(payload_bytes).max(HOLE_BYTES_MIN)
}

fn is_whole(handle: Handle) -> bool {
    handle.offset() % PAGE_SIZE == WHOLE
}

impl Xvmalloc {
    const TABLE_BYTES: u64 = size_of::<[Holes; 2]>() as u64;

    /// An empty allocator. `clock` counts the frames taken into use, in all allocators that share it.
    pub(crate) fn new(frames: Frames, budget: Arc<Budget>, clock: Arc<AtomicU64>) -> Self {
        let layout = Layout::of(frames.bytes());
        let holes = Box::new([Holes::new(), Holes::new()]);
        let books = Books { ledger: Ledger::new(layout, &budget), holes, cursor: 0 };
        budget.charge(Self::TABLE_BYTES);
        Self { frames, layout, budget, clock, books: Mutex::new(Rank::Books, books) }
    }

    /// Where the header and the payload of a zpage are.
    fn places(&self, handle: Handle) -> (usize, usize) {
        let at = handle.offset();
        if is_whole(handle) { (self.layout.header_at(at / PAGE_SIZE, 0), at - WHOLE) } else { (at, at + HEADER_BYTES) }
    }

    fn header(&self, handle: Handle) -> Header {
        Header::read(&self.frames, self.places(handle).0)
    }

    /// A place for a zpage in a hole, or else in a new frame.
    fn place(&self, books: &mut Books, class: Class, bytes: usize, purpose: Purpose) -> Result<usize, NoRoom> {
        if let Some(at) = books.holes[class as usize].find(&self.frames, bytes, |_| true) {
            books.ledger.touch(frame_of(at), self.clock.load(Relaxed));
            self.fill_hole(books, class, at, bytes);
            return Ok(at);
        }
        let now = self.clock.fetch_add(1, Relaxed);
        let frame = books.ledger.take(class, now, &self.budget, purpose)?;
        let at = frame as usize * PAGE_SIZE;
        if bytes < PAGE_SIZE {
            books.holes[class as usize].add(&self.frames, at + bytes, PAGE_SIZE - bytes);
        }
        books.grow(frame, bytes);
        Ok(at)
    }

    /// A frame for a zpage that leaves no room for its header.
    fn place_whole(&self, books: &mut Books, class: Class, purpose: Purpose) -> Result<usize, NoRoom> {
        let now = self.clock.fetch_add(1, Relaxed);
        let frame = books.ledger.take(class, now, &self.budget, purpose)?;
        if let Err(error) = books.ledger.headers.hold(frame, &self.budget, purpose) {
            books.ledger.put_back(frame);
            return Err(error);
        }
        *books.ledger.contents_mut(frame) = Blocks { live: PAGE_SIZE as u16, whole: true };
        Ok(frame as usize * PAGE_SIZE + WHOLE)
    }

    /// Puts a zpage of `bytes` at the front of a hole.
    fn fill_hole(&self, books: &mut Books, class: Class, at: usize, bytes: usize) {
        let hole = hole_at(&self.frames, at).expect("only holes are in the lists");
        let holes = &mut books.holes[class as usize];
        holes.remove(&self.frames, at, hole);
        if hole > bytes {
            holes.add(&self.frames, at + bytes, hole - bytes);
        } else if !(at + hole).is_multiple_of(PAGE_SIZE) {
            Header::unmark(&self.frames, at + hole, BEHIND_HOLE);
        }
        books.grow(frame_of(at), bytes);
    }

    /// Makes a hole of a zpage's place and of the holes beside it.
    fn make_hole(&self, books: &mut Books, class: Class, at: usize, bytes: usize) {
        let holes = &mut books.holes[class as usize];
        let (mut start, mut end) = (at, at + bytes);
        if Header::read_first(&self.frames, at).is(BEHIND_HOLE) {
            let before = hole_before(&self.frames, at);
            start -= before;
            holes.remove(&self.frames, start, before);
        }
        if !end.is_multiple_of(PAGE_SIZE) {
            match hole_at(&self.frames, end) {
                Some(after) => {
                    holes.remove(&self.frames, end, after);
                    end += after;
                }
                None => Header::mark(&self.frames, end, BEHIND_HOLE),
            }
        }
        if end - start < PAGE_SIZE {
            holes.add(&self.frames, start, end - start);
        }
        books.shrink(frame_of(at), bytes);
    }

    /// Takes a zpage out of the books.
    fn remove(&self, books: &mut Books, handle: Handle, payload_bytes: usize) {
        let (at, bytes) = (handle.offset(), block_bytes(payload_bytes));
        let frame = frame_of(at);
        let class = books.ledger.class(frame);
        books.ledger.remove_zpage(class, bytes, payload_bytes);
        if is_whole(handle) {
            books.ledger.headers.let_go(frame);
            books.ledger.put_back(frame);
        } else {
            self.make_hole(books, class, at, bytes);
        }
    }

    /// A hole for a zpage of `bytes` in a frame that is fuller with it than `source` is now. So each move brings zpages
    /// closer together, and no sequence of moves goes on forever.
    fn hole_elsewhere(&self, books: &Books, source: u32, bytes: usize) -> Option<usize> {
        let full = usize::from(books.ledger.contents(source).live);
        let holes = &books.holes[books.ledger.class(source) as usize];
        holes.find(&self.frames, bytes, |at| {
            let frame = frame_of(at);
            frame != source && usize::from(books.ledger.contents(frame).live) + bytes > full
        })
    }

    /// The zpages in a frame, in order, with their places in bytes. The caller holds the books.
    fn walk(&self, books: &Books, frame: u32) -> impl Iterator<Item = (Handle, Header)> {
        let Blocks { live, whole } = books.ledger.contents(frame);
        let start = frame as usize * PAGE_SIZE;
        let end = if live == 0 { start } else { start + PAGE_SIZE };
        let mut at = if whole { start + WHOLE } else { start };
        std::iter::from_fn(move || {
            while at < end {
                let handle = Handle::at(at);
                if !whole && let Some(hole) = hole_at(&self.frames, at) {
                    at += hole;
                    continue;
                }
                let header = self.header(handle);
                at += block_bytes(header.payload_bytes());
                return Some((handle, header));
            }
            None
        })
    }
}

impl Books {
    /// `bytes` more of a frame are used.
    fn grow(&mut self, frame: u32, bytes: usize) {
        self.ledger.contents_mut(frame).live += bytes as u16;
        self.shelve(frame);
    }

    /// `bytes` of a frame are free again.
    fn shrink(&mut self, frame: u32, bytes: usize) {
        let blocks = self.ledger.contents_mut(frame);
        blocks.live -= bytes as u16;
        if blocks.live == 0 {
            self.ledger.put_back(frame);
        } else {
            self.shelve(frame);
        }
    }

    fn shelve(&mut self, frame: u32) {
        let free = PAGE_SIZE - usize::from(self.ledger.contents(frame).live);
        self.ledger.shelve(frame, Some(free / CHUNK_BYTES));
    }
}

impl Allocator for Xvmalloc {
    fn store(&self, class: Class, _: Queue, zpage: &NewZpage<'_>, purpose: Purpose) -> Result<Handle, NoRoom> {
        let payload_bytes = zpage.payload.len();
        let bytes = block_bytes(payload_bytes);
        let mut books = lock(&self.books);
        let handle = Handle::at(match bytes > PAGE_SIZE {
            true => self.place_whole(&mut books, class, purpose)?,
            false => self.place(&mut books, class, bytes, purpose)?,
        });
        books.ledger.add_zpage(class, bytes, payload_bytes);
        let (header, payload) = self.places(handle);
        Header::of(zpage).write(&self.frames, header);
        // The copy needs no lock: whoever walks the frame reads only headers, and moves nothing that no word names.
        drop(books);
        // SAFETY: the place was booked just now, and no word names it yet.
        unsafe { self.frames.write(payload, zpage.payload) };
        Ok(handle)
    }

    fn read<R>(&self, handle: Handle, used: bool, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        let (header, payload) = self.places(handle);
        // SAFETY: the zpage lives during the call, as the trait demands of callers.
        unsafe { header::show((&self.frames, header), (&self.frames, payload), used, with) }
    }

    fn age(&self, handle: Handle, forget_use: bool) -> bool {
        Header::age(&self.frames, self.places(handle).0, forget_use)
    }

    fn set_dense(&self, handle: Handle) {
        Header::mark(&self.frames, self.places(handle).0, DENSE);
    }

    fn payload_bytes(&self, handle: Handle) -> u32 {
        self.header(handle).payload_bytes() as u32
    }

    fn free(&self, handle: Handle) {
        let payload_bytes = self.header(handle).payload_bytes();
        let mut books = lock(&self.books);
        self.remove(&mut books, handle, payload_bytes);
        // Twice what `give_back` leaves, so that not every free comes here.
        books.ledger.trim(2, &self.frames, &self.budget);
    }

    /// Moves the zpage into a hole of a fuller frame. That frame stays as old as it is: what comes to it is not new.
    fn relocate(&self, handle: Handle) -> Result<Handle, NoRoom> {
        if is_whole(handle) {
            return Err(NoRoom);
        }
        let header = self.header(handle).without(BEHIND_HOLE);
        let payload_bytes = header.payload_bytes();
        let bytes = block_bytes(payload_bytes);
        let mut books = lock(&self.books);
        let source = frame_of(handle.offset());
        let at = self.hole_elsewhere(&books, source, bytes).ok_or(NoRoom)?;
        let class = books.ledger.class(source);
        self.fill_hole(&mut books, class, at, bytes);
        books.ledger.add_zpage(class, bytes, payload_bytes);
        header.write(&self.frames, at);
        drop(books);
        // SAFETY: the zpage lives during the call, as the trait demands of callers, and live payloads do not change.
        let payload = unsafe { self.frames.slice(handle.offset() + HEADER_BYTES, payload_bytes) };
        // SAFETY: the target was booked just now, no word names it yet, and it lies in another frame than the live source.
        unsafe { self.frames.write(at + HEADER_BYTES, payload) };
        self.remove(&mut lock(&self.books), handle, payload_bytes);
        Ok(Handle::at(at))
    }

    fn keep(&self, handle: Handle) -> Result<Handle, NoRoom> {
        Header::unmark(&self.frames, self.places(handle).0, USED);
        Ok(handle)
    }

    fn set_owner(&self, handle: Handle, owner: Owner) {
        // The header is read and written again; meanwhile nobody may mark it as behind a hole.
        let _books = lock(&self.books);
        Header::set_owner(&self.frames, self.places(handle).0, owner);
    }

    /// One of the emptiest frames of a class whose zpages all find room elsewhere. Those that do not go to the back of their
    /// shelf, so that the next search looks into others.
    fn sparse_frame(&self, live_bytes_max: usize) -> Option<FrameId> {
        let mut books = lock(&self.books);
        let first = books.cursor;
        for class in [first, 1 - first] {
            let kind = [Class::Ephemeral, Class::Persistent][class];
            let mut looks = 0;
            let shelves = PAGE_SIZE.saturating_sub(live_bytes_max) / CHUNK_BYTES..CHUNKS;
            for shelf in shelves.rev() {
                let start = books.ledger.on_shelf(kind, shelf);
                let mut next = start;
                while let Some(frame) = next.filter(|_| looks < LOOKS_MAX) {
                    looks += 1;
                    let sparse = usize::from(books.ledger.contents(frame).live) <= live_bytes_max;
                    let leaves = |(_, header): (Handle, Header)| {
                        self.hole_elsewhere(&books, frame, block_bytes(header.payload_bytes())).is_some()
                    };
                    if sparse && self.walk(&books, frame).all(leaves) {
                        books.cursor = 1 - class;
                        return Some(FrameId(frame));
                    }
                    books.ledger.put_behind(frame);
                    next = books.ledger.on_shelf(kind, shelf).filter(|frame| Some(*frame) != start);
                }
            }
        }
        None
    }

    fn coldest_age(&self, class: Class, queue: Queue) -> Option<u64> {
        lock(&self.books).ledger.coldest_age(class, queue)
    }

    fn coldest(&self, class: Class, queue: Queue) -> Option<Range<u32>> {
        lock(&self.books).ledger.coldest(class, queue, &self.clock)
    }

    fn queue_bytes(&self, class: Class, queue: Queue) -> u64 {
        lock(&self.books).ledger.queue_bytes(class, queue)
    }

    fn tenants(&self, frame: FrameId, tenants: &mut Tenants) {
        tenants.clear();
        let books = lock(&self.books);
        if !books.ledger.knows(frame.0) {
            return;
        }
        for (handle, header) in self.walk(&books, frame.0) {
            let (owner, used) = (header.owner(), header.is(USED));
            tenants.push(Tenant { handle, owner, class: books.ledger.class(frame.0), used });
        }
    }

    fn give_back(&self, urgent: bool) -> u64 {
        let mut books = lock(&self.books);
        match urgent {
            true => books.ledger.give_back(&self.frames, &self.budget),
            false => books.ledger.trim(1, &self.frames, &self.budget),
        }
    }

    fn usage(&self) -> Usage {
        let usage = lock(&self.books).ledger.usage();
        Usage { table_bytes: usage.table_bytes + Self::TABLE_BYTES, ..usage }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::suite::{allocator, store};
    use super::*;

    #[test]
    fn a_hole_is_merged_with_both_neighbours_and_filled_again() {
        let (xvmalloc, _) = allocator(16 << 20, Xvmalloc::new);
        let handles: Vec<Handle> = (0..8).map(|owner| store(&xvmalloc, owner, &[1; 500])).collect();
        assert!(handles.iter().all(|handle| frame_of(handle.offset()) == 0), "eight fill a frame");
        assert_eq!(xvmalloc.usage().live_bytes, 8 * 512);
        for number in [2, 4, 3] {
            xvmalloc.free(handles[number]);
        }
        assert_eq!(store(&xvmalloc, 9, &[2; 3 * 512 - 12]), handles[2]);
        assert_eq!((xvmalloc.usage().frame_bytes, xvmalloc.usage().waste_bytes()), (PAGE_SIZE as u64, 0));
        for number in [0, 1, 2, 5, 7, 6] {
            xvmalloc.free(handles[number]);
        }
        assert_eq!(xvmalloc.give_back(true), 1);
    }

    #[test]
    fn what_is_too_small_for_a_list_is_found_by_its_neighbours() {
        let (xvmalloc, _) = allocator(16 << 20, Xvmalloc::new);
        let handles = [100, 200, 300].map(|bytes| store(&xvmalloc, 0, &vec![1; bytes]));
        xvmalloc.free(handles[1]);
        let small = store(&xvmalloc, 1, &[2; 184]);
        assert_eq!(small, handles[1], "and sixteen bytes are left over behind it");
        xvmalloc.free(handles[2]);
        xvmalloc.free(small);
        assert_eq!(store(&xvmalloc, 2, &[3; 3900]), handles[1], "all but the first is one hole again");
    }

    #[test]
    fn a_page_that_does_not_compress_takes_one_frame() {
        let (xvmalloc, _) = allocator(16 << 20, Xvmalloc::new);
        for bytes in [4085, PAGE_SIZE] {
            assert!(is_whole(store(&xvmalloc, 0, &vec![1; bytes])));
        }
        // The frame of the headers comes on top.
        assert_eq!(xvmalloc.usage().frame_bytes, 3 * PAGE_SIZE as u64);
        let handle = store(&xvmalloc, 0, &[1; 4084]);
        assert!(!is_whole(handle));
        xvmalloc.read(handle, false, |zpage| assert_eq!(zpage.payload, [1; 4084]));
        assert_eq!(xvmalloc.usage().frame_bytes, 4 * PAGE_SIZE as u64);
    }

    #[test]
    fn nothing_moves_to_where_it_is_emptier() {
        let (xvmalloc, _) = allocator(16 << 20, Xvmalloc::new);
        let handles = [1500, 1500, 1200].map(|bytes| store(&xvmalloc, 0, &vec![1; bytes]));
        assert_eq!(handles.map(|handle| frame_of(handle.offset())), [0, 0, 1]);
        assert_eq!(xvmalloc.relocate(handles[0]), Err(NoRoom), "there is room, but it could as well move back again");
        xvmalloc.free(handles[1]);
        assert_eq!(xvmalloc.relocate(handles[0]).map(|handle| frame_of(handle.offset())), Ok(1));
    }

    #[test]
    fn sparse_frames_run_dry_into_fuller_ones() {
        let (xvmalloc, _) = allocator(16 << 20, Xvmalloc::new);
        let handles: Vec<Handle> = (0..32).map(|owner| store(&xvmalloc, owner, &[1; 1012])).collect();
        // One is left in each of seven frames, three in the last.
        let freed = |number: &usize| if *number < 28 { number % 4 != 3 } else { *number == 28 };
        (0..32).filter(freed).for_each(|number| xvmalloc.free(handles[number]));
        assert_eq!(xvmalloc.sparse_frame(1023), None);
        let mut tenants = Tenants::new();
        let mut moves = 0;
        while let Some(frame) = xvmalloc.sparse_frame(1024) {
            xvmalloc.tenants(frame, &mut tenants);
            moves += tenants.as_slice().iter().filter(|tenant| xvmalloc.relocate(tenant.handle).is_ok()).count();
        }
        assert_eq!(moves, 5, "ten zpages in eight frames end in three");
        assert_eq!(xvmalloc.give_back(true), 5);
    }
}
