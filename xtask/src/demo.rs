//! `cargo xtask demo`: seq | shuf | sort with all the memory it wants, and with a fraction of it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use crate::measure::{Measured, measure};
use crate::project;
use crate::table::{Table, mib};

/// How large the demonstration is.
#[derive(Args)]
pub struct DemoArgs {
    /// Roughly the native peak in MiB.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(50..))]
    size: u32,
    /// The budget, in percent of the native peak.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    percent: u64,
}

const TIMEOUT: Duration = Duration::from_secs(600);

/// Builds tmem, runs the job both ways, prints a table, and fails if the outputs differ.
pub fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let tmem = project::build_tmem()?;
    let script = Path::new("tests/workloads/sort.sh");
    let size = args.size.to_string();
    println!(
        "\nThe job: seq | shuf | sort | cksum over {:.1} million lines, all of it in memory",
        f64::from(args.size) * 0.0145
    );
    println!("$ sh {} {size}", script.display());
    let native = measure(Command::new("sh").arg(script).arg(&size).current_dir(project::root()), TIMEOUT, || ())?;
    ensure!(native.ending.is_success(), "the job fails natively: {}", native.complaint);

    let ram_mib = (native.peak_ram_bytes * args.percent / 100) >> 20;
    println!("$ tmem run --ram {ram_mib}M -- sh {} {size}", script.display());
    let mut command = Command::new(&tmem);
    command.args(["run", "--ram", &format!("{ram_mib}M"), "--", "sh"]).arg(script).arg(&size);
    let small = measure(command.current_dir(project::root()), TIMEOUT, || ())?;
    ensure!(small.ending.is_success(), "the job fails under tmem: {}: {}", small.ending, small.complaint);

    println!();
    let table = Table::head(&[("", 24), ("peak RAM", 10), ("time", 8), ("CPU", 8), ("output", 16)]);
    table.row(&cells("native", &native, &format!("{:016x}", native.output_hash)));
    let same = small.output_hash == native.output_hash;
    let output = if same { "the same".to_owned() } else { format!("{:016x}", small.output_hash) };
    table.row(&cells(&format!("tmem run --ram {ram_mib}M"), &small, &output));
    println!("\nPeak RAM is anonymous and shared memory of all processes, tmem's own included, sampled every 20 ms.");
    ensure!(same, "the outputs differ");
    Ok(())
}

fn cells(name: &str, run: &Measured, output: &str) -> [String; 5] {
    [
        name.to_owned(),
        mib(run.peak_ram_bytes),
        format!("{:.2} s", run.elapsed_s),
        format!("{:.2} s", run.cpu_s),
        output.to_owned(),
    ]
}
