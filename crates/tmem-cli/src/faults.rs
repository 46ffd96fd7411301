//! What `--spill-faults` says: which faults happen to the spill file, and when.

use std::time::Duration;

use tmem::{Fault, Strike};
use tmem_run::SpillFaults;

use crate::size::RamSize;

const DELAY_MAX: Duration = Duration::from_secs(3600);

/// Reads the value of `--spill-faults`.
///
/// # Errors
///
/// What to write instead, for the user.
pub fn parse(text: &str) -> Result<SpillFaults, String> {
    let mut faults = SpillFaults { text: text.to_owned(), list: Vec::new(), seed: 1 };
    for part in text.split(',') {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("'{part}' has no '='{EXAMPLE}"))?;
        match name {
            "seed" => faults.seed = value.parse().map_err(|_| format!("the seed '{value}' is not a number"))?,
            "full" => faults.list.push((Fault::Full(size(value)?), Strike::From(1))),
            "delay" => faults.list.push(delayed(value, Fault::Delay)?),
            "delay-write" => faults.list.push(delayed(value, Fault::DelayWrite)?),
            "delay-read" => faults.list.push(delayed(value, Fault::DelayRead)?),
            _ => faults.list.push((named(name)?, strike(value)?)),
        }
    }
    if faults.list.is_empty() { Err(format!("it names no fault{EXAMPLE}")) } else { Ok(faults) }
}

const EXAMPLE: &str = ": write for example write=1/100,corrupt=7";

fn named(name: &str) -> Result<Fault, String> {
    Ok(match name {
        "write" => Fault::FailWrite,
        "read" => Fault::FailRead,
        "discard" => Fault::FailDiscard,
        "torn" => Fault::TearWrite,
        "lost" => Fault::LoseWrite,
        "corrupt" => Fault::CorruptRead,
        "corrupt-write" => Fault::CorruptWrite,
        _ => return Err(format!("there is no fault '{name}'{EXAMPLE}")),
    })
}

/// `1/N`, `N` or `N+`.
fn strike(text: &str) -> Result<Strike, String> {
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
    let read = match (text.strip_prefix("1/"), text.strip_suffix('+')) {
        (Some(one_in), _) => number(one_in).map(Strike::OneIn),
        (None, Some(first)) => number(first).map(Strike::From),
        (None, None) => number(text).map(Strike::Nth),
    };
    read.ok_or_else(|| {
        format!("'{text}' is no time for a fault: write 1/100 (one in a hundred), 7 (the seventh) or 7+ (from it on)")
    })
}

/// `TIME@WHEN`.
fn delayed(text: &str, fault: fn(Duration) -> Fault) -> Result<(Fault, Strike), String> {
    let parts = text.split_once('@').and_then(|(time, when)| Some((duration(time)?, when)));
    let (time, when) =
        parts.ok_or_else(|| format!("'{text}' is no delay: write for example 50ms@1/100 or 3s@7, an hour at most"))?;
    Ok((fault(time), strike(when)?))
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number = number.parse().ok()?;
    let time = match unit {
        "us" => Duration::from_micros(number),
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        _ => return None,
    };
    (time <= DELAY_MAX).then_some(time)
}

fn size(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(RamSize::Bytes(bytes)) => Ok(bytes),
        _ => Err(format!("'{text}' is not a size: write for example 64M")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_and_every_time() {
        let faults = parse(
            "write=1/100,read=7,discard=3+,torn=1/500,lost=1,corrupt=1/1000,corrupt-write=2,delay=50ms@1/100,\
             delay-write=3s@7,delay-read=20us@2+,full=64M,seed=7",
        )
        .unwrap();
        assert_eq!(faults.seed, 7);
        assert_eq!(
            faults.list,
            [
                (Fault::FailWrite, Strike::OneIn(100)),
                (Fault::FailRead, Strike::Nth(7)),
                (Fault::FailDiscard, Strike::From(3)),
                (Fault::TearWrite, Strike::OneIn(500)),
                (Fault::LoseWrite, Strike::Nth(1)),
                (Fault::CorruptRead, Strike::OneIn(1000)),
                (Fault::CorruptWrite, Strike::Nth(2)),
                (Fault::Delay(Duration::from_millis(50)), Strike::OneIn(100)),
                (Fault::DelayWrite(Duration::from_secs(3)), Strike::Nth(7)),
                (Fault::DelayRead(Duration::from_micros(20)), Strike::From(2)),
                (Fault::Full(64 << 20), Strike::From(1)),
            ]
        );
    }

    #[test]
    fn what_is_no_fault_is_refused_with_an_example() {
        for text in ["", "write", "wrote=1", "seed=1", "write=0", "write=2/3", "write=1/", "write=+", "read=-1"] {
            assert!(parse(text).is_err_and(|why| why.contains("write")), "{text}");
        }
        for text in
            ["delay=50ms", "delay=50@1", "delay=@1", "delay=2h@1", "delay=5000s@1", "full=x", "full=5%", "seed=x"]
        {
            parse(text).expect_err(text);
        }
    }
}
