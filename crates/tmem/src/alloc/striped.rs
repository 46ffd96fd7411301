//! Several allocators of a kind side by side, so that threads that store at the same time do not meet in one account.
//!
//! A thread stores where its number says; everything else goes where the handle points. The part's number stands in the
//! high bits of handles and frame numbers.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Allocator, Class, FrameId, Handle, NewZpage, NoRoom, Owner, Queue, Tenants, Usage, Zpage};
use crate::budget::Purpose;
use crate::threads::thread_number;

pub(crate) const PARTS_MAX: usize = 4;
pub(super) const HANDLE_SHIFT: u32 = 44;
const FRAME_SHIFT: u32 = 29;
/// Bits of the handles and of the frame numbers of all parts.
pub(super) const HANDLE_BITS: u32 = HANDLE_SHIFT + 2;
pub(super) const FRAME_BITS: u32 = 31;
/// Bytes that one part can address.
pub(crate) const PART_BYTES_MAX: usize = 1 << 41;

const _: () =
    assert!(PART_BYTES_MAX / crate::page::PAGE_SIZE <= 1 << FRAME_SHIFT && PARTS_MAX << FRAME_SHIFT <= 1 << FRAME_BITS);

pub(crate) struct Striped<A> {
    parts: Box<[A]>,
    /// Where the search for sparse frames goes on.
    cursor: AtomicUsize,
}

impl<A: Allocator> Striped<A> {
    /// `parts` holds one to [`PARTS_MAX`] allocators.
    pub(crate) fn new(parts: Box<[A]>) -> Self {
        assert!((1..=PARTS_MAX).contains(&parts.len()));
        Self { parts, cursor: AtomicUsize::new(0) }
    }

    fn part(&self, handle: Handle) -> (&A, u64, Handle) {
        let part = handle.0 >> HANDLE_SHIFT;
        (&self.parts[part as usize], part, Handle(handle.0 & ((1 << HANDLE_SHIFT) - 1)))
    }
}

fn handle_in(part: u64, handle: Handle) -> Handle {
    Handle(part << HANDLE_SHIFT | handle.0)
}

fn frames_in(part: u32, frames: Range<u32>) -> Range<u32> {
    let first = part << FRAME_SHIFT;
    first | frames.start..first | frames.end
}

impl<A: Allocator> Allocator for Striped<A> {
    fn store(&self, class: Class, queue: Queue, zpage: &NewZpage<'_>, purpose: Purpose) -> Result<Handle, NoRoom> {
        let part = thread_number() % self.parts.len();
        let handle = self.parts[part].store(class, queue, zpage, purpose)?;
        Ok(handle_in(part as u64, handle))
    }

    fn read<R>(&self, handle: Handle, used: bool, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        let (part, _, handle) = self.part(handle);
        part.read(handle, used, with)
    }

    fn read_part<R>(&self, handle: Handle, used: bool, part: &Range<usize>, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        let (of, _, handle) = self.part(handle);
        of.read_part(handle, used, part, with)
    }

    fn age(&self, handle: Handle, forget_use: bool) -> bool {
        let (part, _, handle) = self.part(handle);
        part.age(handle, forget_use)
    }

    fn set_dense(&self, handle: Handle) {
        let (part, _, handle) = self.part(handle);
        part.set_dense(handle);
    }

    fn payload_bytes(&self, handle: Handle) -> u32 {
        let (part, _, handle) = self.part(handle);
        part.payload_bytes(handle)
    }

    fn free(&self, handle: Handle) {
        let (part, _, handle) = self.part(handle);
        part.free(handle);
    }

    fn relocate(&self, handle: Handle) -> Result<Handle, NoRoom> {
        let (part, number, handle) = self.part(handle);
        Ok(handle_in(number, part.relocate(handle)?))
    }

    fn keep(&self, handle: Handle) -> Result<Handle, NoRoom> {
        let (part, number, handle) = self.part(handle);
        Ok(handle_in(number, part.keep(handle)?))
    }

    fn set_owner(&self, handle: Handle, owner: Owner) {
        let (part, _, handle) = self.part(handle);
        part.set_owner(handle, owner);
    }

    fn sparse_frame(&self, live_bytes_max: usize) -> Option<FrameId> {
        let start = self.cursor.fetch_add(1, Relaxed);
        (0..self.parts.len()).find_map(|distance| {
            let part = (start + distance) % self.parts.len();
            let frame = self.parts[part].sparse_frame(live_bytes_max)?;
            Some(FrameId((part as u32) << FRAME_SHIFT | frame.0))
        })
    }

    fn sparse_region(&self) -> Option<Range<u32>> {
        self.parts.iter().zip(0..).find_map(|(part, number)| Some(frames_in(number, part.sparse_region()?)))
    }

    fn coldest_age(&self, class: Class, queue: Queue) -> Option<u64> {
        self.parts.iter().filter_map(|part| part.coldest_age(class, queue)).min()
    }

    fn coldest(&self, class: Class, queue: Queue) -> Option<Range<u32>> {
        let ages = self.parts.iter().map(|part| part.coldest_age(class, queue)).enumerate();
        let (part, _) = ages.filter_map(|(part, age)| Some((part, age?))).min_by_key(|(_, age)| *age)?;
        let frames = self.parts[part].coldest(class, queue)?;
        Some(frames_in(part as u32, frames))
    }

    fn queue_bytes(&self, class: Class, queue: Queue) -> u64 {
        self.parts.iter().map(|part| part.queue_bytes(class, queue)).sum()
    }

    fn tenants(&self, frame: FrameId, tenants: &mut Tenants) {
        let part = frame.0 >> FRAME_SHIFT;
        self.parts[part as usize].tenants(FrameId(frame.0 & ((1 << FRAME_SHIFT) - 1)), tenants);
        tenants.map(|handle| handle_in(part.into(), handle));
    }

    fn give_back(&self, urgent: bool) -> u64 {
        self.parts.iter().map(|part| part.give_back(urgent)).sum()
    }

    fn give_back_gaps(&self, region: Range<u32>) -> u64 {
        let (part, mask) = (region.start >> FRAME_SHIFT, (1 << FRAME_SHIFT) - 1);
        self.parts[part as usize].give_back_gaps(region.start & mask..((region.end - 1) & mask) + 1)
    }

    fn usage(&self) -> Usage {
        self.parts.iter().map(Allocator::usage).sum()
    }
}
