//! All zpages of a store: those of single pages in the allocator that it was set up with, groups in a log of their own.
//!
//! Groups are longer than a page, which only the log can hold, and what is in them is cold: a group is freed when the last of
//! its pages goes, so that its log has few holes. The top bit of handles and frame numbers says which of the two.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::striped::{FRAME_BITS, HANDLE_BITS};
use super::{
    Allocator, AllocatorKind, AnyAllocator, Class, FrameId, Handle, Log, NewZpage, NoRoom, Owner, Queue, Tenants,
    Usage, Zpage,
};
use crate::budget::{Budget, Purpose};
use crate::codec::Encoding;
use crate::error::Error;
use crate::frames::Frames;

const GROUP: u64 = 1 << HANDLE_BITS;
const GROUP_FRAME: u32 = 1 << FRAME_BITS;

/// Single pages and groups.
pub(crate) struct Zpages {
    single: AnyAllocator,
    groups: Log,
}

/// Runs the body with the allocator that a handle points to and its own form of the handle.
macro_rules! at {
    ($this:expr, $handle:ident, $it:ident => $body:expr) => {
        if $handle.0 & GROUP == 0 {
            let $it = &$this.single;
            $body
        } else {
            let ($it, $handle) = (&$this.groups, Handle($handle.0 & !GROUP));
            $body
        }
    };
}

fn of_group(handle: Handle) -> Handle {
    Handle(handle.0 | GROUP)
}

fn frames_of_groups(frames: Range<u32>) -> Range<u32> {
    frames.start | GROUP_FRAME..frames.end | GROUP_FRAME
}

impl Zpages {
    /// No zpages yet. `parts` allocators side by side, each with address space for `bytes`, or at least `bytes_min`, and as
    /// much for groups. `clock` counts the regions that they begin.
    ///
    /// # Errors
    /// When the system gives no address space.
    pub(crate) fn new(
        kind: AllocatorKind,
        budget: &Arc<Budget>,
        clock: &Arc<AtomicU64>,
        parts: usize,
        bytes: usize,
        bytes_min: usize,
    ) -> Result<Self, Error> {
        let single = AnyAllocator::new(kind, budget, clock, parts, bytes, bytes_min)?;
        let frames = Frames::reserve(bytes, bytes_min)?;
        Ok(Self { single, groups: Log::new(frames, Arc::clone(budget), Arc::clone(clock)) })
    }
}

impl Allocator for Zpages {
    fn store(&self, class: Class, queue: Queue, zpage: &NewZpage<'_>, purpose: Purpose) -> Result<Handle, NoRoom> {
        match zpage.encoding {
            Encoding::Group => self.groups.store(class, queue, zpage, purpose).map(of_group),
            _ => self.single.store(class, queue, zpage, purpose),
        }
    }

    fn read<R>(&self, handle: Handle, used: bool, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        at!(self, handle, it => it.read(handle, used, with))
    }

    fn read_part<R>(&self, handle: Handle, used: bool, part: &Range<usize>, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        at!(self, handle, it => it.read_part(handle, used, part, with))
    }

    fn age(&self, handle: Handle, forget_use: bool) -> bool {
        at!(self, handle, it => it.age(handle, forget_use))
    }

    fn set_dense(&self, handle: Handle) {
        at!(self, handle, it => it.set_dense(handle));
    }

    fn payload_bytes(&self, handle: Handle) -> u32 {
        at!(self, handle, it => it.payload_bytes(handle))
    }

    fn free(&self, handle: Handle) {
        at!(self, handle, it => it.free(handle));
    }

    fn relocate(&self, handle: Handle) -> Result<Handle, NoRoom> {
        let group = handle.0 & GROUP;
        at!(self, handle, it => it.relocate(handle)).map(|handle| Handle(handle.0 | group))
    }

    fn keep(&self, handle: Handle) -> Result<Handle, NoRoom> {
        let group = handle.0 & GROUP;
        at!(self, handle, it => it.keep(handle)).map(|handle| Handle(handle.0 | group))
    }

    fn set_owner(&self, handle: Handle, owner: Owner) {
        at!(self, handle, it => it.set_owner(handle, owner));
    }

    fn sparse_frame(&self, live_bytes_max: usize) -> Option<FrameId> {
        let single = self.single.sparse_frame(live_bytes_max);
        single.or_else(|| self.groups.sparse_frame(live_bytes_max).map(|frame| FrameId(frame.0 | GROUP_FRAME)))
    }

    fn sparse_region(&self) -> Option<Range<u32>> {
        self.single.sparse_region().or_else(|| self.groups.sparse_region().map(frames_of_groups))
    }

    fn coldest_age(&self, class: Class, queue: Queue) -> Option<u64> {
        let ages = [self.single.coldest_age(class, queue), self.groups.coldest_age(class, queue)];
        ages.into_iter().flatten().min()
    }

    fn coldest(&self, class: Class, queue: Queue) -> Option<Range<u32>> {
        match (self.single.coldest_age(class, queue), self.groups.coldest_age(class, queue)) {
            (Some(single), Some(group)) if single <= group => self.single.coldest(class, queue),
            (Some(_), None) => self.single.coldest(class, queue),
            _ => self.groups.coldest(class, queue).map(frames_of_groups),
        }
    }

    fn queue_bytes(&self, class: Class, queue: Queue) -> u64 {
        self.single.queue_bytes(class, queue) + self.groups.queue_bytes(class, queue)
    }

    fn tenants(&self, frame: FrameId, tenants: &mut Tenants) {
        if frame.0 & GROUP_FRAME == 0 {
            return self.single.tenants(frame, tenants);
        }
        self.groups.tenants(FrameId(frame.0 & !GROUP_FRAME), tenants);
        tenants.map(of_group);
    }

    fn give_back(&self, urgent: bool) -> u64 {
        self.single.give_back(urgent) + self.groups.give_back(urgent)
    }

    fn give_back_gaps(&self, region: Range<u32>) -> u64 {
        self.single.give_back_gaps(region)
    }

    fn usage(&self) -> Usage {
        [self.single.usage(), self.groups.usage()].into_iter().sum()
    }
}
