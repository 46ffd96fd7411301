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
    #[error("what was spilled cannot be read")]
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
    /// The store has as many spill files as it may.
    #[error("the store spills to {max} places already, and that is the most")]
    TooManyTiers {
        /// Spill files that a store may have.
        max: usize,
    },
    /// The budget does not even hold the store's own tables.
    #[error("a budget of {budget} bytes is too small: the store needs at least {min} bytes")]
    BudgetTooSmall {
        /// The budget asked for.
        budget: u64,
        /// The smallest budget that works.
        min: u64,
    },
    /// The store cannot be saved; what was saved before is as it was.
    #[error("the store cannot be saved")]
    Save {
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be saved, because one of its pages cannot be read; what was saved before is as it was. Without that
    /// page it can be.
    #[error("the store cannot be saved with page {} of object {:?}: flush it, and save again", key.index, key.object.0)]
    SavePage {
        /// The page.
        key: crate::Key,
        /// Why it cannot be read.
        #[source]
        source: Box<Error>,
    },
    /// The saved store cannot be read.
    #[error("the saved store cannot be read at byte {at}")]
    Open {
        /// Where in the file.
        at: u64,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// That is no saved store at all.
    #[error("this is no saved store: it begins with other bytes")]
    SavedForeign,
    /// The store was saved by another version.
    #[error(
        "the store was saved in format {version}, and only {known} is known here: open it with the version of then"
    )]
    SavedVersion {
        /// The format of the file.
        version: u32,
        /// The format that can be read.
        known: u32,
    },
    /// The store was saved with pages of another size.
    #[error("the store was saved with pages of {page_bytes} bytes")]
    SavedPageSize {
        /// The size of its pages.
        page_bytes: u32,
    },
    /// The saved store ends too early: it was not written or copied to its end.
    #[error("the saved store is torn: it ends at byte {at}, before its end")]
    SavedTorn {
        /// Where it ends.
        at: u64,
    },
    /// The saved store is not what was written.
    #[error("the saved store is damaged at byte {at}: {what}")]
    SavedDamaged {
        /// Where the part begins that is damaged.
        at: u64,
        /// How that shows.
        what: &'static str,
    },
    /// The saved store takes another key, or none, or needs one.
    #[error("the saved store does not open with this key: {what}")]
    SavedKey {
        /// Which of these.
        what: &'static str,
    },
    /// The saved store does not fit into the budget, nor into what there is of a spill file.
    #[error(
        "the saved store needs a budget of about {needed} bytes, or a spill file with room; the budget is {budget}"
    )]
    SavedNoRoom {
        /// The budget in bytes.
        budget: u64,
        /// A budget that is enough without a spill file. An estimate, rather too large than too small.
        needed: u64,
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

    /// Whether a saved store was refused because it ends too early or is not what was written.
    #[must_use]
    pub fn is_saved_damaged(&self) -> bool {
        matches!(self.0, ErrorKind::SavedTorn { .. } | ErrorKind::SavedDamaged { .. })
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
