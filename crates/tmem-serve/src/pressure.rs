//! Whether the machine itself is short of memory: then it lends nothing more.
//!
//! What is lent must never make the lender swap. So ten times a second the kernel is asked how much memory could be had
//! without swapping (`MemAvailable`), and all that is below the reserve of the machine is not lent.

use std::fs;

/// The part of the machine's memory that is its own in any case, and the least and the most that this is.
const RESERVE_PART: u64 = 16;
const RESERVE_MIN: u64 = 64 << 20;
const RESERVE_MAX: u64 = 2 << 30;
/// What tables and buffers may grow by meanwhile: whoever reads and removes needs some.
const SLACK: u64 = 1 << 20;

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    pub total_bytes: u64,
    /// What can be had without swapping.
    pub available_bytes: u64,
}

impl Machine {
    /// At present, as `/proc/meminfo` says it.
    pub fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(meminfo: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
        };
        Some(Self { total_bytes: bytes("MemTotal:")?, available_bytes: bytes("MemAvailable:")? })
    }

    /// What a server that takes so many bytes may take at this moment. One that can drop something gives back what the machine
    /// lacks.
    pub fn lends(self, used_bytes: u64, drops: bool) -> u64 {
        let reserve = (self.total_bytes / RESERVE_PART).clamp(RESERVE_MIN, RESERVE_MAX);
        match self.available_bytes.checked_sub(reserve) {
            Some(free) => used_bytes + free.max(SLACK),
            None if drops => used_bytes.saturating_sub(reserve - self.available_bytes),
            None => used_bytes + SLACK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24683904 kB\nMemFree:  1 kB\nMemAvailable:   20971520 kB\n";
        assert_eq!(Machine::parse(text), Some(Machine { total_bytes: 24_683_904 << 10, available_bytes: 20 * GIB }));
        assert_eq!(Machine::parse("MemTotal: 1 kB\n"), None);
        assert!(Machine::now().is_some_and(|machine| machine.available_bytes <= machine.total_bytes));
    }

    #[test]
    fn what_the_machine_needs_is_not_lent() {
        let machine = |available_bytes| Machine { total_bytes: 16 * GIB, available_bytes };
        assert_eq!(machine(8 * GIB).lends(2 * GIB, false), 9 * GIB);
        assert_eq!(machine(GIB).lends(2 * GIB, false), 2 * GIB + SLACK);
        assert_eq!(machine(GIB / 2).lends(2 * GIB, false), 2 * GIB + SLACK);
        assert_eq!(machine(GIB / 2).lends(2 * GIB, true), 2 * GIB - GIB / 2);
    }
}
