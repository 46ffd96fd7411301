//! What a client sent and nobody has looked at yet: one buffer, filled by reads as large as they come.

use std::io;

use crate::polling::{Hear, Polling};

/// Bytes of the buffer.
pub const INPUT_BYTES: usize = 128 << 10;

/// Bytes that have arrived.
pub struct Input {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
    polling: Polling,
}

impl Input {
    pub fn new() -> Self {
        Self { bytes: vec![0; INPUT_BYTES].into_boxed_slice(), from: 0, to: 0, polling: Polling::new() }
    }

    /// What is there.
    pub fn held(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    /// Forgets the first bytes of it.
    pub fn consume(&mut self, bytes: usize) {
        self.from += bytes;
        debug_assert!(self.from <= self.to);
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
    }

    /// Waits until `bytes` are there. `false` if the client has ended before the first of them.
    ///
    /// # Errors
    /// When the connection fails, or ends in the middle.
    pub fn wait_for(&mut self, bytes: usize, from: &mut impl Hear) -> io::Result<bool> {
        debug_assert!(bytes <= INPUT_BYTES);
        if self.from + bytes > INPUT_BYTES {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        while self.held().len() < bytes {
            match self.polling.read(from, &mut self.bytes[self.to..]) {
                Ok(0) if self.held().is_empty() => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => self.to += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}
