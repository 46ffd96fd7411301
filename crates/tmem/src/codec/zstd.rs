//! Zstandard, set up for sources of exactly one page.
//!
//! Frames carry no magic number, no content size and no checksum: the zpage's header says all of it in fewer bytes.
//! The window and the tables are cut down to a page, which keeps a packing context below 100 KiB and does not change
//! what it finds.

use zstd_safe::{CCtx, CParameter, DCtx, DParameter, FrameFormat};

use super::{Encoding, Expand, Malformed, PACKED_BYTES_MAX, Pack};
use crate::page::{PAGE_SIZE, Page};

const WINDOW_LOG: u32 = PAGE_SIZE.trailing_zeros();
/// 2^11 heads for at most 4096 positions: on real pages within 0.3 % of what 2^13 finds, in a quarter of the cache.
const HASH_LOG: u32 = 11;

/// A context that packs sources of at most `1 << window_log` bytes; `None` when there is no memory for it.
pub(super) fn packing_context(level: i32, window_log: u32) -> Option<CCtx<'static>> {
    let mut context = CCtx::try_create()?;
    let level = level.clamp(zstd_safe::min_c_level(), zstd_safe::max_c_level());
    for parameter in [
        CParameter::CompressionLevel(level),
        CParameter::WindowLog(window_log),
        CParameter::Format(FrameFormat::Magicless),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ] {
        context.set_parameter(parameter).expect("the parameters are within zstd's bounds");
    }
    Some(context)
}

/// A packing context for pages.
pub(crate) struct ZstdPacker {
    context: CCtx<'static>,
}

impl ZstdPacker {
    /// `None` when there is no memory for the context.
    pub(crate) fn new(level: i32) -> Option<Self> {
        let mut context = packing_context(level, WINDOW_LOG)?;
        if level <= 1 {
            context.set_parameter(CParameter::HashLog(HASH_LOG)).expect("it is within zstd's bounds");
        }
        // The work space comes with the first page; take it now, so that a put does not allocate and the size is known.
        let _ = context.compress2(&mut [0; PACKED_BYTES_MAX][..], &[0; PAGE_SIZE]);
        Some(Self { context })
    }
}

impl Pack for ZstdPacker {
    fn encoding(&self) -> Encoding {
        Encoding::Zstd
    }

    fn compress(&mut self, page: &Page, out: &mut [u8; PACKED_BYTES_MAX]) -> Option<usize> {
        // The only failure is a destination that is too small, after which the context is ready again.
        self.context.compress2(&mut out[..], page).ok()
    }

    fn memory_bytes(&self) -> usize {
        self.context.sizeof()
    }
}

/// An expanding context.
pub(crate) struct ZstdExpander {
    context: DCtx<'static>,
}

impl ZstdExpander {
    /// `None` when there is no memory for the context.
    pub(crate) fn new() -> Option<Self> {
        let mut context = DCtx::try_create()?;
        context.set_parameter(DParameter::Format(FrameFormat::Magicless)).expect("zstd knows magicless frames");
        Some(Self { context })
    }

    /// Expands any number of pages; answers how many bytes it were.
    pub(super) fn expand_into(&mut self, packed: &[u8], out: &mut [u8]) -> Result<usize, Malformed> {
        self.context.decompress(out, packed).map_err(|_| Malformed)
    }
}

impl Expand for ZstdExpander {
    fn expand(&mut self, packed: &[u8], out: &mut Page) -> Result<(), Malformed> {
        match self.expand_into(packed, out) {
            Ok(PAGE_SIZE) => Ok(()),
            _ => Err(Malformed),
        }
    }

    fn memory_bytes(&self) -> usize {
        self.context.sizeof()
    }
}
