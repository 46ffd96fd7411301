//! A page store with a hard byte budget: transcendent memory for Linux user space.
//!
//! Pages of 4096 bytes are [put](Store::put) under a [key](Key), [got](Store::get) back and [flushed](Store::flush_page). In
//! between they are compressed and packed byte by byte into frames that can be taken back one by one.
//!
//! ```
//! use tmem::{Config, Key, PoolKind, PoolOptions, Store};
//!
//! # fn main() -> Result<(), tmem::Error> {
//! let store = Store::new(Config::new(64 << 20))?;
//! let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default())?;
//! let key = Key::new(pool, 7, 0);
//!
//! let mut page = [0; tmem::PAGE_SIZE];
//! page[..5].copy_from_slice(b"hello");
//! store.put(key, &page)?;
//!
//! let mut out = [1; tmem::PAGE_SIZE];
//! assert!(store.get(key, &mut out)?);
//! assert_eq!(out, page);
//! assert!(store.flush_page(key));
//! assert!(!store.get(key, &mut out)?);
//! # Ok(())
//! # }
//! ```
//!
//! # What a store promises
//!
//! - A get gives exactly the page that was put last, or says that there is none. Never an older one: a put that is refused
//!   forgets what the key held, too.
//! - A page that a *persistent* pool accepted stays until it is flushed. A page of an *ephemeral* pool may go at any time.
//! - [`Config::budget_bytes`] counts everything: frames, index, tables, codec contexts. A put that does not fit drops
//!   ephemeral pages, oldest first, closes holes, spills, and is refused only then.
//! - All methods take `&self` and may be called from any thread. No lock is held across more than the work of one page, or
//!   of one group of cold pages.
//!
//! # Background work
//!
//! Whoever owns the store calls these now and then, from any thread:
//!
//! - [`Store::maintain`] closes the holes that flushes and replaced pages leave. Frames that are empty go back to the system
//!   by themselves.
//! - [`Store::balance`] takes frames back ahead of need, so that puts need not wait; [`Store::reclaim`] takes back as many as
//!   it is told. Ephemeral pages are dropped, roughly in order of age; persistent ones go to their owner by [`WriteBack`].
//! - [`Store::recompress`] packs cold neighbours again, together and tighter.
//!
//! # More than RAM
//!
//! With a [`Spill`] file ([`Store::add_spill`]) persistent pages go to disk, packed as they are, when RAM has no room for them:
//!
//! ```
//! use tmem::{Config, FileTier, Spill, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::new(Config::new(64 << 20))?;
//! let file = FileTier::unnamed(&std::env::temp_dir())?;
//! store.add_spill(Spill::new(file, 1 << 30))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Longer than a process
//!
//! [`Store::save`] writes what persistent pools hold to a file, packed as it is, and [`Store::open`] makes a store of it again, of
//! any allocator and any budget that it fits into, or with a spill file for the rest ([`OpenOptions`]). A file that is torn, damaged or none is refused.
//!
//! ```
//! use tmem::{Config, Key, PoolId, PoolKind, PoolOptions, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = std::env::temp_dir().join(format!("tmem-doc-{}", std::process::id()));
//! let mut store = Store::new(Config::new(64 << 20))?;
//! let pool = store.create_pool(PoolKind::Persistent, PoolOptions::default())?;
//! store.put(Key::new(pool, 7, 0), &[1; tmem::PAGE_SIZE])?;
//! store.save(&path)?;
//! let name = pool.to_bits();
//! drop(store);
//!
//! let store = Store::open(&path, Config::new(32 << 20))?;
//! assert!(store.contains(Key::new(PoolId::from_bits(name), 7, 0)));
//! # std::fs::remove_file(&path)?;
//! # Ok(())
//! # }
//! ```

mod alloc;
mod budget;
mod codec;
mod error;
mod frames;
mod ghosts;
mod index;
mod key;
mod page;
mod pool;
mod saved;
mod shared;
mod stats;
mod store;
mod sync;
#[doc(hidden)]
pub mod testing;
mod threads;
mod tier;

pub use alloc::AllocatorKind;
pub use codec::CodecKind;
pub use error::{Error, ErrorKind};
pub use key::{Key, ObjectId};
pub use page::{PAGE_SIZE, Page, page_hash};
pub use pool::{PoolId, PoolKind, PoolOptions};
pub use saved::Saved;
pub use stats::{Maintenance, PoolStats, Put, Reclaim, Recompression, Short, SpillStats, Stats};
pub use store::{Config, Location, OpenOptions, Store, WriteBack};
pub use tier::{Fault, FaultRate, FaultyTier, FileTier, Homing, MemoryTier, Spill, Strike, TIER_BLOCK_BYTES, Tier};
