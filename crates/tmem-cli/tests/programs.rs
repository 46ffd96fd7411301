//! Programs that others wrote, at about a half and a quarter of what they use natively: same output, same status, budget kept.
//!
//! The workloads are in `tests/workloads`; each can be run by hand.

mod common;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use common::{Job, MIB, Outcome, can_run, has, long, say, workloads};

/// Below this, the supervisor itself does not fit.
const RAM_MIN: u64 = 32 * MIB;

struct Workload {
    name: &'static str,
    /// What must be installed.
    needs: &'static [&'static str],
    /// The interpreter, the file in `tests/workloads`, and its arguments.
    command: &'static [&'static str],
}

impl Workload {
    fn command(&self) -> Vec<OsString> {
        let script: PathBuf = workloads().join(self.command[1]);
        let mut command = vec![OsString::from(self.command[0]), script.into()];
        command.extend(self.command[2..].iter().map(OsString::from));
        command
    }

    fn possible(&self) -> bool {
        can_run(self.name) && self.needs.iter().all(|needed| has(self.name, needed))
    }

    fn native(&self) -> Option<Outcome> {
        let native = Job::native(self.command()).timeout(Duration::from_secs(120)).run();
        if native.shell_status() == 77 {
            common::skip(self.name, native.stdout_text().trim());
            return None;
        }
        assert!(
            native.status.success(),
            "{} fails natively: {}{}",
            self.name,
            native.stdout_text(),
            native.stderr_text()
        );
        Some(native)
    }

    fn in_share(&self, native: &Outcome, share: u64) {
        let ram = (native.peak_bytes / share).max(RAM_MIN);
        let managed = Job::native(self.command()).under_tmem(ram).timeout(Duration::from_secs(300)).run();
        say(&format!("{} in 1/{share}: native {}; tmem {}", self.name, native.summary(), managed.summary()));
        managed.assert_same_as(native);
        managed.assert_evicted();
        managed.assert_budget();
    }

    fn run(&self) {
        if !self.possible() {
            return;
        }
        let Some(native) = self.native() else { return };
        self.in_share(&native, 2);
        if long() {
            self.in_share(&native, 4);
        } else {
            say(&format!("SKIPPED: {} in 1/4: takes minutes; TMEM_LONG=1 runs it", self.name));
        }
    }
}

#[test]
fn shuf_and_sort() {
    Workload { name: "shuf_and_sort", needs: &["shuf", "sort"], command: &["sh", "sort.sh", "200"] }.run();
}

#[test]
fn python_dicts_and_lists() {
    Workload { name: "python_dicts_and_lists", needs: &["python3"], command: &["python3", "dicts.py", "200"] }.run();
}

#[test]
fn python_multiprocessing_and_subprocess() {
    Workload { name: "python_multiprocessing", needs: &["python3"], command: &["python3", "pool.py", "200"] }.run();
}

#[test]
fn redis_under_benchmark() {
    let needs = &["redis-server", "redis-cli", "redis-benchmark"];
    Workload { name: "redis_under_benchmark", needs, command: &["sh", "redis.sh", "150"] }.run();
}

#[test]
fn node_heap() {
    Workload { name: "node_heap", needs: &["node"], command: &["node", "heap.js", "200"] }.run();
}

#[test]
fn java_default_jvm() {
    Workload { name: "java_default_jvm", needs: &["java", "javac"], command: &["sh", "java.sh", "100"] }.run();
}

#[test]
fn gxx_heavy_templates() {
    Workload { name: "gxx_heavy_templates", needs: &["g++"], command: &["sh", "gxx.sh", "14"] }.run();
}

#[test]
fn sqlite_in_memory() {
    Workload { name: "sqlite_in_memory", needs: &["sqlite3"], command: &["sh", "sqlite.sh", "150"] }.run();
}

#[test]
fn jemalloc_many_threads() {
    Workload { name: "jemalloc_many_threads", needs: &["cc"], command: &["sh", "jemalloc.sh", "150"] }.run();
}

#[test]
fn static_binary() {
    Workload { name: "static_binary", needs: &["cc"], command: &["sh", "static.sh", "150"] }.run();
}

/// The tester verifies itself; its data is partly random, so only the status counts here, and the budget while it can be kept.
#[test]
fn stress_ng_verifies_its_memory() {
    let seconds = if long() { "60" } else { "10" };
    let command: &[&str] =
        if long() { &["sh", "stress-ng.sh", "512", "60"] } else { &["sh", "stress-ng.sh", "512", "10"] };
    let workload = Workload { name: "stress_ng", needs: &["stress-ng"], command };
    if !workload.possible() {
        return;
    }
    let managed = Job::native(workload.command()).under_tmem(128 * MIB).timeout(Duration::from_secs(300)).run();
    say(&format!("stress-ng for {seconds} s: tmem {}", managed.summary()));
    assert_eq!(managed.stdout_text(), "stress-ng ended with status 0\n", "{}", managed.stderr_text());
    managed.assert_evicted();
    // It maps with MAP_POPULATE: 256 MiB in one system call, which nobody can stop, and whose process takes no agent before.
    match managed.figure("over_budget_peak_bytes") {
        over if over <= 128 * MIB / 20 + 32 * MIB => managed.assert_budget(),
        over => say(&format!("MISSED: stress-ng: {} MiB over its budget while it populated a mapping", over / MIB)),
    }
}

fn memtester(lock: &'static str) -> Option<Outcome> {
    let command: &[&str] = match (long(), lock) {
        (true, "locked") => &["sh", "memtester.sh", "128", "locked"],
        (true, _) => &["sh", "memtester.sh", "128", "unlocked"],
        (false, "locked") => &["sh", "memtester.sh", "32", "locked"],
        (false, _) => &["sh", "memtester.sh", "16", "unlocked"],
    };
    let workload = Workload { name: "memtester", needs: &["memtester"], command };
    if !workload.possible() {
        return None;
    }
    // A sequential sweep over all of it, some thousand times: short runs take little memory, and half of it.
    let ram = if long() || lock == "locked" { 32 * MIB } else { 14 * MIB };
    let managed = Job::native(workload.command()).under_tmem(ram).timeout(Duration::from_secs(900)).run();
    say(&format!("memtester {lock}: tmem {}", managed.summary()));
    assert!(
        managed.stdout_text().ends_with("18 tests ok, status 0\n"),
        "{}{}",
        managed.stdout_text(),
        managed.stderr_text()
    );
    Some(managed)
}

#[test]
fn memtester_on_unlocked_memory() {
    if let Some(managed) = memtester("unlocked") {
        managed.assert_evicted();
    }
}

/// Locked memory is left alone: the tester passes, and nothing it locked was moved.
#[test]
fn memtester_on_locked_memory() {
    memtester("locked");
}
