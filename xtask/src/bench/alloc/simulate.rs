//! What a cache of the same bytes could reach: exact LRU, the optimum for pages of one size, and a bound that no policy passes.
//!
//! All of them hold packed pages without any loss to frames, headers or index.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A request: key and size. A key has always the same size.
pub type Request = (u32, u64);

/// Hits of exact LRU: a miss admits, and what was not asked for longest leaves until all fits.
pub fn lru(requests: &[Request], capacity: u64) -> u64 {
    let mut last_use = HashMap::new();
    let mut by_age = BTreeMap::new();
    let (mut used, mut hits) = (0, 0);
    for (now, &(key, size)) in requests.iter().enumerate() {
        match last_use.insert(key, now) {
            Some(before) => {
                hits += 1;
                by_age.remove(&before);
            }
            None => used += size,
        }
        by_age.insert(now, (key, size));
        while used > capacity {
            let (_, (key, size)) = by_age.pop_first().expect("what is used belongs to somebody");
            last_use.remove(&key);
            used -= size;
        }
    }
    hits
}

/// For each request, when its key is asked for next; `usize::MAX` for never.
fn next_uses(requests: &[Request]) -> Vec<usize> {
    let mut seen = HashMap::new();
    let mut next = vec![usize::MAX; requests.len()];
    for (now, (key, _)) in requests.iter().enumerate().rev() {
        next[now] = seen.insert(key, now).unwrap_or(usize::MAX);
    }
    next
}

/// Hits of MIN (Belady 1966): what is asked for latest leaves, which may be what has just come. Optimal if all pages have one
/// size; else a policy that knows the future, near the optimum and not above it.
pub fn min(requests: &[Request], capacity: u64) -> u64 {
    let next = next_uses(requests);
    let mut cached: HashMap<u32, usize> = HashMap::new();
    let mut by_next = BTreeSet::new();
    let (mut used, mut hits) = (0, 0);
    for (&(key, size), &next) in requests.iter().zip(&next) {
        match cached.insert(key, next) {
            Some(now) => {
                hits += 1;
                by_next.remove(&(now, key, size));
            }
            None => used += size,
        }
        by_next.insert((next, key, size));
        while used > capacity {
            let (_, key, size) = by_next.pop_last().expect("what is used belongs to somebody");
            cached.remove(&key);
            used -= size;
        }
    }
    hits
}

/// Hits that no policy passes (PFOO-L: Berger, Beckmann, Harchol-Balter, SIGMETRICS 2018): to keep a page until its next
/// request takes size x time; as many hits as fit, cheapest first, into capacity x time, as if they never met.
pub fn bound(requests: &[Request], capacity: u64) -> u64 {
    let next = next_uses(requests);
    let intervals = requests.iter().zip(next).enumerate();
    let kept = intervals.filter(|(_, ((_, size), next))| *next != usize::MAX && *size <= capacity);
    let mut costs: Vec<u64> = kept.map(|(now, ((_, size), next))| size * (next - now) as u64).collect();
    costs.sort_unstable();
    let mut left = capacity as u128 * requests.len() as u128;
    let fit = costs.iter().take_while(|&&cost| {
        let fits = u128::from(cost) <= left;
        left = left.saturating_sub(cost.into());
        fits
    });
    fit.count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use tmem::testing::Random;

    /// Tries every choice: which pages to keep after each request.
    fn best(requests: &[Request], capacity: u64, cached: &[Request]) -> u64 {
        let Some((&request, rest)) = requests.split_first() else {
            return 0;
        };
        let hit = cached.contains(&request);
        let mut all = cached.to_vec();
        if !hit {
            all.push(request);
        }
        let keep = |chosen: u32| {
            let kept = all.iter().enumerate().filter(|(i, _)| chosen >> i & 1 == 1).map(|(_, request)| *request);
            let kept: Vec<Request> = kept.collect();
            (kept.iter().map(|(_, size)| size).sum::<u64>() <= capacity).then_some(kept)
        };
        let choices = (0..1_u32 << all.len()).filter_map(keep);
        let most = choices.map(|kept| best(rest, capacity, &kept)).max().expect("keeping nothing is a choice");
        most + u64::from(hit)
    }

    /// LRU as a list.
    fn naive_lru(requests: &[Request], capacity: u64) -> u64 {
        let mut list: Vec<Request> = Vec::new();
        let mut hits = 0;
        for request in requests {
            if let Some(at) = list.iter().position(|held| held == request) {
                hits += 1;
                list.remove(at);
            }
            list.push(*request);
            while list.iter().map(|(_, size)| size).sum::<u64>() > capacity {
                list.remove(0);
            }
        }
        hits
    }

    fn requests(count: u64, keys: u64, sizes: u64, seed: u64) -> Vec<Request> {
        let mut random = Random::new(seed);
        let size: Vec<u64> = (0..keys).map(|_| 1 + random.below(sizes)).collect();
        let keys = (0..count).map(|_| random.below(keys) as u32);
        keys.map(|key| (key, size[key as usize])).collect()
    }

    #[test]
    fn lru_by_hand() {
        let requests = [1, 2, 3, 1, 2, 4, 1].map(|key| (key, 1));
        assert_eq!(lru(&requests, 3), 3);
        assert_eq!(lru(&requests, 2), 0);
        // The large page pushes both others out, and itself where it is larger than all.
        assert_eq!(lru(&[(1, 1), (2, 1), (3, 3), (1, 1)], 3), 0);
        assert_eq!(lru(&[(3, 5), (3, 5)], 3), 0);
    }

    #[test]
    fn lru_equals_a_list() {
        for seed in 0..50 {
            let requests = requests(300, 20, 9, seed);
            for capacity in [5, 20, 60] {
                assert_eq!(lru(&requests, capacity), naive_lru(&requests, capacity));
            }
        }
    }

    #[test]
    fn min_is_the_best_of_all_choices_for_one_size() {
        for seed in 0..60 {
            let requests = requests(9, 5, 1, seed);
            for capacity in 1..4 {
                assert_eq!(min(&requests, capacity), best(&requests, capacity, &[]), "{requests:?} {capacity}");
            }
        }
    }

    #[test]
    fn no_choice_passes_the_bound_and_min_passes_none() {
        for seed in 0..60 {
            let requests = requests(9, 5, 4, seed);
            for capacity in [2, 5, 8] {
                let best = best(&requests, capacity, &[]);
                assert!(min(&requests, capacity) <= best && best <= bound(&requests, capacity));
                assert!(lru(&requests, capacity) <= best);
            }
        }
    }
}
