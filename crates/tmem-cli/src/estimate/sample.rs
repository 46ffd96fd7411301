//! Which pages are read: whole clusters, chosen at random, each with the same chance.
//!
//! Neighbours are alike, so that a sample of clusters is less exact than one of as many single pages; but a store sees neighbours
//! together too, and the margin is computed from the clusters.

use std::collections::HashSet;

use anyhow::{bail, ensure};
use tmem::testing::Random;
use tmem::{PAGE_SIZE, page_hash};

use super::source::{Block, CLUSTER_PAGES, Cluster, Source};

/// Pages of a sample, at most: 64 MiB.
pub const SAMPLE_PAGES_MAX: u64 = 16_384;

/// Clusters that a sample must have if the source ended before all of it was read: fewer tell too little.
const CLUSTERS_MIN: usize = 16;

/// What is read of a source.
pub struct Sample<'a> {
    source: &'a dyn Source,
    chosen: Vec<Block>,
    /// The pages themselves, unless there are too many of them to be kept.
    kept: Option<Vec<Cluster>>,
    /// Where the choice started from.
    pub seed: u64,
    /// Clusters of the whole source.
    pub clusters_total: u64,
    /// Pages of the whole source.
    pub pages_total: u64,
    /// Pages that were chosen.
    pub pages_chosen: u64,
    /// The source ended before all that was chosen could be read.
    pub ended: bool,
}

/// What is to be seen in pages without compressing them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Pages that were read.
    pub pages: u64,
    /// Clusters that they came from.
    pub clusters: u64,
    /// Pages of one repeated 64-bit pattern.
    pub same_filled: u64,
    /// Other pages that equal one that was read before.
    pub duplicates: u64,
}

impl<'a> Sample<'a> {
    /// Chooses pages, and reads them if they are few enough to be kept.
    ///
    /// # Errors
    /// When pages cannot be read, or too few of them.
    pub fn take(source: &'a dyn Source, all: bool, seed: u64) -> anyhow::Result<Self> {
        let mut chosen = source.blocks().to_vec();
        let pages_total = pages_of(&chosen);
        shuffle(&mut chosen, seed);
        if !all {
            let mut pages = 0;
            let within = chosen.iter().take_while(|block| {
                pages += block.pages();
                pages <= SAMPLE_PAGES_MAX
            });
            chosen.truncate(within.count());
        }
        let mut sample = Self {
            source,
            kept: None,
            seed,
            clusters_total: source.blocks().len() as u64,
            pages_total,
            pages_chosen: pages_of(&chosen),
            chosen,
            ended: false,
        };
        if sample.pages_chosen <= SAMPLE_PAGES_MAX {
            sample.keep()?;
        }
        Ok(sample)
    }

    fn keep(&mut self) -> anyhow::Result<()> {
        let mut kept = Vec::with_capacity(self.chosen.len());
        for &block in &self.chosen {
            let mut cluster = Cluster::new();
            if !cluster.read(self.source, block)? {
                self.ended = true;
                break;
            }
            if !cluster.pages.is_empty() {
                cluster.pages.shrink_to_fit();
                kept.push(cluster);
            }
        }
        if self.ended && kept.len() < CLUSTERS_MIN {
            bail!(
                "{} ended while it was read, after {} of {} pages: start it again and estimate while it works",
                self.source.title(),
                kept.iter().map(|cluster| cluster.pages.len()).sum::<usize>(),
                self.pages_chosen
            );
        }
        ensure!(
            !kept.is_empty(),
            "{}: none of its pages could be read; do they come and go? Try again",
            self.source.title()
        );
        self.kept = Some(kept);
        Ok(())
    }

    /// Gives every cluster, in random order, to `with`. What is kept is the same each time; the rest is read again.
    ///
    /// # Errors
    /// What `with` says, and when pages cannot be read.
    pub fn each(&self, mut with: impl FnMut(&Cluster) -> anyhow::Result<()>) -> anyhow::Result<()> {
        if let Some(kept) = &self.kept {
            return kept.iter().try_for_each(with);
        }
        let mut cluster = Cluster::new();
        for &block in &self.chosen {
            if !cluster.read(self.source, block)? {
                bail!(
                    "{} ended while it was read: a whole process is read once for each line of the table; without --all, \
                     {} MiB of it are read in a moment",
                    self.source.title(),
                    (SAMPLE_PAGES_MAX * PAGE_SIZE as u64) >> 20
                );
            }
            if !cluster.pages.is_empty() {
                with(&cluster)?;
            }
        }
        Ok(())
    }

    /// Counts what is to be seen in the pages.
    ///
    /// # Errors
    /// When pages cannot be read.
    pub fn content(&self) -> anyhow::Result<Content> {
        let mut content = Content::default();
        let mut seen = HashSet::new();
        self.each(|cluster| {
            content.clusters += 1;
            content.pages += cluster.pages.len() as u64;
            for page in &cluster.pages {
                let (words, _) = page.as_chunks::<8>();
                if words.iter().all(|word| *word == words[0]) {
                    content.same_filled += 1;
                } else if !seen.insert(page_hash(page)) {
                    content.duplicates += 1;
                }
            }
            Ok(())
        })?;
        Ok(content)
    }
}

fn pages_of(blocks: &[Block]) -> u64 {
    blocks.iter().map(|block| block.pages()).sum()
}

/// Fisher and Yates.
fn shuffle(blocks: &mut [Block], seed: u64) {
    let mut random = Random::new(seed);
    for at in (1..blocks.len()).rev() {
        blocks.swap(at, random.below(at as u64 + 1) as usize);
    }
}

const _: () = assert!(SAMPLE_PAGES_MAX >= CLUSTERS_MIN as u64 * CLUSTER_PAGES);

#[cfg(test)]
mod tests {
    use super::super::source::Fake;
    use super::*;

    #[test]
    fn a_sample_is_whole_clusters_of_at_most_64_mib() {
        let source = Fake::new(100_000, u32::MAX);
        let sample = Sample::take(&source, false, 1).unwrap();
        assert_eq!((sample.pages_total, sample.clusters_total, sample.pages_chosen), (100_000, 1563, SAMPLE_PAGES_MAX));
        let content = sample.content().unwrap();
        assert_eq!((content.pages, content.clusters), (SAMPLE_PAGES_MAX, SAMPLE_PAGES_MAX / 64));
        assert_eq!((content.same_filled, content.duplicates), (SAMPLE_PAGES_MAX, 0));
        let other = Sample::take(&source, false, 2).unwrap();
        assert_ne!(sample.chosen, other.chosen);
        let again = Sample::take(&source, false, 1).unwrap();
        assert_eq!(sample.chosen, again.chosen);
    }

    #[test]
    fn everything_is_read_once_more_each_time_if_it_is_too_much_to_keep() {
        let source = Fake::new(20_000, 2 * 313 + 10);
        let sample = Sample::take(&source, true, 1).unwrap();
        assert_eq!(sample.content().unwrap().pages, 20_000);
        assert_eq!(sample.content().unwrap().pages, 20_000);
        let error = sample.content().unwrap_err().to_string();
        assert!(error.contains("ended while it was read") && error.contains("without --all"), "{error}");
    }

    #[test]
    fn what_was_read_before_the_end_counts_if_it_is_enough() {
        let source = Fake::new(6_400, 16);
        let sample = Sample::take(&source, false, 1).unwrap();
        assert!(sample.ended);
        assert_eq!(sample.content().unwrap().clusters, 16);
        let Err(error) = Sample::take(&Fake::new(6_400, 15), false, 1) else { panic!("15 clusters are not enough") };
        assert!(error.to_string().contains("after 960 of 6400 pages"), "{error}");
    }

    #[test]
    fn pages_that_come_and_go_are_left_out() {
        let source = Fake { gone: (0..64).collect(), ..Fake::new(200, u32::MAX) };
        let sample = Sample::take(&source, false, 1).unwrap();
        assert_eq!(sample.content().unwrap().pages, 136);
        let Err(error) = Sample::take(&Fake { gone: (0..64).collect(), ..Fake::new(64, u32::MAX) }, false, 1) else {
            panic!("nothing was read")
        };
        assert!(error.to_string().contains("none of its pages"), "{error}");
    }
}
