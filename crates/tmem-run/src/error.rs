//! What can go wrong before or around a run, in one line that says what to do.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    exit_status: u8,
}

impl Error {
    /// tmem itself could not do its work: status 125, as `env` and `timeout` have it.
    pub(crate) fn own(message: impl Into<String>) -> Error {
        Error { message: message.into(), exit_status: 125 }
    }

    /// The command was found but could not be run: status 126.
    pub(crate) fn not_runnable(message: impl Into<String>) -> Error {
        Error { message: message.into(), exit_status: 126 }
    }

    /// The command was not found: status 127.
    pub(crate) fn not_found(message: impl Into<String>) -> Error {
        Error { message: message.into(), exit_status: 127 }
    }

    /// The exit status that `env CMD` would use for such an error.
    pub fn exit_status(&self) -> u8 {
        self.exit_status
    }
}
