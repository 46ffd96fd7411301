//! Figures from many values.

/// The mean of ratios: the one that does not depend on which side is above the line.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value.ln();
        count += 1.0;
    }
    (sum / count).exp()
}

/// Runs an operation and says how many nanoseconds it took.
pub fn timed<R>(operation: impl FnOnce() -> R) -> (R, u32) {
    let start = std::time::Instant::now();
    let answer = operation();
    (answer, u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX))
}

/// The nanoseconds that single operations took.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<u32>);

impl Times {
    /// Runs and times an operation.
    pub fn time<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        let (answer, ns) = timed(operation);
        self.add(ns);
        answer
    }

    pub fn add(&mut self, ns: u32) {
        self.0.push(ns);
    }

    pub fn sum_ns(&self) -> f64 {
        self.0.iter().map(|&ns| f64::from(ns)).sum()
    }

    /// The time that this share of the operations did not exceed, in nanoseconds, for each share; NaN without operations.
    pub fn percentiles<const N: usize>(&self, shares: [f64; N]) -> [f64; N] {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        shares.map(|share| {
            let at = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(at.saturating_sub(1)).map_or(f64::NAN, |&ns| f64::from(ns))
        })
    }
}

/// The three percentiles of all tables.
pub const SHARES: [f64; 3] = [0.5, 0.99, 0.999];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_geometric_mean_of_inverse_ratios_is_one() {
        assert!((geometric_mean([0.5, 2.0, 4.0, 0.25]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times = Times((1..=1000).rev().collect());
        assert_eq!(times.percentiles(SHARES), [500.0, 990.0, 999.0]);
        assert_eq!(Times(vec![7]).percentiles([0.0, 0.5, 1.0]), [7.0; 3]);
        assert!(Times::default().percentiles([0.5])[0].is_nan());
    }
}
