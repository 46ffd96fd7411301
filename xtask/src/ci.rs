//! `cargo xtask ci`: everything that must hold, once. For long is in [`crate::soak`].

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::project::{self, cargo, run};

/// Runs every check; the tests come last, so that their summary stands at the end.
///
/// # Errors
///
/// When any check failed; all of them are run first.
pub fn ci() -> anyhow::Result<()> {
    let mut failed = Vec::new();
    let mut since = Instant::now();
    let mut step = |name: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            eprintln!("xtask: {error:#}");
            failed.push(name.to_owned());
        }
        eprintln!("xtask: {name} took {} s", std::mem::replace(&mut since, Instant::now()).elapsed().as_secs());
        crate::interrupt::check()
    };
    step("format", run(&mut cargo(&["fmt", "--all", "--check"])))?;
    // All in one profile, so that what is foreign is built once.
    let lints = ["clippy", "--workspace", "--release", "--all-targets", "--", "--deny", "warnings"];
    step("lints", run(&mut cargo(&lints)))?;
    let docs = ["doc", "--workspace", "--release", "--no-deps", "--document-private-items"];
    step("documentation", run(cargo(&docs).env("RUSTDOCFLAGS", "--deny warnings")))?;
    step("build", project::build_tmem().map(drop))?;
    step("documentation tests", run(&mut cargo(&["test", "--workspace", "--release", "--doc"])))?;
    step("benchmarks in short", benchmarks_in_short())?;
    step("tests with assertions", checked_tests())?;
    step("tests", tests(&["--exclude", "tmem"], false))?;
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

/// The tests of the engine with `debug_assertions`: all others run without, as users do, and on the engine as it is then.
fn checked_tests() -> anyhow::Result<()> {
    let package = ["--package", "tmem", "--no-fail-fast"];
    let mut command = match project::installed("cargo-nextest") {
        true => cargo(&["nextest", "run", "--cargo-profile", "checked"]),
        false => cargo(&["test", "--profile", "checked", "--lib", "--tests"]),
    };
    run(command.args(package))
}

/// All tests, by nextest where that is installed, but for those that are left out.
pub fn tests(but: &[&str], long: bool) -> anyhow::Result<()> {
    let mut command = match project::installed("cargo-nextest") {
        true => cargo(&["nextest", "run", "--workspace", "--release", "--no-fail-fast"]),
        false => cargo(&["test", "--workspace", "--release", "--no-fail-fast", "--all-targets"]),
    };
    command.args(but);
    if long {
        command.env("TMEM_LONG", "1");
    }
    run(&mut command)
}

/// The names of the Rust files in a directory of the project, without extension; none if it is not there.
pub fn rust_files(dir: &str) -> anyhow::Result<Vec<String>> {
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
