//! What a server says about itself: the fields of zram's `mm_stat`, `bd_stat` and `io_stat`, under names that can be read.

use std::sync::atomic::Ordering::Relaxed;

use tmem::{PAGE_SIZE, Store};
use tmem_watch::figures;

use crate::export::{Export, Hits};

figures! {
    /// What there is to say about a disk.
    ExportFigures {
        name: String, Label, "What clients call it.";
        size_bytes: u64, Gauge, "Bytes that it seems to have.";
        read_only: bool, Note, "Clients cannot write to it.";
        backing: Option<String>, Note, "The file or device that it is a cache of, if it is one.";
        cache_hits: u64, Counter, "Blocks of such a one that were read and found in RAM.";
        cache_misses: u64, Counter, "Blocks that had to be read from the backing.";
        stored_bytes: u64, Gauge, "Bytes of its stored blocks.";
        packed_bytes: u64, Gauge, "What these take packed.";
        reads: u64, Counter, "Reads.";
        read_bytes: u64, Counter, "Bytes that they read.";
        writes: u64, Counter, "Writes.";
        written_bytes: u64, Counter, "Bytes that they wrote.";
        trims: u64, Counter, "Trims and writes of zeroes.";
        trimmed_bytes: u64, Counter, "Bytes that they named.";
        failed_reads: u64, Counter, "Reads that failed.";
        failed_writes: u64, Counter, "Writes that failed for another reason than lack of room.";
        no_space: u64, Counter, "Commands that were refused for lack of room.";
        invalid: u64, Counter, "Commands that were refused because they made no sense.";
    }
}

figures! {
    /// What a server says about itself. Counters run from its start.
    Figures {
        seconds: f64, Gauge, "Seconds since the start of the server.";
        ram_bytes: u64, Gauge, "What `--ram` says.";
        used_bytes: u64, Gauge, "What all of it takes at present: the store, buffers of connections, the program's own.";
        used_bytes_peak: u64, Gauge, "The most of it that there was, as far as it was looked at.";
        stored_bytes: u64, Gauge, "Bytes of the stored blocks as clients see them.";
        packed_bytes: u64, Gauge, "What these take packed.";
        same_filled_pages: u64, Gauge, "Stored blocks that are one repeated word.";
        ratio: f64, Gauge, "Stored bytes by bytes of RAM that the store takes.";
        moved_bytes: u64, Counter, "Bytes that were moved to close holes.";
        regrouped_pages: u64, Counter, "Blocks that were packed again together with their neighbours.";
        spilled_bytes: u64, Gauge, "Bytes in the spill file.";
        spill_file_bytes: u64, Gauge, "Bytes that the spill file takes on disk.";
        spill_file_bytes_max: u64, Gauge, "What it may grow to; 0 if there is none.";
        spill_written_bytes: u64, Counter, "Bytes that were written to it.";
        spill_reads: u64, Counter, "Packed blocks that were read from it.";
        spill_write_failures: u64, Counter, "Writes to it that failed.";
        connections: u64, Gauge, "Connections at present.";
        connections_total: u64, Counter, "Connections that there have been.";
        connections_broken: u64, Counter, "Of those, how many ended because what came was no NBD.";
        connections_refused: u64, Counter, "Connections that were refused because there were too many.";
        exports: Vec<ExportFigures>, List("export", ExportFigures::FIGURES), "The disks.";
    }
}

figures! {
    /// All figures at one moment, for those who look from outside.
    Snapshot {
        version: u32, Note, "Version of these figures. Fields may be added without a new one.";
        pid: i32, Note, "Process number of the server.";
        address: String, Note, "Where it listens.";
        metrics: Option<String>, Note, "Where `--metrics` is served.";
        #[serde(flatten)] figures: Figures, Inline(Figures::FIGURES), "What it says about itself.";
        watch_answers: u64, Counter, "Live figures given to `tmem top` and over `--metrics`.";
        watch_stranger: u64, Counter, "Requests for them from another user: not answered.";
        watch_malformed: u64, Counter, "Requests for them that were malformed, too long or too slow.";
        watch_busy: u64, Counter, "Requests for them that were dropped for newer ones.";
    }
}

figures! {
    /// What happened between two snapshots, by the second.
    Rates {
        seconds: f64, Note, "What the rates are over: seconds between two looks; 0, and so are the rates, if there was one only.";
        exports: Vec<ExportRates>, List("export", ExportRates::FIGURES), "Of each disk.";
        spill_written_bytes: f64, Note, "Bytes written to the spill file a second.";
        spill_reads: f64, Note, "Packed blocks read from it a second.";
    }
}

figures! {
    /// What happened to a disk by the second.
    ExportRates {
        reads: f64, Note, "Reads a second.";
        read_bytes: f64, Note, "Bytes read a second.";
        writes: f64, Note, "Writes a second.";
        written_bytes: f64, Note, "Bytes written a second.";
        cache_hits: f64, Note, "Blocks of a cache that were found in RAM a second.";
        cache_misses: f64, Note, "Blocks that had to be read from the backing a second.";
    }
}

impl Rates {
    /// What happened from one snapshot of a server to a later one.
    pub fn between(before: &Snapshot, after: &Snapshot) -> Rates {
        let (before, after) = (&before.figures, &after.figures);
        let seconds = after.seconds - before.seconds;
        // A process number may have gone to another server meanwhile.
        if seconds.is_nan() || seconds <= 0.0 || before.exports.len() != after.exports.len() {
            return Rates::default();
        }
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        let export = |(before, after): (&ExportFigures, &ExportFigures)| ExportRates {
            reads: rate(before.reads, after.reads),
            read_bytes: rate(before.read_bytes, after.read_bytes),
            writes: rate(before.writes, after.writes),
            written_bytes: rate(before.written_bytes, after.written_bytes),
            cache_hits: rate(before.cache_hits, after.cache_hits),
            cache_misses: rate(before.cache_misses, after.cache_misses),
        };
        Rates {
            seconds,
            exports: before.exports.iter().zip(&after.exports).map(export).collect(),
            spill_written_bytes: rate(before.spill_written_bytes, after.spill_written_bytes),
            spill_reads: rate(before.spill_reads, after.spill_reads),
        }
    }
}

impl Figures {
    /// What the store says.
    pub fn of_store(store: &Store) -> Self {
        let stats = store.stats();
        Self {
            stored_bytes: stats.original_bytes,
            packed_bytes: stats.compressed_bytes,
            same_filled_pages: stats.same_filled,
            ratio: stats.original_bytes as f64 / stats.memory_bytes.max(1) as f64,
            moved_bytes: stats.moved_bytes,
            regrouped_pages: stats.recompressed,
            spilled_bytes: stats.spill.live_bytes,
            spill_file_bytes: stats.spill.file_bytes,
            spill_file_bytes_max: stats.spill.bytes_max,
            spill_written_bytes: stats.spill.written_bytes,
            spill_reads: stats.spill.fetched,
            spill_write_failures: stats.spill.write_failures,
            ..Self::default()
        }
    }
}

impl ExportFigures {
    /// What an export says.
    pub fn of(export: &Export) -> Self {
        let (stored, tally) = (export.blocks.pages().stats(), &export.tally);
        let Hits { hits, misses } = export.blocks.hits();
        Self {
            name: export.name.clone(),
            size_bytes: export.size_bytes,
            read_only: export.read_only,
            backing: export.backing.clone(),
            cache_hits: hits,
            cache_misses: misses,
            stored_bytes: stored.pages * PAGE_SIZE as u64,
            packed_bytes: stored.compressed_bytes,
            reads: tally.reads.load(Relaxed),
            read_bytes: tally.read_bytes.load(Relaxed),
            writes: tally.writes.load(Relaxed),
            written_bytes: tally.written_bytes.load(Relaxed),
            trims: tally.trims.load(Relaxed),
            trimmed_bytes: tally.trimmed_bytes.load(Relaxed),
            failed_reads: tally.failed_reads.load(Relaxed),
            failed_writes: tally.failed_writes.load(Relaxed),
            no_space: tally.no_space.load(Relaxed),
            invalid: tally.invalid.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_by_the_second_and_never_negative() {
        let mut before = Snapshot::default();
        before.figures.exports.push(ExportFigures { reads: 10, writes: 10, ..ExportFigures::default() });
        let mut after = before.clone();
        after.figures.seconds = 2.0;
        (after.figures.exports[0].reads, after.figures.exports[0].writes) = (110, 5);
        let rates = Rates::between(&before, &after);
        assert_eq!((rates.seconds, rates.exports[0].reads, rates.exports[0].writes), (2.0, 50.0, 0.0));
        assert_eq!(Rates::between(&after, &before), Rates::default());
        after.figures.exports.clear();
        assert_eq!(Rates::between(&before, &after), Rates::default(), "another server");
    }
}
