//! `cargo xtask soak`: what must hold, for long: in parts, all of them or those that are named.

mod disk;
mod remains;
mod sigkill;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::ci::{rust_files, tests};
use crate::project::{self, cargo, run};

/// What to soak and how long.
#[derive(Args)]
pub struct SoakArgs {
    /// Only these parts, in the order of the list below.
    #[arg(value_name = "PART")]
    parts: Vec<Part>,
    /// Seconds for each fuzz target.
    #[arg(long, default_value_t = 300)]
    fuzz_seconds: u32,
    /// Schedules of faults for remote memory.
    #[arg(long, default_value_t = 200)]
    schedules: u32,
    #[command(flatten)]
    sigkill: sigkill::SigkillArgs,
    #[command(flatten)]
    disk: disk::DiskArgs,
}

/// A part of the soak.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The long versions of all tests.
    Tests,
    /// The models of the locks.
    Loom,
    /// The stress test under AddressSanitizer.
    Asan,
    /// The supervisor is killed at random moments: nothing may be left.
    Sigkill,
    /// Clients of `tmem disk` are killed at random moments, and a file system on it is built in and checked.
    Disk,
    /// Peers of remote memory fail, one after the other, by schedules from seeds: nothing may be lost.
    Remote,
    /// Every fuzz target for a while.
    Fuzz,
}

/// Runs the chosen parts; the first that fails ends it.
pub fn soak(args: &SoakArgs) -> anyhow::Result<()> {
    for part in Part::value_variants().iter().filter(|part| args.parts.is_empty() || args.parts.contains(part)) {
        match part {
            Part::Tests => long_tests()?,
            Part::Loom => loom()?,
            Part::Asan => address_sanitizer()?,
            Part::Sigkill => sigkill::sigkill(&args.sigkill)?,
            Part::Disk => disk::disk(&args.disk)?,
            Part::Remote => remote(args.schedules)?,
            Part::Fuzz => fuzz(args.fuzz_seconds)?,
        }
    }
    Ok(())
}

fn long_tests() -> anyhow::Result<()> {
    project::build_tmem()?;
    // The engine's as well, which CI runs with assertions only.
    tests(&[], true)
}

/// Every order in which the store's locks can be taken, and those of remote memory, in small.
fn loom() -> anyhow::Result<()> {
    // A directory of its own, so that other builds need not start anew afterwards.
    let folder = project::target_dir()?.join("loom");
    for model in [&["--package", "tmem", "--test", "loom"][..], &["--package", "tmem-remote", "--lib"]] {
        let mut command = cargo(&[&["test", "--release"], model].concat());
        run(command.arg("--target-dir").arg(&folder).env("RUSTFLAGS", "--cfg loom"))?;
    }
    Ok(())
}

/// The stress test with every access of Rust and C to memory checked. The arena itself is one mapping to the sanitizer: what
/// it finds there is use outside of it, and in it the test's own comparison of each byte has to do.
fn address_sanitizer() -> anyhow::Result<()> {
    let libraries = PathBuf::from(output(Command::new("rustc").args(["--print", "target-libdir"]))?.trim());
    let found = std::fs::read_dir(&libraries).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().ends_with("_rt.asan.a")))
    });
    if !found {
        println!("\nSKIPPED: AddressSanitizer: this Rust toolchain has no runtime for it in {}", libraries.display());
        return Ok(());
    }
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let tests = ["test", "--profile", "checked", "--package", "tmem", "--test", "threads"];
    let mut command = cargo(&tests);
    // With a target of its own, the flags are not for build scripts and macros, which could not be loaded then.
    command.args(["--target", host, "--target-dir"]).arg(project::target_dir()?.join("asan"));
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address").env("TMEM_LONG", "1");
    let flags = "-fsanitize=address";
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    match output(Command::new(&compiler).args([flags, "-x", "c", "-c", "-o", "/dev/null", "/dev/null"])) {
        Ok(_) => drop(command.env("CFLAGS", flags)),
        Err(error) => println!("\nSKIPPED: AddressSanitizer in the C code of zstd and lz4: {error:#}"),
    }
    run(command.args(["--", "--nocapture"]))
}

/// What a program prints.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("not UTF-8")
}

fn remote(schedules: u32) -> anyhow::Result<()> {
    let tests = ["test", "--package", "tmem-remote", "--release", "--test", "schedules", "--", "--nocapture"];
    run(cargo(&tests).env("TMEM_SCHEDULES", schedules.to_string()))
}

fn fuzz(seconds: u32) -> anyhow::Result<()> {
    let targets = rust_files("fuzz/fuzz_targets")?;
    if targets.is_empty() {
        println!("\nSKIPPED: there are no fuzz targets");
        return Ok(());
    }
    if !project::installed("cargo-fuzz") {
        println!("\nSKIPPED: {} fuzz targets: cargo install cargo-fuzz", targets.len());
        return Ok(());
    }
    for target in targets {
        let limit = format!("-max_total_time={seconds}");
        run(cargo(&["fuzz", "run", &target, "--", &limit]).env("RUSTC_BOOTSTRAP", "1"))?;
    }
    Ok(())
}
