//! Blocks: records are gathered, sealed and written together, and what is read was checked before anybody sees it.
//!
//! A block has a head of eight bytes (its length and a check of that), a seal of sixteen, and records. The seal knows the
//! file and the number of the block: one that is missing, doubled or of another file does not open. Both directions use one
//! buffer.

use std::io::{self, Read, Write};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::header::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Counts, HEADER_BYTES, Header};
use super::record::{self, Kind, Record, read_u32};
use crate::error::{Error, ErrorKind};
use crate::tier::{Place, Seal};

const HEAD_BYTES: usize = 8;
/// What a block has before its records.
const PREFIX_BYTES: usize = HEAD_BYTES + 16;
/// The part of its budget that a store takes for the buffer. Of 5 MiB and more, blocks are longer than 256 KiB.
const BUDGET_PART: u64 = 16;

/// How long the blocks of a store with this budget are.
pub(crate) fn block_bytes_for(budget_bytes: u64) -> usize {
    (budget_bytes / BUDGET_PART).clamp(2 * BLOCK_BYTES_MIN as u64, BLOCK_BYTES_MAX as u64) as usize
}

fn head(len: usize, place: Place) -> [u8; HEAD_BYTES] {
    let len = (len as u32).to_le_bytes();
    let check = (xxh3_64_with_seed(&len, place.fill) as u32).to_le_bytes();
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&len);
    head[4..].copy_from_slice(&check);
    head
}

/// Writes a file.
pub(crate) struct BlockWriter<'a> {
    out: &'a mut dyn Write,
    header: Header,
    seal: Seal,
    number: u64,
    block: Vec<u8>,
    counts: Counts,
    written: u64,
}

impl<'a> BlockWriter<'a> {
    /// Bytes that writing takes.
    pub(crate) fn memory_bytes(header: &Header) -> u64 {
        (PREFIX_BYTES + header.block_bytes_max) as u64
    }

    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn new(out: &'a mut dyn Write, header: Header, key: Option<&[u8; 32]>) -> io::Result<Self> {
        let seal = header.seal(key);
        let mut block = Vec::with_capacity(PREFIX_BYTES + header.block_bytes_max);
        block.extend_from_slice(&[0; PREFIX_BYTES]);
        out.write_all(&header.to_bytes(&seal))?;
        let written = HEADER_BYTES as u64;
        Ok(Self { out, header, seal, number: 1, block, counts: Counts::default(), written })
    }

    /// The next record.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn push(&mut self, kind: Kind, slot: u8, bytes: &[u8]) -> io::Result<()> {
        if self.block.len() + record::HEAD_BYTES + bytes.len() > PREFIX_BYTES + self.header.block_bytes_max {
            self.write_block()?;
        }
        self.counts.count(kind, slot, bytes);
        self.block.extend_from_slice(&record::head(kind, slot, bytes));
        self.block.extend_from_slice(bytes);
        Ok(())
    }

    fn write_block(&mut self) -> io::Result<()> {
        let place = self.header.place(self.number);
        let head = head(self.block.len() - PREFIX_BYTES, place);
        let (prefix, payload) = self.block.split_at_mut(PREFIX_BYTES);
        prefix[..HEAD_BYTES].copy_from_slice(&head);
        prefix[HEAD_BYTES..].copy_from_slice(&self.seal.close(place, &head, payload));
        self.out.write_all(&self.block)?;
        self.written += self.block.len() as u64;
        self.number += 1;
        self.block.truncate(PREFIX_BYTES);
        Ok(())
    }

    /// Ends the file and says how long it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        assert_eq!(self.counts, self.header.counts, "a store that nobody else uses does not change");
        self.push(Kind::End, 0, &self.counts.to_bytes())?;
        self.write_block()?;
        self.out.flush()?;
        Ok(self.written)
    }
}

impl Counts {
    /// One more record.
    pub(crate) fn count(&mut self, kind: Kind, slot: u8, bytes: &[u8]) {
        match kind {
            Kind::Pool => self.pools += 1,
            Kind::Zpage(_) => {
                self.zpages += 1;
                self.payload_bytes += bytes.len() as u64;
                match slot {
                    record::SHARED_SLOT => self.shared += 1,
                    _ => self.pages += 1,
                }
            }
            Kind::Shared | Kind::Member => self.pages += 1,
            Kind::Leaf | Kind::End => {}
        }
    }
}

/// Reads a file.
pub(crate) struct BlockReader<'a> {
    from: &'a mut dyn Read,
    header: Header,
    seal: Seal,
    number: u64,
    block: Box<[u8]>,
    /// Bytes of the block's records, and where the next one begins among them.
    len: usize,
    at: usize,
    /// Where the block begins in the file.
    block_at: u64,
}

/// Reads until the buffer is full or the file ends, and says how many bytes that were. The buffer begins at `at` in the file.
fn read_up_to(from: &mut dyn Read, buffer: &mut [u8], at: u64) -> Result<usize, Error> {
    let mut len = 0;
    while len < buffer.len() {
        match from.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ErrorKind::Open { at: at + len as u64, source }.into()),
        }
    }
    Ok(len)
}

/// Fills the buffer.
fn read_all(from: &mut dyn Read, buffer: &mut [u8], at: u64) -> Result<(), Error> {
    match read_up_to(from, buffer, at)? {
        len if len == buffer.len() => Ok(()),
        len => Err(ErrorKind::SavedTorn { at: at + len as u64 }.into()),
    }
}

fn damaged(at: u64, what: &'static str) -> Error {
    ErrorKind::SavedDamaged { at, what }.into()
}

impl<'a> BlockReader<'a> {
    /// Begins to read a file.
    ///
    /// # Errors
    /// When it cannot be read, is no saved store, or is one for another key or version.
    pub(crate) fn new(from: &'a mut dyn Read, key: Option<&[u8; 32]>) -> Result<Self, Error> {
        let mut bytes = [0; HEADER_BYTES];
        let len = read_up_to(from, &mut bytes, 0)?;
        let (header, seal) = Header::open(&bytes[..len], key)?;
        let block = vec![0; PREFIX_BYTES + header.block_bytes_max].into_boxed_slice();
        Ok(Self { from, header, seal, number: 1, block, len: 0, at: 0, block_at: HEADER_BYTES as u64 })
    }

    /// Bytes that reading takes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.block.len() as u64
    }

    /// What the header says of the contents.
    pub(crate) fn counts(&self) -> Counts {
        self.header.counts
    }

    /// The next record.
    ///
    /// # Errors
    /// When the file cannot be read, ends, or is damaged.
    pub(crate) fn next_record(&mut self) -> Result<Record<'_>, Error> {
        if self.at == self.len {
            self.read_block()?;
        }
        let at = self.block_at + (PREFIX_BYTES + self.at) as u64;
        let bytes = &self.block[PREFIX_BYTES..PREFIX_BYTES + self.len][self.at..];
        let record = record::first(bytes, at).ok_or_else(|| damaged(at, "no record begins there"))?;
        self.at += record::HEAD_BYTES + record.bytes.len();
        Ok(record)
    }

    fn read_block(&mut self) -> Result<(), Error> {
        if self.len > 0 {
            self.block_at += (PREFIX_BYTES + self.len) as u64;
        }
        let at = self.block_at;
        read_all(self.from, &mut self.block[..PREFIX_BYTES], at)?;
        let len = read_u32(&self.block, 0) as usize;
        let place = self.header.place(self.number);
        let head = head(len, place);
        if self.block[..HEAD_BYTES] != head {
            return Err(damaged(at, "the head of a block is none, or of another block"));
        }
        if !(1..=self.header.block_bytes_max).contains(&len) {
            return Err(damaged(at, "a block has an impossible length"));
        }
        let (prefix, payload) = self.block.split_at_mut(PREFIX_BYTES);
        let payload = &mut payload[..len];
        read_all(self.from, payload, at + PREFIX_BYTES as u64)?;
        let seal = *prefix[HEAD_BYTES..].first_chunk().expect("the prefix has a head and a seal");
        if !self.seal.open(place, &head, seal, payload) {
            return Err(damaged(at, "the seal of a block is broken"));
        }
        (self.len, self.at) = (len, 0);
        self.number += 1;
        Ok(())
    }

    /// Asserts that nothing follows on the last record.
    ///
    /// # Errors
    /// When something does, or cannot be read.
    pub(crate) fn expect_end(self) -> Result<(), Error> {
        let at = self.block_at + (PREFIX_BYTES + self.at) as u64;
        if self.at < self.len || read_up_to(self.from, &mut [0], at)? > 0 {
            return Err(damaged(at, "it goes on behind its end"));
        }
        Ok(())
    }
}

/// Makes the header, the checks and the seals of a plain file right, whatever else stands in it, and has header and end say
/// what there is: so that a fuzzer gets behind them.
pub(crate) fn repair(bytes: &mut [u8]) {
    let Some((first, mut rest)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() else {
        return;
    };
    let mut header = Header::repaired(first);
    let mut number = 1;
    while let Some((prefix, records)) = rest.split_first_chunk_mut::<PREFIX_BYTES>() {
        let len = (read_u32(prefix, 0) as usize).clamp(1, BLOCK_BYTES_MAX).min(records.len());
        let (records, after) = records.split_at_mut(len);
        let mut at = 0;
        while let Some(record) = record::first(&records[at..], 0) {
            let (kind, slot, len) = (record.kind, record.slot, record.bytes.len());
            header.counts.count(kind, slot, record.bytes);
            let bytes = &mut records[at + record::HEAD_BYTES..][..len];
            if kind == Kind::End {
                bytes.copy_from_slice(&header.counts.to_bytes());
            }
            at += record::HEAD_BYTES + len;
        }
        let place = header.place(number);
        let head = head(len, place);
        prefix[..HEAD_BYTES].copy_from_slice(&head);
        prefix[HEAD_BYTES..].copy_from_slice(&Seal::plain().close(place, &head, records));
        number += 1;
        rest = after;
    }
    *first = header.to_bytes(&Seal::plain());
}
