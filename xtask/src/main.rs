//! The project's own tasks: `cargo xtask demo`, `ci`, `bench`, `soak`.

mod bench;
mod ci;
mod demo;
mod interrupt;
mod kernel_swap;
mod measure;
mod process_tree;
mod project;
mod soak;
mod table;
mod workloads;
mod zram;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build tmem and show it at work: seq | shuf | sort natively and in a fraction of its memory.
    Demo(demo::DemoArgs),
    /// Format check, lints, documentation, benchmarks in short, and all tests.
    Ci,
    /// Measure tmem beside what it has to beat.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// What must hold, for long: long tests, models of the locks, AddressSanitizer, fuzz targets.
    Soak(soak::SoakArgs),
}

fn main() -> ExitCode {
    let result = interrupt::watch().and_then(|()| match Cli::parse().task {
        Task::Demo(args) => demo::demo(&args),
        Task::Ci => ci::ci(),
        Task::Bench(bench) => bench::bench(&bench),
        Task::Soak(args) => soak::soak(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
