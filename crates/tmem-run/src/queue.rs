//! Pages at home in the order of arrival, from which eviction chooses: how they get into the queue, and how those are found
//! that came without our knowing.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::fault::Scratch;
use crate::pages::{PageNumber, RangeSet};
use crate::shared::Shared;
use crate::space::{Inner, Space};
use crate::sys::{self, PAGE, Region};

/// Pages that arrived one behind the other, in the order of arrival.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// First page.
    pub page: PageNumber,
    /// Pages.
    pub pages: u32,
    /// Arrival number of the first, modulo 2^32.
    pub stamp: u32,
}

impl Space {
    /// Queues the present pages of a registered range.
    pub fn queue_present(&self, shared: &Shared, inner: &mut Inner, start: u64, end: u64) {
        for r in inner.present_runs(start, end) {
            inner.arrive(shared, r.start / PAGE, (r.end - r.start) / PAGE);
        }
    }

    /// Rebuilds the queue from what is present: for when it ran dry although memory is in use.
    pub fn rescan(&self, shared: &Shared, inner: &mut Inner) {
        if inner.rescanned.elapsed() < Duration::from_millis(20) {
            return;
        }
        inner.queue.clear();
        self.queue_missing(shared, inner);
        inner.rescanned = Instant::now();
    }

    /// Queues what is present and not queued.
    fn queue_missing(&self, shared: &Shared, inner: &mut Inner) {
        let mut queued = RangeSet::default();
        inner.queue.iter().for_each(|run| queued.insert(run.page * PAGE, (run.page + u64::from(run.pages)) * PAGE));
        let ranges: Vec<_> = inner.registered.iter().collect();
        for (start, end) in ranges {
            for r in inner.present_runs(start, end) {
                for (start, end) in queued.gaps(r.start, r.end) {
                    inner.arrive(shared, start / PAGE, (end - start) / PAGE);
                }
            }
        }
    }

    /// Queues what is present and not queued, once there is much of it, given all anonymous memory of the process in bytes.
    /// A page that was mapped to the zero page and could not be taken out becomes memory without a fault of ours.
    ///
    /// True if it looked.
    pub fn queue_hidden(&self, shared: &Shared, inner: &mut Inner, scratch: &mut Scratch, anonymous: u64) -> bool {
        const HIDDEN_PAGES_MIN: u64 = 1024;
        let hidden = |inner: &Inner| {
            let queued: u64 = inner.queue.iter().map(|run| u64::from(run.pages)).sum();
            (anonymous / PAGE).saturating_sub(queued + inner.in_flight.len() as u64)
        };
        // Some is never ours: small mappings, locked ones, those of files.
        let now = hidden(inner);
        inner.hidden = inner.hidden.min(now);
        if now < inner.hidden + HIDDEN_PAGES_MIN.max(anonymous / PAGE / 8) {
            return false;
        }
        self.queue_missing(shared, inner);
        inner.hidden = hidden(inner);
        for range in inner.registered.iter().collect::<Vec<_>>() {
            self.take_zeros(shared, inner, scratch, range);
        }
        self.publish(shared, inner);
        true
    }
}

impl Inner {
    /// Runs of present pages in a range; none while the process cannot be looked at.
    pub fn present_runs(&self, start: u64, end: u64) -> Vec<Region> {
        let Some(pagemap) = &self.pagemap else { return Vec::new() };
        let mut out = Vec::new();
        let mut regions = [Region::default(); 256];
        let mut at = start;
        while at < end {
            let Ok((found, next)) = sys::scan_present(pagemap.as_fd(), at, end, &mut regions) else { break };
            out.extend_from_slice(&regions[..found]);
            if next <= at {
                break;
            }
            at = next;
        }
        out
    }

    /// Appends pages to the queue of arrivals.
    pub fn arrive(&mut self, shared: &Shared, page: PageNumber, pages: u64) {
        let stamp = shared.arrived(pages);
        if let Some(last) = self.queue.back_mut()
            && last.page + u64::from(last.pages) == page
            && u64::from(last.pages) + pages <= 512
        {
            last.pages += pages as u32;
            return;
        }
        let mut at = 0;
        while at < pages {
            let n = (pages - at).min(512);
            self.queue.push_back(Run { page: page + at, pages: n as u32, stamp });
            at += n;
        }
    }
}
