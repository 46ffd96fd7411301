//! Where servers of tmem listen: a socket in the file system or a host and a port, their own or handed over; connections of
//! either kind, and who may connect with TLS.

#![forbid(unsafe_code)]

mod address;
mod stream;
pub mod tls;

pub use address::{Address, Listen, Listener};
pub use stream::Stream;

/// What can go wrong around a socket, in one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);
