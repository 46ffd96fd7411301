//! Where `--stats` goes.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use tmem_run::Report;

/// A place for the figures, opened before the command starts, so that a bad path costs nobody a run.
pub enum StatsSink {
    /// Nobody asked.
    None,
    /// `-`.
    Stdout,
    /// A file.
    File(File),
}

impl StatsSink {
    /// Opens what `--stats` named.
    ///
    /// # Errors
    ///
    /// When the file cannot be created or written.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        match path {
            None => Ok(Self::None),
            Some(path) if path.as_os_str() == "-" => Ok(Self::Stdout),
            Some(path) => {
                File::create(path).map(Self::File).with_context(|| format!("cannot write --stats {}", path.display()))
            }
        }
    }

    /// Writes the report as one JSON object on one line.
    ///
    /// # Errors
    ///
    /// When it cannot be written; a reader who left early is no error.
    pub fn write(self, report: &Report) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(report).context("cannot write --stats")?;
        line.push(b'\n');
        let written = match self {
            Self::None => Ok(()),
            Self::Stdout => io::stdout().lock().write_all(&line),
            Self::File(mut file) => file.write_all(&line),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("cannot write --stats"),
        }
    }
}
