//! The index: from a key to the word that says where the page is.
//!
//! Sixty-four neighbouring indexes of an object share a [`leaf`], which holds one [`Word`] per page that is there.
//! Leaves live in shards ([`shard`]), each behind a lock of its own; the [`directory`] knows which leaves an
//! object has, so that flushing a huge range costs no more than what is in it.

pub(crate) mod directory;
pub(crate) mod leaf;
pub(crate) mod shard;
mod word;

pub(crate) use directory::Directory;
pub(crate) use leaf::Leaf;
pub(crate) use shard::{Shard, Shards};
pub(crate) use word::{LEAVES_MAX, Place, SHARDS_MAX, Slot, Word};

use crate::key::{Key, ObjectId};
use crate::pool::PoolId;

/// Indexes per leaf.
pub(crate) const LEAF_SLOTS: u32 = 64;

/// Which leaf: the pool, the object and the index without its low six bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LeafKey {
    pub(crate) object: ObjectId,
    pub(crate) pool: PoolId,
    pub(crate) number: u32,
}

impl LeafKey {
    pub(crate) fn of(key: Key) -> (Self, u32) {
        let leaf = Self { object: key.object, pool: key.pool, number: key.index / LEAF_SLOTS };
        (leaf, key.index % LEAF_SLOTS)
    }
}
