//! `tmem estimate`: what memory would take if tmem held it, measured on the pages themselves.
//!
//! Pages of a process ([`process`]) or of files ([`files`], both [`source`]s), all of them or a random part ([`sample`]), are put into real stores, one for
//! each codec and allocator ([`measure`]). What a sample leaves open is stated as a margin ([`margin`]). [`report`] writes the
//! table and the JSON. Nothing here decides how a store works, and nothing is computed from a model of one.
//!
//! Memory: a sample is at most 64 MiB and is held while one store after the other is filled with it. What is larger and was asked
//! for as a whole is read once for each store, cluster by cluster, so that no more than one store is held at a time.

mod files;
mod margin;
mod measure;
mod process;
mod report;
mod sample;
mod source;

use std::io::{self, Write};

use crate::flags::EstimateArgs;
use files::Files;
use process::ProcessPages;
use report::Report;
use sample::Sample;
use source::Source;

/// Measures and prints.
///
/// # Errors
///
/// When the pages cannot be had, there are none, a store fails, or standard output cannot be written.
pub fn print(args: &EstimateArgs) -> anyhow::Result<()> {
    let source: Box<dyn Source> = match args.pid {
        Some(pid) => Box::new(ProcessPages::open(pid)?),
        None => Box::new(Files::open(&args.files)?),
    };
    let sample = Sample::take(source.as_ref(), args.all, args.seed)?;
    let content = sample.content()?;
    let rows = measure::rows(&sample)?;
    let report = Report { source: source.as_ref(), sample: &sample, content, rows: &rows };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report.json()).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(report.table().as_bytes())?;
    }
    Ok(out.flush()?)
}
