//! The server: a store, its exports, a socket that listens, and a thread for each connection.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tmem::{Config, OpenOptions, Saved, Store};
use tmem_net::{Address, Listener, Stream};
use tmem_watch::Doors;

use crate::connection::{self, CONNECTION_BYTES};
use crate::error::Error;
use crate::export::Export;
use crate::fetch::FETCHERS_BYTES;
use crate::figures::{ExportFigures, Figures};
use crate::for_swap;
use crate::image::{self, SavedDisk, SavedDisks};
use crate::negotiate::{Agreed, House, PATIENCE, Security, greet, haggle};
use crate::options::{Contents, ExportOptions, Options};
use crate::protocol::ClientFlags;
use crate::stream::Hurried;
use crate::stripes::Stripes;
use crate::tls::{Secured, TLS_BYTES};
use crate::upkeep;
use crate::watch::{self, Seen};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 128;
/// For so many of them there is room from the start; more of them take it from the store.
const CONNECTIONS_READY: u64 = 8;
/// What the program takes beside the store and connections.
const OWN_BYTES: u64 = 1 << 20;
/// The least that is good for something.
const RAM_BYTES_MIN: u64 = 16 << 20;
/// How long answers that are under way are waited for at the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// A thread of a connection needs some pages of it.
const STACK_BYTES: usize = 256 << 10;

#[derive(Default)]
struct Counters {
    connections: AtomicU64,
    broken: AtomicU64,
    refused: AtomicU64,
    used_peak: AtomicU64,
}

/// What all connections share.
pub struct Shared {
    started: Instant,
    store: Arc<Store>,
    exports: Vec<Arc<Export>>,
    ram_bytes: u64,
    /// There is a spill file.
    spills: bool,
    /// There is a disk that some blocks have to be fetched from.
    waits: bool,
    /// Nothing is said without it.
    tls: Option<Arc<ServerConfig>>,
    /// What is not for the store, with no connection.
    fixed_bytes: u64,
    open: Mutex<HashMap<u64, Arc<Stream>>>,
    pub stopping: AtomicBool,
    counters: Counters,
    /// Requests of those who only look.
    pub watch: tmem_watch::Counters,
}

/// A server that listens.
pub struct Server {
    shared: Arc<Shared>,
    listener: Listener,
    image: Option<PathBuf>,
    /// Until it runs.
    doors: Option<Doors>,
}

impl Server {
    /// Makes the store and listens.
    ///
    /// # Errors
    /// When the options do not fit together, or the address is taken.
    pub fn bind(options: Options) -> Result<Self, Error> {
        check(&options)?;
        if options.for_swap {
            for_swap::prepare()?;
        }
        let fixed_bytes = OWN_BYTES + options.exports.len() as u64 * Stripes::BYTES;
        let tls = options.tls_certificates.as_deref().map(tmem_net::tls::server_config).transpose()?;
        let backed = |export: &ExportOptions| matches!(export.contents, Contents::Backing(_));
        let waits = !options.spills.is_empty() || options.exports.iter().any(backed);
        let connection_bytes = connection_bytes(waits, tls.is_some());
        let store_bytes = options.ram_bytes.saturating_sub(fixed_bytes + CONNECTIONS_READY * connection_bytes);
        // A full disk can be overwritten: each size of packed blocks may need a frame more for that.
        let overwrite_bytes = (store_bytes / 64).clamp(256 << 10, 8 << 20);
        let config = |bytes| Config::new(bytes).codec(options.codec).overwrite_bytes(overwrite_bytes);
        let no_store = |e| Error::new(format!("no store of {store_bytes} bytes can be made: {e}"));
        let spills = !options.spills.is_empty();
        let (store, saved) = match options.image.as_deref() {
            Some(path) if image::is_there(path)? => {
                // Nobody is connected yet, and to open takes a buffer: what was full fits again.
                let opened = OpenOptions::new(config(options.ram_bytes - fixed_bytes));
                let opened = options.spills.into_iter().fold(opened, OpenOptions::spill);
                let (store, saved) = image::open(path, opened, &options.exports)?;
                // A full disk does not always take as little as before. Then fewer can connect, until some of it is gone.
                image::fits(path, &store, options.ram_bytes - fixed_bytes - connection_bytes)?;
                store.set_budget(store_bytes);
                (store, saved)
            }
            _ => {
                let store = Store::new(config(store_bytes)).map_err(no_store)?;
                let refused = |e| Error::new(format!("the spill file cannot be used: {e}"));
                options.spills.into_iter().try_for_each(|spill| store.add_spill(spill)).map_err(refused)?;
                (store, SavedDisks::default())
            }
        };
        let store = Arc::new(store);
        let export = |options| Export::new(&store, spills, options, saved.pool(&options.name)).map(Arc::new);
        let exports = options.exports.iter().map(export).collect::<Result<Vec<_>, _>>()?;
        let doors = Doors::open(watch::KIND, options.metrics)?;
        let listener = Listener::new(options.listen)?;
        if options.for_swap {
            for_swap::lock()?;
        }
        let shared = Shared {
            started: Instant::now(),
            store,
            exports,
            ram_bytes: options.ram_bytes,
            spills,
            waits,
            tls,
            fixed_bytes,
            open: Mutex::default(),
            stopping: AtomicBool::new(false),
            counters: Counters::default(),
            watch: tmem_watch::Counters::default(),
        };
        Ok(Self { shared: Arc::new(shared), listener, image: options.image, doors: Some(doors) })
    }

    /// Where it listens in the end.
    pub fn address(&self) -> Address {
        self.listener.address()
    }

    /// Figures of this moment.
    pub fn figures(&self) -> Figures {
        self.shared.take_figures()
    }

    /// Serves until `stop` can be read or its other end is closed. Requests that have arrived are answered.
    ///
    /// # Errors
    /// When waiting for clients fails.
    pub fn run(&mut self, stop: BorrowedFd<'_>) -> Result<(), Error> {
        let shared = &self.shared;
        if let Some(doors) = self.doors.take() {
            let (address, metrics) = (self.address().to_string(), doors.metrics_address());
            tmem_watch::start(Seen { shared: Arc::clone(shared), address, metrics }, doors);
        }
        let upkeep = {
            let shared = Arc::clone(shared);
            let keep_up = move || {
                let look = || {
                    shared.used_bytes();
                };
                upkeep::keep_up(&shared.store, shared.spills, &shared.stopping, look);
            };
            let spawned = thread::Builder::new().name("tmem-upkeep".to_owned()).spawn(keep_up);
            spawned.map_err(|e| Error::new(format!("no thread can be started: {e}")))?
        };
        let accepted = self.listener.accept_until(stop, |stream| self.welcome(stream));
        shared.stopping.store(true, Relaxed);
        upkeep.thread().unpark();
        // What a client sent before is still read and answered.
        shared.open().values().for_each(|stream| stream.shut_down(Shutdown::Read));
        let until = Instant::now() + FAREWELL;
        while !shared.open().is_empty() && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
        }
        shared.open().values().for_each(|stream| stream.shut_down(Shutdown::Both));
        // A panic of it has been told by then.
        let _ = upkeep.join();
        Ok(accepted?)
    }

    /// Saves all disks that are no caches to the image, if there is to be one, after [`run`](Self::run) has returned.
    ///
    /// # Errors
    /// When it cannot be written; then the old one is as it was.
    pub fn save(self) -> Result<Option<Saved>, Error> {
        let Self { mut shared, listener, image, doors: _ } = self;
        drop(listener);
        let Some(path) = image else { return Ok(None) };
        let until = Instant::now() + FAREWELL;
        let shared = loop {
            shared = match Arc::try_unwrap(shared) {
                Ok(shared) => break shared,
                Err(shared) if Instant::now() < until => shared,
                Err(_) => return Err(Error::new("the disks are not saved: a connection does not come to its end")),
            };
            thread::sleep(Duration::from_millis(2));
        };
        let Shared { store, exports, ram_bytes, fixed_bytes, .. } = shared;
        let disks = exports.iter().filter_map(|export| SavedDisk::of(export)).collect();
        drop(exports);
        let store = Arc::into_inner(store).expect("whoever used it is gone");
        // Connections need nothing any more.
        store.set_budget(ram_bytes - fixed_bytes);
        image::save(&path, store, disks).map(Some)
    }

    /// Gives a client its thread.
    fn welcome(&self, stream: Stream) {
        let shared = Arc::clone(&self.shared);
        let number = shared.counters.connections.fetch_add(1, Relaxed);
        let stream = Arc::new(stream);
        // Nobody else adds to the table.
        let connections = shared.open().len();
        if connections >= CONNECTIONS_MAX || !shared.has_room_for(connections as u64 + 1) {
            shared.counters.refused.fetch_add(1, Relaxed);
            shared.give_room(shared.open().len() as u64);
            return;
        }
        shared.open().insert(number, Arc::clone(&stream));
        let talk = move || {
            let _visit = Visit { shared: &shared, number };
            if let Err(e) = shared.talk(&stream)
                && e.kind() == ErrorKind::InvalidData
            {
                shared.counters.broken.fetch_add(1, Relaxed);
            }
        };
        let spawned = thread::Builder::new().name("tmem-nbd".to_owned()).stack_size(STACK_BYTES).spawn(talk);
        if spawned.is_err() {
            self.shared.counters.refused.fetch_add(1, Relaxed);
            self.shared.leave(number);
        }
    }
}

/// What a connection takes.
fn connection_bytes(waits: bool, tls: bool) -> u64 {
    CONNECTION_BYTES + if waits { FETCHERS_BYTES } else { 0 } + if tls { TLS_BYTES } else { 0 }
}

fn check(options: &Options) -> Result<(), Error> {
    if options.ram_bytes < RAM_BYTES_MIN {
        return Err(Error::new(format!("--ram {} is too little: 16M is the least that works", options.ram_bytes)));
    }
    if options.exports.is_empty() {
        return Err(Error::new("there is no disk to serve: give --size, --backing or --export NAME=SIZE"));
    }
    for (at, export) in options.exports.iter().enumerate() {
        let name = &export.name;
        if name.len() > crate::protocol::NAME_BYTES_MAX {
            return Err(Error::new("the name of an export may have 4096 bytes"));
        }
        if options.exports[..at].iter().any(|other| other.name == *name) {
            return Err(Error::new(format!("there are two exports called '{name}': give them different names")));
        }
    }
    Ok(())
}

/// A connection, until its thread ends, however it does.
struct Visit<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.shared.leave(self.number);
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Stream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, number: u64) {
        let mut open = self.open();
        if let Some(stream) = open.remove(&number) {
            // The client is told at once, though the table of whoever stops us may still have the stream.
            stream.shut_down(Shutdown::Both);
        }
        self.give_room(open.len() as u64);
    }

    fn beside_store(&self, connections: u64) -> u64 {
        self.fixed_bytes + connections * connection_bytes(self.waits, self.tls.is_some())
    }

    /// Takes from the store what so many connections need. Says whether it had it: what is stored, and fits nowhere else, stays.
    fn has_room_for(&self, connections: u64) -> bool {
        self.give_room(connections);
        self.store.memory_bytes() + self.beside_store(connections) <= self.ram_bytes
    }

    /// The store has what so many connections leave.
    fn give_room(&self, connections: u64) {
        if connections >= CONNECTIONS_READY {
            self.store.set_budget(self.ram_bytes.saturating_sub(self.beside_store(connections)));
        }
    }

    fn talk(&self, stream: &Stream) -> io::Result<()> {
        stream.prepare(true)?;
        let mut hurried = Hurried::new(stream, PATIENCE);
        let flags = greet(&mut hurried)?;
        let security = if self.tls.is_some() { Security::Wanted } else { Security::None };
        match haggle(&mut hurried, self, flags, security)? {
            Agreed::Left => Ok(()),
            Agreed::Tls => self.talk_secured(stream, hurried, flags),
            Agreed::Export(export, terms) => {
                stream.set_patience(None)?;
                connection::serve(&mut &*stream, stream, &export, terms)
            }
        }
    }

    fn talk_secured<'a>(&self, stream: &'a Stream, hurried: Hurried<'a>, flags: ClientFlags) -> io::Result<()> {
        let config = self.tls.as_ref().expect("TLS is agreed on where it is wanted");
        let secured = Secured::accept(config, hurried)?;
        if let Agreed::Export(export, terms) = haggle(&mut &secured, self, flags, Security::Done)? {
            stream.set_patience(None)?;
            let secured = secured.unhurried(stream);
            return connection::serve(&mut &secured, &secured, &export, terms);
        }
        Ok(())
    }

    /// What all of it takes at present; the peak follows it.
    fn used_bytes(&self) -> u64 {
        let connections = self.open().len() as u64;
        let used_bytes = self.store.memory_bytes() + self.beside_store(connections);
        self.counters.used_peak.fetch_max(used_bytes, Relaxed);
        used_bytes
    }

    /// Figures of this moment.
    pub fn take_figures(&self) -> Figures {
        let used_bytes = self.used_bytes();
        let connections = self.open().len() as u64;
        Figures {
            seconds: self.started.elapsed().as_secs_f64(),
            ram_bytes: self.ram_bytes,
            used_bytes,
            used_bytes_peak: self.counters.used_peak.load(Relaxed),
            connections,
            connections_total: self.counters.connections.load(Relaxed),
            connections_broken: self.counters.broken.load(Relaxed),
            connections_refused: self.counters.refused.load(Relaxed),
            exports: self.exports.iter().map(|export| ExportFigures::of(export)).collect(),
            ..Figures::of_store(&self.store)
        }
    }
}

impl House for Shared {
    fn exports(&self) -> &[Arc<Export>] {
        &self.exports
    }

    fn figures(&self) -> Vec<u8> {
        // Numbers and texts can always be written.
        serde_json::to_vec(&self.take_figures()).unwrap_or_default()
    }
}
