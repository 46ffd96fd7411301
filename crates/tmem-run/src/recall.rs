//! Pages that lie with other machines come home when there is room again ("selfshrinking" in RAMster): their RAM is lent, and what is at
//! home is there faster. They come packed as they are, those first that left last, and only while nothing else leaves.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::shared::Shared;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Nothing comes home so soon after something has left.
const CALM: Duration = Duration::from_secs(2);
/// What comes home at a time: the share of a second that it takes processors is small.
const STEP_BYTES: u64 = 2 << 20;
/// This part of the budget stays free, so that what comes home need not leave again at once.
const RESERVE_PART: u64 = 16;

/// Starts the thread that calls pages back, if they can be elsewhere.
pub fn start(shared: &Arc<Shared>) {
    if !shared.spill.is_lent() {
        return;
    }
    let shared = Arc::clone(shared);
    let run = move || {
        let (mut left, mut since) = (0, Instant::now());
        while !shared.stopping.load(Relaxed) {
            thread::sleep(LOOK);
            let now = shared.spill.taken_back();
            if std::mem::replace(&mut left, now) != now {
                since = Instant::now();
            }
            // What has to leave its tier goes to the next one even if there is no room here.
            let bytes = if since.elapsed() < CALM { 0 } else { room(&shared).min(STEP_BYTES) };
            let came = shared.store.recall(bytes);
            shared.account.note(came as i64);
        }
    };
    // Without it they stay where they are until somebody asks for them.
    let _ = thread::Builder::new().name("tmem-recall".to_owned()).stack_size(256 << 10).spawn(run);
}

/// What may come home: the budget has to have room for it, and the store's part of that.
fn room(shared: &Shared) -> u64 {
    let reserve = shared.limits.ram / RESERVE_PART;
    let free = shared.limits.low.saturating_sub(shared.account.estimate());
    free.min(shared.room_to_store()).saturating_sub(reserve)
}
