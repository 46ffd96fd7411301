//! What a supervisor tells at the end (`--stats`) and on the way (`--progress`).

use serde::Serialize;

/// Percentiles of the time from taking a fault up to its page being in place (from parking it, if it waited for
/// room), in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FaultTimes {
    /// Faults measured.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
}

/// What went to the spill file and came back from it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct SpillFigures {
    /// Bytes written to it, with heads, seals and padding.
    pub written_bytes: u64,
    /// Packed pages that went out of RAM; a group counts once.
    pub zpages_out: u64,
    /// Packed pages that were read for a program.
    pub zpages_back: u64,
    /// Peak of what it took on the disk.
    pub file_peak_bytes: u64,
    /// Writes that failed; no page is lost by that.
    pub write_failures: u64,
    /// Reads that failed, and those that found something else than was written.
    pub read_failures: u64,
}

/// Figures of one run; every field is documented here and in `docs/stats.md`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The budget given with `--ram`.
    pub ram_limit_bytes: u64,
    /// Peak of targets plus supervisor, sampled.
    pub ram_peak_bytes: u64,
    /// Peak of the targets' resident anonymous and shared memory.
    pub resident_peak_bytes: u64,
    /// Peak of the supervisor's memory: the store and everything else it holds.
    pub store_peak_bytes: u64,
    /// Pages moved out of the targets.
    pub pages_evicted: u64,
    /// Pages brought back, neighbours included.
    pub pages_returned: u64,
    /// Of the returned pages, those that came back with a neighbour's fault.
    pub pages_read_ahead: u64,
    /// Of the returned pages, those still uncompressed in staging.
    pub pages_from_staging: u64,
    /// Evictions that found their stored copy still valid: no compression needed.
    pub swapcache_hits: u64,
    /// Pages that were cold for long and packed again, together with their neighbours.
    pub pages_recompressed: u64,
    /// The spill file; all zero if nothing was spilled.
    pub spill: SpillFigures,
    /// Pages filled with zeros on first touch inside managed ranges.
    pub pages_zero_filled: u64,
    /// Time to serve a fault.
    pub fault_ns: FaultTimes,
    /// Original bytes over stored bytes, at the end of the run's peak; 0 when nothing was stored.
    pub compression_ratio: f64,
    /// Bytes over the budget at worst; 0 when it was kept.
    pub over_budget_peak_bytes: u64,
    /// 1 if the tree was over its budget with nothing left to shrink, which is told once.
    pub on_full_events: u64,
    /// Processes that were given an agent.
    pub processes_managed: u64,
    /// Forks that were followed with stored pages cloned.
    pub forks_followed: u64,
    /// Wall-clock seconds.
    pub wall_seconds: f64,
    /// CPU seconds that the supervisor itself used.
    pub supervisor_cpu_seconds: f64,
    /// Exit status of the command as a shell would show it.
    pub exit_status: i32,
}
