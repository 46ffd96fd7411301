//! A look at the memory of a running process from outside: what `run` and `attach` would manage, and the bytes of its pages.
//!
//! The process is not stopped, traced or changed, except that a page which is read from swap comes back to memory. Its memory
//! goes on changing meanwhile: pages that are gone when they are asked for are an outcome, not an error.
//!
//! The open files of `/proc` belong to the address space that the process had when it was opened. If it ends, or becomes another
//! program, or its number is given to another process, there is nothing more to read, and never something else.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::control;
use crate::error::Error;
use crate::proc::{self, Mapping};
use crate::sys::{self, Errno, PAGE, Region, category};

/// A process whose memory can be read.
#[derive(Debug)]
pub struct Process {
    memory: File,
    name: String,
    ranges: Vec<Range<u64>>,
    swapped_bytes: u64,
    anonymous_bytes: u64,
    managed: bool,
}

/// What came of reading a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// So many bytes, fewer than asked for where the next page cannot be read.
    Bytes(usize),
    /// The process has ended, or has become another program.
    Ended,
}

impl Process {
    /// Opens a process and lists the pages that `run` would manage.
    ///
    /// # Errors
    ///
    /// When there is no such process, it has no memory, or this user may not read it. What is missing is named.
    pub fn open(pid: u32) -> Result<Self, Error> {
        let number = i32::try_from(pid).map_err(|_| no_process(pid))?;
        let (state, _) = proc::state(number).ok_or_else(|| no_process(pid))?;
        if matches!(state, 'Z' | 'X') {
            return Err(Error::own(format!("process {pid} has ended: its memory is gone")));
        }
        if proc::status_bytes(number, "VmSize").is_none() {
            return Err(Error::own(format!("process {pid} is a kernel thread: it has no memory of its own")));
        }
        let open = |name: &str| File::open(format!("/proc/{pid}/{name}")).map_err(|error| refused(pid, &error));
        // The memory comes first: of the files it is the one that asks for most.
        let (memory, pagemap) = (open("mem")?, open("pagemap")?);
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|error| refused(pid, &error))?;
        let (ranges, swapped_bytes) = held(&pagemap, &proc::parse_evictables(&maps)).map_err(|error| match error {
            Errno(libc::ENOTTY) => {
                Error::own("the kernel cannot list the pages of a process (PAGEMAP_SCAN): Linux 6.7 or newer is needed")
            }
            // The address space is gone.
            Errno(libc::ESRCH) => no_process(pid),
            error => Error::own(format!("cannot list the pages of process {pid}: {error}")),
        })?;
        let anonymous = ["RssAnon", "VmSwap"].map(|field| proc::status_bytes(number, field).unwrap_or(0));
        Ok(Self {
            memory,
            name: fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned(),
            ranges,
            swapped_bytes,
            anonymous_bytes: anonymous.iter().sum(),
            managed: control::connect(number).is_some(),
        })
    }

    /// The name of the program, as the kernel has it: at most 15 bytes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Address ranges of whole pages that take memory or swap in mappings that `run` would manage, in order.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Bytes of these ranges that are in swap.
    #[must_use]
    pub fn swapped_bytes(&self) -> u64 {
        self.swapped_bytes
    }

    /// All anonymous memory of the process, in memory and in swap, whether it could be managed or not.
    #[must_use]
    pub fn anonymous_bytes(&self) -> u64 {
        self.anonymous_bytes
    }

    /// Whether a `tmem` manages the process: then the pages that are in its store are not in the [`ranges`](Self::ranges).
    #[must_use]
    pub fn is_managed(&self) -> bool {
        self.managed
    }

    /// Reads from an address on.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Reading {
        match self.memory.read_at(out, address) {
            Ok(0) => Reading::Ended,
            Ok(bytes) => Reading::Bytes(bytes),
            // EIO: nothing is mapped there any more.
            Err(_) => Reading::Bytes(0),
        }
    }
}

fn no_process(pid: u32) -> Error {
    Error::own(format!("there is no process {pid}"))
}

fn refused(pid: u32, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => no_process(pid),
        io::ErrorKind::PermissionDenied => Error::own(format!(
            "may not read the memory of process {pid}, which takes CAP_SYS_PTRACE: run as root, or \
             sudo setcap cap_sys_ptrace=ep \"$(command -v tmem)\" (in a container: docker run --cap-add SYS_PTRACE)"
        )),
        // The address space ended between two calls.
        _ if error.raw_os_error() == Some(libc::ESRCH) => no_process(pid),
        _ => Error::own(format!("cannot read the memory of process {pid}: {error}")),
    }
}

/// The ranges of pages that take memory or swap, and how much of them is in swap.
fn held(pagemap: &File, mappings: &[Mapping]) -> Result<(Vec<Range<u64>>, u64), Errno> {
    let mut regions = vec![Region::default(); 512];
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut swapped_bytes = 0;
    for mapping in mappings {
        let mut at = mapping.start;
        while at < mapping.end {
            let (count, end) = sys::scan_held(pagemap.as_fd(), at, mapping.end, &mut regions)?;
            for region in &regions[..count] {
                swapped_bytes += if region.categories & category::SWAPPED != 0 { region.end - region.start } else { 0 };
                match ranges.last_mut() {
                    Some(last) if last.end == region.start => last.end = region.end,
                    _ => ranges.push(region.start..region.end),
                }
            }
            // A scan that does not get on must not hang us.
            at = end.max(at + PAGE);
        }
    }
    Ok((ranges, swapped_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_listed_and_read() {
        // Large enough to be a mapping of its own, or at least pages of its own.
        let bytes: Vec<u8> = (0..64 * PAGE).map(|i| (i / PAGE + 1) as u8).collect();
        let process = Process::open(std::process::id()).unwrap();
        let first = (bytes.as_ptr() as u64).next_multiple_of(PAGE);
        let held = |address| process.ranges().iter().any(|range| range.contains(&address));
        assert!((0..63).all(|page| held(first + page * PAGE)));
        let mut out = vec![0; 63 * PAGE as usize];
        assert_eq!(process.read(first, &mut out), Reading::Bytes(out.len()));
        let skipped = (first - bytes.as_ptr() as u64) as usize;
        assert_eq!(out, bytes[skipped..][..out.len()]);
        assert!(!held(PAGE));
        assert_eq!(process.read(PAGE, &mut out), Reading::Bytes(0));
        assert!(process.anonymous_bytes() >= 63 * PAGE && !process.is_managed());
    }

    #[test]
    fn after_the_end_there_is_nothing_to_read() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        // The child may have been looked at between fork and exec.
        if let Ok(process) = process
            && let Some(range) = process.ranges().first()
        {
            assert_eq!(process.read(range.start, &mut [0; 8]), Reading::Ended);
        }
        let gone = Process::open(child.id()).unwrap_err();
        assert!(gone.to_string().contains("there is no process"), "{gone}");
    }
}
