//! A connection of either kind.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};

use crate::polling::Hear;

/// A connection of either kind.
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Blocks, without waiting for more to be sent at once.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(false),
            Self::Tcp(stream) => stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true)),
        }
    }

    /// How long a read or a write may take; for ever if `None`.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_read_timeout(patience).and_then(|()| s.set_write_timeout(patience)),
            Self::Tcp(s) => s.set_read_timeout(patience).and_then(|()| s.set_write_timeout(patience)),
        }
    }

    /// Nothing more is read, or written either. Who waits for it is woken.
    pub fn shut_down(&self, how: Shutdown) {
        // A connection that has ended already is as good.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
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

impl Hear for &Stream {
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (bytes, _) = match self {
            Stream::Unix(stream) => recv(stream, buffer, RecvFlags::DONTWAIT),
            Stream::Tcp(stream) => recv(stream, buffer, RecvFlags::DONTWAIT),
        }?;
        Ok(bytes)
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
