//! Locks of pages: who changes a part of a page, or a page of a stretch, does so alone.
//!
//! A page has one of [`STRIPES`] locks, neighbours have different ones. A stretch of up to [`RUN_PAGES`] pages takes its locks in
//! ascending order, and nobody holds locks of two stretches, so there is no deadlock.

use std::sync::{Mutex, MutexGuard, PoisonError};

const STRIPES: u64 = 1024;

/// Pages that can be locked together, if they lie between two multiples of it: a leaf of the store's index.
pub const RUN_PAGES: u64 = 64;

const _: () = assert!(STRIPES.is_multiple_of(RUN_PAGES), "a run has ascending stripes");

/// The locks of an export's pages.
pub struct Stripes(Box<[Mutex<()>]>);

/// As long as it lives, the page is ours.
pub type Held<'a> = MutexGuard<'a, ()>;

impl Stripes {
    /// Bytes that they take.
    pub const BYTES: u64 = STRIPES * size_of::<Mutex<()>>() as u64;

    pub fn new() -> Self {
        Self((0..STRIPES).map(|_| Mutex::new(())).collect())
    }

    /// Locks a page.
    pub fn lock(&self, page: u64) -> Held<'_> {
        // The lock guards no data of its own: whoever panicked left the page as the store had it.
        self.0[(page % STRIPES) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the pages of a stretch of any length: those of a run, or all that there are.
    pub fn lock_pages(&self, pages: std::ops::Range<u64>) -> Vec<Held<'_>> {
        if pages.start / RUN_PAGES == (pages.end - 1) / RUN_PAGES { self.lock_run(pages) } else { self.lock_all() }
    }

    /// Locks everything.
    fn lock_all(&self) -> Vec<Held<'_>> {
        (0..STRIPES).map(|page| self.lock(page)).collect()
    }

    /// Locks the pages of a stretch that lies in one run.
    pub fn lock_run(&self, pages: std::ops::Range<u64>) -> Vec<Held<'_>> {
        debug_assert!(pages.is_empty() || pages.start / RUN_PAGES == (pages.end - 1) / RUN_PAGES);
        pages.map(|page| self.lock(page)).collect()
    }
}
