//! What a server says about itself: the fields of zram's `mm_stat`, `bd_stat` and `io_stat`, under names that can be read.

use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};
use tmem::{PAGE_SIZE, Store};

use crate::export::{Export, Hits};

/// What a server says about itself. Counters run from its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// What `--ram` says.
    pub ram_bytes: u64,
    /// What all of it takes at present: the store, buffers of connections, the program's own.
    pub used_bytes: u64,
    /// The most of it that there was, as far as it was looked at.
    pub used_bytes_peak: u64,
    /// Bytes of the stored blocks as clients see them.
    pub stored_bytes: u64,
    /// What these take packed.
    pub packed_bytes: u64,
    /// Stored blocks that are one repeated word.
    pub same_filled_pages: u64,
    /// Stored bytes by bytes of RAM that the store takes.
    pub ratio: f64,
    /// Bytes that were moved to close holes.
    pub moved_bytes: u64,
    /// Blocks that were packed again together with their neighbours.
    pub regrouped_pages: u64,
    /// Bytes in the spill file.
    pub spilled_bytes: u64,
    /// Bytes that the spill file takes on disk.
    pub spill_file_bytes: u64,
    /// What it may grow to; 0 if there is none.
    pub spill_file_bytes_max: u64,
    /// Bytes that were written to it.
    pub spill_written_bytes: u64,
    /// Packed blocks that were read from it.
    pub spill_reads: u64,
    /// Writes to it that failed.
    pub spill_write_failures: u64,
    /// Connections at present.
    pub connections: u64,
    /// Connections that there have been.
    pub connections_total: u64,
    /// Of those, how many ended because what came was no NBD.
    pub connections_broken: u64,
    /// Connections that were refused because there were too many.
    pub connections_refused: u64,
    /// The disks.
    pub exports: Vec<ExportFigures>,
}

/// What there is to say about a disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportFigures {
    /// What clients call it.
    pub name: String,
    /// Bytes that it seems to have.
    pub size_bytes: u64,
    /// Clients cannot write to it.
    pub read_only: bool,
    /// The file or device that it is a cache of, if it is one.
    pub backing: Option<String>,
    /// Blocks of such a one that were read and found in RAM.
    pub cache_hits: u64,
    /// Blocks that had to be read from the backing.
    pub cache_misses: u64,
    /// Bytes of its stored blocks.
    pub stored_bytes: u64,
    /// What these take packed.
    pub packed_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Bytes that they read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes that they wrote.
    pub written_bytes: u64,
    /// Trims and writes of zeroes.
    pub trims: u64,
    /// Bytes that they named.
    pub trimmed_bytes: u64,
    /// Reads that failed.
    pub failed_reads: u64,
    /// Writes that failed for another reason than lack of room.
    pub failed_writes: u64,
    /// Commands that were refused for lack of room.
    pub no_space: u64,
    /// Commands that were refused because they made no sense.
    pub invalid: u64,
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
        let Hits { hits, misses } = export.blocks.hits().unwrap_or_default();
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
