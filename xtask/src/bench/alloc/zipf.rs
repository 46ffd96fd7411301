//! Numbers with a Zipf distribution, whose ranks are given to other keys as time goes by.

use tmem::testing::Random;

/// Draws ranks: rank r with a probability proportional to 1 / (r + 1)^s. Exact, by a table of sums.
pub struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    pub fn new(ranks: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=ranks).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Self { sums: sums.collect() }
    }

    pub fn rank(&self, random: &mut Random) -> usize {
        let drawn = unit(random) * self.sums[self.sums.len() - 1];
        self.sums.partition_point(|&sum| sum <= drawn).min(self.sums.len() - 1)
    }
}

/// A number from 0 to below 1.
pub fn unit(random: &mut Random) -> f64 {
    (random.number() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Keys by rank. With each drift a key that is drawn like any request, so mostly a hot one, changes places with one that
/// is drawn evenly, so mostly a cold one.
pub struct Drifting {
    zipf: Zipf,
    keys: Vec<u32>,
}

impl Drifting {
    pub fn new(keys: u32, exponent: f64, random: &mut Random) -> Self {
        let mut order: Vec<u32> = (0..keys).collect();
        shuffle(&mut order, random);
        Self { zipf: Zipf::new(order.len(), exponent), keys: order }
    }

    pub fn key(&self, random: &mut Random) -> u32 {
        self.keys[self.zipf.rank(random)]
    }

    pub fn drift(&mut self, random: &mut Random) {
        let (one, other) = (self.zipf.rank(random), random.below(self.keys.len() as u64) as usize);
        self.keys.swap(one, other);
    }
}

fn shuffle(list: &mut [u32], random: &mut Random) {
    for i in (1..list.len()).rev() {
        list.swap(i, random.below(i as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_come_as_often_as_they_should() {
        for exponent in [0.0, 0.8, 1.0] {
            let (zipf, mut random) = (Zipf::new(50, exponent), Random::new(3));
            let mut counts = [0.0; 50];
            for _ in 0..200_000 {
                counts[zipf.rank(&mut random)] += 1.0;
            }
            let sum: f64 = (1..=50).map(|rank| f64::from(rank).powf(-exponent)).sum();
            for (rank, count) in (1..).zip(counts) {
                let expected = 200_000.0 * f64::from(rank).powf(-exponent) / sum;
                // Five standard deviations.
                assert!((count - expected).abs() < 5.0 * f64::sqrt(expected), "{exponent} {rank} {count} {expected}");
            }
        }
    }

    #[test]
    fn drift_changes_who_is_hot_and_loses_nobody() {
        let mut random = Random::new(1);
        let mut drifting = Drifting::new(100, 1.0, &mut random);
        let before = drifting.keys.clone();
        for _ in 0..200 {
            drifting.drift(&mut random);
        }
        assert_ne!(drifting.keys[..5], before[..5]);
        drifting.keys.sort_unstable();
        assert!(drifting.keys.into_iter().eq(0..100));
    }
}
