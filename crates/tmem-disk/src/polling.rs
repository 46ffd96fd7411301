//! Waiting for what a client says next: for a moment by asking again and again, then asleep.
//!
//! To wake a processor that sleeps takes longer than all the rest of a short request (55 us of 60 in a virtual machine), and a client
//! with one request in flight sends the next one some microseconds after our answer. So the thread asks for up to [`POLL`],
//! and lets go of its processor in between to whoever wants it. Where that is in vain, it does so only every 2nd, 4th, ... 256th time.

use std::io::{self, ErrorKind, Read};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_micros(50);
const SKIPS_MAX: u32 = 256;

/// What can be asked whether there is something to read.
pub trait Hear: Read {
    /// Reads what is there already; [`ErrorKind::WouldBlock`] if nothing is.
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Hear for &[u8] {
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read(buffer)
    }
}

/// How often asking is worth it.
pub struct Polling {
    /// Waits that are not polled before the next that is.
    skip: u32,
    /// How many they will be if that one is in vain, too.
    skips: u32,
}

impl Polling {
    pub fn new() -> Self {
        Self { skip: 0, skips: 1 }
    }

    /// Reads what comes next.
    pub fn read(&mut self, from: &mut impl Hear, buffer: &mut [u8]) -> io::Result<usize> {
        if self.skip > 0 {
            self.skip -= 1;
            return from.read(buffer);
        }
        let start = Instant::now();
        loop {
            match from.read_now(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                answer => {
                    self.skips = 1;
                    return answer;
                }
            }
            if start.elapsed() >= POLL {
                break;
            }
            thread::yield_now();
        }
        self.skip = self.skips;
        self.skips = (self.skips * 2).min(SKIPS_MAX);
        from.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has something only for those who wait.
    struct Slow {
        asked: u32,
    }

    impl Read for Slow {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(1)
        }
    }

    impl Hear for Slow {
        fn read_now(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.asked += 1;
            Err(ErrorKind::WouldBlock.into())
        }
    }

    #[test]
    fn what_is_in_vain_is_done_ever_less() {
        let (mut polling, mut slow) = (Polling::new(), Slow { asked: 0 });
        let mut polled = Vec::new();
        for wait in 0..100 {
            let before = slow.asked;
            polling.read(&mut slow, &mut [0]).unwrap();
            if slow.asked > before {
                polled.push(wait);
            }
        }
        assert_eq!(polled, [0, 2, 5, 10, 19, 36, 69]);
        polling.skip = 0;
        polling.read(&mut &[1_u8][..], &mut [0]).unwrap();
        assert_eq!((polling.skip, polling.skips), (0, 1), "one that was not in vain");
    }
}
