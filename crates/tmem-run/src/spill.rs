//! The spill file of a supervisor: where it lies, when it is opened, what is said when it takes nothing more.
//!
//! What `--spill` says is examined before the program starts, so that a bad path costs nobody a run. The store gets the file
//! when there is something to spill for the first time: a program that fits its budget costs no disk. A temporary file has
//! no name, so that nothing of it outlives us, however we end; one that the user named is removed again at the end.

use std::ffi::CString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tmem::{FaultyTier, FileTier, Reclaim, Short, Store, Tier};

use crate::error::Error;
use crate::options::{Options, Spill, SpillFaults};

/// The least that a spill file is good for.
const BYTES_MIN: u64 = 4 << 20;
/// Of what is free on the disk, a file whose size nobody said may take this part.
const FREE_PART: u64 = 2;
/// Frames that one step takes back from the store: about what one write takes.
const STEP_FRAMES: u64 = 64;
/// Copies of pages that are not away stay in the file while this part of it is free.
const ROOMY_PART: u64 = 4;
/// How long a file that took nothing is left alone.
const REST: Duration = Duration::from_millis(50);

/// `f_type` of file systems that are RAM themselves.
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// A file that the user named.
struct Named {
    path: PathBuf,
    /// Taken when the store gets it.
    file: Mutex<Option<File>>,
    /// It was not there before.
    made: bool,
}

enum Place {
    Nowhere,
    /// A file without a name in this directory.
    Folder(PathBuf),
    Named(Named),
}

/// The spill file, opened or not.
pub struct SpillFile {
    place: Place,
    bytes_max: u64,
    plain: bool,
    faults: Option<SpillFaults>,
    /// Whether the store has it; set at the first need.
    opened: OnceLock<bool>,
    /// Why the last write failed.
    failure: Arc<Mutex<Option<io::Error>>>,
    read_bytes: Arc<AtomicU64>,
    told: AtomicBool,
    cleared: AtomicBool,
    taken_back: AtomicU64,
    /// Bytes that the file can take, as far as is known.
    capacity: AtomicU64,
    roomy: AtomicBool,
    /// Steps under way.
    steps: AtomicU32,
    rest_until: Mutex<Option<Instant>>,
}

impl SpillFile {
    /// Examines what `--spill` says.
    ///
    /// # Errors
    /// When a file or directory that was named cannot be used.
    pub fn prepare(options: &Options) -> Result<SpillFile, Error> {
        let file = Self::examine(&options.spill, options.spill_plain, options.spill_faults.as_ref())?;
        if options.progress && options.spill == Spill::Auto && matches!(file.place, Place::Nowhere) {
            eprintln!("tmem: no disk to spill to: what does not fit, compressed, stays in RAM");
        }
        Ok(file)
    }

    fn examine(spill: &Spill, plain: bool, faults: Option<&SpillFaults>) -> Result<SpillFile, Error> {
        let (place, bytes_max) = match spill {
            Spill::Off => (Place::Nowhere, 0),
            Spill::Auto => {
                automatic_folder().map_or((Place::Nowhere, 0), |(folder, bytes)| (Place::Folder(folder), bytes))
            }
            Spill::At { path, bytes_max } => {
                let refuse = |why: String| Error::own(format!("--spill {}: {why}", path.display()));
                at_path(path, *bytes_max).map_err(refuse)?
            }
        };
        if let Some(faults) = faults {
            if matches!(place, Place::Nowhere) {
                return Err(Error::own(
                    "--spill-faults: there is no spill file that they could happen to: see --spill",
                ));
            }
            eprintln!("tmem: faults are injected into the spill file, as was asked for: {}", faults.text);
        }
        Ok(SpillFile {
            place,
            bytes_max,
            plain,
            faults: faults.cloned(),
            opened: OnceLock::new(),
            failure: Arc::default(),
            read_bytes: Arc::default(),
            told: AtomicBool::new(false),
            cleared: AtomicBool::new(false),
            taken_back: AtomicU64::new(0),
            capacity: AtomicU64::new(bytes_max),
            roomy: AtomicBool::new(false),
            steps: AtomicU32::new(0),
            rest_until: Mutex::new(None),
        })
    }

    /// Whether zpages can go to the file now, as far as is known.
    pub fn works(&self) -> bool {
        let rests = || {
            let until = *self.rest_until.lock().unwrap_or_else(PoisonError::into_inner);
            until.is_some_and(|until| Instant::now() < until)
        };
        !matches!(self.place, Place::Nowhere) && self.opened.get() != Some(&false) && !rests()
    }

    /// Has the store move its coldest zpages to the file, a write or so. Says how many bytes of RAM that took back. When the file
    /// is full, `drop_kept` gives up the copies of pages that are at home, and says how many there were.
    pub fn step(&self, store: &Store, drop_kept: impl FnOnce() -> u64) -> u64 {
        if !*self.opened.get_or_init(|| self.open(store)) {
            return 0;
        }
        self.steps.fetch_add(1, Relaxed);
        let mut done = store.reclaim(STEP_FRAMES, None);
        let mut live_bytes = store.stats().spill.live_bytes;
        if done.short == Some(Short::Spill) {
            self.capacity.fetch_min(live_bytes.max(BYTES_MIN), Relaxed);
            if drop_kept() > 0 {
                done = store.reclaim(STEP_FRAMES, None);
                live_bytes = store.stats().spill.live_bytes;
            }
        }
        self.roomy.store(live_bytes < self.capacity.load(Relaxed) / ROOMY_PART * (ROOMY_PART - 1), Relaxed);
        let Reclaim { frames, short, .. } = done;
        if short.is_some() {
            let until = Instant::now() + REST;
            *self.rest_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
        if short == Some(Short::Spill) {
            let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
            match failure {
                Some(error) => self.tell(&format!("cannot be written ({error})")),
                None => self.tell(&format!("has reached its {} MiB", self.bytes_max >> 20)),
            }
        }
        self.steps.fetch_sub(1, Relaxed);
        let bytes = frames * tmem::PAGE_SIZE as u64;
        self.taken_back.fetch_add(bytes, Relaxed);
        bytes
    }

    /// Whether somebody waits for the disk.
    pub fn is_busy(&self) -> bool {
        self.steps.load(Relaxed) > 0
    }

    /// Whether copies of pages that are not away may stay in the file.
    pub fn is_roomy(&self) -> bool {
        self.roomy.load(Relaxed)
    }

    fn open(&self, store: &Store) -> bool {
        let add = |spill: tmem::Spill| store.add_spill(spill.flushed_after_gets()).map_err(io::Error::other);
        let opened = match self.spill() {
            Ok(None) => return false,
            Ok(Some(spill)) => add(spill),
            Err(error) => Err(error),
        };
        if let Err(error) = &opened {
            self.tell(&format!("cannot be used ({error})"));
        }
        opened.is_ok()
    }

    /// The file as a store takes it; nothing if there is no place for it.
    fn spill(&self) -> io::Result<Option<tmem::Spill>> {
        let tier = match &self.place {
            Place::Nowhere => return Ok(None),
            Place::Folder(folder) => FileTier::unnamed(folder)?,
            Place::Named(named) => {
                let file = named.file.lock().unwrap_or_else(PoisonError::into_inner).take();
                FileTier::new(file.ok_or_else(|| io::Error::other("it was opened before"))?)
            }
        };
        let tier = self.with_faults(tier);
        let (failure, read_bytes) = (Arc::clone(&self.failure), Arc::clone(&self.read_bytes));
        let spill = tmem::Spill::new(Watched { tier, failure, read_bytes }, self.bytes_max);
        Ok(Some(if self.plain { spill.plain() } else { spill }))
    }

    fn with_faults(&self, tier: FileTier) -> Box<dyn Tier> {
        let mut tier: Box<dyn Tier> = Box::new(tier);
        let faults = self.faults.iter().flat_map(|faults| faults.list.iter().zip(faults.seed..));
        for (&(fault, strike), seed) in faults {
            tier = Box::new(FaultyTier::at(tier, fault, strike, seed));
        }
        tier
    }

    /// Says once that the file does not do what it should.
    fn tell(&self, what: &str) {
        if !self.told.swap(true, Relaxed) {
            eprintln!("tmem: the spill file {self} {what}: what does not fit from now on stays in RAM");
        }
    }

    /// Bytes of RAM that spilling took back so far.
    pub fn taken_back(&self) -> u64 {
        self.taken_back.load(Relaxed)
    }

    /// Bytes that were read from the file so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Relaxed)
    }

    /// Whether the file was full or failed at some time.
    pub fn has_failed(&self) -> bool {
        self.told.load(Relaxed)
    }

    /// Removes what the user named and the end of the program leaves without use.
    pub fn clear(&self) {
        if let Place::Named(named) = &self.place
            && !self.cleared.swap(true, Relaxed)
        {
            // Whoever has moved it meanwhile wants it.
            let _ = if named.made {
                fs::remove_file(&named.path)
            } else {
                OpenOptions::new().write(true).truncate(true).open(&named.path).map(drop)
            };
        }
    }
}

/// The spill file of a store that is no supervisor's. What the user named is cleared when it is dropped.
pub struct StoreSpill {
    file: SpillFile,
}

impl StoreSpill {
    /// Examines what `--spill` says.
    ///
    /// # Errors
    /// When a file or directory that was named cannot be used.
    pub fn prepare(spill: &Spill, plain: bool, faults: Option<&SpillFaults>) -> Result<StoreSpill, Error> {
        SpillFile::examine(spill, plain, faults).map(|file| StoreSpill { file })
    }

    /// The file, for [`Store::add_spill`]; nothing if there is no place for it. Can be had once.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(&self) -> Result<Option<tmem::Spill>, Error> {
        self.file.spill().map_err(|e| Error::own(format!("the spill file {} cannot be used: {e}", self.file)))
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Display for SpillFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Nowhere => f.write_str("(none)"),
            Place::Folder(folder) => write!(f, "in {}", folder.display()),
            Place::Named(named) => write!(f, "{}", named.path.display()),
        }
    }
}

/// Remembers why a write failed, for the user, and counts what is read.
struct Watched {
    tier: Box<dyn Tier>,
    failure: Arc<Mutex<Option<io::Error>>>,
    read_bytes: Arc<AtomicU64>,
}

impl Tier for Watched {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.tier.write(offset, bytes).map_err(|error| {
            let kind = error.kind();
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            kind.into()
        })
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_bytes.fetch_add(bytes.len() as u64, Relaxed);
        self.tier.read(offset, bytes)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.tier.discard(offset, bytes)
    }
}

/// Where a temporary file can be on a real disk, and how large it may grow.
pub fn automatic_folder() -> Option<(PathBuf, u64)> {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let working = std::env::current_dir().ok();
    let folders = named.into_iter().chain([PathBuf::from("/var/tmp")]).chain(working).chain([PathBuf::from("/tmp")]);
    folders.into_iter().find_map(|folder| usable_folder(&folder).ok().map(|bytes| (folder, bytes)))
}

fn at_path(path: &Path, bytes_max: Option<u64>) -> Result<(Place, u64), String> {
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

    #[test]
    fn a_named_file_goes_when_it_is_not_needed_any_more() {
        let folder = std::env::temp_dir().join(format!("tmem-spill-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let options = |path: PathBuf| Options {
            ram_bytes: 64 << 20,
            on_full: crate::OnFull::Grow,
            progress: false,
            spill: Spill::At { path, bytes_max: Some(8 << 20) },
            spill_plain: false,
            spill_faults: None,
            metrics: None,
        };
        let path = folder.join("made");
        let made = SpillFile::prepare(&options(path.clone())).unwrap();
        assert!(path.exists() && made.works());
        assert!(SpillFile::prepare(&options(path.clone())).is_err(), "somebody uses it");
        drop(made);
        assert!(!path.exists());

        fs::write(&path, "").unwrap();
        drop(SpillFile::prepare(&options(path.clone())).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        fs::write(&path, "x").unwrap();
        assert!(SpillFile::prepare(&options(path)).is_err_and(|error| error.to_string().contains("not empty")));
        fs::remove_dir_all(folder).unwrap();
    }
}
