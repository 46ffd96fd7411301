//! Attach to a program that runs already, let go of it again, and find it as it was.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    Linking, MIB, Sampler, can_run, is_alive, long, program, resident_bytes, run_tmem, say, tmem_command, wait_until,
};

const RAM: u64 = 80 * MIB;

/// A program that writes and checks 128 MiB until its input ends.
struct Checker {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Checker {
    fn start() -> Self {
        let path = program("checker", Linking::Dynamic);
        let mut child = Command::new(path).arg("128").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        out.read_line(&mut ready).unwrap();
        assert!(ready.starts_with("ready"), "{ready}");
        Self { child, out }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it to check everything once more and to end.
    fn finish(mut self) {
        drop(self.child.stdin.take());
        let mut said = String::new();
        let ended = wait_until(Duration::from_secs(30), || self.child.try_wait().unwrap().is_some());
        if !ended {
            self.child.kill().unwrap();
        }
        self.out.read_to_string(&mut said).unwrap();
        assert!(ended, "HANG: the checker did not end; it said {said}");
        assert_eq!(said, "ok checker\n");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stats_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("attach-{name}-{}.json", std::process::id()))
}

fn attach(pid: u32, stats: &Path) -> Child {
    tmem_command(&["attach", "--ram", &RAM.to_string(), "--stats", stats.to_str().unwrap(), &pid.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for `tmem attach` to end and says how it ended.
fn ended(mut supervisor: Child) -> (Option<i32>, String) {
    let in_time = wait_until(Duration::from_secs(20), || supervisor.try_wait().unwrap().is_some());
    if !in_time {
        supervisor.kill().unwrap();
    }
    let mut said = String::new();
    supervisor.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = supervisor.wait().unwrap();
    assert!(in_time, "HANG: tmem attach did not end: {said}");
    (status.code(), said)
}

fn threads_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

fn descriptors_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// What must be as before when nobody manages the program any more.
fn assert_left_alone(pid: u32, threads: usize, descriptors: usize) {
    assert!(
        wait_until(Duration::from_secs(2), || threads_of(pid) == threads),
        "{} threads, were {threads}",
        threads_of(pid)
    );
    assert_eq!(descriptors_of(pid), descriptors);
    let tracer = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(tracer.contains("TracerPid:\t0\n"), "still traced");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(!maps.contains("tmem"), "mappings are left behind:\n{maps}");
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let watched = smaps
        .lines()
        .filter(|line| line.starts_with("VmFlags:"))
        .filter(|line| line.contains(" um") || line.contains(" uw"));
    assert_eq!(watched.count(), 0, "some memory is still registered");
}

/// Attach, wait until it is within its budget, let go by `release`, and compare.
fn attach_and_release(name: &str, release: impl Fn(u32, &Child)) {
    if !can_run(name) {
        return;
    }
    let checker = Checker::start();
    let (threads, descriptors) = (threads_of(checker.pid()), descriptors_of(checker.pid()));
    let stats = stats_file(name);
    let supervisor = attach(checker.pid(), &stats);
    let own = supervisor.id();
    let within = wait_until(Duration::from_secs(10), || {
        let own_rss = fs::read_to_string(format!("/proc/{own}/statm")).unwrap_or_default();
        let own_pages: u64 = own_rss.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        own_pages > 0 && resident_bytes(checker.pid()) + own_pages * 4096 < RAM + RAM / 20 + 32 * MIB
    });
    assert!(within, "never within its budget: {} MiB", resident_bytes(checker.pid()) / MIB);
    let sampler = Sampler::start(checker.pid(), false);
    std::thread::sleep(Duration::from_secs(if long() { 10 } else { 1 }));
    let peak = sampler.finish();
    assert!(peak < 110 * MIB, "the program grew to {} MiB while managed", peak / MIB);
    release(checker.pid(), &supervisor);
    let (status, said) = ended(supervisor);
    assert_eq!(status, Some(0), "{said}");
    assert_left_alone(checker.pid(), threads, descriptors);
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(&stats).unwrap()).unwrap();
    fs::remove_file(&stats).unwrap();
    say(&format!("{name}: {figures}"));
    assert!(figures["pages_evicted"].as_u64().unwrap() > 0, "{figures}");
    checker.finish();
}

#[test]
fn detach_by_command() {
    attach_and_release("detach_by_command", |pid, _| {
        let (status, out, err) = run_tmem(&["detach", &pid.to_string()]);
        assert_eq!((status, out.as_str(), err.as_str()), (0, "", ""));
    });
}

fn send(child: &Child, signal: i32) {
    // SAFETY: the child was not reaped yet, so its id is still its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// Before that, a signal ends it, and nothing has happened yet.
fn until_signals_are_caught(pid: u32) {
    let catches = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
        u64::from_str_radix(blocked, 16).unwrap() & 1 << (libc::SIGTERM - 1) != 0
    };
    let end = Instant::now() + Duration::from_secs(10);
    while !catches() {
        assert!(Instant::now() < end, "SIGTERM is not caught");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn detach_by_ctrl_c() {
    attach_and_release("detach_by_ctrl_c", |_, supervisor| send(supervisor, libc::SIGINT));
}

#[test]
fn detach_by_sigterm() {
    attach_and_release("detach_by_sigterm", |_, supervisor| send(supervisor, libc::SIGTERM));
}

#[test]
fn attach_and_detach_twenty_times() {
    let name = "attach_and_detach_twenty_times";
    if !can_run(name) {
        return;
    }
    let checker = Checker::start();
    let (threads, descriptors) = (threads_of(checker.pid()), descriptors_of(checker.pid()));
    let stats = stats_file(name);
    for round in 0..20_u64 {
        let supervisor = attach(checker.pid(), &stats);
        until_signals_are_caught(supervisor.id());
        // From "hardly begun" to "well under way".
        std::thread::sleep(Duration::from_millis(20 + round * 20));
        send(&supervisor, libc::SIGTERM);
        let (status, said) = ended(supervisor);
        assert_eq!(status, Some(0), "round {round}: {said}");
        assert!(is_alive(checker.pid()), "round {round}: the checker is gone");
    }
    assert_left_alone(checker.pid(), threads, descriptors);
    // There was time enough only once a budget's worth was moved; the last rounds had it.
    checker.finish();
    let _ = fs::remove_file(&stats);
}

#[test]
fn the_program_ends_while_attached() {
    let name = "the_program_ends_while_attached";
    if !can_run(name) {
        return;
    }
    let checker = Checker::start();
    let stats = stats_file(name);
    let supervisor = attach(checker.pid(), &stats);
    std::thread::sleep(Duration::from_millis(700));
    checker.finish();
    let (status, said) = ended(supervisor);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    let _ = fs::remove_file(&stats);
}

#[test]
fn killing_the_supervisor_kills_the_program() {
    let name = "killing_the_supervisor_kills_the_program";
    if !can_run(name) {
        return;
    }
    let checker = Checker::start();
    let pid = checker.pid();
    let stats = stats_file(name);
    let mut supervisor = attach(pid, &stats);
    std::thread::sleep(Duration::from_millis(700));
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert!(wait_until(Duration::from_secs(1), || !is_alive(pid)), "the program outlived its pages");
    let _ = fs::remove_file(&stats);
}

/// A system call that was interrupted by attaching goes on as if nothing had been.
#[test]
fn blocked_system_calls_survive() {
    let name = "blocked_system_calls_survive";
    if !can_run(name) {
        return;
    }
    let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut sleep = Command::new("sleep").arg("1.5").spawn().unwrap();
    let started = std::time::Instant::now();
    for pid in [cat.id(), sleep.id()] {
        let stats = stats_file(name);
        let supervisor = attach(pid, &stats);
        std::thread::sleep(Duration::from_millis(200));
        let (status, out, err) = run_tmem(&["detach", &pid.to_string()]);
        assert_eq!((status, out.as_str(), err.as_str()), (0, "", ""));
        assert_eq!(ended(supervisor), (Some(0), String::new()));
        let _ = fs::remove_file(&stats);
    }
    assert!(sleep.wait().unwrap().success());
    let slept = started.elapsed();
    assert!(slept >= Duration::from_millis(1450) && slept < Duration::from_millis(2600), "slept {slept:?}");
    cat.stdin.take().unwrap().write_all(b"still here\n").unwrap();
    let mut said = String::new();
    cat.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "still here\n");
    assert!(cat.wait().unwrap().success());
}
