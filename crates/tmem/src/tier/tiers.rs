//! The spill files of a store, in order of speed.

use std::sync::{Arc, OnceLock};

use super::Spill;
use super::record::{Extent, FILES_MAX};
use super::spill_file::{Readers, SpillFile};
use crate::budget::Budget;
use crate::error::{Error, ErrorKind};
use crate::sync::Rank;

const _: () = assert!(FILES_MAX == Rank::WRITERS.len());

/// None, one or several files. What leaves RAM goes to the first; what has been the longest in one that is full goes to the next.
pub(crate) struct Tiers {
    files: [OnceLock<SpillFile>; FILES_MAX],
    readers: Arc<Readers>,
}

impl Tiers {
    /// None yet. `threads` threads can read at the same time; more than that wait for each other.
    pub(crate) fn new(threads: usize) -> Self {
        Self { files: std::array::from_fn(|_| OnceLock::new()), readers: Arc::new(Readers::new(threads)) }
    }

    /// Adds a file behind those that are there.
    ///
    /// # Errors
    /// When there are [`FILES_MAX`], and as [`SpillFile::new`].
    pub(crate) fn add(&self, spill: Spill, budget: &Arc<Budget>) -> Result<&SpillFile, Error> {
        let mut file = SpillFile::new(spill, &self.readers, budget)?;
        for (number, place) in (0..).zip(&self.files) {
            file = match place.set(file.numbered(number)) {
                Ok(()) => return Ok(place.get().expect("just set")),
                Err(file) => file,
            };
        }
        Err(ErrorKind::TooManyTiers { max: FILES_MAX }.into())
    }

    /// The files, the fastest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &SpillFile> {
        self.files.iter().map_while(OnceLock::get)
    }

    /// The file with this number, if there are so many.
    pub(crate) fn get(&self, number: usize) -> Option<&SpillFile> {
        self.files.get(number)?.get()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.get(0).is_none()
    }

    /// The file behind another one.
    pub(crate) fn below(&self, file: &SpillFile) -> Option<&SpillFile> {
        self.get(usize::from(file.number()) + 1)
    }

    /// The file that a record lies in. A word names it, or did.
    pub(crate) fn of(&self, extent: Extent) -> &SpillFile {
        self.get(extent.file().into()).expect("words name only what was written")
    }
}
