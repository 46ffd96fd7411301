//! `--spill-faults`: whatever the disk does, a program prints what is right or is killed with a message; it never sees a wrong
//! byte and never hangs.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Job, Linking, MIB, Outcome, can_run, noise, program, run_tmem, say, skip, tmem_command};

fn with_faults(job: Job, ram_mib: u64, faults: &str) -> Outcome {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let job = job.under_tmem(ram_mib * MIB).flags(["--spill", folder, "--spill-faults", faults]);
    let outcome = job.timeout(Duration::from_secs(60)).run();
    let said = outcome.stderr_text();
    assert_eq!(said.matches("faults are injected").count(), 1, "{faults}: {said}");
    outcome
}

fn figure(outcome: &Outcome, name: &str) -> u64 {
    outcome.stats.as_ref().map_or(0, |stats| stats["spill"][name].as_u64().unwrap())
}

/// Whether `noise` came to its right end. Else it was killed, by a read and with a message.
fn is_right(faults: &str) -> bool {
    let outcome = with_faults(noise(32), 16, faults);
    let (out, said) = (outcome.stdout_text(), outcome.stderr_text());
    let right = outcome.status.success() && out == "ok noise 1 rounds\n";
    let killed = outcome.status.signal() == Some(libc::SIGKILL) && out.is_empty();
    assert!(right || killed && said.contains("tmem: a stored page could not be read back"), "{faults}: {out}{said}");
    assert_eq!(killed, said.contains("is killed"), "{faults}: {said}");
    right
}

#[test]
fn failing_and_torn_writes_cost_nothing() {
    let name = "failing_and_torn_writes_cost_nothing";
    if !can_run(name) {
        return;
    }
    for when in ["1", "2", "25", "80", "1/20", "1/2", "1+", "30+"] {
        for fault in ["write", "torn"] {
            assert!(is_right(&format!("{fault}={when}")), "{fault}={when}");
        }
    }
    for faults in ["full=6M", "full=4K", "discard=1+", "delay=2ms@1/20,write=1/10,torn=1/10,seed=3"] {
        assert!(is_right(faults), "{faults}");
    }
    let outcome = with_faults(noise(32), 16, "write=5");
    assert_eq!(figure(&outcome, "write_failures"), 1, "{:?}", outcome.stats);
}

#[test]
fn what_fails_in_passing_is_tried_again() {
    let name = "what_fails_in_passing_is_tried_again";
    if !can_run(name) {
        return;
    }
    for faults in ["read=1", "read=300", "read=3000", "read=1/200", "read=1/50,write=1/50"] {
        assert!(is_right(faults), "{faults}");
    }
    let outcome = with_faults(noise(32), 16, "read=5,write=5");
    let [retried, failed] = ["reads_retried", "read_failures"].map(|name| figure(&outcome, name));
    assert_eq!((retried, failed, figure(&outcome, "write_failures")), (1, 0, 1), "{:?}", outcome.stats);
    // Neither is worth a word.
    assert_eq!(outcome.stderr_text().lines().count(), 1, "{}", outcome.stderr_text());
    let outcome = with_faults(noise(32), 16, "write=1+");
    assert_eq!(outcome.stderr_text().matches("cannot be written (a fault on purpose)").count(), 1);
}

#[test]
fn what_was_written_wrong_or_cannot_be_read_ends_the_program() {
    let name = "what_was_written_wrong_or_cannot_be_read_ends_the_program";
    if !can_run(name) {
        return;
    }
    let mut killed = 0;
    for when in ["1", "3", "25", "80", "1/20"] {
        for fault in ["lost", "corrupt-write"] {
            killed += u32::from(!is_right(&format!("{fault}={when}")));
        }
    }
    for faults in ["read=1+", "read=300+", "corrupt=1", "corrupt=300", "corrupt=3000", "corrupt=1/200", "corrupt=1+"] {
        killed += u32::from(!is_right(faults));
    }
    say(&format!("{name}: {killed} of 17 killed"));
    // What is read ahead of need or never again may be wrong without consequence.
    assert!(killed >= 8, "{killed}");
}

#[test]
fn forked_relatives_see_no_wrong_byte() {
    let name = "forked_relatives_see_no_wrong_byte";
    if !can_run(name) {
        return;
    }
    for faults in ["torn=1/10", "lost=4", "corrupt-write=1/20", "read=200", "read=200+"] {
        let job = Job::native([program("fork_tree", Linking::Dynamic).into_os_string(), "24".into(), "1".into()]);
        let outcome = with_faults(job, 16, faults);
        let (out, said) = (outcome.stdout_text(), outcome.stderr_text());
        let told = said.contains("tmem: a stored page could not be read back");
        // A parent finds that its child was killed, which is no wrong byte.
        let wrong =
            format!("{out}{said}").lines().any(|line| line.contains("MISMATCH") && !line.contains("a child at"));
        assert!(!wrong && (outcome.status.success() || told), "{faults}: {}: {out}{said}", outcome.status);
    }
}

#[test]
fn a_stalled_disk_is_waited_for() {
    let name = "a_stalled_disk_is_waited_for";
    if !can_run(name) {
        return;
    }
    for faults in ["delay-write=3s@5", "delay-read=3s@500", "delay-write=200ms@20+,delay=1s@300"] {
        assert!(is_right(faults), "{faults}");
    }
    // Nor is it taken for memory that cannot shrink.
    let flags = ["--on-full", "kill", "--spill", env!("CARGO_TARGET_TMPDIR"), "--spill-faults", "delay-write=3s@5"];
    let outcome = noise(32).under_tmem(16 * MIB).flags(flags).timeout(Duration::from_secs(60)).run();
    assert_eq!(outcome.stdout_text(), "ok noise 1 rounds\n", "{}", outcome.stderr_text());
}

#[test]
fn while_a_write_stalls_other_faults_are_served() {
    let name = "while_a_write_stalls_other_faults_are_served";
    if !can_run(name) {
        return;
    }
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() < 2) {
        skip(name, "one processor has one worker, which waits for the disk");
        return;
    }
    let mut child = tmem_command(&["run", "--ram", "16M", "--spill", env!("CARGO_TARGET_TMPDIR")])
        .args(["--spill-faults", "delay-write=5s@5", "--"])
        .arg(program("noise", Linking::Dynamic))
        .args(["40", "2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (start, pid) = (Instant::now(), child.id());
    // Pages that came back between two looks with nothing written in between: what was written last, and first seen with that.
    let (mut last, mut served) = ((0, 0), 0);
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "HANG");
        let (_, seen, _) = run_tmem(&["top", "--once", "--json"]);
        let seen: serde_json::Value = serde_json::from_str(&seen).unwrap_or_default();
        let all = seen["supervisors"].as_array().into_iter().flatten();
        for own in all.filter(|supervisor| supervisor["pid"] == pid) {
            let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
            let (written, returned) = (number(&own["spill"]["written_bytes"]), number(&own["pages_returned"]));
            last = if written == last.0 { last } else { (written, returned) };
            served = served.max(returned - last.1);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let ended = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "ok noise 2 rounds\n");
    say(&format!("{name}: {served} pages came back while nothing was written"));
    assert!(served > 100, "{served}");
}

#[test]
fn faults_that_make_no_sense_are_refused() {
    if !can_run("faults_that_make_no_sense_are_refused") {
        return;
    }
    for (spill, faults, says) in [("auto", "wrote=1", "no fault 'wrote'"), ("off", "write=1", "no spill file")] {
        let (status, out, err) =
            run_tmem(&["run", "--ram", "64M", "--spill", spill, "--spill-faults", faults, "echo", "it ran"]);
        assert_eq!((status, out.as_str(), err.contains(says)), (125, "", true), "{err}");
    }
}
