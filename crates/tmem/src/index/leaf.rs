//! A leaf: the words of sixty-four neighbouring indexes, of which only those present take room.

use super::{LEAF_SLOTS, LeafKey, Word};

/// Words in order of their slots; `present` says which slots. The capacity doubles up to 64 as pages come and shrinks by
/// quarters as they go, so that a full leaf costs eight bytes per page and a lone page does not pay for its absent neighbours.
#[derive(Debug)]
pub(crate) struct Leaf {
    key: LeafKey,
    present: u64,
    words: Vec<Word>,
}

/// Room that is not worth giving back.
const CAPACITY_KEPT: usize = 4;

/// What the system's allocator adds to a block, roughly.
const BLOCK_OVERHEAD_BYTES: usize = 16;

impl Leaf {
    pub(crate) fn new(key: LeafKey) -> Self {
        Self { key, present: 0, words: Vec::new() }
    }

    pub(crate) fn key(&self) -> LeafKey {
        self.key
    }

    pub(crate) fn present(&self) -> u64 {
        self.present
    }

    /// Bytes that a leaf with room for `words` takes outside of the slab.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self.words.capacity() {
            0 => 0,
            words => words * size_of::<Word>() + BLOCK_OVERHEAD_BYTES,
        }
    }

    fn rank(&self, slot: u32) -> usize {
        (self.present & ((1 << slot) - 1)).count_ones() as usize
    }

    pub(crate) fn get(&self, slot: u32) -> Option<Word> {
        (self.present >> slot & 1 == 1).then(|| self.words[self.rank(slot)])
    }

    /// Puts a word where one stands, and says which. Takes no memory.
    pub(crate) fn replace(&mut self, slot: u32, word: Word) -> Option<Word> {
        let rank = self.rank(slot);
        (self.present >> slot & 1 == 1).then(|| std::mem::replace(&mut self.words[rank], word))
    }

    /// Puts a word and says which one stood there. Only the shard may change what a leaf takes: it keeps the account.
    pub(super) fn set(&mut self, slot: u32, word: Word) -> Option<Word> {
        if let Some(old) = self.replace(slot, word) {
            return Some(old);
        }
        let rank = self.rank(slot);
        if self.words.len() == self.words.capacity() {
            let capacity = (2 * self.words.len()).clamp(2, LEAF_SLOTS as usize);
            self.words.reserve_exact(capacity - self.words.len());
        }
        self.present |= 1 << slot;
        self.words.insert(rank, word);
        None
    }

    /// Takes a word out. When three eighths of the room are free a quarter is given back, so that a page that comes and goes
    /// does not move it each time; shrinking a block in place takes no other.
    pub(super) fn take(&mut self, slot: u32) -> Option<Word> {
        if self.present >> slot & 1 == 0 {
            return None;
        }
        let rank = self.rank(slot);
        self.present &= !(1 << slot);
        let word = self.words.remove(rank);
        let capacity = self.words.capacity();
        if capacity > CAPACITY_KEPT && self.words.len() <= capacity * 5 / 8 {
            self.words.shrink_to((capacity * 3 / 4).max(CAPACITY_KEPT));
        }
        Some(word)
    }

    /// The slots and words that are there; the words may be replaced.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Word)> {
        let present = self.present;
        let slots = (0..64).filter(move |slot| present >> slot & 1 == 1);
        slots.zip(self.words.iter_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ObjectId;
    use crate::pool::PoolId;

    #[test]
    fn a_leaf_behaves_like_an_array_of_options() {
        let key = LeafKey { object: ObjectId::from(1), pool: PoolId::new(0, 1), number: 0 };
        let mut leaf = Leaf::new(key);
        let mut model = [None; 64];
        let mut random = crate::testing::Random::new(3);
        for _ in 0..5000 {
            let slot = random.below(64) as u32;
            let word = Word::fill(random.below(1 << 40)).unwrap();
            if random.below(2) == 0 {
                assert_eq!(leaf.set(slot, word), model[slot as usize].replace(word));
            } else {
                assert_eq!(leaf.take(slot), model[slot as usize].take());
            }
            let (words, room) = (leaf.words.len(), leaf.words.capacity());
            assert!(room <= CAPACITY_KEPT || words > room / 2, "{words} words in room for {room}");
            let probe = random.below(64) as u32;
            assert_eq!(leaf.get(probe), model[probe as usize]);
        }
        let listed: Vec<_> = leaf.iter_mut().map(|(slot, word)| (slot, Some(*word))).collect();
        let expected: Vec<_> =
            (0..64).filter(|s| model[*s as usize].is_some()).map(|s| (s, model[s as usize])).collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn a_drained_leaf_gives_room_back() {
        let mut leaf = Leaf::new(LeafKey { object: ObjectId::from(1), pool: PoolId::new(0, 1), number: 0 });
        let full = |leaf: &mut Leaf| (0..64).for_each(|slot| assert_eq!(leaf.set(slot, Word::shared(slot)), None));
        full(&mut leaf);
        // Four in five go.
        (0..64).filter(|slot| slot % 5 > 0).for_each(|slot| assert!(leaf.take(slot).is_some()));
        assert_eq!((leaf.words.len(), leaf.words.capacity()), (13, 20));
        assert_eq!(leaf.get(60), Some(Word::shared(60)));
        (1..64).for_each(|slot| assert_eq!(leaf.take(slot).is_some(), slot % 5 == 0));
        assert_eq!((leaf.words.len(), leaf.words.capacity()), (1, 4));
        leaf.take(0);
        full(&mut leaf);
        assert_eq!(leaf.words.capacity(), 64);
    }
}
