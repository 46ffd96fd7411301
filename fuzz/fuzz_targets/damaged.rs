//! A page in packed form that was damaged on its way: expanding it ends, writes one page or fails, and never panics. Undamaged, it
//! expands to the page that it was.
//!
//! Input: codec, three pairs of position and what to change there, the beginning of the page; the page repeats it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tmem::testing::{BareCodec, expand_any};
use tmem::{CodecKind, PAGE_SIZE};

/// Codec and the number of its encoding.
const CODECS: [(CodecKind, u8); 2] = [(CodecKind::Lz4, 2), (CodecKind::Zstd { level: -1 }, 3)];

fuzz_target!(|input: &[u8]| {
    let Some((head, seed)) = input.split_at_checked(10).filter(|(_, seed)| !seed.is_empty()) else { return };
    let (kind, encoding) = CODECS[usize::from(head[0]) % CODECS.len()];
    let mut page = [0; PAGE_SIZE];
    // Every repetition differs a little, so that there are literals as well as matches.
    page.iter_mut()
        .enumerate()
        .for_each(|(i, byte)| *byte = seed[i % seed.len()].wrapping_add((i / seed.len() % 7) as u8));
    let mut codec = BareCodec::new(kind);
    let mut packed = codec.compress(&page).to_vec();
    let mut out = [0; PAGE_SIZE];
    codec.expand(&packed, &mut out);
    assert_eq!(out, page);
    for change in head[1..].chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % packed.len();
        packed[at] ^= change[2];
    }
    expand_any(encoding, &packed);
    packed.truncate(packed.len() / 2);
    expand_any(encoding, &packed);
});
