//! The holes of `xvmalloc`: free space in frames that are in use, found by size.
//!
//! Lists of holes by size, eight bytes apart, and above them two levels of bits that say which lists are not empty, as in
//! TLSF (Masmano et al., ECRTS 2004). Lists and their links cost no memory but that of the holes themselves: a hole has a
//! tag in its first word and in its last one, so that both of its neighbours find it, and links behind the first.
//!
//! | word | |
//! |---|---|
//! | first | bytes of the hole, and the flag [`DEAD`], which a zpage's header does not have |
//! | 1 | place of the next hole in the list, in words, bits 0-31 |
//! | 2 | place of the one before, likewise |
//! | 3 | bits 32-47 of both: the one before in the high half |
//! | last | as the first |
//!
//! What is too small for links is tagged but in no list; it is found when a neighbour of it is freed.

use std::sync::atomic::Ordering::Relaxed;

use super::header::{ALIGN, DEAD};
use crate::frames::Frames;
use crate::page::PAGE_SIZE;

/// The smallest hole in a list.
pub(super) const HOLE_BYTES_MIN: usize = 20;
const STEP_BYTES: usize = 8;
const LISTS: usize = PAGE_SIZE / STEP_BYTES;
/// How many holes a search looks at.
const LOOKS_MAX: usize = 32;
/// The end of a list.
const NOWHERE: u64 = (1 << 48) - 1;

/// The holes of one class.
#[derive(Debug)]
pub(super) struct Holes {
    /// Which words of `filled` are not zero.
    words: u8,
    /// Which lists are not empty.
    filled: [u64; LISTS / 64],
    first: [u64; LISTS],
}

const _: () = assert!(LISTS / 64 <= 8, "the upper level has eight bits");

/// The bytes of a hole that starts at `at`; `None` if a zpage starts there.
pub(super) fn hole_at(frames: &Frames, at: usize) -> Option<usize> {
    let tag = frames.word(at).load(Relaxed);
    (tag & DEAD != 0).then_some((tag & !DEAD) as usize)
}

/// The bytes of the hole that ends at `end`.
pub(super) fn hole_before(frames: &Frames, end: usize) -> usize {
    hole_at(frames, end - ALIGN).expect("who is marked as behind a hole is")
}

fn links(frames: &Frames, at: usize) -> (u64, u64) {
    let word = |number: usize| u64::from(frames.word(at + number * ALIGN).load(Relaxed));
    (word(1) | (word(3) & 0xffff) << 32, word(2) | word(3) >> 16 << 32)
}

fn set_links(frames: &Frames, at: usize, after: u64, before: u64) {
    let high = (after >> 32 | before >> 32 << 16) as u32;
    for (number, word) in [(1, after as u32), (2, before as u32), (3, high)] {
        frames.word(at + number * ALIGN).store(word, Relaxed);
    }
}

/// Places in lists are counted in words.
fn place(at: usize) -> u64 {
    (at / ALIGN) as u64
}

fn at(place: u64) -> Option<usize> {
    (place != NOWHERE).then_some(place as usize * ALIGN)
}

impl Holes {
    pub(super) fn new() -> Self {
        Self { words: 0, filled: [0; LISTS / 64], first: [NOWHERE; LISTS] }
    }

    /// Makes a hole. The place belongs to no zpage.
    pub(super) fn add(&mut self, frames: &Frames, start: usize, bytes: usize) {
        debug_assert!(start % PAGE_SIZE + bytes <= PAGE_SIZE && bytes < PAGE_SIZE);
        let tag = bytes as u32 | DEAD;
        frames.word(start).store(tag, Relaxed);
        frames.word(start + bytes - ALIGN).store(tag, Relaxed);
        if bytes < HOLE_BYTES_MIN {
            return;
        }
        let list = bytes / STEP_BYTES;
        let after = std::mem::replace(&mut self.first[list], place(start));
        set_links(frames, start, after, NOWHERE);
        if let Some(after) = at(after) {
            set_links(frames, after, links(frames, after).0, place(start));
        }
        self.filled[list / 64] |= 1 << (list % 64);
        self.words |= 1 << (list / 64);
    }

    /// Takes a hole out of its list.
    pub(super) fn remove(&mut self, frames: &Frames, start: usize, bytes: usize) {
        debug_assert_eq!(hole_at(frames, start), Some(bytes));
        if bytes < HOLE_BYTES_MIN {
            return;
        }
        let list = bytes / STEP_BYTES;
        let (after, before) = links(frames, start);
        match at(before) {
            Some(before) => set_links(frames, before, after, links(frames, before).1),
            None => self.first[list] = after,
        }
        if let Some(after) = at(after) {
            set_links(frames, after, links(frames, after).0, before);
        }
        if self.first[list] == NOWHERE {
            self.filled[list / 64] &= !(1 << (list % 64));
            if self.filled[list / 64] == 0 {
                self.words &= !(1 << (list / 64));
            }
        }
    }

    /// A hole of at least `bytes` that `suits`, from the smallest lists that hold nothing smaller. Gives up after a bounded
    /// number of holes.
    pub(super) fn find(&self, frames: &Frames, bytes: usize, suits: impl Fn(usize) -> bool) -> Option<usize> {
        let mut looks = 0;
        let mut list = bytes.div_ceil(STEP_BYTES);
        while let Some(filled) = self.filled_from(list) {
            let mut hole = at(self.first[filled]);
            while let Some(start) = hole {
                if suits(start) {
                    return Some(start);
                }
                looks += 1;
                if looks == LOOKS_MAX {
                    return None;
                }
                hole = at(links(frames, start).0);
            }
            list = filled + 1;
        }
        None
    }

    /// The first list that is not empty, from `list` on.
    fn filled_from(&self, list: usize) -> Option<usize> {
        let word = list / 64;
        let rest = self.filled.get(word)? >> (list % 64);
        if rest != 0 {
            return Some(list + rest.trailing_zeros() as usize);
        }
        let words = u32::from(self.words) >> (word + 1);
        let word = word + 1 + words.trailing_zeros() as usize;
        (words != 0).then(|| word * 64 + self.filled[word].trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_hole_that_surely_fits_is_found() {
        let frames = Frames::reserve(1 << 20, 1 << 20).unwrap();
        let mut holes = Holes::new();
        let sizes = [16, 20, 24, 100, 104, 2000, 4092];
        let starts: Vec<usize> = (0..).map(|frame| frame * PAGE_SIZE).take(sizes.len()).collect();
        for (start, bytes) in starts.iter().zip(sizes) {
            holes.add(&frames, *start, bytes);
            assert_eq!((hole_at(&frames, *start), hole_before(&frames, start + bytes)), (Some(bytes), bytes));
        }
        let found = |holes: &Holes, bytes| holes.find(&frames, bytes, |_| true).map(|at| sizes[at / PAGE_SIZE]);
        assert_eq!(found(&holes, 16), Some(20), "what is in no list is not found");
        assert_eq!(found(&holes, 24), Some(24));
        assert_eq!(found(&holes, 28), Some(100));
        assert_eq!(found(&holes, 104), Some(104));
        assert_eq!(found(&holes, 108), Some(2000));
        assert_eq!(found(&holes, 4096), None);
        assert_eq!(holes.find(&frames, 104, |at| at != starts[4]), Some(starts[5]));
        for (start, bytes) in starts.into_iter().zip(sizes).rev() {
            holes.remove(&frames, start, bytes);
        }
        assert_eq!((holes.words, holes.filled), (0, [0; 8]));
        assert_eq!(found(&holes, 20), None);
    }

    #[test]
    fn links_reach_over_a_whole_part() {
        let frames = Frames::reserve(1 << 20, 1 << 20).unwrap();
        let (after, before) = (place(super::super::PART_BYTES_MAX - 4), NOWHERE - 1);
        set_links(&frames, 0, after, before);
        assert_eq!(links(&frames, 0), (after, before));
    }
}
