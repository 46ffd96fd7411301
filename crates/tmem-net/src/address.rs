//! Where a server listens: a socket in the file system, or a host and a port.

use std::fmt;
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::{Error, Stream};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system: `unix:PATH`.
    Unix(PathBuf),
    /// `HOST:PORT`; port 0 takes a free one.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let what = || format!("'{text}' is no address: write unix:PATH or HOST:PORT, for example unix:/run/tmem.sock");
        match text.strip_prefix("unix:") {
            Some("") => Err(what()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => match text.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self::Tcp(text.to_owned())),
                _ => Err(what()),
            },
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

impl Address {
    /// The name that a certificate has to have.
    pub fn host(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Tcp(address) => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                host.trim_start_matches('[').trim_end_matches(']')
            }
        }
    }

    /// Connects as a client.
    ///
    /// # Errors
    /// When nobody listens there, or is not to be reached.
    pub fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Self::Tcp(address) => TcpStream::connect(address).map(Stream::Tcp),
        }
    }
}

/// Where clients come from.
#[derive(Debug)]
pub enum Listen {
    /// An address of its own.
    At(Address),
    /// A stream socket that listens already, unix or TCP: whoever started the server made it, and it stays when the server goes.
    Inherited(OwnedFd),
}

/// A socket that listens. One in the file system is removed when it is dropped, if we made it and it still is ours.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    /// With the inode of the socket, if we made it.
    Unix {
        listener: UnixListener,
        path: PathBuf,
        made: Option<u64>,
    },
    Tcp(TcpListener),
}

impl Listener {
    /// Listens where it is said.
    ///
    /// # Errors
    /// When the address is taken, or what was handed over is of no use.
    pub fn new(listen: Listen) -> Result<Self, Error> {
        match listen {
            Listen::At(address) => Self::bind(&address),
            Listen::Inherited(socket) => Self::adopt(socket),
        }
    }

    /// Takes over a socket that listens.
    fn adopt(socket: OwnedFd) -> Result<Self, Error> {
        let useless = |why: &str| Error(format!("the socket that was handed over {why}"));
        let failed = |e: io::Error| useless(&format!("cannot be used: {e}"));
        let asked = sockopt::socket_type(&socket).and_then(|kind| Ok((kind, sockopt::socket_acceptconn(&socket)?)));
        if asked.map_err(|e| failed(e.into()))? != (SocketType::STREAM, true) {
            return Err(useless("is no stream socket that listens: hand over one of ListenStream="));
        }
        match sockopt::socket_domain(&socket).map_err(|e| failed(e.into()))? {
            AddressFamily::UNIX => {
                let listener = UnixListener::from(socket);
                listener.set_nonblocking(true).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                let path =
                    address.as_pathname().ok_or_else(|| useless("has no name in the file system: give it one"))?;
                Ok(Self(Kind::Unix { path: path.to_owned(), listener, made: None }))
            }
            AddressFamily::INET | AddressFamily::INET6 => {
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self(Kind::Tcp(listener)))
            }
            _ => Err(useless("is neither a unix nor a TCP socket")),
        }
    }

    /// Listens. The socket of a server that is dead is replaced, that of one that lives is not.
    fn bind(address: &Address) -> Result<Self, Error> {
        let failed = |e: io::Error| Error(format!("cannot listen at {address}: {e}"));
        let listener = match address {
            Address::Tcp(at) => {
                let listener = TcpListener::bind(at).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Kind::Tcp(listener)
            }
            Address::Unix(path) => {
                clear_stale(path)?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
                Kind::Unix { listener, path: path.clone(), made: Some(inode) }
            }
        };
        Ok(Self(listener))
    }

    /// Where it listens in the end.
    pub fn address(&self) -> Address {
        match &self.0 {
            Kind::Unix { path, .. } => Address::Unix(path.clone()),
            Kind::Tcp(listener) => {
                Address::Tcp(listener.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string()))
            }
        }
    }

    /// A client that waits, if there is one.
    ///
    /// # Errors
    /// As accept(2); [`io::ErrorKind::WouldBlock`] if nobody waits.
    pub fn accept(&self) -> io::Result<Stream> {
        match &self.0 {
            Kind::Unix { listener, .. } => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Kind::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
        }
    }
}

impl Listener {
    /// Hands on who comes in, one by one, until `stop` can be read or its other end is closed.
    ///
    /// # Errors
    /// When waiting for clients fails.
    pub fn accept_until(&self, stop: BorrowedFd<'_>, mut welcome: impl FnMut(Stream)) -> Result<(), Error> {
        loop {
            let mut fds = [PollFd::new(&stop, PollFlags::IN), PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(Error(format!("waiting for clients fails: {e}"))),
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            match self.accept() {
                Ok(stream) => welcome(stream),
                // Gone again, or no descriptor to be had: poll would say the same at once.
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(20)),
                Err(_) => {}
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::Unix { listener, .. } => listener.as_fd(),
            Kind::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix { path, made: Some(inode), .. } = &self.0
            && fs::symlink_metadata(path).is_ok_and(|data| data.ino() == *inode)
        {
            // Whoever has removed it meanwhile wanted the same.
            let _ = fs::remove_file(path);
        }
    }
}

fn clear_stale(path: &Path) -> Result<(), Error> {
    let at = path.display();
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(data) if !data.file_type().is_socket() => {
            return Err(Error(format!("{at} exists and is no socket: remove it, or name another path")));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|e| Error(format!("cannot remove the socket {at} of a dead server: {e}")))
        }
        Ok(_) => Err(Error(format!("another server listens at {at}: stop it, or name another path"))),
        Err(e) => Err(Error(format!("cannot tell whether another server listens at {at}: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for text in ["unix:/run/tmem.sock", "unix:a b", "127.0.0.1:10809", "[::1]:0", "localhost:10809"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "/run/tmem.sock", ":10809", "localhost", "localhost:", "localhost:99999"] {
            assert!(text.parse::<Address>().is_err_and(|why| why.contains("unix:PATH")), "{text}");
        }
        let tcp = |at: &str| Address::Tcp(at.to_owned());
        assert_eq!((tcp("[::1]:10809").host(), tcp("a.example:1").host()), ("::1", "a.example"));
    }

    #[test]
    fn a_socket_that_was_handed_over_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let adopted = Listener::new(Listen::Inherited(UnixListener::bind(&path).unwrap().into())).unwrap();
        assert_eq!(adopted.address(), Address::Unix(path.clone()));
        let _client = UnixStream::connect(&path).unwrap();
        adopted.accept().unwrap();
        drop(adopted);
        assert!(path.exists());
        let adopted = Listener::new(Listen::Inherited(TcpListener::bind("127.0.0.1:0").unwrap().into())).unwrap();
        assert!(adopted.address().to_string().starts_with("127.0.0.1:"));
        let (unconnected, _) = UnixStream::pair().unwrap();
        for useless in [OwnedFd::from(unconnected), fs::File::open("/dev/null").unwrap().into()] {
            assert!(Listener::new(Listen::Inherited(useless)).is_err_and(|e| e.to_string().contains("handed over")));
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let alive = Listener::bind(&address).unwrap();
        assert!(Listener::bind(&address).is_err_and(|e| e.to_string().contains("another server")));
        drop(alive);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&address).is_err_and(|e| e.to_string().contains("no socket")));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
