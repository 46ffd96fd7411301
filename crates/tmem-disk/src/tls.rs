//! TLS: certificates of both sides, from a directory with the names that nbdkit, libnbd and QEMU know, and a connection that is encrypted.
//!
//! Whoever connects needs a certificate of the same authority; without one it gets nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use crate::error::Error;

/// Read from the socket at a time.
const INCOMING_BYTES: usize = 16 << 10;
/// What a connection takes more: what came and is not decrypted, what is encrypted and not sent, and the handshake.
pub const TLS_BYTES: u64 = 192 << 10;

const CA_CERTIFICATE: &str = "ca-cert.pem";

fn failed(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(format!("--tls-certificates: {}: {why}", path.display()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(path).map_err(|e| failed(path, e))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|e| failed(path, e))?;
    if found.is_empty() { Err(failed(path, "there is no certificate in it")) } else { Ok(found) }
}

fn authority(dir: &Path) -> Result<Arc<RootCertStore>, Error> {
    let path = dir.join(CA_CERTIFICATE);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots.add(certificate).map_err(|e| failed(&path, e))?;
    }
    Ok(Arc::new(roots))
}

/// The certificate of one side with its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(dir: &Path, side: &str) -> Result<Identity, Error> {
    let key = dir.join(format!("{side}-key.pem"));
    let certificates = certificates(&dir.join(format!("{side}-cert.pem")))?;
    Ok((certificates, PrivateKeyDer::from_pem_file(&key).map_err(|e| failed(&key, e))?))
}

/// What a server shows and demands: `ca-cert.pem`, `server-cert.pem`, `server-key.pem`.
///
/// # Errors
/// When one of them is missing or of no use.
pub fn server(dir: &Path) -> Result<Arc<ServerConfig>, Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(authority(dir)?, provider());
    let verifier = verifier.build().map_err(|e| failed(dir, e))?;
    let (certificates, key) = identity(dir, "server")?;
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(|e| failed(dir, e))?.with_client_cert_verifier(verifier);
    let mut config = config.with_single_cert(certificates, key).map_err(|e| failed(dir, e))?;
    // Connections are few and long.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The server's side of a connection.
///
/// # Errors
/// When it cannot be made.
pub fn accept(config: &Arc<ServerConfig>) -> io::Result<Tls> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    Ok(Tls::new(connection.into()))
}

/// The client's side: `ca-cert.pem`, `client-cert.pem`, `client-key.pem`.
///
/// # Errors
/// When one of them is missing or of no use.
pub fn connect(dir: &Path, host: &str) -> Result<Tls, Error> {
    let (certificates, key) = identity(dir, "client")?;
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(|e| failed(dir, e))?.with_root_certificates(authority(dir)?);
    let config = config.with_client_auth_cert(certificates, key).map_err(|e| failed(dir, e))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(dir, e))?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(|e| failed(dir, e))?;
    Ok(Tls::new(connection.into()))
}

/// What has come and is still encrypted.
struct Incoming {
    bytes: Box<[u8; INCOMING_BYTES]>,
    from: usize,
    to: usize,
}

/// The state of an encrypted connection. One thread reads, several may write.
pub struct Tls {
    connection: Mutex<Connection>,
    /// Locked before the connection.
    incoming: Mutex<Incoming>,
}

impl Tls {
    fn new(connection: Connection) -> Self {
        let incoming = Incoming { bytes: Box::new([0; INCOMING_BYTES]), from: 0, to: 0 };
        Self { connection: Mutex::new(connection), incoming: Mutex::new(incoming) }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what was sent, decrypted; `receive` reads from the socket, without a lock that a writer needs, and `socket` takes what
    /// the protocol has to answer.
    pub fn read(
        &self,
        buffer: &mut [u8],
        mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
        socket: &mut impl Write,
    ) -> io::Result<usize> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let Incoming { bytes, from, to } = &mut *incoming;
        loop {
            match self.connection().reader().read(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if from == to {
                let received = receive(&mut bytes[..])?;
                // NBD itself says where everything ends.
                if received == 0 {
                    return Ok(0);
                }
                (*from, *to) = (0, received);
            }
            let connection = &mut *self.connection();
            *from += connection.read_tls(&mut &bytes[*from..*to])?;
            let processed = connection.process_new_packets();
            // Also what is wrong with it is said.
            let sent = send(connection, socket);
            processed.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
            sent?;
        }
    }

    /// Encrypts and sends what of these bytes can be taken at once.
    pub fn write(&self, bytes: &[u8], socket: &mut impl Write) -> io::Result<usize> {
        let connection = &mut *self.connection();
        let taken = connection.writer().write(bytes)?;
        send(connection, socket).map(|()| taken)
    }
}

fn send(connection: &mut Connection, socket: &mut impl Write) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(socket)?;
    }
    Ok(())
}
