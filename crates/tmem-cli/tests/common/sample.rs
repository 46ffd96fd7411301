//! Looks at the memory of a process tree from outside, by other means than `tmem` uses for itself.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const EVERY: Duration = Duration::from_millis(20);

/// A process and everything it started that still has a parent in the tree.
pub fn tree_of(root: u32) -> Vec<u32> {
    let mut tree = vec![root];
    let mut at = 0;
    while at < tree.len() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", tree[at])) else {
            at += 1;
            continue;
        };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            tree.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        at += 1;
    }
    tree
}

/// True while the process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next())
        .is_some_and(|state| state != 'Z' && state != 'X')
}

/// The sum of lines `NAME: N kB` of a file of `/proc`, in bytes.
fn kib_lines(path: &str, names: &[&str]) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(name, _)| names.contains(name))
        .filter_map(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum::<u64>()
        * 1024
}

/// Anonymous and shared memory of one process, with pages that several processes share divided between them.
pub fn resident_bytes(pid: u32) -> u64 {
    kib_lines(&format!("/proc/{pid}/smaps_rollup"), &["Pss_Anon", "Pss_Shmem"])
}

/// The processes that have memory of their own: a child of vfork borrows its parent's until it executes something, and what it
/// borrows is the parent's already.
fn owners(tree: Vec<u32>) -> Vec<u32> {
    const KCMP_VM: i32 = 1;
    // SAFETY: plain system call without pointers.
    let same = |a: u32, b: u32| unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0 };
    let mut owners: Vec<u32> = Vec::with_capacity(tree.len());
    for pid in tree {
        if !owners.iter().any(|&owner| same(owner, pid)) {
            owners.push(pid);
        }
    }
    owners
}

/// Samples a tree until it is stopped.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Sampler {
    /// Samples everything below `root`; if `root` is a supervisor, all of its own memory counts.
    pub fn start(root: u32, root_is_supervisor: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peak = Arc::new(AtomicU64::new(0));
        let (stop_seen, peak_kept) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = thread::spawn(move || {
            while !stop_seen.load(Ordering::Relaxed) {
                let sum = owners(tree_of(root)).into_iter().map(|pid| match pid == root && root_is_supervisor {
                    true => kib_lines(&format!("/proc/{pid}/status"), &["VmRSS"]),
                    false => resident_bytes(pid),
                });
                peak_kept.fetch_max(sum.sum(), Ordering::Relaxed);
                thread::sleep(EVERY);
            }
        });
        Self { stop, peak, thread }
    }

    /// The highest sum seen.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the sampler only reads files");
        self.peak.load(Ordering::Relaxed)
    }
}
