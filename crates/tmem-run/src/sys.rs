//! The kernel's calls that this crate needs and that no library offers whole: userfaultfd, PAGEMAP_SCAN,
//! reading another process's memory, pidfds. Every function turns errno into an [`Errno`] or a meaning;
//! nothing above this file sees a raw return value.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// An errno value as the kernel gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    fn last() -> Errno {
        Errno(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}

/// Turns a C return value into a result.
pub fn check(value: libc::c_long) -> Result<i64, Errno> {
    if value < 0 { Err(Errno::last()) } else { Ok(value) }
}

const fn iowr(group: u64, number: u64, bytes: u64) -> u64 {
    (3 << 30) | (bytes << 16) | (group << 8) | number
}

const fn ior(group: u64, number: u64, bytes: u64) -> u64 {
    (2 << 30) | (bytes << 16) | (group << 8) | number
}

const UFFDIO_API: u64 = iowr(0xaa, 0x3f, 24);
const UFFDIO_REGISTER: u64 = iowr(0xaa, 0x00, 32);
const UFFDIO_UNREGISTER: u64 = ior(0xaa, 0x01, 16);
const UFFDIO_WAKE: u64 = ior(0xaa, 0x02, 16);
const UFFDIO_COPY: u64 = iowr(0xaa, 0x03, 40);
const UFFDIO_ZEROPAGE: u64 = iowr(0xaa, 0x04, 32);
/// Only the address space that owns the descriptor may MOVE: the agent does it.
pub const UFFDIO_MOVE: u64 = iowr(0xaa, 0x05, 40);
/// `USERFAULTFD_IOC_NEW` on `/dev/userfaultfd`.
pub const USERFAULTFD_IOC_NEW: u64 = 0xaa00;
const PAGEMAP_SCAN: u64 = iowr(b'f' as u64, 16, 96);

/// Features of `UFFDIO_API`.
pub mod feature {
    /// A fork of the registered address space is told, with a descriptor for the child's.
    pub const EVENT_FORK: u64 = 1 << 1;
    /// `mremap` is told.
    pub const EVENT_REMAP: u64 = 1 << 2;
    /// `madvise` with DONTNEED, FREE and REMOVE is told, before it happens.
    pub const EVENT_REMOVE: u64 = 1 << 3;
    /// `munmap` is told, after it happened.
    pub const EVENT_UNMAP: u64 = 1 << 6;
    /// A fault tells the thread that waits.
    pub const THREAD_ID: u64 = 1 << 8;
    /// `UFFDIO_MOVE` exists (Linux 6.8).
    pub const MOVE: u64 = 1 << 16;
}

/// `UFFDIO_MOVE` must not wake anybody: nobody waits in staging.
pub const MOVE_MODE_DONTWAKE: u64 = 1 << 0;

/// What a userfaultfd tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A thread waits for the page at this address.
    Fault { address: u64, thread: i32 },
    /// A child was forked; the descriptor serves the child's copy of the registered ranges.
    Fork { child: RawFd },
    /// Pages moved to another address.
    Remap { from: u64, to: u64, bytes: u64 },
    /// Contents of a range are about to be given up; the range stays mapped.
    Remove { start: u64, end: u64 },
    /// A range is no longer mapped.
    Unmap { start: u64, end: u64 },
}

/// How many pages a COPY or ZEROPAGE put in place, and why it stopped short if it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Every byte asked for.
    All,
    /// This many bytes; the next page was there already.
    Exists(u64),
    /// An event (fork, unmap, ...) is under way: drain events and try again.
    Changing(u64),
    /// The range is not mapped or not registered any more: an outcome, not a fault of ours.
    Gone,
    /// The address space is dead.
    Dead,
    /// The kernel is out of memory.
    NoMemory,
}

/// An address at which nothing is mapped: the lowest are kept free.
const NOTHING: u64 = PAGE;

/// Messages that one [`Uffd::read`] may give.
pub const MESSAGES_MAX: usize = 8;

/// A userfaultfd of some process, held by us.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Wraps a descriptor that is known to be a userfaultfd.
    pub fn new(fd: OwnedFd) -> Uffd {
        Uffd { fd }
    }

    /// The raw number, for epoll.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The descriptor, to hand a copy to another process.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Says hello and asks for features.
    pub fn enable(&self, features: u64) -> Result<(), Errno> {
        let mut api = [0xaa_u64, features, 0];
        self.ioctl(UFFDIO_API, &mut api)
    }

    /// Registers a range for missing faults.
    pub fn register(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        const MODE_MISSING: u64 = 1;
        self.ioctl(UFFDIO_REGISTER, &mut [start, bytes, MODE_MISSING, 0])
    }

    /// Ends the registration of a range; missing pages there become zero pages.
    pub fn unregister(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        self.ioctl(UFFDIO_UNREGISTER, &mut [start, bytes])
    }

    /// Wakes whoever waits in a range.
    pub fn wake(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WAKE, &mut [start, bytes])
    }

    /// Copies whole pages to `address` and wakes who waits there.
    pub fn copy(&self, address: u64, pages: &[u8]) -> Filled {
        debug_assert!((pages.len() as u64).is_multiple_of(PAGE) && !pages.is_empty());
        let mut arg = [address, pages.as_ptr() as u64, pages.len() as u64, 0, 0];
        let outcome = self.ioctl(UFFDIO_COPY, &mut arg);
        Self::filled(outcome, arg[4] as i64)
    }

    /// Asks whether the mapping at `address` is registered here, without changing anything: a COPY from where
    /// nothing is mapped gets as far as finding that out.
    pub fn is_registered(&self, address: u64) -> bool {
        let outcome = self.ioctl(UFFDIO_COPY, &mut [address, NOTHING, PAGE, 0, 0]);
        matches!(outcome, Err(Errno(libc::EFAULT | libc::EEXIST)))
    }

    /// Whether the address space does not exist any more. Changes nothing: a COPY from where nothing is mapped gets as far as
    /// finding that out.
    pub fn is_dead(&self) -> bool {
        const ANYWHERE: u64 = 1 << 32;
        self.ioctl(UFFDIO_COPY, &mut [ANYWHERE, NOTHING, PAGE, 0, 0]) == Err(Errno(libc::ESRCH))
    }

    /// Maps the zero page over a range and wakes who waits there.
    pub fn zero(&self, address: u64, bytes: u64) -> Filled {
        let mut arg = [address, bytes, 0, 0];
        let outcome = self.ioctl(UFFDIO_ZEROPAGE, &mut arg);
        Self::filled(outcome, arg[3] as i64)
    }

    fn filled(outcome: Result<(), Errno>, done: i64) -> Filled {
        let bytes = done.max(0) as u64;
        match outcome.map_err(|e| e.0) {
            Ok(()) => Filled::All,
            Err(libc::EEXIST) => Filled::Exists(bytes),
            // A short count is reported as EAGAIN too: the count tells the two apart.
            Err(libc::EAGAIN) => Filled::Changing(bytes),
            Err(libc::ESRCH) => Filled::Dead,
            Err(libc::ENOMEM) => Filled::NoMemory,
            Err(_) => Filled::Gone,
        }
    }

    /// Reads the messages that wait, at most [`MESSAGES_MAX`]; empty when there is none now. Every fork message
    /// among them carries a descriptor that the caller must adopt.
    pub fn read(&self) -> impl Iterator<Item = Message> + use<> {
        let mut raw = [[0_u64; 4]; MESSAGES_MAX];
        // SAFETY: the buffer is exactly as large as stated and lives across the call; a uffd_msg is 32 bytes.
        let got = unsafe { libc::read(self.raw(), raw.as_mut_ptr().cast(), size_of_val(&raw)) };
        raw.into_iter().take(got.max(0) as usize / 32).map(|raw| match raw[0] & 0xff {
            0x12 => Message::Fault { address: raw[2], thread: raw[3] as i32 },
            0x13 => Message::Fork { child: raw[1] as u32 as RawFd },
            0x14 => Message::Remap { from: raw[1], to: raw[2], bytes: raw[3] },
            0x15 => Message::Remove { start: raw[1], end: raw[2] },
            _ => Message::Unmap { start: raw[1], end: raw[2] },
        })
    }

    fn ioctl(&self, request: u64, arg: &mut [u64]) -> Result<(), Errno> {
        // SAFETY: `arg` is at least as large as the size that `request` encodes (each caller builds the
        // struct of its request), and userfaultfd ioctls touch only it and the other address space.
        let r = unsafe { libc::ioctl(self.raw(), request as _, arg.as_mut_ptr()) };
        check(r.into()).map(|_| ())
    }
}

/// Page categories of PAGEMAP_SCAN.
pub mod category {
    /// Mapped to memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared zero page: costs no memory.
    pub const PFNZERO: u64 = 1 << 5;
}

/// A run of pages with equal categories: start and end addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Categories of all its pages.
    pub categories: u64,
}

/// Fills `out` with the runs of present, non-zero pages in `[start, end)`; returns how many and where the scan ended.
pub fn scan_present(pagemap: BorrowedFd<'_>, start: u64, end: u64, out: &mut [Region]) -> Result<(usize, u64), Errno> {
    let filter = Filter { inverted: category::PFNZERO, any: category::PRESENT };
    scan(pagemap, start, end, filter, out)
}

/// Fills `out` with the runs of pages in `[start, end)` that take memory or swap; returns how many and where the scan ended.
pub fn scan_held(pagemap: BorrowedFd<'_>, start: u64, end: u64, out: &mut [Region]) -> Result<(usize, u64), Errno> {
    let filter = Filter { inverted: category::PFNZERO, any: category::PRESENT | category::SWAPPED };
    scan(pagemap, start, end, filter, out)
}

/// Fills `out` with the runs of pages in `[start, end)` that map the zero page; returns how many and where the scan ended.
pub fn scan_zero(pagemap: BorrowedFd<'_>, start: u64, end: u64, out: &mut [Region]) -> Result<(usize, u64), Errno> {
    scan(pagemap, start, end, Filter { inverted: 0, any: category::PRESENT }, out)
}

/// Which pages a scan finds.
struct Filter {
    /// [`category::PFNZERO`] to find what is not the zero page, nothing to find what is.
    inverted: u64,
    /// Categories of which one must be set; they are also what is returned.
    any: u64,
}

fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    filter: Filter,
    out: &mut [Region],
) -> Result<(usize, u64), Errno> {
    let mut arg = [0_u64; 12];
    arg[0] = 96;
    arg[2] = start;
    arg[3] = end;
    arg[5] = out.as_mut_ptr() as u64;
    arg[6] = out.len() as u64;
    arg[7] = 0; // max_pages: no limit
    arg[8] = filter.inverted; // categories that must be clear
    arg[9] = category::PFNZERO; // categories that must be as they are told, all of them
    arg[10] = filter.any; // categories of which one must be set
    arg[11] = filter.any; // what to return
    // SAFETY: `arg` is a pm_scan_arg of 96 bytes whose vector points at `out`, both alive across the call.
    let r = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, arg.as_mut_ptr()) };
    let count = check(r.into())?;
    Ok((count as usize, arg[4]))
}

/// Whether each of the pages from `first` on belongs to this process alone, by its `/proc/PID/pagemap`. A page that is not
/// there belongs to nobody.
pub fn exclusive_pages(pagemap: &File, first: u64, out: &mut [bool]) {
    const EXCLUSIVE: u64 = 1 << 56;
    let entries = pagemap_entries(pagemap, first, out.len());
    out.fill(false);
    out.iter_mut().zip(entries).for_each(|(out, entry)| *out = entry & EXCLUSIVE != 0);
}

/// Whether something lies at a page, in memory or in swap, by `/proc/PID/pagemap`; `None` if that cannot be told.
pub fn is_mapped(pagemap: &File, page: u64) -> Option<bool> {
    const PRESENT_OR_SWAPPED: u64 = 3 << 62;
    pagemap_entries(pagemap, page, 1).next().map(|entry| entry & PRESENT_OR_SWAPPED != 0)
}

/// Entries of `/proc/PID/pagemap`; none if they cannot all be read.
fn pagemap_entries(pagemap: &File, first: u64, count: usize) -> impl Iterator<Item = u64> + use<> {
    const ENTRY_BYTES: usize = 8;
    let mut bytes = vec![0; count * ENTRY_BYTES];
    if pagemap.read_exact_at(&mut bytes, first * ENTRY_BYTES as u64).is_err() {
        bytes.clear();
    }
    let count = bytes.len() / ENTRY_BYTES;
    (0..count).map(move |i| {
        let entry = bytes[i * ENTRY_BYTES..][..ENTRY_BYTES].try_into();
        u64::from_ne_bytes(entry.expect("that many bytes are an entry"))
    })
}

/// Reads another process's memory; returns the bytes read, short at the first page that cannot be read.
pub fn read_memory(pid: i32, address: u64, out: &mut [u8]) -> Result<usize, Errno> {
    read_memory_runs(pid, &[(address, out.len())], out)
}

/// Reads several runs `(address, bytes)` of another process one behind the other into `out`.
pub fn read_memory_runs(pid: i32, runs: &[(u64, usize)], out: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    let remote: Vec<libc::iovec> =
        runs.iter().map(|&(address, bytes)| libc::iovec { iov_base: address as *mut _, iov_len: bytes }).collect();
    // SAFETY: `local` covers exactly `out`; the remote side is another process's memory, checked by the kernel.
    let r = unsafe { libc::process_vm_readv(pid, &local, 1, remote.as_ptr(), remote.len() as _, 0) };
    check(r as _).map(|n| n as usize)
}

/// Writes into another process's memory; all or an error.
pub fn write_memory(pid: i32, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: bytes.len() };
    // SAFETY: `local` is only read by the call and covers exactly `bytes`.
    let r = unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) };
    match check(r as _)? {
        n if n as usize == bytes.len() => Ok(()),
        _ => Err(Errno(libc::EFAULT)),
    }
}

/// `PIDFD_THREAD` (Linux 6.9): a pidfd of one thread, with that thread's own descriptor table.
pub const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// Opens a pidfd.
pub fn pidfd_open(pid: i32, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain system call without pointers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Duplicates descriptor `number` of the process or thread behind `pidfd`.
pub fn pidfd_getfd(pidfd: &OwnedFd, number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: plain system call without pointers.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Takes ownership of a descriptor that the kernel delivered in a [`Message::Fork`].
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: reading the fork event installed this descriptor for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Waits until a descriptor is readable: a pidfd is when its process has ended.
pub fn wait_readable(fd: &OwnedFd) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one local entry, as the count says.
    while unsafe { libc::poll(&mut poll, 1, -1) } != 1 {}
}

/// Memory that this process will share with its children, for ever, of zeros.
///
/// # Safety
/// All zeros must be a valid `T`, and it must be made for being changed by several threads at once.
pub unsafe fn share_zeros<T: Sync>() -> Result<&'static T, Errno> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, of no file.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<T>(), prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: as large as a `T`, aligned to a page, never unmapped; the caller answers for the rest.
    Ok(unsafe { &*at.cast::<T>() })
}

/// Forks a child that has this process's descriptor table: not a copy, but the same one. Call it while the process has one thread
/// only. Gives 0 in the child.
pub fn fork_sharing_files() -> Result<i32, Errno> {
    // SAFETY: without CLONE_VM and with no stack given this is fork(2), and the process has a single thread, so the child may go on
    // as any program would.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES | libc::SIGCHLD, 0, 0, 0, 0) })?;
    Ok(pid as i32)
}

/// True if both processes run in one address space (vfork, CLONE_VM).
pub fn same_address_space(a: i32, b: i32) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: plain system call without pointers.
    unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0 }
}

/// Sends a signal; false when there is no such process.
pub fn kill(pid: i32, signal: i32) -> bool {
    // SAFETY: plain system call without pointers.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// The thread's robust-list head, which the kernel itself reads and writes when the thread exits; 0 if it has none.
pub fn robust_list(tid: i32) -> u64 {
    let mut head = 0_u64;
    let mut bytes = 0_usize;
    // SAFETY: both out-pointers are live locals of the sizes that the call writes.
    let r = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &mut head as *mut u64, &mut bytes as *mut usize) };
    if r == 0 { head } else { 0 }
}

/// Sends one packet, optionally with a descriptor beside it.
pub fn send_packet(socket: &OwnedFd, bytes: &[u8], fd: Option<RawFd>) -> Result<(), Errno> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let mut control = [0_u64; 4];
    // SAFETY: an all-zero msghdr is valid.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    if let Some(fd) = fd {
        msg.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        msg.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as _;
        // SAFETY: the control buffer (32 bytes, aligned) holds one header and one int.
        unsafe {
            let c = libc::CMSG_FIRSTHDR(&msg);
            (*c).cmsg_level = libc::SOL_SOCKET;
            (*c).cmsg_type = libc::SCM_RIGHTS;
            (*c).cmsg_len = libc::CMSG_LEN(4) as _;
            std::ptr::write_unaligned(libc::CMSG_DATA(c).cast::<i32>(), fd);
        }
    }
    // SAFETY: every pointer in `msg` is a live local.
    let r = unsafe { libc::sendmsg(socket.as_raw_fd(), &msg, libc::MSG_NOSIGNAL) };
    match check(r as _)? {
        n if n as usize == bytes.len() => Ok(()),
        _ => Err(Errno(libc::EMSGSIZE)),
    }
}

/// Receives one packet and the descriptor beside it, if any. 0 bytes: the other side is gone.
pub fn receive_packet(socket: &OwnedFd, out: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut iov = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    let mut control = [0_u64; 4];
    loop {
        // SAFETY: an all-zero msghdr is valid.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = 32;
        // SAFETY: every pointer in `msg` is a live local of the stated length.
        let r = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut msg, libc::MSG_CMSG_CLOEXEC) };
        match check(r as _) {
            Err(Errno(libc::EINTR)) => continue,
            Err(e) => return Err(e),
            Ok(n) => {
                // SAFETY: the kernel filled `msg`; the header, if there is one, lies in `control`.
                let fd = unsafe {
                    let c = libc::CMSG_FIRSTHDR(&msg);
                    if !c.is_null() && (*c).cmsg_type == libc::SCM_RIGHTS {
                        let raw = std::ptr::read_unaligned(libc::CMSG_DATA(c).cast::<i32>());
                        Some(OwnedFd::from_raw_fd(raw))
                    } else {
                        None
                    }
                };
                return Ok((n as usize, fd));
            }
        }
    }
}
