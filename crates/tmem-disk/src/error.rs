//! What can go wrong around a server, in one line that says what to do.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
}

impl From<tmem_watch::Error> for Error {
    fn from(error: tmem_watch::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<tmem_net::Error> for Error {
    fn from(error: tmem_net::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}
