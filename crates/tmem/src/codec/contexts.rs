//! Codec contexts for many threads in bounded memory.
//!
//! There is a fixed number of slots for packing and for expanding. A thread keeps to the slot that it was dealt first
//! and tries its neighbours when that one is busy, so that a lone thread pays one uncontended lock. A context is made
//! the first time its slot is used. Those that expand stay, because a page must come back also when there is no memory
//! for a new one; those that pack go when nobody used them for a while.

use super::{
    CodecKind, Encoding, Expand, GroupExpander, Lz4, Malformed, PACKED_BYTES_MAX, Pack, ZstdExpander, expand_plain,
    packer,
};
use crate::budget::Budget;
use crate::error::{Error, ErrorKind};
use crate::page::Page;
use crate::sync::{Mutex, Rank, lock, try_lock};
use crate::threads::own_slot;

/// How much is done to pack a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// The store's codec.
    Usual,
    /// The store's codec, for what is used no sooner than what is there.
    Aside,
    /// LZ4, whatever the store's codec is.
    Quick,
}

/// A packing context with room for its result.
pub(crate) struct Packer {
    codec: Box<dyn Pack>,
    /// LZ4 for pages that are better packed quickly; comes with the first of them.
    quick: Option<Lz4>,
    packed: Box<[u8; PACKED_BYTES_MAX]>,
    /// Since unused ones were looked for.
    used: bool,
}

impl Packer {
    fn memory_bytes(&self) -> u64 {
        (self.codec.memory_bytes() + self.quick.as_ref().map_or(0, Pack::memory_bytes) + PACKED_BYTES_MAX) as u64
    }

    /// Packs `page`; the result lies in the packer until the next page. A page that does not shrink comes back raw.
    pub(crate) fn compress<'a>(&'a mut self, budget: &Budget, page: &'a Page, effort: Effort) -> (Encoding, &'a [u8]) {
        let codec: &mut dyn Pack = match effort {
            Effort::Usual | Effort::Aside => &mut *self.codec,
            Effort::Quick => self.quick.get_or_insert_with(|| {
                let quick = Lz4::new();
                budget.charge(Pack::memory_bytes(&quick) as u64);
                quick
            }),
        };
        match codec.compress(page, &mut self.packed) {
            Some(len) => (codec.encoding(), &self.packed[..len]),
            None => (Encoding::Raw, page),
        }
    }
}

/// An expanding context; what groups need comes with the first group.
struct Expander {
    zstd: ZstdExpander,
    group: Option<GroupExpander>,
}

pub(crate) struct Contexts {
    kind: CodecKind,
    packers: Box<[Mutex<Option<Packer>>]>,
    expanders: Box<[Mutex<Option<Expander>>]>,
}

impl Contexts {
    /// Contexts for at most `threads` pages in flight each way.
    pub(crate) fn new(kind: CodecKind, threads: usize) -> Self {
        let threads = threads.max(1);
        Self {
            kind,
            packers: (0..threads).map(|_| Mutex::new(Rank::Packer, None)).collect(),
            expanders: (0..threads).map(|_| Mutex::new(Rank::Expander, None)).collect(),
        }
    }

    /// Pages that can be in flight each way.
    pub(crate) fn threads(&self) -> usize {
        self.packers.len()
    }

    /// Runs `with` on a packer that nobody else uses meanwhile.
    ///
    /// # Errors
    /// When the system gives no memory for a context.
    pub(crate) fn packer<R>(&self, budget: &Budget, with: impl FnOnce(&mut Packer) -> R) -> Result<R, Error> {
        let mut slot = own_slot(&self.packers);
        let packer = self.packer_in(&mut slot, budget)?;
        packer.used = true;
        Ok(with(packer))
    }

    /// Makes all packers: for stores that pack only when the budget is full.
    ///
    /// # Errors
    /// When the system gives no memory for a context.
    pub(crate) fn make_packers(&self, budget: &Budget) -> Result<(), Error> {
        self.packers.iter().try_for_each(|slot| self.packer_in(&mut lock(slot), budget).map(|_| ()))
    }

    /// The packer in a slot, made if it is not there.
    fn packer_in<'a>(&self, slot: &'a mut Option<Packer>, budget: &Budget) -> Result<&'a mut Packer, Error> {
        if slot.is_none() {
            let codec = packer(self.kind).ok_or_else(no_memory)?;
            let packer = Packer { codec, quick: None, packed: Box::new([0; PACKED_BYTES_MAX]), used: true };
            budget.charge(packer.memory_bytes());
            *slot = Some(packer);
        }
        Ok(slot.as_mut().expect("filled above"))
    }

    /// Gives back the packers that nobody used since the last call.
    pub(crate) fn release_unused(&self, budget: &Budget) {
        for slot in &self.packers {
            // One that is locked is used.
            let Some(mut slot) = try_lock(slot) else { continue };
            if let Some(packer) = slot.as_mut()
                && !std::mem::take(&mut packer.used)
            {
                budget.refund(packer.memory_bytes());
                *slot = None;
            }
        }
    }

    /// Expands a payload; of a group, the page at `position`.
    ///
    /// # Errors
    /// When it is malformed, or the system gives no memory for a context.
    pub(crate) fn expand(
        &self,
        budget: &Budget,
        encoding: Encoding,
        payload: &[u8],
        position: usize,
        out: &mut Page,
    ) -> Result<(), Error> {
        let answer = if matches!(encoding, Encoding::Zstd | Encoding::Group) {
            let mut slot = own_slot(&self.expanders);
            if slot.is_none() {
                let zstd = ZstdExpander::new().ok_or_else(no_memory)?;
                budget.charge(zstd.memory_bytes() as u64);
                *slot = Some(Expander { zstd, group: None });
            }
            let Expander { zstd, group } = slot.as_mut().expect("filled above");
            if encoding == Encoding::Zstd {
                zstd.expand(payload, out)
            } else {
                let group = group.get_or_insert_with(|| {
                    budget.charge(GroupExpander::MEMORY_BYTES as u64);
                    GroupExpander::new()
                });
                group.expand(zstd, payload, position, out)
            }
        } else {
            expand_plain(encoding, payload, out)
        };
        answer.map_err(|Malformed| ErrorKind::Corrupt { what: "it does not expand to a page" }.into())
    }
}

fn no_memory() -> Error {
    ErrorKind::System { what: "memory for a codec context", source: std::io::ErrorKind::OutOfMemory.into() }.into()
}
