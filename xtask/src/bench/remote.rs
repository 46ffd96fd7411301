//! `cargo xtask bench remote`: programs that do not fit their RAM even compressed, with a spill file on this machine's disk and with
//! remote memory: one Redis server, two with two copies, a cluster with replicas, `tmem serve`; all of them on this machine.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use tempfile::TempDir;

use super::{Machine, TIMEOUT, run_natively, write_json};
use crate::measure::{Measured, measure, median};
use crate::project;
use crate::table::{Table, mib};

/// What to compare.
#[derive(Args)]
pub struct RemoteArgs {
    /// Interleaved runs of each; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Where the spill file goes; else the target directory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write every single run to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Words of `tests/programs/noise.c`, and the RAM that it has to do with, in MiB.
const CASES: &[(&str, &[&str], u64)] = &[("noise", &["256", "1"], 64), ("text", &["256", "1", "text"], 32)];

/// A server that is killed when it is not needed any more. It is no descendant of ours: those are part of what is measured, and
/// killed after each run.
struct Server(i32);

impl Server {
    /// Starts one that writes to a file what it says. Before the first measurement: after that we are parents of all orphans.
    fn start(words: &[String], says: &Path) -> anyhow::Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", "out=$1; shift; \"$@\" > \"$out\" 2>&1 & echo $!", "sh"]).arg(says).args(words);
        let output = shell.output().context("cannot run sh")?;
        let pid = String::from_utf8_lossy(&output.stdout).trim().parse();
        Ok(Self(pid.with_context(|| format!("{} does not start", words[0]))?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: sending a signal touches no memory of ours. Servers live until they are told to end.
        unsafe { libc::kill(self.0, libc::SIGTERM) };
    }
}

/// Where pages go, as flags of `tmem run`.
struct Place {
    name: &'static str,
    flags: Vec<String>,
}

#[derive(Serialize)]
struct Runs {
    program: &'static str,
    ram_bytes: u64,
    place: &'static str,
    runs: Vec<Measured>,
}

#[derive(Serialize)]
struct Results {
    machine: Machine,
    runs: Vec<Runs>,
}

/// Runs every program with each place, and prints a row for each.
pub fn remote(args: &RemoteArgs) -> anyhow::Result<()> {
    let dir = args.dir.clone().map_or_else(project::target_dir, Ok)?;
    let tmem = project::build_tmem()?;
    let scratch = tempfile::tempdir().context("cannot create a temporary directory")?;
    project::compile_program("noise", scratch.path())?;
    let machine = Machine::this();
    machine.print();
    let mut servers = Vec::new();
    let places = places(&tmem, &dir, &scratch, &mut servers)?;
    println!(
        "Medians of {} interleaved runs; all servers on this machine; RAM is the peak of program and tmem.\n",
        args.runs
    );
    let table = Table::head(&[
        ("program", 8),
        ("RAM", 7),
        ("pages go to", 16),
        ("s", 7),
        ("to the disk's", 13),
        ("peak RAM", 9),
        ("output", 8),
    ]);
    let mut results = Vec::new();
    for &(program, words, ram_mib) in CASES {
        let noise = scratch.path().join("noise").to_string_lossy().into_owned();
        let command: Vec<String> = std::iter::once(noise).chain(words.iter().map(|&word| word.to_owned())).collect();
        let native = run_natively(&command)?;
        ensure!(native.ending.is_success(), "{program} fails natively: {}", native.complaint);
        let mut of_places: Vec<Vec<Measured>> = places.iter().map(|_| Vec::new()).collect();
        for _ in 0..args.runs {
            for (place, runs) in places.iter().zip(&mut of_places) {
                let mut run = Command::new(&tmem);
                run.arg("run").arg(format!("--ram={ram_mib}M")).args(&place.flags).arg("--").args(&command);
                let measured = measure(&mut run, TIMEOUT, || ())?;
                ensure!(measured.ending.is_success(), "{program} with {}: {}", place.name, measured.complaint);
                runs.push(measured);
            }
        }
        let seconds = |runs: &[Measured]| median(runs.iter().map(|run| run.elapsed_s));
        let of_disk = seconds(&of_places[0]);
        for (place, runs) in places.iter().zip(of_places) {
            let equal = runs.iter().all(|run| run.output_hash == native.output_hash);
            table.row(&[
                program.to_owned(),
                mib(ram_mib << 20),
                place.name.to_owned(),
                format!("{:.2}", seconds(&runs)),
                format!("{:.2}", seconds(&runs) / of_disk),
                mib(median(runs.iter().map(|run| run.peak_ram_bytes as f64)) as u64),
                if equal { "equal" } else { "DIFFERS" }.to_owned(),
            ]);
            results.push(Runs { program, ram_bytes: ram_mib << 20, place: place.name, runs });
        }
    }
    write_json(args.json.as_deref(), &Results { machine, runs: results })
}

/// Where pages can go here. The disk comes first.
fn places(tmem: &Path, dir: &Path, scratch: &TempDir, servers: &mut Vec<Server>) -> anyhow::Result<Vec<Place>> {
    let away = |url: &str| ["--spill", "off", "--remote", url].map(str::to_owned).to_vec();
    let mut places =
        vec![Place { name: "this disk", flags: vec!["--spill".to_owned(), dir.to_string_lossy().into_owned()] }];
    let says = scratch.path().join("serve");
    let words = ["serve", "--ram", "1G", "--listen", "127.0.0.1:0"].map(str::to_owned);
    servers.push(Server::start(&[&[tmem.to_string_lossy().into_owned()], &words[..]].concat(), &says)?);
    let url = wait_for("tmem serve does not start", || {
        let said = std::fs::read_to_string(&says).unwrap_or_default();
        said.lines().find(|line| line.starts_with("redis://")).map(str::to_owned)
    })?;
    places.push(Place { name: "tmem serve", flags: away(&url) });
    if !project::installed("redis-server") {
        println!("SKIPPED: redis-server is not installed");
        return Ok(places);
    }
    let mut start = |args: &[&str]| -> anyhow::Result<u16> {
        let port = free_port()?;
        let dir = scratch.path().join(port.to_string());
        std::fs::create_dir(&dir)?;
        let port_text = port.to_string();
        let words = ["redis-server", "--port", &port_text, "--save", "", "--dir", &dir.to_string_lossy()];
        let words: Vec<String> = words.iter().chain(args).map(|&word| word.to_owned()).collect();
        servers.push(Server::start(&words, &dir.join("says"))?);
        wait_for("redis-server does not start", || TcpStream::connect(("127.0.0.1", port)).ok())?;
        Ok(port)
    };
    let (one, two) = (start(&[])?, start(&[])?);
    places.push(Place { name: "Redis", flags: away(&format!("redis://127.0.0.1:{one}")) });
    let url = format!("redis://127.0.0.1:{one},127.0.0.1:{two}");
    places.push(Place { name: "Redis, 2 copies", flags: away(&url) });
    let nodes = (0..6).map(|_| start(&["--cluster-enabled", "yes"])).collect::<anyhow::Result<Vec<_>>>()?;
    make_cluster(&nodes)?;
    let url = format!("redis-cluster://127.0.0.1:{}", nodes[0]);
    let flags = [away(&url), vec!["--copies".to_owned(), "2".to_owned()]].concat();
    places.push(Place { name: "cluster, 3 + 3", flags });
    Ok(places)
}

/// One with room for the port of a cluster's bus, 10,000 above it.
fn free_port() -> anyhow::Result<u16> {
    let mut taken = Vec::new();
    loop {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        match listener.local_addr()?.port() {
            port if port < 55_000 => return Ok(port),
            _ => taken.push(listener),
        }
    }
}

/// Three primaries with a replica each.
fn make_cluster(nodes: &[u16]) -> anyhow::Result<()> {
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(nodes.iter().map(|port| format!("127.0.0.1:{port}")));
    let created = create.args(["--cluster-replicas", "1", "--cluster-yes"]).output().context("cannot run redis-cli")?;
    ensure!(created.status.success(), "no cluster: {}", String::from_utf8_lossy(&created.stdout));
    wait_for("the cluster does not become whole", || {
        let slots = Command::new("redis-cli").args(["-p", &nodes[0].to_string(), "cluster", "slots"]).output().ok()?;
        let slots = String::from_utf8_lossy(&slots.stdout).into_owned();
        nodes.iter().all(|port| slots.lines().any(|line| line == port.to_string())).then_some(())
    })
}

/// Waits for something for up to half a minute.
fn wait_for<T>(otherwise: &str, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match look() {
            Some(found) => return Ok(found),
            None if Instant::now() >= end => bail!("{otherwise}"),
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}
