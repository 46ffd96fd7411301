//! `cargo xtask bench spill`: programs that do not fit their RAM even compressed, under the kernel with a swap file and under
//! tmem with a spill file, in the same RAM and on the same disk.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use tempfile::TempDir;

use super::race::{last_line, median_ram, ratio, times};
use super::{Fraction, Machine, TIMEOUT, run_natively, run_under_kernel, write_json};
use crate::kernel_swap::Backing;
use crate::measure::{Measured, measure, median};
use crate::project;
use crate::table::{Table, mib};
use crate::workloads;

/// What to compare.
#[derive(Args)]
pub struct SpillArgs {
    /// Only these programs.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Interleaved runs of each; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Where the swap file (2 GiB) and the spill file go, one at a time; else the target directory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write every single run to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A program and the shares of its memory that it has to do with.
#[derive(Debug)]
struct Case {
    name: &'static str,
    source: Source,
    fractions: &'static [Fraction],
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// `tests/programs/noise.c`, whose size is known beforehand.
    Noise { mib: u64, args: &'static [&'static str] },
    /// One of `tests/workloads`; its size is its native peak.
    Workload,
}

const QUARTER: Fraction = Fraction::new(1, 4);
const EIGHTH: Fraction = Fraction::new(1, 8);

const CASES: &[Case] = &[
    Case { name: "noise", source: Source::Noise { mib: 256, args: &["256", "1"] }, fractions: &[QUARTER] },
    Case {
        name: "text",
        source: Source::Noise { mib: 256, args: &["256", "1", "text"] },
        fractions: &[QUARTER, EIGHTH],
    },
    Case { name: "sqlite", source: Source::Workload, fractions: &[QUARTER] },
    Case { name: "static", source: Source::Workload, fractions: &[QUARTER] },
];

/// One run and what it wrote to the disk.
#[derive(Serialize)]
struct Run {
    #[serde(flatten)]
    measured: Measured,
    written_bytes: u64,
    /// What left for the disk: packed pages of tmem, pages of the kernel.
    pages_out: u64,
}

/// All runs of a program in as much RAM.
#[derive(Serialize)]
struct Comparison {
    program: &'static str,
    ram_bytes: u64,
    native: Measured,
    /// Empty where the kernel's way cannot be shown.
    kernel: Vec<Run>,
    tmem: Vec<Run>,
}

#[derive(Serialize)]
struct Results {
    machine: Machine,
    comparisons: Vec<Comparison>,
}

/// What all runs share.
struct Setting {
    tmem: PathBuf,
    dir: PathBuf,
    scratch: TempDir,
    kernel: bool,
}

/// Runs every program in as much RAM as each of its fractions says, and prints a row for each.
pub fn spill(args: &SpillArgs) -> anyhow::Result<()> {
    let chosen = select(&args.only)?;
    let dir = args.dir.clone().map_or_else(project::target_dir, Ok)?;
    let dir = dir.canonicalize().with_context(|| format!("no directory {}", dir.display()))?;
    let tmem = project::build_tmem()?;
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    project::compile_program("noise", scratch.path())?;
    let machine = Machine::this();
    machine.print();
    let no_kernel = Backing::FileIn(&dir).unavailable();
    // The trial may have been interrupted, which is no reason to skip.
    crate::interrupt::check()?;
    if let Some(reason) = &no_kernel {
        println!("SKIPPED: kernel swap to a file: {reason}");
    }
    println!("Medians of {} interleaved runs; swap and spill on the same disk; RAM is the peak.\n", args.runs);
    let setting = Setting { tmem, dir, scratch, kernel: no_kernel.is_none() };
    let table = head();
    let mut comparisons = Vec::new();
    for case in chosen {
        let command = match setting.command(case) {
            Ok(command) => command,
            Err(reason) => {
                println!("{:<8} SKIPPED: {reason}", case.name);
                continue;
            }
        };
        // The first run warms the page cache, the second is measured.
        if run_natively(&command)?.ending.is_skip() {
            println!("{:<8} SKIPPED: something it needs is not installed", case.name);
            continue;
        }
        let native = run_natively(&command)?;
        ensure!(native.ending.is_success(), "{} fails natively: {}", case.name, native.complaint);
        for &fraction in case.fractions {
            let ram_bytes = fraction.of(case.size_bytes(&native));
            let comparison = setting.compare(case.name, args.runs, ram_bytes, &native, &command)?;
            table.row(&comparison.cells());
            comparison.explain();
            comparisons.push(comparison);
        }
    }
    write_json(args.json.as_deref(), &Results { machine, comparisons })
}

/// The cases whose name is in `only`; all of them if that is empty.
fn select(only: &[String]) -> anyhow::Result<Vec<&'static Case>> {
    for name in only {
        let known = || CASES.iter().map(|case| case.name).collect::<Vec<_>>().join(", ");
        ensure!(CASES.iter().any(|case| case.name == name), "no program '{name}': there are {}", known());
    }
    Ok(CASES.iter().filter(|case| only.is_empty() || only.iter().any(|name| name == case.name)).collect())
}

impl Case {
    fn size_bytes(&self, native: &Measured) -> u64 {
        match self.source {
            Source::Noise { mib, .. } => mib << 20,
            Source::Workload => native.peak_ram_bytes,
        }
    }
}

impl Setting {
    /// The command line, or why the program cannot run here.
    fn command(&self, case: &Case) -> Result<Vec<String>, String> {
        match case.source {
            Source::Noise { args, .. } => {
                let program = self.scratch.path().join("noise").to_string_lossy().into_owned();
                Ok(std::iter::once(program).chain(args.iter().map(|&arg| arg.to_owned())).collect())
            }
            Source::Workload => {
                let found = workloads::select(&[case.name.to_owned()]).map_err(|error| error.to_string())?;
                found[0].unavailable().map_or_else(|| Ok(found[0].command()), Err)
            }
        }
    }

    fn compare(
        &self,
        program: &'static str,
        runs: u32,
        ram_bytes: u64,
        native: &Measured,
        command: &[String],
    ) -> anyhow::Result<Comparison> {
        let (mut kernel, mut tmem) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            if self.kernel {
                kernel.push(self.run_under_kernel(ram_bytes, command)?);
            }
            tmem.push(self.run_under_tmem(ram_bytes, command)?);
        }
        Ok(Comparison { program, ram_bytes, native: native.clone(), kernel, tmem })
    }

    fn run_under_kernel(&self, ram_bytes: u64, command: &[String]) -> anyhow::Result<Run> {
        let (measured, written_bytes) = run_under_kernel(Backing::FileIn(&self.dir), ram_bytes, command)?;
        Ok(Run { measured, written_bytes, pages_out: written_bytes / tmem::PAGE_SIZE as u64 })
    }

    fn run_under_tmem(&self, ram_bytes: u64, command: &[String]) -> anyhow::Result<Run> {
        let figures = self.scratch.path().join("stats.json");
        // What an earlier run said must not be taken for this one's.
        std::fs::write(&figures, "").context("cannot write to the temporary directory")?;
        let mut tmem = Command::new(&self.tmem);
        tmem.arg("run").arg(format!("--ram={ram_bytes}")).arg("--spill").arg(&self.dir);
        tmem.arg("--stats").arg(&figures).arg("--").args(command);
        let measured = measure(&mut tmem, TIMEOUT, || ())?;
        let text = std::fs::read_to_string(&figures).context("tmem left no figures")?;
        let (written_bytes, pages_out) = match parse_spill(&text) {
            Some(figures) => figures,
            None if measured.ending.is_success() => anyhow::bail!("the figures of tmem are not as expected: {text}"),
            None => (0, 0),
        };
        Ok(Run { measured, written_bytes, pages_out })
    }
}

/// Bytes and packed pages that went to the spill file, of what `--stats` wrote.
fn parse_spill(text: &str) -> Option<(u64, u64)> {
    let figures: serde_json::Value = serde_json::from_str(text).ok()?;
    let spill = figures.get("spill")?;
    Some((spill.get("written_bytes")?.as_u64()?, spill.get("zpages_out")?.as_u64()?))
}

fn head() -> Table {
    Table::head(&[
        ("program", 8),
        ("RAM", 7),
        ("native s", 8),
        ("kernel s", 8),
        ("tmem s", 8),
        ("tmem/kernel", 11),
        ("kernel wrote", 12),
        ("tmem wrote", 10),
        ("B/page out", 10),
        ("kernel RAM", 10),
        ("tmem RAM", 9),
        ("output", 8),
    ])
}

fn measured(runs: &[Run]) -> impl Iterator<Item = &Measured> {
    runs.iter().map(|run| &run.measured)
}

/// The median of what the runs that finished say, as text; a dash if there is none.
fn median_of(runs: &[Run], pick: impl Fn(&Run) -> f64, show: impl Fn(f64) -> String) -> String {
    let middle = median(runs.iter().filter(|run| run.measured.ending.is_success()).map(pick));
    if middle.is_finite() { show(middle) } else { "-".to_owned() }
}

fn bytes_per_page(run: &Run) -> f64 {
    run.written_bytes as f64 / run.pages_out as f64
}

impl Comparison {
    fn cells(&self) -> Vec<String> {
        let (kernel_s, _) = times(measured(&self.kernel));
        let (tmem_s, _) = times(measured(&self.tmem));
        let ratio = ratio(&kernel_s, &tmem_s);
        let wrote = |runs: &[Run]| median_of(runs, |run| run.written_bytes as f64, |bytes| mib(bytes as u64));
        vec![
            self.program.to_owned(),
            mib(self.ram_bytes),
            format!("{:.2}", self.native.elapsed_s),
            kernel_s,
            tmem_s,
            ratio,
            wrote(&self.kernel),
            wrote(&self.tmem),
            median_of(&self.tmem, bytes_per_page, |bytes| format!("{bytes:.0}")),
            median_ram(measured(&self.kernel)),
            median_ram(measured(&self.tmem)),
            self.output().to_owned(),
        ]
    }

    /// Whether every run that ended as it should printed what it does natively.
    fn output(&self) -> &'static str {
        let differs = |run: &Measured| run.ending.is_success() && run.output_hash != self.native.output_hash;
        match (measured(&self.tmem).any(differs), measured(&self.kernel).any(differs)) {
            (true, _) => "DIFFERS",
            (false, true) => "kernel's",
            (false, false) if measured(&self.tmem).all(|run| run.ending.is_success()) => "equal",
            (false, false) => "failed",
        }
    }

    /// Says below the row what went wrong in it.
    fn explain(&self) {
        for (who, runs) in [("kernel", &self.kernel), ("tmem", &self.tmem)] {
            for run in measured(runs).filter(|run| !run.ending.is_success()) {
                println!("    {who}: {}: {}", run.ending, last_line(&run.complaint));
            }
        }
        let allowed = self.ram_bytes + self.ram_bytes / 20 + (8 << 20);
        for run in measured(&self.tmem).filter(|run| run.peak_ram_bytes > allowed) {
            println!("    tmem: OVER BUDGET: {}", mib(run.peak_ram_bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Ending;

    fn run(ending: Ending, output_hash: u64) -> Run {
        let measured = Measured {
            ending,
            elapsed_s: 2.0,
            cpu_s: 1.0,
            peak_ram_bytes: 64 << 20,
            output_hash,
            complaint: String::new(),
        };
        Run { measured, written_bytes: 8192, pages_out: 4 }
    }

    fn comparison(kernel: Run, tmem: Run) -> Comparison {
        let native = run(Ending::Exited(0), 1).measured;
        Comparison { program: "noise", ram_bytes: 64 << 20, native, kernel: vec![kernel], tmem: vec![tmem] }
    }

    #[test]
    fn figures_are_read() {
        assert_eq!(parse_spill(r#"{"spill":{"written_bytes":10,"zpages_out":2}}"#), Some((10, 2)));
        assert_eq!((parse_spill("{}"), parse_spill("")), (None, None));
    }

    #[test]
    fn every_workload_exists_and_names_select() {
        for case in CASES.iter().filter(|case| matches!(case.source, Source::Workload)) {
            workloads::select(&[case.name.to_owned()]).unwrap();
        }
        assert_eq!(select(&[]).unwrap().len(), CASES.len());
        select(&["nois".to_owned()]).unwrap_err();
    }

    #[test]
    fn other_output_is_told_from_failure() {
        let ok = |hash| run(Ending::Exited(0), hash);
        assert_eq!(comparison(ok(1), ok(1)).output(), "equal");
        assert_eq!(comparison(ok(1), ok(2)).output(), "DIFFERS");
        assert_eq!(comparison(ok(2), ok(1)).output(), "kernel's");
        assert_eq!(comparison(run(Ending::OutOfMemory, 2), ok(1)).output(), "equal");
        assert_eq!(comparison(ok(1), run(Ending::Signaled(9), 2)).output(), "failed");
    }

    #[test]
    fn a_side_without_a_finished_run_shows_a_dash() {
        let cells = comparison(run(Ending::OutOfMemory, 2), run(Ending::Exited(0), 1)).cells();
        assert_eq!(cells[3..9], ["killed", "2.00", "-", "-", "0 MiB", "2048"]);
    }
}
