//! What is done while nobody needs a worker: pages that have been cold for long are packed again, together with their neighbours,
//! and the store gives back what only use needs. That leaves the programs more memory of the same budget.
//!
//! A page of a group costs some ten times as much to bring back as one of its own. Two walks over the store must find it
//! unread, so the pause between two walks is what counts as long; it follows how many pages of groups are asked for again.

use std::time::{Duration, Instant};

use crate::shared::Shared;

/// At most this long at a time: a fault of this worker's own spaces waits for it.
const STEP: Duration = Duration::from_micros(300);
/// Between two steps: together a thirtieth of one processor's time.
const REST: Duration = Duration::from_millis(10);
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The background work of all workers. One of them at a time does it.
pub struct Upkeep {
    /// There is nothing to do before this.
    next: Instant,
    pause: Duration,
    /// Pages packed into groups, and pages of groups that were read, when the last walk ended.
    seen: (u64, u64),
}

impl Upkeep {
    /// Nothing has been walked over.
    pub fn new() -> Upkeep {
        Upkeep { next: Instant::now() + PAUSE_MIN, pause: 2 * PAUSE_MIN, seen: (0, 0) }
    }

    /// How long a worker without faults may sleep before there is a step to do.
    pub fn rest(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Does a step, if it is time for one.
    pub fn step(&mut self, shared: &Shared) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + REST;
        if !shared.store.recompress(STEP).walked {
            return;
        }
        shared.store.trim();
        let stats = shared.store.stats();
        let (packed, read) = (stats.recompressed - self.seen.0, stats.group_gets - self.seen.1);
        self.seen = (stats.recompressed, stats.group_gets);
        self.pause = next_pause(self.pause, packed, read);
        self.next = now + self.pause;
    }
}

/// The pause after a walk that packed so many pages, since the last of which so many pages of groups were read.
fn next_pause(pause: Duration, packed: u64, read: u64) -> Duration {
    let pause = if read > packed / 4 {
        pause * 2
    } else if read < packed / 16 {
        pause / 2
    } else {
        pause
    };
    pause.clamp(PAUSE_MIN, PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_follows_what_comes_back() {
        let seconds = Duration::from_secs;
        assert_eq!(next_pause(seconds(8), 1000, 500), seconds(16));
        assert_eq!(next_pause(seconds(8), 1000, 100), seconds(8));
        assert_eq!(next_pause(seconds(8), 1000, 10), seconds(4));
        assert_eq!(next_pause(PAUSE_MAX, 0, 1), PAUSE_MAX);
        assert_eq!(next_pause(PAUSE_MIN, 0, 0), PAUSE_MIN);
    }
}
