//! Records: zpages as they stand in a spill file, byte by byte in `docs/format.md`.
//!
//! A record is a head of 8 bytes, a seal of 16, the payload and padding to a multiple of four. Records follow each other;
//! four zero bytes in place of a head say that the next one begins at the next block.

use super::TIER_BLOCK_BYTES;
use super::seal::{Place, Seal};
use crate::alloc::{OWNER_BITS, Owner};
use crate::codec::{Encoding, PAYLOAD_BYTES_MAX};

/// What is filled in order, and used again when nothing in it is alive.
pub(crate) const SEGMENT_BYTES: u64 = if cfg!(loom) { 64 << 10 } else { 1 << 20 };
/// What offsets and lengths of records are multiples of.
pub(crate) const UNIT_BYTES: u64 = 4;
const HEAD_BYTES: usize = 8;
const SEAL_BYTES: usize = 16;
/// What a record has before its payload.
pub(crate) const PREFIX_BYTES: usize = HEAD_BYTES + SEAL_BYTES;
pub(crate) const RECORD_BYTES_MAX: usize = record_bytes(PAYLOAD_BYTES_MAX);
/// What a segment begins with.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"tmemspil";
const VERSION: u32 = 1;

const ENCODING_BITS: u32 = 3;
const LENGTH_BITS: u32 = 15;
const FILE_BITS: u32 = 2;
const OFFSET_BITS: u32 = 61 - LENGTH_BITS - ENCODING_BITS - FILE_BITS;
const _: () = assert!(PAYLOAD_BYTES_MAX < 1 << LENGTH_BITS);
/// Spill files that a store may have.
pub(crate) const FILES_MAX: usize = 1 << FILE_BITS;
/// The largest file that can be used.
pub(crate) const FILE_BYTES_MAX: u64 = UNIT_BYTES << OFFSET_BITS;

pub(crate) const fn record_bytes(payload_bytes: usize) -> usize {
    PREFIX_BYTES + payload_bytes.next_multiple_of(UNIT_BYTES as usize)
}

/// Where a record lies, and what it takes to read it: all that a word of the index says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where the record begins, in units of four bytes; above them, in which of the files.
    units: u64,
    pub(crate) payload_bytes: u16,
    pub(crate) encoding: Encoding,
}

impl Extent {
    pub(crate) fn new(file: u8, offset: u64, payload_bytes: usize, encoding: Encoding) -> Self {
        debug_assert!(offset.is_multiple_of(UNIT_BYTES) && offset < FILE_BYTES_MAX);
        debug_assert!(payload_bytes <= PAYLOAD_BYTES_MAX && usize::from(file) < FILES_MAX);
        let units = (u64::from(file) << OFFSET_BITS) + offset / UNIT_BYTES;
        Self { units, payload_bytes: payload_bytes as u16, encoding }
    }

    /// The extent in 61 bits: 0-2 encoding, 3-17 payload bytes, 18-58 offset in units, 59-60 file.
    pub(crate) fn to_bits(self) -> u64 {
        self.units << (LENGTH_BITS + ENCODING_BITS)
            | u64::from(self.payload_bytes) << ENCODING_BITS
            | self.encoding as u64
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        let encoding = Encoding::from_u8((bits & ((1 << ENCODING_BITS) - 1)) as u8);
        Self {
            units: bits >> (LENGTH_BITS + ENCODING_BITS),
            payload_bytes: (bits >> ENCODING_BITS & ((1 << LENGTH_BITS) - 1)) as u16,
            encoding: encoding.expect("bits of an extent"),
        }
    }

    /// The number of its file.
    pub(crate) fn file(self) -> u8 {
        (self.units >> OFFSET_BITS) as u8
    }

    /// Where in that file it begins.
    pub(crate) fn offset(self) -> u64 {
        self.units % (1 << OFFSET_BITS) * UNIT_BYTES
    }

    pub(crate) fn segment(self) -> u32 {
        (self.offset() / SEGMENT_BYTES) as u32
    }

    pub(crate) fn record_bytes(self) -> usize {
        record_bytes(self.payload_bytes.into())
    }

    /// Where the record lies in its segment's present filling.
    pub(crate) fn place(self, fill: u64) -> Place {
        Place { fill, units: (self.units % (SEGMENT_BYTES / UNIT_BYTES)) as u32 }
    }
}

/// The head of a record: 0-15 payload bytes, 16-18 encoding, 19-23 zero, 24-63 owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) payload_bytes: usize,
    pub(crate) encoding: Encoding,
    pub(crate) owner: Owner,
}

const OWNER_SHIFT: u32 = 24;
const _: () = assert!(OWNER_SHIFT + OWNER_BITS == u64::BITS);

impl Head {
    pub(crate) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let bits = self.payload_bytes as u64 | (self.encoding as u64) << 16 | self.owner.0 << OWNER_SHIFT;
        bits.to_le_bytes()
    }

    /// `None` for what is no head.
    pub(crate) fn from_bytes(bytes: [u8; HEAD_BYTES]) -> Option<Self> {
        let bits = u64::from_le_bytes(bytes);
        let payload_bytes = (bits & 0xffff) as usize;
        let encoding = Encoding::from_u8((bits >> 16) as u8)?;
        let owner = Owner(bits >> OWNER_SHIFT);
        (1..=PAYLOAD_BYTES_MAX).contains(&payload_bytes).then_some(Self { payload_bytes, encoding, owner })
    }

    /// The head that `bytes` begin with.
    pub(crate) fn at_start(bytes: &[u8]) -> Option<Self> {
        Self::from_bytes(*bytes.first_chunk()?)
    }

    pub(crate) fn record_bytes(self) -> usize {
        record_bytes(self.payload_bytes)
    }
}

/// The parts of a record that head and payload were written to.
fn parts(record: &mut [u8], head: Head) -> Option<(&[u8; HEAD_BYTES], &mut [u8; SEAL_BYTES], &mut [u8])> {
    let (prefix, payload) = record.split_at_mut_checked(PREFIX_BYTES)?;
    let (head_bytes, seal) = prefix.split_first_chunk_mut::<HEAD_BYTES>()?;
    Some((head_bytes, seal.first_chunk_mut()?, payload.get_mut(..head.payload_bytes)?))
}

/// Writes a record without its seal to the start of `record`, which is long enough.
pub(crate) fn write(record: &mut [u8], head: Head, payload: &[u8]) {
    let record = &mut record[..head.record_bytes()];
    record[..HEAD_BYTES].copy_from_slice(&head.to_bytes());
    record[PREFIX_BYTES..PREFIX_BYTES + payload.len()].copy_from_slice(payload);
    record[PREFIX_BYTES + payload.len()..].fill(0);
}

/// Seals a record that was [written](fn@write), and encrypts it if the seal does.
pub(crate) fn close(record: &mut [u8], head: Head, place: Place, seal: &Seal) {
    let (head, tag, payload) = parts(record, head).expect("a record that was written");
    *tag = seal.close(place, head, payload);
}

/// Opens a record in place: its payload, if it is what was sealed for this place.
pub(crate) fn open<'a>(record: &'a mut [u8], head: Head, place: Place, seal: &Seal) -> Option<&'a [u8]> {
    let (head, tag, payload) = parts(record, head)?;
    seal.open(place, head, *tag, payload).then_some(payload)
}

/// What stands at a place where a record may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Record(Head),
    /// No record; the next one may begin at the next block.
    Padding,
    /// Neither.
    Damaged,
    /// More bytes are needed to tell.
    Cut,
}

/// Reads on in a segment.
pub(crate) fn step(bytes: &[u8]) -> Step {
    if bytes.first_chunk() == Some(&[0; UNIT_BYTES as usize]) {
        return Step::Padding;
    }
    match bytes.first_chunk().map(|head| Head::from_bytes(*head)) {
        Some(Some(head)) if head.record_bytes() <= bytes.len() => Step::Record(head),
        Some(Some(_)) | None => Step::Cut,
        Some(None) => Step::Damaged,
    }
}

/// The header of a segment: magic, version, flags (1: encrypted), number of the filling, number of the segment.
pub(crate) fn segment_header(fill: u64, segment: u32, seal: &Seal) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&u32::from(seal.encrypts()).to_le_bytes());
    header[16..24].copy_from_slice(&fill.to_le_bytes());
    header[24..28].copy_from_slice(&segment.to_le_bytes());
    header
}

/// Where the next block begins.
pub(crate) fn next_block(at: usize) -> usize {
    (at + 1).next_multiple_of(TIER_BLOCK_BYTES)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn head(payload_bytes: usize) -> Head {
        Head { payload_bytes, encoding: Encoding::Zstd, owner: Owner((1 << OWNER_BITS) - 5) }
    }

    #[test]
    fn extents_and_heads_survive_packing() {
        for (file, offset, bytes) in
            [(0, 0, 1), (3, FILE_BYTES_MAX - 4, PAYLOAD_BYTES_MAX), (1, SEGMENT_BYTES * 9 + 32, 77)]
        {
            let extent = Extent::new(file, offset, bytes, Encoding::Group);
            assert!(extent.to_bits() < 1 << 61);
            assert_eq!(Extent::from_bits(extent.to_bits()), extent);
            assert_eq!((extent.file(), extent.offset()), (file, offset));
        }
        let head = head(1234);
        assert_eq!(Head::from_bytes(head.to_bytes()), Some(head));
        assert_eq!(Head::from_bytes([0; 8]), None);
        assert_eq!(Head::from_bytes([0xff; 8]), None);
    }

    #[test]
    fn a_record_opens_only_where_and_as_it_was_sealed() {
        for seal in [Seal::plain(), Seal::encrypting().unwrap()] {
            let payload = [9; 99];
            let head = head(payload.len());
            let place = Place { fill: 5, units: 8 };
            let mut record = vec![0xee; head.record_bytes()];
            write(&mut record, head, &payload);
            close(&mut record, head, place, &seal);
            assert_eq!(record[PREFIX_BYTES..][..99] == payload, !seal.encrypts());
            assert_eq!(step(&record), Step::Record(head));
            assert_eq!(step(&record[..50]), Step::Cut);
            assert_eq!(open(&mut record.clone(), head, place, &seal), Some(&payload[..]));
            for wrong in [Place { fill: 6, ..place }, Place { units: 9, ..place }] {
                assert_eq!(open(&mut record.clone(), head, wrong, &seal), None);
            }
            // Every byte counts, but for the padding.
            for at in 0..PREFIX_BYTES + 99 {
                let mut record = record.clone();
                record[at] ^= 0x10;
                let opened = Head::at_start(&record).and_then(|head| open(&mut record, head, place, &seal));
                assert_eq!(opened, None, "byte {at}");
            }
            assert_eq!(open(&mut record[..60], head, place, &seal), None);
        }
    }
}
