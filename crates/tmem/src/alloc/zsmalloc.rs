//! Size classes, after the kernel's zsmalloc (Nitin Gupta, `mm/zsmalloc.c`).
//!
//! A *zspage* is a chain of frames cut into slots of one size, the length of the chain chosen so that little is left over at
//! its end. Our frames are neighbours in the address space, so a slot may lie across two of them without the kernel's
//! mapping of pairs. New zpages go where it is fullest, which lets the emptiest zspages run dry by themselves; compaction
//! moves what is left in them. A slot that is freed is filled again in place: under a steady mixture of gets and puts
//! nothing moves and no frame changes hands, which is what the log cannot have.
//!
//! Address space is handed out in *segments* of 64 frames, each cut into zspages of one size class. Ephemeral and persistent
//! zpages have classes of their own, so that a segment can be dropped as a whole, and so have pages that are to be packed later.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::header::{self, DENSE, HEADER_BYTES, Header, USED, zpage_bytes};
use super::size_class::{SIZES, SizeClass, class_of};
use super::{Allocator, Class, FrameId, Handle, NewZpage, NoRoom, Owner, Queue, Tenant, Tenants, Usage, Zpage};
use crate::budget::{Budget, Purpose};
use crate::frames::Frames;
use crate::page::PAGE_SIZE;
use crate::sync::{Mutex, Rank, lock};

const FRAMES: usize = 64;
const SEGMENT_BYTES: usize = FRAMES * PAGE_SIZE;
/// Size classes of ephemeral zpages, then those of persistent ones.
const PACKED_CLASSES: usize = 2 * SIZES;
/// Those, and unpacked pages of both kinds.
const CLASSES: usize = PACKED_CLASSES + 2;
/// Lists by fullness, emptiest first. Full zspages are in none.
const LISTS: usize = 5;
/// The list of zspages that hold nothing; some of their frames may still be in memory.
const EMPTY: u8 = 0;
const FULL: u8 = LISTS as u8;

const NOBODY: u32 = u32::MAX;

/// The account of one zspage.
#[derive(Clone, Copy, Debug)]
struct Zspage {
    /// Slots in use, as bits.
    used: u128,
    /// Frames in memory, as bits.
    resident: u32,
    /// The list it is in, or [`FULL`].
    list: u8,
    before: u32,
    after: u32,
}

/// Sixty-four frames of one class.
struct Segment {
    /// Number in `0..CLASSES`; meaningless while no zspages are there.
    class: usize,
    zspages: Box<[Zspage]>,
    /// Live slots.
    live: u32,
    /// When it was opened, in segments.
    opened: u64,
}

/// What is known of one class: its zspages by fullness, and how full they are together.
#[derive(Clone, Copy)]
struct Account {
    lists: [u32; LISTS],
    /// Zspages that hold something.
    zspages: u32,
    /// Their slots in use.
    live: u32,
}

/// The allocator.
pub(crate) struct Zsmalloc {
    frames: Frames,
    budget: Arc<Budget>,
    clock: Arc<AtomicU64>,
    books: Mutex<Books>,
}

struct Books {
    segments: Vec<Segment>,
    /// Segments without zspages.
    free: Vec<u32>,
    accounts: Box<[Account; CLASSES]>,
    /// Where the search for sparse zspages goes on.
    cursor: usize,
    /// Frames in memory in empty zspages.
    spare_frames: u64,
    /// Bytes of live zpages by [`Class`], but for unpacked ones, and of those.
    live_bytes: [u64; 2],
    unpacked_bytes: [u64; 2],
    usage: Usage,
}

/// A slot, found from a handle.
#[derive(Clone, Copy)]
struct SlotAt {
    segment: usize,
    zspage: usize,
    slot: u32,
    class: usize,
}

fn size_of_class(class: usize) -> &'static SizeClass {
    SizeClass::get(if is_unpacked(class) { SIZES - 1 } else { class % SIZES })
}

fn is_unpacked(class: usize) -> bool {
    class >= PACKED_CLASSES
}

fn kind(class: usize) -> Class {
    let persistent = if is_unpacked(class) { class > PACKED_CLASSES } else { class >= SIZES };
    if persistent { Class::Persistent } else { Class::Ephemeral }
}

fn number(kind: Class, queue: Queue, zpage_bytes: usize) -> usize {
    let persistent = usize::from(kind == Class::Persistent);
    match queue {
        Queue::Unpacked => PACKED_CLASSES + persistent,
        Queue::Small | Queue::Main => class_of(zpage_bytes) + persistent * SIZES,
    }
}

/// Whether the zpages of a segment's class age in a queue.
fn ages_in(number: usize, class: Class, queue: Queue) -> bool {
    kind(number) == class && is_unpacked(number) == (queue == Queue::Unpacked) && queue != Queue::Main
}

impl Zsmalloc {
    /// An empty allocator. `clock` counts the segments opened, in all allocators that share it.
    pub(crate) fn new(frames: Frames, budget: Arc<Budget>, clock: Arc<AtomicU64>) -> Self {
        let nothing = Account { lists: [NOBODY; LISTS], zspages: 0, live: 0 };
        let books = Books {
            segments: Vec::new(),
            free: Vec::new(),
            accounts: Box::new([nothing; CLASSES]),
            cursor: 0,
            spare_frames: 0,
            live_bytes: [0; 2],
            unpacked_bytes: [0; 2],
            usage: Usage { table_bytes: size_of::<[Account; CLASSES]>() as u64, ..Usage::default() },
        };
        budget.charge(books.usage.table_bytes);
        Self { frames, budget, clock, books: Mutex::new(Rank::Books, books) }
    }

    fn header(&self, handle: Handle) -> Header {
        Header::read(&self.frames, handle.offset())
    }

    /// A slot in the fullest zspage of the class that has one free; with `beside`, not in that zspage and in none that is empty.
    fn place(&self, books: &mut Books, class: usize, purpose: Purpose, beside: Option<u32>) -> Result<Handle, NoRoom> {
        let lists = books.accounts[class].lists;
        let partial = lists[1..].iter().rev().find_map(|&head| {
            let is_other = |&id: &u32| id != NOBODY && Some(id) != beside;
            Some(head)
                .filter(is_other)
                .or_else(|| Some(head).filter(|&id| id != NOBODY).map(|id| books.zspage(id).after).filter(is_other))
        });
        let id = match (partial, beside) {
            (Some(id), _) => id,
            (None, Some(_)) => return Err(NoRoom),
            (None, None) if lists[EMPTY as usize] != NOBODY => lists[EMPTY as usize],
            (None, None) => self.open(books, class)?,
        };
        let size = size_of_class(class);
        let (segment, zspage) = split_id(id);
        let page = &books.segments[segment].zspages[zspage];
        let slot = (!page.used).trailing_zeros();
        let missing = size.frames_of(slot) & !page.resident;
        let bytes = u64::from(missing.count_ones()) * PAGE_SIZE as u64;
        if missing != 0 && !self.budget.admit(bytes, purpose) {
            return Err(NoRoom);
        }
        if page.used == 0 {
            books.spare_frames -= u64::from(page.resident.count_ones());
            books.accounts[class].zspages += 1;
        }
        let page = &mut books.segments[segment].zspages[zspage];
        page.resident |= missing;
        page.used |= 1 << slot;
        books.segments[segment].live += 1;
        books.accounts[class].live += 1;
        books.usage.frame_bytes += bytes;
        books.usage.live_bytes += size.share_bytes();
        *books.live_bytes_of(class) += size.share_bytes();
        books.usage.zpages += 1;
        books.file(id, class);
        Ok(Handle::at(segment * SEGMENT_BYTES + size.offset(zspage, slot)))
    }

    /// Cuts a free segment into zspages and says which comes first.
    fn open(&self, books: &mut Books, class: usize) -> Result<u32, NoRoom> {
        let segment = match books.free.pop() {
            Some(number) => number as usize,
            None => {
                if (books.segments.len() + 1) * SEGMENT_BYTES > self.frames.bytes() {
                    return Err(NoRoom);
                }
                books.grow(&self.budget);
                books.segments.push(Segment { class, zspages: Box::default(), live: 0, opened: 0 });
                books.segments.len() - 1
            }
        };
        let count = FRAMES / size_of_class(class).frames();
        let nothing = Zspage { used: 0, resident: 0, list: FULL, before: NOBODY, after: NOBODY };
        let bytes = (count * size_of::<Zspage>()) as u64;
        self.budget.charge(bytes);
        books.usage.table_bytes += bytes;
        let opened = self.clock.fetch_add(1, Relaxed);
        books.segments[segment] = Segment { class, zspages: vec![nothing; count].into(), live: 0, opened };
        let first = (segment * FRAMES) as u32;
        // Filed from the last to the first, so that the first is at the head.
        (0..count as u32).rev().for_each(|i| books.file(first + i, class));
        Ok(first)
    }

    /// Takes a slot out of the books.
    fn remove(&self, books: &mut Books, handle: Handle, header: Header) {
        let at = books.slot(handle);
        let size = size_of_class(at.class);
        let segment = &mut books.segments[at.segment];
        let page = &mut segment.zspages[at.zspage];
        page.used &= !(1 << at.slot);
        segment.live -= 1;
        if page.used == 0 {
            books.spare_frames += u64::from(page.resident.count_ones());
            books.accounts[at.class].zspages -= 1;
        }
        books.accounts[at.class].live -= 1;
        books.usage.live_bytes -= size.share_bytes();
        *books.live_bytes_of(at.class) -= size.share_bytes();
        books.usage.zpages -= 1;
        books.usage.payload_bytes -= header.payload_bytes() as u64;
        books.file((at.segment * FRAMES + at.zspage) as u32, at.class);
    }

    /// Gives back the frames of all empty zspages, and the segments that hold nothing else.
    fn give_back_spare(&self, books: &mut Books) -> u64 {
        let mut given = 0;
        for class in 0..CLASSES {
            let mut id = books.accounts[class].lists[EMPTY as usize];
            while id != NOBODY {
                let (segment, zspage) = split_id(id);
                id = books.segments[segment].zspages[zspage].after;
                let page = &mut books.segments[segment].zspages[zspage];
                let frames = page.resident.count_ones();
                if frames > 0 {
                    page.resident = 0;
                    let first = segment * FRAMES + zspage * size_of_class(class).frames();
                    // SAFETY: the zspage is empty, and the lock of the books keeps new zpages out of it.
                    unsafe { self.frames.release(first, size_of_class(class).frames()) };
                    given += u64::from(frames);
                }
            }
        }
        books.spare_frames = 0;
        books.usage.frame_bytes -= given * PAGE_SIZE as u64;
        books.usage.returned_frames += given;
        self.budget.refund(given * PAGE_SIZE as u64);
        for segment in 0..books.segments.len() {
            self.dissolve(books, segment);
        }
        given
    }

    /// Frees a segment if nothing lives in it and none of its frames is in memory.
    fn dissolve(&self, books: &mut Books, segment: usize) {
        let count = books.segments[segment].zspages.len();
        if count == 0 || books.segments[segment].live > 0 {
            return;
        }
        let class = books.segments[segment].class;
        (0..count).for_each(|zspage| books.unfile((segment * FRAMES + zspage) as u32, class));
        books.segments[segment].zspages = Box::default();
        let bytes = (count * size_of::<Zspage>()) as u64;
        self.budget.refund(bytes);
        books.usage.table_bytes -= bytes;
        books.free.push(segment as u32);
    }
}

impl Books {
    fn live_bytes_of(&mut self, class: usize) -> &mut u64 {
        let bytes = if is_unpacked(class) { &mut self.unpacked_bytes } else { &mut self.live_bytes };
        &mut bytes[kind(class) as usize]
    }

    fn zspage(&self, id: u32) -> &Zspage {
        let (segment, zspage) = split_id(id);
        &self.segments[segment].zspages[zspage]
    }

    fn zspage_mut(&mut self, id: u32) -> &mut Zspage {
        let (segment, zspage) = split_id(id);
        &mut self.segments[segment].zspages[zspage]
    }

    fn slot(&self, handle: Handle) -> SlotAt {
        let at = handle.offset();
        let (segment, offset) = (at / SEGMENT_BYTES, at % SEGMENT_BYTES);
        let class = self.segments[segment].class;
        let (zspage, slot) = size_of_class(class).slot_at(offset);
        SlotAt { segment, zspage, slot, class }
    }

    /// Puts a zspage into the list that its fullness asks for.
    fn file(&mut self, id: u32, class: usize) {
        let page = self.zspage(id);
        let (used, slots) = (page.used.count_ones(), size_of_class(class).slots());
        let list = match used {
            0 => EMPTY,
            _ if used == slots => FULL,
            _ => (1 + used * 4 / slots) as u8,
        };
        if page.list == list {
            return;
        }
        self.unfile(id, class);
        self.zspage_mut(id).list = list;
        if list != FULL {
            let head = std::mem::replace(&mut self.accounts[class].lists[list as usize], id);
            self.zspage_mut(id).after = head;
            if head != NOBODY {
                self.zspage_mut(head).before = id;
            }
        }
    }

    /// Takes a zspage out of its list.
    fn unfile(&mut self, id: u32, class: usize) {
        let Zspage { list, before, after, .. } = *self.zspage(id);
        if list == FULL {
            return;
        }
        if before == NOBODY {
            self.accounts[class].lists[list as usize] = after;
        } else {
            self.zspage_mut(before).after = after;
        }
        if after != NOBODY {
            self.zspage_mut(after).before = before;
        }
        let page = self.zspage_mut(id);
        (page.list, page.before, page.after) = (FULL, NOBODY, NOBODY);
    }

    /// Makes room in the tables for more segments, in steps of an eighth, so that they are never half empty.
    fn grow(&mut self, budget: &Budget) {
        if self.segments.len() < self.segments.capacity() {
            return;
        }
        let before = self.segments.capacity() * (size_of::<Segment>() + size_of::<u32>());
        let more = (self.segments.len() / 8).max(8);
        let capacity = self.segments.len() + more;
        self.segments.reserve_exact(more);
        self.free.reserve_exact(capacity - self.free.len());
        let after = capacity * (size_of::<Segment>() + size_of::<u32>());
        budget.recharge(before as u64, after as u64);
        self.usage.table_bytes += (after - before) as u64;
    }
}

impl Allocator for Zsmalloc {
    fn store(&self, class: Class, queue: Queue, zpage: &NewZpage<'_>, purpose: Purpose) -> Result<Handle, NoRoom> {
        let mut books = lock(&self.books);
        let handle = self.place(&mut books, number(class, queue, zpage_bytes(zpage.payload.len())), purpose, None)?;
        books.usage.payload_bytes += zpage.payload.len() as u64;
        let at = handle.offset();
        Header::of(zpage).write(&self.frames, at);
        // The copy needs no lock: whoever looks at the slot reads only the header, and moves nothing that no word names.
        drop(books);
        // SAFETY: the slot was booked just now, and no word names it yet.
        unsafe { self.frames.write(at + HEADER_BYTES, zpage.payload) };
        Ok(handle)
    }

    fn read<R>(&self, handle: Handle, used: bool, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        let at = handle.offset();
        // SAFETY: the zpage lives during the call, as the trait demands of callers.
        unsafe { header::show((&self.frames, at), (&self.frames, at + HEADER_BYTES), used, with) }
    }

    fn read_part<R>(&self, handle: Handle, used: bool, part: &Range<usize>, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        let at = handle.offset();
        // SAFETY: the zpage lives during the call, as the trait demands of callers.
        unsafe { header::show_part((&self.frames, at), (&self.frames, at + HEADER_BYTES), used, part, with) }
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
        let mut books = lock(&self.books);
        self.remove(&mut books, handle, header);
        // Twice what `give_back` leaves, so that not every free comes here.
        if books.spare_frames > 2 * self.budget.spare_frames_max(books.usage.frame_bytes) {
            self.give_back_spare(&mut books);
        }
    }

    fn relocate(&self, handle: Handle) -> Result<Handle, NoRoom> {
        let header = self.header(handle);
        let mut books = lock(&self.books);
        let at = books.slot(handle);
        let source = (at.segment * FRAMES + at.zspage) as u32;
        let target = self.place(&mut books, at.class, Purpose::Move, Some(source))?;
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

    fn keep(&self, handle: Handle) -> Result<Handle, NoRoom> {
        Header::unmark(&self.frames, handle.offset(), USED);
        Ok(handle)
    }

    fn set_owner(&self, handle: Handle, owner: Owner) {
        Header::set_owner(&self.frames, handle.offset(), owner);
    }

    /// A frame of the emptiest zspage of a class that has more free slots than that zspage has used ones.
    fn sparse_frame(&self, live_bytes_max: usize) -> Option<FrameId> {
        let mut books = lock(&self.books);
        let start = books.cursor;
        let found = (0..CLASSES).map(|i| (start + i) % CLASSES).find_map(|class| {
            let Account { lists, zspages, live } = books.accounts[class];
            let slots = size_of_class(class).slots();
            if zspages * slots - live < slots {
                return None;
            }
            let id = lists[1..].iter().copied().find(|&id| id != NOBODY)?;
            let page = books.zspage(id);
            let full = page.used.count_ones() as usize * PAGE_SIZE / slots as usize;
            (full <= live_bytes_max).then(|| {
                let (segment, zspage) = split_id(id);
                let slot = page.used.trailing_zeros();
                let frame = size_of_class(class).offset(zspage, slot) / PAGE_SIZE;
                (class, FrameId((segment * FRAMES + frame) as u32))
            })
        });
        let (class, frame) = found?;
        books.cursor = class;
        Some(frame)
    }

    fn coldest_age(&self, class: Class, queue: Queue) -> Option<u64> {
        let books = lock(&self.books);
        let alive = books.segments.iter().filter(|segment| ages_in(segment.class, class, queue) && segment.live > 0);
        alive.map(|segment| segment.opened).min()
    }

    fn coldest(&self, class: Class, queue: Queue) -> Option<Range<u32>> {
        let mut books = lock(&self.books);
        let alive = books.segments.iter_mut().enumerate();
        let (coldest, segment) = alive
            .filter(|(_, segment)| ages_in(segment.class, class, queue) && segment.live > 0)
            .min_by_key(|(_, segment)| segment.opened)?;
        // What stays in it, or comes to it from now on, is of a new age.
        segment.opened = self.clock.fetch_add(1, Relaxed);
        let first = (coldest * FRAMES) as u32;
        Some(first..first + FRAMES as u32)
    }

    fn queue_bytes(&self, class: Class, queue: Queue) -> u64 {
        match queue {
            Queue::Small => lock(&self.books).live_bytes[class as usize],
            Queue::Main => 0,
            Queue::Unpacked => lock(&self.books).unpacked_bytes[class as usize],
        }
    }

    fn tenants(&self, frame: FrameId, tenants: &mut Tenants) {
        tenants.clear();
        let books = lock(&self.books);
        let (number, frame) = (frame.0 as usize / FRAMES, frame.0 as usize % FRAMES);
        let segment = &books.segments[number];
        let size = size_of_class(segment.class);
        let zspage = frame / size.frames();
        let Some(page) = segment.zspages.get(zspage) else {
            return;
        };
        for slot in (0..size.slots()).filter(|slot| page.used >> slot & 1 != 0) {
            if size.frames_of(slot) >> (frame % size.frames()) & 1 == 0 {
                continue;
            }
            let handle = Handle::at(number * SEGMENT_BYTES + size.offset(zspage, slot));
            tenants.push(Tenant {
                handle,
                owner: self.header(handle).owner(),
                class: kind(segment.class),
                used: self.header(handle).is(USED),
            });
        }
    }

    fn give_back(&self, urgent: bool) -> u64 {
        let mut books = lock(&self.books);
        if !urgent && books.spare_frames <= self.budget.spare_frames_max(books.usage.frame_bytes) {
            return 0;
        }
        self.give_back_spare(&mut books)
    }

    fn give_back_gaps(&self, region: Range<u32>) -> u64 {
        let mut books = lock(&self.books);
        let number = region.start as usize / FRAMES;
        let size = size_of_class(books.segments[number].class);
        let (mut given, mut empty) = (0, 0);
        for (zspage, page) in books.segments[number].zspages.iter_mut().enumerate() {
            let used = (0..size.slots()).filter(|slot| page.used >> slot & 1 != 0);
            let touched = used.fold(0, |touched, slot| touched | size.frames_of(slot));
            let mut gaps = page.resident & !touched;
            page.resident &= touched;
            given += u64::from(gaps.count_ones());
            empty += if page.used == 0 { u64::from(gaps.count_ones()) } else { 0 };
            while gaps != 0 {
                let (first, count) = (gaps.trailing_zeros(), (gaps >> gaps.trailing_zeros()).trailing_ones());
                gaps &= !(((1_u64 << count) - 1) << first) as u32;
                // SAFETY: no live zpage touches these frames, and the lock of the books keeps new ones out of them.
                unsafe {
                    self.frames.release(number * FRAMES + zspage * size.frames() + first as usize, count as usize)
                };
            }
        }
        books.spare_frames -= empty;
        books.usage.frame_bytes -= given * PAGE_SIZE as u64;
        books.usage.returned_frames += given;
        self.budget.refund(given * PAGE_SIZE as u64);
        self.dissolve(&mut books, number);
        given
    }

    fn usage(&self) -> Usage {
        let books = lock(&self.books);
        Usage { spare_bytes: books.spare_frames * PAGE_SIZE as u64, ..books.usage }
    }
}

/// Zspages are numbered by their segment and their place in it.
fn split_id(id: u32) -> (usize, usize) {
    (id as usize / FRAMES, id as usize % FRAMES)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::suite::{allocator, store};
    use super::*;
    use crate::codec::Encoding;

    #[test]
    fn frames_between_unpacked_pages_go_back_and_come_again() {
        let (zsmalloc, budget) = allocator(16 << 20, Zsmalloc::new);
        let whole = |fill: u8| {
            let payload = vec![fill; PAGE_SIZE];
            let zpage = NewZpage { encoding: Encoding::Raw, check: 0, owner: Owner(fill.into()), payload: &payload };
            zsmalloc.store(Class::Persistent, Queue::Unpacked, &zpage, Purpose::Admit).unwrap()
        };
        let handles: Vec<Handle> = (0..31).map(whole).collect();
        let share = size_of_class(PACKED_CLASSES + 1).share_bytes();
        assert_eq!(zsmalloc.queue_bytes(Class::Persistent, Queue::Unpacked), 31 * share);
        assert_eq!(zsmalloc.queue_bytes(Class::Persistent, Queue::Small), 0);
        assert_eq!(zsmalloc.coldest(Class::Persistent, Queue::Small), None);
        let region = zsmalloc.coldest(Class::Persistent, Queue::Unpacked).unwrap();
        assert_eq!(zsmalloc.give_back_gaps(region.clone()), 0);
        let before = budget.used();
        // Each page lies in two frames, the last of one and the first of the next in the same.
        (10..20).for_each(|number: usize| zsmalloc.free(handles[number]));
        assert_eq!(zsmalloc.give_back_gaps(region.clone()), 9);
        assert_eq!((budget.used(), zsmalloc.usage().spare_bytes), (before - 9 * PAGE_SIZE as u64, 0));
        let again: Vec<Handle> = (10..20).map(whole).collect();
        assert_eq!(budget.used(), before);
        let all = handles[..10].iter().chain(&again).chain(&handles[20..]);
        for (number, handle) in all.clone().enumerate() {
            zsmalloc
                .read(*handle, false, |zpage| assert!(zpage.payload.iter().all(|byte| usize::from(*byte) == number)));
        }
        all.for_each(|handle| zsmalloc.free(*handle));
        assert_eq!(zsmalloc.give_back_gaps(region), 32);
        let usage = zsmalloc.usage();
        assert_eq!((usage.frame_bytes, usage.spare_bytes, usage.live_bytes), (0, 0, 0));
    }

    #[test]
    fn a_freed_slot_is_filled_again_in_place() {
        let (zsmalloc, _) = allocator(16 << 20, Zsmalloc::new);
        let payload = vec![5; 1000];
        let handles: Vec<Handle> = (0..400).map(|owner| store(&zsmalloc, owner, &payload)).collect();
        let before = zsmalloc.usage();
        for handle in handles.iter().step_by(7) {
            zsmalloc.free(*handle);
        }
        let freed = handles.len().div_ceil(7) as u64;
        let mut again: Vec<u64> = (0..freed).map(|owner| store(&zsmalloc, owner, &payload).0).collect();
        again.sort_unstable();
        assert_eq!(again, handles.iter().step_by(7).map(|handle| handle.0).collect::<Vec<_>>());
        assert_eq!(zsmalloc.usage(), before);
    }
}
