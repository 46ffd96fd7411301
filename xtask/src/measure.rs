//! Runs one command and measures it: time, CPU, peak memory of its whole tree, a hash of what it printed.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::fs::File;
use std::hash::Hasher;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Serialize, Serializer};

use crate::{interrupt, process_tree};

/// How often memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(i32),
    Signaled(i32),
    /// The kernel's out-of-memory killer took a process of it.
    OutOfMemory,
    TimedOut,
}

impl Ending {
    pub fn is_success(self) -> bool {
        self == Self::Exited(0)
    }

    /// The workloads' way to say that something they need is not installed.
    pub fn is_skip(self) -> bool {
        self == Self::Exited(77)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => write!(f, "ok"),
            Self::Exited(status) => write!(f, "status {status}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
            Self::OutOfMemory => write!(f, "killed"),
            Self::TimedOut => write!(f, "timeout"),
        }
    }
}

impl Serialize for Ending {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What one run took.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub ending: Ending,
    pub elapsed_s: f64,
    /// User and system time of all processes of the run.
    pub cpu_s: f64,
    pub peak_ram_bytes: u64,
    pub output_hash: u64,
    /// The end of what it wrote to standard error.
    #[serde(skip)]
    pub complaint: String,
}

/// Runs `command` to its end and samples its memory on the way, calling `observe` with each sample.
///
/// Processes that outlive the command are killed: they belong to nobody.
///
/// # Errors
///
/// When the command cannot be started or we are interrupted; how the command ends is in the result.
pub fn measure(command: &mut Command, timeout: Duration, mut observe: impl FnMut()) -> anyhow::Result<Measured> {
    let mut peak = process_tree::Peak::default();
    let measured = run(command, timeout, || {
        peak.sample();
        observe();
    })?;
    Ok(Measured { peak_ram_bytes: peak.bytes(), ..measured })
}

/// Runs `command` to its end and leaves it alone meanwhile: its time is its own, and its peak memory is not known. A look at
/// the memory of several processes takes milliseconds in which none of them can change its mappings.
///
/// # Errors
///
/// As [`measure`].
pub fn time(command: &mut Command, timeout: Duration) -> anyhow::Result<Measured> {
    run(command, timeout, || ())
}

fn run(command: &mut Command, timeout: Duration, observe: impl FnMut()) -> anyhow::Result<Measured> {
    process_tree::adopt_orphans();
    let mut complaints = tempfile::tempfile().context("cannot create a temporary file")?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints.try_clone()?);
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let pid = child.id() as i32;
    let stdout = child.stdout.take().context("standard output was asked for")?;
    let hasher = std::thread::spawn(move || hash_all(stdout));

    let watched = watch(pid, start, timeout, observe);
    if !matches!(watched, Ok(true)) {
        // SAFETY: sending a signal touches no memory of ours; the child is not reaped yet, so the number is still its.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let (mut ending, cpu) = reap(pid)?;
    let elapsed = start.elapsed();
    process_tree::kill_descendants();
    let output_hash = hasher.join().expect("hashing does not panic").context("cannot read the output")?;
    if !watched? {
        ending = Ending::TimedOut;
    }
    Ok(Measured {
        ending,
        elapsed_s: elapsed.as_secs_f64(),
        cpu_s: cpu.as_secs_f64(),
        peak_ram_bytes: 0,
        output_hash,
        complaint: tail(&mut complaints)?,
    })
}

/// Samples until the process has ended (true) or its time is up (false).
fn watch(pid: i32, start: Instant, timeout: Duration, mut sample: impl FnMut()) -> anyhow::Result<bool> {
    let pidfd = pidfd_open(pid)?;
    loop {
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one local entry, as the count says.
        let ready = unsafe { libc::poll(&raw mut poll, 1, SAMPLE_EVERY.as_millis() as i32) };
        if ready == 1 {
            return Ok(true);
        }
        interrupt::check()?;
        if start.elapsed() > timeout {
            return Ok(false);
        }
        sample();
    }
}

fn pidfd_open(pid: i32) -> anyhow::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    ensure!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just opened this descriptor for us, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits for a child; its CPU time includes that of all it waited for.
fn reap(pid: i32) -> anyhow::Result<(Ending, Duration)> {
    let mut status = 0;
    // SAFETY: `rusage` is plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals of the right type.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    ensure!(waited == pid, "wait4: {}", std::io::Error::last_os_error());
    let ending = match libc::WIFSIGNALED(status) {
        true => Ending::Signaled(libc::WTERMSIG(status)),
        false => Ending::Exited(libc::WEXITSTATUS(status)),
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    Ok((ending, time(usage.ru_utime) + time(usage.ru_stime)))
}

/// Hashes in blocks of fixed size, so that it does not matter how the output arrives.
fn hash_all(mut from: impl Read) -> std::io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut block = Vec::with_capacity(64 << 10);
    loop {
        block.clear();
        let length = from.by_ref().take(64 << 10).read_to_end(&mut block)?;
        if length == 0 {
            return Ok(hasher.finish());
        }
        hasher.write(&block);
    }
}

fn tail(file: &mut File) -> anyhow::Result<String> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    let start = text.len().saturating_sub(2000);
    Ok(String::from_utf8_lossy(&text[start..]).trim().to_owned())
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Measured {
        measure(Command::new("sh").args(["-c", script]), Duration::from_secs(20), || ()).unwrap()
    }

    // One test: runs must not overlap, since a run owns all descendants of this process.
    #[test]
    fn a_run_is_measured() {
        let one = sh("echo same; exit 3");
        assert_eq!(one.ending, Ending::Exited(3));
        assert_eq!(one.output_hash, sh("printf 'sa'; sleep 0.05; echo me >&2; printf 'me\n'").output_hash);
        assert_ne!(one.output_hash, sh("echo other").output_hash);
        assert_eq!(sh("kill -9 $$").ending, Ending::Signaled(9));
        assert_eq!(sh("echo why >&2; exit 1").complaint, "why");

        // A straggler that holds the output open is ended, not waited for.
        let straggler = sh("sleep 100 & echo x");
        assert!(straggler.elapsed_s < 10.0);

        let slow = measure(Command::new("sleep").arg("100"), Duration::from_millis(100), || ()).unwrap();
        assert_eq!(slow.ending, Ending::TimedOut);

        let big = sh("head -c 30000000 /dev/zero | sort -z -S 100M --parallel=1 | (sleep 0.2; cat) | wc -c");
        assert!(big.peak_ram_bytes > 20 << 20, "{big:?}");
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
