//! The `tmem` command: it translates flags to calls and endings to exit statuses, and decides nothing.

mod disk;
mod doctor;
mod ending;
mod estimate;
mod faults;
mod flags;
mod manual;
mod remote;
mod serve;
mod service;
mod size;
mod spill;
mod stats;
mod top;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::flags::{AttachArgs, BudgetArgs, Cli, Command, DetachArgs, RunArgs};
use crate::stats::StatsSink;

/// `tmem` itself cannot go on; 126 and 127 come from trying to execute the command, as with env and timeout.
const STATUS_TROUBLE: u8 = 125;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Run(args) => run(&args),
        Command::Attach(args) => attach(&args),
        Command::Detach(args) => detach(&args),
        Command::Top(args) => top::top(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => {
            let able = doctor::print(&tmem_run::doctor::examine(), args.json);
            able.map(|able| if able { ExitCode::SUCCESS } else { ExitCode::FAILURE }).map_err(Into::into)
        }
        Command::Estimate(args) => estimate::print(&args).map(|()| ExitCode::SUCCESS),
        Command::Disk(args) => disk::disk(&args).map(|()| ExitCode::SUCCESS),
        Command::Serve(args) => serve::serve(&args).map(|()| ExitCode::SUCCESS),
        Command::Remote(command) => remote::remote(&command).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => manual::completions(shell).map(|()| ExitCode::SUCCESS),
        Command::Man { dir } => manual::man(dir.as_deref()).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| fail(&error))
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let (options, sink) = prepare(&args.budget)?;
    let outcome = tmem_run::run(&args.command, &options)?;
    tell(sink, &outcome.report);
    Ok(ending::end_like(&outcome.ending))
}

fn attach(args: &AttachArgs) -> anyhow::Result<ExitCode> {
    let (options, sink) = prepare(&args.budget)?;
    let outcome = tmem_run::attach(args.pid, &options)?;
    tell(sink, &outcome.report);
    // The program is not ours: that it ended, however it ended, is not a failure of `attach`.
    Ok(ExitCode::SUCCESS)
}

fn detach(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    tmem_run::detach(args.pid)?;
    Ok(ExitCode::SUCCESS)
}

fn prepare(budget: &BudgetArgs) -> anyhow::Result<(tmem_run::Options, StatsSink)> {
    let options = tmem_run::Options {
        ram_bytes: budget.ram.bytes()?,
        on_full: budget.on_full.into(),
        progress: budget.progress,
        spill: spill::parse(&budget.spill)?,
        spill_plain: budget.spill_plain,
        spill_writes_per_day: budget.spill_writes,
        spill_faults: budget.spill_faults.clone(),
        remote: budget.remote.peers()?,
        metrics: budget.metrics,
    };
    if let Some(obstacle) = tmem_run::doctor::obstacle() {
        anyhow::bail!(obstacle);
    }
    Ok((options, StatsSink::open(budget.stats.as_deref())?))
}

/// Writes the figures. The command's own status is worth more than a failure to do so, which is only reported.
fn tell(sink: StatsSink, report: &tmem_run::Report) {
    if let Err(error) = sink.write(report) {
        complain(&error);
    }
}

/// Prints help and version to standard output, and a usage error as one line to standard error with status 125.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::from(STATUS_TROUBLE),
            _ => ExitCode::SUCCESS,
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // With standard error closed there is nobody left to tell.
            let _ = error.print();
            ExitCode::from(STATUS_TROUBLE)
        }
        _ => {
            complain(&anyhow::anyhow!(one_line(&error.render().to_string())));
            ExitCode::from(STATUS_TROUBLE)
        }
    }
}

/// What clap says in several paragraphs, without the synopsis, as one line.
fn one_line(rendered: &str) -> String {
    let paragraphs = rendered.trim().split("\n\n").filter(|text| !text.starts_with("Usage:"));
    let lines = paragraphs.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let joined = lines.collect::<Vec<_>>().join("; ");
    joined.trim_start_matches("error: ").replace("For more information, try", "try").trim_end_matches('.').to_owned()
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let run_error = error.downcast_ref::<tmem_run::Error>();
    if run_error.is_none() && is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    complain(error);
    ExitCode::from(run_error.map_or(STATUS_TROUBLE, tmem_run::Error::exit_status))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn complain(error: &anyhow::Error) {
    // `tmem_run::Error` says everything in its own line; only our own contexts need the chain.
    let line = match error.downcast_ref::<tmem_run::Error>() {
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    };
    // With standard error closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "tmem: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line() {
        let said = |words: &[&str]| one_line(&Cli::try_parse_from(words).unwrap_err().render().to_string());
        assert_eq!(
            said(&["tmem", "run", "ls"]),
            "the following required arguments were not provided: --ram <SIZE>; try '--help'"
        );
        assert_eq!(
            said(&["tmem", "run", "--ram", "1X", "ls"]),
            "invalid value '1X' for '--ram <SIZE>': '1X' is not a size: write for example 512M, 1.5G, 800MiB or 50%; \
             try '--help'"
        );
        assert!(said(&["tmem", "run", "--ran", "1G", "ls"]).contains("'--ram'"));
        assert_eq!(said(&["tmem", "frobnicate"]).lines().count(), 1);
    }
}
