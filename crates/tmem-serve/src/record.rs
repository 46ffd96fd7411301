//! Records: small values as they lie in pages, each with its key, its database and a check.

use tmem::PAGE_SIZE;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The longest record of a small value.
pub const RECORD_BYTES_MAX: usize = PAGE_SIZE / 2;
/// Twelve bits for the length of its key, twelve for that of its value, eight for its database and one; and a check of all of it.
const HEAD_BYTES: usize = 8;
const CHECK_AT: usize = 4;
const LENGTH_BITS: u32 = 12;
const _: () = assert!(RECORD_BYTES_MAX < 1 << LENGTH_BITS);

/// A small value with its key.
pub struct Record<'a> {
    pub db: u8,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

impl<'a> Record<'a> {
    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        HEAD_BYTES + self.key.len() + self.value.len()
    }

    /// The record at the front of bytes; none where nothing was written.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let head = u32::from_le_bytes(*head.first_chunk()?);
        let length = |at: u32| (head >> at) as usize & ((1 << LENGTH_BITS) - 1);
        let db = ((head >> (2 * LENGTH_BITS)) as u8).checked_sub(1)?;
        let (key, rest) = rest.split_at_checked(length(0))?;
        Some(Self { db, key, value: rest.get(..length(LENGTH_BITS))? })
    }

    /// The record that these bytes are, if they are just as they were written.
    pub fn read_whole(bytes: &'a [u8]) -> Option<Self> {
        let check = u32::from_le_bytes(*bytes.get(CHECK_AT..HEAD_BYTES)?.first_chunk()?);
        Self::read(bytes).filter(|record| record.bytes() == bytes.len() && check_of(bytes) == check)
    }

    /// Writes it to just so many bytes.
    pub fn write(&self, out: &mut [u8]) {
        let lengths = self.key.len() as u32 | (self.value.len() as u32) << LENGTH_BITS;
        let head = lengths | u32::from(self.db + 1) << (2 * LENGTH_BITS);
        out[..CHECK_AT].copy_from_slice(&head.to_le_bytes());
        out[HEAD_BYTES..HEAD_BYTES + self.key.len()].copy_from_slice(self.key);
        out[HEAD_BYTES + self.key.len()..].copy_from_slice(self.value);
        let check = check_of(out);
        out[CHECK_AT..HEAD_BYTES].copy_from_slice(&check.to_le_bytes());
    }
}

/// The check of a record of which everything else is written.
fn check_of(record: &[u8]) -> u32 {
    let head = record.first_chunk().map_or(0, |head| u32::from_le_bytes(*head));
    // Truncation is meant: 32 of the 64 bits are kept.
    xxh3_64_with_seed(&record[HEAD_BYTES..], head.into()) as u32
}
