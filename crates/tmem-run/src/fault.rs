//! Serving faults: the page comes from the store, from staging, or is new and zero.
//!
//! All of it happens under the lock of the [`Space`]. A fault is not believed but looked up: by the time it is
//! served, its page may have come back already or may be unmapped, so what counts is the page's place now.

use std::cmp::Ordering;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::counters::add;
use crate::pages::{PageNumber, Place};
use crate::shared::Shared;
use crate::space::{Inner, Space};
use crate::streams::WINDOW_MAX;
use crate::sys::{Filled, PAGE};

/// Greatest window while memory is over the high mark.
const WINDOW_TIGHT: u64 = 32;

/// Pages that come back in so large a window belong to a long stream.
const STREAM_PAGES_MIN: u64 = WINDOW_TIGHT;

/// Memory that a fault-serving thread works with; allocated once.
pub struct Scratch {
    buffer: Box<[u8]>,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch { buffer: vec![0; (WINDOW_MAX * PAGE) as usize].into_boxed_slice() }
    }
}

/// How serving one fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// The thread goes on.
    Done,
    /// An event is under way: read it, then look again.
    Changing,
    /// There is no room; the fault waits.
    Parked,
}

/// An error with what it came from.
fn with_source(error: &tmem::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl Space {
    /// Reads and handles everything that waits: first events, then faults.
    pub fn pump(&self, shared: &Shared, inner: &mut Inner, scratch: &mut Scratch) {
        self.drain(shared, inner);
        while let Some(page) = inner.faults.pop() {
            let start = Instant::now();
            match self.serve(shared, inner, scratch, page, true) {
                Served::Done => shared.faults.record(start.elapsed().as_nanos() as u64),
                Served::Parked => {}
                Served::Changing => {
                    inner.faults.push(page);
                    std::thread::yield_now();
                    self.drain(shared, inner);
                }
            }
        }
        self.publish(shared, inner);
    }

    /// Serves the faults that waited for room, as far as there is room or they waited long enough.
    pub fn serve_parked(&self, shared: &Shared, inner: &mut Inner, scratch: &mut Scratch) {
        for _ in 0..inner.parked.len() {
            let Some((page, since)) = inner.parked.pop_front() else { break };
            let room = shared.has_room() || since.elapsed() > shared.patience();
            match self.serve(shared, inner, scratch, page, !room) {
                Served::Done => shared.faults.record(since.elapsed().as_nanos() as u64),
                Served::Changing => {
                    inner.parked.push_front((page, since));
                    self.drain(shared, inner);
                }
                Served::Parked => {
                    // Parking again must not renew its patience.
                    if let Some(last) = inner.parked.back_mut() {
                        last.1 = since;
                    }
                }
            }
        }
        // Reading an event may have brought faults along, which nobody else would hear of.
        self.pump(shared, inner, scratch);
    }

    /// Serves all collected faults now, room or not.
    pub fn bring_home(&self, shared: &Shared, inner: &mut Inner, scratch: &mut Scratch) {
        let parked: Vec<_> = inner.parked.drain(..).map(|(page, _)| page).collect();
        inner.faults.extend(parked);
        while let Some(page) = inner.faults.pop() {
            if self.serve(shared, inner, scratch, page, false) == Served::Changing {
                inner.faults.push(page);
                std::thread::yield_now();
                self.drain(shared, inner);
            }
        }
    }

    fn serve(
        &self,
        shared: &Shared,
        inner: &mut Inner,
        scratch: &mut Scratch,
        page: PageNumber,
        may_park: bool,
    ) -> Served {
        if inner.dead {
            return Served::Done;
        }
        let place = inner.pages.get(page).place();
        if may_park && place != Place::Staged && !shared.has_room() && !shared.patience().is_zero() {
            if !inner.parked.iter().any(|&(p, _)| p == page) {
                inner.parked.push_back((page, Instant::now()));
                add(&shared.counters.faults_parked, 1);
            }
            shared.need_room();
            return Served::Parked;
        }
        match place {
            Place::Home => self.fill_zero(shared, inner, page),
            Place::Staged => self.unstage_home(shared, inner, page),
            Place::Stored => self.fetch(shared, inner, scratch, page, WINDOW_MAX),
        }
    }

    /// First touch inside a registered range: zeros, for the neighbours too if the access is sequential.
    fn fill_zero(&self, shared: &Shared, inner: &mut Inner, page: PageNumber) -> Served {
        let window = inner.streams.window(page);
        let (start, end) = inner.registered.containing(page * PAGE).unwrap_or((page * PAGE, (page + 1) * PAGE));
        let (low, high) = (start / PAGE, end / PAGE);
        // First touches are dense far more often than not: start with a few pages, unlike a fetch.
        let pages = (window.pages * 4).min(WINDOW_MAX);
        let first = if window.downward { page.saturating_sub(pages - 1).max(low) } else { page };
        let most = if window.downward { page + 1 - first } else { pages.min(high - page).max(1) };
        let (first, pages) = if window.downward {
            let away = (0..most).take_while(|&i| inner.pages.get(page - i).place() == Place::Home).count() as u64;
            (page + 1 - away, away)
        } else {
            (first, inner.pages.run_forward(page, Place::Home, most))
        };
        match self.uffd.zero(first * PAGE, pages * PAGE) {
            Filled::All => self.zero_filled(shared, inner, first, pages),
            Filled::Changing(0) => return Served::Changing,
            Filled::Changing(bytes) => {
                self.zero_filled(shared, inner, first, bytes / PAGE);
                // Short because a page was there already: the faulting one may not have been reached.
                if window.downward {
                    return self.fill_one_zero(shared, inner, page);
                }
            }
            // In the way: a page that is there already, or the border of two mappings.
            Filled::Exists(_) | Filled::Gone if pages > 1 => return self.fill_one_zero(shared, inner, page),
            Filled::Exists(_) | Filled::Gone => {
                let _ = self.uffd.wake(page * PAGE, PAGE);
            }
            Filled::Dead => inner.dead = true,
            Filled::NoMemory => {
                inner.parked.push_back((page, Instant::now()));
                return Served::Parked;
            }
        }
        inner.streams.brought(window, first, pages);
        Served::Done
    }

    fn fill_one_zero(&self, shared: &Shared, inner: &mut Inner, page: PageNumber) -> Served {
        match self.uffd.zero(page * PAGE, PAGE) {
            Filled::All => self.zero_filled(shared, inner, page, 1),
            Filled::Changing(_) => return Served::Changing,
            // Present or unmapped: whoever waits looks again.
            _ => drop(self.uffd.wake(page * PAGE, PAGE)),
        }
        Served::Done
    }

    fn zero_filled(&self, shared: &Shared, inner: &mut Inner, first: PageNumber, pages: u64) {
        // They were missing, so a madvise that had announced itself is over, and no stored copy counts any more.
        let mut stale = Vec::new();
        inner.pages.update(first..first + pages, |page, meta| {
            if meta.is_cached() {
                stale.push(page);
            }
            meta.home()
        });
        for page in stale {
            inner.kept.remove(&page);
            shared.store.flush_page(inner.key(page));
        }
        inner.arrive(shared, first, pages);
        shared.account.note((pages * PAGE) as i64);
        add(&shared.counters.pages_zero_filled, pages);
    }

    /// The page is still uncompressed on its way out: copy it back.
    fn unstage_home(&self, shared: &Shared, inner: &mut Inner, page: PageNumber) -> Served {
        match self.uffd.copy(page * PAGE, inner.staged[&page].contents.page()) {
            Filled::All => {
                let meta = inner.pages.get(page);
                inner.pages.set(page, meta.home().heated());
                inner.unstage(page);
                inner.arrive(shared, page, 1);
                shared.account.note(PAGE as i64);
                add(&shared.counters.pages_returned, 1);
                add(&shared.counters.pages_from_staging, 1);
                Served::Done
            }
            other => self.not_copied(shared, inner, page, other),
        }
    }

    /// The page is in the store: bring it back, with the neighbours that its stream asks for.
    fn fetch(&self, shared: &Shared, inner: &mut Inner, scratch: &mut Scratch, page: PageNumber, most: u64) -> Served {
        let window = inner.streams.window(page);
        let most = if shared.is_tight() { window.pages.min(WINDOW_TIGHT) } else { window.pages }.min(most);
        let (first, pages) = if window.downward {
            let pages = (0..most.min(page + 1)).take_while(|&i| inner.pages.get(page - i).place() == Place::Stored);
            let pages = pages.count() as u64;
            (page + 1 - pages, pages)
        } else {
            (page, inner.pages.run_forward(page, Place::Stored, most))
        };
        let (buffer, _) = scratch.buffer[..(pages * PAGE) as usize].as_chunks_mut::<{ PAGE as usize }>();
        match shared.store.get_range(inner.key(first), buffer) {
            Ok(found) if found as u64 == pages => {}
            // Perhaps nobody will ever ask for the others.
            _ if pages > 1 => return self.fetch(shared, inner, scratch, page, 1),
            failed => {
                let why = failed.err().map_or_else(|| "it is missing".to_owned(), |error| with_source(&error));
                shared.fail_stop(self.pid.load(Relaxed), &format!("a stored page could not be read back: {why}"));
                // Nobody goes on asking for it.
                inner.dead = true;
                return Served::Done;
            }
        }
        let buffer = &*buffer;
        let (mut done, mut step) = (0, pages);
        while done < pages {
            let part = done as usize..(done + step).min(pages) as usize;
            match self.uffd.copy((first + done) * PAGE, buffer[part].as_flattened()) {
                Filled::All => done = (done + step).min(pages),
                Filled::Changing(bytes) if bytes > 0 => done += bytes / PAGE,
                // One call cannot span two mappings, which may lie side by side.
                Filled::Gone if step > 1 => step = 1,
                other => {
                    self.came_home(shared, inner, first, &buffer[..done as usize], page);
                    let short = self.not_copied(shared, inner, first + done, other);
                    return match (first + done).cmp(&page) {
                        // The window ended short of the page that was asked for: that one alone.
                        Ordering::Less => self.fetch(shared, inner, scratch, page, 1),
                        Ordering::Equal => short,
                        Ordering::Greater => Served::Done,
                    };
                }
            }
        }
        self.came_home(shared, inner, first, &buffer[..done as usize], page);
        inner.streams.brought(window, first, done);
        Served::Done
    }

    /// Bookkeeping for pages that were copied home from the store.
    fn came_home(
        &self,
        shared: &Shared,
        inner: &mut Inner,
        first: PageNumber,
        contents: &[tmem::Page],
        asked: PageNumber,
    ) {
        let pages = contents.len() as u64;
        if pages == 0 {
            return;
        }
        for (page, contents) in (first..).zip(contents) {
            let meta = inner.pages.get(page);
            let keeps = shared.keeps_copy(page, inner.key(page), pages >= STREAM_PAGES_MIN);
            if keeps {
                inner.kept.insert(page, shared.fingerprint(contents));
            }
            let home = meta.home().cached(keeps).passing(pages >= STREAM_PAGES_MIN);
            let soon = page == asked && shared.is_soon(meta.epoch());
            add(&shared.counters.pages_refaulted, soon.into());
            inner.pages.set(page, if soon && pages == 1 { home.heated() } else { home.cooled() });
        }
        inner.arrive(shared, first, pages);
        shared.account.note((pages * PAGE) as i64);
        add(&shared.counters.pages_returned, pages);
        add(&shared.counters.pages_read_ahead, pages - u64::from(first <= asked && asked < first + pages));
    }

    fn not_copied(&self, shared: &Shared, inner: &mut Inner, page: PageNumber, outcome: Filled) -> Served {
        match outcome {
            Filled::Changing(_) => return Served::Changing,
            Filled::Dead => inner.dead = true,
            Filled::NoMemory => {
                inner.parked.push_back((page, Instant::now()));
                return Served::Parked;
            }
            Filled::Exists(_) => {
                // The page is with its owner after all, who may have changed it: what we hold is out of date.
                if inner.pages.get(page).place() == Place::Staged {
                    inner.unstage(page);
                } else {
                    shared.store.flush_page(inner.key(page));
                }
                inner.set_home(page);
                let _ = self.uffd.wake(page * PAGE, PAGE);
            }
            Filled::Gone | Filled::All => {
                let _ = self.uffd.wake(page * PAGE, PAGE);
            }
        }
        Served::Done
    }
}
