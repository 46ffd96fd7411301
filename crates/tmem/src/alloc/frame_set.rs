//! A set of frame numbers that finds its lowest quickly: bits, and above them one bit for each 64 that are not all zero.

/// The set. It takes no numbers that it was not [grown](Self::grow) for.
#[derive(Debug, Default)]
pub(super) struct FrameSet {
    bits: Vec<u64>,
    words: Vec<u64>,
    len: u32,
}

impl FrameSet {
    /// What a set takes that can hold the numbers below `frames`.
    pub(super) fn table_bytes(frames: usize) -> usize {
        let bits = frames.div_ceil(64);
        (bits + bits.div_ceil(64)) * size_of::<u64>()
    }

    /// Makes room for the numbers below `frames`.
    pub(super) fn grow(&mut self, frames: usize) {
        let bits = frames.div_ceil(64);
        for (table, len) in [(&mut self.bits, bits), (&mut self.words, bits.div_ceil(64))] {
            table.reserve_exact(len.saturating_sub(table.len()));
            table.resize(len, 0);
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    fn holds(&self, frame: u32) -> bool {
        let frame = frame as usize;
        self.bits.get(frame / 64).is_some_and(|bits| bits >> (frame % 64) & 1 != 0)
    }

    pub(super) fn insert(&mut self, frame: u32) {
        debug_assert!(!self.holds(frame), "frame {frame} is in the set already");
        let word = frame as usize / 64;
        self.bits[word] |= 1 << (frame % 64);
        self.words[word / 64] |= 1 << (word % 64);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, frame: u32) {
        debug_assert!(self.holds(frame), "frame {frame} is not in the set");
        let word = frame as usize / 64;
        self.bits[word] &= !(1 << (frame % 64));
        if self.bits[word] == 0 {
            self.words[word / 64] &= !(1 << (word % 64));
        }
        self.len -= 1;
    }

    /// The lowest number.
    pub(super) fn first(&self) -> Option<u32> {
        let (at, words) = self.words.iter().enumerate().find(|(_, words)| **words != 0)?;
        let word = at * 64 + words.trailing_zeros() as usize;
        Some((word * 64) as u32 + self.bits[word].trailing_zeros())
    }

    /// How many numbers follow each other from `first` on.
    pub(super) fn run(&self, first: u32) -> u32 {
        (first..).take_while(|frame| self.holds(*frame)).count() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_comes_first() {
        let mut set = FrameSet::default();
        assert_eq!((set.first(), set.run(0)), (None, 0));
        set.grow(70);
        set.grow(10_000);
        for frame in [9_999, 64, 63, 62, 5_000] {
            set.insert(frame);
        }
        assert_eq!((set.first(), set.run(62), set.len()), (Some(62), 3, 5));
        (62..65).for_each(|frame| set.remove(frame));
        assert_eq!((set.first(), set.run(5_000)), (Some(5_000), 1));
        set.remove(5_000);
        set.remove(9_999);
        assert_eq!((set.first(), set.len()), (None, 0));
    }
}
