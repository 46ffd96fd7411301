//! `cargo xtask bench serve`: `tmem serve` beside Redis, with values like pages of programs and like JSON.
//!
//! Our own client, because those that come with Redis send one and the same value: 50 connections from one thread, each with so many
//! commands in flight; every answer is looked at. Then `redis-benchmark` reads the same keys. `tmem serve` has a part of the RAM that Redis
//! takes for the same values, by `CONFIG SET maxmemory`: it packs no more than it has to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use tmem::testing::Random;

use super::alloc::samples;
use super::{Machine, write_json};
use crate::measure::median;
use crate::process_tree::rss_bytes;
use crate::table::{Table, mib};
use crate::{interrupt, project};

/// What to measure.
#[derive(Args)]
pub struct ServeArgs {
    /// Files of raw 4 KiB pages that are values; without any, the samples of the project, repeated to 32 MiB.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Interleaved runs of each; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What `tmem serve` may take of the RAM that Redis takes for the values, in percent; if nothing is said, so much that it is half of
    /// it in the end.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    ram_percent: Option<u64>,
    /// Only these values.
    #[arg(long, value_parser = ["pages", "JSON"])]
    values: Option<String>,
}

const PAGES_MIN: usize = 8192;
const DOCUMENTS: usize = 100_000;
const CONNECTIONS: usize = 50;
const SERVERS: [&str; 3] = ["tmem lz4", "tmem zstd", "redis"];
const REDIS: usize = 2;

/// Values by the number in their key.
struct Values {
    name: &'static str,
    values: Vec<Vec<u8>>,
    /// What `tmem serve` may take of the RAM that Redis takes, in percent: so that it takes half of it in the end.
    ram_percent: u64,
}

/// Who reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Load {
    Set,
    Get,
    /// GET by redis-benchmark.
    Benchmark,
}

#[derive(Serialize)]
struct Measured {
    values: &'static str,
    load: Load,
    pipeline: usize,
    /// Commands a second, in the order of the servers, by run.
    rates: Vec<Vec<f64>>,
}

#[derive(Serialize)]
struct Filled {
    values: &'static str,
    count: usize,
    value_bytes: u64,
    /// What each server takes more than when it was empty: after filling or at the end, whichever is more.
    memory_bytes: Vec<u64>,
}

#[derive(Serialize)]
struct Results {
    machine: Machine,
    servers: [&'static str; 3],
    filled: Vec<Filled>,
    measured: Vec<Measured>,
}

/// Fills each server and measures it, one after the other, and prints tables.
pub fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    for program in ["redis-server", "redis-benchmark"] {
        ensure!(project::installed(program), "{program} is not installed: apt-get install redis-server redis-tools");
    }
    let tmem = project::build_tmem()?;
    let machine = Machine::this();
    machine.print();
    println!("{CONNECTIONS} connections; medians of {} interleaved runs of {} s\n", args.runs, args.seconds);
    let pages = samples::load(&args.files, PAGES_MIN)?;
    let pages = pages.iter().flat_map(|sample| sample.pages().iter().map(|page| page.to_vec())).collect();
    let all = [
        Values { name: "pages", values: pages, ram_percent: 55 },
        Values { name: "JSON", values: documents(), ram_percent: 50 },
    ];
    let mut results = Results { machine, servers: SERVERS, filled: Vec::new(), measured: Vec::new() };
    for values in all.iter().filter(|values| args.values.as_ref().is_none_or(|name| name == values.name)) {
        measure(args, &tmem, values, &mut results)?;
    }
    print(&results);
    write_json(args.json.as_deref(), &results)
}

fn measure(args: &ServeArgs, tmem: &Path, values: &Values, results: &mut Results) -> anyhow::Result<()> {
    let servers = SERVERS.map(|name| Server::start(name, tmem));
    let servers = servers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let empty: Vec<u64> = servers.iter().map(Server::memory_bytes).collect();
    let taken = |at: usize| servers[at].memory_bytes().saturating_sub(empty[at]);
    servers[REDIS].fill(values)?;
    let allowed = taken(REDIS) * args.ram_percent.unwrap_or(values.ram_percent) / 100;
    for server in &servers[..REDIS] {
        server.set_maxmemory(server.used_memory()? + allowed)?;
        server.fill(values)?;
    }
    // Redis' tables and ours settle.
    std::thread::sleep(Duration::from_secs(1));
    let mut memory_bytes: Vec<u64> = (0..servers.len()).map(taken).collect();
    let value_bytes = values.values.iter().map(|value| value.len() as u64).sum();
    let cases =
        [Load::Get, Load::Set, Load::Benchmark].into_iter().flat_map(|load| [1, 16].map(|pipeline| (load, pipeline)));
    let mut measured: Vec<_> = cases
        .map(|(load, pipeline)| Measured {
            values: values.name,
            load,
            pipeline,
            rates: vec![Vec::new(); SERVERS.len()],
        })
        .collect();
    for run in 0..args.runs {
        for Measured { load, pipeline, rates, .. } in &mut measured {
            for (server, rates) in servers.iter().zip(rates) {
                interrupt::check()?;
                let rate = match load {
                    Load::Benchmark => server.benchmark(*pipeline, values.values.len(), args.seconds)?,
                    _ => server.load(*load, *pipeline, values, args.seconds, run)?,
                };
                rates.push(rate);
            }
        }
    }
    // What the load made of it counts as well.
    memory_bytes.iter_mut().enumerate().for_each(|(at, bytes)| *bytes = (*bytes).max(taken(at)));
    results.filled.push(Filled { values: values.name, count: values.values.len(), value_bytes, memory_bytes });
    results.measured.extend(measured);
    Ok(())
}

fn print(results: &Results) {
    let mut columns = vec![("values", 6), ("command", 15), ("pipeline", 8)];
    columns.extend(SERVERS.map(|name| (name, 10)));
    columns.extend([("lz4 / redis", 11), ("zstd / redis", 12)]);
    let table = Table::head(&columns);
    for Measured { values, load, pipeline, rates } in &results.measured {
        let rates: Vec<f64> = rates.iter().map(|rates| median(rates.iter().copied())).collect();
        let load = match load {
            Load::Set => "SET",
            Load::Get => "GET",
            Load::Benchmark => "redis-benchmark",
        };
        let mut cells = vec![(*values).to_owned(), load.to_owned(), pipeline.to_string()];
        cells.extend(rates.iter().map(|rate| format!("{rate:.0}/s")));
        cells.extend(rates[..REDIS].iter().map(|rate| format!("{:.2}", rate / rates[REDIS])));
        table.row(&cells);
    }
    println!();
    for Filled { values, count, value_bytes, memory_bytes } in &results.filled {
        println!("{count} values ({values}), {} in all:", mib(*value_bytes));
        for (name, bytes) in SERVERS.iter().zip(memory_bytes) {
            let part = *bytes as f64 / memory_bytes[REDIS] as f64;
            println!(
                "  {name:<10} {:>10}, {:.0} bytes a value, {part:.2} of redis",
                mib(*bytes),
                *bytes as f64 / *count as f64
            );
        }
    }
}

/// Records as applications keep them.
fn documents() -> Vec<Vec<u8>> {
    const FIRST: [&str; 8] = ["Anna", "Bert", "Clara", "David", "Eva", "Frank", "Greta", "Hans"];
    const LAST: [&str; 6] = ["Meyer", "Schmidt", "Huber", "Novak", "Rossi", "Smith"];
    const TAGS: [&str; 6] = ["red", "green", "blue", "new", "old", "sale"];
    const CITIES: [&str; 4] = ["Berlin", "Paris", "Rome", "London"];
    let mut random = Random::new(1);
    let document = |id: usize| {
        let mut of = |words: &[&'static str]| words[random.below(words.len() as u64) as usize];
        let (first, last, city, tags) = (of(&FIRST), of(&LAST), of(&CITIES), [of(&TAGS), of(&TAGS), of(&TAGS)]);
        let mut number = |max: u64| random.below(max);
        serde_json::json!({
            "id": id,
            "name": format!("{first} {last}"),
            "email": format!("user{}@example.com", number(10_000_000)),
            "created": format!("2026-{:02}-{:02}T{:02}:{:02}:00Z", 1 + number(12), 1 + number(28), number(24), number(60)),
            "score": number(1_000_000) as f64 / 1000.0,
            "tags": tags,
            "address": {"street": format!("{} Main Street", number(999)), "city": city, "zip": format!("{:05}", number(100_000))},
            "token": format!("{:016x}{:016x}", number(u64::MAX), number(u64::MAX)),
        })
        .to_string()
        .into_bytes()
    };
    (0..DOCUMENTS).map(document).collect()
}

/// A key as redis-benchmark makes them.
fn key(number: usize) -> String {
    format!("key:{number:012}")
}

fn encode(out: &mut Vec<u8>, args: &[&[u8]]) {
    out.extend(format!("*{}\r\n", args.len()).into_bytes());
    for arg in args {
        out.extend(format!("${}\r\n", arg.len()).into_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// A server; killed when it is dropped.
struct Server {
    child: Child,
    port: String,
}

impl Server {
    fn start(name: &str, tmem: &Path) -> anyhow::Result<Self> {
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let mut command = match name.strip_prefix("tmem ") {
            Some(codec) => {
                let mut command = Command::new(tmem);
                let listen = format!("127.0.0.1:{free}");
                command.args(["serve", "--ram", "1G", "--codec", codec, "--listen", &listen]);
                command
            }
            None => {
                let mut command = Command::new("redis-server");
                command.args(["--port", &free, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let server = Self { child: child.with_context(|| format!("cannot start {name}"))?, port: free };
        let start = Instant::now();
        while server.connect().is_err() {
            ensure!(start.elapsed() < Duration::from_secs(10), "{name} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(format!("127.0.0.1:{}", self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    /// Its anonymous and shared memory.
    fn memory_bytes(&self) -> u64 {
        rss_bytes(self.child.id() as i32)
    }

    /// What it says to a command, as far as a first reading shows it.
    fn ask(&self, args: &[&[u8]]) -> anyhow::Result<String> {
        let (mut stream, mut asked, mut said) = (self.connect()?, Vec::new(), [0; 8192]);
        encode(&mut asked, args);
        stream.write_all(&asked)?;
        let bytes = stream.read(&mut said)?;
        Ok(String::from_utf8_lossy(&said[..bytes]).into_owned())
    }

    fn used_memory(&self) -> anyhow::Result<u64> {
        let info = self.ask(&[b"INFO", b"memory"])?;
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        line.and_then(|bytes| bytes.trim().parse().ok()).context("INFO does not say what memory is used")
    }

    fn set_maxmemory(&self, bytes: u64) -> anyhow::Result<()> {
        let said = self.ask(&[b"CONFIG", b"SET", b"maxmemory", bytes.to_string().as_bytes()])?;
        ensure!(said == "+OK\r\n", "maxmemory {bytes} is refused: {said}");
        Ok(())
    }

    fn fill(&self, values: &Values) -> anyhow::Result<()> {
        let mut stream = self.connect()?;
        for (at, batch) in values.values.chunks(64).enumerate() {
            let mut asked = Vec::new();
            for (within, value) in batch.iter().enumerate() {
                encode(&mut asked, &[b"SET", key(at * 64 + within).as_bytes(), value]);
            }
            stream.write_all(&asked)?;
            let mut said = vec![0; batch.len() * 5];
            stream.read_exact(&mut said)?;
            ensure!(said.chunks(5).all(|ok| ok == b"+OK\r\n"), "a value was refused");
        }
        Ok(())
    }

    /// Commands a second of one kind, on random keys; every answer has to be the right one.
    fn load(&self, load: Load, pipeline: usize, values: &Values, seconds: u32, run: u32) -> anyhow::Result<f64> {
        let mut random = Random::new(u64::from(run) + 1);
        let mut streams = (0..CONNECTIONS).map(|_| self.connect()).collect::<Result<Vec<_>, _>>()?;
        let (mut asked, mut wanted) = (Vec::new(), vec![Vec::new(); CONNECTIONS]);
        let mut said = Vec::new();
        let (start, mut commands) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(seconds.into()) {
            for (stream, wanted) in streams.iter_mut().zip(&mut wanted) {
                asked.clear();
                wanted.clear();
                for _ in 0..pipeline {
                    let number = random.below(values.values.len() as u64) as usize;
                    let value = &values.values[number];
                    match load {
                        Load::Set => {
                            encode(&mut asked, &[b"SET", key(number).as_bytes(), value]);
                            wanted.extend_from_slice(b"+OK\r\n");
                        }
                        _ => {
                            encode(&mut asked, &[b"GET", key(number).as_bytes()]);
                            wanted.extend(format!("${}\r\n", value.len()).into_bytes());
                            wanted.extend_from_slice(value);
                            wanted.extend_from_slice(b"\r\n");
                        }
                    }
                }
                stream.write_all(&asked)?;
            }
            for (stream, wanted) in streams.iter_mut().zip(&wanted) {
                said.resize(wanted.len(), 0);
                stream.read_exact(&mut said)?;
                ensure!(said == *wanted, "a wrong answer: {:?}", String::from_utf8_lossy(&said[..said.len().min(80)]));
                commands += pipeline;
            }
        }
        Ok(commands as f64 / start.elapsed().as_secs_f64())
    }

    /// What redis-benchmark says of GET on the keys that there are.
    fn benchmark(&self, pipeline: usize, keys: usize, seconds: u32) -> anyhow::Result<f64> {
        let count = (seconds as usize * if pipeline == 1 { 80_000 } else { 250_000 }).to_string();
        let (keys, pipeline, connections) = (keys.to_string(), pipeline.to_string(), CONNECTIONS.to_string());
        let words =
            ["-p", &self.port, "-t", "get", "-n", &count, "-r", &keys, "-P", &pipeline, "-c", &connections, "--csv"];
        let out = Command::new("redis-benchmark")
            .args(words)
            .stdin(Stdio::null())
            .output()
            .context("cannot run redis-benchmark")?;
        let last = BufReader::new(&out.stdout[..]).lines().map_while(Result::ok).last().unwrap_or_default();
        let rate = last.split(',').nth(1).and_then(|text| text.trim_matches('"').parse().ok());
        match rate {
            Some(rate) if out.status.success() => Ok(rate),
            _ => bail!("redis-benchmark fails: {last}{}", String::from_utf8_lossy(&out.stderr)),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
