//! Whether a page is still what it was, without keeping what it was.
//!
//! A page that came back may keep its copy in the store. When it leaves again and has not changed, that copy is good, and
//! nothing needs to be packed or written. Most such copies are on disk, where comparing them would take a read. So what is
//! compared is a hash of 128 bits (XXH3) under a secret that is drawn at the start and that nobody else learns: two different
//! pages have the same one by a chance of 2^-128, and nobody can look for such a pair.

use std::io;

use xxhash_rust::xxh3;

/// What is remembered of a page. In two halves, because a `u128` would take a third more room in a table.
pub type Fingerprint = [u64; 2];

const SECRET_BYTES: usize = 192;

/// Makes fingerprints.
pub struct Fingerprinter {
    secret: [u8; SECRET_BYTES],
}

impl Fingerprinter {
    /// With a secret of its own.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new() -> io::Result<Fingerprinter> {
        let mut secret = [0; SECRET_BYTES];
        // SAFETY: the call fills at most the bytes of `secret`. Up to 256 bytes come in one piece.
        match unsafe { libc::getrandom(secret.as_mut_ptr().cast(), SECRET_BYTES, 0) } {
            n if n == SECRET_BYTES as isize => Ok(Fingerprinter { secret }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The fingerprint of a page.
    pub fn of(&self, page: &tmem::Page) -> Fingerprint {
        let hash = xxh3::xxh3_128_with_secret(page, &self.secret);
        [hash as u64, (hash >> 64) as u64]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_page_and_the_secret_count() {
        let (one, other) = (Fingerprinter::new().unwrap(), Fingerprinter::new().unwrap());
        let mut page = [7; tmem::PAGE_SIZE];
        let before = one.of(&page);
        assert_eq!(one.of(&page), before);
        assert_ne!(other.of(&page), before);
        for bit in 0..page.len() * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            let print = one.of(&page);
            assert!(print[0] != before[0] && print[1] != before[1], "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
