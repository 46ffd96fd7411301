//! How `tmem detach` and `tmem top` reach a supervisor, and how a supervisor is recognised: abstract sockets by process number.
//!
//! The names die with the process, so nothing is left behind. Only the same user and root are heard. What is asked over the
//! supervisor's own socket is in [`crate::watch`].

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use crate::error::Error;
use crate::proc;
use crate::sys::{self, Errno};

/// All names of the network namespace.
const NAMES: &str = "/proc/self/net/unix";

fn name(kind: &str, pid: i32) -> String {
    format!("tmem/{kind}/{pid}")
}

fn address(kind: &str, pid: i32) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name(kind, pid))
}

/// How the names of supervisors' own sockets begin.
const SUPERVISOR: &str = "supervisor";

/// The socket of the process that a supervisor claimed.
pub struct Control {
    listener: UnixListener,
}

/// Makes this process known as a supervisor, which it should be before it starts a program.
///
/// # Errors
/// When the name is taken.
pub fn listen_as_supervisor() -> Result<UnixListener, Error> {
    let bound = address(SUPERVISOR, std::process::id() as i32).and_then(|a| UnixListener::bind_addr(&a));
    let listener = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|e| Error::own(format!("the control socket cannot be made: {e}")))
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
        let listener = address("target", target).and_then(|a| UnixListener::bind_addr(&a)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Control { listener })
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

/// True if whoever is at the other end is the same user or root.
pub fn peer_may_ask(stream: &UnixStream) -> bool {
    // SAFETY: no arguments, no effects.
    sys::peer(stream).is_some_and(|peer| peer.uid == 0 || peer.uid == unsafe { libc::geteuid() })
}

/// True if `pid` is itself a supervisor.
pub fn is_supervisor(pid: i32) -> bool {
    // One that has no time to listen is one, too.
    !matches!(connect_to_supervisor(pid), Err(e) if e.0 != libc::EAGAIN)
}

/// Connects to a supervisor's own socket, without waiting for it.
pub fn connect_to_supervisor(pid: i32) -> Result<UnixStream, Errno> {
    sys::connect_abstract(name(SUPERVISOR, pid).as_bytes())
}

/// Process numbers of what calls itself a supervisor in this network namespace, in order.
pub fn supervisors() -> Vec<i32> {
    supervisors_in(&std::fs::read(NAMES).unwrap_or_default())
}

/// The same from a list of names, which anybody may have added to.
pub fn supervisors_in(names: &[u8]) -> Vec<i32> {
    // Columns as in proc_net(5): the name is the last; its leading zero byte shows as `@`. Who accepted a connection has it, too.
    let names = String::from_utf8_lossy(names);
    let prefix = format!("@tmem/{SUPERVISOR}/");
    let pids =
        names.lines().filter_map(|line| line.split_ascii_whitespace().nth(7)?.strip_prefix(&prefix)?.parse().ok());
    pids.filter(|&pid| pid > 0).collect::<BTreeSet<i32>>().into_iter().collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supervisors_are_found_by_name() {
        let names = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28733 @tmem/supervisor/41\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 28734 @tmem/supervisor/41\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28735 @tmem/supervisor/7\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28736 @tmem/target/42\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28737\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28738 @tmem/supervisor/-1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28739 @tmem/supervisor/1\xff x\n";
        assert_eq!(supervisors_in(names), [7, 41]);
        let me = std::process::id() as i32;
        let listener = listen_as_supervisor().unwrap();
        assert!(supervisors().contains(&me) && is_supervisor(me));
        drop(listener);
        assert!(!supervisors().contains(&me) && !is_supervisor(me));
    }
}
