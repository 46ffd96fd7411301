//! What the integration tests share: compiling the C programs, running a command natively or under `tmem run` with a time limit,
//! sampling its memory from outside, and comparing.
//!
//! Owns no policy about what must hold for which program; that is in the test files.

// Every test file is a crate of its own and uses another part of this.
#![allow(dead_code, unused_imports)]

mod compile;
pub mod disk;
pub mod host;
mod job;
pub mod pki;
mod sample;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use compile::{Linking, program};
pub use job::{Job, Outcome};
pub use sample::{Sampler, is_alive, resident_bytes, tree_of};

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// The binary under test.
pub fn tmem() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_tmem"))
}

/// The folder of the workload scripts.
pub fn workloads() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/workloads")
}

/// Whether the long versions were asked for (`TMEM_LONG=1`).
pub fn long() -> bool {
    std::env::var_os("TMEM_LONG").is_some_and(|value| value != "0")
}

/// Writes a line that libtest does not capture, so that a skip or a figure is seen when everything passes.
pub fn say(line: &str) {
    // With standard error closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Says why a test did not run.
pub fn skip(test: &str, why: &str) {
    say(&format!("SKIPPED: {test}: {why}"));
}

/// Why this machine or user cannot run `tmem` at all, found without asking `tmem`.
pub fn machine_refuses() -> Option<String> {
    // SAFETY: the system call takes flags and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: `fd` was just made and is used by nobody else.
        unsafe { libc::close(fd as i32) };
        return None;
    }
    let refused = io::Error::last_os_error();
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd");
    device.err().map(|error| format!("no userfaultfd here: system call: {refused}; /dev/userfaultfd: {error}"))
}

/// True if the test can run here; otherwise says why not.
pub fn can_run(test: &str) -> bool {
    match machine_refuses() {
        None => true,
        Some(why) => {
            skip(test, &why);
            false
        }
    }
}

/// True if a command is installed; otherwise says that it is not.
pub fn has(test: &str, command: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(command).is_file()));
    if !found {
        skip(test, &format!("{command} is not installed"));
    }
    found
}

/// Waits until `done` says so, at most `limit`; false if it never did.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    done()
}

/// A fresh folder for a test, under the target folder.
pub fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Memory of so many MiB that does not compress, read and written for one round.
pub fn noise(mib: u32) -> Job {
    noise_for(mib, 1)
}

/// The same, checked and changed so many times.
pub fn noise_for(mib: u32, rounds: u32) -> Job {
    let numbers = [mib, rounds].map(|number| number.to_string().into());
    Job::native([program("noise", Linking::Dynamic).into_os_string()].into_iter().chain(numbers))
}

/// A child that is killed and reaped when the test is over, however it is over.
pub struct Guard(pub Child);

impl Guard {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the child was not reaped yet, so its id is still its own.
        unsafe { libc::kill(self.0.id() as i32, signal) };
    }

    /// How it ended, if it does within this time.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        wait_until(limit, || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Already gone is fine. A supervisor that is told to end takes its program with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `tmem` command with nothing attached to it yet.
pub fn tmem_command(words: &[&str]) -> Command {
    let mut command = Command::new(tmem());
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs `tmem` with these words to its end: status as a shell shows it, standard output, standard error.
pub fn run_tmem(words: &[&str]) -> (i32, String, String) {
    let outcome = Job::native(std::iter::once(tmem().into_os_string()).chain(words.iter().map(Into::into)))
        .timeout(Duration::from_secs(30))
        .run();
    (outcome.shell_status(), outcome.stdout_text(), outcome.stderr_text())
}

/// Runs a client to its end, which has to be a success, and says what it printed.
pub fn run(program: &str, words: &[&str]) -> String {
    let out = Command::new("timeout").arg("120").arg(program).args(words).stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {words:?}: {}\n{stdout}{stderr}", out.status);
    stdout.into_owned()
}

/// A path as a word of a command.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
