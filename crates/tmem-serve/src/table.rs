//! A table from hashes to words, as dense as it can be kept: twenty bytes an entry, of which at least three quarters are in use.
//!
//! Linear probing in the order of the hashes (Amble and Knuth, *Ordered hash tables*, 1974): what is looked for stands at its home or
//! behind it, and whoever meets a larger hash need not look any further. So all entries stand in the order of their hashes from one end
//! to the other; the table grows by an eighth in one pass over both, and a part of it can be shown from any hash on.

use std::cmp::Ordering;

/// Of a hash of 128 bits 96 stand for the key; the lowest 32 are for others.
const UNUSED_BITS: u32 = 32;
/// Places behind the last home, for what is driven past it.
const SPILL_SLOTS: usize = 32;
/// The fewest homes.
const HOMES_MIN: usize = 8;

/// A hash in three parts, the highest first, and a word in two; the word is 0 where nothing is.
type Slot = [u32; 5];

const EMPTY: Slot = [0; 5];

fn slot(hash: u128, word: u64) -> Slot {
    let part = |shift: u32| (hash >> shift) as u32;
    [part(96), part(64), part(32), (word >> 32) as u32, word as u32]
}

fn word_of(slot: &Slot) -> u64 {
    u64::from(slot[3]) << 32 | u64::from(slot[4])
}

fn high_of(slot: &Slot) -> u64 {
    u64::from(slot[0]) << 32 | u64::from(slot[1])
}

/// What is compared: the hash without what is not used of it.
fn hash_of(slot: &Slot) -> u128 {
    u128::from(high_of(slot)) << 64 | u128::from(slot[2]) << UNUSED_BITS
}

fn is_empty(slot: &Slot) -> bool {
    (slot[3] | slot[4]) == 0
}

/// The table.
#[derive(Debug, Default)]
pub struct Table {
    slots: Vec<Slot>,
    /// Places that hashes are at home at.
    homes: usize,
    len: usize,
}

impl Table {
    /// Entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the heap.
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    fn home(&self, high: u64) -> usize {
        ((u128::from(high) * self.homes as u128) >> 64) as usize
    }

    /// Where a hash stands, or else would have to.
    fn search(&self, hash: u128) -> Result<usize, usize> {
        let hash = hash >> UNUSED_BITS << UNUSED_BITS;
        let mut at = self.home((hash >> 64) as u64);
        while let Some(slot) = self.slots.get(at).filter(|slot| !is_empty(slot)) {
            match hash_of(slot).cmp(&hash) {
                Ordering::Less => at += 1,
                Ordering::Equal => return Ok(at),
                Ordering::Greater => break,
            }
        }
        Err(at)
    }

    /// The word of a hash.
    pub fn get(&self, hash: u128) -> Option<u64> {
        self.search(hash).ok().map(|at| word_of(&self.slots[at]))
    }

    /// Puts a word that is not 0, and says which one stood there. A hash that is new needs room: see [`is_full`](Self::is_full).
    pub fn insert(&mut self, hash: u128, word: u64) -> Option<u64> {
        debug_assert_ne!(word, 0);
        let at = match self.search(hash) {
            Ok(at) => {
                let old = std::mem::replace(&mut self.slots[at], slot(hash, word));
                return Some(word_of(&old));
            }
            Err(at) => at,
        };
        let free =
            self.slots[at..].iter().position(is_empty).expect("the last place is free in a table that is not full");
        self.slots.copy_within(at..at + free, at + 1);
        self.slots[at] = slot(hash, word);
        self.len += 1;
        None
    }

    /// Takes a hash out, and says which word it had.
    pub fn remove(&mut self, hash: u128) -> Option<u64> {
        let at = self.search(hash).ok()?;
        let word = word_of(&self.slots[at]);
        // Those behind it that are not at home come one nearer.
        let stays = |(behind, slot): (usize, &Slot)| is_empty(slot) || self.home(high_of(slot)) == at + 1 + behind;
        let end =
            self.slots[at + 1..].iter().enumerate().position(stays).map_or(self.slots.len(), |behind| at + 1 + behind);
        self.slots.copy_within(at + 1..end, at);
        self.slots[end - 1] = EMPTY;
        self.len -= 1;
        Some(word)
    }

    /// Nothing new can be put before it has [grown](Self::grow).
    pub fn is_full(&self) -> bool {
        self.len >= self.homes - self.homes / 8 || self.slots.last().is_none_or(|last| !is_empty(last))
    }

    /// Bytes that it takes for a while to grow.
    pub fn bytes_to_grow(&self) -> usize {
        (self.homes_grown() + SPILL_SLOTS) * size_of::<Slot>()
    }

    fn homes_grown(&self) -> usize {
        self.homes + (self.homes / 8).max(HOMES_MIN)
    }

    /// Makes room for more.
    pub fn grow(&mut self) {
        self.rebuild(self.homes_grown());
    }

    /// Gives back what is much too much.
    pub fn shrink(&mut self) {
        if self.homes > 8 * HOMES_MIN && self.len * 4 < self.homes {
            self.rebuild(self.len * 3 / 2);
        }
    }

    fn rebuild(&mut self, homes: usize) {
        let old = std::mem::take(&mut self.slots);
        self.homes = homes;
        self.slots.reserve_exact(homes + SPILL_SLOTS);
        self.slots.resize(homes + SPILL_SLOTS, EMPTY);
        let mut next = 0;
        for slot in old.iter().filter(|slot| !is_empty(slot)) {
            let at = self.home(high_of(slot)).max(next);
            if at + 1 >= self.slots.len() {
                self.slots.resize(at + SPILL_SLOTS, EMPTY);
            }
            self.slots[at] = *slot;
            next = at + 1;
        }
    }

    /// All entries in the order of their hashes; what is not used of those is 0.
    pub fn iter(&self) -> impl Iterator<Item = (u128, u64)> {
        self.from(0)
    }

    /// Those from a hash on.
    pub fn from(&self, hash: u128) -> impl Iterator<Item = (u128, u64)> {
        let (Ok(start) | Err(start)) = self.search(hash);
        let slots = self.slots.get(start..).unwrap_or_default();
        slots.iter().filter(|slot| !is_empty(slot)).map(|slot| (hash_of(slot), word_of(slot)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use tmem::testing::Random;

    /// Hashes of `count` keys, made by `hash`.
    fn against_a_map(count: u64, hash: fn(u64) -> u128) {
        let (mut table, mut map) = (Table::default(), BTreeMap::new());
        let mut random = Random::new(count);
        for step in 0..200_000_u64 {
            let key = hash(random.below(count)) >> UNUSED_BITS << UNUSED_BITS;
            // What is not used of a hash makes no difference.
            let at = key | u128::from(random.number() as u32);
            // It fills for a while, and empties for a while.
            match random.below(if step / 20_000 % 2 == 0 { 4 } else { 9 }) {
                0..3 => {
                    if table.get(at).is_none() && table.is_full() {
                        table.grow();
                        assert!(!table.is_full());
                    }
                    assert_eq!(table.insert(at, step + 1), map.insert(key, step + 1), "step {step}");
                }
                3 => assert_eq!(table.get(at), map.get(&key).copied(), "step {step}"),
                _ => {
                    assert_eq!(table.remove(at), map.remove(&key), "step {step}");
                    if step % 500 == 0 {
                        table.shrink();
                    }
                }
            }
            assert_eq!(table.len(), map.len());
            if step % 997 == 0 {
                assert!(table.iter().eq(map.iter().map(|(hash, word)| (*hash, *word))), "step {step}");
                assert!(table.from(at).eq(map.range(key..).map(|(hash, word)| (*hash, *word))), "step {step}");
            }
        }
        assert!(map.len() as u64 > count / 10, "{} of {count} were there at the end", map.len());
    }

    fn spread(number: u64) -> u128 {
        u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }

    #[test]
    fn it_is_like_a_map() {
        against_a_map(5000, spread);
        against_a_map(50, spread);
    }

    /// All are at home in the first place, in the last one, or in these two.
    #[test]
    fn hashes_that_are_nearly_equal() {
        against_a_map(300, |number| u128::from(number) << UNUSED_BITS);
        against_a_map(300, |number| u128::from(u64::MAX) << 64 | u128::from(number) << UNUSED_BITS);
        against_a_map(600, |number| spread(number % 2 + 1) << 64 | u128::from(number) << UNUSED_BITS);
    }

    #[test]
    fn it_stays_dense_while_it_grows() {
        let (mut table, mut random) = (Table::default(), Random::new(1));
        let (mut worst, mut grown) = (0_f64, 0);
        for word in 1..300_000 {
            let hash = u128::from(random.number()) << 64 | u128::from(random.number());
            if table.is_full() {
                table.grow();
                grown += 1;
            }
            assert_eq!(table.insert(hash, word), None);
            if word > 3000 {
                worst = worst.max(table.bytes() as f64 / word as f64);
            }
        }
        assert!(worst < 27.0, "{worst:.1} bytes an entry, grown {grown} times");
    }

    #[test]
    fn an_empty_one_takes_nothing() {
        let mut table = Table::default();
        assert_eq!((table.get(5), table.remove(5), table.len(), table.bytes()), (None, None, 0, 0));
        assert!(table.is_full() && table.iter().next().is_none());
    }
}
