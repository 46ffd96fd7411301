//! Generated traces: who asks for which page in which order.

use tmem::PoolKind;
use tmem::testing::Random;

use super::zipf::{Drifting, unit};

/// One request. Pages are numbers, taken modulo the number of pages at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A put, whether the key holds a page or not.
    Put { key: u32, page: u32 },
    /// A get that takes the page out, as a page that is swapped in.
    Take { key: u32 },
    /// A get, and a put if it missed, as a page of a file that is read.
    Fetch { key: u32 },
}

/// A workload.
pub struct Trace {
    pub name: &'static str,
    pub kind: PoolKind,
    /// The budget beside fixed bytes, as a share of what all live pages take compressed when there are most of them.
    pub share: f64,
    pub ops: Vec<Op>,
}

impl Trace {
    pub fn is_cache(&self) -> bool {
        self.kind == PoolKind::Ephemeral
    }

    /// What all live pages take when there are most of them, if none is ever dropped or refused.
    pub fn working_set_bytes(&self, packed_bytes: &[u32]) -> u64 {
        let mut live = std::collections::HashMap::new();
        let (mut now, mut most) = (0, 0);
        for &op in &self.ops {
            let (key, bytes) = match op {
                Op::Put { key, page } => (key, size(packed_bytes, page)),
                Op::Fetch { key } => (key, size(packed_bytes, key)),
                Op::Take { key } => (key, 0),
            };
            now = now + bytes - live.insert(key, bytes).unwrap_or(0);
            most = most.max(now);
        }
        most
    }
}

/// The bytes of a page by its number. A cache holds the page that has the number of its key.
pub fn size(packed_bytes: &[u32], page: u32) -> u64 {
    packed_bytes[page as usize % packed_bytes.len()].into()
}

/// Room for persistent pages beside their compressed bytes: a store that loses more than this to its own order refuses some.
const PERSISTENT_SHARE: f64 = 1.1;

/// All traces. `cache_share` is the share of its working set that a cache gets.
pub fn all(quick: bool, cache_share: f64) -> Vec<Trace> {
    let scale = if quick { 5 } else { 1 };
    let (keys, requests) = (30_000 / scale, 300_000 / scale);
    let persistent = |name, ops| Trace { name, kind: PoolKind::Persistent, share: PERSISTENT_SHARE, ops };
    let cache = |name, share, ops| Trace { name, kind: PoolKind::Ephemeral, share, ops };
    vec![
        cache("cache, Zipf 0.8", cache_share, zipf(keys, requests, 0.8)),
        cache("cache, Zipf 1.0", cache_share, zipf(keys, requests, 1.0)),
        // Most of the working set lives for a moment only: a third of the share that the others get.
        cache("mixed ages", cache_share / 3.0, mixed_ages(keys / 4, requests)),
        persistent("swap, random", swap(keys, requests, 0.0)),
        persistent("swap, in runs", swap(keys, requests, 0.95)),
        persistent("fill, drain", fill_then_drain(keys)),
        persistent("overwrite", overwrite(keys, requests)),
    ]
}

/// Requests between two changes of the hot set.
const DRIFT_EVERY: u32 = 50;

fn zipf(keys: u32, requests: u32, exponent: f64) -> Vec<Op> {
    let mut random = Random::new(11);
    let mut drifting = Drifting::new(keys, exponent, &mut random);
    let fetch = |number: u32| {
        if number.is_multiple_of(DRIFT_EVERY) {
            drifting.drift(&mut random);
        }
        Op::Fetch { key: drifting.key(&mut random) }
    };
    (0..requests).map(fetch).collect()
}

/// Four of ten requests go to keys that stay in use all the time, some more than others; the rest to keys that are asked
/// for three times within a thousand requests and never again.
fn mixed_ages(long_lived: u32, requests: u32) -> Vec<Op> {
    const SOON: u64 = 1000;
    let mut random = Random::new(12);
    let drifting = Drifting::new(long_lived, 0.6, &mut random);
    let mut next = long_lived;
    let mut due = std::collections::BTreeSet::new();
    let mut ops = Vec::new();
    for now in 0..u64::from(requests) {
        let key = if unit(&mut random) < 0.4 {
            drifting.key(&mut random)
        } else if let Some(&(_, key)) = due.first().filter(|(at, _)| *at <= now) {
            due.pop_first();
            key
        } else {
            for _ in 0..2 {
                due.insert((now + 1 + random.below(SOON), next));
            }
            next += 1;
            next - 1
        };
        ops.push(Op::Fetch { key });
    }
    ops
}

/// A program larger than its RAM: for each page that comes in, the one that came in longest ago goes out, changed or not. With a
/// probability of `run` the next one that comes in is the neighbour of the last.
fn swap(keys: u32, requests: u32, run: f64) -> Vec<Op> {
    let mut random = Random::new(13);
    let resident_max = keys / 4;
    // Pages that are with the program; the rest is in the store.
    let mut resident: std::collections::VecDeque<u32> = (0..resident_max).collect();
    let mut ops: Vec<Op> = (resident_max..keys).map(|key| Op::Put { key, page: key }).collect();
    let mut is_out: Vec<bool> = (0..keys).map(|key| key >= resident_max).collect();
    let mut last = 0;
    while ops.len() < (keys + requests) as usize {
        let neighbour = (last + 1) % keys;
        let key = match unit(&mut random) < run && is_out[neighbour as usize] {
            true => neighbour,
            false => random.below(keys.into()) as u32,
        };
        last = key;
        if !is_out[key as usize] {
            continue;
        }
        ops.push(Op::Take { key });
        is_out[key as usize] = false;
        resident.push_back(key);
        if let Some(oldest) = resident.pop_front() {
            let changed = if random.below(2) == 0 { random.below(keys.into()) as u32 } else { 0 };
            ops.push(Op::Put { key: oldest, page: oldest + changed });
            is_out[oldest as usize] = true;
        }
    }
    ops
}

/// Fills up, loses eight of ten at random, fills up with others, four times over; ends drained.
fn fill_then_drain(keys: u32) -> Vec<Op> {
    let mut random = Random::new(14);
    let mut ops = Vec::new();
    let mut held = vec![false; keys as usize];
    for round in 0..4 {
        for key in 0..keys {
            if !held[key as usize] {
                ops.push(Op::Put { key, page: key + round * 7919 });
                held[key as usize] = true;
            }
        }
        let mut left: Vec<u32> = (0..keys).collect();
        while left.len() > keys as usize / 5 {
            let key = left.swap_remove(random.below(left.len() as u64) as usize);
            ops.push(Op::Take { key });
            held[key as usize] = false;
        }
    }
    ops
}

/// A disk: all blocks are written once, then again and again, some more than others, each time with other contents.
fn overwrite(keys: u32, requests: u32) -> Vec<Op> {
    let mut random = Random::new(15);
    let drifting = Drifting::new(keys, 0.6, &mut random);
    let mut ops: Vec<Op> = (0..keys).map(|key| Op::Put { key, page: key }).collect();
    ops.extend(
        (0..requests).map(|_| Op::Put { key: drifting.key(&mut random), page: random.below(keys.into()) as u32 }),
    );
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_ask_for_what_is_there() {
        for trace in all(true, 0.25) {
            let mut held = std::collections::HashSet::new();
            let mut again = 0;
            for &op in &trace.ops {
                match op {
                    Op::Put { key, .. } => again += u32::from(!held.insert(key)),
                    Op::Fetch { key } => assert!(held.insert(key) || trace.is_cache()),
                    Op::Take { key } => assert!(held.remove(&key), "{}: {key} is not there", trace.name),
                }
            }
            assert_eq!(again > 0, trace.name == "overwrite", "{}", trace.name);
        }
    }

    #[test]
    fn a_short_life_is_three_requests() {
        let mut counts = std::collections::BTreeMap::new();
        let ops = mixed_ages(100, 20_000);
        for op in &ops[..15_000] {
            if let Op::Fetch { key: key @ 100.. } = op {
                *counts.entry(key).or_insert(0) += 1;
            }
        }
        let three = counts.values().filter(|count| **count == 3).count();
        assert!(three * 10 > counts.len() * 8 && counts.values().all(|count| *count <= 3));
    }

    #[test]
    fn the_working_set_is_the_most_that_is_live() {
        let ops = vec![
            Op::Put { key: 1, page: 0 },
            Op::Put { key: 2, page: 1 },
            Op::Put { key: 1, page: 2 },
            Op::Take { key: 2 },
            Op::Put { key: 3, page: 3 },
        ];
        let trace = Trace { name: "", kind: PoolKind::Persistent, share: 1.0, ops };
        assert_eq!(trace.working_set_bytes(&[10, 100]), 110);
    }
}
