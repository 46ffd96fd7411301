//! TLS: who may connect, and a connection that is encrypted.
//!
//! Both sides show a certificate that one authority has signed; there is no other way in. What a client sends in the clear behind
//! `STARTTLS` is taken for a record of TLS, and so ends the connection: nothing that was read before is kept.
//!
//! One thread reads and others write, so the session is locked for as long as bytes are turned into records, never while the socket
//! is waited for.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use tmem_net::{Address, Stream};

use crate::error::Error;
use crate::polling::Hear;
use crate::stream::{Hurried, Wire};

/// What is turned into records at a time.
const WRITTEN_BYTES: usize = 32 << 10;

/// Bytes of a connection under TLS beside those of one without: records on their way in and out, and keys.
pub const TLS_BYTES: u64 = (2 * (WRITTEN_BYTES + (1 << 10)) + (96 << 10)) as u64;

/// The files of a folder as nbdkit, QEMU and libnbd have them.
struct Folder<'a>(&'a Path);

impl Folder<'_> {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.join(name)
    }

    fn wrong(&self, name: &str, why: impl std::fmt::Display) -> Error {
        Error::new(format!("{}: {why}", self.path(name).display()))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        fs::read(self.path(name)).map_err(|e| self.wrong(name, e))
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let pem = self.read(name)?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match all {
            Ok(all) if !all.is_empty() => Ok(all),
            Ok(_) => Err(self.wrong(name, "there is no certificate in it (PEM is expected)")),
            Err(e) => Err(self.wrong(name, e)),
        }
    }

    fn authority(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates("ca-cert.pem")? {
            roots.add(certificate).map_err(|e| self.wrong("ca-cert.pem", e))?;
        }
        Ok(Arc::new(roots))
    }

    fn key(&self, name: &str) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(&self.read(name)?).map_err(|e| self.wrong(name, e))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What a server needs of a folder: `ca-cert.pem`, `server-cert.pem`, `server-key.pem`. Clients have to show a certificate.
///
/// # Errors
/// When one of the files is missing or is not what its name says.
pub fn server_config(folder: &Path) -> Result<Arc<ServerConfig>, Error> {
    let folder = Folder(folder);
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(folder.authority()?, Arc::clone(&provider)).build();
    let verifier = verifier.map_err(|e| folder.wrong("ca-cert.pem", e))?;
    let (chain, key) = (folder.certificates("server-cert.pem")?, folder.key("server-key.pem")?);
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.and_then(|config| config.with_client_cert_verifier(verifier).with_single_cert(chain, key));
    let mut config = config.map_err(|e| folder.wrong("server-key.pem", e))?;
    // Sessions are not resumed: NBD connections live long, and what is kept for it would be memory nobody counts.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client's side: `ca-cert.pem`, `client-cert.pem`, `client-key.pem`.
///
/// # Errors
/// When one of the files is missing or is not what its name says.
pub fn client(folder: &Path, address: &Address) -> Result<ClientConnection, Error> {
    let folder = Folder(folder);
    let roots = folder.authority()?;
    let (chain, key) = (folder.certificates("client-cert.pem")?, folder.key("client-key.pem")?);
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.and_then(|config| config.with_root_certificates(roots).with_client_auth_cert(chain, key));
    let config = config.map_err(|e| folder.wrong("client-key.pem", e))?;
    let host = address.host();
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|_| Error::new(format!("'{host}' is no name that a certificate can have")))?;
    ClientConnection::new(Arc::new(config), name).map_err(|e| Error::new(format!("no TLS can be begun: {e}")))
}

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
