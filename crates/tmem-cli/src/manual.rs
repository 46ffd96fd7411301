//! Completions and manual pages, made from the table of flags.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::flags::Cli;

/// Prints completions for `shell`.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn completions(shell: Shell) -> anyhow::Result<()> {
    // Into memory first: the generator panics on a broken pipe.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tmem", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(())
}

/// Prints `tmem.1`, or writes one page per subcommand into `dir`.
///
/// # Errors
///
/// When standard output or the directory cannot be written.
pub fn man(dir: Option<&Path>) -> anyhow::Result<()> {
    let command = Cli::command();
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        io::stdout().lock().write_all(&page)?;
        return Ok(());
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write manual pages to {}", dir.display()))
}
