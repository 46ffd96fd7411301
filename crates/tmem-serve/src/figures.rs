//! What a server says about itself.

use tmem_watch::figures;

figures! {
    /// What a server says about itself. Counters run from its start.
    Figures {
        seconds: f64, Gauge, "Seconds since the start of the server.";
        ram_bytes: u64, Gauge, "What `--ram`, or CONFIG SET maxmemory, says.";
        withheld_bytes: u64, Gauge, "Of that, what is not taken at present because the machine itself is short of memory.";
        used_bytes: u64, Gauge, "What all of it takes at present: the store, tables, buffers of connections, the program's own.";
        store_bytes: u64, Gauge, "Of that, the store: packed pages, index, contexts.";
        table_bytes: u64, Gauge, "Of that, tables of keys and pages that are being filled, at most.";
        buffer_bytes: u64, Gauge, "Of that, buffers of connections.";
        stored_bytes: u64, Gauge, "Pages that are stored, before they were packed.";
        packed_bytes: u64, Gauge, "What these take, packed or not.";
        unpacked_bytes: u64, Gauge, "Of that, pages that lie as they are until RAM is needed for others.";
        ratio: f64, Gauge, "`stored_bytes` by the bytes of RAM that the store takes.";
        keys: u64, Gauge, "Keys, those that have expired or were dropped included until they are found.";
        hits: u64, Counter, "Reads of values that were there.";
        misses: u64, Counter, "Reads of values that were not.";
        expired: u64, Counter, "Keys that have expired.";
        evicted: u64, Counter, "Keys that were dropped for lack of room.";
        commands: u64, Counter, "Commands.";
        wrong_passwords: u64, Counter, "Wrong passwords.";
        connections: u64, Gauge, "Connections at present.";
        connections_total: u64, Counter, "Connections that there have been.";
        connections_refused: u64, Counter, "Connections that were refused because there were too many, or no room for them.";
        connections_broken: u64, Counter, "Connections that ended because what came was no command.";
    }
}

figures! {
    /// What happened between two snapshots, by the second.
    Rates {
        seconds: f64, Note, "What the rates are over: seconds between two looks; 0, and so are the rates, if there was one only.";
        commands: f64, Note, "Commands a second.";
        hits: f64, Note, "Reads of values that were there a second.";
        misses: f64, Note, "Reads of values that were not a second.";
        evicted: f64, Note, "Keys that were dropped for lack of room a second.";
    }
}

impl Rates {
    /// What happened from one snapshot of a server to a later one.
    pub fn between(before: &Snapshot, after: &Snapshot) -> Rates {
        let (before, after) = (&before.figures, &after.figures);
        let seconds = after.seconds - before.seconds;
        // A process number may have gone to another server meanwhile.
        if seconds.is_nan() || seconds <= 0.0 {
            return Rates::default();
        }
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        Rates {
            seconds,
            commands: rate(before.commands, after.commands),
            hits: rate(before.hits, after.hits),
            misses: rate(before.misses, after.misses),
            evicted: rate(before.evicted, after.evicted),
        }
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
    }
}
