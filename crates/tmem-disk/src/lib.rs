//! Compressed RAM disks, and compressed caches of slower disks: exports whose blocks are pages of a [`tmem::Store`], served over NBD.
//!
//! [`Server::bind`] makes the store and listens, [`Server::run`] serves until it is told to stop, [`Server::save`] ends with an image. [`ask`] asks a running server for
//! its [`Figures`], [`reset`] empties a disk of it. See docs/disk.md for the life of a request.

#![forbid(unsafe_code)]

mod backing;
mod cached;
mod client;
mod connection;
mod error;
mod export;
mod fetch;
mod figures;
mod for_swap;
mod image;
mod input;
mod negotiate;
mod options;
mod output;
mod pages;
mod polling;
mod protocol;
mod ram;
mod server;
mod stream;
mod stripes;
#[doc(hidden)]
pub mod testing;
mod tls;
mod upkeep;
mod watch;

pub use client::{ask, reset};
pub use error::Error;
pub use figures::{ExportFigures, ExportRates, Figures, Rates, Snapshot};
pub use options::{Contents, ExportOptions, Options};
pub use protocol::uri;
pub use server::Server;
pub use watch::{KIND, PREFIX};
