//! How `tmem detach` reaches a supervisor, and how a supervisor is recognised: an abstract socket by process number.
//!
//! The name dies with the process, so nothing is left behind. Only the same user and root are heard.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use crate::error::Error;
use crate::proc;

fn address(kind: &str, pid: i32) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("tmem/{kind}/{pid}"))
}

/// The sockets of one supervisor.
pub struct Control {
    listener: UnixListener,
    _mark: Mark,
}

/// What makes a supervisor known as one, from before it starts a program.
pub struct Mark {
    _listener: UnixListener,
}

impl Mark {
    /// Marks this process.
    pub fn new() -> Result<Mark, Error> {
        let me = std::process::id() as i32;
        let bound = address("supervisor", me).and_then(|a| UnixListener::bind_addr(&a));
        let listener = bound.map_err(|e| Error::own(format!("the control socket cannot be made: {e}")))?;
        Ok(Mark { _listener: listener })
    }
}

impl Control {
    /// Claims process `target` for this supervisor.
    pub fn claim(target: i32, mark: Mark) -> Result<Control, Error> {
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                Error::own(format!("process {target} is already managed by tmem; `tmem detach {target}` frees it"))
            }
            _ => Error::own(format!("the control socket cannot be made: {e}")),
        };
        let listener = address("target", target).and_then(|a| UnixListener::bind_addr(&a)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Control { listener, _mark: mark })
    }

    /// A request that waits, if any.
    pub fn request(&self) -> Option<UnixStream> {
        let (mut stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        if !peer_may_ask(&stream) {
            let _ = stream.write_all(b"error it belongs to another user\n");
            return None;
        }
        let mut word = [0_u8; 6];
        stream.read_exact(&mut word).ok()?;
        (&word == b"detach").then_some(stream)
    }
}

fn peer_may_ask(stream: &UnixStream) -> bool {
    use std::os::fd::AsRawFd;
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `bytes` are live locals of the size stated.
    let r = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &mut bytes)
    };
    // SAFETY: no arguments, no effects.
    r == 0 && (peer.uid == 0 || peer.uid == unsafe { libc::geteuid() })
}

/// True if `pid` is itself a supervisor.
pub fn is_supervisor(pid: i32) -> bool {
    address("supervisor", pid).and_then(|a| UnixStream::connect_addr(&a)).is_ok()
}

/// The supervisor's socket for `pid` or the nearest of its ancestors that was claimed.
pub fn connect(pid: i32) -> Option<UnixStream> {
    let mut at = pid;
    while at > 1 {
        if let Ok(stream) = address("target", at).and_then(|a| UnixStream::connect_addr(&a)) {
            return Some(stream);
        }
        at = proc::parent(at)?;
    }
    None
}

/// What a detach achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detached {
    /// Pages that were brought back.
    pub pages: u64,
}

/// Asks the supervisor of `pid` to bring every page back and to leave the program as it was.
///
/// # Errors
/// When nobody manages `pid`, or its supervisor refuses or ends first.
pub fn detach(pid: u32) -> Result<Detached, Error> {
    let mut stream = connect(pid as i32)
        .ok_or_else(|| Error::own(format!("process {pid} is not managed by tmem: there is nothing to detach")))?;
    let lost = |e: std::io::Error| Error::own(format!("the supervisor of process {pid} does not answer: {e}"));
    stream.write_all(b"detach").map_err(lost)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(lost)?;
    match answer.trim().split_once(' ') {
        Some(("ok", pages)) => Ok(Detached { pages: pages.parse().unwrap_or(0) }),
        Some((_, why)) => Err(Error::own(format!("process {pid} cannot be detached: {why}"))),
        None => Err(Error::own(format!("the supervisor of process {pid} ended without an answer"))),
    }
}
