//! The guard: a second process that outlives the supervisor by a moment.
//!
//! When the last copy of a userfaultfd closes, evicted pages read as zeros. Agents hold copies, but a child that
//! was just forked has no agent yet. So the guard holds a copy of every userfaultfd, and when the supervisor's end
//! of the socket closes without a farewell, it kills every process in our care before it lets them go.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::proc;
use crate::sys::{self, Errno};

const ADD_SPACE: u8 = b'+';
const DROP_SPACE: u8 = b'-';
const PROCESSES: u8 = b'p';
const FAREWELL: u8 = b'x';

/// A way to the guard for a program that is about to start.
pub struct Introduction(OwnedFd);

impl Introduction {
    /// Puts the calling process into the guard's care. For a child between fork and exec: makes one system call and allocates
    /// nothing.
    pub fn give(&self) -> Result<(), Errno> {
        let mut packet = [PROCESSES; 5];
        packet[1..].copy_from_slice(&(std::process::id() as i32).to_le_bytes());
        sys::send_packet(&self.0, &packet, None)
    }
}

/// Our side of the guard.
pub struct Guard {
    socket: OwnedFd,
    pid: i32,
}

impl Guard {
    /// Starts the guard. Call it while the process has one thread only.
    pub fn start() -> Result<Guard, Errno> {
        let (ours, theirs) = sys::packet_pair()?;
        // SAFETY: the process has a single thread, so the child may go on as any program would.
        match sys::check(unsafe { libc::fork() }.into())? {
            0 => {
                drop(ours);
                watch(&theirs);
                // SAFETY: ends this process without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Guard { socket: ours, pid: pid as i32 }),
        }
    }

    /// The guard's process, which is no part of the tree.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// For the program to be started, which must be in the guard's care before it runs: if the supervisor ends between the
    /// start and its first look, nobody else knows of the program. The guard sees that end only when the copy that comes with
    /// the fork is closed, too, which exec does.
    pub fn introduction(&self) -> std::io::Result<Introduction> {
        self.socket.try_clone().map(Introduction)
    }

    /// Has the guard hold a space's userfaultfd.
    pub fn add_space(&self, id: u64, uffd: &OwnedFd) {
        self.send(ADD_SPACE, &id.to_le_bytes(), Some(uffd.as_raw_fd()));
    }

    /// Has the guard let go of it.
    pub fn drop_space(&self, id: u64) {
        self.send(DROP_SPACE, &id.to_le_bytes(), None);
    }

    /// Replaces the list of processes to kill.
    pub fn set_processes(&self, pids: &[i32]) {
        let bytes: Vec<u8> = pids.iter().take(4096).flat_map(|p| p.to_le_bytes()).collect();
        self.send(PROCESSES, &bytes, None);
    }

    /// Ends the guard without killing anybody.
    pub fn dismiss(&self) {
        self.send(FAREWELL, &[], None);
        // SAFETY: reaps our own child; no pointers kept.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }

    fn send(&self, what: u8, bytes: &[u8], fd: Option<i32>) {
        let packet: Vec<u8> = std::iter::once(what).chain(bytes.iter().copied()).collect();
        if sys::send_packet(&self.socket, &packet, fd).is_err() {
            // Without a guard a crash could give a program wrong data: end now, while the agents still kill.
            eprintln!("tmem: the guard process is gone; ending, so that no program goes on unguarded");
            std::process::abort();
        }
    }
}

/// The guard's whole life.
fn watch(socket: &OwnedFd) {
    // Keep nothing of the supervisor's open: no pipe of the user's may wait for us.
    let number = socket.as_raw_fd();
    // SAFETY: plain system calls on descriptors of this process, which uses only `number` from here on.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, number - 1, 0);
        libc::syscall(libc::SYS_close_range, number + 1, u32::MAX, 0);
        libc::prctl(libc::PR_SET_NAME, c"tmem-guard".as_ptr());
        libc::setsid();
    }
    let mut uffds = HashMap::new();
    let mut pids = BTreeSet::new();
    let mut packet = vec![0_u8; 32 << 10];
    loop {
        let Ok((bytes, fd)) = sys::receive_packet(socket, &mut packet) else { return };
        let Some((&what, body)) = packet[..bytes].split_first() else { break };
        let number = || body.try_into().map(u64::from_le_bytes).unwrap_or(0);
        match what {
            ADD_SPACE => drop(fd.map(|fd| uffds.insert(number(), fd))),
            DROP_SPACE => drop(uffds.remove(&number())),
            PROCESSES => {
                pids = body.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
            }
            _ => return,
        }
    }
    kill_all(pids);
    // Only now may the descriptors close.
    drop(uffds);
}

fn kill_all(mut pids: BTreeSet<i32>) {
    for _ in 0..50 {
        let children: Vec<i32> = pids.iter().flat_map(|&pid| proc::children(pid)).collect();
        pids.extend(children);
        let alive = pids
            .iter()
            .filter(|&&pid| sys::kill(pid, libc::SIGKILL) && !matches!(proc::state(pid), Some(('Z' | 'X', _)) | None))
            .count();
        if alive == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
