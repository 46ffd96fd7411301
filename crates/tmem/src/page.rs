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

/// The check that travels in the header of a zpage: over the stored bytes, which are fewer than the page's, so that it
/// takes 30 to 50 ns.
pub(crate) fn payload_check(payload: &[u8]) -> u32 {
    // Truncation is meant: 32 of the 64 bits are kept.
    xxh3::xxh3_64(payload) as u32
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
}
