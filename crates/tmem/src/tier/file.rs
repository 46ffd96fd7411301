//! A file as a tier, past the page cache where its file system allows that.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Tier;

/// A file. It is read and written past the page cache (`O_DIRECT`) where that works, so that no second copy of its
/// contents takes RAM, and holes are punched where space is given back.
#[derive(Debug)]
pub struct FileTier {
    file: File,
    direct: bool,
}

impl FileTier {
    /// A file that was opened for reading and writing. What it holds is overwritten.
    #[must_use]
    pub fn new(file: File) -> Self {
        // SAFETY: the calls take no memory of ours, only a descriptor that is open.
        let direct = unsafe {
            let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
            flags >= 0 && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT) == 0
        };
        Self { file, direct }
    }

    /// A file without a name on the disk of the directory `dir`: whatever becomes of the process, nothing of it is left. Where
    /// the file system has no such files (`O_TMPFILE`), it has a name for a moment.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn unnamed(dir: &Path) -> io::Result<Self> {
        match private().custom_flags(libc::O_TMPFILE).open(dir) {
            Ok(file) => Ok(Self::new(file)),
            // What file systems and kernels without O_TMPFILE answer.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                named_for_a_moment(dir)
            }
            Err(error) => Err(error),
        }
    }

    /// The file or block device at `path`, made if it is not there. What it holds is overwritten.
    ///
    /// # Errors
    /// When it cannot be opened for reading and writing.
    pub fn open(path: &Path) -> io::Result<Self> {
        private().create(true).truncate(false).open(path).map(Self::new)
    }

    /// Whether the page cache is passed by.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }
}

/// For reading and writing; if it is made, nobody else may.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn named_for_a_moment(dir: &Path) -> io::Result<FileTier> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let path = dir.join(format!(".tmem-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)));
        match private().create_new(true).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(FileTier::new(file));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
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
    fn a_file_that_had_a_name_for_a_moment_has_none() {
        let tier = named_for_a_moment(&std::env::temp_dir()).unwrap();
        assert_eq!(tier.file.metadata().unwrap().nlink(), 0);
        tier.write(0, Buffer::new(4096).bytes()).unwrap();
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
