//! Seeing a server from outside while it runs (`tmem-watch`): what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;
use tmem_watch::{Counters, Doors, Figure, Source, VERSION};

use crate::error::Error;
use crate::figures::Snapshot;
use crate::server::Shared;

/// By what servers are found.
pub const KIND: &str = "disk";
/// What their metrics begin with.
pub const PREFIX: &str = "tmem_disk";

/// Opens the doors of this process, which from then on is known as a server of disks.
pub fn open(metrics: Option<SocketAddr>) -> Result<Doors, Error> {
    Doors::open(KIND, metrics).map_err(|e| Error::new(e.to_string()))
}

/// Reads the figures of a server.
///
/// # Errors
/// When they are none: what to tell the user.
pub fn snapshot_of(figures: Value) -> Result<Snapshot, String> {
    serde_json::from_value(figures).map_err(|_| "its answer is not understood".to_owned())
}

/// A server that listens somewhere.
pub struct Seen {
    pub shared: Arc<Shared>,
    pub address: String,
    pub metrics: Option<String>,
}

impl Source for Seen {
    type Figures = Snapshot;
    const FIGURES: &'static [Figure] = Snapshot::FIGURES;
    const PREFIX: &'static str = PREFIX;

    fn take(&self) -> Option<Snapshot> {
        let watch = &self.shared.watch;
        Some(Snapshot {
            version: VERSION,
            pid: std::process::id() as i32,
            address: self.address.clone(),
            metrics: self.metrics.clone(),
            figures: self.shared.take_figures(),
            watch_answers: watch.answers.load(Relaxed),
            watch_stranger: watch.stranger.load(Relaxed),
            watch_malformed: watch.malformed.load(Relaxed),
            watch_busy: watch.busy.load(Relaxed),
        })
    }

    fn counters(&self) -> &Counters {
        &self.shared.watch
    }

    fn is_over(&self) -> bool {
        self.shared.stopping.load(Relaxed)
    }
}
