//! Compressed RAM disks: exports whose blocks are pages of a [`tmem::Store`], served over NBD.
//!
//! [`Server::bind`] makes the store and listens, [`Server::run`] serves until it is told to stop. [`ask`] asks a running server for
//! its [`Figures`], [`reset`] empties a disk of it. See docs/disk.md for the life of a request.

#![forbid(unsafe_code)]

mod address;
mod client;
mod connection;
mod error;
mod export;
mod fetch;
mod figures;
mod for_swap;
mod input;
mod negotiate;
mod options;
mod output;
mod polling;
mod protocol;
mod server;
mod stream;
mod stripes;
#[doc(hidden)]
pub mod testing;
mod tls;
mod upkeep;

pub use address::Address;
pub use client::{ask, reset};
pub use error::Error;
pub use figures::{ExportFigures, Figures};
pub use options::{ExportOptions, Listen, Options};
pub use server::Server;
