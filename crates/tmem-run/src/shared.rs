//! What all threads of one supervisor share: the store, the budget, the managed spaces, the counters.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tmem::{Config, Store};

use crate::counters::{Account, Counters, Histogram};
use crate::error::Error;
use crate::guard::Guard;
use crate::pages::PageNumber;
use crate::space::Space;
use crate::sys::{self, PAGE};

/// Pages that one evictor takes out at a time.
pub const BATCH_PAGES: usize = 256;

/// The store must never refuse: what a program needs is kept even over the budget, and the budget is ours to keep,
/// over targets and store together. So the store's own limit is out of reach.
const STORE_BUDGET_FACTOR: u64 = 64;

/// Smallest budget that leaves a program something beside the supervisor's own memory.
pub const RAM_BYTES_MIN: u64 = 12 << 20;

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
    /// Thresholds.
    pub limits: Limits,
    /// Evictor threads, each with a staging area in every space.
    pub evictors: usize,
    /// `/dev/userfaultfd`, if we may open it.
    pub device: Option<OwnedFd>,
    /// What happened so far.
    pub counters: Counters,
    /// Memory in use.
    pub account: Account,
    /// Times to serve a fault.
    pub faults: Histogram,
    /// Set when the supervisor ends.
    pub stopping: AtomicBool,
    /// Evictors take this for reading while they work on a space; detaching takes it for writing.
    pub gate: RwLock<()>,
    /// Memory of the targets at the last sample, in bytes.
    pub resident: AtomicU64,
    /// Steps of eviction without result since the last one with.
    pub fruitless: AtomicU32,
    guard: Guard,
    spaces: RwLock<HashMap<u64, Arc<Space>>>,
    epolls: Vec<OwnedFd>,
    ids: AtomicU64,
    arrivals: AtomicU64,
    evictions: AtomicU64,
    bell: (Mutex<()>, Condvar),
}

impl Shared {
    /// State for a budget of `ram` bytes with `handlers` threads that serve faults and `evictors` that evict.
    pub fn new(ram: u64, handlers: usize, evictors: usize, guard: Guard) -> Result<Shared, Error> {
        let store = Store::new(Config::new(ram.saturating_mul(STORE_BUDGET_FACTOR)))
            .map_err(|e| Error::own(format!("the page store: {e}")))?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").ok().map(OwnedFd::from);
        let epolls = (0..handlers).map(|_| epoll_create()).collect::<Result<Vec<_>, _>>();
        Ok(Shared {
            store,
            limits: Limits::new(ram),
            evictors,
            device,
            counters: Counters::default(),
            account: Account::default(),
            faults: Histogram::default(),
            stopping: AtomicBool::new(false),
            gate: RwLock::new(()),
            resident: AtomicU64::new(0),
            fruitless: AtomicU32::new(0),
            guard,
            spaces: RwLock::default(),
            epolls: epolls.map_err(|e| Error::own(format!("epoll_create1: {e}")))?,
            ids: AtomicU64::new(1),
            arrivals: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            bell: Default::default(),
        })
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
        self.account.estimate() < self.limits.ram
    }

    /// True when memory should be given out sparingly.
    pub fn is_tight(&self) -> bool {
        self.account.estimate() > self.limits.high
    }

    /// How long a fault waits for room at most: not at all when eviction achieves nothing, or when the store alone
    /// fills the budget and waiting would only make a program crawl that must grow anyway.
    pub fn patience(&self) -> Duration {
        let stored = self.account.estimate().saturating_sub(self.resident.load(Relaxed));
        if self.is_at_floor() || stored > self.limits.ram - self.limits.ram / 8 {
            return Duration::ZERO;
        }
        Duration::from_millis(if self.fruitless.load(Relaxed) == 0 { 12 } else { 0 })
    }

    /// True when so little is left with the programs that taking more would stop them: what they need does not fit
    /// the budget even compressed.
    pub fn is_at_floor(&self) -> bool {
        self.resident.load(Relaxed) < self.limits.ram / 8
    }

    /// Whether the stored copy of a page that came back is kept. It pays when most such pages leave again
    /// unchanged; one page in sixteen is kept in any case, to know.
    pub fn keeps_copies(&self, page: PageNumber) -> bool {
        let tries = self.counters.swapcache_tries.load(Relaxed);
        let hits = self.counters.swapcache_hits.load(Relaxed);
        (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 == 0) || (tries > 256 && hits * 4 > tries * 3)
    }

    /// Wakes the evictors.
    pub fn need_room(&self) {
        self.bell.1.notify_all();
    }

    /// Waits for work, at most this long.
    pub fn wait_for_need(&self, most: Duration) {
        let held = self.bell.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.bell.1.wait_timeout(held, most);
    }

    /// Takes a space under management: handlers serve it and the guard knows it from now on.
    pub fn adopt(&self, space: Arc<Space>) {
        self.guard.add_space(space.id, space.uffd.fd());
        let raw = space.uffd.raw();
        let id = space.id;
        self.spaces.write().unwrap_or_else(PoisonError::into_inner).insert(id, space);
        let epoll = &self.epolls[id as usize % self.epolls.len()];
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: id };
        // SAFETY: both descriptors are open and `event` lives across the call.
        unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, raw, &mut event) };
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
            self.guard.drop_space(id);
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

    /// Waits for spaces with messages, on behalf of handler `which`.
    pub fn wait_for_faults(&self, which: usize, out: &mut Vec<u64>) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: `events` has room for the number of events stated.
        let n = unsafe { libc::epoll_wait(self.epolls[which].as_raw_fd(), events.as_mut_ptr(), 16, 100) };
        out.clear();
        out.extend(events.iter().take(n.max(0) as usize).map(|e| e.u64));
    }

    /// A page cannot be brought back: better no program than a wrong byte.
    pub fn fail_stop(&self, pid: i32, why: &str) {
        eprintln!("tmem: {why}; process {pid} is killed, because going on would give it wrong data");
        if pid > 0 {
            sys::kill(pid, libc::SIGKILL);
        } else {
            // A forked child that was not found yet: only all of them can be stopped.
            std::process::abort();
        }
    }

    /// Tells the guard that all is well and nobody needs to be killed.
    pub fn dismiss_guard(&self) {
        self.guard.dismiss();
    }
}

fn epoll_create() -> Result<OwnedFd, sys::Errno> {
    // SAFETY: plain system call without pointers.
    let fd = sys::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }.into())?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
