//! Seeing a supervisor from outside while it runs: `tmem top` over its control socket, Prometheus over `--metrics`.
//!
//! One thread of its own, at ordinary priority, answers all requests; no fault ever waits for it. It asks the main thread
//! for a [`Snapshot`], which costs nothing while nobody asks. Whatever a visitor does, it takes bounded memory and
//! time, and a defect in here must not harm the program: this thread may panic, unlike the others.

mod client;
pub mod http;
pub mod protocol;
mod server;
mod snapshot;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

pub use client::{Neighbours, Rates, Seen, look};
pub use server::{Doors, start};
pub use snapshot::{Identity, take};

use crate::report::Snapshot;

/// The name of the thread.
pub const THREAD: &str = "tmem-watch";

/// Where the main thread lays a snapshot when somebody wants one. Only the thread of this module asks.
#[derive(Default)]
pub struct Desk {
    wanted: AtomicBool,
    laid: Mutex<Option<Snapshot>>,
    ready: Condvar,
}

impl Desk {
    /// Whether somebody waits for a snapshot.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Relaxed)
    }

    /// Lays a snapshot there.
    pub fn lay(&self, snapshot: Snapshot) {
        *self.laid.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
        self.wanted.store(false, Relaxed);
        self.ready.notify_one();
    }

    /// Waits for a snapshot that is taken from now on, for some time.
    fn ask(&self, patience: Duration) -> Option<Snapshot> {
        let mut laid = self.laid.lock().unwrap_or_else(PoisonError::into_inner);
        *laid = None;
        self.wanted.store(true, Relaxed);
        let waited = self.ready.wait_timeout_while(laid, patience, |laid| laid.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}
