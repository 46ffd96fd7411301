//! `cargo xtask ci` and `cargo xtask soak`: everything that must hold, once and for long.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::project::{self, cargo, run};

/// Runs every check; the tests come last, so that their summary stands at the end.
///
/// # Errors
///
/// When any check failed; all of them are run first.
pub fn ci() -> anyhow::Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            eprintln!("xtask: {error:#}");
            failed.push(name.to_owned());
        }
        crate::interrupt::check()
    };
    step("format", run(&mut cargo(&["fmt", "--all", "--check"])))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("lints", run(&mut cargo(&lints)))?;
    let docs = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    step("documentation", run(cargo(&docs).env("RUSTDOCFLAGS", "--deny warnings")))?;
    step("build", project::build_tmem().map(drop))?;
    step("documentation tests", run(&mut cargo(&["test", "--workspace", "--release", "--doc"])))?;
    step("benchmarks in short", benchmarks_in_short())?;
    step("tests with assertions", checked_tests())?;
    step("tests", tests(false))?;
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Every benchmark of the engine and of its allocators on little data, so that they keep working.
fn benchmarks_in_short() -> anyhow::Result<()> {
    for name in rust_files("crates/tmem/benches")? {
        run(&mut cargo(&["bench", "--package", "tmem", "--bench", &name, "--", "--quick"]))?;
    }
    run(&mut cargo(&["run", "--release", "--package", "xtask", "--", "bench", "alloc", "--quick"]))
}

/// The tests of the engine with `debug_assertions`: all others run without, as users do.
fn checked_tests() -> anyhow::Result<()> {
    let tests = [
        "--lib",
        "--test",
        "model",
        "--test",
        "reclaim",
        "--test",
        "recompress",
        "--test",
        "saved",
        "--test",
        "spill",
        "--test",
        "threads",
    ];
    run(cargo(&["test", "--profile", "checked", "--package", "tmem"]).args(tests))
}

/// All tests, by nextest where that is installed.
fn tests(long: bool) -> anyhow::Result<()> {
    let mut command = match project::installed("cargo-nextest") {
        true => cargo(&["nextest", "run", "--workspace", "--release", "--no-fail-fast"]),
        false => cargo(&["test", "--workspace", "--release", "--no-fail-fast", "--all-targets"]),
    };
    if long {
        command.env("TMEM_LONG", "1");
    }
    run(&mut command)
}

/// How long to soak.
#[derive(Args)]
pub struct SoakArgs {
    /// Seconds for each fuzz target.
    #[arg(long, default_value_t = 300)]
    fuzz_seconds: u32,
}

/// The long versions of all tests, the models of the locks, the stress test under AddressSanitizer, then every fuzz target
/// for a while.
pub fn soak(args: &SoakArgs) -> anyhow::Result<()> {
    project::build_tmem()?;
    tests(true)?;
    loom()?;
    address_sanitizer()?;
    fuzz(args.fuzz_seconds)
}

/// Every order in which the store's locks can be taken, in small.
fn loom() -> anyhow::Result<()> {
    let mut command = cargo(&["test", "--release", "--package", "tmem", "--test", "loom"]);
    // A directory of its own, so that other builds need not start anew afterwards.
    run(command.arg("--target-dir").arg(project::target_dir()?.join("loom")).env("RUSTFLAGS", "--cfg loom"))
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

/// The names of the Rust files in a directory of the project, without extension; none if it is not there.
fn rust_files(dir: &str) -> anyhow::Result<Vec<String>> {
    let dir = project::root().join(dir);
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let files = std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let paths: Vec<PathBuf> = files.flatten().map(|entry| entry.path()).collect();
    let sources = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut names: Vec<_> = sources.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}
