//! `tmem disk`: serves disks until a signal comes, and shows what a server says about itself.

use std::io::{self, Write};
use std::os::fd::AsFd;

use tmem::Saved;
use tmem_disk::{Contents, ExportFigures, ExportOptions, Figures, Options, Server};
use tmem_remote::Peers;
use tmem_run::StoreSpill;

use crate::flags::{DiskArgs, DiskCommand, DiskResetArgs, DiskServeArgs, DiskStatsArgs};
use crate::{service, spill};

/// Does what `tmem disk` says.
///
/// # Errors
///
/// When the server cannot start or go on, or does not answer.
pub fn disk(args: &DiskArgs) -> anyhow::Result<()> {
    match (&args.command, &args.serve) {
        (Some(DiskCommand::Stats(args)), _) => stats(args),
        (Some(DiskCommand::Reset(args)), _) => reset(args),
        (None, Some(serving)) => serve(serving, args.remote.peers()?.as_ref()),
        (None, None) => anyhow::bail!("say what to serve: see tmem disk --help"),
    }
}

fn serve(args: &DiskServeArgs, remote: Option<&Peers>) -> anyhow::Result<()> {
    let listen = service::listen(args.listen.as_ref())?;
    let exports = exports(args)?;
    // Before there is a socket, so that no signal can leave one behind.
    let stop = service::until_signalled()?;
    // Lives until the server has ended: then a file that was named is of no use to anybody.
    let spill = spill::parse(&args.spill)?;
    let file = StoreSpill::prepare(&spill, args.spill_plain, args.spill_faults.as_ref(), remote)?;
    let names: Vec<_> = exports.iter().map(|export| export.name.clone()).collect();
    let ram_bytes = args.ram.bytes()?;
    let tls_certificates = args.tls_certificates.clone();
    let tls = tls_certificates.is_some();
    let (codec, for_swap, image, spills) = (args.codec.into(), args.for_swap, args.image.clone(), file.open()?);
    let metrics = args.metrics;
    let mut server = Server::bind(Options {
        ram_bytes,
        codec,
        exports,
        listen,
        for_swap,
        tls_certificates,
        image,
        metrics,
        spills,
    })?;
    let address = server.address();
    if args.listen.is_some() {
        service::announce(names.iter().map(|name| tmem_disk::uri(&address, name, tls)))?;
    }
    service::tell(&format!("READY=1\nSTATUS=Serving {} disks at {address}", names.len()));
    let served = server.run(stop.as_fd());
    service::tell("STOPPING=1");
    if let Some(Saved { pages, bytes, .. }) = server.save()? {
        let blocks = mib(pages * tmem::PAGE_SIZE as u64);
        eprintln!("tmem: {blocks} of blocks saved in {}", mib(bytes));
    }
    Ok(served?)
}

/// The disks that are asked for.
fn exports(args: &DiskServeArgs) -> anyhow::Result<Vec<ExportOptions>> {
    let first = match (&args.backing, args.size) {
        (Some(path), _) => Some(Contents::Backing(path.clone())),
        (None, Some(size_bytes)) => Some(Contents::Empty { size_bytes }),
        (None, None) if !args.name.is_empty() => anyhow::bail!("--name is for the disk of --size or --backing"),
        (None, None) => None,
    };
    let first = first.map(|contents| (args.name.clone(), contents));
    let others =
        args.exports.iter().map(|(name, size_bytes)| (name.clone(), Contents::Empty { size_bytes: *size_bytes }));
    let export = |(name, contents)| ExportOptions { name, contents, read_only: args.read_only };
    Ok(first.into_iter().chain(others).map(export).collect())
}

fn stats(args: &DiskStatsArgs) -> anyhow::Result<()> {
    let figures = tmem_disk::ask(&args.address, args.tls_certificates.as_deref())?;
    let text = if args.json { serde_json::to_string_pretty(&figures)? + "\n" } else { shown(&figures) };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn reset(args: &DiskResetArgs) -> anyhow::Result<()> {
    let certificates = args.tls_certificates.as_deref();
    let dropped_bytes = tmem_disk::reset(&args.address, certificates, &args.name, args.force)?;
    writeln!(io::stdout().lock(), "dropped {} of blocks", mib(dropped_bytes))?;
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn shown(figures: &Figures) -> String {
    let mut text = format!(
        "RAM {} of {} (peak {}), for {} of blocks: {} packed, ratio {:.2}\n",
        mib(figures.used_bytes),
        mib(figures.ram_bytes),
        mib(figures.used_bytes_peak),
        mib(figures.stored_bytes),
        mib(figures.packed_bytes),
        figures.ratio,
    );
    text += &format!(
        "same-filled {}, regrouped {}, moved {}\n",
        mib(figures.same_filled_pages * tmem::PAGE_SIZE as u64),
        mib(figures.regrouped_pages * tmem::PAGE_SIZE as u64),
        mib(figures.moved_bytes),
    );
    if figures.spill_file_bytes_max > 0 {
        text += &format!(
            "spilled {}, file {} of {}, written {}, {} reads, {} writes failed\n",
            mib(figures.spilled_bytes),
            mib(figures.spill_file_bytes),
            mib(figures.spill_file_bytes_max),
            mib(figures.spill_written_bytes),
            figures.spill_reads,
            figures.spill_write_failures,
        );
    }
    text += &format!(
        "connections {}, {} in all, {} broken, {} refused\n",
        figures.connections, figures.connections_total, figures.connections_broken, figures.connections_refused,
    );
    figures.exports.iter().map(disk_shown).fold(text, |text, disk| text + &disk)
}

fn disk_shown(disk: &ExportFigures) -> String {
    // Names are what whoever started the server likes; none of them is to be obeyed by a terminal.
    let harmless = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let name = harmless(&disk.name);
    let cache = match &disk.backing {
        Some(backing) => format!(
            "  a cache of {}: {} blocks found in RAM, {} read\n",
            harmless(backing),
            disk.cache_hits,
            disk.cache_misses
        ),
        None => String::new(),
    };
    let figures = format!(
        "disk '{name}' of {}{}: {} stored, {} packed\n  {} reads of {}, {} writes of {}, {} trims of {}\n  \
         failed: {} reads, {} writes, {} for lack of room, {} made no sense\n",
        mib(disk.size_bytes),
        if disk.read_only { ", read-only" } else { "" },
        mib(disk.stored_bytes),
        mib(disk.packed_bytes),
        disk.reads,
        mib(disk.read_bytes),
        disk.writes,
        mib(disk.written_bytes),
        disk.trims,
        mib(disk.trimmed_bytes),
        disk.failed_reads,
        disk.failed_writes,
        disk.no_space,
        disk.invalid,
    );
    figures + &cache
}
