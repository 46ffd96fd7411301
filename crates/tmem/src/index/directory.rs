//! The directory: which leaves an object has, in order. It changes only when a leaf comes or goes.

use std::collections::HashMap;

use super::{LeafKey, shard::LeafHasher};
use crate::budget::Budget;
use crate::key::ObjectId;
use crate::pool::PoolId;
use crate::sync::{Mutex, Rank, lock};

const PARTS: usize = 16;

/// How many leaves are listed at a time.
pub(crate) const BATCH: usize = 64;

/// Leaf numbers of an object, as a window onto the sorted list.
pub(crate) struct LeafBatch {
    numbers: [u32; BATCH],
    len: usize,
}

impl LeafBatch {
    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.numbers[..self.len]
    }
}

#[derive(Default)]
struct Part {
    objects: HashMap<(PoolId, ObjectId), Vec<u32>>,
    list_bytes: usize,
    charged: u64,
}

pub(crate) struct Directory {
    parts: [Mutex<Part>; PARTS],
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self { parts: std::array::from_fn(|_| Mutex::new(Rank::Directory, Part::default())) }
    }

    fn part(&self, hasher: &LeafHasher, pool: PoolId, object: ObjectId) -> &Mutex<Part> {
        let number = 0;
        let hash = hasher.hash(&LeafKey { object, pool, number });
        &self.parts[(hash >> 48) as usize % PARTS]
    }

    pub(crate) fn add(&self, hasher: &LeafHasher, key: &LeafKey, budget: &Budget) {
        let mut part = lock(self.part(hasher, key.pool, key.object));
        let part = &mut *part;
        let list = part.objects.entry((key.pool, key.object)).or_default();
        let before = list.capacity();
        if let Err(at) = list.binary_search(&key.number) {
            if list.len() == list.capacity() {
                list.reserve_exact((list.len() / 4).max(1));
            }
            list.insert(at, key.number);
        }
        part.list_bytes += (list.capacity() - before) * size_of::<u32>();
        part.recharge(budget);
    }

    pub(crate) fn remove(&self, hasher: &LeafHasher, key: &LeafKey, budget: &Budget) {
        let mut part = lock(self.part(hasher, key.pool, key.object));
        let id = (key.pool, key.object);
        let Some(list) = part.objects.get_mut(&id) else {
            return;
        };
        if let Ok(at) = list.binary_search(&key.number) {
            list.remove(at);
        }
        if list.is_empty() {
            let bytes = list.capacity() * size_of::<u32>();
            part.list_bytes -= bytes;
            part.objects.remove(&id);
            part.recharge(budget);
        }
    }

    /// The first leaves of an object with numbers of at least `from`.
    pub(crate) fn leaves(&self, hasher: &LeafHasher, pool: PoolId, object: ObjectId, from: u32) -> LeafBatch {
        let mut batch = LeafBatch { numbers: [0; BATCH], len: 0 };
        let part = lock(self.part(hasher, pool, object));
        if let Some(list) = part.objects.get(&(pool, object)) {
            let start = list.partition_point(|number| *number < from);
            for number in list[start..].iter().take(BATCH) {
                batch.numbers[batch.len] = *number;
                batch.len += 1;
            }
        }
        batch
    }

    /// The last leaves of an object with numbers of at most `to`, in ascending order.
    pub(crate) fn leaves_back(&self, hasher: &LeafHasher, pool: PoolId, object: ObjectId, to: u32) -> LeafBatch {
        let mut batch = LeafBatch { numbers: [0; BATCH], len: 0 };
        let part = lock(self.part(hasher, pool, object));
        if let Some(list) = part.objects.get(&(pool, object)) {
            let end = list.partition_point(|number| *number <= to);
            for number in &list[end.saturating_sub(BATCH)..end] {
                batch.numbers[batch.len] = *number;
                batch.len += 1;
            }
        }
        batch
    }
}

impl Part {
    fn recharge(&mut self, budget: &Budget) {
        const ENTRY: usize = size_of::<(PoolId, ObjectId)>() + size_of::<Vec<u32>>() + 1;
        // The standard table keeps an eighth of its buckets free, in a power of two of them.
        let buckets = (self.objects.capacity() * 8 / 7).next_power_of_two();
        let bytes = (buckets * ENTRY + self.list_bytes) as u64;
        budget.recharge(self.charged, bytes);
        self.charged = bytes;
    }
}
