//! Keys: which page of which object in which pool.

use crate::pool::PoolId;

/// The 192-bit name of an object in a pool: a file, an address space, a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u64; 3]);

impl From<u64> for ObjectId {
    fn from(number: u64) -> Self {
        Self([number, 0, 0])
    }
}

/// The full name of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The pool.
    pub pool: PoolId,
    /// The object in the pool.
    pub object: ObjectId,
    /// The page in the object, counted in pages.
    pub index: u32,
}

impl Key {
    /// Puts a key together.
    #[must_use]
    pub fn new(pool: PoolId, object: impl Into<ObjectId>, index: u32) -> Self {
        Self { pool, object: object.into(), index }
    }
}
