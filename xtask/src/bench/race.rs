//! `cargo xtask bench run`: the same program natively, under kernel zram swap, and under tmem with equal RAM.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Fraction, Machine, run_natively, run_under_kernel, run_under_tmem, write_json};
use crate::kernel_swap::Backing;
use crate::measure::{Measured, median};
use crate::project;
use crate::table::{Table, mib};
use crate::workloads::{self, Workload};

/// What to race.
#[derive(Args)]
pub struct RaceArgs {
    /// Only these workloads.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Limits for the kernel, as fractions of the native peak.
    #[arg(long, value_delimiter = ',', default_value = "1/2,1/4", value_name = "N/M")]
    fraction: Vec<Fraction>,
    /// Runs of each; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Write every single run to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One run beside the kernel.
#[derive(Serialize)]
struct Pair {
    /// Absent where the kernel's way cannot be shown.
    kernel: Option<Measured>,
    /// All RAM that the kernel took, which is what tmem was given.
    ram_bytes: u64,
    tmem: Measured,
}

/// All runs of a workload at one fraction.
#[derive(Serialize)]
struct Race {
    workload: &'static str,
    fraction: String,
    native: Measured,
    pairs: Vec<Pair>,
}

#[derive(Serialize)]
struct Results {
    machine: Machine,
    races: Vec<Race>,
}

/// Races every workload and prints a row for each fraction.
pub fn race(args: &RaceArgs) -> anyhow::Result<()> {
    let chosen = workloads::select(&args.only)?;
    let tmem = project::build_tmem()?;
    let no_kernel = Backing::Zram.unavailable();
    let machine = Machine::this();
    machine.print();
    if let Some(reason) = &no_kernel {
        println!("SKIPPED: kernel zram swap: {reason}; tmem gets the fraction itself as its budget");
    }
    println!(
        "Medians of {} interleaved runs; CPU includes the supervisor; RAM is the peak of everything.\n",
        args.runs
    );
    let table = head();
    let mut races = Vec::new();
    for workload in chosen {
        if let Some(reason) = workload.unavailable() {
            println!("{:<12} SKIPPED: {reason}", workload.name);
            continue;
        }
        let command = workload.command();
        // The first run warms the page cache, the second is measured.
        let warm = run_natively(&command)?;
        if warm.ending.is_skip() {
            println!("{:<12} SKIPPED: something it needs is not installed", workload.name);
            continue;
        }
        let native = run_natively(&command)?;
        anyhow::ensure!(native.ending.is_success(), "{} fails natively: {}", workload.name, native.complaint);
        for &fraction in &args.fraction {
            let race = race_at(
                args.runs,
                workload,
                fraction,
                &native,
                |ram| run_under_tmem(&tmem, ram, &command),
                &no_kernel,
            )?;
            table.row(&race.cells());
            race.explain();
            races.push(race);
        }
    }
    write_json(args.json.as_deref(), &Results { machine, races })
}

fn race_at(
    runs: u32,
    workload: &Workload,
    fraction: Fraction,
    native: &Measured,
    under_tmem: impl Fn(u64) -> anyhow::Result<Measured>,
    no_kernel: &Option<String>,
) -> anyhow::Result<Race> {
    let limit_bytes = fraction.of(native.peak_ram_bytes);
    let mut pairs = Vec::new();
    for _ in 0..runs {
        let kernel = match no_kernel {
            None => Some(run_under_kernel(Backing::Zram, limit_bytes, &workload.command())?.0),
            Some(_) => None,
        };
        let ram_bytes = kernel.as_ref().map_or(limit_bytes, |run| run.peak_ram_bytes);
        pairs.push(Pair { kernel, ram_bytes, tmem: under_tmem(ram_bytes)? });
    }
    Ok(Race { workload: workload.name, fraction: fraction.to_string(), native: native.clone(), pairs })
}

fn head() -> Table {
    Table::head(&[
        ("workload", 12),
        ("limit", 5),
        ("native s", 8),
        ("native RAM", 10),
        ("kernel s", 8),
        ("tmem s", 8),
        ("tmem/kernel", 11),
        ("kernel CPU", 10),
        ("tmem CPU", 8),
        ("kernel RAM", 10),
        ("tmem RAM", 9),
        ("output", 8),
    ])
}

impl Race {
    fn kernel_runs(&self) -> impl Iterator<Item = &Measured> {
        self.pairs.iter().filter_map(|pair| pair.kernel.as_ref())
    }

    fn tmem_runs(&self) -> impl Iterator<Item = &Measured> {
        self.pairs.iter().map(|pair| &pair.tmem)
    }

    fn cells(&self) -> Vec<String> {
        let (kernel_s, kernel_cpu) = times(self.kernel_runs());
        let (tmem_s, tmem_cpu) = times(self.tmem_runs());
        let ratio = ratio(&kernel_s, &tmem_s);
        vec![
            self.workload.to_owned(),
            self.fraction.clone(),
            format!("{:.2}", self.native.elapsed_s),
            mib(self.native.peak_ram_bytes),
            kernel_s,
            tmem_s,
            ratio,
            kernel_cpu,
            tmem_cpu,
            median_ram(self.kernel_runs()),
            median_ram(self.tmem_runs()),
            self.output(),
        ]
    }

    /// Whether every run under tmem printed and ended as it did natively.
    fn output(&self) -> String {
        let differs = |run: &&Measured| run.ending != self.native.ending || run.output_hash != self.native.output_hash;
        match self.tmem_runs().find(differs) {
            None => "equal".to_owned(),
            Some(run) if run.ending.is_success() => "DIFFERS".to_owned(),
            Some(run) => run.ending.to_string(),
        }
    }

    /// Says below the row what went wrong in it.
    fn explain(&self) {
        let killed = self.kernel_runs().filter(|run| !run.ending.is_success()).count();
        if killed > 0 {
            println!("    kernel: {killed} of {} runs were killed for lack of memory or failed", self.pairs.len());
        }
        for pair in &self.pairs {
            if pair.tmem.ending != self.native.ending {
                println!(
                    "    tmem run --ram={}: {}: {}",
                    pair.ram_bytes,
                    pair.tmem.ending,
                    last_line(&pair.tmem.complaint)
                );
            }
            let allowed = pair.ram_bytes + pair.ram_bytes / 20 + (32 << 20);
            if pair.tmem.peak_ram_bytes > allowed {
                println!("    tmem run --ram={}: OVER BUDGET: {}", pair.ram_bytes, mib(pair.tmem.peak_ram_bytes));
            }
        }
    }
}

/// The second time over the first, if there are both.
pub(super) fn ratio(kernel_s: &str, tmem_s: &str) -> String {
    match (kernel_s.parse::<f64>(), tmem_s.parse::<f64>()) {
        (Ok(kernel), Ok(tmem)) => format!("{:.2}", tmem / kernel),
        _ => "-".to_owned(),
    }
}

/// Median time and CPU of the runs that finished, or how the first one ended if none did.
pub(super) fn times<'a>(runs: impl Iterator<Item = &'a Measured>) -> (String, String) {
    let (finished, failed): (Vec<_>, Vec<_>) = runs.partition(|run| run.ending.is_success());
    match (finished.is_empty(), failed.first()) {
        (true, None) => ("-".to_owned(), "-".to_owned()),
        (true, Some(run)) => (run.ending.to_string(), "-".to_owned()),
        (false, _) => {
            let show = |pick: fn(&Measured) -> f64| format!("{:.2}", median(finished.iter().map(|run| pick(run))));
            (show(|run| run.elapsed_s), show(|run| run.cpu_s))
        }
    }
}

pub(super) fn median_ram<'a>(runs: impl Iterator<Item = &'a Measured>) -> String {
    let middle = median(runs.map(|run| run.peak_ram_bytes as f64));
    if middle.is_nan() { "-".to_owned() } else { mib(middle as u64) }
}

pub(super) fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or("no message")
}
