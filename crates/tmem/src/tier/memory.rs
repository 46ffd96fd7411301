//! Memory as a tier, for tests: a store that spills there saves nothing.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use super::Tier;
use crate::sync::AtomicU64;

/// A tier in memory.
#[derive(Debug)]
pub struct MemoryTier {
    bytes: Mutex<Vec<u8>>,
    /// Operations so far. Under loom, to count them is where other threads can come in between, as they do while a disk works.
    operations: AtomicU64,
}

impl Default for MemoryTier {
    fn default() -> Self {
        Self { bytes: Mutex::default(), operations: AtomicU64::new(0) }
    }
}

impl MemoryTier {
    /// An empty one. It grows as it is written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with<R>(&self, offset: u64, len: u64, with: impl FnOnce(&mut [u8]) -> R) -> io::Result<R> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        let end = usize::try_from(offset + len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        Ok(with(&mut bytes[end - len as usize..end]))
    }
}

impl Tier for MemoryTier {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(offset, bytes.len() as u64, |place| place.copy_from_slice(bytes))
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.with(offset, bytes.len() as u64, |place| bytes.copy_from_slice(place))
    }

    /// What was discarded reads as something else than before: whoever still needs it is to notice.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.with(offset, bytes, |place| place.fill(0xdd))
    }
}
