//! Seeing a supervisor from outside while it runs (`tmem-watch`): what it says.
//!
//! The thread that answers is at ordinary priority; no fault ever waits for it. It asks the main thread for a [`Snapshot`], which costs
//! nothing while nobody asks.

mod rates;
mod snapshot;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tmem_watch::{Counters, Doors, Figure, Source, harmless};

pub use rates::Rates;
pub use snapshot::{Identity, take};

use crate::error::Error;
use crate::proc;
use crate::report::Snapshot;
use crate::shared::Shared;

/// By what supervisors are found.
pub const KIND: &str = "supervisor";
/// How long the main thread may take for a snapshot; it looks every 50 ms at least.
const PATIENCE: Duration = Duration::from_millis(400);

/// Opens the doors of this process, before it starts a program. From then on it is known as a supervisor.
///
/// # Errors
/// When a name or address cannot be had.
pub fn open(metrics: Option<SocketAddr>) -> Result<Doors, Error> {
    Doors::open(KIND, metrics).map_err(|e| Error::own(e.to_string()))
}

/// Starts the thread that answers.
pub fn start(shared: &Arc<Shared>, doors: Doors) {
    tmem_watch::start(Supervisor(Arc::clone(shared)), doors);
}

struct Supervisor(Arc<Shared>);

impl Source for Supervisor {
    type Figures = Snapshot;
    const FIGURES: &'static [Figure] = Snapshot::FIGURES;
    const PREFIX: &'static str = "tmem";

    fn take(&self) -> Option<Snapshot> {
        let mut snapshot = self.0.desk.ask(PATIENCE)?;
        let name = |pid| harmless(&proc::name(pid).unwrap_or_default());
        snapshot.command = name(snapshot.program);
        snapshot.processes.iter_mut().for_each(|process| process.name = name(process.pid));
        Some(snapshot)
    }

    /// Of the processes only those that are managed, so that a build has not a thousand of them.
    fn for_metrics(&self, snapshot: &mut Snapshot) {
        snapshot.processes.retain(|process| process.managed);
    }

    fn counters(&self) -> &Counters {
        &self.0.watch
    }

    fn is_over(&self) -> bool {
        self.0.stopping.load(Relaxed)
    }
}

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
