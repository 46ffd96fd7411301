//! `cargo xtask bench alloc`: all allocators on pages of real programs and on generated traces, beside the kernel's zram.

mod density;
mod figures;
mod latency;
mod plots;
mod replay;
pub mod samples;
mod simulate;
mod trace;
mod traces;
mod zipf;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Fraction, Machine};
use crate::project;

/// What to measure.
#[derive(Args)]
pub struct AllocArgs {
    /// Files of raw 4 KiB pages; without any, the samples of the project.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Little data and one round: shows that it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// What a cache gets of the RAM that all its pages would take.
    #[arg(long, default_value = "1/4", value_name = "N/M")]
    share: Fraction,
    /// Rounds of everything that is timed; the tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write plots to this directory.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Bytes of RAM per page.
    Density,
    /// Hit ratio, evictions, moves, and times on generated traces.
    Traces,
    /// Puts and gets while another thread reclaims.
    Latency,
}

/// All figures.
#[derive(Serialize)]
struct Results {
    machine: Machine,
    density: Option<density::Density>,
    traces: Option<Vec<traces::Row>>,
    latency: Option<Vec<latency::Row>>,
}

/// Measures what was asked for, prints tables, and writes figures and plots.
pub fn alloc(args: &AllocArgs) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        return again_in_release();
    }
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let pages_min = if args.quick { 1 } else { samples::PAGES_MIN };
    let samples = samples::load(&args.files, pages_min)?;
    let machine = Machine::this();
    machine.print();
    println!("Files of less than {pages_min} pages are repeated until they have as many, on all sides.");
    let density = wants(Part::Density).then(|| density::measure(&samples)).transpose()?;
    let rounds = if args.quick { 1 } else { args.rounds };
    let measure_traces = || traces::measure(&samples, args.quick, args.share.ratio(), rounds);
    let traces = wants(Part::Traces).then(measure_traces).transpose()?;
    let latency = wants(Part::Latency).then(|| latency::measure(&samples, args.quick, rounds)).transpose()?;
    let results = Results { machine, density, traces, latency };
    super::write_json(args.json.as_deref(), &results)?;
    if let Some(dir) = &args.plots {
        plots::draw(&results, dir)?;
    }
    Ok(())
}

/// `cargo xtask` builds without optimization, which is no way to measure; this process becomes one that was built with it.
fn again_in_release() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let error = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--package", "xtask", "--manifest-path"])
        .arg(project::root().join("Cargo.toml"))
        .arg("--")
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).context("cannot run cargo")
}
