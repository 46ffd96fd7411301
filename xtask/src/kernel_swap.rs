//! The rival: a memory cgroup that swaps to the kernel's own zram. Puts the machine back as it was, whatever happens.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::zram::{self, DEVICE, Zram};

const DISK_BYTES: u64 = 16 << 30;
const PAGE_CLUSTER: &str = "/proc/sys/vm/page-cluster";

/// Why this machine cannot show what the kernel does; `None` if it can.
pub fn unavailable() -> Option<String> {
    zram::unavailable().or_else(|| Cgroups::find().is_none().then(|| "there is no memory cgroup".to_owned()))
}

/// Which version of control groups has the memory controller.
#[derive(Clone, Copy)]
struct Cgroups {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    kills: &'static str,
}

impl Cgroups {
    fn find() -> Option<Self> {
        const V2: Cgroups =
            Cgroups { root: "/sys/fs/cgroup", limit: "memory.max", usage: "memory.current", kills: "memory.events" };
        const V1: Cgroups = Cgroups {
            root: "/sys/fs/cgroup/memory",
            limit: "memory.limit_in_bytes",
            usage: "memory.usage_in_bytes",
            kills: "memory.oom_control",
        };
        if fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|list| list.contains("memory")) {
            // Refused where it is on already or where processes live in the root: the limit file tells.
            let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
            return Some(V2);
        }
        Path::new(V1.root).join(V1.limit).exists().then_some(V1)
    }
}

/// A cgroup with a limit and a zram device to swap to, until it is dropped.
pub struct KernelSwap {
    cgroups: Cgroups,
    limit_bytes: u64,
    group: PathBuf,
    page_cluster_before: Option<String>,
    resident_peak_bytes: u64,
    zram_peak_bytes: u64,
    /// Reset after all else was undone.
    _zram: Zram,
}

impl KernelSwap {
    /// Sets the machine up: zram with lz4, no swap read-ahead (what users of zram are told to set), a limit.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a step; those already taken are undone.
    pub fn set_up(limit_bytes: u64) -> anyhow::Result<Self> {
        let cgroups = Cgroups::find().context("there is no memory cgroup")?;
        let group = Path::new(cgroups.root).join(format!("tmem-bench-{}", std::process::id()));
        // From here on, dropping it undoes what was done.
        let mut swap = Self {
            cgroups,
            limit_bytes,
            group,
            page_cluster_before: None,
            resident_peak_bytes: 0,
            zram_peak_bytes: 0,
            _zram: Zram::set_up("lz4", DISK_BYTES)?,
        };
        quietly(Command::new("mkswap").arg(DEVICE))?;
        quietly(Command::new("swapon").args(["--priority", "32767", DEVICE]))?;
        swap.page_cluster_before = Some(fs::read_to_string(PAGE_CLUSTER).context(PAGE_CLUSTER)?);
        put(PAGE_CLUSTER, "0")?;
        fs::create_dir(&swap.group).with_context(|| format!("cannot create {}", swap.group.display()))?;
        put(swap.group.join(cgroups.limit), &limit_bytes.to_string())?;
        // Only version 1 has a swappiness of its own.
        let swappiness = swap.group.join("memory.swappiness");
        if swappiness.exists() {
            put(swappiness, "100")?;
        }
        Ok(swap)
    }

    /// The command, started inside the group.
    pub fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$1\" && shift && exec \"$@\"", "sh"]);
        command.arg(self.group.join("cgroup.procs")).args(words);
        command
    }

    /// Looks at the memory that is in use.
    pub fn sample(&mut self) {
        let usage = read_number(&self.group.join(self.cgroups.usage));
        self.resident_peak_bytes = self.resident_peak_bytes.max(usage);
        self.zram_peak_bytes = self.zram_peak_bytes.max(zram::used_bytes());
    }

    /// All RAM that the kernel needed: resident up to the limit, and what zram took.
    pub fn total_ram_bytes(&self) -> u64 {
        self.resident_peak_bytes.min(self.limit_bytes) + self.zram_peak_bytes
    }

    /// Whether the out-of-memory killer had to take a process of the group.
    pub fn was_killed(&self) -> bool {
        let text = fs::read_to_string(self.group.join(self.cgroups.kills)).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count.trim() != "0")
    }
}

impl Drop for KernelSwap {
    fn drop(&mut self) {
        if let Some(before) = &self.page_cluster_before {
            warn("page-cluster", fs::write(PAGE_CLUSTER, before));
        }
        crate::process_tree::kill_descendants();
        if fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.contains(DEVICE)) {
            warn("swapoff", quietly(Command::new("swapoff").arg(DEVICE)).map_err(io::Error::other));
        }
        // A group can be busy for a moment after its last process has ended.
        let removed = (0..50).any(|_| match fs::remove_dir(&self.group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                sleep(Duration::from_millis(20));
                false
            }
            _ => true,
        });
        if !removed {
            eprintln!("xtask: cannot remove {}", self.group.display());
        }
    }
}

fn warn(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("xtask: cannot put the machine back as it was: {what}: {error}");
    }
}

fn put(path: impl AsRef<Path>, text: &str) -> anyhow::Result<()> {
    fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.as_ref().display()))
}

fn quietly(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The number in a file; 0 if it cannot be read.
fn read_number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
