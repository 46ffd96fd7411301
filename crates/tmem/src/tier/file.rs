//! A file as a tier, past the page cache where its file system allows that.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::Tier;

/// A file. It is read and written past the page cache (`O_DIRECT`) where that works, so that no second copy of its
/// contents takes RAM, and holes are punched where space is given back.
#[derive(Debug)]
pub struct FileTier {
    file: File,
    direct: bool,
}

impl FileTier {
    /// A file without a name on the disk of the directory `dir`: whatever becomes of the process, nothing of it is left.
    ///
    /// # Errors
    /// When the directory cannot be written, or its file system has no files without names (`O_TMPFILE`).
    pub fn unnamed(dir: &Path) -> io::Result<Self> {
        Self::open_with(dir, OpenOptions::new().read(true).write(true).mode(0o600), libc::O_TMPFILE)
    }

    /// The file or block device at `path`, made if it is not there. What it holds is overwritten.
    ///
    /// # Errors
    /// When it cannot be opened for reading and writing.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600), 0)
    }

    fn open_with(path: &Path, options: &mut OpenOptions, flags: i32) -> io::Result<Self> {
        match options.custom_flags(flags | libc::O_DIRECT).open(path) {
            Ok(file) => Ok(Self { file, direct: true }),
            // What a file system without O_DIRECT answers.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(Self { file: options.custom_flags(flags).open(path)?, direct: false })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the page cache is passed by.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }
}

impl Tier for FileTier {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let file_offset = |bytes: u64| i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
        let (offset, bytes) = (file_offset(offset)?, file_offset(bytes)?);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the call takes no memory of ours, only a descriptor that is open as long as `self`.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, bytes) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::buffer::Buffer;
    use super::*;

    #[test]
    fn a_file_gives_back_what_was_written_and_its_holes() {
        let tier = FileTier::unnamed(&std::env::temp_dir()).unwrap();
        assert_eq!(tier.file.metadata().unwrap().nlink(), 0);
        let mut buffer = Buffer::new(64 << 10);
        buffer.bytes().fill(7);
        tier.write(1 << 20, buffer.bytes()).unwrap();
        buffer.bytes().fill(0);
        tier.read((1 << 20) + 4096, &mut buffer.bytes()[..4096]).unwrap();
        assert!(buffer.bytes()[..4096].iter().all(|byte| *byte == 7));
        let blocks = tier.file.metadata().unwrap().blocks();
        tier.discard(1 << 20, 64 << 10).unwrap();
        assert!(tier.file.metadata().unwrap().blocks() + 128 <= blocks);
        assert!(tier.read(2 << 20, &mut buffer.bytes()[..4096]).is_err(), "behind the end");
    }

    #[test]
    fn a_file_with_a_name_stays() {
        let path = std::env::temp_dir().join(format!("tmem-file-tier-{}", std::process::id()));
        let tier = FileTier::open(&path).unwrap();
        tier.write(0, Buffer::new(4096).bytes()).unwrap();
        drop(tier);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
        std::fs::remove_file(&path).unwrap();
        assert!(FileTier::unnamed(&path).is_err());
    }
}
