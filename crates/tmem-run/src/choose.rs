//! Which pages leave: from the old end of the queue, those that nobody seems to need.

use std::ops::Range;
use std::os::fd::AsFd;

use crate::evict::MESSAGE_PAGES_MAX;
use crate::pages::{PageNumber, Place};
use crate::proc;
use crate::queue::Run;
use crate::shared::Shared;
use crate::space::{Inner, Space};
use crate::sys::{self, PAGE, Region};

/// Pages looked at for one message: bounds how long the lock is held when most of them are hot.
pub const LOOKS_MAX: usize = 512;

/// Chooses what leaves: runs of present pages from the old end of the queue.
pub fn choose(
    shared: &Shared,
    space: &Space,
    inner: &mut Inner,
    held: &[PageNumber],
) -> (Vec<Range<PageNumber>>, usize) {
    if inner.queue.is_empty() {
        space.rescan(shared, inner);
    }
    let mut out: Vec<Range<PageNumber>> = Vec::new();
    let mut total = 0;
    let mut looks = 0;
    let mut exclusive = [true; 512];
    while total < MESSAGE_PAGES_MAX && looks < LOOKS_MAX {
        let Some(run) = inner.queue.pop_front() else { break };
        let mut stopped_at = None;
        if inner.forked
            && let Some(pagemap) = &inner.pagemap
        {
            sys::exclusive_pages(pagemap, run.page, &mut exclusive[..run.pages as usize]);
        }
        for page in present(inner, run.page, run.pages.into()) {
            if total == MESSAGE_PAGES_MAX || looks >= LOOKS_MAX {
                stopped_at = Some(page);
                break;
            }
            looks += 1;
            let meta = inner.pages.get(page);
            if meta.place() != Place::Home || meta.is_going() || inner.in_flight.contains(&page) {
                continue;
            }
            if meta.credit() > 0 || held.contains(&page) {
                inner.pages.set(page, meta.with_credit(meta.credit().saturating_sub(1)));
                inner.arrive(shared, page, 1);
                continue;
            }
            if inner.forked && !meta.is_stuck() && !exclusive[(page - run.page) as usize] {
                // To take it from this process alone frees nothing: not before those that are its own.
                inner.pages.set(page, meta.stuck(true));
                inner.arrive(shared, page, 1);
                continue;
            }
            match out.last_mut() {
                Some(last) if last.end == page && meta.is_stuck() == inner.pages.get(last.start).is_stuck() => {
                    last.end += 1
                }
                _ => out.push(page..page + 1),
            }
            // The queue may hold a page twice: it is chosen once.
            inner.in_flight.insert(page);
            total += 1;
        }
        if let Some(page) = stopped_at {
            let pages = (run.page + u64::from(run.pages) - page) as u32;
            inner.queue.push_front(Run { page, pages, stamp: run.stamp });
        }
    }
    (out, looks)
}

/// The pages of a run that are registered and in memory.
fn present(inner: &Inner, page: PageNumber, pages: u64) -> Vec<PageNumber> {
    if pages == 1 && !inner.pages.get(page).is_stuck() {
        // A MOVE finds out as cheaply as a scan. Not so the populating of a stuck page: it would wait for us.
        return inner.registered.containing(page * PAGE).map(|_| page).into_iter().collect();
    }
    let Some(pagemap) = &inner.pagemap else { return Vec::new() };
    let mut out = Vec::with_capacity(pages as usize);
    let mut regions = [Region::default(); 256];
    for (start, end) in inner.registered.overlaps(page * PAGE, (page + pages) * PAGE) {
        // A run has at most 512 pages, so 256 regions hold every pattern of presence.
        if let Ok((found, _)) = sys::scan_present(pagemap.as_fd(), start, end, &mut regions) {
            out.extend(regions[..found].iter().flat_map(|r| r.start / PAGE..r.end / PAGE));
        }
    }
    out
}

/// Pages that the kernel itself writes when a thread exits. It cannot wait for us there (an exiting thread does not
/// wait for userfaultfd), so `pthread_join` would hang: they stay. Thread control blocks are found by the robust
/// list that the C library registers in them.
///
/// They are listed before the lock is taken, because that takes long where there are many threads. A thread that starts
/// meanwhile has just written to its block, which makes it the youngest page there is, not one that is chosen.
pub fn kernel_touched_pages(pid: i32) -> Vec<PageNumber> {
    let heads = proc::threads(pid).into_iter().map(sys::robust_list);
    heads.filter(|&head| head != 0).flat_map(|head| [head / PAGE, (head - 64) / PAGE, (head + 64) / PAGE]).collect()
}
