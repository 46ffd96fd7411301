//! What the program does to its own memory: each message changes what we hold, before anything else happens.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::agent::Agent;
use crate::counters::add;
use crate::pages::{PageNumber, Place};
use crate::proc;
use crate::shared::Shared;
use crate::space::{Inner, OBJECT_PAGES, SLOTS, Space, index, object};
use crate::sys::{self, MESSAGES_MAX, Message, PAGE, Uffd};

impl Space {
    /// Reads all messages: events take effect at once, faults are collected.
    pub fn drain(&self, shared: &Shared, inner: &mut Inner) {
        loop {
            let mut read = 0;
            for message in self.uffd.read() {
                read += 1;
                inner.changes += u64::from(!matches!(message, Message::Fault { .. }));
                match message {
                    Message::Fault { address, thread } => {
                        shared.faulter.store(thread, Relaxed);
                        shared.faulter_agent.store(inner.agent.as_ref().map_or(0, Agent::tid), Relaxed);
                        inner.faults.push(address / PAGE);
                    }
                    Message::Fork { child } => self.fork(shared, inner, Uffd::new(sys::adopt(child))),
                    Message::Remap { from, to, bytes } => self.remap(shared, inner, from, to, bytes),
                    Message::Remove { start, end } => self.remove(shared, inner, start, end),
                    Message::Unmap { start, end } => self.unmap(shared, inner, start, end),
                }
            }
            if read < MESSAGES_MAX {
                return;
            }
        }
    }

    /// A child got a copy of the address space. It misses exactly the pages that are away now.
    fn fork(&self, shared: &Shared, inner: &mut Inner, uffd: Uffd) {
        add(&shared.counters.forks_followed, 1);
        inner.forked = true;
        let Ok(pool) = shared.store.clone_pool(inner.pool) else {
            shared.fail_stop_all("a fork could not be followed");
        };
        shared.store.flush_object(pool, SLOTS);
        let mut child = Inner::new(pool);
        child.forked = true;
        child.relatives.clone_from(&inner.relatives);
        child.add_relative(inner.pool);
        inner.add_relative(pool);
        child.tag = self.tag;
        child.registered = inner.registered.clone();
        child.pages = inner.pages.clone();
        // Stored copies of pages that are at home belong to the parent only.
        let mut cached = Vec::new();
        child.pages.update(0..u64::MAX, |page, meta| {
            if meta.is_cached() {
                cached.push(page);
            }
            if meta.place() == Place::Home { meta.home().going(meta.is_going()) } else { meta }
        });
        for page in cached {
            shared.store.flush_page(child.key(page));
        }
        child.going_since = inner.going_since;
        let pid = self.pid.load(Relaxed);
        if pid != 0 {
            inner.wiped = proc::wiped_on_fork(pid);
        }
        child.wiped = inner.wiped.clone();
        for (&page, staged) in &inner.staged {
            if shared.store.put(child.key(page), staged.contents.page()).is_err() {
                shared.fail_stop_all("a page in staging could not be stored for a forked child");
            }
            child.set_place(page, Place::Stored);
        }
        let wiped: Vec<_> = child.wiped.iter().map(|m| (m.start, m.end)).collect();
        let space = Space::new(shared, uffd, child);
        {
            let mut child = space.lock();
            for (start, end) in wiped {
                space.forget(shared, &mut child, start / PAGE, end / PAGE);
            }
        }
        shared.adopt(space);
    }

    /// Pages moved: what is known of them moves along.
    fn remap(&self, shared: &Shared, inner: &mut Inner, from: u64, to: u64, bytes: u64) {
        // What lay at the new place was unmapped by the same call and told before; nothing of it is left.
        let (first, count, target) = (from / PAGE, bytes / PAGE, to / PAGE);
        self.forget(shared, inner, target, target + count);
        for (from, to, pages) in split_by_object(first, target, count) {
            let range = index(from)..index(from) + pages;
            shared.store.rekey_range(inner.pool, object(from), range, object(to), index(to));
        }
        let (kept, mut moved) = (&mut inner.kept, Vec::new());
        inner.pages.update(first..first + count, |page, meta| {
            moved.extend(kept.remove(&page).map(|print| (page - first + target, print)));
            meta
        });
        kept.extend(moved);
        inner.pages.rekey(first..first + count, target);
        let moved: Vec<_> = inner.staged.extract_if(|page, _| (first..first + count).contains(page)).collect();
        for (page, staged) in moved {
            let page = page - first + target;
            inner.slots[staged.slot as usize] = Some(page);
            inner.staged.insert(page, staged);
        }
        for (start, end) in inner.registered.overlaps(from, from + bytes) {
            inner.registered.remove(start, end);
            inner.registered.insert(start - from + to, end - from + to);
        }
        let runs: Vec<_> = inner.queue.iter().copied().filter(|r| (first..first + count).contains(&r.page)).collect();
        for run in runs {
            inner.arrive(shared, run.page - first + target, run.pages.into());
        }
        // Whoever waited at the old place finds nothing there now.
        let _ = self.uffd.wake(from, bytes);
    }

    /// `madvise` is about to drop a range. It is dropped after this message is read, at a time we do not learn:
    /// pages that are present now are on their way out and must not be evicted with their old contents.
    fn remove(&self, shared: &Shared, inner: &mut Inner, start: u64, end: u64) {
        self.forget(shared, inner, start / PAGE, end / PAGE);
        self.mark_going(inner, start, end);
    }

    /// Marks the present pages of a range as going.
    pub fn mark_going(&self, inner: &mut Inner, start: u64, end: u64) {
        let present = inner.present_runs(start, end);
        for r in &present {
            (r.start / PAGE..r.end / PAGE).for_each(|p| inner.pages.set(p, inner.pages.get(p).going(true)));
        }
        // A forked child without an agent cannot be looked at; nothing of it is evicted before it can.
        if !present.is_empty() || inner.pagemap.is_none() {
            inner.removes.push((start, end));
            inner.going_since.get_or_insert_with(Instant::now);
        }
    }

    fn unmap(&self, shared: &Shared, inner: &mut Inner, start: u64, end: u64) {
        self.forget(shared, inner, start / PAGE, end / PAGE);
        inner.registered.remove(start, end);
        let _ = self.uffd.wake(start, end - start);
    }

    /// Nothing that we hold of these pages is wanted any more.
    fn forget(&self, shared: &Shared, inner: &mut Inner, first: PageNumber, end: PageNumber) {
        let mut held = false;
        let mut staged = Vec::new();
        let kept = &mut inner.kept;
        inner.pages.update(first..end, |page, meta| {
            held |= meta.place() == Place::Stored || meta.is_cached();
            if meta.is_cached() {
                kept.remove(&page);
            }
            if meta.place() == Place::Staged {
                staged.push(page);
            }
            meta
        });
        for page in staged {
            inner.unstage(page);
        }
        if held {
            for (from, _, pages) in split_by_object(first, first, end - first) {
                shared.store.flush_range(inner.pool, object(from), index(from)..index(from) + pages);
            }
        }
        inner.pages.forget(first..end);
    }
}

/// Splits a run of pages where its source or its target passes from one object of the store to the next:
/// `(source, target, pages)`.
fn split_by_object(mut from: PageNumber, mut to: PageNumber, mut pages: u64) -> Vec<(PageNumber, PageNumber, u32)> {
    let mut out = Vec::new();
    while pages > 0 {
        let n = pages.min(OBJECT_PAGES - from % OBJECT_PAGES).min(OBJECT_PAGES - to % OBJECT_PAGES);
        out.push((from, to, n as u32));
        (from, to, pages) = (from + n, to + n, pages - n);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_split_at_object_borders() {
        let border = OBJECT_PAGES;
        assert_eq!(split_by_object(5, 9, 3), [(5, 9, 3)]);
        assert_eq!(split_by_object(border - 2, 10, 5), [(border - 2, 10, 2), (border, 12, 3)]);
    }
}
