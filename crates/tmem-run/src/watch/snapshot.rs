//! Taking a [`Snapshot`]: by the main thread, which alone knows the tree.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tmem_watch::VERSION;

use crate::report::{Now, ProcessFigures, Report, Snapshot, ratio};
use crate::shared::Shared;
use crate::tree::{Process, Tree};

/// Processes that a snapshot shows.
const PROCESSES_MAX: usize = 256;

/// Whose figures they are.
pub struct Identity {
    /// The program that was started or attached to.
    pub program: i32,
    /// Where `--metrics` is served.
    pub metrics: Option<String>,
    /// When it began.
    pub started: Instant,
}

/// All figures of this moment. Names of processes are left out: whoever asked can look them up.
pub fn take(shared: &Shared, tree: &Tree, resident: u64, mut report: Report, identity: &Identity) -> Snapshot {
    report.count(shared, identity.started);
    let processes = tree.by_size().into_iter().take(PROCESSES_MAX);
    Snapshot {
        version: VERSION,
        pid: std::process::id() as i32,
        program: identity.program,
        command: String::new(),
        metrics: identity.metrics.clone(),
        now: now(shared, tree, resident),
        report,
        processes: processes.map(|pid| process(shared, pid, &tree.processes[&pid])).collect(),
    }
}

fn now(shared: &Shared, tree: &Tree, resident: u64) -> Now {
    let stats = shared.store.stats();
    let supervisor = shared.own.load(Relaxed);
    let waiting = shared.spaces().iter().map(|space| space.parked.load(Relaxed) as u64).sum();
    Now {
        ram_bytes: resident + supervisor,
        resident_bytes: resident,
        supervisor_bytes: supervisor,
        store_bytes: stats.memory_bytes,
        stored_bytes: stats.original_bytes,
        packed_bytes: stats.compressed_bytes,
        spilled_bytes: stats.spill.live_bytes,
        spilled_zpages: stats.spill.zpages,
        spill_file_bytes: stats.spill.file_bytes,
        ratio: ratio(&stats),
        faults_waiting: waiting,
        tree_processes: tree.processes.len() as u64,
        tree_managed: tree.processes.values().filter(|process| process.space.is_some()).count() as u64,
    }
}

fn process(shared: &Shared, pid: i32, process: &Process) -> ProcessFigures {
    let space = process.space.and_then(|id| shared.space(id));
    let stored = space.as_ref().and_then(|space| shared.store.pool_stats(space.pool)).unwrap_or_default();
    ProcessFigures {
        pid,
        name: String::new(),
        resident_bytes: process.anonymous,
        stored_bytes: stored.pages * tmem::PAGE_SIZE as u64,
        packed_bytes: stored.compressed_bytes,
        managed: space.is_some(),
        refused: process.refused.as_ref().filter(|_| space.is_none()).map(|(_, why)| why.clone()),
    }
}
