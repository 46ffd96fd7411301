//! `cargo xtask bench`: tmem beside what it has to beat.

mod alloc;
mod disk;
mod fits;
mod race;
mod remote;
mod serve;
mod spill;

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;

use crate::kernel_swap::{Backing, KernelSwap};
use crate::measure::{Ending, Measured, measure};
use crate::project;

/// What can be measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Programs natively, under kernel zram swap, and under `tmem run` with the RAM that the kernel needed in total.
    Run(race::RaceArgs),
    /// Programs that fit their budget: what does tmem cost when nothing has to leave?
    Fits(fits::FitsArgs),
    /// Programs that do not fit even compressed: kernel swap to a file beside `tmem run --spill` on the same disk.
    Spill(spill::SpillArgs),
    /// All allocators: density beside the kernel's zram, hit ratios and evictions on generated traces, latency.
    Alloc(alloc::AllocArgs),
    /// `tmem disk` beside nbdkit's memory disks, zstd and malloc, under fio.
    Disk(disk::DiskArgs),
    /// Programs that do not fit even compressed: remote memory beside a spill file.
    Remote(remote::RemoteArgs),
    /// `tmem serve` beside Redis.
    Serve(serve::ServeArgs),
    /// The engine alone against the bare codec.
    Engine {
        /// Passed on to the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Runs a benchmark.
pub fn bench(bench: &Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Run(args) => race::race(args),
        Bench::Fits(args) => fits::fits(args),
        Bench::Spill(args) => spill::spill(args),
        Bench::Alloc(args) => alloc::alloc(args),
        Bench::Disk(args) => disk::disk(args),
        Bench::Remote(args) => remote::remote(args),
        Bench::Serve(args) => serve::serve(args),
        Bench::Engine { args } => {
            project::run(project::cargo(&["bench", "--package", "tmem", "--bench", "engine", "--"]).args(args))
        }
    }
}

/// Writes all figures to a file, if one was named.
fn write_json(path: Option<&Path>, figures: &impl Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(figures)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// A run that takes longer than this is ended and counts as not finished.
const TIMEOUT: Duration = Duration::from_secs(900);

fn run_natively(command: &[String]) -> anyhow::Result<Measured> {
    measure(&mut natively(command), TIMEOUT, || ())
}

/// The kernel's way, and the bytes that were swapped out. The peak is what the group had resident and what zram took.
fn run_under_kernel(backing: Backing<'_>, limit_bytes: u64, command: &[String]) -> anyhow::Result<(Measured, u64)> {
    let mut swap = KernelSwap::set_up(backing, limit_bytes)?;
    let mut command = swap.command(command);
    let mut run = measure(&mut command, TIMEOUT, || swap.sample())?;
    run.peak_ram_bytes = swap.total_ram_bytes();
    // A shell does not tell that a member of its pipeline was killed.
    if swap.was_killed() {
        run.ending = Ending::OutOfMemory;
    }
    Ok((run, swap.written_bytes()))
}

fn run_under_tmem(tmem: &Path, ram_bytes: u64, command: &[String]) -> anyhow::Result<Measured> {
    measure(&mut under_tmem(tmem, ram_bytes, command), TIMEOUT, || ())
}

fn natively(command: &[String]) -> Command {
    let mut native = Command::new(&command[0]);
    native.args(&command[1..]);
    native
}

fn under_tmem(tmem: &Path, ram_bytes: u64, command: &[String]) -> Command {
    let mut tmem = Command::new(tmem);
    tmem.arg("run").arg(format!("--ram={ram_bytes}")).arg("--").args(command);
    tmem
}

/// The machine that the figures are from, to be printed with them.
#[derive(Serialize)]
struct Machine {
    kernel: String,
    cpus: usize,
    ram_bytes: u64,
}

impl Machine {
    fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let meminfo = read("/proc/meminfo");
        let total =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            ram_bytes: total.unwrap_or(0_u64) << 10,
        }
    }

    fn print(&self) {
        println!("\nLinux {}, {} CPUs, {}", self.kernel, self.cpus, crate::table::mib(self.ram_bytes));
    }
}

/// A share of the native peak, written `1/4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    numerator: u64,
    denominator: u64,
}

impl Fraction {
    const fn new(numerator: u64, denominator: u64) -> Self {
        Self { numerator, denominator }
    }

    fn of(self, bytes: u64) -> u64 {
        bytes * self.numerator / self.denominator
    }

    fn ratio(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }
}

impl FromStr for Fraction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(n, d)| Some((n.parse().ok()?, d.parse().ok()?)));
        match parts {
            Some((numerator, denominator)) if 0 < numerator && numerator <= denominator => {
                Ok(Self { numerator, denominator })
            }
            _ => Err(format!("'{text}' is not a fraction: write for example 1/4")),
        }
    }
}

impl std::fmt::Display for Fraction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.numerator, self.denominator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions() {
        assert_eq!("1/4".parse::<Fraction>().unwrap().of(400), 100);
        for text in ["", "1", "1/0", "0/4", "5/4", "a/b"] {
            text.parse::<Fraction>().expect_err(text);
        }
    }
}
