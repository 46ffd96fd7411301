//! The one error type of the engine.

/// Why the engine could not do what it was asked.
///
/// A page that is not there is no error: [`Store::get`](crate::Store::get) answers `false`.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] ErrorKind);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The page does not fit into the budget; what the key held before is forgotten.
    #[error("the page does not fit into the budget of {budget} bytes, of which {used} are in use")]
    NoRoom {
        /// The budget in bytes.
        budget: u64,
        /// The bytes in use.
        used: u64,
    },
    /// The pool is at its own cap; what the key held before is forgotten.
    #[error("the pool is at its cap of {cap} bytes")]
    PoolFull {
        /// The pool's cap in bytes.
        cap: u64,
    },
    /// The pool takes no pages at present; what the key held before is forgotten.
    #[error("the pool is frozen")]
    Frozen,
    /// There is no such pool (any more).
    #[error("there is no such pool")]
    NoPool,
    /// There are as many pools as the store can name.
    #[error("the store has all the {max} pools it can have; destroy one first")]
    TooManyPools {
        /// The number of pools a store can have.
        max: usize,
    },
    /// A stored page does not expand to what was put: memory or the spill file was damaged. The page cannot be given out.
    #[error("a stored page is damaged: {what}")]
    Corrupt {
        /// Which check failed.
        what: &'static str,
    },
    /// The spill file cannot be read. The page stays where it is: a later get may find it.
    #[error("the spill file cannot be read")]
    Spill {
        /// What the tier answered.
        #[source]
        source: std::io::Error,
    },
    /// The limit for the spill file is too small.
    #[error("{bytes} bytes are too few for a spill file: it needs at least {min} bytes")]
    SpillTooSmall {
        /// The limit asked for.
        bytes: u64,
        /// The smallest that works.
        min: u64,
    },
    /// The store has a spill file already.
    #[error("the store spills to another place already")]
    SpillsAlready,
    /// The budget does not even hold the store's own tables.
    #[error("a budget of {budget} bytes is too small: the store needs at least {min} bytes")]
    BudgetTooSmall {
        /// The budget asked for.
        budget: u64,
        /// The smallest budget that works.
        min: u64,
    },
    /// The system refused memory or address space.
    #[error("the system gives no {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0
    }

    /// Whether the page was refused for lack of room, in the store or in its pool.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        matches!(self.0, ErrorKind::NoRoom { .. } | ErrorKind::PoolFull { .. })
    }

    /// Whether the pool is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        matches!(self.0, ErrorKind::Frozen)
    }

    /// Whether the pool does not exist.
    #[must_use]
    pub fn is_no_pool(&self) -> bool {
        matches!(self.0, ErrorKind::NoPool)
    }

    /// Whether the spill file could not be read.
    #[must_use]
    pub fn is_spill(&self) -> bool {
        matches!(self.0, ErrorKind::Spill { .. })
    }

    /// Whether a stored page is damaged.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self.0, ErrorKind::Corrupt { .. })
    }
}
