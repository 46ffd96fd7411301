//! Where a supervisor spills to, when that is opened, what is said when it takes nothing more: remote memory, if there is any, and
//! behind it a spill file.
//!
//! What `--spill` says is examined before the program starts, so that a bad path costs nobody a run. The store gets the file
//! when there is something to spill for the first time: a program that fits its budget costs no disk. A temporary file has
//! no name, so that nothing of it outlives us, however we end; one that the user named is removed again at the end.

mod place;
mod remote;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tmem::{FaultyTier, FileTier, Reclaim, Short, Store, Tier};
use tmem_remote::{Peers, RemoteFigures};

pub use self::place::automatic_folder;
use self::place::{BYTES_MIN, Place, at_path};
use self::remote::Remote;
use crate::error::Error;
use crate::options::{Options, Spill, SpillFaults};
use crate::watched::{Notes, Obstacle, Watched};

/// Frames that one step takes back from the store: about what one write takes.
const STEP_FRAMES: u64 = 64;
/// What a step may write: more than one write, because it may clean as well.
const STEP_BYTES: u64 = 1 << 20;
/// Copies of pages that are not away stay in the file while this part of it is free.
const ROOMY_PART: u64 = 4;
/// How long a file that took nothing is left alone.
const REST: Duration = Duration::from_millis(50);
/// The same while the write budget is used up, at most: the figure of what was put off shows that it goes on.
const REST_MAX: Duration = Duration::from_secs(1);

/// Why the file takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It has reached its size.
    Full,
    /// The disk has no room.
    DiskFull,
    /// A write failed. The next one may work.
    Failed,
    /// Writes fail, one after the other.
    Fails,
    /// The write budget is used up for now.
    PutOff,
}

impl Refusal {
    /// Whether there is no room, rather than something that may pass.
    fn is_full(self) -> bool {
        matches!(self, Refusal::Full | Refusal::DiskFull)
    }
}

/// The spill file, opened or not, and the remote memory before it.
pub struct SpillFile {
    place: Place,
    remote: Option<Remote>,
    file_bytes_max: u64,
    plain: bool,
    faults: Option<SpillFaults>,
    /// Whether the store has it; set at the first need.
    opened: OnceLock<bool>,
    notes: Arc<Notes>,
    told: AtomicBool,
    told_put_off: AtomicBool,
    /// The last step found that the file takes nothing.
    stuck: AtomicBool,
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
        if options.spill == Spill::Off && options.spill_writes_per_day.is_some() {
            return Err(Error::own("--spill-writes: with --spill off nothing is written: leave out one of the two"));
        }
        let faults = options.spill_faults.as_ref();
        let remote = options.remote.as_ref();
        let file = Self::examine(&options.spill, options.spill_plain, faults, options.spill_writes_per_day, remote)?;
        if options.progress && options.spill == Spill::Auto && !file.is_anywhere() {
            eprintln!("tmem: no disk to spill to: what does not fit, compressed, stays in RAM");
        }
        Ok(file)
    }

    fn examine(
        spill: &Spill,
        plain: bool,
        faults: Option<&SpillFaults>,
        writes_per_day: Option<u64>,
        remote: Option<&Peers>,
    ) -> Result<SpillFile, Error> {
        let (place, file_bytes_max) = match spill {
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
        let remote = remote.map(Remote::connect).transpose()?;
        let bytes_max = file_bytes_max + Remote::bytes_max(remote.as_ref());
        Ok(SpillFile {
            place,
            remote,
            file_bytes_max,
            plain,
            faults: faults.cloned(),
            opened: OnceLock::new(),
            notes: Arc::new(Notes::new(writes_per_day)),
            told: AtomicBool::new(false),
            told_put_off: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
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
        self.is_anywhere() && self.opened.get() != Some(&false) && !rests()
    }

    /// Whether what is spilled may lie in RAM that others lend.
    pub fn is_lent(&self) -> bool {
        self.remote.is_some()
    }

    fn is_anywhere(&self) -> bool {
        self.remote.is_some() || !matches!(self.place, Place::Nowhere)
    }

    /// What is noted of the tier that the store tries last.
    fn last_notes(&self) -> &Notes {
        match &self.remote {
            Some(remote) if matches!(self.place, Place::Nowhere) => &remote.notes,
            _ => &self.notes,
        }
    }

    /// Has the store move its coldest zpages to the file, a write or so. Says how many bytes of RAM that took back. When the file
    /// is full, `drop_kept` gives up the copies of pages that are at home, and says how many there were.
    pub fn step(&self, store: &Store, drop_kept: impl FnOnce() -> u64) -> u64 {
        if !*self.opened.get_or_init(|| self.open(store)) {
            return 0;
        }
        // Remote memory has no write budget; there, the file refuses what comes to it.
        if self.remote.is_none() && self.is_put_off() {
            return 0;
        }
        self.steps.fetch_add(1, Relaxed);
        let full_before = store.stats().spill.full;
        let mut done = store.reclaim(STEP_FRAMES, None);
        let mut spill = store.stats().spill;
        let mut refusal = self.refusal(&done, spill.full > full_before);
        // One write that failed says nothing about the room there is, nor does a budget that is used up.
        if refusal.is_some_and(Refusal::is_full) {
            self.capacity.fetch_min(spill.live_bytes.max(BYTES_MIN), Relaxed);
        }
        if refusal.is_some_and(|refusal| refusal.is_full() || refusal == Refusal::Fails) && drop_kept() > 0 {
            let full_before = spill.full;
            done = store.reclaim(STEP_FRAMES, None);
            spill = store.stats().spill;
            refusal = self.refusal(&done, spill.full > full_before);
        }
        self.note_room(spill.live_bytes, refusal);
        if done.short.is_some() {
            self.rest(REST);
        }
        if let Some(refusal) = refusal {
            self.tell_refusal(refusal);
        }
        self.steps.fetch_sub(1, Relaxed);
        let bytes = done.frames * tmem::PAGE_SIZE as u64;
        self.taken_back.fetch_add(bytes, Relaxed);
        bytes
    }

    /// Judges how much the file can take by what it holds and by how a step ended.
    fn note_room(&self, live_bytes: u64, refusal: Option<Refusal>) {
        let capacity = self.capacity.load(Relaxed);
        if refusal.is_none() && live_bytes > capacity + capacity / ROOMY_PART {
            // More was written than could be when the disk was full.
            self.capacity.store(self.file_bytes_max + Remote::bytes_max(self.remote.as_ref()), Relaxed);
        }
        let roomy = live_bytes < self.capacity.load(Relaxed) / ROOMY_PART * (ROOMY_PART - 1);
        self.roomy.store(roomy && refusal != Some(Refusal::Fails), Relaxed);
        self.stuck.store(refusal.is_some_and(|refusal| refusal != Refusal::Failed), Relaxed);
    }

    /// Whether a step has to wait for the write budget. Then the next one is not tried before it is likely to have enough.
    fn is_put_off(&self) -> bool {
        let Some(wait) = self.notes.put_off(STEP_BYTES) else { return false };
        self.stuck.store(true, Relaxed);
        self.rest(wait.clamp(REST, REST_MAX));
        self.tell_refusal(Refusal::PutOff);
        true
    }

    /// Why the file took nothing more in a step, if that is what ended it.
    fn refusal(&self, done: &Reclaim, is_full: bool) -> Option<Refusal> {
        if done.short != Some(Short::Spill) {
            return None;
        }
        if is_full {
            return Some(Refusal::Full);
        }
        // The store leaves the file alone for a while after each write that did not work.
        self.last_notes().obstacle().as_ref().map(|obstacle| match obstacle {
            Obstacle::Budget => Refusal::PutOff,
            Obstacle::Failure { error, .. } if is_no_room(error) => Refusal::DiskFull,
            Obstacle::Failure { in_a_row: 1, .. } => Refusal::Failed,
            Obstacle::Failure { .. } => Refusal::Fails,
        })
    }

    fn rest(&self, time: Duration) {
        *self.rest_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
    }

    /// Whether somebody waits for the disk.
    pub fn is_busy(&self) -> bool {
        self.steps.load(Relaxed) > 0
    }

    /// Whether copies of pages that are not away may stay in the file.
    pub fn is_roomy(&self) -> bool {
        self.roomy.load(Relaxed)
    }

    /// Whether pages that go to the file need not be packed as densely as can be.
    pub fn is_fast(&self) -> bool {
        self.remote.as_ref().map_or(&self.notes, |remote| &remote.notes).writes_are_cheap()
    }

    fn open(&self, store: &Store) -> bool {
        let add = |spill: tmem::Spill| store.add_spill(spill.flushed_after_gets()).map_err(io::Error::other);
        let opened = self.spills().and_then(|spills| {
            let any = !spills.is_empty();
            spills.into_iter().try_for_each(add).map(|()| any)
        });
        if let Err(error) = &opened {
            self.stuck.store(true, Relaxed);
            self.tell(&format!("cannot be used ({error})"), "");
        }
        opened.unwrap_or(false)
    }

    /// Where a store spills to, in the order in which it does.
    fn spills(&self) -> io::Result<Vec<tmem::Spill>> {
        let mut spills: Vec<_> = self.remote.iter().map(Remote::spill).collect();
        if let Some(tier) = self.place.open()? {
            let watched = Watched { tier: self.with_faults(tier), notes: Arc::clone(&self.notes) };
            let spill = tmem::Spill::new(watched, self.file_bytes_max);
            spills.push(if self.plain { spill.plain() } else { spill });
        }
        Ok(spills)
    }

    fn with_faults(&self, tier: FileTier) -> Box<dyn Tier> {
        let mut tier: Box<dyn Tier> = Box::new(tier);
        let faults = self.faults.iter().flat_map(|faults| faults.list.iter().zip(faults.seed..));
        for (&(fault, strike), seed) in faults {
            tier = Box::new(FaultyTier::at(tier, fault, strike, seed));
        }
        tier
    }

    fn tell_refusal(&self, refusal: Refusal) {
        match refusal {
            Refusal::Full => self.tell(&format!("has reached its {} MiB", self.file_bytes_max >> 20), ""),
            Refusal::DiskFull | Refusal::Fails => {
                if let Some(Obstacle::Failure { error, .. }) = &*self.last_notes().obstacle() {
                    self.tell(&format!("cannot be written ({error})"), " until it can be");
                }
            }
            Refusal::Failed => {}
            Refusal::PutOff => {
                if !self.told_put_off.swap(true, Relaxed) {
                    let mib_per_day = self.notes.writes_left().bytes_per_day >> 20;
                    let wait = about(self.notes.time_until(STEP_BYTES).unwrap_or_default());
                    eprintln!(
                        "tmem: the write budget of {self}, {mib_per_day} MiB a day, is used up for now: what does not \
                         fit stays in RAM; it goes on in {wait}"
                    );
                }
            }
        }
    }

    /// Says once of each peer that it is dead.
    pub fn tell_peers(&self) {
        if let Some(remote) = self.remote.as_ref().filter(|_| self.opened.get() == Some(&true)) {
            remote.tell_peers();
        }
    }

    /// Says once that the file does not do what it should.
    fn tell(&self, what: &str, until: &str) {
        if !self.told.swap(true, Relaxed) {
            eprintln!("tmem: {self} {what}: what does not fit from now on stays in RAM{until}");
        }
    }

    /// Bytes of RAM that spilling took back so far.
    pub fn taken_back(&self) -> u64 {
        self.taken_back.load(Relaxed)
    }

    /// What became of writes to the file so far.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    fn all_notes(&self) -> impl Iterator<Item = &Notes> {
        self.remote.iter().map(|remote| &*remote.notes).chain([&*self.notes])
    }

    /// Bytes that were read so far, from wherever they were.
    pub fn read_bytes(&self) -> u64 {
        self.all_notes().map(Notes::read_bytes).sum()
    }

    /// Attempts to read again what could not be read.
    pub fn reads_retried(&self) -> u64 {
        self.all_notes().map(Notes::reads_retried).sum()
    }

    /// Figures of remote memory, if there is any.
    pub fn remote_figures(&self) -> Option<RemoteFigures> {
        self.remote.as_ref().map(|remote| remote.tier.figures())
    }

    /// Whether the file took nothing the last time: it is full, keeps failing, or has to wait for the write budget.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Relaxed)
    }

    /// Removes what the end of the program leaves without use: the file that the user named, and what peers have.
    pub fn clear(&self) {
        if !self.cleared.swap(true, Relaxed) {
            self.place.clear();
            if let Some(remote) = &self.remote {
                remote.tier.clear();
            }
        }
    }
}

/// Where a store spills to that is no supervisor's. What the user named is cleared when it is dropped.
pub struct StoreSpill {
    file: SpillFile,
}

impl StoreSpill {
    /// Examines what `--spill` and `--remote` say.
    ///
    /// # Errors
    /// When a file or directory that was named cannot be used, or too few peers can.
    pub fn prepare(
        spill: &Spill,
        plain: bool,
        faults: Option<&SpillFaults>,
        remote: Option<&Peers>,
    ) -> Result<StoreSpill, Error> {
        SpillFile::examine(spill, plain, faults, None, remote).map(|file| StoreSpill { file })
    }

    /// What there is, for [`Store::add_spill`], in this order. Can be had once.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(&self) -> Result<Vec<tmem::Spill>, Error> {
        self.file.spills().map_err(|e| Error::own(format!("{} cannot be used: {e}", self.file)))
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Display for SpillFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, &self.remote) {
            (Place::Nowhere, Some(remote)) => write!(f, "the remote memory at {}", remote.tier),
            (place, _) => place.fmt(f),
        }
    }
}

fn is_no_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// A time, for people.
fn about(time: Duration) -> String {
    match time.as_secs() {
        0..90 => format!("about {} s", time.as_secs().max(1)),
        seconds @ 90..5400 => format!("about {} minutes", seconds.div_ceil(60)),
        seconds => format!("about {} hours", seconds.div_ceil(3600)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::thread;

    use tmem::testing::Random;
    use tmem::{Config, Fault, Key, MemoryTier, Page, PoolId, PoolKind, PoolOptions, Strike, TIER_BLOCK_BYTES};

    use super::*;

    fn options(path: PathBuf) -> Options {
        Options {
            ram_bytes: 64 << 20,
            on_full: crate::OnFull::Grow,
            progress: false,
            spill: Spill::At { path, bytes_max: Some(8 << 20) },
            spill_plain: false,
            spill_writes_per_day: None,
            spill_faults: None,
            metrics: None,
            remote: None,
        }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tmem-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A store with pages that do not compress.
    fn store_of_noise(pages: u32) -> (Store, PoolId) {
        let store = Store::new(Config::new(64 << 20).threads(1)).unwrap();
        let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap();
        for index in 0..pages {
            store.put(Key::new(pool, 0, index), &noise(index)).unwrap();
        }
        (store, pool)
    }

    fn noise(index: u32) -> Page {
        let mut random = Random::new(index.into());
        let mut page = [0; tmem::PAGE_SIZE];
        page.chunks_mut(8).for_each(|word| word.copy_from_slice(&random.number().to_le_bytes()));
        page
    }

    fn assert_all(store: &Store, pool: PoolId, pages: u32) {
        let mut page = [0; tmem::PAGE_SIZE];
        for index in 0..pages {
            assert!(store.get(Key::new(pool, 0, index), &mut page).unwrap() && page == noise(index), "page {index}");
        }
    }

    #[test]
    fn that_the_write_budget_is_used_up_says_nothing_about_the_disk() {
        let folder = folder("writes");
        let options = Options { spill_writes_per_day: Some(1), ..options(folder.join("file")) };
        let file = SpillFile::prepare(&options).unwrap();
        let (store, pool) = store_of_noise(1000);
        let none_to_drop = || panic!("nothing is dropped");
        assert!(file.step(&store, none_to_drop) > 0 && !file.is_stuck() && file.is_roomy());

        // Somebody else writes the rest of it.
        let other = Watched { tier: Box::new(MemoryTier::new()), notes: Arc::clone(&file.notes) };
        while other.write(0, &[0; TIER_BLOCK_BYTES]).is_ok() {}
        assert_eq!(file.step(&store, none_to_drop), 0);
        assert!(file.is_stuck() && !file.works() && file.notes.writes_put_off() == 2);
        // What had begun before that, as cleaning may have, is not written either.
        let done = store.reclaim(STEP_FRAMES, None);
        assert_eq!(file.refusal(&done, false), Some(Refusal::PutOff));
        assert_eq!((file.notes.writes_refused(), store.stats().spill.write_failures), (2, 1));
        assert!(file.is_roomy() && file.capacity.load(Relaxed) == 8 << 20);
        assert!(!file.told.load(Relaxed) && file.told_put_off.load(Relaxed));
        assert_all(&store, pool, 1000);
        drop(file);
        fs::remove_dir_all(folder).unwrap();
    }

    fn faulty(path: PathBuf, fault: Fault, strike: Strike) -> SpillFile {
        let faults = SpillFaults { text: "for a test".to_owned(), list: vec![(fault, strike)], seed: 1 };
        SpillFile::prepare(&Options { spill_faults: Some(faults), ..options(path) }).unwrap()
    }

    /// Longer than the store leaves a file alone after the first two writes that failed.
    const STORE_REST: Duration = Duration::from_millis(30);

    #[test]
    fn a_write_that_fails_in_passing_is_forgotten() {
        let folder = folder("passing");
        let file = faulty(folder.join("file"), Fault::FailWrite, Strike::Nth(2));
        let (store, pool) = store_of_noise(1000);
        let none_to_drop = || panic!("nothing is dropped");
        assert!(file.step(&store, none_to_drop) > 0);
        assert_eq!(file.step(&store, none_to_drop), 0);
        assert!(!file.is_stuck() && !file.works() && file.is_roomy() && !file.told.load(Relaxed));
        thread::sleep(STORE_REST);
        assert!(file.step(&store, none_to_drop) > 0);
        assert!(file.is_roomy() && file.capacity.load(Relaxed) == 8 << 20 && store.stats().spill.write_failures == 1);
        assert_all(&store, pool, 1000);
        drop(file);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn writes_that_fail_on_cost_the_copies_but_no_room() {
        let folder = folder("lasting");
        let file = faulty(folder.join("file"), Fault::FailWrite, Strike::From(2));
        let (store, pool) = store_of_noise(1000);
        assert!(file.step(&store, || 0) > 0);
        assert_eq!(file.step(&store, || 0), 0);
        thread::sleep(STORE_REST);
        let mut dropped = false;
        let drop_kept = || {
            dropped = true;
            0
        };
        assert_eq!(file.step(&store, drop_kept), 0);
        assert!(dropped && file.is_stuck() && !file.is_roomy() && file.told.load(Relaxed));
        assert_eq!(file.capacity.load(Relaxed), 8 << 20);
        assert_all(&store, pool, 1000);
        drop(file);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_disk_that_is_full_is_so_until_more_was_written() {
        let folder = folder("full");
        let file = faulty(folder.join("file"), Fault::Full(5 << 20), Strike::From(1));
        let (store, pool) = store_of_noise(2000);
        let steps = (0..100).take_while(|_| file.step(&store, || 0) > 0).count();
        assert!((10..100).contains(&steps) && file.is_stuck(), "{steps}");
        let capacity = file.capacity.load(Relaxed);
        assert!((4 << 20..5 << 20).contains(&capacity) && !file.is_roomy(), "{capacity}");
        file.note_room(capacity + (1 << 20), None);
        assert_eq!((file.capacity.load(Relaxed), file.is_stuck()), (capacity, false));
        file.note_room(capacity + (2 << 20), None);
        assert_eq!(file.capacity.load(Relaxed), 8 << 20);
        assert_all(&store, pool, 2000);
        drop(file);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn times_for_people() {
        let about = |seconds| about(Duration::from_secs(seconds));
        assert_eq!([about(0), about(89)], ["about 1 s", "about 89 s"]);
        assert_eq!([about(90), about(5399)], ["about 2 minutes", "about 90 minutes"]);
        assert_eq!([about(5400), about(86_400)], ["about 2 hours", "about 24 hours"]);
    }

    #[test]
    fn a_named_file_goes_when_it_is_not_needed_any_more() {
        let folder = folder("spill");
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
