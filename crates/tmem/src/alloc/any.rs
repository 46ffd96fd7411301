//! The allocator that a store was set up with.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::{
    Allocator, Class, FrameId, Handle, Log, NewZpage, NoRoom, Owner, Queue, Striped, Tenants, Usage, Xvmalloc, Zbud,
    Zpage, Zsmalloc,
};
use crate::budget::{Budget, Purpose};
use crate::error::Error;
use crate::frames::Frames;

/// How zpages are laid into frames. The numbers behind the default are in `docs/decisions.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AllocatorKind {
    /// Segments filled in order of time: pages of one age lie together and can be taken back together. Random gets that
    /// remove pages leave holes, which are closed by moving what lies beside them.
    Log,
    /// Size classes, after the kernel's zsmalloc: a hole is filled in place by the next page of its size, so that steady
    /// use moves nothing. A frame mixes pages of all ages.
    #[default]
    Zsmalloc,
    /// At most two pages in a frame, after the kernel's zbud: frames come back in the order of age, each for two evictions at
    /// most. Never holds more than twice what would fit uncompressed: for stores whose memory is asked back often.
    Zbud,
    /// Pages of just their size in the holes that others left, merged when they are freed, after xvmalloc of the first
    /// zram. No page crosses a frame: dense where pages pack to less than a third, with room lost where they do not. A
    /// frame mixes pages of all ages.
    Xvmalloc,
}

/// One of the allocators, in as many parts as threads may want to use at once.
pub(crate) enum AnyAllocator {
    Log(Striped<Log>),
    Zsmalloc(Striped<Zsmalloc>),
    Zbud(Striped<Zbud>),
    Xvmalloc(Striped<Xvmalloc>),
}

impl AnyAllocator {
    /// `parts` allocators side by side, each with address space for `bytes`, or at least `bytes_min`. `clock` counts the
    /// regions that they begin.
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
        let frames: Result<Vec<_>, Error> = (0..parts).map(|_| Frames::reserve(bytes, bytes_min)).collect();
        let frames = frames?;
        Ok(match kind {
            AllocatorKind::Log => Self::Log(striped(frames, budget, clock, Log::new)),
            AllocatorKind::Zsmalloc => Self::Zsmalloc(striped(frames, budget, clock, Zsmalloc::new)),
            AllocatorKind::Zbud => Self::Zbud(striped(frames, budget, clock, Zbud::new)),
            AllocatorKind::Xvmalloc => Self::Xvmalloc(striped(frames, budget, clock, Xvmalloc::new)),
        })
    }
}

/// A part for each range of frames, all with one clock.
fn striped<A: Allocator>(
    frames: Vec<Frames>,
    budget: &Arc<Budget>,
    clock: &Arc<AtomicU64>,
    new: impl Fn(Frames, Arc<Budget>, Arc<AtomicU64>) -> A,
) -> Striped<A> {
    let parts = frames.into_iter().map(|frames| new(frames, Arc::clone(budget), Arc::clone(clock)));
    Striped::new(parts.collect())
}

macro_rules! either {
    ($this:expr, $it:ident => $body:expr) => {
        match $this {
            AnyAllocator::Log($it) => $body,
            AnyAllocator::Zsmalloc($it) => $body,
            AnyAllocator::Zbud($it) => $body,
            AnyAllocator::Xvmalloc($it) => $body,
        }
    };
}

impl Allocator for AnyAllocator {
    fn store(&self, class: Class, queue: Queue, zpage: &NewZpage<'_>, purpose: Purpose) -> Result<Handle, NoRoom> {
        either!(self, it => it.store(class, queue, zpage, purpose))
    }

    fn read<R>(&self, handle: Handle, used: bool, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        either!(self, it => it.read(handle, used, with))
    }

    fn read_part<R>(&self, handle: Handle, used: bool, part: &Range<usize>, with: impl FnOnce(Zpage<'_>) -> R) -> R {
        either!(self, it => it.read_part(handle, used, part, with))
    }

    fn age(&self, handle: Handle, forget_use: bool) -> bool {
        either!(self, it => it.age(handle, forget_use))
    }

    fn set_dense(&self, handle: Handle) {
        either!(self, it => it.set_dense(handle));
    }

    fn payload_bytes(&self, handle: Handle) -> u32 {
        either!(self, it => it.payload_bytes(handle))
    }

    fn free(&self, handle: Handle) {
        either!(self, it => it.free(handle));
    }

    fn relocate(&self, handle: Handle) -> Result<Handle, NoRoom> {
        either!(self, it => it.relocate(handle))
    }

    fn keep(&self, handle: Handle) -> Result<Handle, NoRoom> {
        either!(self, it => it.keep(handle))
    }

    fn set_owner(&self, handle: Handle, owner: Owner) {
        either!(self, it => it.set_owner(handle, owner));
    }

    fn sparse_frame(&self, live_bytes_max: usize) -> Option<FrameId> {
        either!(self, it => it.sparse_frame(live_bytes_max))
    }

    fn sparse_region(&self) -> Option<Range<u32>> {
        either!(self, it => it.sparse_region())
    }

    fn coldest_age(&self, class: Class, queue: Queue) -> Option<u64> {
        either!(self, it => it.coldest_age(class, queue))
    }

    fn coldest(&self, class: Class, queue: Queue) -> Option<Range<u32>> {
        either!(self, it => it.coldest(class, queue))
    }

    fn queue_bytes(&self, class: Class, queue: Queue) -> u64 {
        either!(self, it => it.queue_bytes(class, queue))
    }

    fn tenants(&self, frame: FrameId, tenants: &mut Tenants) {
        either!(self, it => it.tenants(frame, tenants));
    }

    fn give_back(&self, urgent: bool) -> u64 {
        either!(self, it => it.give_back(urgent))
    }

    fn give_back_gaps(&self, region: Range<u32>) -> u64 {
        either!(self, it => it.give_back_gaps(region))
    }

    fn usage(&self) -> Usage {
        either!(self, it => it.usage())
    }
}
