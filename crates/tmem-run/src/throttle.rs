//! Memory that grows where no fault of ours slows it: pages that a program copies because a forked relative shares them,
//! and mappings that are not registered yet. Over the budget, the threads that run are stopped while eviction makes room.
//!
//! A stop changes nothing that the program can see but the time. Threads that sleep are left alone: they take no memory, and
//! some system calls (`epoll_wait`) would return EINTR.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::counters::add;
use crate::ptrace::{self, Paused};
use crate::shared::Shared;
use crate::space::Space;

/// The longest stop. Eviction finds room for some thousand pages in it.
const HOLD_MAX: Duration = Duration::from_millis(20);
/// What a program may run between two stops, so that it gets on in any case.
const RUN_MIN: Duration = Duration::from_millis(1);

/// Growth after which another stop is tried although eviction had found nothing: where the new memory is may not be known yet.
const GROWTH_BYTES: u64 = 1 << 20;

/// The threads that are stopped at present.
pub struct Throttle {
    held: Vec<Paused>,
    since: Instant,
    /// Least memory in use since a stop was in vain.
    in_vain: u64,
}

impl Throttle {
    /// Nobody is stopped.
    pub fn new() -> Throttle {
        Throttle { held: Vec::new(), since: Instant::now(), in_vain: 0 }
    }

    /// True while somebody is stopped.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Stops the running threads of `spaces` if the programs and we together hold `total` bytes, too much, and lets them go
    /// when there is room, when eviction achieves nothing, or after some time.
    pub fn govern(&mut self, shared: &Shared, total: u64, spaces: impl FnOnce() -> Vec<Arc<Space>>) {
        let ram = shared.limits.ram;
        let hopeless = shared.patience().is_zero() || shared.is_at_floor();
        self.in_vain = self.in_vain.min(total);
        if self.holds() {
            if hopeless {
                self.in_vain = total;
            }
            if total <= ram || hopeless || self.since.elapsed() > HOLD_MAX {
                self.let_go();
            }
            return;
        }
        let in_vain = hopeless && total < self.in_vain + GROWTH_BYTES;
        if total <= ram + (ram / 64).max(2 << 20) || in_vain || self.since.elapsed() < RUN_MIN {
            return;
        }
        shared.need_room();
        for space in spaces() {
            if let Some((pid, agent)) = space.process_and_agent() {
                self.held.extend(ptrace::hold_running(pid, agent));
            }
        }
        add(&shared.counters.threads_held, self.held.len() as u64);
        self.since = Instant::now();
    }

    /// Lets everybody go.
    pub fn let_go(&mut self) {
        self.held.clear();
        self.since = Instant::now();
    }
}
