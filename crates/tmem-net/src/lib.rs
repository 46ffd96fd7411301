//! Where servers of tmem listen: a socket in the file system or a host and a port, their own or handed over; connections of
//! either kind, and who may connect with TLS.

#![forbid(unsafe_code)]

mod address;
mod stream;
pub mod tls;

pub use address::{Address, Listen, Listener};
pub use stream::Stream;

use std::path::Path;

/// The password in a file: its first line.
///
/// # Errors
/// When it cannot be read, or is empty.
pub fn password(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |why: &dyn std::fmt::Display| Error(format!("{}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| failed(&e))?;
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(failed(&"its first line is empty"));
    }
    Ok(line.to_vec())
}

/// What can go wrong around a socket, in one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);
