//! The server: a store, its keys, a socket that listens, and a thread for each processor.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tmem::{CodecKind, Config, Store};
use tmem_net::{Address, Listen, Listener, Stream, tls};
use tmem_watch::{Doors, Figure, Source, VERSION};

use crate::Error;
use crate::balance::{Balance, Looker};
use crate::client::Registry;
use crate::figures::{Figures, Snapshot};
use crate::pressure::Machine;
use crate::space::{Locked, RAM_BYTES_MIN, Space};
use crate::worker::{self, Arrival, Worker};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 65_536;
/// What the program takes beside everything that is counted.
const OWN_BYTES: u64 = 1 << 20;
/// Between two looks at what has expired.
const LOOK: Duration = Duration::from_millis(100);
/// Between two steps of making room ahead of need.
const STEP: Duration = Duration::from_millis(10);
/// Cold pages are packed again for at most so long at a time.
const RECOMPRESS: Duration = Duration::from_millis(2);
/// Looks between two walks over the store.
const PAUSE_LOOKS: u32 = 100;

/// By what servers are found.
pub const KIND: &str = "serve";
/// What their metrics begin with.
pub const PREFIX: &str = "tmem_serve";

/// What becomes of values when there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// They stay, and new ones are refused.
    #[default]
    NoEviction,
    /// Those that were not used lately are dropped.
    AllKeysLru,
}

/// Settings of a server.
#[derive(Debug)]
pub struct Options {
    /// Bytes of RAM that all of it may take.
    pub ram_bytes: u64,
    /// What packs values.
    pub codec: CodecKind,
    /// What becomes of them when there is no room.
    pub policy: Policy,
    /// Where to listen.
    pub listen: Listen,
    /// A file whose first line clients have to say.
    pub password_file: Option<PathBuf>,
    /// Nothing is said but with TLS: a folder with `ca-cert.pem`, `server-cert.pem` and `server-key.pem`. Clients need a
    /// certificate of the same authority.
    pub tls_certificates: Option<PathBuf>,
    /// Whoever reaches the address may come in, without a password.
    pub open_to_all: bool,
    /// Where metrics are served for Prometheus.
    pub metrics: Option<SocketAddr>,
}

/// What happened since the start.
#[derive(Default)]
pub struct Counters {
    pub commands: AtomicU64,
    /// Times that something was read from a client.
    pub reads: AtomicU64,
    pub wrong_passwords: AtomicU64,
    pub connections: AtomicU64,
    pub refused: AtomicU64,
    pub broken: AtomicU64,
}

/// What all threads share.
pub struct Shared {
    pub space: Space,
    pub password: Option<Vec<u8>>,
    /// Nothing is said without it.
    pub tls: Option<Arc<ServerConfig>>,
    pub registry: Registry,
    pub counters: Counters,
    pub stopping: AtomicBool,
    pub watch: tmem_watch::Counters,
    pub balance: Balance,
    /// All threads that serve, once they are there.
    workers: OnceLock<Vec<Arc<Worker>>>,
    started: Instant,
}

/// A server that listens.
pub struct Server {
    shared: Arc<Shared>,
    listener: Listener,
    doors: Option<Doors>,
}

impl Server {
    /// Makes the store and listens.
    ///
    /// # Errors
    /// When the options do not fit together, or the address is taken.
    pub fn bind(options: Options) -> Result<Self, Error> {
        if options.ram_bytes < RAM_BYTES_MIN {
            return Err(Error(format!("--ram {} is too little: 16M is the least that works", options.ram_bytes)));
        }
        let password = options.password_file.as_deref().map(tmem_net::password).transpose();
        let password = password.map_err(|e| Error(format!("--password-file {e}")))?;
        let tls = options.tls_certificates.as_deref().map(tls::server_config).transpose()?;
        let store = Store::new(Config::new(options.ram_bytes - OWN_BYTES).codec(options.codec).packs_late(true));
        let store = store.map_err(|e| Error(format!("no store can be made: {e}")))?;
        let drops = options.policy != Policy::NoEviction;
        let space = Space::new(store, options.ram_bytes, OWN_BYTES, drops)?;
        let doors = Doors::open(KIND, options.metrics)?;
        let listener = Listener::new(options.listen)?;
        check_reach(&listener.address(), password.is_some() || tls.is_some() || options.open_to_all)?;
        let shared = Shared {
            space,
            password,
            tls,
            registry: Registry::default(),
            counters: Counters::default(),
            stopping: AtomicBool::new(false),
            watch: tmem_watch::Counters::default(),
            balance: Balance::new(thread::available_parallelism().map_or(1, usize::from)),
            workers: OnceLock::new(),
            started: Instant::now(),
        };
        Ok(Self { shared: Arc::new(shared), listener, doors: Some(doors) })
    }

    /// Where it listens in the end.
    pub fn address(&self) -> Address {
        self.listener.address()
    }

    /// Serves until `stop` can be read or its other end is closed.
    ///
    /// # Errors
    /// When threads cannot be started, or waiting for clients fails.
    pub fn run(&mut self, stop: BorrowedFd<'_>) -> Result<(), Error> {
        let shared = &self.shared;
        if let Some(doors) = self.doors.take() {
            let (address, metrics) = (self.address().to_string(), doors.metrics_address());
            tmem_watch::start(Seen { shared: Arc::clone(shared), address, metrics }, doors);
        }
        let failed = |e: std::io::Error| Error(format!("no thread can be started: {e}"));
        let workers = (0..shared.balance.most()).map(|number| Worker::new(number).map(Arc::new));
        let workers = workers.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let workers = shared.workers.get_or_init(|| workers);
        let mut threads = Vec::new();
        for (number, worker) in workers.iter().enumerate() {
            let (shared, worker) = (Arc::clone(shared), Arc::clone(worker));
            let thread = thread::Builder::new().name(format!("tmem-serve-{number}"));
            threads.push(thread.spawn(move || worker::serve(&shared, &worker)).map_err(failed)?);
        }
        let upkeep = {
            let shared = Arc::clone(shared);
            thread::Builder::new().name("tmem-upkeep".to_owned()).spawn(move || keep_up(&shared)).map_err(failed)?
        };
        let accepted = self.listener.accept_until(stop, |stream| self.welcome(stream));
        shared.stopping.store(true, Relaxed);
        workers.iter().for_each(|worker| worker.wake());
        upkeep.thread().unpark();
        // What panicked has told so by then.
        threads.into_iter().for_each(|thread| drop(thread.join()));
        let _ = upkeep.join();
        Ok(accepted?)
    }

    /// Hands a client to whoever serves it.
    fn welcome(&self, stream: Stream) {
        let counters = &self.shared.counters;
        let id = counters.connections.fetch_add(1, Relaxed) + 1;
        if self.shared.registry.count() >= CONNECTIONS_MAX || stream.prepare(false).is_err() {
            counters.refused.fetch_add(1, Relaxed);
            return;
        }
        self.shared.home(id).take(Arrival::New(id, stream));
    }
}

/// Nobody comes in from another machine without a password, unless that is wanted.
fn check_reach(address: &Address, guarded: bool) -> Result<(), Error> {
    let Address::Tcp(text) = address else { return Ok(()) };
    let loopback = text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    if loopback || guarded {
        return Ok(());
    }
    Err(Error(format!(
        "{text} can be reached from other machines: give --password-file or --tls-certificates, or --open-to-all if that is meant"
    )))
}

fn keep_up(shared: &Shared) {
    let store = shared.space.store();
    let (mut looked, mut pause) = (Instant::now(), PAUSE_LOOKS);
    let mut looker = Looker::new();
    while !shared.stopping.load(Relaxed) {
        thread::park_timeout(STEP);
        store.balance(None);
        if looked.elapsed() < LOOK {
            continue;
        }
        looked = Instant::now();
        let counts = (shared.counters.commands.load(Relaxed), shared.counters.reads.load(Relaxed));
        shared.rebalance(looker.look(&shared.balance, counts));
        if let Some(machine) = Machine::now() {
            shared.space.note_machine(machine);
        }
        shared.space.keep_up();
        store.maintain();
        pause = pause.saturating_sub(1);
        if pause == 0 && store.recompress(RECOMPRESS).walked {
            pause = PAUSE_LOOKS;
        }
    }
}

impl Shared {
    /// Who serves a connection.
    pub fn home(&self, id: u64) -> &Worker {
        let workers = self.workers.get().expect("connections come when there is somebody for them");
        &workers[id as usize % self.balance.active()]
    }

    /// Changes how many threads serve; connections move to where they belong.
    pub fn rebalance(&self, active: usize) {
        if active != self.balance.active() {
            self.balance.set_active(active);
            self.workers.get().into_iter().flatten().for_each(|worker| worker.wake());
        }
    }

    /// The policy, as CONFIG GET has it.
    pub fn policy(&self) -> &'static str {
        if self.space.drops { "allkeys-lru" } else { "noeviction" }
    }

    /// The longest value that is taken: a quarter of the RAM.
    pub fn value_bytes_max(&self) -> usize {
        (self.space.ram_bytes() / 4) as usize
    }

    /// Figures of this moment. Everything is locked.
    pub fn figures_with(&self, locked: &mut Locked<'_>) -> Figures {
        let stats = self.space.store().stats();
        let (mut keys, mut expired, mut evicted) = (0, 0, 0);
        let (mut hits, mut misses) = (0, 0);
        locked.each(|shard, _| {
            keys += shard.len() as u64;
            hits += shard.hits;
            misses += shard.misses;
            expired += shard.expired;
            evicted += shard.evicted;
        });
        let counters = &self.counters;
        Figures {
            seconds: self.started.elapsed().as_secs_f64(),
            ram_bytes: self.space.ram_bytes(),
            withheld_bytes: self.space.withheld_bytes(),
            used_bytes: self.space.used_bytes(),
            store_bytes: stats.memory_bytes,
            table_bytes: self.space.table_bytes(),
            buffer_bytes: self.space.buffers.load(Relaxed),
            stored_bytes: stats.original_bytes,
            packed_bytes: stats.compressed_bytes,
            unpacked_bytes: stats.unpacked_bytes,
            ratio: stats.original_bytes as f64 / stats.memory_bytes.max(1) as f64,
            keys,
            hits,
            misses,
            expired,
            evicted,
            commands: counters.commands.load(Relaxed),
            wrong_passwords: counters.wrong_passwords.load(Relaxed),
            connections: self.registry.count() as u64,
            connections_total: counters.connections.load(Relaxed),
            connections_refused: counters.refused.load(Relaxed),
            connections_broken: counters.broken.load(Relaxed),
        }
    }
}

/// A server that listens somewhere.
struct Seen {
    shared: Arc<Shared>,
    address: String,
    metrics: Option<String>,
}

impl Source for Seen {
    type Figures = Snapshot;
    const FIGURES: &'static [Figure] = Snapshot::FIGURES;
    const PREFIX: &'static str = PREFIX;

    fn take(&self) -> Option<Snapshot> {
        let figures = self.shared.figures_with(&mut self.shared.space.lock_all());
        let (address, metrics) = (self.address.clone(), self.metrics.clone());
        Some(Snapshot { version: VERSION, pid: std::process::id() as i32, address, metrics, figures })
    }

    fn counters(&self) -> &tmem_watch::Counters {
        &self.shared.watch
    }

    fn is_over(&self) -> bool {
        self.shared.stopping.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Connections that go from thread to thread all the time lose nothing.
    #[test]
    fn connections_move_while_they_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut server = Server::bind(Options {
            ram_bytes: 64 << 20,
            codec: CodecKind::Lz4,
            policy: Policy::NoEviction,
            listen: Listen::At(Address::Unix(path.clone())),
            password_file: None,
            tls_certificates: None,
            open_to_all: false,
            metrics: None,
        })
        .unwrap();
        let shared = Arc::clone(&server.shared);
        let (stop, stopped) = UnixStream::pair().unwrap();
        let serves = thread::spawn(move || server.run(stop.as_fd()).unwrap());
        let over = AtomicBool::new(false);
        let turns = thread::scope(|scope| {
            let turns = scope.spawn(|| {
                let mut turns = 0;
                while !over.load(Relaxed) {
                    turns += 1;
                    shared.rebalance(1 + turns % shared.balance.most());
                    thread::sleep(Duration::from_micros(200));
                }
                turns
            });
            let clients = [(); 8].map(|()| {
                scope.spawn(|| {
                    let mut stream = UnixStream::connect(&path).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    for _ in 0..2000 {
                        stream.write_all(b"INCR n\r\nPING\r\n").unwrap();
                        let mut said = Vec::new();
                        while !said.ends_with(b"+PONG\r\n") {
                            let mut some = [0; 100];
                            let bytes = stream.read(&mut some).unwrap();
                            assert!(bytes > 0, "the connection ended");
                            said.extend_from_slice(&some[..bytes]);
                        }
                    }
                })
            });
            let done = clients.map(|client| client.join());
            over.store(true, Relaxed);
            done.into_iter().for_each(|done| done.unwrap());
            turns.join().unwrap()
        });
        assert!(turns > 100, "{turns}");
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET n\r\n").unwrap();
        let mut said = [0; 11];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"$5\r\n16000\r\n");
        drop(stopped);
        serves.join().unwrap();
    }
}
