//! Where things are, and running cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// A cargo command in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    command
}

/// Shows a command, runs it, and fails if it fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    let words = words.join(" ");
    println!("\n$ cargo {words}");
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "`cargo {words}` failed: {status}");
    crate::interrupt::check()
}

/// Builds `tmem` in release mode and tells where it is.
pub fn build_tmem() -> anyhow::Result<PathBuf> {
    run(&mut cargo(&["build", "--release", "--package", "tmem-cli"]))?;
    let tmem = target_dir()?.join("release/tmem");
    if !tmem.exists() {
        bail!("{} is not there after the build", tmem.display());
    }
    Ok(tmem)
}

/// Compiles `tests/programs/NAME.c` to `dir/NAME`.
pub fn compile_program(name: &str, dir: &Path) -> anyhow::Result<PathBuf> {
    let source = root().join("tests/programs").join(name).with_extension("c");
    let program = dir.join(name);
    let status = Command::new("cc").args(["-O2", "-pthread", "-o"]).arg(&program).arg(&source).status();
    let status = status.context("a C compiler (cc) is needed")?;
    ensure!(status.success(), "cc refused {}", source.display());
    Ok(program)
}

/// Where cargo builds.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    // `current_exe` is TARGET/debug/xtask, whatever CARGO_TARGET_DIR or the configuration says.
    let exe = std::env::current_exe().context("cannot tell where xtask is")?;
    let target = exe.ancestors().nth(2).context("xtask is not in a target directory")?;
    Ok(target.to_owned())
}

/// Whether a program can be found in `PATH`.
pub fn installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir| dir.join(program).is_file())
}

/// Whether we run as root.
pub fn is_root() -> bool {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() == 0 }
}
