//! The rival: a memory cgroup that swaps to the kernel's own zram, or to a plain file. Puts the machine back as it was,
//! whatever happens.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::project;
use crate::zram::{self, DEVICE, Zram};

const DISK_BYTES: u64 = 16 << 30;
const SWAP_FILE_BYTES: i64 = 2 << 30;
/// The highest there is, so that the machine's own swap is left alone.
const PRIORITY: &str = "32767";
const PAGE_CLUSTER: &str = "/proc/sys/vm/page-cluster";

/// What the group swaps to.
#[derive(Clone, Copy)]
pub enum Backing<'a> {
    /// The kernel's compressed RAM disk.
    Zram,
    /// A file in this directory.
    FileIn(&'a Path),
}

impl Backing<'_> {
    /// Why this machine cannot show what the kernel does; `None` if it can.
    pub fn unavailable(self) -> Option<String> {
        let reason = match self {
            Self::Zram => zram::unavailable(),
            Self::FileIn(_) => no_swap_file(),
        };
        let reason = reason.or_else(|| Cgroups::find().is_none().then(|| "there is no memory cgroup".to_owned()));
        // Only a trial tells whether a file system carries swap files.
        reason.or_else(|| match self {
            Self::Zram => None,
            Self::FileIn(_) => KernelSwap::set_up(self, 64 << 20).err().map(|error| format!("{error:#}")),
        })
    }
}

fn no_swap_file() -> Option<String> {
    if !project::is_root() {
        return Some("it needs root".to_owned());
    }
    if fs::read_to_string("/proc/swaps").is_ok_and(|swaps| has_priority(&swaps, PRIORITY)) {
        return Some("another swap device has the highest priority".to_owned());
    }
    let zswap = fs::read_to_string("/sys/module/zswap/parameters/enabled").is_ok_and(|on| on.trim() == "Y");
    zswap.then(|| "zswap is on, so that what is written is not what is swapped".to_owned())
}

/// Whether `/proc/swaps` has a device of this priority, with which ours would have to share.
fn has_priority(swaps: &str, priority: &str) -> bool {
    swaps.lines().skip(1).any(|line| line.split_whitespace().last() == Some(priority))
}

/// What was set up to swap to; gone when this is dropped, which must be after `swapoff`.
enum Device {
    Zram(#[allow(dead_code, reason = "held for its drop")] Zram),
    File(SwapFile),
}

impl Device {
    fn set_up(backing: Backing) -> anyhow::Result<Self> {
        match backing {
            Backing::Zram => Zram::set_up("lz4", DISK_BYTES).map(Self::Zram),
            Backing::FileIn(dir) => SwapFile::create(dir).map(Self::File),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Zram(_) => Path::new(DEVICE),
            Self::File(file) => &file.0,
        }
    }

    /// RAM that it takes itself.
    fn ram_bytes(&self) -> u64 {
        match self {
            Self::Zram(_) => zram::used_bytes(),
            Self::File(_) => 0,
        }
    }

    /// The kernel escapes some characters of the path, but none of the last name.
    fn is_swap(&self) -> bool {
        let name = self.path().file_name().expect("a device has a name").to_string_lossy();
        fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.contains(&*name))
    }
}

/// A file without holes that only root can read.
struct SwapFile(PathBuf);

impl SwapFile {
    fn create(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(format!("tmem-bench-{}.swap", std::process::id()));
        let create = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file: File = create.with_context(|| format!("cannot create {}", path.display()))?;
        // From here on, dropping it removes the file.
        let swap = Self(path);
        // SAFETY: integers only; the descriptor is open as long as `file` lives.
        let errno = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, SWAP_FILE_BYTES) };
        ensure!(errno == 0, "no room for a swap file: {}", io::Error::from_raw_os_error(errno));
        file.sync_all().context("cannot write the swap file")?;
        Ok(swap)
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        warn("the swap file", fs::remove_file(&self.0));
    }
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

/// A cgroup with a limit and a device to swap to, until it is dropped.
pub struct KernelSwap {
    cgroups: Cgroups,
    limit_bytes: u64,
    group: PathBuf,
    page_cluster_before: Option<String>,
    resident_peak_bytes: u64,
    device_peak_bytes: u64,
    pages_out_before: u64,
    /// Dropped after all else was undone.
    device: Device,
}

impl KernelSwap {
    /// Sets the machine up: zram with lz4 and no swap read-ahead (what users of zram are told to set) or a file with the
    /// kernel's own read-ahead (which suits a disk), and a limit.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a step; those already taken are undone.
    pub fn set_up(backing: Backing, limit_bytes: u64) -> anyhow::Result<Self> {
        let cgroups = Cgroups::find().context("there is no memory cgroup")?;
        let group = Path::new(cgroups.root).join(format!("tmem-bench-{}", std::process::id()));
        // From here on, dropping it undoes what was done.
        let mut swap = Self {
            cgroups,
            limit_bytes,
            group,
            page_cluster_before: None,
            resident_peak_bytes: 0,
            device_peak_bytes: 0,
            pages_out_before: pages_out(),
            device: Device::set_up(backing)?,
        };
        quietly(Command::new("mkswap").arg(swap.device.path()))?;
        quietly(Command::new("swapon").args(["--priority", PRIORITY]).arg(swap.device.path()))?;
        if matches!(backing, Backing::Zram) {
            swap.page_cluster_before = Some(fs::read_to_string(PAGE_CLUSTER).context(PAGE_CLUSTER)?);
            put(PAGE_CLUSTER, "0")?;
        }
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
        self.device_peak_bytes = self.device_peak_bytes.max(self.device.ram_bytes());
    }

    /// All RAM that the kernel needed: resident up to the limit, and what zram took.
    pub fn total_ram_bytes(&self) -> u64 {
        self.resident_peak_bytes.min(self.limit_bytes) + self.device_peak_bytes
    }

    /// What the machine swapped out since this was set up.
    pub fn written_bytes(&self) -> u64 {
        (pages_out() - self.pages_out_before) * tmem::PAGE_SIZE as u64
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
        if self.device.is_swap() {
            warn("swapoff", quietly(Command::new("swapoff").arg(self.device.path())).map_err(io::Error::other));
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

/// Pages that the machine has swapped out since it was started. Version 1 of cgroups does not count them by group.
fn pages_out() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    counter(&text, "pswpout").unwrap_or(0)
}

fn counter(vmstat: &str, name: &str) -> Option<u64> {
    let line = vmstat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_whole_name() {
        let text = "pswpin 7\npswpout_other 3\npswpout 42\n";
        assert_eq!((counter(text, "pswpout"), counter(text, "pswp")), (Some(42), None));
    }

    #[test]
    fn a_rival_of_the_same_priority_is_seen() {
        let head = "Filename\tType\tSize\tUsed\tPriority\n";
        assert!(!has_priority(head, PRIORITY));
        assert!(!has_priority(&format!("{head}/swapfile file 100 0 -2\n"), PRIORITY));
        assert!(has_priority(&format!("{head}/swapfile file 100 0 -2\n/dev/zram0 partition 9 0 32767\n"), PRIORITY));
    }

    #[test]
    fn a_swap_file_has_no_holes_and_goes_away() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let Ok(file) = SwapFile::create(dir.path()) else { return };
        let metadata = fs::metadata(&file.0).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o600, 2 << 30));
        assert!(metadata.blocks() * 512 >= 2 << 30);
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
