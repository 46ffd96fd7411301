//! Page numbers of a shard: which are in use, and in which runs.

/// Numbers that are handed out in runs, the lowest free ones first.
#[derive(Debug, Default)]
pub struct Numbers {
    /// A bit for each number that is in use.
    used: Vec<u64>,
    /// A bit for each number that a run begins with.
    first: Vec<u64>,
    /// No number below it is free.
    low: usize,
}

const BITS: usize = u64::BITS as usize;
/// Numbers that there are.
pub const NUMBERS_MAX: usize = 1 << 28;

impl Numbers {
    /// Takes a run of `count` numbers. `None` when there are no more.
    pub fn take(&mut self, count: usize) -> Option<u32> {
        let start = self.find(count)?;
        let end = start + count;
        let words = end.div_ceil(BITS);
        if words > self.used.len() {
            self.used.resize(words, 0);
            self.first.resize(words, 0);
        }
        (start..end).for_each(|at| self.used[at / BITS] |= 1 << (at % BITS));
        self.first[start / BITS] |= 1 << (start % BITS);
        if start == self.low {
            self.low = end;
        }
        Some(start as u32)
    }

    /// The first free run of that length.
    fn find(&mut self, count: usize) -> Option<usize> {
        let len = self.used.len() * BITS;
        let mut at = self.low;
        let mut free = 0;
        while at < len {
            let word = self.used[at / BITS];
            if at.is_multiple_of(BITS) && (word == u64::MAX || word == 0) {
                free = if word == 0 { free + BITS } else { 0 };
                at += BITS;
            } else {
                free = if word >> (at % BITS) & 1 == 0 { free + 1 } else { 0 };
                at += 1;
            }
            if free >= count {
                return Some(at - free);
            }
        }
        let start = len.max(self.low) - free;
        (start + count <= NUMBERS_MAX).then_some(start)
    }

    /// Numbers of the run that begins here.
    pub fn run(&self, start: u32) -> u32 {
        let mut end = start as usize + 1;
        let is_set = |bits: &[u64], at: usize| bits.get(at / BITS).is_some_and(|word| word >> (at % BITS) & 1 == 1);
        while is_set(&self.used, end) && !is_set(&self.first, end) {
            end += 1;
        }
        end as u32 - start
    }

    /// Gives back the run that begins here.
    pub fn give_back(&mut self, start: u32) {
        let end = start + self.run(start);
        for at in start as usize..end as usize {
            self.used[at / BITS] &= !(1 << (at % BITS));
        }
        self.first[start as usize / BITS] &= !(1 << (start as usize % BITS));
        self.low = self.low.min(start as usize);
    }

    /// Bytes of the tables.
    pub fn bytes(&self) -> usize {
        2 * self.used.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tmem::testing::Random;

    #[test]
    fn runs_never_overlap_and_low_numbers_are_used_again() {
        let mut numbers = Numbers::default();
        let mut owner: Vec<Option<u32>> = Vec::new();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let mut random = Random::new(1);
        for _ in 0..20_000 {
            if random.below(100) < 52 || runs.is_empty() {
                let count = [1, 1, 1, 2, 3, 64, 65, 200][random.below(8) as usize];
                let start = numbers.take(count as usize).unwrap();
                owner.resize(owner.len().max((start + count) as usize), None);
                for at in start..start + count {
                    assert_eq!(owner[at as usize].replace(start), None);
                }
                runs.push((start, count));
            } else {
                let (start, count) = runs.swap_remove(random.below(runs.len() as u64) as usize);
                assert_eq!(numbers.run(start), count);
                numbers.give_back(start);
                (start..start + count).for_each(|at| owner[at as usize] = None);
            }
        }
        runs.drain(..).for_each(|(start, _)| numbers.give_back(start));
        assert_eq!((numbers.take(1), numbers.take(1000), numbers.take(1)), (Some(0), Some(1), Some(1001)));
    }
}
