//! Remote memory of a supervisor: what became of it, and what is said when a peer is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tmem_remote::{Peers, RemoteTier};

use crate::error::Error;
use crate::watched::{Notes, Watched};

pub(super) struct Remote {
    pub(super) tier: RemoteTier,
    pub(super) notes: Arc<Notes>,
    /// Peers of which it was said that they are dead, as bits.
    told: AtomicU64,
}

impl Remote {
    pub(super) fn connect(peers: &Peers) -> Result<Self, Error> {
        let tier = RemoteTier::connect(peers).map_err(|e| Error::own(format!("--remote: {e}")))?;
        Ok(Self { tier, notes: Arc::new(Notes::new(None)), told: AtomicU64::new(0) })
    }

    /// What it can take, if there is any.
    pub(super) fn bytes_max(remote: Option<&Self>) -> u64 {
        remote.map_or(0, |_| RemoteTier::BYTES_MAX)
    }

    /// Always encrypted: others are to have no key to it, whatever is said about the file.
    pub(super) fn spill(&self) -> tmem::Spill {
        let watched = Watched { tier: Box::new(self.tier.clone()), notes: Arc::clone(&self.notes) };
        tmem::Spill::new(watched, RemoteTier::BYTES_MAX)
    }

    /// Says once of each peer that it is dead.
    pub(super) fn tell_peers(&self) {
        for (number, name) in self.tier.dead_peers() {
            if self.told.fetch_or(1 << number, Relaxed) & (1 << number) != 0 {
                continue;
            }
            let figures = self.tier.figures();
            let then = if figures.peers[number].values == 0 {
                "nothing lies there"
            } else if figures.copies > 1 && figures.peers.len() > 1 {
                "what it had is copied from others"
            } else {
                "nobody else has what it had: who needs that waits for up to a minute"
            };
            eprintln!("tmem: remote memory at {name} does not answer: {then}");
        }
    }
}
