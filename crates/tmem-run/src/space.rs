//! One managed address space: what is known of its pages, and the userfaultfd through which it is served.
//!
//! Everything about a space changes under its one lock, from the reading of a message to the last effect of it.
//! That is what makes the order of messages the order of effects:
//!
//! * the kernel refuses (EAGAIN) every COPY, ZEROPAGE and MOVE on this descriptor from the moment a fork, unmap,
//!   remap or remove begins until its message was read, and messages are read under the lock only;
//! * so what a MOVE took belongs to the mapping that we know, and a child that was forked misses exactly the pages
//!   that were away when its message is read.
//!
//! Compression and decompression of evicted pages happen outside the lock (see [`crate::evict`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tmem::{Key, ObjectId, PoolId, PoolKind, PoolOptions};

use crate::agent::{Agent, Batch, InjectError};
use crate::counters::add;
use crate::fault::Scratch;
use crate::fingerprint::Fingerprint;
use crate::pages::{Meta, PageHash, PageNumber, PageTable, Place, RangeSet};
use crate::proc;
use crate::ptrace;
use crate::queue::Run;
use crate::shared::{BATCH_PAGES, Shared};
use crate::streams::Streams;
use crate::sys::{Errno, Filled, PAGE, Uffd, feature};
use crate::tag::Tag;
use crate::workers;

/// An address space under management.
pub struct Space {
    /// Our number for it.
    pub id: u64,
    /// What its tag page says, and that page.
    name: Tag,
    tag_page: Box<[u8; PAGE as usize]>,
    /// Address of that; the same as [`Inner::tag`], to be seen without the lock.
    pub tag: u64,
    /// Serves its faults.
    pub uffd: Uffd,
    /// Where its pages are stored; the same as [`Inner::pool`], to be seen without the lock.
    pub pool: PoolId,
    /// Its process, 0 while a forked child has not been found yet.
    pub pid: AtomicI32,
    /// Age of its oldest queued page: arrival number, `u64::MAX` when nothing is queued.
    pub oldest: AtomicU64,
    /// Faults that wait for room.
    pub parked: AtomicUsize,
    inner: Mutex<Inner>,
}

/// What the lock of a [`Space`] guards.
pub struct Inner {
    /// The agent; `None` before injection into a forked child, and after its end.
    pub agent: Option<Agent>,
    /// Our userfaultfd and the staging one, by their numbers in the agent's table.
    pub numbers: (u64, u64),
    /// Keeps the second userfaultfd, which has no events, alive.
    pub trash_uffd: Option<Uffd>,
    /// Where its pages are stored.
    pub pool: PoolId,
    /// Per-page knowledge.
    pub pages: PageTable,
    /// Ranges registered with the userfaultfd.
    pub registered: RangeSet,
    /// Staging and trash areas in the target: `BATCH_PAGES` for each evictor, and as many for [`Space::take_zeros`].
    pub staging: u64,
    /// Where emptied staging pages go to be dropped without an event.
    pub trash: u64,
    /// A page of ours that tells this address space from its parent.
    pub tag: u64,
    /// Pages in staging.
    pub staged: HashMap<PageNumber, Staged, PageHash>,
    /// Staging slot -> page.
    pub slots: Vec<Option<PageNumber>>,
    /// Runs of slots that must be emptied, per part of the staging area.
    pub untrashed: Vec<Vec<Range<u32>>>,
    /// Pages on their way into the store: not to be evicted a second time before that is done.
    pub in_flight: HashSet<PageNumber, PageHash>,
    /// Pages at home of which the store still has a copy (*cached*), and what they were then.
    pub kept: HashMap<PageNumber, Fingerprint, PageHash>,
    /// Pages at home in the order of arrival.
    pub queue: VecDeque<Run>,
    /// Sequential accesses.
    pub streams: Streams,
    /// Faults read but not served yet.
    pub faults: Vec<PageNumber>,
    /// Faults that wait for room, since when.
    pub parked: VecDeque<(PageNumber, Instant)>,
    /// `/proc/PID/pagemap`.
    pub pagemap: Option<File>,
    /// Since when pages are marked as going.
    pub going_since: Option<Instant>,
    /// Ranges that the program announced to drop since it was last seen at rest.
    pub removes: Vec<(u64, u64)>,
    /// True once it forked or was forked, or a page turned out to be shared: others may be, too.
    pub forked: bool,
    /// Pools of the spaces that it may still share pages with, the closest last.
    pub relatives: Vec<PoolId>,
    /// Mappings that a forked child finds empty, as of the last fork that we could look.
    pub wiped: Vec<proc::Mapping>,
    /// Pages of the process that were found not to be ours to evict.
    pub hidden: u64,
    /// When the queue was last rebuilt.
    pub rescanned: Instant,
    /// When mappings were last surveyed, and the least anonymous memory that was seen since.
    pub surveyed: (Instant, u64),
    /// Events read so far: mappings changed.
    pub changes: u64,
    /// The address space is gone or given up; serve nothing more.
    pub dead: bool,
}

/// A page in staging.
pub struct Staged {
    /// Its place there.
    pub slot: u32,
    /// What it holds.
    pub contents: Contents,
}

/// What a page held when it was taken out: a part of what was read in one go.
#[derive(Clone)]
pub struct Contents {
    chunk: Arc<Vec<u8>>,
    at: usize,
}

impl Contents {
    /// The first page of a chunk.
    pub fn first_of(chunk: &Arc<Vec<u8>>) -> Contents {
        Contents { chunk: Arc::clone(chunk), at: 0 }
    }

    /// This page; `self` becomes the next of its chunk.
    pub fn take_next(&mut self) -> Contents {
        let this = self.clone();
        self.at += PAGE as usize;
        this
    }

    /// The bytes.
    pub fn page(&self) -> &tmem::Page {
        self.chunk[self.at..][..PAGE as usize].try_into().expect("that many bytes are a page")
    }
}

/// State of the descriptor, probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// No event is under way.
    Quiet,
    /// An event is under way whose message is not read yet.
    Changing,
    /// The address space does not exist any more.
    Dead,
}

impl Space {
    /// Takes charge of a process: agent, userfaultfds, staging. Nothing is registered yet.
    pub fn manage(shared: &Shared, pid: i32) -> Result<Arc<Space>, InjectError> {
        let agent = Agent::inject(pid)?;
        match Space::found(shared, &agent) {
            Ok((space, number)) => space.equip(shared, pid, agent, Some(number)).map(|()| space),
            Err(e) => {
                let e = agent.reason(e);
                agent.leave();
                Err(e)
            }
        }
    }

    /// A new space with its userfaultfd, and the number of that in the agent's table.
    fn found(shared: &Shared, agent: &Agent) -> Result<(Arc<Space>, u64), InjectError> {
        let (uffd, number) = agent.new_uffd(shared.device.as_ref())?;
        let events = feature::EVENT_FORK | feature::EVENT_REMAP | feature::EVENT_REMOVE | feature::EVENT_UNMAP;
        uffd.enable(events | feature::MOVE | feature::THREAD_ID)
            .map_err(|e| InjectError::Ours("enabling userfaultfd", e))?;
        let pool = shared.store.create_pool(PoolKind::Persistent, PoolOptions::default());
        let pool = pool.map_err(|_| InjectError::Ours("creating a pool", Errno(libc::ENOMEM)))?;
        let mut inner = Inner::new(pool);
        inner.tag = map_tag(agent)?;
        uffd.register(inner.tag, PAGE).map_err(|e| InjectError::Ours("registering", e))?;
        Ok((Space::new(shared, uffd, inner), number))
    }

    /// A space of which this much is known, its process still to be found.
    pub fn new(shared: &Shared, uffd: Uffd, inner: Inner) -> Arc<Space> {
        let id = shared.next_id();
        let name = Tag { mark: shared.mark(), id };
        Arc::new(Space {
            id,
            name,
            tag_page: name.page(),
            tag: inner.tag,
            uffd,
            pool: inner.pool,
            pid: AtomicI32::new(0),
            oldest: AtomicU64::new(u64::MAX),
            parked: AtomicUsize::new(0),
            inner: Mutex::new(inner),
        })
    }

    /// Gives a space an agent in its process and the areas that eviction needs. If that fails, the agent leaves: one that
    /// only hears no more from us would kill.
    pub fn equip(&self, shared: &Shared, pid: i32, agent: Agent, number: Option<u64>) -> Result<(), InjectError> {
        match self.outfit(shared, pid, &agent, number) {
            Ok(()) => {
                self.lock().agent = Some(agent);
                add(&shared.counters.processes_managed, 1);
                Ok(())
            }
            Err(e) => {
                let e = agent.reason(e);
                agent.leave();
                Err(e)
            }
        }
    }

    fn outfit(&self, shared: &Shared, pid: i32, agent: &Agent, number: Option<u64>) -> Result<(), InjectError> {
        // A forked child may have become another program before its agent was in place; that is not this space.
        if number.is_none() && self.is_of(pid) != Some(true) {
            return Err(InjectError::Busy);
        }
        let number = match number {
            Some(number) => number,
            None => agent.give(self.uffd.fd())?,
        };
        let (trash_uffd, trash_number) = agent.new_uffd(shared.device.as_ref())?;
        trash_uffd.enable(feature::MOVE).map_err(|e| InjectError::Ours("enabling userfaultfd", e))?;
        let bytes = shared.staging_bytes();
        let staging = map_area(agent, bytes)?;
        let trash = map_area(agent, bytes)?;
        self.uffd.register(staging, bytes).map_err(|e| InjectError::Ours("registering staging", e))?;
        trash_uffd.register(trash, bytes).map_err(|e| InjectError::Ours("registering trash", e))?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|_| InjectError::Gone)?;
        let mut inner = self.lock();
        inner.staging = staging;
        inner.trash = trash;
        inner.slots = vec![None; shared.workers * BATCH_PAGES];
        inner.untrashed = vec![Vec::new(); shared.workers + 1];
        inner.numbers = (number, trash_number);
        inner.trash_uffd = Some(trash_uffd);
        inner.pagemap = Some(pagemap);
        self.pid.store(pid, Relaxed);
        // It works while a space is locked, and must not queue behind the program's own threads.
        workers::set_priority(agent.tid(), -10);
        Ok(())
    }

    /// Locks the space. Whoever drains messages while it is locked serves the collected faults before unlocking:
    /// nobody else will hear of them. A panic elsewhere ends the whole supervisor, so poison never matters.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process and the thread id of its agent, if it has one and nobody works on it just now.
    pub fn process_and_agent(&self) -> Option<(i32, i32)> {
        let inner = self.try_lock().filter(|inner| !inner.dead)?;
        inner.agent.as_ref().map(|agent| (self.pid.load(Relaxed), agent.tid()))
    }

    /// Locks the space if nobody else has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Inner>> {
        self.inner.try_lock().ok()
    }

    /// Whether this space is the one that process `pid` lives in; `None` if that cannot be told just now.
    pub fn is_of(&self, pid: i32) -> Option<bool> {
        let probe = self.probe(&self.lock());
        match probe {
            Probe::Quiet => Some(Tag::of(pid, self.tag) == Some(self.name)),
            Probe::Changing => None,
            Probe::Dead => Some(false),
        }
    }

    /// Asks the kernel whether an event is under way: a COPY to the tag page says so. The first that succeeds also
    /// puts its tag there, by which [`Space::is_of`] knows the address space.
    pub fn probe(&self, inner: &Inner) -> Probe {
        match self.uffd.copy(inner.tag, &self.tag_page[..]) {
            Filled::Changing(_) => Probe::Changing,
            Filled::Dead => Probe::Dead,
            _ => Probe::Quiet,
        }
    }

    /// Registers every evictable mapping that is not registered yet, and queues what is present there.
    ///
    /// What counts as registered must be so: a page taken from a mapping that is not would be lost. Mappings change
    /// while we look, and UFFDIO_REGISTER passes over holes. So the mappings are listed again afterwards, each one
    /// is asked whether it is registered, and all of it counts only if no mapping of ours changed meanwhile.
    ///
    /// True if something new was found.
    pub fn survey(&self, shared: &Shared, inner: &mut Inner, scratch: &mut Scratch) -> bool {
        let pid = self.pid.load(Relaxed);
        let own = inner.own_ranges(shared);
        let mut news = RangeSet::default();
        for mapping in proc::evictable_mappings(pid) {
            for (start, end) in inner.registered.gaps(mapping.start, mapping.end) {
                let ours = own.iter().any(|&(s, e)| s < end && start < e);
                // EBUSY: the program has a userfaultfd of its own here. EINVAL: the mapping changed meanwhile.
                if !ours && self.uffd.register(start, end - start).is_ok() {
                    news.insert(start, end);
                }
            }
        }
        if news.iter().next().is_none() {
            return false;
        }
        let mut found = Vec::new();
        for _ in 0..4 {
            self.drain_to_quiet(shared, inner);
            let changes = inner.changes;
            found.clear();
            for mapping in proc::evictable_mappings(pid) {
                let parts = news.overlaps(mapping.start, mapping.end);
                if !parts.is_empty() && self.uffd.is_registered(mapping.start) {
                    found.extend(parts);
                }
            }
            if self.probe(inner) == Probe::Quiet && inner.changes == changes {
                found.iter().for_each(|&(start, end)| inner.registered.insert(start, end));
                found.iter().for_each(|&(start, end)| self.queue_present(shared, inner, start, end));
                found.iter().for_each(|&range| self.take_zeros(shared, inner, scratch, range));
                break;
            }
        }
        self.publish(shared, inner);
        !found.is_empty()
    }

    /// Pages whose `madvise` was announced some time ago and that are still there were given up by MADV_FREE, not
    /// dropped. Once every thread was seen outside the kernel, no drop that was announced before can be pending, and
    /// they may be evicted again.
    pub fn settle_going(&self, shared: &Shared) {
        let pid = self.pid.load(Relaxed);
        let before = {
            let mut inner = self.lock();
            if pid == 0 || inner.going_since.is_none_or(|since| since.elapsed() < Duration::from_millis(100)) {
                return;
            }
            std::mem::take(&mut inner.removes)
        };
        // Not under the lock: a thread may have to be served before it can come to rest.
        let at_rest = ptrace::quiesce(pid);
        let mut inner = self.lock();
        if !at_rest {
            inner.removes.extend(before);
            inner.going_since = Some(Instant::now());
            return;
        }
        inner.pages.update(0..u64::MAX, |_, meta| meta.going(false));
        inner.going_since = None;
        // Those announced meanwhile are not over.
        for (start, end) in std::mem::take(&mut inner.removes) {
            self.mark_going(&mut inner, start, end);
        }
        self.rescan(shared, &mut inner);
        self.publish(shared, &inner);
    }

    /// Reads messages until no event is under way.
    pub fn drain_to_quiet(&self, shared: &Shared, inner: &mut Inner) {
        self.drain(shared, inner);
        while self.probe(inner) == Probe::Changing {
            std::thread::yield_now();
            self.drain(shared, inner);
        }
    }

    /// Tells others how old the oldest queued page is and how many faults wait.
    pub fn publish(&self, shared: &Shared, inner: &Inner) {
        self.oldest.store(inner.queue.front().map_or(u64::MAX, |r| r.stamp.into()), Relaxed);
        self.parked.store(inner.parked.len(), Relaxed);
        if !inner.parked.is_empty() {
            // Last, so that whoever hears of it finds them.
            shared.has_parked();
        }
    }
}

impl Inner {
    /// An address space of which nothing is known yet.
    pub fn new(pool: PoolId) -> Inner {
        Inner {
            agent: None,
            numbers: (0, 0),
            trash_uffd: None,
            pool,
            pages: PageTable::default(),
            registered: RangeSet::default(),
            staging: 0,
            trash: 0,
            tag: 0,
            staged: HashMap::default(),
            slots: Vec::new(),
            untrashed: Vec::new(),
            in_flight: HashSet::default(),
            kept: HashMap::default(),
            queue: VecDeque::new(),
            streams: Streams::default(),
            faults: Vec::new(),
            parked: VecDeque::new(),
            pagemap: None,
            going_since: None,
            removes: Vec::new(),
            forked: false,
            relatives: Vec::new(),
            wiped: Vec::new(),
            hidden: 0,
            rescanned: Instant::now(),
            surveyed: (Instant::now(), 0),
            changes: 0,
            dead: false,
        }
    }

    /// Whether to look for new mappings: memory grew, perhaps in one that is not ours yet, or it is some time ago.
    pub fn survey_is_due(&mut self, anonymous: u64) -> bool {
        const GROWTH_BYTES: u64 = 1 << 20;
        const INTERVAL: Duration = Duration::from_millis(50);
        let (since, least) = self.surveyed;
        if anonymous > least + GROWTH_BYTES || since.elapsed() > INTERVAL {
            self.surveyed = (Instant::now(), anonymous);
            return true;
        }
        self.surveyed.1 = least.min(anonymous);
        false
    }

    /// Has the agent run a batch. False if it is gone: the process ended or became another program; the supervisor finds out
    /// which.
    pub fn call_agent(&mut self, batch: &mut Batch) -> bool {
        if self.agent.as_ref().is_none_or(|agent| agent.call(batch).is_err()) {
            self.agent = None;
        }
        self.agent.is_some()
    }

    /// Key of a page in the store.
    pub fn key(&self, page: PageNumber) -> Key {
        Key { pool: self.pool, object: object(page), index: index(page) }
    }

    /// Notes the pool of a parent or child. Only a few of the closest are asked whether they have a page already.
    pub fn add_relative(&mut self, pool: PoolId) {
        const RELATIVES_MAX: usize = 4;
        if self.relatives.len() == RELATIVES_MAX {
            self.relatives.remove(0);
        }
        self.relatives.push(pool);
    }

    /// Key under which an evictor stores the page of a staging slot until it is known whose it is now.
    pub fn slot_key(&self, slot: u32) -> Key {
        Key { pool: self.pool, object: SLOTS, index: slot }
    }

    /// Forgets a staged page: its slot stays occupied until it is emptied, but belongs to nobody.
    pub fn unstage(&mut self, page: PageNumber) {
        if let Some(staged) = self.staged.remove(&page) {
            self.slots[staged.slot as usize] = None;
        }
    }

    /// Address of a staging slot in the target.
    pub fn slot_address(&self, slot: u32) -> u64 {
        self.staging + u64::from(slot) * PAGE
    }

    /// What of this address space is ours.
    fn own_ranges(&self, shared: &Shared) -> Vec<(u64, u64)> {
        let bytes = shared.staging_bytes();
        let mut out = vec![(self.tag, self.tag + PAGE)];
        if let Some(agent) = &self.agent {
            out.extend([agent.area(), (self.staging, self.staging + bytes), (self.trash, self.trash + bytes)]);
        }
        out
    }

    /// Marks a page as at home with nothing stored for it.
    pub fn set_home(&mut self, page: PageNumber) {
        let meta = self.pages.get(page);
        self.pages.set(page, meta.home());
    }

    /// Sets a page's place, keeping its history.
    pub fn set_place(&mut self, page: PageNumber, place: Place) -> Meta {
        let meta = self.pages.get(page);
        self.pages.set(page, meta.at(place));
        meta
    }
}

/// Pages of address space that one object of the store holds: 8 TiB, so that the end of every range is an index.
pub const OBJECT_PAGES: u64 = 1 << 31;

/// Object of the store that holds the pages on their way in, by staging slot.
pub const SLOTS: ObjectId = ObjectId([u64::MAX; 3]);

/// Object of the store that holds a page.
pub fn object(page: PageNumber) -> ObjectId {
    ObjectId::from(page / OBJECT_PAGES)
}

/// Index of a page in its object.
pub fn index(page: PageNumber) -> u32 {
    (page % OBJECT_PAGES) as u32
}

/// Maps memory in the target that its children do not inherit.
fn map_area(agent: &Agent, bytes: u64) -> Result<u64, InjectError> {
    let start = map(agent, bytes)?;
    let mut batch = Batch::default();
    for advice in [libc::MADV_DONTFORK, libc::MADV_NOHUGEPAGE] {
        batch.call(libc::SYS_madvise, [start, bytes, advice as u64, 0, 0, 0]);
    }
    agent.call(&mut batch)?;
    Ok(start)
}

/// Maps the page that tells a child from its parent: a child finds it empty.
fn map_tag(agent: &Agent) -> Result<u64, InjectError> {
    let start = map(agent, PAGE)?;
    let mut batch = Batch::default();
    let wiped = batch.call(libc::SYS_madvise, [start, PAGE, libc::MADV_WIPEONFORK as u64, 0, 0, 0]);
    agent.call(&mut batch)?;
    batch.result(wiped).map_err(|e| InjectError::InTarget("madvise", e))?;
    Ok(start)
}

fn map(agent: &Agent, bytes: u64) -> Result<u64, InjectError> {
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
    let mut batch = Batch::default();
    let mapped = batch.call(libc::SYS_mmap, [0, bytes, prot, flags, u64::MAX, 0]);
    agent.call(&mut batch)?;
    batch.result(mapped).map(|a| a as u64).map_err(|e| InjectError::InTarget("mmap", e))
}
