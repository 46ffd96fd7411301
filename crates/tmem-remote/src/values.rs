//! Where every value lies, which no peer knows.

use std::collections::BTreeMap;
use std::ops::Range;

use tmem::TIER_BLOCK_BYTES;

use crate::lock;
use crate::sync::{Mutex, MutexGuard};

/// Keys of a region hash to one slot of a cluster, so that several of them can be asked for together.
pub(crate) const REGION_BLOCKS: u64 = (1 << 20) / TIER_BLOCK_BYTES as u64;
/// 60 KiB: with what Redis keeps of it, just below a size of which its allocator hands out memory.
pub(crate) const VALUE_BLOCKS: u64 = 15;
/// Under loom every lock is one more order.
const SHARDS: usize = if cfg!(loom) { 1 } else { 64 };

/// A set of peers, as bits.
pub(crate) type PeerSet = u8;

pub(crate) fn bit(peer: usize) -> PeerSet {
    1 << peer
}

/// The peers of a set.
pub(crate) fn members(set: PeerSet) -> impl Iterator<Item = usize> {
    (0..PeerSet::BITS as usize).filter(move |peer| set & bit(*peer) != 0)
}

/// One value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// Its first block in the tier.
    pub(crate) start: u64,
    pub(crate) blocks: u64,
    /// Its number, which is in its key and never used twice.
    pub(crate) number: u64,
    /// XXH3-64 of its bytes: what is copied from peer to peer has to be what was written.
    pub(crate) check: u64,
    /// Who has it.
    pub(crate) peers: PeerSet,
}

impl Value {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.blocks
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.blocks * TIER_BLOCK_BYTES as u64
    }

    pub(crate) fn region(&self) -> u64 {
        self.start / REGION_BLOCKS
    }

    pub(crate) fn is_at(&self, peer: usize) -> bool {
        self.peers & bit(peer) != 0
    }
}

/// Values that are next to each other, by region: only what is in one can be asked for together.
pub(crate) fn by_region(values: &[Value]) -> impl Iterator<Item = &[Value]> {
    values.chunk_by(|one, next| one.region() == next.region())
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    blocks: u8,
    peers: PeerSet,
    number: u64,
    check: u64,
}

type Shard = BTreeMap<u64, Entry>;

/// All values, by their first block. None of them reaches over the end of its region.
#[derive(Debug)]
pub(crate) struct Values {
    shards: Box<[Mutex<Shard>]>,
}

fn value((start, entry): (&u64, &Entry)) -> Value {
    let Entry { blocks, peers, number, check } = *entry;
    Value { start: *start, blocks: blocks.into(), number, check, peers }
}

/// The parts of a range of blocks that lie in one region each.
fn regions(blocks: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let Range { start, end } = *blocks;
    (start / REGION_BLOCKS..end.div_ceil(REGION_BLOCKS))
        .map(move |region| start.max(region * REGION_BLOCKS)..end.min((region + 1) * REGION_BLOCKS))
}

/// Into which values a write of these blocks is cut.
pub(crate) fn cut(blocks: &Range<u64>) -> Vec<Range<u64>> {
    let cut_one = |part: Range<u64>| {
        let (start, end) = (part.start, part.end);
        (start..end).step_by(VALUE_BLOCKS as usize).map(move |at| at..end.min(at + VALUE_BLOCKS))
    };
    regions(blocks).flat_map(cut_one).collect()
}

/// The values of a shard that overlap a part of one region.
fn overlapping(shard: &Shard, part: &Range<u64>) -> Vec<Value> {
    let from = part.start.saturating_sub(VALUE_BLOCKS - 1);
    shard.range(from..part.end).map(value).filter(|value| value.end() > part.start).collect()
}

impl Values {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Shard::new())).collect() }
    }

    fn shard(&self, start: u64) -> MutexGuard<'_, Shard> {
        let number = (start / REGION_BLOCKS) as usize % SHARDS;
        lock(&self.shards[number])
    }

    /// The values that hold these blocks, in order; nothing if one of the blocks is in none of them.
    pub(crate) fn covering(&self, blocks: &Range<u64>) -> Option<Vec<Value>> {
        let mut found: Vec<Value> = Vec::new();
        let mut end = blocks.start;
        for part in regions(blocks) {
            for value in overlapping(&self.shard(part.start), &part) {
                if value.start > end {
                    return None;
                }
                end = value.end();
                found.push(value);
            }
        }
        (end >= blocks.end).then_some(found)
    }

    /// Takes a value in and answers the ones that it replaces, whole.
    pub(crate) fn insert(&self, value: Value) -> Vec<Value> {
        let mut shard = self.shard(value.start);
        let replaced = overlapping(&shard, &(value.start..value.end()));
        for one in &replaced {
            shard.remove(&one.start);
        }
        let Value { start, blocks, number, check, peers } = value;
        shard.insert(start, Entry { blocks: blocks as u8, peers, number, check });
        replaced
    }

    /// Forgets the values that begin in these blocks and answers them.
    pub(crate) fn remove(&self, blocks: &Range<u64>) -> Vec<Value> {
        let mut removed = Vec::new();
        for part in regions(blocks) {
            let mut shard = self.shard(part.start);
            let all: Vec<Value> = shard.range(part).map(value).collect();
            for one in &all {
                shard.remove(&one.start);
            }
            removed.extend(all);
        }
        removed
    }

    /// Says anew who has a value, if it is still there.
    pub(crate) fn set_peers(&self, of: &Value, change: impl FnOnce(PeerSet) -> PeerSet) -> bool {
        let mut shard = self.shard(of.start);
        let entry = shard.get_mut(&of.start).filter(|entry| entry.number == of.number);
        entry.map(|entry| entry.peers = change(entry.peers)).is_some()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// All values, a part of them at a time.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Vec<Value>> {
        self.shards.iter().map(|shard| lock(shard).iter().map(value).collect())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn value(start: u64, blocks: u64, number: u64) -> Value {
        Value { start, blocks, number, check: 0, peers: 1 }
    }

    #[test]
    fn writes_are_cut_at_regions_and_into_values() {
        assert_eq!(cut(&(0..16)), [0..15, 15..16]);
        assert_eq!(cut(&(250..260)), [250..256, 256..260]);
        assert_eq!(cut(&(7..22)).first(), Some(&(7..22)));
        assert!(cut(&(8..8)).is_empty());
    }

    #[test]
    fn blocks_are_found_in_their_values() {
        let values = Values::new();
        for (start, blocks) in [(240, 15), (255, 1), (256, 15)] {
            assert!(values.insert(value(start, blocks, start)).is_empty());
        }
        let starts =
            |blocks| values.covering(&blocks).map(|all| all.iter().map(|value| value.start).collect::<Vec<_>>());
        assert_eq!(starts(254..255), Some(vec![240]));
        assert_eq!(starts(254..258), Some(vec![240, 255, 256]));
        assert_eq!(starts(270..271), Some(vec![256]));
        assert_eq!(starts(270..272), None);
        assert_eq!(starts(239..241), None);
    }

    #[test]
    fn what_is_written_over_is_gone_and_named() {
        let values = Values::new();
        values.insert(value(0, 15, 1));
        values.insert(value(15, 15, 2));
        assert_eq!(values.insert(value(10, 6, 3)), [value(0, 15, 1), value(15, 15, 2)]);
        assert_eq!(values.covering(&(10..16)), Some(vec![value(10, 6, 3)]));
        assert_eq!(values.covering(&(9..16)), None);
        assert_eq!(values.remove(&(0..256)), [value(10, 6, 3)]);
        assert_eq!((values.len(), values.parts().flatten().count()), (0, 0));
    }

    #[test]
    fn who_has_a_value_is_said_of_that_one_alone() {
        let values = Values::new();
        values.insert(value(0, 15, 1));
        assert!(values.set_peers(&value(0, 15, 1), |peers| peers | 2));
        values.insert(value(0, 15, 2));
        assert!(!values.set_peers(&value(0, 15, 1), |peers| peers | 4));
        assert_eq!(values.covering(&(0..1)), Some(vec![value(0, 15, 2)]));
    }
}
