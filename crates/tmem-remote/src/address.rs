//! Which peers there are, as a user says it.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use redis::{ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates};

use crate::Error;

/// As many as a value's set of peers has room for.
pub(crate) const PEERS_MAX: usize = 8;

/// The peers: `redis://HOST:PORT[,HOST:PORT...]`, `rediss://` with TLS, `redis-cluster://` and `rediss-cluster://` for a
/// cluster, `unix:PATH` for a socket of this machine.
#[derive(Clone, Debug)]
pub struct Peers {
    pub(crate) nodes: Vec<ConnectionInfo>,
    pub(crate) is_cluster: bool,
    uses_tls: bool,
    copies: Option<usize>,
    password: Option<Arc<str>>,
    certificates: Option<PathBuf>,
}

impl Peers {
    /// So many copies of everything. If it is not said: two where that is possible, else one.
    #[must_use]
    pub fn copies(mut self, copies: usize) -> Self {
        self.copies = Some(copies);
        self
    }

    /// The password of every peer that has none in its address.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The folder with `ca-cert.pem` and, if the peers ask who comes, `client-cert.pem` and `client-key.pem`. Without it the authorities
    /// that the system trusts are believed.
    #[must_use]
    pub fn certificates(mut self, folder: &Path) -> Self {
        self.certificates = Some(folder.to_owned());
        self
    }

    /// How many copies there are to be; `replicas` is how many a cluster keeps of each of its parts.
    pub(crate) fn wanted_copies(&self, replicas: usize) -> Result<usize, Error> {
        let most = if self.is_cluster { 1 + replicas } else { self.nodes.len() };
        match self.copies {
            None => Ok(most.min(2)),
            Some(0) => Err(Error("no copies: 1 is the least".to_owned())),
            Some(copies) if copies > most => {
                let of = if self.is_cluster { "its primaries have too few replicas" } else { "name more peers" };
                Err(Error(format!("{copies} copies are more than the {most} that are possible: {of}")))
            }
            Some(copies) => Ok(copies),
        }
    }

    /// The nodes, with what all of them have in common.
    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        let with_password = |node: &ConnectionInfo| match &self.password {
            Some(password) if node.redis_settings().password().is_none() => {
                let settings = node.redis_settings().clone().set_password(password);
                node.clone().set_redis_settings(settings)
            }
            _ => node.clone(),
        };
        self.nodes.iter().map(with_password).collect()
    }

    /// What TLS needs; nothing where it is not used.
    pub(crate) fn tls(&self) -> Result<Option<TlsCertificates>, Error> {
        if !self.uses_tls {
            return Ok(None);
        }
        // Which cryptography is used is said once for the whole process. That somebody has said so already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let Some(folder) = &self.certificates else {
            return Ok(Some(TlsCertificates { client_tls: None, root_cert: None }));
        };
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|e| Error(format!("{}: {e}", path.display())))
        };
        let client_tls = if folder.join("client-cert.pem").exists() {
            Some(ClientTlsConfig { client_cert: read("client-cert.pem")?, client_key: read("client-key.pem")? })
        } else {
            None
        };
        Ok(Some(TlsCertificates { client_tls, root_cert: Some(read("ca-cert.pem")?) }))
    }
}

impl FromStr for Peers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        const EXAMPLE: &str = "write for example redis://10.0.0.2:6379 or redis://10.0.0.2,10.0.0.3";
        let mut nodes = Vec::new();
        let (mut scheme, mut who) = ("", "");
        for part in text.split(',') {
            if let Some(path) = part.strip_prefix("unix:").filter(|path| !path.is_empty()) {
                nodes.push(ConnectionAddr::Unix(path.into()).into_connection_info().map_err(|e| wrong(part, e))?);
                continue;
            }
            let host = match part.split_once("://") {
                Some((own, host)) if scheme.is_empty() || own == scheme => {
                    (scheme, who) = (own, "");
                    host
                }
                Some(_) => return Err(Error(format!("'{text}' mixes two kinds of peers: {EXAMPLE}"))),
                None => part,
            };
            let base = match scheme {
                "redis" | "redis-cluster" => "redis",
                "rediss" | "rediss-cluster" => "rediss",
                _ => return Err(Error(format!("'{part}' does not say what it is: {EXAMPLE}"))),
            };
            let host = match host.rsplit_once('@') {
                Some((own, host)) => {
                    who = own;
                    host
                }
                None => host,
            };
            if host.is_empty() {
                return Err(Error(format!("'{part}' names no host: {EXAMPLE}")));
            }
            let at = if who.is_empty() { "" } else { "@" };
            nodes.push(format!("{base}://{who}{at}{host}").into_connection_info().map_err(|e| wrong(host, e))?);
        }
        if nodes.len() > PEERS_MAX {
            return Err(Error(format!("{} peers are more than {PEERS_MAX}", nodes.len())));
        }
        Ok(Self {
            nodes,
            is_cluster: scheme.ends_with("-cluster"),
            uses_tls: scheme.starts_with("rediss"),
            copies: None,
            password: None,
            certificates: None,
        })
    }
}

fn wrong(part: &str, error: redis::RedisError) -> Error {
    Error(format!("'{part}' is no address: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.parse::<Peers>().unwrap().nodes.iter().map(|node| node.addr().to_string()).collect()
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(names("redis://a"), ["a:6379"]);
        assert_eq!(names("redis://a:1,b:2,unix:/run/c"), ["a:1", "b:2", "/run/c"]);
        assert_eq!(names("redis://:pw@a:1,redis://b:2"), ["a:1", "b:2"]);
        let peers: Peers = "rediss-cluster://me:pw@a:1,b:2".parse().unwrap();
        assert!(peers.is_cluster && peers.uses_tls);
        assert!(peers.nodes.iter().all(|node| node.redis_settings().password() == Some("pw")));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "a:1", "http://a", "redis://", "redis://a,rediss://b", "redis://a,,b", "redis://a:b", "unix:"]
        {
            assert!(text.parse::<Peers>().is_err(), "{text}");
        }
        assert!("redis://1,2,3,4,5,6,7,8,9".parse::<Peers>().is_err());
    }

    #[test]
    fn there_are_no_more_copies_than_places() {
        let peers: Peers = "redis://a,b,c".parse().unwrap();
        assert_eq!(peers.wanted_copies(0).unwrap(), 2);
        assert_eq!(peers.clone().copies(3).wanted_copies(0).unwrap(), 3);
        assert!(peers.clone().copies(4).wanted_copies(0).is_err() && peers.copies(0).wanted_copies(0).is_err());
        let cluster: Peers = "redis-cluster://a,b,c".parse().unwrap();
        assert_eq!(cluster.wanted_copies(0).unwrap(), 1);
        assert_eq!(cluster.wanted_copies(1).unwrap(), 2);
        assert!(cluster.copies(2).wanted_copies(0).is_err());
    }

    #[test]
    fn a_password_is_for_peers_that_have_none() {
        let peers = "redis://:own@a,redis://b".parse::<Peers>().unwrap().password("common");
        let passwords: Vec<_> =
            peers.connections().iter().map(|node| node.redis_settings().password().unwrap().to_owned()).collect();
        assert_eq!(passwords, ["own", "common"]);
    }
}
