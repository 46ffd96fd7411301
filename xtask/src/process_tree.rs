//! The processes that we started and their memory, from `/proc`.
//!
//! What counts is anonymous and shared memory, resident: of one process `RssAnon` + `RssShmem`; where several processes
//! may share pages after a fork, `Pss_Anon` + `Pss_Shmem`, which gives each its share. The latter is slow to read, so it is only
//! asked for when the former, an upper bound, is above the peak known so far.

use std::fs;

/// Ends every process that descends from this one, and reaps those that become ours.
pub fn kill_descendants() {
    // A process may fork between the look and the kill: look again until nobody is left.
    for _ in 0..50 {
        let pids = descendants();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            // SAFETY: sending a signal touches no memory of ours.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        reap();
    }
}

/// Adopts orphans of what we start, so that nothing leaves the tree by becoming a daemon.
pub fn adopt_orphans() {
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Takes note of children that have ended.
pub fn reap() {
    // SAFETY: no status is asked for, so the kernel writes nothing.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// The peak of all processes that descend from this one.
#[derive(Default)]
pub struct Peak {
    bytes: u64,
}

impl Peak {
    /// Looks once.
    pub fn sample(&mut self) {
        let pids = owners(descendants());
        let bound: u64 = pids.iter().map(|&pid| rss_bytes(pid)).sum();
        if bound <= self.bytes {
            return;
        }
        let now = match pids.len() {
            0 | 1 => bound,
            _ => pids.iter().map(|&pid| pss_bytes(pid)).sum::<u64>().min(bound),
        };
        self.bytes = self.bytes.max(now);
    }

    /// The most that was seen.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Every process that descends from this one.
pub fn descendants() -> Vec<i32> {
    let mut found = Vec::new();
    let mut unseen = children(std::process::id() as i32);
    while let Some(pid) = unseen.pop() {
        unseen.extend(children(pid));
        found.push(pid);
    }
    found
}

/// Those that have memory of their own: a child of vfork borrows its parent's until it executes something.
fn owners(pids: Vec<i32>) -> Vec<i32> {
    const KCMP_VM: i32 = 1;
    // SAFETY: plain system call without pointers.
    let same = |a: i32, b: i32| unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0 };
    let mut owners: Vec<i32> = Vec::with_capacity(pids.len());
    for pid in pids {
        if !owners.iter().any(|&owner| same(owner, pid)) {
            owners.push(pid);
        }
    }
    owners
}

/// Every process of the machine that shows.
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Children of all threads of a process; none if it is gone.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Resident anonymous and shared memory of a process; 0 if it is gone.
pub fn rss_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kib_fields(&status, &["RssAnon:", "RssShmem:"]) << 10
}

fn pss_bytes(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kib_fields(&rollup, &["Pss_Anon:", "Pss_Shmem:"]) << 10
}

/// Sums the named fields of a text of lines like `Name:   123 kB`.
fn kib_fields(text: &str, names: &[&str]) -> u64 {
    let values = text.lines().filter_map(|line| names.iter().find_map(|name| line.strip_prefix(name)));
    values.filter_map(|value| value.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_summed() {
        let status = "VmRSS:\t  900 kB\nRssAnon:\t  100 kB\nRssFile:\t  500 kB\nRssShmem:\t   20 kB\n";
        assert_eq!(kib_fields(status, &["RssAnon:", "RssShmem:"]), 120);
        assert_eq!(kib_fields("", &["RssAnon:"]), 0);
    }
}
