//! What happens by the second, from two snapshots.

use tmem_watch::figures;

use crate::report::Snapshot;

figures! {
    /// What happened between two snapshots, by the second.
    Rates {
        seconds: f64, Note, "What the rates are over: seconds between two looks; 0, and so are the rates, if there was one only.";
        faults: f64, Note, "Faults served a second.";
        refaults: f64, Note, "Of those, faults for pages that had been in use all the time (`pages_refaulted`).";
        pages_evicted: f64, Note, "Pages moved out of the programs a second.";
        pages_returned: f64, Note, "Pages brought back a second.";
        spill_written_bytes: f64, Note, "Bytes written to the spill file a second.";
        spill_read_bytes: f64, Note, "Bytes read from it a second.";
    }
}

impl Rates {
    /// What happened from one snapshot of a supervisor to a later one.
    pub fn between(before: &Snapshot, after: &Snapshot) -> Rates {
        let seconds = after.report.wall_seconds - before.report.wall_seconds;
        // A process number may have gone to another supervisor meanwhile.
        if seconds.is_nan() || seconds <= 0.0 || before.program != after.program {
            return Rates::default();
        }
        let rate = |of: fn(&Snapshot) -> u64| of(after).saturating_sub(of(before)) as f64 / seconds;
        Rates {
            seconds,
            faults: rate(|s| s.report.fault_ns.count),
            refaults: rate(|s| s.report.pages_refaulted),
            pages_evicted: rate(|s| s.report.pages_evicted),
            pages_returned: rate(|s| s.report.pages_returned),
            spill_written_bytes: rate(|s| s.report.spill.written_bytes),
            spill_read_bytes: rate(|s| s.report.spill.read_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_by_the_second_and_never_negative() {
        let mut before = Snapshot::default();
        (before.report.wall_seconds, before.report.pages_evicted, before.report.fault_ns.count) = (1.0, 100, 10);
        let mut after = before.clone();
        (after.report.wall_seconds, after.report.pages_evicted, after.report.fault_ns.count) = (3.0, 300, 5);
        let rates = Rates::between(&before, &after);
        assert_eq!((rates.seconds, rates.pages_evicted, rates.faults), (2.0, 100.0, 0.0));
        assert_eq!(Rates::between(&after, &before), Rates::default());
        after.program = 1;
        assert_eq!(Rates::between(&before, &after), Rates::default(), "another program");
    }
}
