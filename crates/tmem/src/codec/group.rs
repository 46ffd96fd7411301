//! Groups: neighbouring pages packed together, for what is cold.
//!
//! A payload: one byte that says how many pages, then a zstd frame of all of them. Neighbours share their vocabulary, so that
//! a group takes 10 to 25 % less than its pages one by one; reading one page of it costs expanding the whole group, which is
//! kept until the next one, because whoever reads a cold page tends to read its neighbours.

use xxhash_rust::xxh3;
use zstd_safe::CCtx;

use super::zstd::packing_context;
use super::{Malformed, PAYLOAD_BYTES_MAX, ZstdExpander};
use crate::page::{PAGE_SIZE, Page};

/// The most pages of a group. 16 would take 1 to 4 % less and cost twice as much to read: see `docs/decisions.md`.
pub(crate) const GROUP_PAGES: usize = 8;
/// Groups of fewer pages win too little.
pub(crate) const GROUP_PAGES_MIN: usize = 4;
pub(super) const GROUP_BYTES: usize = GROUP_PAGES * PAGE_SIZE;
/// Level 1: what level 3 wins on some pages it loses on others, and higher levels take five times as long for 3 %.
const LEVEL: i32 = 1;

/// A packing context with room for the pages and for their packed form.
pub(crate) struct GroupPacker {
    context: CCtx<'static>,
    pages: Box<[u8; GROUP_BYTES]>,
    len: usize,
    packed: Box<[u8; PAYLOAD_BYTES_MAX]>,
}

impl GroupPacker {
    /// `None` when there is no memory for the context.
    pub(crate) fn new() -> Option<Self> {
        let context = packing_context(LEVEL, GROUP_BYTES.trailing_zeros())?;
        let mut packer = Self { context, pages: Box::new([0; _]), len: GROUP_PAGES, packed: Box::new([0; _]) };
        // The work space comes with the first group; take it now, so that its size is known.
        packer.pack();
        Some(packer)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.context.sizeof() + GROUP_BYTES + PAYLOAD_BYTES_MAX
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Room for one more page, at most [`GROUP_PAGES`].
    pub(crate) fn next_page(&mut self) -> &mut Page {
        let (pages, _) = self.pages.as_chunks_mut();
        self.len += 1;
        &mut pages[self.len - 1]
    }

    /// Packs the pages since the last [`clear`](Self::clear); `None` when they do not shrink.
    pub(crate) fn pack(&mut self) -> Option<&[u8]> {
        self.packed[0] = self.len as u8;
        let len = self.context.compress2(&mut self.packed[1..], &self.pages[..self.len * PAGE_SIZE]).ok()?;
        Some(&self.packed[..=len])
    }
}

/// An expanding context that keeps the group it expanded last.
pub(crate) struct GroupExpander {
    pages: Box<[u8; GROUP_BYTES]>,
    /// The hash and the pages of the payload that was expanded last.
    last: Option<(u128, usize)>,
}

impl GroupExpander {
    pub(crate) fn new() -> Self {
        Self { pages: Box::new([0; _]), last: None }
    }

    pub(crate) const MEMORY_BYTES: usize = GROUP_BYTES;

    /// Expands one page of a group, whatever bytes the payload holds.
    ///
    /// # Errors
    /// When it is not a group with such a page.
    pub(crate) fn expand(
        &mut self,
        zstd: &mut ZstdExpander,
        payload: &[u8],
        position: usize,
        out: &mut Page,
    ) -> Result<(), Malformed> {
        let hash = xxh3::xxh3_128(payload);
        if self.last.is_none_or(|(last, _)| last != hash) {
            self.last = None;
            let (&count, packed) = payload.split_first().ok_or(Malformed)?;
            let count = usize::from(count);
            if !(1..=GROUP_PAGES).contains(&count) {
                return Err(Malformed);
            }
            if zstd.expand_into(packed, &mut self.pages[..count * PAGE_SIZE])? != count * PAGE_SIZE {
                return Err(Malformed);
            }
            self.last = Some((hash, count));
        }
        let (_, count) = self.last.ok_or(Malformed)?;
        let (pages, _) = self.pages[..count * PAGE_SIZE].as_chunks();
        *out = *pages.get(position).ok_or(Malformed)?;
        Ok(())
    }
}
