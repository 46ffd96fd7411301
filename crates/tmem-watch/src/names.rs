//! By what processes of tmem are found: abstract sockets whose names have a kind and a process number in them.
//!
//! The names die with the process, so nothing is left behind; they are those of a network namespace. Only the same user and root
//! are heard.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket, socket_with};

use crate::Error;

/// All names of the network namespace.
const NAMES: &str = "/proc/self/net/unix";

fn name(kind: &str, pid: i32) -> String {
    format!("tmem/{kind}/{pid}")
}

/// Makes this process known as one of a kind.
///
/// # Errors
/// When the name is taken.
pub fn listen(kind: &str) -> Result<UnixListener, Error> {
    let address = SocketAddr::from_abstract_name(name(kind, std::process::id() as i32));
    let listener = address.and_then(|address| UnixListener::bind_addr(&address));
    let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|e| Error(format!("the control socket cannot be made: {e}")))
}

/// Connects to a process of a kind, without waiting for it: one that has no time to listen does not answer ([`Errno::AGAIN`]). What is
/// read and written does not wait either.
///
/// # Errors
/// When there is none.
pub fn connect(kind: &str, pid: i32) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_socket(&socket, &SocketAddrUnix::new_abstract_name(name(kind, pid).as_bytes())?)?;
    Ok(socket.into())
}

/// True if `pid` is of a kind.
pub fn is_one(kind: &str, pid: i32) -> bool {
    // One that has no time to listen is one, too.
    !matches!(connect(kind, pid), Err(e) if e != Errno::AGAIN)
}

/// Process numbers of what calls itself one of a kind, in order.
pub fn all(kind: &str) -> Vec<i32> {
    all_in(kind, &std::fs::read(NAMES).unwrap_or_default())
}

/// The same from a list of names, which anybody may have added to.
pub(crate) fn all_in(kind: &str, names: &[u8]) -> Vec<i32> {
    // Columns as in proc_net(5): the name is the last; its leading zero byte shows as `@`. Who accepted a connection has it, too.
    let names = String::from_utf8_lossy(names);
    let prefix = format!("@tmem/{kind}/");
    let pids =
        names.lines().filter_map(|line| line.split_ascii_whitespace().nth(7)?.strip_prefix(&prefix)?.parse().ok());
    pids.filter(|&pid| pid > 0).collect::<BTreeSet<i32>>().into_iter().collect()
}

/// Who is at the other end of a socket, as of when it connected or began to listen. Process number 0 is one of another name space, for
/// which rustix has no value: so the kernel is asked without it.
pub fn peer(stream: &UnixStream) -> Option<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    let at = (&raw mut peer).cast();
    // SAFETY: `peer` and `bytes` are live locals of the size stated.
    let r = unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, at, &mut bytes) };
    (r == 0).then_some(peer)
}

/// The user that this process acts as.
pub fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// True if whoever is at the other end is the same user or root.
pub fn peer_may_ask(stream: &UnixStream) -> bool {
    peer(stream).is_some_and(|peer| peer.uid == 0 || peer.uid == me())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_by_name() {
        let names = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28733 @tmem/supervisor/41\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 28734 @tmem/supervisor/41\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28735 @tmem/supervisor/7\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28736 @tmem/target/42\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28737\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28738 @tmem/supervisor/-1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 28739 @tmem/supervisor/1\xff x\n";
        assert_eq!(all_in("supervisor", names), [7, 41]);
        let me = std::process::id() as i32;
        let listener = listen("test").unwrap();
        assert!(all("test").contains(&me) && is_one("test", me) && listen("test").is_err());
        let stream = connect("test", me).unwrap();
        assert!(peer_may_ask(&stream) && peer(&stream).is_some_and(|peer| peer.pid == me));
        drop(listener);
        assert!(!all("test").contains(&me) && !is_one("test", me));
    }
}
