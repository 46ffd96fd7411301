//! Faults on purpose: a tier that wraps another one and spoils some of its operations.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{TIER_BLOCK_BYTES, Tier};
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
    /// There is no room behind this many bytes.
    Full(u64),
}

/// A tier with a [`Fault`]. It is one itself, so that faults can be stacked.
pub struct FaultyTier<T> {
    inner: T,
    fault: Fault,
    one_in: Arc<AtomicU64>,
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
        Self { inner, fault, one_in: Arc::new(one_in.into()), random: Mutex::new(Random::new(seed)) }
    }

    /// A handle to change the rate with.
    pub fn rate(&self) -> FaultRate {
        FaultRate(Arc::clone(&self.one_in))
    }

    /// A random number if the operation is to be spoilt.
    fn strikes(&self) -> Option<u64> {
        let one_in = self.one_in.load(Relaxed);
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        (one_in > 0 && random.below(one_in) == 0).then(|| random.number())
    }

    fn delay(&self) {
        if let Fault::Delay(time) = self.fault {
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
        let Some(random) = self.strikes() else {
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
        let Some(random) = self.strikes() else {
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
        if self.strikes().is_some() {
            if self.fault == Fault::FailDiscard {
                return Err(failure());
            }
            self.delay();
        }
        self.inner.discard(offset, bytes)
    }
}
