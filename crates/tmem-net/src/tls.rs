//! TLS: who may connect. Both sides show a certificate that one authority has signed; there is no other way in.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use crate::{Address, Error};

/// The files of a folder as nbdkit, QEMU and libnbd have them.
struct Folder<'a>(&'a Path);

impl Folder<'_> {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.join(name)
    }

    fn wrong(&self, name: &str, why: impl std::fmt::Display) -> Error {
        Error(format!("{}: {why}", self.path(name).display()))
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
    // Sessions are not resumed: connections live long, and what is kept for it would be memory nobody counts.
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
    let name = name.map_err(|_| Error(format!("'{host}' is no name that a certificate can have")))?;
    ClientConnection::new(Arc::new(config), name).map_err(|e| Error(format!("no TLS can be begun: {e}")))
}
