//! Runs one command, natively or under `tmem run`, with a time limit, and keeps everything that can be compared.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::sample::{Sampler, tree_of};
use super::{MIB, tmem};

/// A command to run.
pub struct Job {
    command: Vec<OsString>,
    ram_bytes: Option<u64>,
    flags: Vec<OsString>,
    input: Vec<u8>,
    env: Vec<(OsString, OsString)>,
    timeout: Duration,
}

impl Job {
    /// The command as it is.
    pub fn native(command: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let command = command.into_iter().map(Into::into).collect();
        Self {
            command,
            ram_bytes: None,
            flags: Vec::new(),
            input: Vec::new(),
            env: Vec::new(),
            timeout: Duration::from_secs(120),
        }
    }

    /// The same command under `tmem run` with this budget.
    pub fn under_tmem(mut self, ram_bytes: u64) -> Self {
        self.ram_bytes = Some(ram_bytes);
        self
    }

    /// More flags for `tmem run`.
    pub fn flags(mut self, flags: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// What the command reads from standard input; nothing if not given.
    pub fn input(mut self, input: &[u8]) -> Self {
        self.input = input.to_vec();
        self
    }

    /// One more environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// How long the command may take; after that it hangs, and is killed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs to the end.
    ///
    /// # Panics
    ///
    /// When the command cannot be started or takes too long.
    pub fn run(self) -> Outcome {
        let stats_file = self.ram_bytes.map(|_| stats_path());
        let mut command = self.command_line(stats_file.as_deref());
        let name = self.command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let start = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let sampler = Sampler::start(child.id(), self.ram_bytes.is_some());
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = self.input;
        // A program that does not read its input is no failure.
        let feeder = thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = drain(child.stdout.take().expect("stdout is piped"));
        let stderr = drain(child.stderr.take().expect("stderr is piped"));
        let status = wait(&mut child, self.timeout);
        let elapsed = start.elapsed();
        let peak_bytes = sampler.finish();
        let Some(status) = status else {
            let states = snapshot(child.id());
            kill_tree(child.id());
            // It was killed; the status says nothing more.
            let _ = child.wait();
            let (out, err) = (text(stdout), text(stderr));
            panic!("HANG: {name} did not end within {:?}\n{states}\nstdout: {out}\nstderr: {err}", self.timeout);
        };
        feeder.join().expect("the feeder does not panic");
        let outcome_stdout = stdout.join().expect("the reader does not panic");
        let outcome_stderr = stderr.join().expect("the reader does not panic");
        let stats = stats_file.and_then(|path| {
            let text = std::fs::read(&path).ok()?;
            // Somebody may want to look at it after a failure, nobody after a success; it is small either way.
            let _ = std::fs::remove_file(&path);
            serde_json::from_slice(&text).ok()
        });
        Outcome {
            name,
            ram_bytes: self.ram_bytes.unwrap_or(0),
            status,
            stdout: outcome_stdout,
            stderr: outcome_stderr,
            stats,
            peak_bytes,
            elapsed,
        }
    }

    fn command_line(&self, stats_file: Option<&std::path::Path>) -> Command {
        let mut command = match (self.ram_bytes, stats_file) {
            (Some(ram), Some(stats)) => {
                let mut command = Command::new(tmem());
                command
                    .arg("run")
                    .arg("--ram")
                    .arg(ram.to_string())
                    .arg("--stats")
                    .arg(stats)
                    .args(&self.flags)
                    .arg("--")
                    .args(&self.command);
                command
            }
            _ => {
                let mut command = Command::new(&self.command[0]);
                command.args(&self.command[1..]);
                command
            }
        };
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }
}

fn stats_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("stats-{}-{number}.json", std::process::id()))
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // What came before a failure is worth having.
        let _ = from.read_to_end(&mut all);
        all
    })
}

fn text(reader: JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child of ours") {
            return Some(status);
        }
        if start.elapsed() > limit {
            return None;
        }
        thread::sleep(Duration::from_millis(3));
    }
}

/// Where every thread of the tree is, for the report of a hang.
fn snapshot(root: u32) -> String {
    let mut lines = String::new();
    for pid in tree_of(root) {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let state = read("status").lines().find(|line| line.starts_with("State")).unwrap_or_default().to_owned();
            lines +=
                &format!("{pid}/{} {} {state} in {}\n", task.file_name().display(), read("comm").trim(), read("wchan"));
        }
    }
    lines
}

fn kill_tree(root: u32) {
    for pid in tree_of(root) {
        // SAFETY: a signal to a process that this test started touches no memory of ours.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    }
}

/// How a command ended and what it used.
pub struct Outcome {
    pub name: String,
    pub ram_bytes: u64,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// What `--stats` wrote, if the command ran under `tmem`.
    pub stats: Option<Value>,
    /// Peak of the tree (and the supervisor), sampled from outside.
    pub peak_bytes: u64,
    pub elapsed: Duration,
}

impl Outcome {
    /// The status as a shell shows it.
    pub fn shell_status(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// A figure of `--stats`.
    pub fn figure(&self, name: &str) -> u64 {
        let stats = self
            .stats
            .as_ref()
            .unwrap_or_else(|| panic!("{}: no --stats were written\n{}", self.name, self.stderr_text()));
        stats[name].as_u64().unwrap_or_else(|| panic!("{}: no figure {name} in {stats}", self.name))
    }

    /// Same output and same ending as `native`.
    pub fn assert_same_as(&self, native: &Outcome) {
        let differs = self.stdout != native.stdout || self.status != native.status;
        assert!(
            !differs,
            "{} under tmem (--ram {} MiB) differs from native\nnative: {}\n{}{}\ntmem: {}\n{}{}",
            self.name,
            self.ram_bytes / MIB,
            native.status,
            tail(&native.stdout),
            tail(&native.stderr),
            self.status,
            tail(&self.stdout),
            tail(&self.stderr),
        );
    }

    /// Something was moved out, and some of it came back.
    pub fn assert_evicted(&self) {
        assert!(self.figure("pages_evicted") > 0, "{}: nothing was evicted: {:?}", self.name, self.stats);
    }

    /// The budget was kept, by what `tmem` says and by what was sampled from outside: 5 % and 32 MiB are allowed on top.
    ///
    /// When `tmem` counted that nothing could shrink any more, it may have grown, as documented; that is said aloud.
    pub fn assert_budget(&self) {
        let limit = self.ram_bytes + self.ram_bytes / 20 + 32 * MIB;
        let (told, seen) = (self.figure("ram_peak_bytes"), self.peak_bytes);
        if told.max(seen) > limit && self.figure("on_full_events") > 0 {
            super::say(&format!(
                "NOTE: {}: nothing left to shrink, grew over the budget: {}",
                self.name,
                self.summary()
            ));
            return;
        }
        assert!(told <= limit, "{}: over the budget by its own account: {}", self.name, self.summary());
        assert!(seen <= limit, "{}: over the budget as seen from outside: {}", self.name, self.summary());
        assert!(told + 16 * MIB + told / 8 >= seen, "{}: tells less than was seen: {}", self.name, self.summary());
    }

    /// The figures in one line.
    pub fn summary(&self) -> String {
        let mib = |bytes: u64| (bytes + MIB / 2) / MIB;
        let mut line = format!("{:.2} s, peak {} MiB", self.elapsed.as_secs_f64(), mib(self.peak_bytes));
        if self.stats.is_some() {
            line += &format!(
                ", --ram {} MiB, tmem says peak {} MiB, evicted {}, returned {}",
                mib(self.ram_bytes),
                mib(self.figure("ram_peak_bytes")),
                self.figure("pages_evicted"),
                self.figure("pages_returned"),
            );
        }
        line
    }
}

fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let start = text.char_indices().rev().nth(1500).map_or(0, |(at, _)| at);
    text[start..].to_owned()
}
