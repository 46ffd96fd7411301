//! Allocators: how zpages are laid into frames.
//!
//! An allocator knows which bytes of which frame are alive, and nothing of keys: each zpage carries its [`Owner`], the
//! place in the index whose word names it, so that whoever empties a frame can find the word to replace.
//!
//! What the callers guarantee for every method that takes a [`Handle`]: the zpage is alive, and it stays alive during the
//! call because the caller holds the lock of the word that names it (any lock for reading, the exclusive one for freeing,
//! moving and changing owners), or because no word names it yet or any more and the caller is the only one that knows it.

mod any;
mod apart;
#[cfg(all(test, not(loom)))]
mod counting;
mod frame_set;
mod header;
mod holes;
mod ledger;
mod log;
mod segment;
mod size_class;
mod striped;
#[cfg(all(test, not(loom)))]
mod suite;
mod xvmalloc;
mod zbud;
mod zpages;
mod zsmalloc;

pub use any::AllocatorKind;
use any::AnyAllocator;
pub(crate) use header::{HEADER_BYTES, OWNER_BITS};
use log::Log;
use striped::{HANDLE_SHIFT, Striped};
pub(crate) use striped::{PART_BYTES_MAX, PARTS_MAX};
use xvmalloc::Xvmalloc;
use zbud::Zbud;
pub(crate) use zpages::Zpages;
use zsmalloc::Zsmalloc;

use crate::budget::Purpose;
use crate::codec::Encoding;

/// Where a zpage is, as its allocator says it. The low [`TAG_BITS`](Handle::TAG_BITS) are zero, kept free for the tag of
/// the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle(u64);

impl Handle {
    /// Low bits that no allocator uses.
    pub(crate) const TAG_BITS: u32 = 3;

    /// The handle of what lies at an offset in bytes, a multiple of four.
    fn at(offset: usize) -> Self {
        debug_assert!(offset.is_multiple_of(4));
        Self((offset as u64) << 1)
    }

    fn offset(self) -> usize {
        debug_assert_eq!(self.0 >> HANDLE_SHIFT, 0, "a handle of another part");
        (self.0 >> 1) as usize
    }

    /// The handle in a tagged word, whatever its tag.
    pub(crate) fn untagged(word: u64) -> Self {
        Self(word >> Self::TAG_BITS << Self::TAG_BITS)
    }

    /// The handle with a tag of at most [`TAG_BITS`](Handle::TAG_BITS).
    pub(crate) fn tagged(self, tag: u64) -> u64 {
        debug_assert!(tag >> Self::TAG_BITS == 0 && self.0.trailing_zeros() >= Self::TAG_BITS);
        self.0 | tag
    }
}

/// The place whose word names a zpage, as its header says it. See `index` for the meaning of the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) u64);

/// Zpages that share a fate are kept together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// May be dropped at any time.
    Ephemeral,
    /// Has to be kept.
    Persistent,
}

/// Which queue a zpage ages in. The first two are after S3-FIFO (Yang et al., SOSP 2023): what is new has to be used once
/// before it may stay for long. Allocators that keep no order of age have one of them, the small one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// For what is new.
    Small,
    /// For what was used while it was in the small one, or came back soon after it was dropped.
    Main,
    /// For whole pages that are packed when room is needed, in frames of their own. Only `zsmalloc` has it.
    Unpacked,
}

/// A frame of the arena, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameId(pub(crate) u32);

/// There is no room in the budget for the frames that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// A zpage as it is read.
#[derive(Clone, Copy)]
pub(crate) struct Zpage<'a> {
    pub(crate) encoding: Option<Encoding>,
    pub(crate) check: u32,
    /// It was read before, since it was stored or kept.
    pub(crate) used: bool,
    pub(crate) payload: &'a [u8],
}

/// A zpage to be stored.
#[derive(Clone, Copy)]
pub(crate) struct NewZpage<'a> {
    pub(crate) encoding: Encoding,
    pub(crate) check: u32,
    pub(crate) owner: Owner,
    pub(crate) payload: &'a [u8],
}

/// A live zpage that somebody who empties a frame has to deal with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenant {
    pub(crate) handle: Handle,
    pub(crate) owner: Owner,
    pub(crate) class: Class,
    /// It was read since it was stored or moved, or something was that it should not be parted from.
    pub(crate) used: bool,
}

/// The most zpages that can touch one frame: the smallest are headers alone, and one may reach in from the frame before.
pub(crate) const TENANTS_MAX: usize = crate::page::PAGE_SIZE / HEADER_BYTES + 2;

/// The tenants of a frame, in place: emptying a frame allocates nothing.
pub(crate) struct Tenants {
    list: [Tenant; TENANTS_MAX],
    len: usize,
}

impl Tenants {
    pub(crate) fn new() -> Self {
        let nobody = Tenant { handle: Handle(0), owner: Owner(0), class: Class::Persistent, used: false };
        Self { list: [nobody; TENANTS_MAX], len: 0 }
    }

    /// Changes the handles of all tenants.
    fn map(&mut self, to: impl Fn(Handle) -> Handle) {
        for tenant in &mut self.list[..self.len] {
            tenant.handle = to(tenant.handle);
        }
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    fn push(&mut self, tenant: Tenant) {
        self.list[self.len] = tenant;
        self.len += 1;
    }

    pub(crate) fn as_slice(&self) -> &[Tenant] {
        &self.list[..self.len]
    }
}

/// What an allocator holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Live zpages.
    pub(crate) zpages: u64,
    /// Payload bytes of the live zpages.
    pub(crate) payload_bytes: u64,
    /// Bytes of the live zpages with headers and padding.
    pub(crate) live_bytes: u64,
    /// Bytes of frames that are in memory.
    pub(crate) frame_bytes: u64,
    /// Those of them to which nothing has come yet, but will.
    pub(crate) waiting_bytes: u64,
    /// Those of them that hold nothing any more and are the next to be used.
    pub(crate) spare_bytes: u64,
    /// Frames given back to the system so far.
    pub(crate) returned_frames: u64,
    /// Bytes of the allocator's own tables.
    pub(crate) table_bytes: u64,
}

impl Usage {
    /// Bytes in frames that are used, but by no live zpage.
    pub(crate) fn waste_bytes(&self) -> u64 {
        self.frame_bytes.saturating_sub(self.live_bytes + self.waiting_bytes)
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(usages: I) -> Self {
        usages.fold(Self::default(), |sum, usage| Self {
            zpages: sum.zpages + usage.zpages,
            payload_bytes: sum.payload_bytes + usage.payload_bytes,
            live_bytes: sum.live_bytes + usage.live_bytes,
            frame_bytes: sum.frame_bytes + usage.frame_bytes,
            waiting_bytes: sum.waiting_bytes + usage.waiting_bytes,
            spare_bytes: sum.spare_bytes + usage.spare_bytes,
            returned_frames: sum.returned_frames + usage.returned_frames,
            table_bytes: sum.table_bytes + usage.table_bytes,
        })
    }
}

/// How zpages are laid into frames.
pub(crate) trait Allocator: Send + Sync {
    /// Stores a zpage.
    ///
    /// # Errors
    /// When the budget has no room for another frame.
    fn store(&self, class: Class, queue: Queue, zpage: &NewZpage<'_>, purpose: Purpose) -> Result<Handle, NoRoom>;

    /// Shows the zpage to `with`, and remembers that it was used if `used`.
    fn read<R>(&self, handle: Handle, used: bool, with: impl FnOnce(Zpage<'_>) -> R) -> R;

    /// The same for somebody who needs no more than a part of a page, if it lies as it is.
    fn read_part<R>(
        &self,
        handle: Handle,
        used: bool,
        _part: &std::ops::Range<usize>,
        with: impl FnOnce(Zpage<'_>) -> R,
    ) -> R {
        self.read(handle, used, with)
    }

    /// Says that recompression came by. Answers whether the zpage is cold: it was there the last time as well, nobody has
    /// read it in between, and it may still become smaller. That it was read is forgotten if `forget_use`.
    fn age(&self, handle: Handle, forget_use: bool) -> bool;

    /// Says that recompression need not come again.
    fn set_dense(&self, handle: Handle);

    /// How many payload bytes the zpage has.
    fn payload_bytes(&self, handle: Handle) -> u32;

    /// Forgets the zpage.
    fn free(&self, handle: Handle);

    /// Copies the zpage to where survivors of its class go and frees the old place.
    ///
    /// # Errors
    /// When there is no room; the zpage is where it was.
    fn relocate(&self, handle: Handle) -> Result<Handle, NoRoom>;

    /// A second chance: the zpage counts as unused again and as young, and goes to the end of the main queue. Where there is
    /// no order of age it stays where it is.
    ///
    /// # Errors
    /// When there is no room; the zpage is where it was.
    fn keep(&self, handle: Handle) -> Result<Handle, NoRoom>;

    /// Changes the owner that the zpage's header names.
    fn set_owner(&self, handle: Handle, owner: Owner);

    /// The next frame, going round, whose live zpages cover at most `live_bytes_max` of it, but not none, and take less than
    /// the frame elsewhere.
    fn sparse_frame(&self, live_bytes_max: usize) -> Option<FrameId>;

    /// The frames of a region that takes less room elsewhere, where that cannot be won frame by frame.
    fn sparse_region(&self) -> Option<std::ops::Range<u32>> {
        None
    }

    /// When the coldest region of a queue was begun, by the clock that counts regions.
    fn coldest_age(&self, class: Class, queue: Queue) -> Option<u64>;

    /// The frames of the coldest region of a queue, coldest first. From now on nothing new is put there, or what is put there
    /// counts as young.
    fn coldest(&self, class: Class, queue: Queue) -> Option<std::ops::Range<u32>>;

    /// Bytes of live zpages in a queue.
    fn queue_bytes(&self, class: Class, queue: Queue) -> u64;

    /// Lists the live zpages that touch a frame. They may be gone when they are dealt with: the word tells.
    fn tenants(&self, frame: FrameId, tenants: &mut Tenants);

    /// Gives all frames without a live zpage back to the system and says how many; if it is urgent, also those that wait for
    /// new ones.
    fn give_back(&self, urgent: bool) -> u64;

    /// Gives back those frames of a region of the unpacked queue that no live zpage touches, and says how many.
    fn give_back_gaps(&self, _region: std::ops::Range<u32>) -> u64 {
        0
    }

    fn usage(&self) -> Usage;
}
