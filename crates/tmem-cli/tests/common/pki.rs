//! Certificates for tests: those that are good and those that are not.

use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::folder;

/// Folders of a server, of a client that may come in, and of some that may not.
pub struct Pki(pub PathBuf);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    // OpenSSL takes a certificate for its own issuer if both have the same name.
    params.distinguished_name.push(DnType::CommonName, "authority of tests");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Pki {
    pub fn new(test: &str) -> Self {
        let pki = Self(folder(test));
        let (ours, foreign) = (authority(), authority());
        pki.put("server", &ours, Some(("server", &ours)));
        pki.put("client", &ours, Some(("client", &ours)));
        pki.put("without", &ours, None);
        pki.put("stranger", &ours, Some(("client", &foreign)));
        pki
    }

    /// A folder with the authority that its owner trusts, and a certificate, if it has one.
    fn put(&self, name: &str, trusted: &Authority, owner: Option<(&str, &Authority)>) {
        let folder = self.0.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("ca-cert.pem"), trusted.pem()).unwrap();
        if let Some((role, issuer)) = owner {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, role);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = params.signed_by(&key, issuer).unwrap();
            fs::write(folder.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
            fs::write(folder.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
        }
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
