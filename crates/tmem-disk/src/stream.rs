//! A connection of either kind.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv, sockopt};

use crate::polling::Hear;

/// The bytes of a connection, below TLS.
pub trait Wire {
    /// Reads what is there already; [`io::ErrorKind::WouldBlock`] if nothing is.
    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Waits until there is something to read, or the end.
    fn wait(&self) -> io::Result<()>;

    /// Writes some of it.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;
}

/// A connection of either kind. Where reading and writing block, a client decides how long.
pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Blocks, sends at once what there is, and finds out if the machine at the other end is gone.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(false),
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                Ok(sockopt::set_socket_keepalive(stream, true)?)
            }
        }
    }

    /// How long a read or a write may take; for ever if `None`.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(s) => s.set_read_timeout(patience).and_then(|()| s.set_write_timeout(patience)),
            Self::Tcp(s) => s.set_read_timeout(patience).and_then(|()| s.set_write_timeout(patience)),
        }
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        let (bytes, _) = match self {
            Self::Unix(stream) => recv(stream, buffer, flags),
            Self::Tcp(stream) => recv(stream, buffer, flags),
        }?;
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
        self.receive(buffer, RecvFlags::DONTWAIT)
    }
}

impl Wire for &Stream {
    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(buffer, RecvFlags::DONTWAIT)
    }

    fn wait(&self) -> io::Result<()> {
        match self.receive(&mut [0], RecvFlags::PEEK) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &**self).write(bytes)
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

/// A connection of which all reading and writing together has to be done by a certain time, however slowly bytes arrive.
pub struct Hurried<'a> {
    stream: &'a Stream,
    until: Instant,
}

impl<'a> Hurried<'a> {
    pub fn new(stream: &'a Stream, patience: Duration) -> Self {
        Self { stream, until: Instant::now() + patience }
    }

    fn hurry(&self) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_patience(Some(left))
    }
}

impl Read for Hurried<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.hurry()?;
        self.stream.read(buffer)
    }
}

impl Write for Hurried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hurry()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for Hurried<'_> {
    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.receive(buffer, RecvFlags::DONTWAIT)
    }

    fn wait(&self) -> io::Result<()> {
        self.hurry()?;
        self.stream.wait()
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.hurry()?;
        self.stream.send(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_client_that_drips_is_not_waited_for_longer() {
        let (mut client, server) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            while client.write_all(&[0]).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let server = Stream::Unix(server);
        let start = Instant::now();
        Hurried::new(&server, Duration::from_millis(200)).read_exact(&mut [0; 1000]).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
