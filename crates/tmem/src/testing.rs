//! Random numbers from a seed, pages that look like those of real programs, and a tier that is lent. For tests and benchmarks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::page::{PAGE_SIZE, Page};
use crate::tier::{Homing, Tier};

/// A SplitMix64 sequence.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u64
    }
}

/// A tier that is lent, until its owner wants it back.
#[derive(Debug)]
pub struct Lent<T> {
    tier: T,
    ends: Arc<AtomicBool>,
}

impl<T> Lent<T> {
    /// The same tier, lent.
    pub fn new(tier: T) -> Self {
        Self { tier, ends: Arc::default() }
    }

    /// Set to true it has what lies there leave.
    pub fn ends(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ends)
    }
}

impl<T: Tier> Tier for Lent<T> {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.tier.write(offset, bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.tier.read(offset, bytes)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.tier.discard(offset, bytes)
    }

    fn homing(&self) -> Homing {
        if self.ends.load(Relaxed) { Homing::Leave } else { Homing::Return }
    }
}

/// `count` pages of mixed kinds: heap objects, text, pointers, counters, noise, and same-filled ones.
pub fn sample_pages(count: usize, seed: u64) -> impl Iterator<Item = Page> {
    let mut random = Random::new(seed);
    (0..count).map(move |_| sample_page(&mut random))
}

/// One such page.
pub fn sample_page(random: &mut Random) -> Page {
    let mut page = [0; PAGE_SIZE];
    match random.below(16) {
        0 => page.fill(random.below(3) as u8),
        1 => page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.number().to_le_bytes())),
        2..=5 => text(random, &mut page),
        6..=8 => pointers(random, &mut page),
        _ => objects(random, &mut page),
    }
    page
}

const WORDS: [&str; 24] = [
    "name", "value", "id", "user", "true", "false", "null", "address", "street", "count", "time", "list", "index",
    "page", "frame", "store", "the", "of", "and", "key", "data", "type", "size", "next",
];

fn text(random: &mut Random, page: &mut Page) {
    let mut at = 0;
    while at < PAGE_SIZE {
        let word = WORDS[random.below(24) as usize];
        let piece = match random.below(4) {
            0 => format!("\"{word}\": {}, ", random.below(100_000)),
            _ => format!("{word} "),
        };
        let len = piece.len().min(PAGE_SIZE - at);
        page[at..at + len].copy_from_slice(&piece.as_bytes()[..len]);
        at += len;
    }
}

fn pointers(random: &mut Random, page: &mut Page) {
    let base = 0x7f00_0000_0000 | random.below(1 << 20) << 20;
    for word in page.chunks_exact_mut(8) {
        let value = match random.below(4) {
            0 => 0,
            _ => base + random.below(1 << 17) * 16,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// Objects of 64 bytes: a type, a reference count, a length, a hash, some bytes of text.
fn objects(random: &mut Random, page: &mut Page) {
    let kinds: [u64; 3] = std::array::from_fn(|_| 0x55d0_0000_0000 + random.below(1 << 16) * 64);
    for object in page.chunks_exact_mut(64) {
        let header = [
            1 + random.below(2),
            kinds[random.below(3) as usize],
            random.below(16),
            random.number() >> (8 * random.below(8)),
        ];
        for (word, value) in object.chunks_exact_mut(8).zip(header) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        let word = WORDS[random.below(24) as usize].as_bytes();
        object[40..40 + word.len()].copy_from_slice(word);
    }
}

/// Expands any bytes as if they were the payload of a zpage; says whether they were a page. For the fuzzer.
///
/// # Panics
/// When there is no memory for a context.
pub fn expand_any(encoding: u8, payload: &[u8]) -> bool {
    use crate::codec::{Encoding, Expand, GroupExpander, ZstdExpander, expand_plain};
    let mut out = [0; PAGE_SIZE];
    match Encoding::from_u8(encoding % 5) {
        Some(Encoding::Zstd) => {
            let mut expander = ZstdExpander::new().expect("there is memory");
            expander.expand(payload, &mut out).is_ok()
        }
        Some(Encoding::Group) => {
            let mut zstd = ZstdExpander::new().expect("there is memory");
            GroupExpander::new().expand(&mut zstd, payload, usize::from(encoding / 5), &mut out).is_ok()
        }
        Some(encoding) => {
            if encoding == Encoding::Lz4 {
                // A part of it as well, that ends somewhere.
                let _ = crate::codec::Lz4::expand_to(payload, payload.len() * 16 % (PAGE_SIZE + 1), &mut out);
            }
            expand_plain(encoding, payload, &mut out).is_ok()
        }
        None => false,
    }
}

/// Reads any bytes as if they were a segment of a spill file, opens each record, and expands it whether its seal is right or
/// not. Says how many records there were. For the fuzzer.
pub fn read_segment_any(bytes: &mut [u8]) -> usize {
    let mut records = 0;
    crate::tier::walk_any(bytes, |encoding, payload| {
        records += 1;
        expand_any(encoding, payload);
    });
    records
}

/// Makes checks, seals and counts of a plain saved store right, whatever else stands in it: so that a fuzzer gets behind them.
pub fn repair_saved(bytes: &mut [u8]) {
    crate::saved::repair(bytes);
}

/// A codec by itself, with its context but without a store: what the store's own time is measured against.
pub struct BareCodec {
    packer: Box<dyn crate::codec::Pack>,
    zstd: crate::codec::ZstdExpander,
    packed: Box<[u8; crate::codec::PACKED_BYTES_MAX]>,
}

impl BareCodec {
    /// A context for packing and one for expanding.
    ///
    /// # Panics
    /// When there is no memory for them.
    #[must_use]
    pub fn new(kind: crate::CodecKind) -> Self {
        Self {
            packer: crate::codec::packer(kind).expect("there is memory"),
            zstd: crate::codec::ZstdExpander::new().expect("there is memory"),
            packed: Box::new([0; _]),
        }
    }

    /// The packed form, or the page itself if it does not shrink.
    pub fn compress<'a>(&'a mut self, page: &'a Page) -> &'a [u8] {
        match self.packer.compress(page, &mut self.packed) {
            Some(len) => &self.packed[..len],
            None => page,
        }
    }

    /// The page of a packed form.
    ///
    /// # Panics
    /// When it is none.
    pub fn expand(&mut self, packed: &[u8], out: &mut Page) {
        use crate::codec::{Encoding, Expand, expand_plain};
        let done = match self.packer.encoding() {
            _ if packed.len() == PAGE_SIZE => expand_plain(Encoding::Raw, packed, out),
            Encoding::Zstd => self.zstd.expand(packed, out),
            encoding => expand_plain(encoding, packed, out),
        };
        done.expect("the packed form is whole");
    }
}
