//! Pages that were only read. They map the kernel's zero page and take no memory, but the first write to one makes it memory
//! without a fault of ours: a program could grow by all of them at once and unseen. So they are taken out. A page that is
//! missing is zeros all the same, and its next touch is told.
//!
//! They leave by MOVE, as pages do that are evicted, and not by `madvise`: what was written since we looked moves along and is
//! found, where `madvise` would have dropped it.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;

use crate::agent::{Agent, Batch};
use crate::counters::add;
use crate::evict::{self, MESSAGE_PAGES_MAX};
use crate::fault::Scratch;
use crate::pages::PageNumber;
use crate::proc;
use crate::shared::{BATCH_PAGES, Shared};
use crate::space::{Inner, Space};
use crate::sys::{self, PAGE, Region};

/// MOVEs in one message: they fit the agent's buffer.
const MOVES_MAX: usize = 2 * MESSAGE_PAGES_MAX;

/// A run of zero pages and where in the staging area it goes.
#[derive(Clone, Copy)]
struct Piece {
    page: PageNumber,
    pages: u64,
    slot: u64,
}

impl Space {
    /// Takes the zero pages of a registered range out, as far as nothing comes in between; serves faults meanwhile.
    pub fn take_zeros(&self, shared: &Shared, inner: &mut Inner, scratch: &mut Scratch, (start, end): (u64, u64)) {
        let mut regions = [Region::default(); 256];
        // Mappings that changed are left to the next look. Not only may the range be gone: a page that was written since, and
        // that a `madvise` is about to drop, must not be kept.
        let changes = inner.changes;
        let mut at = start;
        while at < end {
            let Some(pagemap) = &inner.pagemap else { return };
            let Ok((found, next)) = sys::scan_zero(pagemap.as_fd(), at, end, &mut regions) else { return };
            for message in pieces(&regions[..found]) {
                if inner.changes != changes || !self.take_pieces(shared, inner, &message) {
                    return;
                }
                self.pump(shared, inner, scratch);
                // The supervisor's own look at memory waits for all of this.
                let anonymous = proc::anonymous_bytes(self.pid.load(Relaxed)).unwrap_or(0);
                shared.peak_between.fetch_max(anonymous + shared.own.load(Relaxed), Relaxed);
            }
            if next <= at {
                return;
            }
            at = next;
        }
    }

    /// One message. False if there should be no further one.
    fn take_pieces(&self, shared: &Shared, inner: &mut Inner, message: &[Piece]) -> bool {
        // What a slot holds must be what is moved there now.
        let area = shared.workers;
        if inner.dead || !inner.untrashed[area].is_empty() {
            return false;
        }
        let base = inner.staging + (area * BATCH_PAGES) as u64 * PAGE;
        let mut batch = Batch::default();
        for piece in message {
            batch.move_pages(inner.numbers.0, base + piece.slot * PAGE, piece.page * PAGE, piece.pages * PAGE, 0);
        }
        if !inner.call_agent(&mut batch) {
            return false;
        }
        if !self.keep_written(shared, inner, base, message) {
            evict::give_up(shared, self, inner);
            return false;
        }
        let first = (area * BATCH_PAGES) as u32;
        let used = message.iter().map(|piece| piece.pages as u32).sum::<u32>();
        inner.untrashed[area].push(first..first + used);
        let mut batch = Batch::default();
        let trash = evict::add_trash(inner, area, &mut batch);
        if !inner.call_agent(&mut batch) {
            return false;
        }
        inner.untrashed[area] = evict::not_dropped(trash, &batch);
        true
    }

    /// Stores the pages in staging that were written after they were seen to be zero. False if they cannot be had.
    fn keep_written(&self, shared: &Shared, inner: &mut Inner, base: u64, message: &[Piece]) -> bool {
        let Some(pagemap) = &inner.pagemap else { return false };
        let mut regions = [Region::default(); BATCH_PAGES / 2];
        let end = base + BATCH_PAGES as u64 * PAGE;
        let Ok((found, _)) = sys::scan_present(pagemap.as_fd(), base, end, &mut regions) else { return false };
        let agent = inner.agent.as_ref().map_or(0, Agent::tid);
        let mut contents = [0; PAGE as usize];
        for slot in regions[..found].iter().flat_map(|r| (r.start - base) / PAGE..(r.end - base) / PAGE) {
            let Some(piece) = message.iter().find(|p| (p.slot..p.slot + p.pages).contains(&slot)) else { return false };
            let page = piece.page + slot - piece.slot;
            if sys::read_memory(agent, base + slot * PAGE, &mut contents) != Ok(PAGE as usize)
                || shared.store.put(inner.key(page), &contents).is_err()
            {
                return false;
            }
            evict::stored(inner, page, shared.evicted(1));
            add(&shared.counters.pages_evicted, 1);
        }
        true
    }
}

/// Deals the pages of `regions` into messages.
fn pieces(regions: &[Region]) -> Vec<Vec<Piece>> {
    let mut out: Vec<Vec<Piece>> = Vec::new();
    let mut slot = BATCH_PAGES as u64;
    for region in regions {
        let (mut page, end) = (region.start / PAGE, region.end / PAGE);
        while page < end {
            if slot == BATCH_PAGES as u64 || out.last().is_some_and(|message| message.len() == MOVES_MAX) {
                out.push(Vec::new());
                slot = 0;
            }
            let pages = (end - page).min(BATCH_PAGES as u64 - slot);
            out.last_mut().expect("a message was begun").push(Piece { page, pages, slot });
            (page, slot) = (page + pages, slot + pages);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_dealt_once_and_messages_are_full() {
        let region =
            |start: u64, pages: u64| Region { start: start * PAGE, end: (start + pages) * PAGE, ..Region::default() };
        let batch = BATCH_PAGES as u64;
        let messages = pieces(&[region(10, 3), region(20, 2 * batch)]);
        let pages: Vec<_> = messages.iter().flatten().flat_map(|p| p.page..p.page + p.pages).collect();
        assert_eq!(pages, (10..13).chain(20..20 + 2 * batch).collect::<Vec<_>>());
        let sizes: Vec<u64> = messages.iter().map(|m| m.iter().map(|p| p.pages).sum()).collect();
        assert_eq!(sizes, [batch, batch, 3]);
        for message in &messages {
            let slots: Vec<_> = message.iter().flat_map(|p| p.slot..p.slot + p.pages).collect();
            assert_eq!(slots, (0..slots.len() as u64).collect::<Vec<_>>());
        }
        let single: Vec<_> = (0..300).map(|i| region(i * 2, 1)).collect();
        assert!(pieces(&single).iter().all(|m| m.len() <= MOVES_MAX));
    }
}
