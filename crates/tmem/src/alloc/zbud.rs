//! Buddies: at most two zpages in a frame, after the kernel's zbud (Seth Jennings, `mm/zbud.c`, itself after Dan
//! Magenheimer's zbud in zcache).
//!
//! One buddy grows from the front of the frame, the other one from its back, both in chunks of 64 bytes. Frames with one
//! buddy are *unbuddied*; they are found by their free chunks, and a new zpage goes to the fullest that has room for it.
//! No frame holds more than two zpages, and that is both what it costs and what it is good for: it holds less than others,
//! but two evictions give a frame back, whichever frame it is, and so frames can be taken back in the order of age.
//!
//! As in the kernel, a frame's age is the time of the last allocation from it. Other than there, headers lie
//! [apart](super::apart), so that a page that does not compress takes one frame. A handle names the first byte of the
//! payload: at the start of its frame it is the first buddy, else the last.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::apart::Layout;
use super::header::{self, DENSE, HEADER_BYTES, Header, USED};
use super::ledger::{CHUNK_BYTES, CHUNKS, Ledger};
use super::{Allocator, Class, FrameId, Handle, NewZpage, NoRoom, Owner, Queue, Tenant, Tenants, Usage, Zpage};
use crate::budget::{Budget, Purpose};
use crate::frames::Frames;
use crate::page::PAGE_SIZE;
use crate::sync::{Mutex, Rank, lock};

const BUDDIES: usize = 2;
/// Two zpages of more chunks than this never share a frame.
const HALF: u8 = (CHUNKS / 2) as u8;
const CLASSES: [Class; 2] = [Class::Ephemeral, Class::Persistent];

/// Chunks of the buddies in a frame, zero for none.
#[derive(Clone, Copy, Debug, Default)]
struct Buddies {
    first: u8,
    last: u8,
}

impl Buddies {
    /// Chunks that a buddy may have; `None` where no other one can come to it.
    fn free_chunks(self) -> Option<usize> {
        let chunks = usize::from(self.first + self.last);
        let alone = self.first == 0 || self.last == 0;
        Some(CHUNKS - chunks).filter(|free| alone && *free > 0)
    }
}

/// The allocator.
pub(crate) struct Zbud {
    frames: Frames,
    layout: Layout<BUDDIES>,
    budget: Arc<Budget>,
    clock: Arc<AtomicU64>,
    books: Mutex<Books>,
}

struct Books {
    ledger: Ledger<Buddies, BUDDIES>,
    /// Where the search for sparse frames goes on: a class, and chunks of a lone buddy.
    cursor: usize,
}

/// The frame of a zpage, and whether it is the last buddy there.
fn split(handle: Handle) -> (u32, bool) {
    let at = handle.offset();
    ((at / PAGE_SIZE) as u32, !at.is_multiple_of(PAGE_SIZE))
}

fn chunks_of(payload_bytes: usize) -> usize {
    payload_bytes.div_ceil(CHUNK_BYTES).max(1)
}

fn live_bytes(payload_bytes: usize) -> usize {
    HEADER_BYTES + chunks_of(payload_bytes) * CHUNK_BYTES
}

impl Zbud {
    /// An empty allocator. `clock` counts the frames taken into use, in all allocators that share it.
    pub(crate) fn new(frames: Frames, budget: Arc<Budget>, clock: Arc<AtomicU64>) -> Self {
        let layout = Layout::of(frames.bytes());
        let books = Books { ledger: Ledger::new(layout, &budget), cursor: 0 };
        Self { frames, layout, budget, clock, books: Mutex::new(Rank::Books, books) }
    }

    fn header_at(&self, handle: Handle) -> usize {
        let (frame, last) = split(handle);
        self.layout.header_at(frame as usize, last.into())
    }

    fn header(&self, handle: Handle) -> Header {
        Header::read(&self.frames, self.header_at(handle))
    }

    /// A frame for a new zpage, which is the youngest from now on.
    fn frame_for(&self, books: &mut Books, class: Class, chunks: usize, purpose: Purpose) -> Result<u32, NoRoom> {
        if let Some(frame) = books.ledger.find(class, chunks, None) {
            books.ledger.touch(frame, self.clock.load(Relaxed));
            return Ok(frame);
        }
        let now = self.clock.fetch_add(1, Relaxed);
        let frame = books.ledger.take(class, now, &self.budget, purpose)?;
        if let Err(error) = books.ledger.headers.hold(frame, &self.budget, purpose) {
            books.ledger.put_back(frame);
            return Err(error);
        }
        Ok(frame)
    }

    /// Books a zpage in a frame that has room for it.
    fn add(books: &mut Books, frame: u32, payload_bytes: usize) -> Handle {
        let chunks = chunks_of(payload_bytes);
        let buddies = books.ledger.contents_mut(frame);
        let offset = if buddies.first == 0 {
            buddies.first = chunks as u8;
            0
        } else {
            buddies.last = chunks as u8;
            PAGE_SIZE - chunks * CHUNK_BYTES
        };
        let free = buddies.free_chunks();
        books.ledger.shelve(frame, free);
        books.ledger.add_zpage(books.ledger.class(frame), live_bytes(payload_bytes), payload_bytes);
        Handle::at(frame as usize * PAGE_SIZE + offset)
    }

    /// Takes a zpage out of the books.
    fn remove(books: &mut Books, handle: Handle, payload_bytes: usize) {
        let (frame, last) = split(handle);
        books.ledger.remove_zpage(books.ledger.class(frame), live_bytes(payload_bytes), payload_bytes);
        let buddies = books.ledger.contents_mut(frame);
        *(if last { &mut buddies.last } else { &mut buddies.first }) = 0;
        let (free, empty) = (buddies.free_chunks(), buddies.first + buddies.last == 0);
        if empty {
            books.ledger.headers.let_go(frame);
            books.ledger.put_back(frame);
        } else {
            books.ledger.shelve(frame, free);
        }
    }
}

impl Allocator for Zbud {
    fn store(&self, class: Class, _: Queue, zpage: &NewZpage<'_>, purpose: Purpose) -> Result<Handle, NoRoom> {
        let payload_bytes = zpage.payload.len();
        let mut books = lock(&self.books);
        let frame = self.frame_for(&mut books, class, chunks_of(payload_bytes), purpose)?;
        let handle = Self::add(&mut books, frame, payload_bytes);
        Header::of(zpage).write(&self.frames, self.header_at(handle));
        // The copy needs no lock: whoever looks at the frame reads only headers, and moves nothing that no word names.
        drop(books);
        // SAFETY: the place was booked just now, and no word names it yet.
        unsafe { self.frames.write(handle.offset(), zpage.payload) };
        Ok(handle)
    }

    fn read<R>(&self, handle: Handle, used: bool, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        let header = (&self.frames, self.header_at(handle));
        // SAFETY: the zpage lives during the call, as the trait demands of callers.
        unsafe { header::show(header, (&self.frames, handle.offset()), used, with) }
    }

    fn age(&self, handle: Handle, forget_use: bool) -> bool {
        Header::age(&self.frames, self.header_at(handle), forget_use)
    }

    fn set_dense(&self, handle: Handle) {
        Header::mark(&self.frames, self.header_at(handle), DENSE);
    }

    fn payload_bytes(&self, handle: Handle) -> u32 {
        self.header(handle).payload_bytes() as u32
    }

    fn free(&self, handle: Handle) {
        let payload_bytes = self.header(handle).payload_bytes();
        let mut books = lock(&self.books);
        Self::remove(&mut books, handle, payload_bytes);
        // Twice what `give_back` leaves, so that not every free comes here.
        books.ledger.trim(2, &self.frames, &self.budget);
    }

    /// Moves the zpage to an unbuddied frame. That frame stays as old as it is: what comes to it is not new.
    fn relocate(&self, handle: Handle) -> Result<Handle, NoRoom> {
        let header = self.header(handle);
        let payload_bytes = header.payload_bytes();
        let mut books = lock(&self.books);
        let source = split(handle).0;
        let class = books.ledger.class(source);
        let frame = books.ledger.find(class, chunks_of(payload_bytes), Some(source)).ok_or(NoRoom)?;
        let target = Self::add(&mut books, frame, payload_bytes);
        header.write(&self.frames, self.header_at(target));
        drop(books);
        // SAFETY: the zpage lives during the call, as the trait demands of callers, and live payloads do not change.
        let payload = unsafe { self.frames.slice(handle.offset(), payload_bytes) };
        // SAFETY: the target was booked just now, no word names it yet, and it lies in another frame than the live source.
        unsafe { self.frames.write(target.offset(), payload) };
        Self::remove(&mut lock(&self.books), handle, payload_bytes);
        Ok(target)
    }

    fn keep(&self, handle: Handle) -> Result<Handle, NoRoom> {
        Header::unmark(&self.frames, self.header_at(handle), USED);
        Ok(handle)
    }

    fn set_owner(&self, handle: Handle, owner: Owner) {
        Header::set_owner(&self.frames, self.header_at(handle), owner);
    }

    /// A frame with one zpage, for which another frame has room: moving it always empties a frame.
    fn sparse_frame(&self, live_bytes_max: usize) -> Option<FrameId> {
        let mut books = lock(&self.books);
        let places = CLASSES.len() * CHUNKS;
        let start = books.cursor;
        let places = (0..places).map(|i| (start + i) % places);
        let found =
            places.filter(|place| (1..=live_bytes_max / CHUNK_BYTES).contains(&(place % CHUNKS))).find_map(|place| {
                let (class, chunks) = (CLASSES[place / CHUNKS], place % CHUNKS);
                let frame = books.ledger.on_shelf(class, CHUNKS - chunks)?;
                books.ledger.find(class, chunks, Some(frame)).map(|_| (place, frame))
            });
        let (place, frame) = found?;
        books.cursor = place + 1;
        Some(FrameId(frame))
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
        let buddies = books.ledger.contents(frame.0);
        let last = PAGE_SIZE - usize::from(buddies.last) * CHUNK_BYTES;
        let handles = [0, last].map(|offset| Handle::at(frame.0 as usize * PAGE_SIZE + offset));
        let chunks = [buddies.first, buddies.last];
        let used = [0, 1].map(|i| chunks[i] > 0 && self.header(handles[i]).is(USED));
        for i in 0..BUDDIES {
            if chunks[i] == 0 {
                continue;
            }
            // Without its buddy a large one could seldom be moved to another frame: that eviction would give none back.
            let stays_with_buddy = used[1 - i] && chunks[1 - i] > HALF;
            let (handle, owner, class) = (handles[i], self.header(handles[i]).owner(), books.ledger.class(frame.0));
            tenants.push(Tenant { handle, owner, class, used: used[i] || stays_with_buddy });
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
        lock(&self.books).ledger.usage()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::suite::{allocator, store};
    use super::*;

    #[test]
    fn buddies_share_a_frame_from_both_ends() {
        let (zbud, _) = allocator(16 << 20, Zbud::new);
        let first = store(&zbud, 1, &[1; 1000]);
        let page = store(&zbud, 2, &[2; PAGE_SIZE]);
        let last = store(&zbud, 3, &[3; 3000]);
        assert_eq!((first.offset(), page.offset()), (0, PAGE_SIZE));
        assert_eq!(last.offset(), PAGE_SIZE - 47 * CHUNK_BYTES);
        // Two frames of pages and one of headers.
        assert_eq!(zbud.usage().frame_bytes, 3 * PAGE_SIZE as u64);
        zbud.free(first);
        assert_eq!(store(&zbud, 4, &[4; 1088]), first, "seventeen chunks are free in front of the last buddy");
    }

    #[test]
    fn the_fullest_frame_that_has_room_gets_a_zpage() {
        let (zbud, _) = allocator(16 << 20, Zbud::new);
        let frames: Vec<u32> = [3000, 2200, 3500, 2500].map(|bytes| split(store(&zbud, 0, &vec![7; bytes])).0).into();
        assert_eq!(frames, [0, 1, 2, 3]);
        let frame_of = |bytes: usize| split(store(&zbud, 0, &vec![8; bytes])).0;
        assert_eq!([1500, 400, 1000, 1800].map(frame_of), [3, 2, 0, 1]);
    }

    #[test]
    fn two_evictions_give_any_frame_back_oldest_first() {
        let (zbud, _) = allocator(16 << 20, Zbud::new);
        let pages = [2100, 2100, 2100, 500, 1500];
        let handles = pages.map(|bytes| store(&zbud, 0, &vec![9; bytes]));
        // The last two are buddies of the third, whose frame was on top of its shelf, and of the second.
        assert_eq!(handles.map(|handle| split(handle).0), [0, 1, 2, 2, 1]);
        let mut tenants = Tenants::new();
        let mut coldest = || {
            let frames = zbud.coldest(Class::Persistent, Queue::Small).unwrap();
            zbud.tenants(FrameId(frames.start), &mut tenants);
            (frames, tenants.as_slice().len())
        };
        assert_eq!([coldest(), coldest(), coldest(), coldest()], [(0..1, 1), (2..3, 2), (1..2, 2), (0..1, 1)]);
        zbud.free(handles[2]);
        zbud.free(handles[3]);
        assert_eq!(zbud.give_back(true), 1);
    }

    #[test]
    fn what_lies_beside_a_large_one_in_use_counts_as_used() {
        let (zbud, _) = allocator(16 << 20, Zbud::new);
        let [large, beside, small, other] = [3000, 800, 2000, 1500].map(|bytes| store(&zbud, 0, &vec![9; bytes]));
        assert_eq!([large, beside, small, other].map(|handle| split(handle).0), [0, 0, 1, 1]);
        let mut tenants = Tenants::new();
        let mut used = |frame| {
            zbud.tenants(FrameId(frame), &mut tenants);
            tenants.as_slice().iter().map(|tenant| tenant.used).collect::<Vec<_>>()
        };
        assert_eq!(used(0), [false, false]);
        zbud.read(beside, true, |_| ());
        zbud.read(small, true, |_| ());
        assert_eq!((used(0), used(1)), (vec![false, true], vec![true, false]));
        zbud.read(large, true, |_| ());
        assert_eq!(used(0), [true, true]);
        zbud.keep(large).unwrap();
        assert_eq!(used(0), [false, true]);
    }

    #[test]
    fn only_frames_that_another_one_can_take_in_are_sparse() {
        let (zbud, _) = allocator(16 << 20, Zbud::new);
        let large = store(&zbud, 1, &[1; 2500]);
        let other = store(&zbud, 2, &[2; 1600]);
        assert_eq!([large, other].map(|handle| split(handle).0), [0, 1]);
        assert_eq!(zbud.sparse_frame(PAGE_SIZE), None, "40 and 25 chunks do not fit into one frame");
        let small = store(&zbud, 3, &[3; 1000]);
        assert_eq!(split(small).0, 0);
        zbud.free(large);
        assert_eq!(zbud.sparse_frame(16 * CHUNK_BYTES - 1), None);
        assert_eq!(zbud.sparse_frame(16 * CHUNK_BYTES), Some(FrameId(0)));
        assert_eq!(split(zbud.relocate(small).unwrap()).0, 1);
        assert_eq!((zbud.sparse_frame(PAGE_SIZE), zbud.give_back(true)), (None, 1));
    }
}
