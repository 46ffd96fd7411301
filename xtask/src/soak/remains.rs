//! What is left of a run once its supervisor is gone. One way to look is not enough: a process that was orphaned has no ancestor of
//! the run any more, one of another user or whose stack was evicted hides its environment, one that was born after the last
//! look was never noted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::process_tree;

/// The environment variable that every process of a run inherits.
pub const MARK: &str = "TMEM_SOAK_RUN";

/// A run as seen from outside. Its supervisor was started with [`MARK`] in its environment by this process, which adopts orphans
/// and has no other children.
pub struct Run {
    mark: Vec<u8>,
    supervisor: i32,
    spill_dir: PathBuf,
    /// When each process that was seen started, which tells it from a later one with its number.
    seen: BTreeMap<i32, Stat>,
}

/// Of `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: char,
    started: u64,
}

impl Run {
    /// The run of this supervisor, which spills to a directory that nobody else uses, by its full path.
    pub fn new(mark: &str, supervisor: i32, spill_dir: &Path) -> Self {
        let mark = format!("{MARK}={mark}\0").into_bytes();
        Self { mark, supervisor, spill_dir: spill_dir.to_owned(), seen: BTreeMap::new() }
    }

    /// Notes who belongs to it now.
    pub fn look(&mut self) {
        let pids = process_tree::descendants();
        self.seen.extend(pids.into_iter().filter_map(|pid| Some((pid, Stat::of(pid)?))));
    }

    /// How many processes were seen.
    pub fn processes(&self) -> usize {
        self.seen.len()
    }

    /// Whether a process of this name was seen.
    pub fn has(&self, name: &str) -> bool {
        // The kernel keeps so many bytes of a name.
        self.seen.values().any(|stat| stat.name == name[..name.len().min(15)])
    }

    /// Bytes on the disk of the supervisor's spill file; `None` while it has none open.
    pub fn spilled_bytes(&self) -> Option<u64> {
        let files = files_below(&format!("/proc/{}/fd", self.supervisor), &self.spill_dir);
        files.iter().map(|file| fs::metadata(file).map_or(0, |data| data.blocks() * 512)).max()
    }

    /// Processes that were seen and are in a control group that is neither ours nor the root, where those are that end.
    pub fn in_other_groups(&self) -> Vec<String> {
        let groups = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let ours = groups("self");
        let is_ours = |group: &&str| group.ends_with(":/") || ours.lines().any(|our| our == *group);
        let mut others = Vec::new();
        for (pid, stat) in &self.seen {
            if let Some(group) = groups(&pid.to_string()).lines().find(|group| !is_ours(group)) {
                others.push(format!("process {pid} ({}) was put into {group}", stat.name));
            }
        }
        others
    }

    /// What is left of it, a line each; a look that finds processes leaves out the rest, which is theirs.
    pub fn left(&self) -> Vec<String> {
        process_tree::reap();
        let processes = self.processes_left();
        if !processes.is_empty() {
            return processes;
        }
        let mut left = Vec::new();
        for entry in fs::read_dir(&self.spill_dir).into_iter().flatten().flatten() {
            left.push(format!("file {}", entry.path().display()));
        }
        left.extend(self.holders_of_spill_files());
        let names = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
        let ours = names.lines().filter_map(|line| line.split_whitespace().nth(7)).filter(|name| self.is_socket(name));
        left.extend(ours.map(|name| format!("socket {name}")));
        left
    }

    fn processes_left(&self) -> Vec<String> {
        let ours: BTreeSet<i32> = process_tree::descendants().into_iter().collect();
        let is_left = |pid: &i32| ours.contains(pid) || self.is_known(*pid) || self.has_mark(*pid);
        process_tree::all().into_iter().filter(is_left).filter_map(describe).collect()
    }

    fn is_known(&self, pid: i32) -> bool {
        self.seen.get(&pid).is_some_and(|seen| Stat::of(pid).is_some_and(|now| now.started == seen.started))
    }

    fn has_mark(&self, pid: i32) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(self.mark.len()).any(|bytes| bytes == self.mark)
    }

    /// Whoever has a file of the spill directory open, with which its room on the disk is not free.
    fn holders_of_spill_files(&self) -> Vec<String> {
        let mut left = Vec::new();
        for pid in process_tree::all() {
            // Agents have descriptors of their own.
            for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let fds = thread.path().join("fd");
                let files = files_below(&fds.to_string_lossy(), &self.spill_dir);
                left.extend(files.iter().map(|file| format!("open file {}", file.display())));
            }
        }
        left
    }

    fn is_socket(&self, name: &str) -> bool {
        let pid = |kind: &str| name.strip_prefix("@tmem/")?.strip_prefix(kind)?.strip_prefix('/')?.parse().ok();
        pid("supervisor") == Some(self.supervisor) || pid("target").is_some_and(|pid| self.seen.contains_key(&pid))
    }
}

impl Stat {
    /// `None` if the process is gone.
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name may hold anything, brackets included.
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let mut fields = tail.split_whitespace();
        let state = fields.next()?.chars().next()?;
        Some(Self { name, state, started: fields.nth(18)?.parse().ok()? })
    }
}

/// The process for a report; `None` if it is gone meanwhile.
fn describe(pid: i32) -> Option<String> {
    let Stat { name, state, .. } = Stat::of(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |field: &str| status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("?").trim().to_owned();
    let waits = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let (parent, tracer, threads) = (field("PPid:"), field("TracerPid:"), field("Threads:"));
    Some(format!(
        "process {pid} ({name}), state {state} in {waits}, {threads} threads, parent {parent}, traced by {tracer}"
    ))
}

/// Those entries of a directory of descriptors that are files in `dir`, with or without a name.
fn files_below(descriptors: &str, dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(descriptors).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|entry| fs::read_link(entry).is_ok_and(|file| file != dir && file.starts_with(dir))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_name() {
        let numbers = (4..60).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = Stat::parse(&format!("17 (a) b) T {numbers}\n")).unwrap();
        assert_eq!(stat, Stat { name: "a) b".to_owned(), state: 'T', started: 22 });
        assert_eq!(Stat::parse("17 (a"), None);
    }

    #[test]
    fn sockets_are_told_by_their_process() {
        let mut run = Run::new("x", 7, Path::new("/nowhere"));
        run.seen.insert(8, Stat { name: "p".to_owned(), state: 'R', started: 1 });
        assert!(run.is_socket("@tmem/supervisor/7") && run.is_socket("@tmem/target/8"));
        for other in ["@tmem/supervisor/8", "@tmem/target/7", "@tmem/supervisor/", "/run/x"] {
            assert!(!run.is_socket(other), "{other}");
        }
        assert!(run.has("p") && !run.has("q"));
    }

    #[test]
    fn a_file_that_is_open_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let run = Run::new("x", std::process::id() as i32, &dir.path().canonicalize().unwrap());
        assert_eq!((run.spilled_bytes(), run.holders_of_spill_files().len()), (None, 0));
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        assert_eq!(run.spilled_bytes(), Some(0));
        // Every thread of the tests shows it.
        assert!(!run.holders_of_spill_files().is_empty());
        std::io::Write::write_all(&mut &file, &[1; 65536]).unwrap();
        file.sync_all().unwrap();
        assert!(run.spilled_bytes().is_some_and(|bytes| bytes >= 65536));
    }
}
