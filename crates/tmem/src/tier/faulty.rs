//! Faults on purpose: a tier that wraps another one and spoils some of its operations.

use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Homing, TIER_BLOCK_BYTES, Tier};
use crate::testing::Random;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A write that writes nothing and says so.
    FailWrite,
    /// A read that reads nothing and says so.
    FailRead,
    /// Space that is not given back.
    FailDiscard,
    /// A write that stops half-way and says so.
    TearWrite,
    /// A write that stops half-way and claims success.
    LoseWrite,
    /// A bit of what is written is another one in the end.
    CorruptWrite,
    /// A bit of what is read is another one. The next read may be right again.
    CorruptRead,
    /// Any operation takes this much longer.
    Delay(Duration),
    /// A write takes this much longer.
    DelayWrite(Duration),
    /// A read takes this much longer.
    DelayRead(Duration),
    /// There is no room behind this many bytes.
    Full(u64),
}

#[derive(Clone, Copy)]
enum Operation {
    Write,
    Read,
    Discard,
}

impl Fault {
    /// Whether it is one of such operations.
    fn is_of(self, operation: Operation) -> bool {
        match self {
            Self::FailWrite | Self::TearWrite | Self::LoseWrite | Self::CorruptWrite => {
                matches!(operation, Operation::Write)
            }
            Self::DelayWrite(_) | Self::Full(_) => matches!(operation, Operation::Write),
            Self::FailRead | Self::CorruptRead | Self::DelayRead(_) => matches!(operation, Operation::Read),
            Self::FailDiscard => matches!(operation, Operation::Discard),
            Self::Delay(_) => true,
        }
    }
}

/// When a [`Fault`] happens. Only operations that it can happen to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// At one operation in so many, chosen at random; at none if it is zero.
    OneIn(u64),
    /// At the operation of this number; the first one is 1.
    Nth(u64),
    /// At that one and all that follow.
    From(u64),
}

/// A tier with a [`Fault`]. It is one itself, so that faults can be stacked.
pub struct FaultyTier<T> {
    inner: T,
    fault: Fault,
    one_in: Arc<AtomicU64>,
    /// The numbers of the operations that may be spoilt.
    numbers: RangeInclusive<u64>,
    operations: AtomicU64,
    random: Mutex<Random>,
}

/// Changes how often a fault happens while the store has the tier.
#[derive(Clone, Debug)]
pub struct FaultRate(Arc<AtomicU64>);

impl FaultRate {
    /// One operation in `one_in` from now on; none if it is zero.
    pub fn set(&self, one_in: u64) {
        self.0.store(one_in, Relaxed);
    }
}

impl<T: Tier> FaultyTier<T> {
    /// Wraps a tier. One operation in `one_in` is spoilt, chosen by a sequence of random numbers with this seed; none if
    /// `one_in` is zero.
    pub fn new(inner: T, fault: Fault, one_in: u64, seed: u64) -> Self {
        Self::at(inner, fault, Strike::OneIn(one_in), seed)
    }

    /// Wraps a tier, to be spoilt at certain operations. The seed is for what is random about them.
    pub fn at(inner: T, fault: Fault, strike: Strike, seed: u64) -> Self {
        let (one_in, numbers) = match strike {
            Strike::OneIn(one_in) => (one_in, 1..=u64::MAX),
            Strike::Nth(number) => (1, number..=number),
            Strike::From(number) => (1, number..=u64::MAX),
        };
        let random = Mutex::new(Random::new(seed));
        Self { inner, fault, one_in: Arc::new(one_in.into()), numbers, operations: AtomicU64::new(0), random }
    }

    /// A handle to change the rate with.
    pub fn rate(&self) -> FaultRate {
        FaultRate(Arc::clone(&self.one_in))
    }

    /// A random number if the operation is to be spoilt.
    fn strikes(&self, operation: Operation) -> Option<u64> {
        if !self.fault.is_of(operation) {
            return None;
        }
        let number = self.operations.fetch_add(1, Relaxed) + 1;
        let one_in = self.one_in.load(Relaxed);
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let strikes = one_in > 0 && random.below(one_in) == 0 && self.numbers.contains(&number);
        strikes.then(|| random.number())
    }

    fn delay(&self) {
        if let Fault::Delay(time) | Fault::DelayWrite(time) | Fault::DelayRead(time) = self.fault {
            std::thread::sleep(time);
        }
    }
}

fn failure() -> io::Error {
    io::Error::other("a fault on purpose")
}

fn flip_bit(bytes: &mut [u8], random: u64) {
    let bit = random as usize % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
}

impl<T: Tier> Tier for FaultyTier<T> {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(random) = self.strikes(Operation::Write) else {
            return self.inner.write(offset, bytes);
        };
        let half = bytes.len() / TIER_BLOCK_BYTES / 2 * TIER_BLOCK_BYTES;
        match self.fault {
            Fault::FailWrite => Err(failure()),
            Fault::TearWrite => self.inner.write(offset, &bytes[..half]).and(Err(failure())),
            Fault::LoseWrite => self.inner.write(offset, &bytes[..half]),
            Fault::CorruptWrite => {
                let mut copy = super::buffer::Buffer::new(bytes.len());
                copy.bytes().copy_from_slice(bytes);
                flip_bit(copy.bytes(), random);
                self.inner.write(offset, copy.bytes())
            }
            Fault::Full(room) if offset + bytes.len() as u64 > room => Err(io::ErrorKind::StorageFull.into()),
            _ => {
                self.delay();
                self.inner.write(offset, bytes)
            }
        }
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let Some(random) = self.strikes(Operation::Read) else {
            return self.inner.read(offset, bytes);
        };
        match self.fault {
            Fault::FailRead => return Err(failure()),
            Fault::CorruptRead => {
                self.inner.read(offset, bytes)?;
                flip_bit(bytes, random);
                return Ok(());
            }
            _ => {}
        }
        self.delay();
        self.inner.read(offset, bytes)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if self.strikes(Operation::Discard).is_some() {
            if self.fault == Fault::FailDiscard {
                return Err(failure());
            }
            self.delay();
        }
        self.inner.discard(offset, bytes)
    }

    fn homing(&self) -> Homing {
        self.inner.homing()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::MemoryTier;
    use super::*;

    /// The numbers of the writes that fail, of twenty, with reads in between.
    fn failing(strike: Strike) -> Vec<u64> {
        let tier = FaultyTier::at(MemoryTier::new(), Fault::FailWrite, strike, 3);
        let mut bytes = [0; TIER_BLOCK_BYTES];
        let fails = |_: &u64| {
            tier.read(0, &mut bytes).unwrap();
            tier.write(0, &bytes).is_err()
        };
        (1..=20).filter(fails).collect()
    }

    #[test]
    fn a_fault_strikes_at_the_operations_that_it_is_told() {
        assert_eq!(failing(Strike::Nth(1)), [1]);
        assert_eq!(failing(Strike::Nth(7)), [7]);
        assert_eq!(failing(Strike::From(18)), [18, 19, 20]);
        assert_eq!(failing(Strike::OneIn(0)), []);
        assert_eq!(failing(Strike::OneIn(1)).len(), 20);
        assert!((1..10).contains(&failing(Strike::OneIn(4)).len()));
    }
}
