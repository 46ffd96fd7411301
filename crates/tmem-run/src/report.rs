//! What a supervisor tells: [`Report`] at the end (`--stats`), [`Snapshot`] while it runs (`tmem top`, `--metrics`).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tmem_remote::{PeerFigures, RemoteFigures};
use tmem_watch::figures;

use crate::agent::InjectError;
use crate::counters::{Counters, add};
use crate::shared::Shared;
use crate::spill::SpillFile;

figures! {
    /// Percentiles of the time from taking a fault up to its page being in place (from parking it, if it waited for
    /// room), in nanoseconds.
    FaultTimes {
        count: u64, Counter, "Faults that were timed.";
        p50: u64, Gauge, "Median of the time from taking up a fault to its page being in place, in nanoseconds, since the \
            start; for a fault that waited for room, the wait included. The time that the kernel needs to wake the supervisor, \
            and the wait for other faults of the same process, are not in it.";
        p90: u64, Gauge, "90th percentile of it.";
        p99: u64, Gauge, "99th percentile of it.";
    }
}

figures! {
    /// What went to the spill file and came back from it; all zero if nothing was spilled.
    SpillFigures {
        written_bytes: u64, Counter, "Bytes written to the spill file (see `--spill`), with everything around the packed pages.";
        read_bytes: u64, Counter, "Bytes read from it, for programs and for cleaning, in whole blocks.";
        zpages_out: u64, Counter, "Packed pages that went to the file. A group of cold pages counts once.";
        zpages_back: u64, Counter, "Packed pages that were read for a program.";
        zpages_promoted: u64, Counter, "Of those, packed pages that came back to RAM because there was room.";
        zpages_demoted: u64, Counter, "Packed pages that went on from other machines' RAM to the spill file, because those were full or to be drained.";
        zpages_recalled: u64, Counter, "Packed pages that came home from other machines' RAM because there was room.";
        zpages_moved: u64, Counter, "Packed pages that cleaning gathered to write them elsewhere.";
        segments_cleaned: u64, Counter, "Segments that were read to move what lives in them.";
        file_peak_bytes: u64, Gauge, "Peak of what the file took on the disk, sampled.";
        bytes_max: u64, Gauge, "What the file may grow to; 0 before there is need of it.";
        writes_per_day: u64, Gauge, "Bytes that may be written to the file in a day (see `--spill-writes`); 0 if as many as it takes.";
        writes_left_bytes: u64, Gauge, "Of those, bytes that may be written now; 0 as well if there is no limit.";
        writes_put_off: u64, Counter, "Writes, and steps that would have led to some, that did not begin because the write budget was used up.";
        full: u64, Counter, "Times that the file had no room for another segment.";
        lost_races: u64, Counter, "Packed pages that were replaced, flushed or moved while they were being written: they are not in the file.";
        write_failures: u64, Counter, "Writes that failed; no page is lost by that.";
        reads_retried: u64, Counter, "Attempts to read again what could not be read: up to three, within 0.1 s.";
        read_failures: u64, Counter, "Reads that failed in spite of that, or found something else than was written; if a program waits for them it is killed.";
        damaged: u64, Counter, "Of those, reads that found something else than was written.";
        discard_failures: u64, Counter, "Segments whose space could not be given back to the disk.";
    }
}

figures! {
    /// Remote memory; all zero without `--remote`.
    Remote {
        peers: u64, Gauge, "Peers that were named; a cluster is one.";
        peers_up: u64, Gauge, "Of those, peers that answer and are given pages.";
        copies: u64, Gauge, "Copies that each value is to have (see `--copies`).";
        values: u64, Gauge, "Values of up to 60 KiB that lie there, each counted once.";
        peer_values: u64, Gauge, "All their copies: `copies` times `values` if none is missing.";
        peer_bytes: u64, Gauge, "Bytes of all copies.";
        failovers: u64, Counter, "Reads that another copy answered, because the first peer that was asked did not, or with something else than was written.";
        replicated: u64, Counter, "Copies that were made again because one was lost.";
        copies_lost: u64, Counter, "Copies that were not there any more, as after a restart of a peer, or were not what was written.";
        failures: u64, Counter, "Requests that a peer did not answer, or refused.";
        damaged: u64, Counter, "Copies that were not what was written.";
        refused_full: u64, Counter, "Values that a peer had no room for.";
        lost: u64, Counter, "Reads of values of which no copy was left; if a program waits for them it is killed.";
    }
}

impl From<&RemoteFigures> for Remote {
    fn from(figures: &RemoteFigures) -> Self {
        let sum = |figure: fn(&PeerFigures) -> u64| figures.peers.iter().map(figure).sum();
        Remote {
            peers: figures.peers.len() as u64,
            peers_up: figures.peers.iter().filter(|peer| peer.state == "up").count() as u64,
            copies: figures.copies,
            values: figures.values,
            peer_values: sum(|peer| peer.values),
            peer_bytes: sum(|peer| peer.bytes),
            failovers: figures.failovers,
            replicated: figures.replicated,
            copies_lost: sum(|peer| peer.lost),
            failures: sum(|peer| peer.failures),
            damaged: sum(|peer| peer.damaged),
            refused_full: sum(|peer| peer.refused_full),
            lost: figures.lost,
        }
    }
}

figures! {
    /// What was refused, put off or given up, by reason.
    Refused {
        pages_stuck: u64, Counter, "Pages that would not leave a program: pinned, locked or shared with a relative. They are passed over for some turns.";
        pages_put_back: u64, Counter, "Pages that had left a program, but that the store did not take or that were wanted again: copied home.";
        puts: u64, Counter, "Pages that the store refused for lack of room.";
        reclaim_races: u64, Counter, "Stored pages that changed while they were to be moved or spilled: left alone.";
        faults_parked: u64, Counter, "Faults that had to wait for room.";
        threads_held: u64, Counter, "Threads that were stopped for up to 20 ms because memory grew past the budget where no fault of ours slows it.";
        process_busy: u64, Counter, "Attempts to manage a process that could not be stopped just then; it is tried again at once.";
        process_gone: u64, Counter, "Attempts to manage a process that ended first.";
        process_ptrace: u64, Counter, "Attempts to manage a process that ptrace was refused for. This and the next two are tried again each second.";
        process_unfit: u64, Counter, "Attempts to manage a process that cannot take an agent: of another architecture, traced, or with a seccomp filter.";
        process_failed: u64, Counter, "Attempts to manage a process in which a system call failed that is needed for it.";
        watch_stranger: u64, Counter, "Requests for live figures from another user: not answered.";
        watch_malformed: u64, Counter, "Requests for live figures that were malformed, too long or too slow.";
        watch_busy: u64, Counter, "Requests for live figures that were dropped for newer ones, or to which there was no answer in time.";
    }
}

figures! {
    /// Figures of one run, all from its start.
    Report {
        ram_limit_bytes: u64, Gauge, "The budget given with `--ram`.";
        ram_peak_bytes: u64, Gauge, "Peak of the programs and the supervisor together, sampled while they ran: what to compare with `ram_limit_bytes`.";
        resident_peak_bytes: u64, Gauge, "Peak of the programs' resident anonymous and shared memory, over the whole tree.";
        store_peak_bytes: u64, Gauge, "Peak of the supervisor's own memory: the compressed pages and everything else it holds.";
        pages_evicted: u64, Counter, "Pages moved out of the programs. A page that leaves twice counts twice.";
        pages_returned: u64, Counter, "Pages brought back, neighbours included.";
        pages_read_ahead: u64, Counter, "Of the returned pages, those that came back with a neighbour's fault.";
        pages_from_staging: u64, Counter, "Of the returned pages, those that had not been compressed yet.";
        pages_refaulted: u64, Counter, "Faults for a stored page before as many pages were evicted after it as an eighth of the budget: it was in use all the time.";
        swapcache_hits: u64, Counter, "Evictions that found their stored copy still valid, so that nothing had to be compressed.";
        pages_recompressed: u64, Counter, "Stored pages that were cold for long and were packed again, together with their neighbours.";
        pages_damaged: u64, Counter, "Stored pages that were not what had been stored, in RAM or on disk; the program is killed.";
        pages_zero_filled: u64, Counter, "Pages filled with zeros on first touch inside managed ranges.";
        spill: SpillFigures, Group(SpillFigures::FIGURES), "The spill file, and remote memory as far as both do the same.";
        remote: Remote, Group(Remote::FIGURES), "Remote memory.";
        fault_ns: FaultTimes, Group(FaultTimes::FIGURES), "Time to serve a fault.";
        refused: Refused, Group(Refused::FIGURES), "What was refused, by reason.";
        compression_ratio: f64, Gauge, "Original bytes over the bytes of the compressed pages, in RAM without headers and index and on disk, at the peak of the supervisor's memory; 0 when nothing was stored.";
        over_budget_peak_bytes: u64, Gauge, "Bytes over the budget at the worst moment; 0 when it was kept.";
        on_full_events: u64, Counter, "Times that the tree was over its budget with nothing left to make smaller (see `--on-full`). It is acted on and counted once per run.";
        processes_managed: u64, Counter, "Processes that were managed, the first one included.";
        forks_followed: u64, Counter, "Forks whose child got the evicted pages of its parent.";
        watch_answers: u64, Counter, "Live figures given to `tmem top` and over `--metrics`.";
        wall_seconds: f64, Gauge, "Wall-clock seconds since the start of the program.";
        supervisor_cpu_seconds: f64, Counter, "CPU seconds that the supervisor used; the program's own are not in it.";
        exit_status: Option<i32>, Note, "Exit status of the program as a shell shows it: 128 plus the number of the signal if one ended it. 0 under `attach`, which is not the parent and cannot know; null while it runs.";
    }
}

figures! {
    /// What is held at one moment.
    Now {
        ram_bytes: u64, Gauge, "Memory of the programs and the supervisor together: what `ram_limit_bytes` limits.";
        resident_bytes: u64, Gauge, "The programs' resident anonymous and shared memory, over the whole tree.";
        supervisor_bytes: u64, Gauge, "The supervisor's own memory: the store and everything else it holds.";
        store_bytes: u64, Gauge, "Of that, the store: packed pages, index, tables, contexts.";
        stored_bytes: u64, Gauge, "Pages that are stored, in RAM or on disk, as the programs see them.";
        packed_bytes: u64, Gauge, "Packed pages in RAM, without headers and index.";
        spilled_bytes: u64, Gauge, "Packed pages in the spill file, with heads and seals.";
        spilled_zpages: u64, Gauge, "Number of those. A group of cold pages counts once.";
        spill_file_bytes: u64, Gauge, "What the spill file takes on the disk, holes left out.";
        ratio: f64, Gauge, "`stored_bytes` over `packed_bytes` and `spilled_bytes`; 0 when nothing is stored.";
        faults_waiting: u64, Gauge, "Faults that wait for room.";
        tree_processes: u64, Gauge, "Processes of the tree.";
        tree_managed: u64, Gauge, "Of those, processes that pages can leave: they have an agent.";
    }
}

figures! {
    /// One process of the tree.
    ProcessFigures {
        pid: i32, Label, "Its number.";
        name: String, Label, "Its name, from `/proc/PID/comm`.";
        resident_bytes: u64, Gauge, "Its resident anonymous memory; what relatives share since a fork counts for each.";
        stored_bytes: u64, Gauge, "Its pages that are stored; what relatives share since a fork counts for each.";
        packed_bytes: u64, Gauge, "Packed bytes of the pages that it stored itself, in RAM or on disk.";
        managed: bool, Note, "Pages can leave it: it has an agent.";
        refused: Option<String>, Note, "Why it could not be managed the last time that was tried.";
    }
}

figures! {
    /// All figures at one moment.
    Snapshot {
        version: u32, Note, "Version of these figures. Fields may be added without a new one.";
        pid: i32, Note, "Process number of the supervisor.";
        program: i32, Note, "Process number of the program that was started or attached to.";
        command: String, Note, "Its name.";
        metrics: Option<String>, Note, "Where `--metrics` is served.";
        #[serde(flatten)] now: Now, Inline(Now::FIGURES), "What is held now.";
        #[serde(flatten)] report: Report, Inline(Report::FIGURES), "Since the start.";
        processes: Vec<ProcessFigures>, List("process", ProcessFigures::FIGURES), "The processes, the largest first, at most 256.";
    }
}

impl Report {
    /// Takes over what was counted so far.
    pub(crate) fn count(&mut self, shared: &Shared, started: Instant) {
        let c = &shared.counters;
        self.pages_evicted = c.pages_evicted.load(Relaxed);
        self.pages_returned = c.pages_returned.load(Relaxed);
        self.pages_read_ahead = c.pages_read_ahead.load(Relaxed);
        self.pages_from_staging = c.pages_from_staging.load(Relaxed);
        self.pages_refaulted = c.pages_refaulted.load(Relaxed);
        self.swapcache_hits = c.swapcache_hits.load(Relaxed);
        self.pages_zero_filled = c.pages_zero_filled.load(Relaxed);
        self.on_full_events = c.on_full_events.load(Relaxed);
        self.processes_managed = c.processes_managed.load(Relaxed);
        self.forks_followed = c.forks_followed.load(Relaxed);
        self.watch_answers = shared.watch.answers.load(Relaxed);
        let stats = shared.store.stats();
        self.pages_recompressed = stats.recompressed;
        self.pages_damaged = stats.corrupt;
        self.spill.count(&stats.spill, &shared.spill);
        self.remote = shared.spill.remote_figures().map(|figures| Remote::from(&figures)).unwrap_or_default();
        self.refused.count(shared, &stats);
        self.fault_ns = shared.faults.times();
        self.wall_seconds = started.elapsed().as_secs_f64();
        self.supervisor_cpu_seconds = own_cpu_seconds();
    }
}

impl SpillFigures {
    fn count(&mut self, spill: &tmem::SpillStats, places: &SpillFile) {
        let notes = places.notes();
        let left = notes.writes_left();
        self.written_bytes = spill.written_bytes;
        self.read_bytes = places.read_bytes();
        self.zpages_out = spill.spilled.saturating_sub(spill.moved);
        self.zpages_back = spill.fetched;
        self.zpages_promoted = spill.promoted;
        self.zpages_demoted = spill.demoted;
        self.zpages_recalled = spill.recalled;
        self.zpages_moved = spill.moved;
        self.segments_cleaned = spill.cleaned;
        self.bytes_max = spill.bytes_max;
        self.writes_per_day = left.bytes_per_day;
        self.writes_left_bytes = left.left_bytes;
        self.writes_put_off = notes.writes_put_off();
        self.full = spill.full;
        self.lost_races = spill.lost_races;
        // To the store a write that the budget refuses has failed.
        self.write_failures = spill.write_failures.saturating_sub(notes.writes_refused());
        self.reads_retried = places.reads_retried();
        self.read_failures = spill.read_failures + spill.damaged;
        self.damaged = spill.damaged;
        self.discard_failures = spill.discard_failures;
    }
}

impl Refused {
    fn count(&mut self, shared: &Shared, stats: &tmem::Stats) {
        let (c, watch) = (&shared.counters, &shared.watch);
        *self = Refused {
            pages_stuck: c.pages_stuck.load(Relaxed),
            pages_put_back: c.pages_incompressible.load(Relaxed),
            puts: stats.refusals,
            reclaim_races: stats.lost_races,
            faults_parked: c.faults_parked.load(Relaxed),
            threads_held: c.threads_held.load(Relaxed),
            process_busy: c.process_busy.load(Relaxed),
            process_gone: c.process_gone.load(Relaxed),
            process_ptrace: c.process_ptrace.load(Relaxed),
            process_unfit: c.process_unfit.load(Relaxed),
            process_failed: c.process_failed.load(Relaxed),
            watch_stranger: watch.stranger.load(Relaxed),
            watch_malformed: watch.malformed.load(Relaxed),
            watch_busy: watch.busy.load(Relaxed),
        };
    }
}

/// Original bytes over packed bytes, in RAM and on disk; 0 when nothing is packed.
pub fn ratio(stats: &tmem::Stats) -> f64 {
    match stats.compressed_bytes + stats.spill.live_bytes {
        0 => 0.0,
        packed => stats.original_bytes as f64 / packed as f64,
    }
}

/// Counts why a process is not managed.
pub fn count_refusal(counters: &Counters, why: &InjectError) {
    let counter = match why {
        InjectError::Busy => &counters.process_busy,
        InjectError::Gone => &counters.process_gone,
        InjectError::Refused(_) => &counters.process_ptrace,
        InjectError::Unfit(_) => &counters.process_unfit,
        InjectError::InTarget(..) | InjectError::Ours(..) => &counters.process_failed,
    };
    add(counter, 1);
}

fn own_cpu_seconds() -> f64 {
    // SAFETY: an all-zero rusage is valid and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
