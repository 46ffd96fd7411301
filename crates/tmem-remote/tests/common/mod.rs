//! Redis servers and a proxy before each, which does to the traffic what a network may do.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub fn redis_is_there() -> bool {
    let there = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        println!("SKIPPED: redis-server is not installed");
    }
    there
}

/// One with room for the port of a cluster's bus, 10,000 above it.
pub fn free_port() -> u16 {
    let mut taken = Vec::new();
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        match listener.local_addr().unwrap().port() {
            port if port < 55_000 => return port,
            _ => taken.push(listener),
        }
    }
}

/// A server that is killed when it is dropped.
pub struct Server {
    pub port: u16,
    child: Child,
    args: Vec<String>,
    dir: TempDir,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let dir = TempDir::new().unwrap();
        let port = free_port();
        let child = spawn(port, &args, &dir);
        let server = Self { port, child, args, dir };
        server.wait();
        server
    }

    fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < end, "redis-server does not start");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its address, as `--remote` has it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again at the same port, empty.
    pub fn restart(&mut self) {
        self.child = spawn(self.port, &self.args, &self.dir);
        self.wait();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What redis-cli prints.
    pub fn cli(&self, args: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// How many values lie there; the mark that a peer has is none.
    pub fn values(&self) -> u64 {
        self.cli(&["keys", "tmem:*}?*"]).lines().count() as u64
    }
}

fn spawn(port: u16, args: &[String], dir: &TempDir) -> Child {
    let port = port.to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--save", "", "--appendonly", "no", "--dir"]).arg(dir.path()).args(args);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server starts")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three primaries with a replica each.
pub struct Cluster {
    pub nodes: Vec<Server>,
}

impl Cluster {
    pub fn start() -> Self {
        let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--appendonly", "no"];
        let nodes: Vec<Server> = (0..6).map(|_| Server::start(&args)).collect();
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        let said = nodes[0].cli(&create);
        assert!(said.contains("All 16384 slots covered"), "{said}");
        let cluster = Self { nodes };
        wait_until("the cluster is whole", || cluster.is_whole());
        cluster
    }

    /// Whether each part has a primary and a replica that follows it.
    pub fn is_whole(&self) -> bool {
        let fine = |node: &Server| {
            let info = node.cli(&["info", "replication"]);
            let follows = info.contains("role:slave") && info.contains("master_link_status:up");
            let leads = info.contains("role:master") && info.contains("connected_slaves:1");
            let slots = node.cli(&["cluster", "slots"]);
            let knows_all = self.nodes.iter().all(|other| slots.lines().any(|line| line == other.port.to_string()));
            (follows || leads) && knows_all && node.cli(&["cluster", "info"]).contains("cluster_state:ok")
        };
        self.nodes.iter().all(fine)
    }

    pub fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[0].port, self.nodes[1].port)
    }

    /// Values on primaries.
    pub fn values(&self) -> u64 {
        let primaries = self.nodes.iter().filter(|node| node.cli(&["role"]).starts_with("master"));
        primaries.map(Server::values).sum()
    }
}

/// What happens to everything that goes through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Good,
    /// Every piece waits for so many milliseconds.
    Slow(u64),
    /// One piece in so many is lost, and sent again as TCP does that.
    Lossy(u64),
    /// So many KiB pass in a second.
    Narrow(u64),
    /// Nothing arrives, and nobody is told.
    Partitioned,
    /// One piece in so many of what the server says has a wrong bit.
    Corrupt(u64),
}

pub struct Proxy {
    pub port: u16,
    network: Arc<Mutex<Network>>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (network, stop) = (Arc::new(Mutex::new(Network::Good)), Arc::new(AtomicBool::new(false)));
        let (of_all, stopped) = (Arc::clone(&network), Arc::clone(&stop));
        thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Relaxed) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", server))) else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (there, here) = (Arc::clone(&of_all), Arc::clone(&of_all));
                thread::spawn(move || pass(client, server, &there, false));
                thread::spawn(move || pass(back, forth, &here, true));
            }
        });
        Self { port, network, stop }
    }

    pub fn set(&self, network: Network) {
        *self.network.lock().unwrap() = network;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// How long Linux waits at least before it sends again what nobody confirmed.
const RESENT_AFTER: Duration = Duration::from_millis(200);

fn pass(mut from: TcpStream, mut to: TcpStream, network: &Mutex<Network>, answers: bool) {
    static PIECES: AtomicU64 = AtomicU64::new(1);
    let mut piece = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut piece) {
        let now = *network.lock().unwrap();
        match now {
            Network::Good => {}
            Network::Slow(ms) => thread::sleep(Duration::from_millis(ms)),
            Network::Lossy(one_in) => {
                if PIECES.fetch_add(1, Relaxed).is_multiple_of(one_in) {
                    thread::sleep(RESENT_AFTER);
                }
            }
            Network::Narrow(kib) => thread::sleep(Duration::from_secs_f64(len as f64 / (kib << 10) as f64)),
            Network::Partitioned => {
                while *network.lock().unwrap() == Network::Partitioned {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            Network::Corrupt(one_in) => {
                let number = PIECES.fetch_add(1, Relaxed);
                if answers && number.is_multiple_of(one_in) {
                    let at = (number as usize).wrapping_mul(0x9e37_79b9) % len;
                    piece[at] ^= 1 << (number % 8);
                }
            }
        }
        if to.write_all(&piece[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Waits until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within 30 s");
        thread::sleep(Duration::from_millis(20));
    }
}
