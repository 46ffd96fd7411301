//! The file or device behind a disk that caches it.
//!
//! It is read and written past the page cache in effect (`RWF_DONTCACHE`, Linux 6.14, where the file system has it; else the kernel is
//! asked to forget what was read), so that no second copy of what the cache holds stays in RAM; any alignment is allowed all the same.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

use crate::error::Error;

/// `RWF_DONTCACHE` of linux/fs.h.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// What zeroing does to the room of a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It is given back.
    Free,
    /// It stays.
    Keep,
}

/// A file or device that is there already and keeps its size. No other process that asks for a lock uses it meanwhile.
pub struct Backing {
    file: File,
    /// Its size when it was opened.
    pub size_bytes: u64,
    /// The kernel was not heard to refuse [`DONT_CACHE`].
    past_cache: AtomicBool,
}

impl Backing {
    /// Opens it, and locks it (flock(2)).
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::new(format!("--backing {}: {e}", path.display()));
        let refused = |why: &str| Error::new(format!("--backing {}: {why}", path.display()));
        let file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(refused("it is neither a file nor a block device"));
        }
        // What only reads does not harm others who do the same.
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refused("another process uses it (flock)")),
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
        if size_bytes == 0 {
            return Err(refused("it is empty; a disk gets its size from it: truncate --size 8G FILE makes one"));
        }
        Ok(Self { file, size_bytes, past_cache: AtomicBool::new(true) })
    }

    /// Reads bytes that lie in it.
    ///
    /// # Errors
    /// When they cannot be read, or it has become shorter.
    pub fn read(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            let done = self.transfer(|flags| preadv2(&self.file, &mut [IoSliceMut::new(out)], offset, flags))?;
            if done == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "it has become shorter"));
            }
            if !self.past_cache.load(Relaxed) {
                // Advice.
                let _ = fadvise(&self.file, offset, NonZeroU64::new(done as u64), Advice::DontNeed);
            }
            (offset, out) = (offset + done as u64, &mut out[done..]);
        }
        Ok(())
    }

    /// Writes bytes that lie in it.
    ///
    /// # Errors
    /// When they cannot be written; some of them may have been.
    pub fn write(&self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let done = self.transfer(|flags| pwritev2(&self.file, &[IoSlice::new(bytes)], offset, flags))?;
            if done == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            (offset, bytes) = (offset + done as u64, &bytes[done..]);
        }
        Ok(())
    }

    /// Reads or writes, first as if the kernel knew [`DONT_CACHE`].
    fn transfer(&self, mut with: impl FnMut(ReadWriteFlags) -> rustix::io::Result<usize>) -> io::Result<usize> {
        loop {
            let past_cache = self.past_cache.load(Relaxed);
            match with(if past_cache { DONT_CACHE } else { ReadWriteFlags::empty() }) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::INVAL) if past_cache => self.past_cache.store(false, Relaxed),
                other => return other.map_err(io::Error::from),
            }
        }
    }

    /// Makes a stretch of whole pages zero, if it can be done without writing zeroes.
    ///
    /// # Errors
    /// When it fails; the stretch may hold what it held before or zeroes.
    pub fn zero(&self, offset: u64, bytes: u64, room: Room) -> io::Result<bool> {
        let how = match room {
            Room::Free => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Room::Keep => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        loop {
            match fallocate(&self.file, how, offset, bytes) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits until all that was written is safe.
    ///
    /// # Errors
    /// When some of it may be lost.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Where the next data begin, or the next hole, from an offset on; the end if there is none.
    pub fn next(&self, offset: u64, hole: bool) -> u64 {
        let found = seek(&self.file, if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) });
        match found {
            Ok(at) => at.min(self.size_bytes),
            // No more data.
            Err(Errno::NXIO) => self.size_bytes,
            // It cannot tell: then all of it is data.
            Err(_) => {
                if hole {
                    self.size_bytes
                } else {
                    offset
                }
            }
        }
    }
}
