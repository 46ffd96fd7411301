//! What a user may ask of `run` and `attach`.

use std::net::SocketAddr;
use std::path::PathBuf;

/// What happens when memory over the budget cannot be made smaller any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// Let the program grow over the budget, say so once on stderr, and count it.
    #[default]
    Grow,
    /// Stop the program tree (as SIGSTOP does) and say so; SIGCONT lets it go on and grow.
    Stop,
    /// Kill the program tree with a message.
    Kill,
}

/// Where zpages go that RAM has no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Spill {
    /// A file without a name on a real disk: in `$TMPDIR`, `/var/tmp`, the working directory or `/tmp`. Nowhere, if none of
    /// them is on one.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// In a directory, a file without a name; else a file of this name, which must be empty if it is there already.
    At {
        /// The directory or file.
        path: PathBuf,
        /// What the file may take; if not said, half of what is free when the program starts.
        bytes_max: Option<u64>,
    },
}

/// Faults that happen to the spill file on purpose, so that a user can try what becomes of a program then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpillFaults {
    /// How the user named them.
    pub text: String,
    /// What happens when.
    pub list: Vec<(tmem::Fault, tmem::Strike)>,
    /// For what is random about them.
    pub seed: u64,
}

/// Settings of one supervisor.
#[derive(Clone, Debug)]
pub struct Options {
    /// Budget in bytes: resident anonymous and shared memory of the tree plus all of the supervisor's own.
    pub ram_bytes: u64,
    /// What to do when nothing can shrink any more.
    pub on_full: OnFull,
    /// Draw a live line on stderr when it is a terminal.
    pub progress: bool,
    /// Where zpages go that RAM has no room for.
    pub spill: Spill,
    /// Do not encrypt what is spilled.
    pub spill_plain: bool,
    /// Bytes that may be written to the spill file in a day, for a disk that wears out.
    pub spill_writes_per_day: Option<u64>,
    /// Faults that happen to the spill file on purpose.
    pub spill_faults: Option<SpillFaults>,
    /// Other machines whose RAM zpages go to before they go to the spill file.
    pub remote: Option<tmem_remote::Peers>,
    /// Serve figures at this address, over HTTP, in Prometheus' text format.
    pub metrics: Option<SocketAddr>,
}
