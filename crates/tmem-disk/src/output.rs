//! Answers that are not sent yet: one buffer, sent when it is full or when there is nothing else to do.

use std::io::{self, Write};

/// Bytes of the buffer.
pub const OUTPUT_BYTES: usize = 128 << 10;

/// Answers that are not sent yet.
pub struct Output {
    bytes: Box<[u8]>,
    used: usize,
}

impl Output {
    pub fn new() -> Self {
        Self { bytes: vec![0; OUTPUT_BYTES].into_boxed_slice(), used: 0 }
    }

    /// Sends all of it.
    pub fn send(&mut self, to: &mut impl Write) -> io::Result<()> {
        if self.used > 0 {
            to.write_all(&self.bytes[..self.used])?;
            self.used = 0;
        }
        Ok(())
    }

    /// Room for `bytes` more, to be filled before anything else is added. What stands there already is anything.
    pub fn room(&mut self, bytes: usize, to: &mut impl Write) -> io::Result<&mut [u8]> {
        if self.used + bytes > OUTPUT_BYTES {
            self.send(to)?;
        }
        Ok(&mut self.bytes[self.used..][..bytes])
    }

    /// What was filled of the room counts.
    pub fn add(&mut self, bytes: usize) {
        self.used += bytes;
        debug_assert!(self.used <= OUTPUT_BYTES);
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8], to: &mut impl Write) -> io::Result<()> {
        self.room(bytes.len(), to)?.copy_from_slice(bytes);
        self.add(bytes.len());
        Ok(())
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.used
    }
}
