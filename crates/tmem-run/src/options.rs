//! What a user may ask of `run` and `attach`.

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

/// Settings of one supervisor.
#[derive(Clone, Debug)]
pub struct Options {
    /// Budget in bytes: resident anonymous and shared memory of the tree plus all of the supervisor's own.
    pub ram_bytes: u64,
    /// What to do when nothing can shrink any more.
    pub on_full: OnFull,
    /// Draw a live line on stderr when it is a terminal.
    pub progress: bool,
}
