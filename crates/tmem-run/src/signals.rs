//! Signals as data: those that arrive at the supervisor are read from a descriptor and passed on.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys::{Errno, check};

/// Signals that a supervisor takes note of.
const WATCHED: [i32; 11] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGALRM,
];

/// One signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// True if a process sent it; false if the kernel did (a terminal sends to the whole foreground group, so the
    /// program has got its own already).
    pub sent: bool,
}

/// The descriptor that signals arrive at.
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the watched signals in this thread and those it will start, and opens the descriptor.
    pub fn open() -> Result<Signals, Errno> {
        // SAFETY: an all-zero set is a valid argument for sigemptyset, which initialises it; all are live locals.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in WATCHED {
                libc::sigaddset(&mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
            Ok(Signals { fd: OwnedFd::from_raw_fd(fd as i32) })
        }
    }

    /// Unblocks every signal, for a child between fork and exec: a mask survives exec.
    pub fn unblock_all() {
        // SAFETY: an all-zero set is a valid argument for sigemptyset, which initialises it.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        }
    }

    /// For poll.
    pub fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// The next signal that waits.
    pub fn next(&self) -> Option<Signal> {
        // SAFETY: the structure is plain integers; the read fills exactly its size or fails.
        let (got, info) = unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let bytes = size_of::<libc::signalfd_siginfo>();
            (libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), bytes) == bytes as isize, info)
        };
        got.then_some(Signal { number: info.ssi_signo as i32, sent: info.ssi_code <= 0 })
    }
}
