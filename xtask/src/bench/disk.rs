//! `cargo xtask bench disk`: `tmem disk` beside nbdkit's memory disks and the kernel's zram, under fio, on pages of real programs.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

use super::alloc::samples;
use super::{Machine, write_json};
use crate::measure::median;
use crate::process_tree::rss_bytes;
use crate::table::{Table, mib};
use crate::zram::{self, Zram};
use crate::{interrupt, project};

/// What to measure.
#[derive(Args)]
pub struct DiskArgs {
    /// Files of raw 4 KiB pages that fill the disks; without any, the samples of the project, repeated to 64 MiB.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Interleaved runs of each; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only tmem.
    #[arg(long)]
    alone: bool,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Pages that the project's own samples are repeated to.
const PAGES_MIN: usize = 4096;
/// How well what fio writes can be compressed, in percent: about as well as the pages of programs.
const COMPRESSIBLE: &str = "75";

/// Those of tmem first.
const SERVERS: [&str; 4] = ["tmem zstd", "tmem lz4", "nbdkit zstd", "nbdkit malloc"];
const OURS: usize = 2;
/// No server, but what the kernel has: a reference for what a disk costs without a socket between.
const ZRAM: &str = "zram";
const ZRAM_ALGORITHM: &str = "lz4";

/// One way to use a disk.
#[derive(Clone, Copy, Serialize)]
struct Case {
    pattern: &'static str,
    depth: u32,
    connections: u32,
}

/// Reads first, while the disks hold the pages that they were filled with.
fn cases() -> impl Iterator<Item = Case> {
    ["randread", "randrw", "randwrite"].into_iter().flat_map(|pattern| {
        [(1, 1), (32, 1), (1, 4), (32, 4)].map(|(depth, connections)| Case { pattern, depth, connections })
    })
}

/// All runs of a case under a server: commands a second, and the median time of one.
#[derive(Default, Serialize)]
struct Row {
    iops: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

#[derive(Serialize)]
struct Measured {
    case: Case,
    /// In the order of `servers`.
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Results {
    machine: Machine,
    data_bytes: u64,
    servers: Vec<&'static str>,
    /// What each takes when it is filled, and at the end.
    filled_bytes: Vec<u64>,
    end_bytes: Vec<u64>,
    cases: Vec<Measured>,
}

/// Starts the servers, measures every case under each of them in turn, and prints a table.
pub fn disk(args: &DiskArgs) -> anyhow::Result<()> {
    for (program, package) in [("fio", "fio"), ("nbdcopy", "libnbd-bin"), ("nbdkit", "nbdkit")] {
        ensure!(project::installed(program), "{program} is not installed: apt-get install {package}");
    }
    let tmem = project::build_tmem()?;
    let folder = tempfile::tempdir().context("cannot create a temporary directory")?;
    let data_bytes = write_data(&args.files, folder.path())?;
    let mut names = SERVERS[..if args.alone { OURS } else { SERVERS.len() }].to_vec();
    let mut servers: Vec<_> =
        names.iter().map(|name| Server::start(name, &tmem, &folder, data_bytes)).collect::<Result<_, _>>()?;
    if !args.alone {
        let lacks = || (!zram::has_algorithm(ZRAM_ALGORITHM)).then(|| format!("it has no {ZRAM_ALGORITHM}"));
        match zram::unavailable().or_else(lacks) {
            Some(why) => println!("without the kernel's zram: {why}"),
            None => {
                names.push(ZRAM);
                servers.push(Server::zram(&folder, data_bytes)?);
            }
        }
    }
    let names = &names;
    let machine = Machine::this();
    machine.print();
    println!(
        "{} of pages; fio, 4 KiB, writes {COMPRESSIBLE} % compressible; medians of {} interleaved runs of {} s\n",
        mib(data_bytes),
        args.runs,
        args.seconds
    );
    let mut measured: Vec<_> =
        cases().map(|case| Measured { case, rows: names.iter().map(|_| Row::default()).collect() }).collect();
    let mut filled_bytes = Vec::new();
    for _ in 0..args.runs {
        servers.iter().try_for_each(Server::fill)?;
        filled_bytes = servers.iter().map(Server::memory_bytes).collect();
        for Measured { case, rows } in &mut measured {
            for (server, row) in servers.iter().zip(rows) {
                interrupt::check()?;
                server.measure(*case, args.seconds, data_bytes, row)?;
            }
        }
    }
    print(&measured, names);
    let end_bytes: Vec<u64> = servers.iter().map(Server::memory_bytes).collect();
    for ((name, filled), end) in names.iter().zip(&filled_bytes).zip(&end_bytes) {
        println!("{name:<14} RAM {} filled with the pages, {} at the end", mib(*filled), mib(*end));
    }
    let results = Results { machine, data_bytes, servers: names.to_vec(), filled_bytes, end_bytes, cases: measured };
    write_json(args.json.as_deref(), &results)
}

/// Writes the pages to a file, and says how many bytes they are.
fn write_data(files: &[PathBuf], folder: &Path) -> anyhow::Result<u64> {
    let mut file = std::fs::File::create(folder.join("data")).context("cannot write the pages")?;
    for sample in samples::load(files, PAGES_MIN)? {
        file.write_all(&sample.bytes).context("cannot write the pages")?;
    }
    Ok(file.metadata()?.len())
}

/// What serves a disk; killed, or reset, when it is dropped.
enum Disk {
    /// Over NBD.
    Server(Child),
    /// A block device.
    Zram {
        /// Kept for the end.
        _device: Zram,
    },
}

/// A disk with the pages to fill it.
struct Server {
    disk: Disk,
    data: PathBuf,
    /// Where NBD has it, or the device.
    uri: String,
}

impl Server {
    fn start(name: &str, tmem: &Path, folder: &TempDir, bytes: u64) -> anyhow::Result<Self> {
        let socket = folder.path().join(name.replace(' ', "-"));
        let ours = SERVERS[..OURS].contains(&name);
        let (_, kind) = name.split_once(' ').unwrap_or_default();
        let mut command = match ours {
            true => {
                let mut command = Command::new(tmem);
                let listen = format!("--listen=unix:{}", socket.display());
                command.args(["disk", &listen, &format!("--size={bytes}"), &format!("--ram={}", 2 * bytes)]);
                command.arg(format!("--codec={kind}"));
                command
            }
            false => {
                let mut command = Command::new("nbdkit");
                command.args(["--foreground", "--unix"]).arg(&socket);
                command.args(["memory", &bytes.to_string(), &format!("allocator={kind}")]);
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot start {name}"))?;
        if ours {
            let mut line = String::new();
            BufReader::new(child.stdout.take().context("standard output was asked for")?).read_line(&mut line)?;
        }
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let server = Self { disk: Disk::Server(child), data: folder.path().join("data"), uri };
        let start = Instant::now();
        while !socket.exists() {
            ensure!(start.elapsed() < Duration::from_secs(20), "{name} does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn zram(folder: &TempDir, bytes: u64) -> anyhow::Result<Self> {
        let device = Zram::set_up(ZRAM_ALGORITHM, bytes)?;
        Ok(Self {
            disk: Disk::Zram { _device: device },
            data: folder.path().join("data"),
            uri: zram::DEVICE.to_owned(),
        })
    }

    /// Fills the disk with the pages.
    fn fill(&self) -> anyhow::Result<()> {
        let mut copy = match self.disk {
            Disk::Server(_) => Command::new("nbdcopy"),
            Disk::Zram { .. } => {
                let mut dd = Command::new("dd");
                dd.args(["bs=1M", "oflag=direct", "status=none"]);
                dd
            }
        };
        match self.disk {
            Disk::Server(_) => copy.arg(&self.data).arg(&self.uri),
            Disk::Zram { .. } => copy.arg(format!("if={}", self.data.display())).arg(format!("of={}", self.uri)),
        };
        ensure!(copy.status().context("cannot copy the pages")?.success(), "{} cannot be filled", self.uri);
        Ok(())
    }

    /// Its anonymous and shared memory; of zram what it says itself, without the table of its pages.
    fn memory_bytes(&self) -> u64 {
        let Disk::Server(child) = &self.disk else { return zram::used_bytes() };
        rss_bytes(child.id() as i32)
    }

    fn measure(&self, case: Case, seconds: u32, bytes: u64, row: &mut Row) -> anyhow::Result<()> {
        let Case { pattern, depth, connections } = case;
        let mut fio = Command::new("fio");
        fio.args(["--name=disk", "--bs=4k", "--time_based", "--group_reporting", "--refill_buffers"]);
        match self.disk {
            Disk::Server(_) => fio.arg("--ioengine=nbd").arg(format!("--uri={}", self.uri)),
            Disk::Zram { .. } => fio.args(["--ioengine=libaio", "--direct=1"]).arg(format!("--filename={}", self.uri)),
        };
        fio.args(["--output-format=json", "--buffer_compress_chunk=4k"]);
        fio.arg(format!("--buffer_compress_percentage={COMPRESSIBLE}"));
        fio.arg(format!("--rw={pattern}")).arg(format!("--iodepth={depth}")).arg(format!("--numjobs={connections}"));
        fio.arg(format!("--runtime={seconds}")).arg(format!("--size={bytes}"));
        let out = fio.stdin(Stdio::null()).stderr(Stdio::piped()).output().context("cannot run fio")?;
        let text = String::from_utf8_lossy(&out.stdout);
        // Its engine for NBD talks before the JSON begins.
        let json = text.find('{').and_then(|at| serde_json::from_str::<Value>(&text[at..]).ok());
        let job = json.as_ref().map(|json| &json["jobs"][0]).filter(|job| job["error"] == 0 && out.status.success());
        let Some(job) = job else {
            bail!("fio fails at {}: {text}{}", self.uri, String::from_utf8_lossy(&out.stderr));
        };
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let percentile = |name: &str| {
            let of = |way: &str| number(&job[way]["clat_ns"]["percentile"][name]);
            of("read").max(of("write")) / 1000.0
        };
        row.iops.push(number(&job["read"]["iops"]) + number(&job["write"]["iops"]));
        row.p50_us.push(percentile("50.000000"));
        row.p99_us.push(percentile("99.000000"));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Disk::Server(child) = &mut self.disk {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn print(measured: &[Measured], names: &[&str]) {
    let mut columns = vec![("4 KiB", 9), ("depth", 5), ("connections", 11)];
    columns.extend(names.iter().map(|name| (*name, 13)));
    for rival in names.get(OURS..).unwrap_or_default() {
        let rival = match rival.rsplit(' ').next() {
            Some("zstd") => ("/ zstd", 7),
            Some("malloc") => ("/ malloc", 8),
            _ => ("/ zram", 7),
        };
        columns.extend([rival; OURS]);
    }
    columns.push(("p50, p99 of tmem zstd", 21));
    let table = Table::head(&columns);
    for Measured { case, rows } in measured {
        let iops: Vec<f64> = rows.iter().map(|row| median(row.iops.iter().copied())).collect();
        let mut cells = vec![case.pattern.to_owned(), case.depth.to_string(), case.connections.to_string()];
        cells.extend(iops.iter().map(|iops| format!("{iops:.0}/s")));
        for rival in iops.get(OURS..).unwrap_or_default() {
            cells.extend(iops[..OURS].iter().map(|ours| format!("{:.2}", ours / rival)));
        }
        let time = |of: fn(&Row) -> &Vec<f64>| median(of(&rows[0]).iter().copied());
        cells.push(format!("{:.0} us, {:.0} us", time(|row| &row.p50_us), time(|row| &row.p99_us)));
        table.row(&cells);
    }
    println!();
}
