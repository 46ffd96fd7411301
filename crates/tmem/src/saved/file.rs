//! Files that are there as a whole or not at all.
//!
//! What is new is written beside the old file, made safe, and renamed onto it. Whatever happens before the rename, the old
//! file is as it was; what is left over by a process that was killed is used again by the next one.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Only the owner may read it.
const MODE: u32 = 0o600;

/// A file that is being written, and removed again unless it is [committed](Self::commit).
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    committed: bool,
}

impl NewFile {
    /// Begins a file that is to replace the one at `path`, if there is one.
    ///
    /// # Errors
    /// When its directory cannot be written, or somebody else is writing the same file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut temporary_name = std::ffi::OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(".new");
        let temporary = path.with_file_name(temporary_name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)?;
        file.try_lock().map_err(io::Error::from)?;
        // Between opening and locking, it may have been renamed by whoever had the lock.
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        if id(file.metadata()?) != id(std::fs::symlink_metadata(&temporary)?) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // What was left over may have been somebody else's: then this fails.
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.set_len(0)?;
        Ok(Self { file, path: path.to_owned(), temporary, committed: false })
    }

    /// Puts the file in its place. When this returns, it is there also after a power failure.
    ///
    /// # Errors
    /// When the disk fails; then the old file is in its place, or if only its directory could not be made safe, the new one.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.committed = true;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about it.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_committed_and_nobody_else_writes_it_meanwhile() {
        let dir = std::env::temp_dir().join(format!("tmem-new-file-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("file");
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name()).collect();
            names.sort();
            names
        };
        // What a process left over that was killed.
        std::fs::write(dir.join(".file.new"), "left over, and longer").unwrap();
        let mut file = NewFile::create(&path).unwrap();
        assert_eq!(NewFile::create(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        file.write_all(b"first").unwrap();
        assert!(!path.exists());
        file.commit().unwrap();
        assert_eq!(names(), ["file"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let mut file = NewFile::create(&path).unwrap();
        file.write_all(b"second").unwrap();
        drop(file);
        assert_eq!(names(), ["file"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");

        // A link that somebody else made is not followed.
        std::os::unix::fs::symlink(dir.join("elsewhere"), dir.join(".file.new")).unwrap();
        assert!(NewFile::create(&path).is_err());
        assert!(NewFile::create(Path::new("/")).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
