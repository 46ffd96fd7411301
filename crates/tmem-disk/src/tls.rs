//! A connection that is encrypted; who may connect is said by [`tmem_net::tls`].
//!
//! What a client sends in the clear behind `STARTTLS` is taken for a record of TLS, and so ends the connection: nothing that was read
//! before is kept.
//!
//! One thread reads and others write, so the session is locked for as long as bytes are turned into records, never while the socket
//! is waited for.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::{ServerConfig, ServerConnection};
use tmem_net::Stream;

use crate::polling::Hear;
use crate::stream::{Hurried, Wire};

/// What is turned into records at a time.
const WRITTEN_BYTES: usize = 32 << 10;

/// Bytes of a connection under TLS beside those of one without: records on their way in and out, and keys.
pub const TLS_BYTES: u64 = (2 * (WRITTEN_BYTES + (1 << 10)) + (96 << 10)) as u64;

/// A connection under TLS. One thread may read it while others write to it.
pub struct Secured<W> {
    wire: W,
    session: Mutex<ServerConnection>,
    /// Records that are being sent; it is locked before the session.
    records: Mutex<Vec<u8>>,
}

impl<'a> Secured<Hurried<'a>> {
    /// The handshake of the server.
    ///
    /// # Errors
    /// When the client has no certificate, or a wrong one, or what comes is no TLS ([`ErrorKind::InvalidData`]).
    pub fn accept(config: &Arc<ServerConfig>, mut wire: Hurried<'a>) -> io::Result<Self> {
        let mut session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        // Sends the alert, too, if it fails.
        session.complete_io(&mut wire)?;
        Ok(Self { wire, session: Mutex::new(session), records: Mutex::default() })
    }

    /// The same without a time by which all has to be done.
    pub fn unhurried(self, stream: &'a Stream) -> Secured<&'a Stream> {
        Secured { wire: stream, session: self.session, records: self.records }
    }
}

impl<W: Wire> Secured<W> {
    fn session(&self) -> MutexGuard<'_, ServerConnection> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there already, of what has been decrypted or of what the socket has.
    fn read_ready(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session();
        loop {
            match session.reader().read(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // Whoever goes without a farewell has gone as well: no command is done before it is there as a whole.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                answer => return answer,
            }
            session.read_tls(&mut Ready(&self.wire))?;
            session.process_new_packets().map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
        }
    }

    fn read_waiting(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read_ready(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wire.wait()?,
                answer => return answer,
            }
        }
    }

    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.clear();
        let part = bytes.len().min(WRITTEN_BYTES);
        let written = {
            let mut session = self.session();
            let written = session.writer().write(&bytes[..part])?;
            while session.wants_write() {
                session.write_tls(&mut *records)?;
            }
            written
        };
        let mut sent = 0;
        while sent < records.len() {
            match self.wire.send(&records[sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(more) => sent += more,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(written)
    }
}

/// What the socket has, without waiting.
struct Ready<'a, W>(&'a W);

impl<W: Wire> Read for Ready<'_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.receive_now(buffer)
    }
}

impl<W: Wire> Read for &Secured<W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_waiting(buffer)
    }
}

impl<W: Wire> Hear for &Secured<W> {
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_ready(buffer)
    }
}

impl<W: Wire> Write for &Secured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_some(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
