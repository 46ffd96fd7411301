//! Buffers that can be read and written past the page cache.

use super::TIER_BLOCK_BYTES;

/// Bytes that begin at a multiple of [`TIER_BLOCK_BYTES`].
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Box<[u8]>,
    start: usize,
}

impl Buffer {
    /// A buffer of `bytes` bytes, all zero.
    pub(crate) fn new(bytes: usize) -> Self {
        let memory = vec![0; Self::memory_bytes(bytes)].into_boxed_slice();
        // The box does not move when the buffer does.
        let start = memory.as_ptr().align_offset(TIER_BLOCK_BYTES);
        Self { memory, start }
    }

    /// What a buffer of `bytes` bytes takes.
    pub(crate) const fn memory_bytes(bytes: usize) -> usize {
        bytes + TIER_BLOCK_BYTES
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let bytes = self.memory.len() - TIER_BLOCK_BYTES;
        &mut self.memory[self.start..self.start + bytes]
    }

    pub(crate) fn len(&self) -> usize {
        self.memory.len() - TIER_BLOCK_BYTES
    }
}
