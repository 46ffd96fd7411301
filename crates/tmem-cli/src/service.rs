//! What a service manager is told (`sd_notify(3)`).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells the service manager, if there is one that wants to know: `READY=1`, `STOPPING=1`, with `STATUS=` for people.
pub fn notify(state: &str) {
    if let Some(at) = env::var_os("NOTIFY_SOCKET").filter(|at| !at.is_empty())
        && let Err(e) = send(&at, state)
    {
        eprintln!("tmem: the service manager at {} cannot be told {state:?}: {e}", at.display());
    }
}

fn send(at: &OsStr, state: &str) -> io::Result<()> {
    let address = match at.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(at)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_with_and_without_a_file_are_told() {
        let name = format!("tmem-notify-{}", std::process::id());
        let abstract_one = SocketAddr::from_abstract_name(&name).unwrap();
        let path = env::temp_dir().join(&name);
        let sockets = [UnixDatagram::bind_addr(&abstract_one).unwrap(), UnixDatagram::bind(&path).unwrap()];
        send(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        std::fs::remove_file(&path).unwrap();
        for socket in sockets {
            socket.set_nonblocking(true).unwrap();
            let mut said = [0; 16];
            let bytes = socket.recv(&mut said).unwrap();
            assert_eq!(&said[..bytes], b"READY=1");
        }
        send(path.as_os_str(), "READY=1").unwrap_err();
    }
}
