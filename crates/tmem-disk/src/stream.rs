//! What the two phases of a connection need of a socket, encrypted or not.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use tmem_net::Stream;

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
    use std::os::unix::net::UnixStream;
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
