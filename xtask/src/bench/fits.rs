//! `cargo xtask bench fits`: what tmem costs a program that has all the RAM it needs.

use clap::Args;

use super::{Machine, TIMEOUT, natively, run_natively, under_tmem};
use crate::measure::{median, time};
use crate::project;
use crate::table::{Table, mib};
use crate::workloads;

/// What to compare.
#[derive(Args)]
pub struct FitsArgs {
    /// Only these workloads.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Interleaved pairs of runs.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
}

/// Runs pairs, native and under tmem with twice the native peak, and compares medians. Memory is looked at only once,
/// natively, to learn the peak.
pub fn fits(args: &FitsArgs) -> anyhow::Result<()> {
    let chosen = workloads::select(&args.only)?;
    let tmem = project::build_tmem()?;
    Machine::this().print();
    println!("Medians of {} interleaved pairs; --ram is twice the native peak.\n", args.pairs);
    let table =
        Table::head(&[("workload", 12), ("--ram", 9), ("native s", 8), ("tmem s", 8), ("speed", 6), ("output", 8)]);
    for workload in chosen {
        if let Some(reason) = workload.unavailable() {
            println!("{:<12} SKIPPED: {reason}", workload.name);
            continue;
        }
        let command = workload.command();
        let warm = run_natively(&command)?;
        if warm.ending.is_skip() {
            println!("{:<12} SKIPPED: something it needs is not installed", workload.name);
            continue;
        }
        let ram_bytes = 2 * warm.peak_ram_bytes + (64 << 20);
        let mut native = Vec::new();
        let mut managed = Vec::new();
        for _ in 0..args.pairs {
            native.push(time(&mut natively(&command), TIMEOUT)?);
            managed.push(time(&mut under_tmem(&tmem, ram_bytes, &command), TIMEOUT)?);
        }
        let equal = managed.iter().all(|run| run.ending == warm.ending && run.output_hash == warm.output_hash);
        let native_s = median(native.iter().map(|run| run.elapsed_s));
        let tmem_s = median(managed.iter().map(|run| run.elapsed_s));
        table.row(&[
            workload.name.to_owned(),
            mib(ram_bytes),
            format!("{native_s:.3}"),
            format!("{tmem_s:.3}"),
            format!("{:.3}", native_s / tmem_s),
            if equal { "equal" } else { "DIFFERS" }.to_owned(),
        ]);
    }
    Ok(())
}
