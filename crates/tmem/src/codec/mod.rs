//! Codecs: how the bytes of a page become fewer, and come back.
//!
//! A codec is a context: memory that is set up once and used for one page at a time. [`Contexts`] hands them out. What a
//! zpage was packed with is said by its [`Encoding`], so that a store reads pages of every codec, whatever it writes.
//! Same-filled pages and pages that do not shrink never reach a codec's `expand`.

mod contexts;
mod group;
mod lz4;
mod zstd;

pub(crate) use contexts::{Contexts, Effort};
pub(crate) use group::{GROUP_PAGES, GROUP_PAGES_MIN, GroupExpander, GroupPacker};
pub(crate) use lz4::Lz4;
pub(crate) use zstd::{ZstdExpander, ZstdPacker};

use crate::page::{PAGE_SIZE, Page, fill};

/// Which codec packs new pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodecKind {
    /// LZ4: the fastest to expand, a third less dense than zstd on real pages.
    Lz4,
    /// Zstandard at a level: negative levels leave literals unpacked and expand about twice as fast as level 1.
    Zstd {
        /// The zstd level, -5 to 19.
        level: i32,
    },
}

impl Default for CodecKind {
    /// Zstd -1: on the pages of four real programs it stores 1.3 to 1.7 times as many pages as LZ4 in the same memory
    /// for 1 to 2 us more per get, which is little beside the 8 us and more of a page fault that is served in user space.
    fn default() -> Self {
        Self::Zstd { level: -1 }
    }
}

/// The longest packed form that is kept: a page that does not shrink by a sixteenth is stored as it is, because
/// expanding it would cost more than it saves.
pub(crate) const PACKED_BYTES_MAX: usize = PAGE_SIZE - PAGE_SIZE / 16;

/// The longest payload of a zpage.
pub(crate) const PAYLOAD_BYTES_MAX: usize = group::GROUP_BYTES - group::GROUP_BYTES / 16;

/// How the payload of a zpage is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Encoding {
    /// The page as it is.
    Raw = 0,
    /// Eight bytes that fill the page.
    Fill = 1,
    Lz4 = 2,
    Zstd = 3,
    /// Several pages together; see `group`.
    Group = 4,
}

impl Encoding {
    pub(crate) const ALL: [Self; 5] = [Self::Raw, Self::Fill, Self::Lz4, Self::Zstd, Self::Group];

    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == value)
    }
}

/// A payload that does not expand to exactly one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Packs pages.
pub(crate) trait Pack: Send {
    /// What `expand` must be told about the result.
    fn encoding(&self) -> Encoding;

    /// Packs `page` into `out` and says how long it became; `None` when it does not fit.
    fn compress(&mut self, page: &Page, out: &mut [u8; PACKED_BYTES_MAX]) -> Option<usize>;

    /// Bytes of memory the context takes.
    fn memory_bytes(&self) -> usize;
}

/// Expands what one codec packed.
pub(crate) trait Expand: Send {
    /// Expands `packed`, whatever bytes it holds, into `out`.
    ///
    /// # Errors
    /// When it is not one page in packed form; `out` then holds anything.
    fn expand(&mut self, packed: &[u8], out: &mut Page) -> Result<(), Malformed>;

    /// Bytes of memory the context takes.
    fn memory_bytes(&self) -> usize;
}

/// Expands the encodings that need no context.
pub(crate) fn expand_plain(encoding: Encoding, payload: &[u8], out: &mut Page) -> Result<(), Malformed> {
    match encoding {
        Encoding::Raw => *out = payload.try_into().map_err(|_| Malformed)?,
        Encoding::Fill => fill(u64::from_ne_bytes(payload.try_into().map_err(|_| Malformed)?), out),
        Encoding::Lz4 => return Lz4::expand_page(payload, out),
        Encoding::Zstd | Encoding::Group => return Err(Malformed),
    }
    Ok(())
}

/// A packing context for `kind`, or `None` when the system gives no memory.
pub(crate) fn packer(kind: CodecKind) -> Option<Box<dyn Pack>> {
    Some(match kind {
        CodecKind::Lz4 => Box::new(Lz4::new()),
        CodecKind::Zstd { level } => Box::new(ZstdPacker::new(level)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sample_pages;

    const KINDS: [CodecKind; 4] =
        [CodecKind::Lz4, CodecKind::Zstd { level: -1 }, CodecKind::Zstd { level: 1 }, CodecKind::Zstd { level: 3 }];

    fn expand(encoding: Encoding, packed: &[u8], out: &mut Page) -> Result<(), Malformed> {
        match encoding {
            Encoding::Zstd => ZstdExpander::new().unwrap().expand(packed, out),
            other => expand_plain(other, packed, out),
        }
    }

    #[test]
    fn every_codec_gives_back_what_it_was_given() {
        for kind in KINDS {
            let mut packer = packer(kind).unwrap();
            let mut packed = [0; PACKED_BYTES_MAX];
            let mut shrunk = 0;
            for page in sample_pages(400, 1) {
                let Some(len) = packer.compress(&page, &mut packed) else {
                    continue;
                };
                shrunk += 1;
                let mut out = [0xee; PAGE_SIZE];
                expand(packer.encoding(), &packed[..len], &mut out).unwrap();
                assert_eq!(out, page, "{kind:?}");
            }
            assert!(shrunk > 200, "{kind:?} shrank only {shrunk} of 400 pages");
        }
    }

    #[test]
    fn every_codec_survives_damage_and_truncation() {
        for kind in KINDS {
            let mut packer = packer(kind).unwrap();
            let mut packed = [0; PACKED_BYTES_MAX];
            for (i, page) in sample_pages(60, 2).enumerate() {
                let Some(len) = packer.compress(&page, &mut packed) else {
                    continue;
                };
                let mut out = [0; PAGE_SIZE];
                let cut = len * (i % 7) / 7;
                assert_eq!(expand(packer.encoding(), &packed[..cut], &mut out), Err(Malformed));
                packed[i % len] ^= 1 << (i % 8);
                let _ = expand(packer.encoding(), &packed[..len], &mut out);
            }
        }
    }

    #[test]
    fn a_part_is_what_the_whole_begins_with() {
        let mut packer = Lz4::new();
        let mut packed = [0; PACKED_BYTES_MAX];
        let mut random = crate::testing::Random::new(7);
        for page in sample_pages(200, 3) {
            let Some(len) = packer.compress(&page, &mut packed) else {
                continue;
            };
            for _ in 0..20 {
                let end = random.below(PAGE_SIZE as u64 + 1) as usize;
                let mut out = [0xee; PAGE_SIZE];
                Lz4::expand_to(&packed[..len], end, &mut out).unwrap();
                assert_eq!(out[..end], page[..end]);
            }
            let mut out = [0; PAGE_SIZE];
            assert_eq!(Lz4::expand_to(&packed[..len / 2], PAGE_SIZE, &mut out), Err(Malformed));
            packed[len / 3] ^= 4;
            let _ = Lz4::expand_to(&packed[..len], PAGE_SIZE - 1, &mut out);
        }
    }

    #[test]
    fn the_plain_encodings_check_their_length() {
        let mut out = [0; PAGE_SIZE];
        for encoding in Encoding::ALL {
            assert_eq!(expand_plain(encoding, &[1, 2, 3], &mut out), Err(Malformed));
        }
    }
}
