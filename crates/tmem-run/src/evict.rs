//! Eviction: cold pages leave, a batch at a time, away from the fault path.
//!
//! 1. Under the lock: choose from the old end of the queue, have the agent MOVE the pages to staging, read them from
//!    there, note them as staged. From here on a touch brings a page straight back from what was read. The process may end
//!    and leave its pages to a forked child as soon as the lock is free, so they must have been read by then.
//! 2. Without the lock: compress, put into the store.
//! 3. Under the lock: pages that are still staged are now stored; for the others the stored copy is flushed.
//! 4. With the next message (or at rest) the emptied staging area is dropped.
//!
//! A page between 1 and 3 is *in flight* and is not chosen again, so two evictors never store one page at once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tmem::{Key, PoolId};

use crate::agent::{Agent, Batch};
use crate::choose::{LOOKS_MAX, choose, kernel_touched_pages};
use crate::counters::add;
use crate::fingerprint::Fingerprint;
use crate::pages::{PageNumber, Place};
use crate::proc;
use crate::shared::{BATCH_PAGES, Shared};
use crate::space::{Contents, Inner, SLOTS, Space, Staged, index, object};
use crate::sys::{self, Errno, Filled, PAGE};
use crate::workers::Server;

/// Pages and MOVEs in one message to the agent: bounds how long faults wait for the lock.
pub const MESSAGE_PAGES_MAX: usize = 64;

/// Pages noted as stored under one hold of the lock.
const COMMIT_PAGES: usize = 32;

/// Turns that a page sits out which would not move, or could not be stored.
const STUCK_CREDIT: u32 = 3;

/// A page on its way out.
struct Item {
    page: PageNumber,
    key: Key,
    slot_key: Key,
    slot: u32,
    contents: Contents,
    /// What it was when the store's copy was, if there is one.
    kept: Option<Fingerprint>,
    /// A forked relative had it too.
    shared: bool,
    /// Nothing says that it will be wanted soon.
    passing: bool,
    copy: Copy,
}

/// Where the contents of a page on its way out are, outside the lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// Only in staging.
    None,
    /// In the store, under the key of the staging slot: an eviction under way and what else may happen to the
    /// page's address meanwhile never meet in one key.
    New,
    /// In the store, under the page's own key, from an earlier eviction.
    Kept,
}

/// What one evictor thread works with.
pub struct Evictor {
    worker: usize,
    /// What was read from staging, one chunk for each message; used again when nobody refers to it any more.
    chunks: Vec<Arc<Vec<u8>>>,
    items: Vec<Item>,
    /// Pools that may hold the same pages already.
    relatives: Vec<PoolId>,
}

/// What one step of eviction achieved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Pages that left.
    pub pages: u64,
    /// True if it only looked at pages that were too hot to leave: another step may find colder ones.
    pub looked: bool,
}

impl Evictor {
    /// The evictor that uses staging area `worker`.
    pub fn new(worker: usize) -> Evictor {
        Evictor {
            worker,
            chunks: vec![Arc::default(); BATCH_PAGES / MESSAGE_PAGES_MAX],
            items: Vec::with_capacity(BATCH_PAGES),
            relatives: Vec::new(),
        }
    }

    /// Evicts one batch from `space`. Faults that arrive meanwhile are served in between by `server`.
    pub fn step(&mut self, shared: &Shared, space: &Space, server: &mut Server) -> Step {
        self.items.clear();
        let pid = space.pid.load(Relaxed);
        // A stopped process has a stopped agent, which would keep us waiting with the lock held.
        if !matches!(proc::state(pid), Some(('R' | 'S' | 'D', _))) {
            return Step::default();
        }
        let held = kernel_touched_pages(pid);
        let mut looked = false;
        for message in 0..self.chunks.len() {
            let mut inner = space.lock();
            space.pump(shared, &mut inner, &mut server.scratch);
            let more = self.move_out(shared, space, &mut inner, &held, message);
            looked |= more;
            if !more {
                break;
            }
        }
        if self.items.is_empty() {
            return Step { pages: 0, looked };
        }
        self.compress(shared, server);
        let epoch = shared.evicted(self.items.len() as u64);
        let mut pages = 0;
        // In pieces, so that no fault waits for all of it.
        for first in (0..self.items.len()).step_by(COMMIT_PAGES) {
            let mut inner = space.lock();
            let part = first..(first + COMMIT_PAGES).min(self.items.len());
            pages += self.commit(shared, space, &mut inner, part, epoch);
            space.pump(shared, &mut inner, &mut server.scratch);
        }
        Step { pages, looked: true }
    }

    /// Empties this evictor's staging in `space` when there is no next message to do it with.
    pub fn rest(&mut self, shared: &Shared, space: &Space) {
        if !matches!(proc::state(space.pid.load(Relaxed)), Some(('R' | 'S' | 'D', _))) {
            return;
        }
        let mut inner = space.lock();
        if inner.dead || inner.untrashed.get(self.worker).is_none_or(Vec::is_empty) {
            return;
        }
        let mut batch = Batch::default();
        let trash = self.empty_staging(shared, &inner, &mut batch);
        if !inner.call_agent(&mut batch) {
            return;
        }
        inner.untrashed[self.worker] = not_dropped(trash, &batch);
    }

    /// Step 4.
    fn empty_staging(&self, shared: &Shared, inner: &Inner, batch: &mut Batch) -> Vec<(Range<u32>, usize)> {
        let slots = inner.untrashed[self.worker].iter().map(|slots| slots.len() as i64).sum::<i64>();
        shared.account.note(-slots * PAGE as i64);
        add_trash(inner, self.worker, batch)
    }

    /// A part of step 1. True if there were pages to look at, although perhaps none to take.
    fn move_out(
        &mut self,
        shared: &Shared,
        space: &Space,
        inner: &mut Inner,
        held: &[PageNumber],
        message: usize,
    ) -> bool {
        if inner.dead || inner.agent.is_none() {
            return false;
        }
        let first = (self.worker * BATCH_PAGES + message * MESSAGE_PAGES_MAX) as u32;
        let mut slot = first;
        // What is in a slot must be what this message moves there.
        let slots = first..first + MESSAGE_PAGES_MAX as u32;
        let is_clean = inner.untrashed[self.worker].iter().all(|r| r.end <= slots.start || slots.end <= r.start);
        let (runs, looks) = if is_clean { choose(shared, space, inner, held) } else { (Vec::new(), LOOKS_MAX) };
        let mut batch = Batch::default();
        let trash = self.empty_staging(shared, inner, &mut batch);
        if runs.is_empty() && batch.is_empty() {
            return looks >= LOOKS_MAX;
        }
        let mut moves = Vec::with_capacity(runs.len());
        for run in &runs {
            let pages = run.end - run.start;
            if inner.forked && inner.pages.get(run.start).is_stuck() {
                // Shared with a forked relative: have the kernel give this process copies of its own first.
                let advice = libc::MADV_POPULATE_WRITE as u64;
                batch.call(libc::SYS_madvise, [run.start * PAGE, pages * PAGE, advice, 0, 0, 0]);
            }
            let (to, from) = (inner.slot_address(slot), run.start * PAGE);
            moves.push((batch.move_pages(inner.numbers.0, to, from, pages * PAGE, 0), slot));
            slot += pages as u32;
        }
        if !inner.call_agent(&mut batch) {
            return false;
        }
        inner.untrashed[self.worker] = not_dropped(trash, &batch);
        if slot > first {
            inner.untrashed[self.worker].push(first..slot);
        }
        self.relatives.clone_from(&inner.relatives);
        let mut outcomes = Vec::with_capacity(runs.len());
        for (run, &((call, words), slot)) in runs.iter().zip(&moves) {
            let told = (batch.word(words + 4) as i64).max(0) as u64 / PAGE;
            match moved_in_truth(inner, run, told, batch.result(call).err(), slot) {
                Some(outcome) => outcomes.push(outcome),
                None => {
                    give_up(shared, space, inner);
                    return false;
                }
            }
        }
        let parts = moves.iter().zip(&outcomes).filter(|(_, (pages, _))| *pages > 0);
        let parts: Vec<_> =
            parts.map(|(&(_, slot), &(pages, _))| (inner.slot_address(slot), (pages * PAGE) as usize)).collect();
        if !self.read_staging(shared, space, inner, &parts, message) {
            return false;
        }
        let mut contents = Contents::first_of(&self.chunks[message]);
        for ((run, &(_, slot)), outcome) in runs.into_iter().zip(&moves).zip(outcomes) {
            self.moved(shared, inner, run, outcome, slot, &mut contents);
        }
        looks > 0
    }

    /// Reads what one message moved to staging, by address and bytes. False if it is lost, as when the process ends.
    fn read_staging(
        &mut self,
        shared: &Shared,
        space: &Space,
        inner: &mut Inner,
        parts: &[(u64, usize)],
        message: usize,
    ) -> bool {
        if Arc::get_mut(&mut self.chunks[message]).is_none() {
            self.chunks[message] = Arc::default();
        }
        let chunk = Arc::get_mut(&mut self.chunks[message]).expect("a new chunk has no other owner");
        chunk.resize(parts.iter().map(|&(_, bytes)| bytes).sum(), 0);
        // As memory of the agent's thread, which lives as long as the memory is in our care; the first thread may not.
        let agent = inner.agent.as_ref().map_or(0, Agent::tid);
        if chunk.is_empty() || sys::read_memory_runs(agent, parts, chunk) == Ok(chunk.len()) {
            return true;
        }
        give_up(shared, space, inner);
        false
    }

    /// Notes the outcome of one MOVE.
    fn moved(
        &mut self,
        shared: &Shared,
        inner: &mut Inner,
        run: Range<PageNumber>,
        (moved, error): (u64, Option<Errno>),
        slot: u32,
        contents: &mut Contents,
    ) {
        for i in 0..moved {
            let (page, slot) = (run.start + i, slot + i as u32);
            let before = inner.set_place(page, Place::Staged);
            let contents = contents.take_next();
            inner.staged.insert(page, Staged { slot, contents: contents.clone() });
            inner.slots[slot as usize] = Some(page);
            self.items.push(Item {
                page,
                key: inner.key(page),
                slot_key: inner.slot_key(slot),
                slot,
                contents,
                kept: inner.kept.remove(&page).filter(|_| before.is_cached()),
                shared: before.is_stuck(),
                passing: before.is_passing(),
                copy: Copy::None,
            });
        }
        add(&shared.counters.pages_evicted, moved);
        let failed = run.start + moved;
        (failed..run.end).for_each(|page| {
            inner.in_flight.remove(&page);
        });
        if failed >= run.end {
            return;
        }
        match error {
            Some(Errno(libc::ENOENT)) if moved == 0 => {}
            // Across two mappings, or one of another protection: try smaller pieces before giving up on it.
            Some(Errno(libc::EINVAL)) if moved == 0 && run.end - run.start > 1 => {
                let middle = run.start.midpoint(run.end);
                inner.arrive(shared, run.start, middle - run.start);
                inner.arrive(shared, middle, run.end - middle);
                return;
            }
            // An event is under way, or the kernel had no other reason to stop.
            Some(Errno(libc::EAGAIN)) => {
                inner.arrive(shared, failed, run.end - failed);
                return;
            }
            // Not exclusive: a relative shares it, or did and has gone, but no write has claimed it since. Very likely the
            // rest of the run too.
            Some(Errno(libc::EBUSY)) if !inner.pages.get(failed).is_stuck() => {
                inner.forked = true;
                (failed..run.end).for_each(|page| inner.pages.set(page, inner.pages.get(page).stuck(true)));
                inner.arrive(shared, failed, run.end - failed);
                return;
            }
            _ => {
                let meta = inner.pages.get(failed);
                inner.pages.set(failed, meta.stuck(true).with_credit(STUCK_CREDIT));
                inner.arrive(shared, failed, 1);
                add(&shared.counters.pages_stuck, 1);
            }
        }
        if failed + 1 < run.end {
            inner.arrive(shared, failed + 1, run.end - failed - 1);
        }
    }

    /// Step 2.
    fn compress(&mut self, shared: &Shared, server: &mut Server) {
        let mut taken = 0;
        for item in &mut self.items {
            server.serve(shared, Duration::ZERO);
            let page = item.contents.page();
            if let Some(kept) = item.kept {
                let good = kept == shared.fingerprint(page);
                shared.swapcache.note(good);
                if good {
                    add(&shared.counters.swapcache_hits, 1);
                    item.copy = Copy::Kept;
                    continue;
                }
            }
            let like = |pool: &PoolId| shared.store.put_like(item.slot_key, page, Key { pool: *pool, ..item.key });
            if item.shared && self.relatives.iter().rev().any(like) {
                item.copy = Copy::New;
                continue;
            }
            // What passes through RAM on its way to a fast disk gains nothing from being dense.
            let put = if item.passing && shared.spill.is_fast() {
                shared.store.put_quickly(item.slot_key, page)
            } else {
                shared.store.put(item.slot_key, page)
            };
            if let Ok(put) = put {
                item.copy = Copy::New;
                taken += put.stored_bytes as u64;
            }
        }
        shared.account.note(taken as i64);
    }

    /// Step 3. Returns the pages that are stored now.
    fn commit(&self, shared: &Shared, space: &Space, inner: &mut Inner, part: Range<usize>, epoch: u16) -> u64 {
        if inner.dead {
            return 0;
        }
        let mut pages = 0;
        for item in &self.items[part] {
            inner.in_flight.remove(&item.page);
            // It may have come back, been dropped or moved to another address meanwhile.
            match (inner.slots[item.slot as usize], item.copy) {
                (None, Copy::New) => drop(shared.store.flush_page(item.slot_key)),
                // Another page may have been moved to this address, with its stored copy.
                (None, Copy::Kept) if inner.pages.get(item.page).place() != Place::Stored => {
                    shared.store.flush_page(item.key);
                }
                (None, _) => {}
                (Some(owner), Copy::New) => {
                    let slot = item.slot;
                    shared.store.rekey_range(inner.pool, SLOTS, slot..slot + 1, object(owner), index(owner));
                    stored(inner, owner, epoch);
                    pages += 1;
                }
                (Some(owner), Copy::Kept) if owner == item.page => {
                    stored(inner, owner, epoch);
                    pages += 1;
                }
                (Some(owner), _) => return_home(shared, space, inner, owner, item.contents.page()),
            }
        }
        pages
    }
}

/// Has the agent drop what was left in one part of the staging area: it moves to the trash area, whose userfaultfd has no
/// events, because dropping it in place would raise one. Gives the runs of slots with their calls.
pub fn add_trash(inner: &Inner, part: usize, batch: &mut Batch) -> Vec<(Range<u32>, usize)> {
    const MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;
    let mut calls = Vec::new();
    for slots in &inner.untrashed[part] {
        let (at, bytes) = (u64::from(slots.start) * PAGE, slots.len() as u64 * PAGE);
        let (to, from) = (inner.trash + at, inner.staging + at);
        let (call, _) = batch.move_pages(inner.numbers.1, to, from, bytes, MODE_ALLOW_SRC_HOLES);
        calls.push((slots.clone(), call));
        batch.call(libc::SYS_madvise, [inner.trash + at, bytes, libc::MADV_DONTNEED as u64, 0, 0, 0]);
    }
    calls
}

/// The runs of slots that [`add_trash`] could not have emptied, once the batch came back.
pub fn not_dropped(trash: Vec<(Range<u32>, usize)>, batch: &Batch) -> Vec<Range<u32>> {
    trash.into_iter().filter(|&(_, call)| batch.result(call).is_err()).map(|(slots, _)| slots).collect()
}

/// How many pages of `run` a MOVE to `slot` took, and the error for the next one; `None` if that cannot be told.
///
/// The kernel may take more than it tells: since Linux 6.18, when a page changed under its hands (the processor marked it as
/// accessed, say), `move_pages` tries again, succeeds, still has the old EAGAIN in hand, tries once more and ends with EEXIST,
/// because the page lies in its new place already. So after an error it is looked up: the slots were empty before.
fn moved_in_truth(
    inner: &Inner,
    run: &Range<PageNumber>,
    told: u64,
    error: Option<Errno>,
    slot: u32,
) -> Option<(u64, Option<Errno>)> {
    // That a page is not there is found out after it was found that the slot is empty.
    if error.is_none() || (told == 0 && error == Some(Errno(libc::ENOENT))) {
        return Some((told, error));
    }
    let pagemap = inner.pagemap.as_ref()?;
    let mut moved = told;
    while moved < run.end - run.start {
        let at_home = sys::is_mapped(pagemap, run.start + moved)?;
        if at_home || !sys::is_mapped(pagemap, inner.slot_address(slot) / PAGE + moved)? {
            break;
        }
        moved += 1;
    }
    // What the error was about is done; the rest was not tried.
    let error = if moved > told { Some(Errno(libc::EAGAIN)) } else { error };
    Some((moved, error))
}

/// What was moved to staging cannot be had. That is in order if the process is ending; any other would get wrong data.
pub fn give_up(shared: &Shared, space: &Space, inner: &mut Inner) {
    // An agent that ends takes a moment: its memory is gone before it is.
    let agent = inner.agent.as_ref().map_or(0, Agent::tid);
    let until = Instant::now() + Duration::from_secs(1);
    while !matches!(proc::state(agent), Some(('Z' | 'X', _)) | None) {
        if Instant::now() > until {
            shared.fail_stop(space.pid.load(Relaxed), "pages in staging could not be read");
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    inner.dead = true;
}

/// A page that could not be stored goes back to its owner.
fn return_home(shared: &Shared, space: &Space, inner: &mut Inner, page: PageNumber, bytes: &tmem::Page) {
    loop {
        match space.uffd.copy(page * PAGE, bytes) {
            Filled::Changing(_) => {
                space.drain(shared, inner);
                // The event may have dropped or moved it again; it is then no business of ours any more,
                // unless it is still staged under another number: leave it staged, a fault finds it there.
                if inner.pages.get(page).place() != Place::Staged {
                    return;
                }
                std::thread::yield_now();
            }
            Filled::NoMemory => std::thread::sleep(Duration::from_millis(1)),
            Filled::Dead => {
                inner.dead = true;
                return;
            }
            _ => break,
        }
    }
    inner.unstage(page);
    let meta = inner.pages.get(page);
    inner.pages.set(page, meta.home().with_credit(STUCK_CREDIT));
    inner.arrive(shared, page, 1);
    shared.account.note(PAGE as i64);
    add(&shared.counters.pages_incompressible, 1);
}

/// Notes that a staged page is in the store now.
pub fn stored(inner: &mut Inner, page: PageNumber, epoch: u16) {
    inner.unstage(page);
    let meta = inner.pages.get(page);
    inner.pages.set(page, meta.at(Place::Stored).with_epoch(epoch));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use tmem::{Config, PoolKind, PoolOptions, Store};

    /// A page of this process, touched or not.
    fn page(touched: bool) -> PageNumber {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of one page, which stays until the test ends.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, prot, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        if touched {
            // SAFETY: the mapping was just made and is writable.
            unsafe { at.cast::<u8>().write(1) };
        }
        at as u64 / PAGE
    }

    #[test]
    fn a_page_that_the_kernel_moved_without_telling_is_found() {
        let store = Store::new(Config::new(2 << 20)).unwrap();
        let mut inner = Inner::new(store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap());
        inner.pagemap = Some(File::open("/proc/self/pagemap").unwrap());
        let (full, empty) = (page(true), page(false));
        let mut answer = |from: PageNumber, slot: PageNumber, told, error| {
            inner.staging = slot * PAGE;
            moved_in_truth(&inner, &(from..from + 1), told, error, 0).unwrap()
        };
        let errno = |e| Some(Errno(e));
        assert_eq!(answer(empty, full, 0, errno(libc::EEXIST)), (1, errno(libc::EAGAIN)), "it is in its slot");
        assert_eq!(answer(full, full, 0, errno(libc::EEXIST)), (0, errno(libc::EEXIST)), "it is still at home");
        assert_eq!(answer(empty, empty, 0, errno(libc::EEXIST)), (0, errno(libc::EEXIST)), "it is nowhere");
        assert_eq!(answer(full, empty, 0, errno(libc::EAGAIN)), (0, errno(libc::EAGAIN)), "an event is under way");
        assert_eq!(answer(empty, full, 1, None), (1, None), "all of it was told");
    }
}
