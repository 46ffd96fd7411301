//! Pages of a disk as pages of a pool.

use std::ops::Range;
use std::sync::Arc;

use tmem::{Key, ObjectId, PoolId, PoolKind, PoolOptions, PoolStats, Store};

use crate::error::Error;

/// Pages of an object. Half of what an index can name, so that the end of a range can be named, too.
pub const OBJECT_PAGES: u64 = 1 << 31;

/// The pool of a disk. Page numbers are those of the disk.
pub struct Pages {
    /// Where it is.
    pub store: Arc<Store>,
    pool: PoolId,
}

impl Pages {
    /// An empty pool.
    pub fn new(store: &Arc<Store>, kind: PoolKind) -> Result<Self, Error> {
        let refused = |e: tmem::Error| Error::new(format!("no room for another disk: {e}"));
        let pool = store.create_pool(kind, PoolOptions::default()).map_err(refused)?;
        Ok(Self { store: Arc::clone(store), pool })
    }

    /// A pool that is there already.
    pub fn of(store: &Arc<Store>, pool: PoolId) -> Self {
        Self { store: Arc::clone(store), pool }
    }

    pub fn pool(&self) -> PoolId {
        self.pool
    }

    pub fn stats(&self) -> PoolStats {
        self.store.pool_stats(self.pool).unwrap_or_default()
    }

    pub fn key(&self, page: u64) -> Key {
        Key::new(self.pool, page / OBJECT_PAGES, (page % OBJECT_PAGES) as u32)
    }

    pub fn next_stored(&self, pages: Range<u64>) -> Option<u64> {
        self.in_objects(pages, |object, range| self.store.next_page(self.pool, object, range))
    }

    pub fn next_gap(&self, pages: Range<u64>) -> Option<u64> {
        self.in_objects(pages, |object, range| self.store.next_gap(self.pool, object, range))
    }

    pub fn flush(&self, pages: Range<u64>) {
        self.in_objects(pages, |object, range| {
            self.store.flush_range(self.pool, object, range);
            None
        });
    }

    /// Asks each object that has a part of the pages, up to the first that finds something.
    fn in_objects(&self, pages: Range<u64>, find: impl Fn(ObjectId, Range<u32>) -> Option<u32>) -> Option<u64> {
        let mut from = pages.start;
        while from < pages.end {
            let (object, first) = (from / OBJECT_PAGES, from % OBJECT_PAGES);
            let last = (first + (pages.end - from)).min(OBJECT_PAGES);
            if let Some(index) = find(object.into(), first as u32..last as u32) {
                return Some(object * OBJECT_PAGES + u64::from(index));
            }
            from += last - first;
        }
        None
    }
}
