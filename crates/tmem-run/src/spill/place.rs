//! Where a spill file lies, and how large it may grow.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tmem::FileTier;

/// The least that a spill file is good for.
pub(super) const BYTES_MIN: u64 = 4 << 20;
/// Of what is free on the disk, a file whose size nobody said may take this part.
const FREE_PART: u64 = 2;

/// `f_type` of file systems that are RAM themselves.
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// A file that the user named.
pub(super) struct Named {
    path: PathBuf,
    /// Taken when the store gets it.
    file: Mutex<Option<File>>,
    /// It was not there before.
    made: bool,
}

pub(super) enum Place {
    Nowhere,
    /// A file without a name in this directory.
    Folder(PathBuf),
    Named(Named),
}

impl Place {
    /// The file, made or opened; nothing if there is no place for it.
    pub(super) fn open(&self) -> io::Result<Option<FileTier>> {
        match self {
            Self::Nowhere => Ok(None),
            Self::Folder(folder) => FileTier::unnamed(folder).map(Some),
            Self::Named(named) => {
                let file = named.file.lock().unwrap_or_else(PoisonError::into_inner).take();
                let file = file.ok_or_else(|| io::Error::other("it was opened before"))?;
                Ok(Some(FileTier::new(file)))
            }
        }
    }

    /// Removes what the user named and the end of the program leaves without use.
    pub(super) fn clear(&self) {
        if let Self::Named(named) = self {
            // Whoever has moved it meanwhile wants it.
            let _ = if named.made {
                fs::remove_file(&named.path)
            } else {
                OpenOptions::new().write(true).truncate(true).open(&named.path).map(drop)
            };
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("the spill file (none)"),
            Self::Folder(folder) => write!(f, "the spill file in {}", folder.display()),
            Self::Named(named) => write!(f, "the spill file {}", named.path.display()),
        }
    }
}

/// Where a temporary file can be on a real disk, and how large it may grow.
pub fn automatic_folder() -> Option<(PathBuf, u64)> {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let working = std::env::current_dir().ok();
    let folders = named.into_iter().chain([PathBuf::from("/var/tmp")]).chain(working).chain([PathBuf::from("/tmp")]);
    folders.into_iter().find_map(|folder| usable_folder(&folder).ok().map(|bytes| (folder, bytes)))
}

/// Examines what `--spill` says of a path: where that is, and how large a file may grow there.
pub(super) fn at_path(path: &Path, bytes_max: Option<u64>) -> Result<(Place, u64), String> {
    if let Some(bytes) = bytes_max.filter(|bytes| *bytes < BYTES_MIN) {
        return Err(format!("{bytes} bytes are too few: {} MiB is the least that works", BYTES_MIN >> 20));
    }
    match fs::metadata(path) {
        Ok(data) if data.is_dir() => {
            let free = usable_folder(path)?;
            Ok((Place::Folder(path.to_owned()), limited(bytes_max.unwrap_or(free))))
        }
        Ok(data) if !data.is_file() => Err("it is neither a directory nor a regular file: name one".to_owned()),
        Ok(data) if data.len() > 0 => {
            Err("the file exists and is not empty: remove it, or name another one".to_owned())
        }
        Ok(_) => named_file(path, false, bytes_max),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !parent.is_dir() || path.as_os_str().as_bytes().ends_with(b"/") {
                let missing = if parent.is_dir() { path } else { parent };
                return Err(format!("there is no directory {}: make it, or name another one", missing.display()));
            }
            named_file(path, true, bytes_max)
        }
        Err(error) => Err(error.to_string()),
    }
}

fn named_file(path: &Path, make: bool, bytes_max: Option<u64>) -> Result<(Place, u64), String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = free_bytes(if make { parent } else { path })?;
    let bytes_max = limited(bytes_max.unwrap_or(free / FREE_PART));
    if bytes_max < BYTES_MIN {
        return Err(too_little(bytes_max));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(make).mode(0o600);
    let file = options.open(path).map_err(|error| format!("it cannot be opened for writing: {error}"))?;
    if file.try_lock().is_err() {
        return Err("another tmem uses it: name another file".to_owned());
    }
    let file = Mutex::new(Some(file));
    Ok((Place::Named(Named { path: path.to_owned(), file, made: make }), bytes_max))
}

fn too_little(bytes: u64) -> String {
    format!("it may take {} KiB there, too little: make room, or name another disk", bytes >> 10)
}

/// How large a file in this directory may grow, if it can be made.
fn usable_folder(folder: &Path) -> Result<u64, String> {
    let bytes = limited(free_bytes(folder)? / FREE_PART);
    if bytes < BYTES_MIN {
        return Err(too_little(bytes));
    }
    match FileTier::unnamed(folder) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("no file can be made in it: {error}")),
    }
}

/// Bytes that are free where `path` lies.
fn free_bytes(path: &Path) -> Result<u64, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "it has a zero byte in its name".to_owned())?;
    // SAFETY: an all-zero statfs is valid.
    let mut data: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends with a zero byte, and `data` is a live local that the call fills.
    if unsafe { libc::statfs(name.as_ptr(), &raw mut data) } != 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    if matches!(data.f_type, TMPFS_MAGIC | RAMFS_MAGIC) {
        return Err("it is RAM itself (tmpfs), which would save nothing: name a directory on a disk".to_owned());
    }
    Ok(data.f_bavail * data.f_bsize as u64)
}

/// No more than this process may write: passing that limit would end it by a signal.
fn limited(bytes: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live local that the call fills.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) } {
        0 => bytes.min(limit.rlim_cur),
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_no_disk() {
        if Path::new("/dev/shm").is_dir() {
            assert!(usable_folder(Path::new("/dev/shm")).unwrap_err().contains("tmpfs"));
            assert!(at_path(Path::new("/dev/shm/file"), Some(8 << 20)).is_err_and(|why| why.contains("tmpfs")));
            assert!(!Path::new("/dev/shm/file").exists());
        }
    }
}
