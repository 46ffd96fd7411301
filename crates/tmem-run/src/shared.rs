//! What all threads of one supervisor share: the store, the budget, the managed spaces, the counters.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tmem::{Config, Key, Location, Store};

use crate::counters::{Account, Counters, Histogram};
use crate::error::Error;
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::guard::Guard;
use crate::keeper::Keeper;
use crate::pages::PageNumber;
use crate::space::Space;
use crate::spill::SpillFile;
use crate::swapcache::{Room, Swapcache};
use crate::sys::{self, PAGE};
use crate::tag::Mark;
use crate::upkeep::Upkeep;
use crate::watch::Desk;

/// Pages that one worker takes out at a time.
pub const BATCH_PAGES: usize = 256;

/// The store must never refuse: what a program needs is kept even over the budget, and the budget is ours to keep,
/// over targets and store together. So the store's own limit is out of reach.
const STORE_BUDGET_FACTOR: u64 = 64;

/// See [`Shared::raise_floor`].
const EXCESS_BYTES: u64 = 24 << 20;

/// While there is a spill file that works, programs keep these eighths of the budget, and what is stored beyond the rest goes to
/// the file: fewer as long as all that is stored may still fit, more once it is known not to.
const PROGRAMS_EIGHTHS: (u64, u64) = (2, 3);

/// Smallest budget that leaves a program something beside the supervisor's own memory.
pub const RAM_BYTES_MIN: u64 = 12 << 20;

/// What programs keep at first of a budget however much is stored. A program that works in less gets nowhere.
fn floor_of(ram: u64) -> u64 {
    ram / 8
}

/// Bytes of total memory at which things happen.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The budget: new memory waits above it.
    pub ram: u64,
    /// Eviction begins above this.
    pub high: u64,
    /// Eviction rests below this.
    pub low: u64,
    /// Agents are put in place above this, before there is need.
    pub trigger: u64,
}

impl Limits {
    /// Limits for a budget in bytes.
    pub fn new(ram: u64) -> Limits {
        let high = ram - (ram / 64).max(2 << 20);
        Limits { ram, high, low: high - (1 << 20), trigger: ram - (ram / 8).max((24 << 20).min(ram / 3)) }
    }
}

/// Shared state of a supervisor.
pub struct Shared {
    /// Evicted pages.
    pub store: Store,
    /// Where the store's coldest pages go when RAM has no room for them.
    pub spill: SpillFile,
    /// Thresholds.
    pub limits: Limits,
    /// Worker threads, each with a staging area in every space.
    pub workers: usize,
    /// `/dev/userfaultfd`, if we may open it.
    pub device: Option<OwnedFd>,
    /// What happened so far.
    pub counters: Counters,
    /// Memory in use.
    pub account: Account,
    /// Times to serve a fault.
    pub faults: Histogram,
    /// Where figures are laid for whoever wants to see them.
    pub desk: Desk,
    /// Requests for live figures.
    pub watch: tmem_watch::Counters,
    /// Set when the supervisor ends.
    pub stopping: AtomicBool,
    /// Workers take this for reading while they evict; detaching takes it for writing.
    pub gate: RwLock<()>,
    /// The supervisor's own memory, above all the store, at the last sample, in bytes.
    pub own: AtomicU64,
    /// Most memory that was seen while the supervisor was busy with one process since its last sample, in bytes.
    pub peak_between: AtomicU64,
    /// Of its own memory, what is not the store's.
    pub besides: AtomicU64,
    /// What the programs may hold in any case, in bytes: less would stop them.
    floor: AtomicU64,
    /// Steps of eviction without result since the last one with.
    pub fruitless: AtomicU32,
    /// How often memory was found that may be evicted: an attempt that began before proves nothing.
    pub finds: AtomicU32,
    /// Keeps faults on one processor.
    pub keeper: Arc<Keeper>,
    /// The thread that faulted last.
    pub faulter: AtomicI32,
    /// The agent of its process.
    pub faulter_agent: AtomicI32,
    /// Thread ids of the workers.
    pub worker_tids: Vec<AtomicI32>,
    /// Whether copies of pages that came home are of use.
    pub swapcache: Swapcache,
    fingerprinter: Fingerprinter,
    guard: Guard,
    spaces: RwLock<HashMap<u64, Arc<Space>>>,
    epolls: Vec<OwnedFd>,
    /// Wakes each worker for other reasons than faults.
    bells: Vec<OwnedFd>,
    /// Workers that evict just now.
    evicting: AtomicUsize,
    /// The worker that served the last fault: memory is wanted there.
    busiest: AtomicUsize,
    /// True when faults may be waiting for room.
    parked: AtomicBool,
    ids: AtomicU64,
    arrivals: AtomicU64,
    evictions: AtomicU64,
    upkeep: Mutex<Upkeep>,
}

impl Shared {
    /// State for a budget of `ram` bytes and this many worker threads.
    pub fn new(ram: u64, workers: usize, guard: Guard, spill: SpillFile) -> Result<Shared, Error> {
        let store = Store::new(Config::new(ram.saturating_mul(STORE_BUDGET_FACTOR)))
            .map_err(|e| Error::own(format!("the page store: {e}")))?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").ok().map(OwnedFd::from);
        let epolls = (0..workers).map(|_| epoll_create()).collect::<Result<Vec<_>, _>>();
        let epolls = epolls.map_err(|e| Error::own(format!("epoll_create1: {e}")))?;
        let bells = (0..workers).map(|_| eventfd()).collect::<Result<Vec<_>, _>>();
        let bells = bells.map_err(|e| Error::own(format!("eventfd: {e}")))?;
        epolls.iter().zip(&bells).for_each(|(epoll, bell)| watch(epoll, bell.as_raw_fd(), BELL));
        Ok(Shared {
            store,
            spill,
            limits: Limits::new(ram),
            workers,
            device,
            counters: Counters::default(),
            account: Account::default(),
            faults: Histogram::default(),
            desk: Desk::default(),
            watch: tmem_watch::Counters::default(),
            stopping: AtomicBool::new(false),
            gate: RwLock::new(()),
            own: AtomicU64::new(0),
            peak_between: AtomicU64::new(0),
            besides: AtomicU64::new(0),
            floor: AtomicU64::new(floor_of(ram)),
            fruitless: AtomicU32::new(0),
            finds: AtomicU32::new(0),
            keeper: Keeper::start(),
            faulter: AtomicI32::new(0),
            faulter_agent: AtomicI32::new(0),
            worker_tids: (0..workers).map(|_| AtomicI32::new(0)).collect(),
            swapcache: Swapcache::new(),
            fingerprinter: Fingerprinter::new().map_err(|e| Error::own(format!("no random numbers: {e}")))?,
            guard,
            spaces: RwLock::default(),
            epolls,
            bells,
            evicting: AtomicUsize::new(0),
            busiest: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            ids: AtomicU64::new(1),
            arrivals: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            upkeep: Mutex::new(Upkeep::new()),
        })
    }

    /// Bytes of the staging area in every space, and of its trash area: a part for each worker and one for the supervisor.
    pub fn staging_bytes(&self) -> u64 {
        (self.workers + 1) as u64 * BATCH_PAGES as u64 * PAGE
    }

    /// A number no other space has.
    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    /// Counts arriving pages; gives the number of the first.
    pub fn arrived(&self, pages: u64) -> u32 {
        self.arrivals.fetch_add(pages, Relaxed) as u32
    }

    /// Arrivals so far.
    pub fn arrivals(&self) -> u32 {
        self.arrivals.load(Relaxed) as u32
    }

    /// Counts evicted pages; gives the epoch they were evicted in.
    pub fn evicted(&self, pages: u64) -> u16 {
        self.evictions.fetch_add(pages, Relaxed);
        self.epoch()
    }

    /// Time measured in evictions: in 64 epochs as many pages are evicted as the budget has.
    fn epoch(&self) -> u16 {
        (self.evictions.load(Relaxed) / (self.limits.ram / PAGE / 64).max(1)) as u16
    }

    /// True if a page evicted in `epoch` comes back so soon that it must have been in use all the time: before an
    /// eighth of the budget was evicted after it. (Refault distance, as in the kernel's mm/workingset.c; here it
    /// stands in for the access bit that user space cannot see.)
    pub fn is_soon(&self, epoch: u16) -> bool {
        self.epoch().wrapping_sub(epoch) <= 8
    }

    /// True while memory may be given out.
    pub fn has_room(&self) -> bool {
        self.account.estimate() < self.limits.ram || self.is_at_floor()
    }

    /// True when memory should be given out sparingly.
    pub fn is_tight(&self) -> bool {
        self.account.estimate() > self.limits.high
    }

    /// How long a fault waits for room at most: not at all when eviction finds nothing.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(if self.fruitless.load(Relaxed) == 0 { 12 } else { 0 })
    }

    /// How long a worker without faults may sleep before there is background work.
    pub fn until_upkeep(&self) -> Duration {
        // Whoever holds it does what there is to do.
        self.upkeep.try_lock().map_or(Duration::MAX, |upkeep| upkeep.rest())
    }

    /// A step of background work, if nobody else is at it.
    pub fn upkeep(&self) {
        if let Ok(mut upkeep) = self.upkeep.try_lock() {
            upkeep.step(self);
        }
    }

    /// True when so little is left with the programs that taking more would stop them.
    pub fn is_at_floor(&self) -> bool {
        self.account.estimate().saturating_sub(self.own.load(Relaxed)) < self.floor.load(Relaxed)
    }

    /// Leaves more with the programs: what they need does not fit the budget even compressed. If it fits in a twentieth and
    /// [`EXCESS_BYTES`] more, they get no more than that: rather slow than far over the budget.
    pub fn raise_floor(&self) {
        let (ram, own) = (self.limits.ram, self.own.load(Relaxed));
        let excess = ram + ram / 20 + EXCESS_BYTES;
        let stats = self.store.stats();
        let packed = |bytes: u64| bytes as f64 * stats.memory_bytes as f64 / stats.original_bytes.max(1) as f64;
        let resident = self.account.estimate().saturating_sub(own);
        let least = own + floor_of(ram) + packed(resident.saturating_sub(floor_of(ram))) as u64;
        let most = if least < excess { excess - own } else { u64::MAX };
        let floor = self.floor.load(Relaxed);
        self.floor.store((floor + floor_of(ram)).min(most), Relaxed);
    }

    /// Leaves as little with the programs as at the beginning.
    pub fn lower_floor(&self) {
        self.floor.store(floor_of(self.limits.ram), Relaxed);
    }

    /// Sees to it that somebody evicts: the worker whose spaces want memory, or all when one does not keep up.
    pub fn need_room(&self) {
        let evicting = self.evicting.load(Relaxed);
        if self.is_urgent() && evicting < self.workers {
            (0..self.workers).for_each(|worker| self.ring(worker));
        } else if evicting == 0 {
            // Not the one that serves faults, if there is another.
            self.ring((self.busiest.load(Relaxed) + 1) % self.workers);
        }
    }

    /// Notes that there is more to evict than was known.
    pub fn found_more(&self) {
        self.finds.fetch_add(1, Relaxed);
        self.fruitless.store(0, Relaxed);
        if self.is_tight() {
            self.need_room();
        }
    }

    /// Thread ids of the worker that served the last fault, and of the others.
    pub fn serving_and_others(&self) -> (i32, Vec<i32>) {
        let mut tids: Vec<i32> = self.worker_tids.iter().map(|tid| tid.load(Relaxed)).collect();
        (tids.swap_remove(self.busiest.load(Relaxed)), tids)
    }

    /// Wakes one worker.
    fn ring(&self, worker: usize) {
        let one = 1_u64;
        // SAFETY: the descriptor is an eventfd, which takes the eight bytes of `one`. Full means rung already.
        unsafe { libc::write(self.bells[worker].as_raw_fd(), (&raw const one).cast(), size_of_val(&one)) };
    }

    /// True when one evictor does not keep up and the others should help.
    fn is_urgent(&self) -> bool {
        self.account.estimate() > self.limits.high.midpoint(self.limits.ram)
    }

    /// True when the store has more than its part of the budget: then its coldest pages leave RAM, if they can, rather than
    /// more of the programs'.
    pub fn should_spill(&self) -> bool {
        self.spill.works() && (self.is_at_floor() || self.room_to_store() == 0)
    }

    /// Bytes that the store may take before it has its part of the budget.
    pub fn room_to_store(&self) -> u64 {
        let stats = self.store.stats();
        let eighths = if stats.spill.zpages == 0 { PROGRAMS_EIGHTHS.0 } else { PROGRAMS_EIGHTHS.1 };
        let part = self.limits.ram / 8 * (8 - eighths);
        // A byte more than its part is too much.
        (part + 1).saturating_sub(stats.memory_bytes + self.besides.load(Relaxed))
    }

    /// Forgets the stored copy of a page that came home, unless it is worth its room. Says whether it is kept.
    pub fn keeps_copy(&self, page: PageNumber, key: Key, in_stream: bool) -> bool {
        let roomy = self.spill.is_roomy();
        let room = if self.is_at_floor() {
            Room::None
        } else if roomy {
            Room::Ample
        } else if in_stream {
            Room::Passing
        } else {
            Room::None
        };
        self.store.keep_if(key, |location| match location {
            Location::Ram { bytes } => bytes <= self.swapcache.bytes_max(page, room),
            Location::Spilled => roomy,
            _ => false,
        })
    }

    /// What to compare a page with that may leave again unchanged.
    pub fn fingerprint(&self, page: &tmem::Page) -> Fingerprint {
        self.fingerprinter.of(page)
    }

    /// Forgets all stored copies of pages that are at home, and says how many there were.
    pub fn drop_kept(&self) -> u64 {
        let of_space = |space: Arc<Space>| {
            let mut inner = space.lock();
            let mut dropped = 0;
            for page in std::mem::take(&mut inner.kept).into_keys() {
                let meta = inner.pages.get(page);
                if meta.is_cached() {
                    inner.pages.set(page, meta.cached(false));
                    self.store.flush_page(inner.key(page));
                    dropped += 1;
                }
            }
            dropped
        };
        self.spaces().into_iter().map(of_space).sum()
    }

    /// True if faults are served by this worker rather than by another one.
    pub fn serves(&self, worker: usize) -> bool {
        self.workers > 1 && worker == self.busiest.load(Relaxed)
    }

    /// Lets a worker evict, if there is need and nobody does already, or if one alone does not keep up. So the program
    /// keeps its processors. Whoever serves faults goes on with that as long as others keep up.
    pub fn take_turn(&self, worker: usize) -> Option<Turn<'_>> {
        if !self.is_tight() || (self.serves(worker) && !self.is_urgent()) {
            return None;
        }
        let turn = Turn(&self.evicting);
        let others = self.evicting.fetch_add(1, Relaxed);
        (others == 0 || self.is_urgent()).then_some(turn)
    }

    /// Notes that a fault waits for room.
    pub fn has_parked(&self) {
        self.parked.store(true, Release);
    }

    /// True if faults may be waiting for room; the caller looks, and whoever parks again says so again.
    pub fn take_parked(&self) -> bool {
        self.parked.load(Relaxed) && self.parked.swap(false, Acquire)
    }

    /// True if faults may be waiting for room.
    pub fn may_be_parked(&self) -> bool {
        self.parked.load(Relaxed)
    }

    /// Takes a space under management: a worker serves it and the guard knows its tag from now on. Spaces are dealt out in turn.
    pub fn adopt(&self, space: Arc<Space>) {
        let raw = space.uffd.raw();
        let id = space.id;
        self.spaces.write().unwrap_or_else(PoisonError::into_inner).insert(id, space);
        self.guard_tags();
        watch(&self.epolls[id as usize % self.workers], raw, id);
    }

    /// Tells the guard where our spaces have their tags, in case we end before our programs do.
    fn guard_tags(&self) {
        self.guard.set_tags(|| self.spaces().iter().map(|space| space.tag).collect());
    }

    /// What the tags of our spaces have in common.
    pub fn mark(&self) -> Mark {
        self.guard.mark()
    }

    /// Whether a process is the guard.
    pub fn is_guard(&self, pid: i32) -> bool {
        pid == self.guard.pid()
    }

    /// Tells the guard which processes are in our care.
    pub fn guard_processes(&self, pids: &[i32]) {
        self.guard.set_processes(pids);
    }

    /// Gives a space up; its stored pages are dropped.
    pub fn drop_space(&self, id: u64) {
        let space = self.spaces.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(space) = space {
            let mut inner = space.lock();
            inner.dead = true;
            self.store.destroy_pool(inner.pool);
            // A fork that was followed meanwhile has its space now, with the same tag.
            self.guard_tags();
        }
    }

    /// A space by its number.
    pub fn space(&self, id: u64) -> Option<Arc<Space>> {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// All spaces.
    pub fn spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Waits for spaces of this worker with messages, at most this long. Returns early, perhaps with none, when its bell rings.
    pub fn wait_for_faults(&self, worker: usize, most: Duration, out: &mut Vec<u64>) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        let most = most.as_millis() as i32;
        // SAFETY: `events` has room for the number of events stated.
        let n = unsafe { libc::epoll_wait(self.epolls[worker].as_raw_fd(), events.as_mut_ptr(), 16, most) };
        out.clear();
        for event in events.iter().take(n.max(0) as usize) {
            if event.u64 == BELL {
                let mut rung = 0_u64;
                // SAFETY: the descriptor is an eventfd and `rung` takes the eight bytes that it gives.
                unsafe { libc::read(self.bells[worker].as_raw_fd(), (&raw mut rung).cast(), size_of_val(&rung)) };
            } else {
                out.push(event.u64);
            }
        }
        if !out.is_empty() {
            self.busiest.store(worker, Relaxed);
        }
    }

    /// A page cannot be brought back: better no program than a wrong byte.
    pub fn fail_stop(&self, pid: i32, why: &str) {
        if pid <= 0 {
            // A forked child that was not found yet.
            self.fail_stop_all(why);
        }
        eprintln!("tmem: {why}; process {pid} is killed, because going on would give it wrong data");
        sys::kill(pid, libc::SIGKILL);
    }

    /// A page of a process that we do not know cannot be brought back: the guard kills all of them.
    pub fn fail_stop_all(&self, why: &str) -> ! {
        eprintln!("tmem: {why}; the program is killed, because going on would give it wrong data");
        std::process::abort();
    }

    /// Tells the guard that all is well and nobody needs to be killed.
    pub fn dismiss_guard(&self) {
        self.guard.dismiss();
    }
}

/// What a bell is called in an epoll; no space has this number.
const BELL: u64 = 0;

/// The right to evict.
pub struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn watch(epoll: &OwnedFd, fd: RawFd, name: u64) {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: name };
    // SAFETY: both descriptors are open and `event` lives across the call.
    unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
}

fn eventfd() -> Result<OwnedFd, sys::Errno> {
    // SAFETY: plain system call without pointers.
    let fd = sys::check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into())?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn epoll_create() -> Result<OwnedFd, sys::Errno> {
    // SAFETY: plain system call without pointers.
    let fd = sys::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }.into())?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
