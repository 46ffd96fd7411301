//! How far a figure from a sample of clusters may be off: the ratio estimator of a cluster sample without replacement.
//!
//! Cochran, Sampling Techniques (1977), chapter 6: the total of `y` is estimated as the known total of `x` times the ratio of
//! their sums in the sample; its variance comes from how far each cluster's `y` is from that ratio.

/// What was seen of the clusters of a sample.
#[derive(Clone, Debug, Default)]
pub struct Clusters {
    /// Of each: its pages, and the bytes they became.
    seen: Vec<(f64, f64)>,
}

impl Clusters {
    /// Adds a cluster.
    pub fn add(&mut self, pages: u64, bytes: u64) {
        self.seen.push((pages as f64, bytes as f64));
    }

    /// Bytes per page.
    pub fn ratio(&self) -> f64 {
        let (pages, bytes) = self.seen.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        if pages > 0.0 { bytes / pages } else { 0.0 }
    }

    /// Half of the 95 % interval of the bytes that all `pages` pages in `clusters` clusters become. Nothing when every cluster was
    /// seen; infinite when a single one of several was.
    pub fn margin_bytes(&self, clusters: u64, pages: u64) -> f64 {
        let count = self.seen.len() as f64;
        let unseen = 1.0 - count / clusters as f64;
        if unseen <= 0.0 {
            return 0.0;
        }
        if count < 2.0 {
            return f64::INFINITY;
        }
        let ratio = self.ratio();
        let squares: f64 = self.seen.iter().map(|(x, y)| (y - ratio * x).powi(2)).sum();
        let mean_pages = self.seen.iter().map(|(x, _)| x).sum::<f64>() / count;
        let error = (unseen * squares / (count - 1.0) / count).sqrt() / mean_pages;
        student(count - 1.0) * error * pages as f64
    }
}

/// The 97.5 % point of Student's t, by the expansion around the normal distribution's; within 2 % from four degrees of freedom on.
fn student(freedom: f64) -> f64 {
    let z: f64 = 1.959_964;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    z + first / freedom + second / freedom.powi(2)
}

/// The slope of the straight line that fits the points best; `None` when they do not spread.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let (mean_x, mean_y) = points.iter().fold((0.0, 0.0), |mean, p| (mean.0 + p.0 / count, mean.1 + p.1 / count));
    let spread: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    let common: f64 = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum();
    (spread > 0.0).then(|| common / spread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tmem::testing::Random;

    #[test]
    fn the_interval_holds_the_truth_as_often_as_it_says() {
        let mut random = Random::new(3);
        // Clusters of unequal size and kind, as in real memory.
        let all: Vec<(u64, u64)> = (0..2000)
            .map(|_| {
                let pages = 1 + random.below(64);
                let kind = [0, 300, 1500, 4096][random.below(4) as usize];
                (pages, pages * kind + random.below(5000))
            })
            .collect();
        let pages: u64 = all.iter().map(|one| one.0).sum();
        let truth: u64 = all.iter().map(|one| one.1).sum();
        for count in [20, 200, 1000] {
            let held = (0..400).filter(|_| {
                let mut rest = all.clone();
                let mut seen = Clusters::default();
                for _ in 0..count {
                    let (pages, bytes) = rest.swap_remove(random.below(rest.len() as u64) as usize);
                    seen.add(pages, bytes);
                }
                let error = seen.ratio() * pages as f64 - truth as f64;
                error.abs() <= seen.margin_bytes(all.len() as u64, pages)
            });
            let held = held.count();
            assert!((360..=396).contains(&held), "{count} clusters: {held} of 400 intervals hold the truth");
        }
    }

    #[test]
    fn everything_seen_leaves_no_margin_and_one_cluster_says_nothing() {
        let mut seen = Clusters::default();
        seen.add(64, 1000);
        assert_eq!(seen.margin_bytes(1, 64), 0.0);
        assert!(seen.margin_bytes(2, 128).is_infinite());
        seen.add(32, 5000);
        assert_eq!(seen.margin_bytes(2, 96), 0.0);
        assert_eq!(seen.ratio(), 62.5);
    }

    #[test]
    fn student_and_slope_are_what_the_books_say() {
        for (freedom, value) in [(4.0, 2.776), (9.0, 2.262), (29.0, 2.045), (255.0, 1.969)] {
            assert!((student(freedom) / value - 1.0).abs() < 0.02, "{freedom}: {}", student(freedom));
        }
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), Some(2.0));
        assert_eq!(slope(&[(1.0, 1.0), (1.0, 3.0)]), None);
        assert_eq!(slope(&[]), None);
    }
}
