//! Other machines' RAM as a tier, over the Redis protocol: what RAMster was.
//!
//! [`RemoteTier`] keeps what a store spills on *peers*: Redis or Valkey servers, `tmem serve`, or a whole cluster, which counts as
//! one peer and sees to its copies itself. A write becomes a few *values* of up to 60 KiB, each under a key of its own that is never
//! used again; where each of them lies is known at home alone. Reading takes a part of a value (`GETRANGE`).
//!
//! A write is done when every value of it is on as many peers as there are to be copies. A peer that is away, slow, emptied or
//! answers something else than was written costs a copy, which the keeper makes again from another one; only when none is left is a
//! page lost, and then the store says so. All values carry a time to live that the keeper renews: what a dead owner left goes by
//! itself. A key that [`drain`] leaves on a peer has all owners, wherever they are, take what is theirs elsewhere. What travels is what the store gives: packed and, with [`tmem::Spill::new`], encrypted with a key that no peer has.

#![forbid(unsafe_code)]

use std::sync::PoisonError;
use sync::{Mutex, MutexGuard};

mod address;
mod keeper;
#[cfg(all(test, loom))]
mod model;
mod peer;
mod tier;
mod values;

pub use address::Peers;
pub use peer::PeerFigures;
pub use tier::{RemoteFigures, RemoteTier, drain, values_left};

/// Locks of the standard library, or of loom where their orders are tried out.
mod sync {
    #[cfg(loom)]
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    #[cfg(not(loom))]
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
}

/// Locks what stays right whatever a thread that panicked was about.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What can go wrong with remote memory, in one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);
