//! What a user may ask of a server.

use std::net::SocketAddr;
use std::path::PathBuf;

use tmem_net::Listen;

/// What a disk begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Zeroes. What is written is kept in RAM, or in the spill file.
    Empty {
        /// How many bytes it seems to have.
        size_bytes: u64,
    },
    /// What a file or a block device holds, whose size it has, and to which all writes go: the disk is a cache of it.
    Backing(PathBuf),
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// What clients call it; the first export can be had by the empty name, too.
    pub name: String,
    /// What it begins with.
    pub contents: Contents,
    /// Clients cannot write to it.
    pub read_only: bool,
}

/// Settings of a server.
#[derive(Debug)]
pub struct Options {
    /// Bytes of RAM that all of it may take: stored pages, index, buffers of connections, the program's own.
    pub ram_bytes: u64,
    /// What packs blocks when they are written.
    pub codec: tmem::CodecKind,
    /// The disks.
    pub exports: Vec<ExportOptions>,
    /// Where to listen.
    pub listen: Listen,
    /// The kernel may swap to it: memory is locked, and what privileges that takes is there or the server does not start.
    pub for_swap: bool,
    /// Nothing is said but with TLS: a folder with `ca-cert.pem`, `server-cert.pem` and `server-key.pem`. Clients need a
    /// certificate of the same authority.
    pub tls_certificates: Option<PathBuf>,
    /// Where disks come from, if it is there, and where [`Server::save`](crate::Server::save) leaves them.
    pub image: Option<PathBuf>,
    /// Where metrics are served for Prometheus.
    pub metrics: Option<SocketAddr>,
    /// Where packed blocks go that RAM has no room for.
    pub spills: Vec<tmem::Spill>,
}
