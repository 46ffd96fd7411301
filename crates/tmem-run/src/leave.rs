//! Leaving a program as it was: every page comes back, registrations end, the agent goes.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

use crate::agent::Batch;
use crate::fault::Scratch;
use crate::pages::Place;
use crate::shared::{BATCH_PAGES, Shared};
use crate::space::{Inner, Space};
use crate::sys::PAGE;

/// Detaches every managed space; returns the pages that came back.
pub fn release_all(shared: &Shared) -> u64 {
    // No evictor works on a space from here on.
    let _gate = shared.gate.write().unwrap_or_else(PoisonError::into_inner);
    let before = shared.counters.pages_returned.load(Relaxed);
    let mut scratch = Scratch::default();
    for space in shared.spaces() {
        release(shared, &space, &mut scratch);
        shared.drop_space(space.id);
    }
    shared.counters.pages_returned.load(Relaxed) - before
}

fn release(shared: &Shared, space: &Space, scratch: &mut Scratch) {
    let mut from = 0;
    loop {
        let mut inner = space.lock();
        space.pump(shared, &mut inner, scratch);
        let away = inner.pages.find(Place::Stored, from, BATCH_PAGES);
        let Some(&last) = away.last() else {
            if from > 0 && !inner.dead {
                // Once more from the start: pages may have been moved to lower addresses meanwhile.
                from = 0;
                continue;
            }
            return finish(shared, space, inner, scratch);
        };
        inner.faults.extend(away);
        space.bring_home(shared, &mut inner, scratch);
        if inner.dead {
            return;
        }
        from = last + 1;
    }
}

fn finish(shared: &Shared, space: &Space, mut inner: std::sync::MutexGuard<'_, Inner>, scratch: &mut Scratch) {
    space.drain_to_quiet(shared, &mut inner);
    space.bring_home(shared, &mut inner, scratch);
    let bytes = shared.staging_bytes();
    for (start, end) in inner.registered.iter().collect::<Vec<_>>() {
        let _ = space.uffd.unregister(start, end - start);
    }
    let _ = space.uffd.unregister(inner.tag, PAGE);
    inner.dead = true;
    let Some(agent) = inner.agent.take() else { return };
    let _ = space.uffd.unregister(inner.staging, bytes);
    if let Some(trash) = &inner.trash_uffd {
        let _ = trash.unregister(inner.trash, bytes);
    }
    let mut batch = Batch::default();
    for (start, bytes) in [(inner.staging, bytes), (inner.trash, bytes), (inner.tag, PAGE)] {
        batch.call(libc::SYS_munmap, [start, bytes, 0, 0, 0, 0]);
    }
    if agent.call(&mut batch).is_ok() {
        agent.leave();
    }
}
