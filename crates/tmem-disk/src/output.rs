//! Answers that are not sent yet: one buffer, sent when it is full or when there is nothing else to do.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of the buffer.
pub const OUTPUT_BYTES: usize = 128 << 10;

/// Answers wait for others up to so many bytes, or so many answers: the client begins on the first while we are at the next.
const SEND_BYTES: usize = 64 << 10;
const SEND_ANSWERS: u32 = 16;

/// The way to the client, which the threads of a connection share.
pub struct Replies<W>(Mutex<Output<W>>);

struct Output<W> {
    to: W,
    bytes: Box<[u8]>,
    used: usize,
    answers: u32,
}

impl<W: Write> Replies<W> {
    pub fn new(to: W) -> Self {
        Self(Mutex::new(Output { to, bytes: vec![0; OUTPUT_BYTES].into_boxed_slice(), used: 0, answers: 0 }))
    }

    /// As long as it is held nobody else answers, so that what belongs together stays together.
    pub fn lock(&self) -> Sending<'_, W> {
        // Whoever panicked has added nothing that was not whole.
        Sending(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The way to the client, for one of the threads.
pub struct Sending<'a, W>(MutexGuard<'a, Output<W>>);

impl<W: Write> Sending<'_, W> {
    /// Sends all that waits.
    pub fn send(&mut self) -> io::Result<()> {
        let Output { to, bytes, used, answers } = &mut *self.0;
        *answers = 0;
        if *used > 0 {
            // What fails is not sent again: the connection is over.
            let waiting = std::mem::take(used);
            to.write_all(&bytes[..waiting])?;
        }
        Ok(())
    }

    /// An answer is complete: sends, if enough waits.
    pub fn complete(&mut self) -> io::Result<()> {
        self.0.answers += 1;
        if self.0.used >= SEND_BYTES || self.0.answers >= SEND_ANSWERS { self.send() } else { Ok(()) }
    }

    /// Room for `bytes` more, to be filled before anything else is added. What stands there already is anything.
    pub fn room(&mut self, bytes: usize) -> io::Result<&mut [u8]> {
        if self.0.used + bytes > OUTPUT_BYTES {
            self.send()?;
        }
        let used = self.0.used;
        Ok(&mut self.0.bytes[used..][..bytes])
    }

    /// The first bytes of the room were filled and count.
    pub fn add(&mut self, bytes: usize) {
        self.0.used += bytes;
        debug_assert!(self.0.used <= OUTPUT_BYTES);
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.room(bytes.len())?.copy_from_slice(bytes);
        self.add(bytes.len());
        Ok(())
    }
}
