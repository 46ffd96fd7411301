//! Seeing a server from outside while it runs (`tmem-watch`): what it says.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tmem_watch::{Counters, Figure, Source, VERSION};

use crate::figures::Snapshot;
use crate::server::Shared;

/// By what servers are found.
pub const KIND: &str = "disk";
/// What their metrics begin with.
pub const PREFIX: &str = "tmem_disk";

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
