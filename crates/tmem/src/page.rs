//! Pages: the 4096 bytes a user stores, how they are compared and how the trivial ones are recognised.

use xxhash_rust::xxh3;

/// Bytes in a page, and in a frame of the store's own memory.
pub const PAGE_SIZE: usize = 4096;

/// The bytes of one page.
pub type Page = [u8; PAGE_SIZE];

/// A 128-bit XXH3 of the page's bytes.
///
/// Two pages of the same hash can be taken to be equal as long as nobody crafts them to collide: the hash is fast,
/// not cryptographic.
#[must_use]
pub fn page_hash(page: &Page) -> u128 {
    xxh3::xxh3_128(page)
}

/// The check that travels in the header of a zpage: over the stored bytes, which are fewer than the page's.
///
/// Four lanes of folded multiplications, as in wyhash. XXH3 takes 110 ns for a zpage of 1200 bytes, this takes 35 ns, which
/// is what lets every get be checked within a tenth of the codec's own time. It finds damage, it does not withstand forgers.
pub(crate) fn payload_check(payload: &[u8]) -> u32 {
    let mut lanes = CHECK_SEEDS;
    let (blocks, rest) = payload.as_chunks::<64>();
    for block in blocks {
        absorb(&mut lanes, block);
    }
    let mut last = [0; 64];
    last[..rest.len()].copy_from_slice(rest);
    absorb(&mut lanes, &last);
    let [a, b, c, d] = lanes;
    let sum = fold(fold(a, b) ^ payload.len() as u64, fold(c, d) ^ CHECK_SEEDS[0]);
    // Truncation is meant: both halves take part.
    (sum ^ (sum >> 32)) as u32
}

const CHECK_SEEDS: [u64; 4] =
    [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3];

fn absorb(lanes: &mut [u64; 4], block: &[u8; 64]) {
    let (words, _) = block.as_chunks::<8>();
    for (at, lane) in lanes.iter_mut().enumerate() {
        let [low, high] = [words[at * 2], words[at * 2 + 1]].map(u64::from_le_bytes);
        *lane = fold(low ^ *lane, high ^ CHECK_SEEDS[(at + 1) % 4]).wrapping_add(*lane);
    }
}

/// Both halves of a product, mixed.
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The 64-bit pattern that fills the whole page, if there is one.
pub(crate) fn same_filled(page: &Page) -> Option<u64> {
    let (words, _) = page.as_chunks::<8>();
    let first = words[0];
    // Most pages differ early or at their end, so those two places are asked before the scan.
    if words[PAGE_SIZE / 8 - 1] != first {
        return None;
    }
    words.iter().all(|word| *word == first).then(|| u64::from_ne_bytes(first))
}

/// Fills `out` with a 64-bit pattern.
pub(crate) fn fill(pattern: u64, out: &mut Page) {
    let (words, _) = out.as_chunks_mut::<8>();
    words.fill(pattern.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_survive_the_round_trip() {
        for pattern in [0, 1, u64::MAX, 0xaaaa_aaaa_5555_5555] {
            let mut page = [7; PAGE_SIZE];
            fill(pattern, &mut page);
            assert_eq!(same_filled(&page), Some(pattern));
        }
    }

    #[test]
    fn one_other_byte_anywhere_breaks_the_pattern() {
        for at in [0, 1, 8, 2048, 4095] {
            let mut page = [7; PAGE_SIZE];
            page[at] = 8;
            assert_eq!(same_filled(&page), None, "byte {at}");
        }
    }

    #[test]
    fn every_damaged_bit_and_every_lost_byte_changes_the_check() {
        let mut payload: Vec<u8> = (0..1500_u32).map(|i| (i * i >> 3) as u8).collect();
        let check = payload_check(&payload);
        for bit in 0..payload.len() * 8 {
            payload[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(payload_check(&payload), check, "bit {bit}");
            payload[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..payload.len() {
            assert_ne!(payload_check(&payload[..len]), check, "{len} bytes");
        }
        assert_ne!(payload_check(&[0; 100]), payload_check(&[0; 101]));
    }
}
