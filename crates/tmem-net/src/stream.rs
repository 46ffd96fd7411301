//! A connection of either kind.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{RecvFlags, recv, sockopt};

/// A connection of either kind. Where reading and writing block, a client decides how long.
#[derive(Debug)]
pub enum Stream {
    /// By a socket in the file system.
    Unix(UnixStream),
    /// By TCP.
    Tcp(TcpStream),
}

impl Stream {
    /// Waits in reads and writes or does not, sends at once what there is, and finds out if the machine at the other end is gone.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn prepare(&self, waits: bool) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(!waits),
            Self::Tcp(stream) => {
                stream.set_nonblocking(!waits)?;
                stream.set_nodelay(true)?;
                Ok(sockopt::set_socket_keepalive(stream, true)?)
            }
        }
    }

    /// How long a read or a write may take; for ever if `None`.
    ///
    /// # Errors
    /// When the time is zero.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_read_timeout(patience).and_then(|()| s.set_write_timeout(patience)),
            Self::Tcp(s) => s.set_read_timeout(patience).and_then(|()| s.set_write_timeout(patience)),
        }
    }

    /// Reads with flags of recv(2).
    ///
    /// # Errors
    /// As recv(2).
    pub fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        let (bytes, _) = recv(self, buffer, flags)?;
        Ok(bytes)
    }

    /// Nothing more is read, or written either. Who waits for it is woken.
    pub fn shut_down(&self, how: Shutdown) {
        // A connection that has ended already is as good.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
    }

    /// Who is at the other end, as text: `127.0.0.1:4711`, or `unix`.
    pub fn peer(&self) -> String {
        match self {
            Self::Unix(_) => "unix".to_owned(),
            Self::Tcp(stream) => stream.peer_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(buffer),
            Stream::Tcp(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).write(bytes),
            Stream::Tcp(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
