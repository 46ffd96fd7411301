//! RAM for others, and a compressed cache, on the Redis protocol.
//!
//! [`Server::bind`] makes the store and listens, [`Server::run`] serves until it is told to stop. See docs/serve.md for what it
//! understands and how values lie.

#![forbid(unsafe_code)]

mod balance;
mod client;
mod commands;
mod figures;
mod glob;
mod numbers;
mod pressure;
mod record;
mod reply;
mod resp;
mod server;
mod shard;
mod space;
mod table;
#[doc(hidden)]
pub mod testing;
mod worker;

pub use figures::{Figures, Rates, Snapshot};
pub use server::{KIND, Options, PREFIX, Policy, Server};

/// What can go wrong around a server, in one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl From<tmem_net::Error> for Error {
    fn from(error: tmem_net::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<tmem_watch::Error> for Error {
    fn from(error: tmem_watch::Error) -> Self {
        Self(error.to_string())
    }
}
