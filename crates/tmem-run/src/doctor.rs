//! What `tmem run` needs from this machine and this user, tried out rather than guessed.
//!
//! Every check that fails names the command that grants what is missing. Nothing here changes anything.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use serde::Serialize;

use crate::spill;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// As it should be.
    Ok,
    /// `tmem run` cannot work without it.
    Missing,
    /// Worth knowing; works without.
    Note,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at, in a few words.
    pub name: String,
    /// How it came out.
    pub state: CheckState,
    /// What was found.
    pub finding: String,
    /// How to change it, one command or hint per line.
    pub fix: Option<String>,
}

impl Check {
    fn new(name: &str, state: CheckState, finding: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state, finding: finding.into(), fix: None }
    }

    fn ok(name: &str, finding: impl Into<String>) -> Self {
        Self::new(name, CheckState::Ok, finding)
    }

    fn note(name: &str, finding: impl Into<String>) -> Self {
        Self::new(name, CheckState::Note, finding)
    }

    fn missing(name: &str, finding: impl Into<String>) -> Self {
        Self::new(name, CheckState::Missing, finding)
    }

    fn fix(mut self, fix: &str) -> Self {
        self.fix = Some(fix.to_owned());
        self
    }
}

/// Looks at everything `run` and `attach` depend on.
#[must_use]
pub fn examine() -> Vec<Check> {
    let me = Privileges::of_self();
    let mut checks = vec![architecture(), kernel(), ptrace_capability(&me)];
    checks.extend(userfaultfd(&me));
    checks.extend([ptrace_scope(&me), foreign_memory(), thread_pidfd(), pagemap_scan(), seccomp(&me)]);
    checks.push(spill_folder());
    checks.extend([huge_pages(), memory_limit()].into_iter().flatten());
    checks
}

/// Why `run` and `attach` cannot work here, in one line; `None` if they can.
#[must_use]
pub fn obstacle() -> Option<String> {
    let check = examine().into_iter().find(|check| check.state == CheckState::Missing)?;
    let fix = check.fix.as_deref().and_then(|fix| fix.lines().next()).map(|fix| format!("; try: {fix}"));
    let fix = fix.unwrap_or_default();
    Some(format!("cannot work here: {}: {}{fix} (`tmem doctor` says more)", check.name, check.finding))
}

const GRANT_PTRACE: &str = "sudo setcap cap_sys_ptrace=ep \"$(command -v tmem)\"
docker run --cap-add SYS_PTRACE ...   (in a container; Kubernetes: securityContext.capabilities.add: [SYS_PTRACE])";

const GRANT_UFFD: &str = "sudo sysctl vm.unprivileged_userfaultfd=1   (for everybody, by system call)
sudo setfacl -m u:$(id -un):rw /dev/userfaultfd   (for this user, by device)
docker run --cap-add SYS_PTRACE --device /dev/userfaultfd ...   (in a container; or --security-opt seccomp=unconfined)";

/// `CAP_SYS_PTRACE` in the kernel's numbering.
const CAP_SYS_PTRACE: u32 = 19;

/// Who we are, as `/proc/self/status` tells.
#[derive(Clone, Debug, Default)]
struct Privileges {
    ptrace_effective: bool,
    /// The programs that we start may create a full userfaultfd by system call: they run as root or inherit the
    /// capability. A capability set on the `tmem` file is not inherited.
    ptrace_inherited: bool,
    seccomp_mode: u32,
}

impl Privileges {
    fn of_self() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let capable = |set: &str| {
            let bits = field(set).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
            bits & (1 << CAP_SYS_PTRACE) != 0
        };
        let effective_uid = field("Uid:").and_then(|uids| uids.split_whitespace().nth(1));
        Self {
            ptrace_effective: capable("CapEff:"),
            ptrace_inherited: capable("CapAmb:") || (effective_uid == Some("0") && capable("CapBnd:")),
            seccomp_mode: field("Seccomp:").and_then(|mode| mode.parse().ok()).unwrap_or(0),
        }
    }
}

fn architecture() -> Check {
    const NAME: &str = "architecture";
    match std::env::consts::ARCH {
        "x86_64" => Check::ok(NAME, "x86_64"),
        other => Check::missing(NAME, format!("{other}: only x86_64 is supported so far"))
            .fix("run tmem on an x86_64 machine"),
    }
}

/// 6.8 has `UFFDIO_MOVE`, 6.9 has pidfds of single threads.
const KERNEL_MIN: (u32, u32) = (6, 9);

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let (major, minor) = KERNEL_MIN;
    match kernel_version(release) {
        Some(version) if version >= KERNEL_MIN => Check::ok(NAME, format!("Linux {release}")),
        _ => Check::missing(NAME, format!("Linux {release}, but {major}.{minor} or newer is needed")).fix(
            "install and boot a newer kernel; Debian 12: sudo apt install -t bookworm-backports linux-image-amd64; \
             Ubuntu 24.04: sudo apt install linux-generic-hwe-24.04",
        ),
    }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn ptrace_capability(me: &Privileges) -> Check {
    const NAME: &str = "CAP_SYS_PTRACE";
    if me.ptrace_effective {
        Check::ok(NAME, "effective")
    } else {
        Check::missing(NAME, "not granted; without it forks of the program cannot be followed").fix(GRANT_PTRACE)
    }
}

const UFFD_API: u64 = 0xAA;

/// Features of the kernel's `userfaultfd.h` that `run` and `attach` ask for.
const UFFD_FEATURES: [(u64, &str); 7] = [
    (1 << 1, "EVENT_FORK"),
    (1 << 2, "EVENT_REMAP"),
    (1 << 3, "EVENT_REMOVE"),
    (1 << 6, "EVENT_UNMAP"),
    (1 << 8, "THREAD_ID"),
    (1 << 15, "WP_ASYNC"),
    (1 << 16, "MOVE"),
];

/// `struct uffdio_api`.
#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
const UFFDIO_API: u64 = ioctl_number(3, 0xAA, 0x3F, size_of::<UffdioApi>());
/// `_IO(0xAA, 0x00)`.
const USERFAULTFD_IOC_NEW: u64 = ioctl_number(0, 0xAA, 0x00, 0);
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = ioctl_number(3, b'f', 16, size_of::<PagemapScan>());

const fn ioctl_number(direction: u64, kind: u8, number: u8, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | (kind as u64) << 8 | number as u64
}

fn userfaultfd(me: &Privileges) -> [Check; 3] {
    let by_call = by_system_call(me);
    let by_device = uffd_from_device();
    let features = features(|| uffd_from_call().or_else(|_| uffd_from_device()));
    let call_name = "userfaultfd system call";
    let device_name = "/dev/userfaultfd";
    // One of the two ways is enough.
    match (by_call, by_device) {
        (Ok(()), Ok(_)) => [Check::ok(call_name, "allowed"), Check::ok(device_name, "allowed"), features],
        (Ok(()), Err(error)) => {
            [Check::ok(call_name, "allowed"), Check::note(device_name, format!("{error}; not needed")), features]
        }
        (Err(reason), Ok(_)) => {
            [Check::note(call_name, format!("{reason}; not needed")), Check::ok(device_name, "allowed"), features]
        }
        (Err(reason), Err(error)) => [
            Check::missing(call_name, reason).fix(GRANT_UFFD),
            Check::missing(device_name, format!("{error}; one of the two ways is needed")),
            features,
        ],
    }
}

/// Whether the programs that we start can get a userfaultfd that also serves faults in kernel mode.
fn by_system_call(me: &Privileges) -> Result<(), String> {
    uffd_from_call().map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) if me.seccomp_mode != 0 => {
            format!("{error}: refused by a seccomp filter or for lack of privilege")
        }
        Some(libc::EPERM) => format!("{error}: vm.unprivileged_userfaultfd is 0"),
        _ => error.to_string(),
    })?;
    let sysctl = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
    if me.ptrace_inherited || sysctl.trim() == "1" {
        return Ok(());
    }
    Err("allowed for tmem but not for the programs it starts: vm.unprivileged_userfaultfd is 0".to_owned())
}

fn uffd_from_call() -> io::Result<OwnedFd> {
    // SAFETY: takes one integer and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    own(fd)
}

fn uffd_from_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the argument of this ioctl is an integer; the descriptor is open.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
    own(fd.into())
}

/// Takes a descriptor that the kernel has just handed out, or the error that it left.
fn own(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for us, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn features(open: impl Fn() -> io::Result<OwnedFd>) -> Check {
    const NAME: &str = "userfaultfd features";
    let wanted = UFFD_FEATURES.iter().fold(0, |mask, (bit, _)| mask | bit);
    // A descriptor shakes hands once: one to ask what there is, one to ask for it.
    let offered = match open().and_then(|fd| shake_hands(&fd, 0)) {
        Ok(offered) => offered,
        Err(error) => return Check::note(NAME, format!("cannot be asked for: {error}")),
    };
    let lacking: Vec<&str> =
        UFFD_FEATURES.iter().filter(|(bit, _)| offered & bit == 0).map(|(_, name)| *name).collect();
    if !lacking.is_empty() {
        return Check::missing(NAME, format!("this kernel lacks {}", lacking.join(", ")))
            .fix("install and boot a newer kernel, built with CONFIG_USERFAULTFD");
    }
    match open().and_then(|fd| shake_hands(&fd, wanted)) {
        Ok(_) => Check::ok(NAME, UFFD_FEATURES.map(|(_, name)| name).join(", ")),
        Err(error) => {
            Check::missing(NAME, format!("refused: {error} (EVENT_FORK needs CAP_SYS_PTRACE)")).fix(GRANT_PTRACE)
        }
    }
}

fn shake_hands(fd: &OwnedFd, features: u64) -> io::Result<u64> {
    let mut api = UffdioApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: `api` is a local with the kernel's layout and outlives the call.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
    if answer == 0 { Ok(api.features) } else { Err(io::Error::last_os_error()) }
}

fn ptrace_scope(me: &Privileges) -> Check {
    const NAME: &str = "yama ptrace_scope";
    const PATH: &str = "/proc/sys/kernel/yama/ptrace_scope";
    let Ok(text) = fs::read_to_string(PATH) else {
        return Check::ok(NAME, "not in this kernel: no restriction");
    };
    match (text.trim(), me.ptrace_effective) {
        ("3", _) => Check::missing(NAME, "3: nobody may trace until the next boot")
            .fix("echo 'kernel.yama.ptrace_scope = 1' | sudo tee /etc/sysctl.d/99-ptrace.conf, then reboot"),
        (scope, true) => Check::ok(NAME, format!("{scope}: does not restrict CAP_SYS_PTRACE")),
        ("0", false) => Check::ok(NAME, "0: no restriction"),
        ("1", false) => Check::note(NAME, "1: run works, attach only with CAP_SYS_PTRACE").fix(GRANT_PTRACE),
        (scope, false) => Check::missing(NAME, format!("{scope}: tracing needs CAP_SYS_PTRACE")).fix(GRANT_PTRACE),
    }
}

/// The calls that reach into another process, tried on ourselves: this finds seccomp filters, not missing rights.
fn foreign_memory() -> Check {
    const NAME: &str = "process_vm_readv, pidfd_getfd";
    match read_own_byte().and_then(|()| copy_own_descriptor()) {
        Ok(()) => Check::ok(NAME, "allowed"),
        Err(error) => Check::missing(NAME, format!("{error}: refused by a seccomp filter?"))
            .fix("docker run --cap-add SYS_PTRACE ...   (in a container; or --security-opt seccomp=unconfined)"),
    }
}

fn read_own_byte() -> io::Result<()> {
    let source = 1_u8;
    let mut copy = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut copy).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: (&raw const source).cast_mut().cast(), iov_len: 1 };
    let pid = std::process::id() as i32;
    // SAFETY: both vectors name one byte of a local that outlives the call; only `copy` is written.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    if read == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn copy_own_descriptor() -> io::Result<()> {
    let some_file = File::open("/dev/null")?;
    // SAFETY: integers only.
    let pidfd = own(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) })?;
    // SAFETY: integers only; both descriptors are open.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), some_file.as_raw_fd(), 0) };
    own(copy).map(drop)
}

fn thread_pidfd() -> Check {
    const NAME: &str = "pidfd of a thread";
    // PIDFD_THREAD is O_EXCL by definition.
    // SAFETY: takes no arguments.
    let thread = unsafe { libc::gettid() };
    // SAFETY: integers only.
    match own(unsafe { libc::syscall(libc::SYS_pidfd_open, thread, libc::O_EXCL) }) {
        Ok(_) => Check::ok(NAME, "allowed"),
        Err(error) => Check::missing(NAME, format!("{error}: needs Linux 6.9")).fix("install and boot a newer kernel"),
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct PagemapScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

fn pagemap_scan() -> Check {
    const NAME: &str = "PAGEMAP_SCAN";
    match scan_own_page() {
        Ok(()) => Check::ok(NAME, "allowed"),
        // A program file with capabilities hides its own memory from itself; that of the programs it starts is open.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::note(NAME, "cannot be tried on tmem itself, whose file has capabilities; part of Linux 6.7")
        }
        Err(error) => Check::missing(NAME, format!("{error}: needs Linux 6.7")).fix("install and boot a newer kernel"),
    }
}

fn scan_own_page() -> io::Result<()> {
    const PAGE_IS_PRESENT: u64 = 1 << 3;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut region = [0_u64; 3];
    let page = (&raw const region as u64) & !0xfff;
    let mut scan = PagemapScan {
        size: size_of::<PagemapScan>() as u64,
        start: page,
        end: page + 0x1000,
        vec: &raw mut region as u64,
        vec_len: 1,
        category_mask: PAGE_IS_PRESENT,
        return_mask: PAGE_IS_PRESENT,
        ..PagemapScan::default()
    };
    // SAFETY: `scan` has the kernel's layout and names one `struct page_region` (three words), which outlives the call.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
    if found >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn seccomp(me: &Privileges) -> Check {
    const NAME: &str = "seccomp";
    match me.seccomp_mode {
        0 => Check::ok(NAME, "off"),
        1 => {
            Check::missing(NAME, "strict mode: nothing can be started from here").fix("start tmem from another process")
        }
        _ => Check::note(NAME, "a filter is in place; what it refuses is listed above"),
    }
}

/// Where `--spill auto` puts its file.
fn spill_folder() -> Check {
    const NAME: &str = "disk to spill to";
    match spill::automatic_folder() {
        Some((folder, bytes)) => Check::ok(NAME, format!("{}, up to {} MiB of it", folder.display(), bytes >> 20)),
        None => Check::note(NAME, "none: TMPDIR, /var/tmp, the working directory and /tmp are in RAM, full or read-only")
            .fix("tmem run --spill DIRECTORY ...   (a directory on a disk; without one, what does not compress stays in RAM)"),
    }
}

fn huge_pages() -> Option<Check> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let chosen = text.split('[').nth(1)?.split(']').next()?;
    Some(match chosen {
        "always" => Check::note(
            "transparent huge pages",
            "always: memory is taken 2 MiB at a time and split where pages are evicted",
        )
        .fix("echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled   (only if memory outgrows the budget)"),
        other => Check::ok("transparent huge pages", other),
    })
}

fn memory_limit() -> Option<Check> {
    let limit_bytes = memory_limit_bytes()?;
    let finding = format!("{} MiB: page cache counts too, so keep --ram well below it", limit_bytes >> 20);
    Some(Check::note("memory cgroup limit", finding))
}

/// The tightest memory limit of the control groups that we are in, if there is one.
#[must_use]
pub fn memory_limit_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(|line| group_limit_bytes(Path::new("/sys/fs/cgroup"), line)).min()
}

/// Reads `hierarchy:controllers:path`, and the limits of that group and of all above it.
fn group_limit_bytes(root: &Path, line: &str) -> Option<u64> {
    /// What version 1 says for "no limit" is a little less than 2^63.
    const UNLIMITED: u64 = 1 << 60;
    let mut fields = line.splitn(3, ':');
    let controllers = fields.nth(1)?;
    let group = Path::new(fields.next()?.trim_start_matches('/'));
    let (root, file) = match controllers {
        "" => (root.to_owned(), "memory.max"),
        list if list.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
        _ => return None,
    };
    let limits = group.ancestors().filter_map(|group| {
        let text = fs::read_to_string(root.join(group).join(file)).ok()?;
        text.trim().parse::<u64>().ok()
    });
    limits.filter(|&limit| limit < UNLIMITED).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert_eq!(kernel_version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(kernel_version("6.9.0-rc1"), Some((6, 9)));
        assert_eq!(kernel_version("10.0"), Some((10, 0)));
        assert_eq!(kernel_version(""), None);
        assert!(kernel_version("6.10").unwrap() > KERNEL_MIN);
        assert!(kernel_version("6.8.12").unwrap() < KERNEL_MIN);
    }

    #[test]
    fn ioctl_numbers_are_those_of_the_kernel() {
        assert_eq!(UFFDIO_API, 0xc018_aa3f);
        assert_eq!(USERFAULTFD_IOC_NEW, 0xaa00);
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
    }

    #[test]
    fn a_capability_on_the_file_does_not_reach_the_programs() {
        let with_setcap = Privileges::parse(
            "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000080000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\nSeccomp:\t2\n",
        );
        assert!(with_setcap.ptrace_effective && !with_setcap.ptrace_inherited);
        assert_eq!(with_setcap.seccomp_mode, 2);
        let root = Privileges::parse("Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\n");
        assert!(root.ptrace_effective && root.ptrace_inherited);
        let root_in_docker =
            Privileges::parse("Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n");
        assert!(!root_in_docker.ptrace_effective && !root_in_docker.ptrace_inherited);
    }

    #[test]
    fn the_tightest_limit_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("tmem-doctor-{}", std::process::id()));
        let group = root.join("a/b");
        fs::create_dir_all(&group).unwrap();
        fs::create_dir_all(root.join("memory/c")).unwrap();
        fs::write(root.join("a/memory.max"), "1048576\n").unwrap();
        fs::write(group.join("memory.max"), "max\n").unwrap();
        fs::write(root.join("memory/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        fs::write(root.join("memory/c/memory.limit_in_bytes"), "4096\n").unwrap();
        assert_eq!(group_limit_bytes(&root, "0::/a/b"), Some(1 << 20));
        assert_eq!(group_limit_bytes(&root, "0::/"), None);
        assert_eq!(group_limit_bytes(&root, "4:memory:/c"), Some(4096));
        assert_eq!(group_limit_bytes(&root, "4:memory:/not/mounted/here"), None);
        assert_eq!(group_limit_bytes(&root, "3:cpu:/c"), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn examining_names_a_remedy_for_all_that_is_missing() {
        let checks = examine();
        assert!(checks.len() >= 10);
        let missing: Vec<_> = checks.iter().filter(|check| check.state == CheckState::Missing).collect();
        // Where neither way to a userfaultfd is open, the remedy stands with the first.
        assert!(missing.iter().all(|check| check.fix.is_some() || check.name == "/dev/userfaultfd"), "{missing:?}");
    }
}
