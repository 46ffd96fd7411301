//! How `tmem detach` reaches the supervisor of a process: an abstract socket by the number of that process.
//!
//! The name dies with the supervisor, so nothing is left behind. Only the same user and root are heard. What is asked over the
//! supervisor's own socket is in [`crate::watch`].

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use tmem_watch::names;

use crate::error::Error;
use crate::proc;
use crate::watch;

fn address(target: i32) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("tmem/target/{target}"))
}

/// The socket of the process that a supervisor claimed.
pub struct Control {
    listener: UnixListener,
}

impl Control {
    /// Claims process `target` for this supervisor.
    pub fn claim(target: i32) -> Result<Control, Error> {
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                Error::own(format!("process {target} is already managed by tmem; `tmem detach {target}` frees it"))
            }
            _ => Error::own(format!("the control socket cannot be made: {e}")),
        };
        let listener = address(target).and_then(|a| UnixListener::bind_addr(&a)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Control { listener })
    }

    /// A request that waits, if any.
    pub fn request(&self) -> Option<UnixStream> {
        let (mut stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        if !names::peer_may_ask(&stream) {
            let _ = stream.write_all(b"error it belongs to another user\n");
            return None;
        }
        let mut word = [0_u8; 6];
        stream.read_exact(&mut word).ok()?;
        (&word == b"detach").then_some(stream)
    }
}

/// True if `pid` is itself a supervisor.
pub fn is_supervisor(pid: i32) -> bool {
    names::is_one(watch::KIND, pid)
}

/// The supervisor's socket for `pid` or the nearest of its ancestors that was claimed.
pub fn connect(pid: i32) -> Option<UnixStream> {
    let mut at = pid;
    while at > 1 {
        if let Ok(stream) = address(at).and_then(|a| UnixStream::connect_addr(&a)) {
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
