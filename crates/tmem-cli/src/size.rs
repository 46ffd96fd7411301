//! Sizes as people write them: `512M`, `1.5G`, `800KiB`, `50%`.

use std::fmt;
use std::fs;
use std::str::FromStr;

/// An amount of RAM given on the command line: bytes, or a share of what this machine or container has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RamSize {
    /// A number of bytes.
    Bytes(u64),
    /// A share in percent, more than 0 and at most 100.
    Percent(f64),
}

/// Why a text is not a size; shown to the user behind the name of the flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeError(String);

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SizeError {}

impl FromStr for RamSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let number: f64 = number.parse().map_err(|_| not_a_size(text))?;
        if unit.trim() == "%" {
            if number <= 0.0 || number > 100.0 {
                return Err(SizeError(format!("{text} is not a share of the RAM: use more than 0% and at most 100%")));
            }
            return Ok(Self::Percent(number));
        }
        let shift = unit_shift(unit.trim()).ok_or_else(|| not_a_size(text))?;
        // Exact up to 2^53 bytes, which is 8 PiB; the cast saturates beyond that.
        let bytes = (number * (1_u64 << shift) as f64) as u64;
        match bytes {
            0 => Err(SizeError("the budget must be more than 0 bytes".to_owned())),
            u64::MAX => Err(SizeError(format!("{text} is more than any machine has"))),
            _ => Ok(Self::Bytes(bytes)),
        }
    }
}

impl RamSize {
    /// The size in bytes; a share is taken of the RAM that this machine or container has.
    ///
    /// # Errors
    ///
    /// When the size is a share and the kernel does not tell how much RAM there is.
    pub fn bytes(self) -> Result<u64, SizeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Percent(percent) => {
                let total = ram_total_bytes().ok_or_else(|| {
                    SizeError("cannot tell how much RAM there is: give the budget in bytes".to_owned())
                })?;
                Ok((total as f64 * percent / 100.0) as u64)
            }
        }
    }
}

fn not_a_size(text: &str) -> SizeError {
    SizeError(format!("'{text}' is not a size: write for example 512M, 1.5G, 800MiB or 50%"))
}

/// The power of two that a unit stands for. `GB` is refused: it means 10^9 to some and 2^30 to others.
fn unit_shift(unit: &str) -> Option<u32> {
    match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Some(0),
        "k" | "kib" => Some(10),
        "m" | "mib" => Some(20),
        "g" | "gib" => Some(30),
        "t" | "tib" => Some(40),
        _ => None,
    }
}

/// RAM of the machine, or the limit of the container if that is less.
fn ram_total_bytes() -> Option<u64> {
    let machine = meminfo_total_bytes(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(tmem_run::doctor::memory_limit_bytes().map_or(machine, |limit| limit.min(machine)))
}

fn meminfo_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> u64 {
        match text.parse() {
            Ok(RamSize::Bytes(bytes)) => bytes,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn units_are_powers_of_two() {
        assert_eq!(bytes("4096"), 4096);
        assert_eq!(bytes("4096B"), 4096);
        assert_eq!(bytes("1K"), 1 << 10);
        assert_eq!(bytes("1k"), 1 << 10);
        assert_eq!(bytes("1KiB"), 1 << 10);
        assert_eq!(bytes("512M"), 512 << 20);
        assert_eq!(bytes("512mib"), 512 << 20);
        assert_eq!(bytes("3G"), 3 << 30);
        assert_eq!(bytes(" 3 GiB "), 3 << 30);
        assert_eq!(bytes("2T"), 2 << 40);
    }

    #[test]
    fn fractions_are_allowed() {
        assert_eq!(bytes("1.5G"), 3 << 29);
        assert_eq!(bytes(".5K"), 512);
        assert_eq!(bytes("0.1K"), 102);
    }

    #[test]
    fn a_share_of_the_machine() {
        assert_eq!("50%".parse(), Ok(RamSize::Percent(50.0)));
        assert_eq!("12.5 %".parse(), Ok(RamSize::Percent(12.5)));
        let half = RamSize::Percent(50.0).bytes().unwrap();
        let whole = RamSize::Percent(100.0).bytes().unwrap();
        assert!(half > 0 && half <= whole / 2 + 1, "{half} of {whole}");
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "G", "one", "1X", "1GB", "-1G", "1.2.3M", "1e9", "G1", "1 G 2", "inf", "NaN", "é"] {
            let error = text.parse::<RamSize>().expect_err(text);
            assert!(error.to_string().contains("512M"), "{text}: {error}");
        }
        for text in ["0", "0G", "0.0001", "0%", "101%", "99999999999T"] {
            text.parse::<RamSize>().expect_err(text);
        }
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(meminfo_total_bytes("MemFree: 1 kB\nMemTotal:  24683904 kB\n"), Some(24_683_904 << 10));
        assert_eq!(meminfo_total_bytes("MemFree: 1 kB\n"), None);
    }
}
