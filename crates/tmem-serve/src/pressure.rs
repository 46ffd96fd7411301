//! Whether the machine or the container is short of memory: then it lends nothing more.
//!
//! What is lent must never make the lender swap, or have it killed. So ten times a second the kernel is asked how much memory could be
//! had without swapping (`MemAvailable`; in a control group with a limit, what is not in use there but for pages of files), and all
//! that is below the reserve is not lent. What is scarcest decides.

use std::fs;
use std::path::{Path, PathBuf};

/// The part of the memory that is for others in any case, and the most that this is.
const RESERVE_PART: u64 = 16;
const RESERVE_MAX: u64 = 2 << 30;
/// The least of it for a machine, and for a group.
const MACHINE_RESERVE_MIN: u64 = 64 << 20;
const GROUP_RESERVE_MIN: u64 = 8 << 20;
/// What tables and buffers may grow by meanwhile: whoever reads and removes needs some.
const SLACK: u64 = 1 << 20;

/// Memory of the machine, or of a control group that has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What can be had without swapping, in bytes.
    pub available_bytes: u64,
    /// What of that is not to be lent.
    pub reserve_bytes: u64,
}

impl Machine {
    /// At present: of the machine and all groups that we are in, the scarcest.
    pub fn now() -> Option<Self> {
        let machine = Self::parse(&fs::read_to_string("/proc/meminfo").ok()?)?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let groups = groups.lines().flat_map(|line| groups_of(Path::new("/sys/fs/cgroup"), line));
        groups.filter_map(|group| group.memory()).chain([machine]).min_by_key(Self::free_bytes)
    }

    fn new(total_bytes: u64, available_bytes: u64, reserve_min: u64) -> Self {
        Self { available_bytes, reserve_bytes: (total_bytes / RESERVE_PART).clamp(reserve_min, RESERVE_MAX) }
    }

    /// What can be lent, less than nothing if something is to be given back.
    fn free_bytes(&self) -> i64 {
        self.available_bytes as i64 - self.reserve_bytes as i64
    }

    /// What `/proc/meminfo` says.
    fn parse(meminfo: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
        };
        Some(Self::new(bytes("MemTotal:")?, bytes("MemAvailable:")?, MACHINE_RESERVE_MIN))
    }

    /// What a server that takes so many bytes, and can do with so many less, may take at this moment: it gives back what is lacking.
    pub fn lends(self, used_bytes: u64, spare_bytes: u64) -> u64 {
        match self.free_bytes() {
            free @ 0.. => used_bytes + (free as u64).max(SLACK),
            lacking if spare_bytes > SLACK => used_bytes.saturating_sub(lacking.unsigned_abs().min(spare_bytes)),
            _ => used_bytes + SLACK,
        }
    }
}

/// A control group: its directory, and the names of its files.
struct Group {
    dir: PathBuf,
    limit: &'static str,
    usage: &'static str,
    files: &'static str,
}

impl Group {
    /// Its memory, if it has a limit.
    fn memory(&self) -> Option<Machine> {
        /// What version 1 says for "no limit" is a little less than 2^63.
        const UNLIMITED: u64 = 1 << 60;
        let number = |file: &str| fs::read_to_string(self.dir.join(file)).ok()?.trim().parse::<u64>().ok();
        let limit = number(self.limit).filter(|limit| *limit < UNLIMITED)?;
        let used = number(self.usage)?;
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let files = stat.lines().find_map(|line| line.strip_prefix(self.files)?.strip_prefix(' '));
        let files: u64 = files.and_then(|files| files.parse().ok()).unwrap_or(0);
        Some(Machine::new(limit, limit.saturating_sub(used.saturating_sub(files)), GROUP_RESERVE_MIN))
    }
}

/// The group that a line of `/proc/self/cgroup` names and those above it, if it is one of memory.
fn groups_of(root: &Path, line: &str) -> Vec<Group> {
    let mut fields = line.splitn(3, ':');
    let (Some(controllers), Some(path)) = (fields.nth(1), fields.next()) else { return Vec::new() };
    let group = |root: PathBuf, limit, usage, files| {
        let above = Path::new(path.trim_start_matches('/')).ancestors();
        above.map(|path| Group { dir: root.join(path), limit, usage, files }).collect()
    };
    match controllers {
        "" => group(root.to_owned(), "memory.max", "memory.current", "inactive_file"),
        list if list.split(',').any(|name| name == "memory") => {
            group(root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24683904 kB\nMemFree:  1 kB\nMemAvailable:   20971520 kB\n";
        let reserve_bytes = (24_683_904 << 10) / RESERVE_PART;
        assert_eq!(Machine::parse(text), Some(Machine { available_bytes: 20 * GIB, reserve_bytes }));
        assert_eq!(Machine::parse("MemTotal: 1 kB\n"), None);
        assert!(Machine::now().is_some_and(|machine| machine.available_bytes > 0));
    }

    #[test]
    fn what_the_machine_needs_is_not_lent() {
        let machine = |available_bytes| Machine { available_bytes, reserve_bytes: GIB };
        assert_eq!(machine(8 * GIB).lends(2 * GIB, 0), 9 * GIB);
        assert_eq!(machine(GIB).lends(2 * GIB, 0), 2 * GIB + SLACK);
        assert_eq!(machine(GIB / 2).lends(2 * GIB, 0), 2 * GIB + SLACK);
        assert_eq!(machine(GIB / 2).lends(2 * GIB, u64::MAX), 2 * GIB - GIB / 2);
        assert_eq!(machine(GIB / 2).lends(2 * GIB, GIB / 4), 2 * GIB - GIB / 4);
    }

    #[test]
    fn a_container_has_no_more_than_its_limit() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let memory = |line: &str| -> Vec<i64> {
            let groups = groups_of(root.path(), line);
            groups.iter().filter_map(|group| Some(group.memory()?.free_bytes() / (1 << 20))).collect()
        };
        // Version 2: the group has a limit, the one above it has a wider one, the root has none.
        write("a/b/memory.max", "268435456\n");
        write("a/b/memory.current", "167772160\n");
        write("a/b/memory.stat", "anon 1\ninactive_file 33554432\n");
        write("a/memory.max", "1073741824\n");
        write("a/memory.current", "0\n");
        assert_eq!(memory("0::/a/b"), [256 - 160 + 32 - 16, 1024 - 64]);
        write("a/b/memory.max", "max\n");
        assert_eq!(memory("0::/a/b"), [1024 - 64]);
        // Version 1.
        write("memory/c/memory.limit_in_bytes", "67108864\n");
        write("memory/c/memory.usage_in_bytes", "62914560\n");
        write("memory/c/memory.stat", "inactive_file 0\ntotal_inactive_file 0\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory("4:memory:/c"), [4 - 8]);
        assert_eq!(memory("4:cpu,cpuacct:/c"), [0; 0]);
        assert_eq!(memory("nonsense"), [0; 0]);
    }
}
