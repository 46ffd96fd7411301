//! What is done beside the clients' requests: holes are closed, room is made ahead of need where blocks can be spilled, blocks that
//! nobody uses are packed again with their neighbours, and what lies in lent RAM comes home when there is room.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use tmem::Store;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// At most this long at a time.
const STEP: Duration = Duration::from_millis(2);
/// Looks without any change after which nobody uses the store.
const IDLE_LOOKS: u32 = 20;
/// Between two walks over the whole store: a block is cold when two of them have found it unused.
const PAUSE_LOOKS: u32 = 200;

/// What comes back from lent RAM at a time when nobody uses the store and there is room.
const RECALLED_BYTES: u64 = 1 << 20;
/// Between two steps of spilling, so many of them to a look.
const SPILL_STEP: Duration = Duration::from_millis(5);

/// Looks after the store until it is told to stop, and calls `look` each time.
pub fn keep_up(store: &Store, spills: bool, stopping: &AtomicBool, look: impl Fn()) {
    let (mut seen, mut idle, mut pause) = (0, 0, PAUSE_LOOKS);
    while !stopping.load(Relaxed) {
        if spills {
            for _ in 0..LOOK.as_millis() / SPILL_STEP.as_millis() {
                thread::park_timeout(SPILL_STEP);
                store.balance(None);
            }
        } else {
            thread::park_timeout(LOOK);
        }
        look();
        let stats = store.stats();
        let now = stats.puts + stats.gets + stats.flushed;
        idle = if now == seen { idle + 1 } else { 0 };
        seen = now;
        store.maintain();
        if idle == IDLE_LOOKS {
            store.trim();
        }
        // What has to leave its tier goes to the next one however busy this is.
        store.recall(if idle >= IDLE_LOOKS { RECALLED_BYTES } else { 0 });
        pause = pause.saturating_sub(1);
        if pause == 0 && store.recompress(STEP).walked {
            pause = PAUSE_LOOKS;
        }
    }
}
