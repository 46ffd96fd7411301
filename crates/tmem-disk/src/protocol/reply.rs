//! Heads of answers to commands.

use super::CONTEXT_ID;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const DONE: u16 = 1;

/// A stretch of an export, and whether something is stored there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long it is.
    pub bytes: u32,
    /// Nothing is stored there: it reads as zeroes.
    pub hole: bool,
}

impl Extent {
    /// Bytes of an encoded extent.
    pub const BYTES: usize = 8;
    /// `NBD_STATE_HOLE` and `NBD_STATE_ZERO`.
    const HOLE_AND_ZERO: u32 = 3;

    /// As it stands in an answer.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.bytes.to_be_bytes());
        out[4..].copy_from_slice(&(if self.hole { Self::HOLE_AND_ZERO } else { 0 }).to_be_bytes());
        out
    }
}

/// What is in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// Nothing.
    None,
    /// Bytes of the export.
    Data {
        /// From where.
        offset: u64,
        /// How many.
        bytes: u32,
    },
    /// Zeroes.
    Hole {
        /// From where.
        offset: u64,
        /// How many.
        bytes: u32,
    },
    /// So many extents.
    Status {
        /// How many.
        extents: u32,
    },
    /// A refusal with so many bytes of text.
    Error {
        /// The number of the error.
        errno: u32,
        /// Bytes of the text.
        text_bytes: u16,
    },
}

/// The head of an answer in one piece. Data follow it if it was a read that went well.
pub fn simple_head(errno: u32, cookie: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&errno.to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// The head of a chunk, with all but what follows: data, extents or text. The bytes of it that count are the first of the array.
pub fn chunk_head(cookie: u64, done: bool, kind: ChunkKind) -> ([u8; 32], usize) {
    let mut out = [0; 32];
    let (number, fixed, follows) = match kind {
        ChunkKind::None => (0, 0, 0),
        ChunkKind::Data { offset, bytes } => {
            out[20..28].copy_from_slice(&offset.to_be_bytes());
            (1, 8, bytes)
        }
        ChunkKind::Hole { offset, bytes } => {
            out[20..28].copy_from_slice(&offset.to_be_bytes());
            out[28..32].copy_from_slice(&bytes.to_be_bytes());
            (2, 12, 0)
        }
        ChunkKind::Status { extents } => {
            out[20..24].copy_from_slice(&CONTEXT_ID.to_be_bytes());
            (5, 4, extents * Extent::BYTES as u32)
        }
        ChunkKind::Error { errno, text_bytes } => {
            out[20..24].copy_from_slice(&errno.to_be_bytes());
            out[24..26].copy_from_slice(&text_bytes.to_be_bytes());
            (1 << 15 | 1, 6, text_bytes.into())
        }
    };
    out[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&(if done { DONE } else { 0 }).to_be_bytes());
    out[6..8].copy_from_slice(&(number as u16).to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..20].copy_from_slice(&(fixed + follows).to_be_bytes());
    (out, 20 + fixed as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_have_the_length_that_they_say() {
        let kinds = [
            (ChunkKind::None, 0),
            (ChunkKind::Data { offset: 1, bytes: 7 }, 7),
            (ChunkKind::Hole { offset: 1, bytes: 7 }, 0),
            (ChunkKind::Status { extents: 3 }, 24),
            (ChunkKind::Error { errno: 5, text_bytes: 9 }, 9),
        ];
        for (kind, follows) in kinds {
            let (head, bytes) = chunk_head(3, true, kind);
            let said = u32::from_be_bytes(head[16..20].try_into().unwrap());
            assert_eq!(said as usize, bytes - 20 + follows, "{kind:?}");
        }
    }
}
