//! What `/proc` tells about processes: memory sizes, mappings, threads, children, fitness for an agent.

use std::fs;
use std::io::Read;

use crate::arch;
use crate::sys::{self, PAGE};

/// A private, anonymous, writable mapping: what can be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
}

/// Mappings under this size are left alone: they cost more to manage than they hold, and the ones that
/// libraries wipe or drop behind the program's back (random number state) are among them.
const MAPPING_BYTES_MIN: u64 = 64 << 10;

/// The evictable mappings of a process, in address order; empty if it is gone.
pub fn evictable_mappings(pid: i32) -> Vec<Mapping> {
    fs::read_to_string(format!("/proc/{pid}/maps")).map_or_else(|_| Vec::new(), |text| parse_evictables(&text))
}

/// The evictable mappings in the text of `/proc/PID/maps`.
pub fn parse_evictables(maps: &str) -> Vec<Mapping> {
    maps.lines().filter_map(parse_evictable).collect()
}

fn parse_evictable(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (perms, _offset, _device, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let name = fields.next().unwrap_or("");
    if perms != "rw-p" || inode != "0" {
        return None;
    }
    // Anonymous memory has no name, or one in brackets; of the kernel's own, only heap and stack are ours to move.
    let ours = name.is_empty() || name.starts_with("[anon") || name == "[heap]" || name == "[stack]";
    let mapping = Mapping { start: u64::from_str_radix(start, 16).ok()?, end: u64::from_str_radix(end, 16).ok()? };
    (ours && mapping.end - mapping.start >= MAPPING_BYTES_MIN).then_some(mapping)
}

/// Mappings of a process that a forked child finds empty (MADV_WIPEONFORK). Walks page tables, as fork itself does.
pub fn wiped_on_fork(pid: i32) -> Vec<Mapping> {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps")) else { return Vec::new() };
    let mut last = None;
    let mut out = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if flags.split_ascii_whitespace().any(|flag| flag == "wf") {
                out.extend(last);
            }
        } else if let Some((range, _)) = line.split_once(' ')
            && let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            last = Some(Mapping { start, end });
        }
    }
    out
}

/// The address of `bytes` in the vDSO of a process.
pub fn find_in_vdso(pid: i32, bytes: &[u8]) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let line = text.lines().find(|l| l.ends_with("[vdso]"))?;
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let mut image = vec![0; (end - start) as usize];
    let got = sys::read_memory(pid, start, &mut image).ok()?;
    let at = image[..got].windows(bytes.len()).position(|w| w == bytes)?;
    Some(start + at as u64)
}

/// Threads of a process, the first one first.
pub fn threads(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Direct children of a process, of all its threads.
pub fn children(pid: i32) -> Vec<i32> {
    let mut out = Vec::new();
    for tid in threads(pid) {
        if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")) {
            out.extend(text.split_ascii_whitespace().filter_map(|w| w.parse::<i32>().ok()));
        }
    }
    out
}

/// All processes that can be seen.
pub fn all() -> Vec<i32> {
    let Ok(listed) = fs::read_dir("/proc") else { return Vec::new() };
    listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Resident bytes that are no file's: anonymous memory by the cheap counter.
pub fn anonymous_bytes(pid: i32) -> Option<u64> {
    let mut text = [0_u8; 128];
    let mut file = fs::File::open(format!("/proc/{pid}/statm")).ok()?;
    let got = file.read(&mut text).ok()?;
    let mut fields = std::str::from_utf8(&text[..got]).ok()?.split_ascii_whitespace().skip(1);
    let resident: u64 = fields.next()?.parse().ok()?;
    let shared: u64 = fields.next()?.parse().ok()?;
    Some(resident.saturating_sub(shared) * PAGE)
}

/// Fields of `/proc/PID/status` in KiB, turned into bytes.
pub fn status_bytes(pid: i32, field: &str) -> Option<u64> {
    let kib: u64 = status_field(pid, field)?.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// One field of `/proc/PID/status` as text.
pub fn status_field(pid: i32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|l| l.strip_prefix(field).is_some_and(|r| r.starts_with(':')))?;
    Some(line[field.len() + 1..].trim().to_owned())
}

/// Share of the process in its anonymous and shared memory: `(Pss_Anon, Pss_Shmem)` in bytes. Walks page tables:
/// some milliseconds per GiB.
pub fn proportional_bytes(pid: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|l| l.starts_with(name))?;
        Some(line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
    };
    Some((field("Pss_Anon:")?, field("Pss_Shmem:")?))
}

/// State letter (R, S, D, T, t, Z, X) and start time of a process.
pub fn state(pid: i32) -> Option<(char, u64)> {
    let stat = Stat::read(pid)?;
    Some((stat.field(3)?.chars().next()?, stat.field(22)?.parse().ok()?))
}

/// Page faults of a process that needed no device: among them every copy of a page that it shared with a relative.
pub fn minor_faults(pid: i32) -> Option<u64> {
    Stat::read(pid)?.field(10)?.parse().ok()
}

/// The name of a process: up to 15 bytes, of its own choice.
pub fn name(pid: i32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// Parent of a process.
pub fn parent(pid: i32) -> Option<i32> {
    Stat::read(pid)?.field(4)?.parse().ok()
}

/// The processor that a thread ran on last.
pub fn processor(tid: i32) -> Option<usize> {
    Stat::read(tid)?.field(39)?.parse().ok()
}

/// `/proc/PID/stat`.
struct Stat(String);

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        fs::read_to_string(format!("/proc/{pid}/stat")).ok().map(Stat)
    }

    /// A field by its number in proc_pid_stat(5), from 3 on: the second, the name, may hold anything.
    fn field(&self, number: usize) -> Option<&str> {
        let rest = self.0.get(self.0.rfind(')')? + 2..)?;
        rest.split_ascii_whitespace().nth(number - 3)
    }
}

/// Says why an agent cannot live in this process, if so.
pub fn check_fit(pid: i32) -> Result<(), &'static str> {
    let mut header = [0_u8; 20];
    let read = fs::File::open(format!("/proc/{pid}/exe")).and_then(|mut f| f.read_exact(&mut header));
    if read.is_err() {
        return Err("its program file cannot be read: is it a kernel thread, or somebody else's?");
    }
    let machine = u16::from_le_bytes([header[18], header[19]]);
    if header[4] != 2 || machine != arch::ELF_MACHINE {
        return Err("it is a program for another architecture (32-bit programs are not supported)");
    }
    let filters = |pid| status_field(pid, "Seccomp_filters").and_then(|f| f.parse::<u32>().ok()).unwrap_or(0);
    if filters(pid) > filters(std::process::id() as i32) {
        return Err("it has a seccomp filter of its own, which may kill it for system calls it does not expect");
    }
    // That may be ourselves, when it did not stop in time.
    if ![0, std::process::id() as i32].contains(&tracer(pid)) {
        return Err("a debugger or tracer is attached to it");
    }
    Ok(())
}

/// The thread that traces process or thread `pid`, 0 if nobody does.
pub fn tracer(pid: i32) -> i32 {
    status_field(pid, "TracerPid").and_then(|t| t.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_writable_anonymous_memory_is_evictable() {
        let yes = "7f0000000000-7f0000100000 rw-p 00000000 00:00 0 ";
        assert_eq!(parse_evictable(yes), Some(Mapping { start: 0x7f00_0000_0000, end: 0x7f00_0010_0000 }));
        assert!(parse_evictable("55d0-55e00000 rw-p 00000000 00:00 0 [heap]").is_some());
        for no in [
            "7f0000000000-7f0000100000 r--p 00000000 00:00 0 ",
            "7f0000000000-7f0000100000 rw-s 00000000 00:01 77 /dev/zero (deleted)",
            "7f0000000000-7f0000100000 rw-p 00000000 08:01 42 /usr/lib/libc.so.6",
            "7f0000000000-7f0000100000 rw-p 00000000 00:00 0 [vvar]",
            "7f0000000000-7f0000002000 rw-p 00000000 00:00 0 ",
        ] {
            assert_eq!(parse_evictable(no), None, "{no}");
        }
    }

    #[test]
    fn own_process_is_readable() {
        let me = std::process::id() as i32;
        assert!(anonymous_bytes(me).unwrap() > 0);
        assert!(threads(me).contains(&me));
        // The first thread of a test runner sleeps while a test runs.
        assert!(matches!(state(me).unwrap().0, 'R' | 'S'));
        assert!(find_in_vdso(me, arch::SYSCALL_INSTRUCTION).is_some());
    }
}
