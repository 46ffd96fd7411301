//! Sequential access, seen through faults: how many neighbours to bring along.
//!
//! A fault right behind (or right before) what an earlier fault brought back shows that all of it was wanted: the
//! window doubles. A fault anywhere else starts over with one page, so random access pays nothing. This is the
//! kernel's read-ahead idea (mm/readahead.c) applied to anonymous memory, several streams at a time.

use crate::pages::PageNumber;

const STREAMS: usize = 8;
/// Greatest window in pages.
pub const WINDOW_MAX: u64 = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The page whose fault would continue the stream upward.
    above: PageNumber,
    /// The page whose fault would continue the stream downward.
    below: PageNumber,
    window: u64,
    used: u64,
}

/// The streams of one address space.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    streams: [Stream; STREAMS],
    clock: u64,
}

/// What to bring along with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pages, the faulting one included.
    pub pages: u64,
    /// True if they lie below the faulting page.
    pub downward: bool,
    stream: usize,
}

impl Streams {
    /// The window for a fault at `page`.
    pub fn window(&mut self, page: PageNumber) -> Window {
        self.clock += 1;
        let found = self.streams.iter().position(|s| s.window > 0 && (s.above == page || s.below == page));
        let stream = found.unwrap_or_else(|| {
            let oldest = (0..STREAMS).min_by_key(|&i| self.streams[i].used).expect("there are streams");
            self.streams[oldest] = Stream { above: 0, below: 0, window: 0, used: 0 };
            oldest
        });
        let s = &mut self.streams[stream];
        let downward = found.is_some() && s.below == page;
        s.window = if found.is_some() { (s.window * 2).min(WINDOW_MAX) } else { 1 };
        s.used = self.clock;
        Window { pages: s.window, downward, stream }
    }

    /// Notes that the pages `first .. first + pages` came for this window.
    pub fn brought(&mut self, window: Window, first: PageNumber, pages: u64) {
        let s = &mut self.streams[window.stream];
        if window.downward {
            s.below = first.wrapping_sub(1);
            s.above = u64::MAX;
        } else {
            s.above = first + pages;
            s.below = if s.window == 1 { first.wrapping_sub(1) } else { u64::MAX };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_grows_and_random_does_not() {
        let mut s = Streams::default();
        let (mut page, mut sizes) = (1000, Vec::new());
        for _ in 0..9 {
            let w = s.window(page);
            s.brought(w, page, w.pages);
            sizes.push(w.pages);
            page += w.pages;
        }
        assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        for i in 0..100 {
            assert_eq!(s.window(1_000_000 + i * 977).pages, 1);
        }
    }

    #[test]
    fn downward_streams_are_seen() {
        let mut s = Streams::default();
        let w = s.window(5000);
        s.brought(w, 5000, 1);
        let w = s.window(4999);
        assert_eq!((w.pages, w.downward), (2, true));
        s.brought(w, 4998, 2);
        let w = s.window(4997);
        assert_eq!((w.pages, w.downward), (4, true));
    }
}
