//! Who is connected.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tmem_net::Stream;

/// What others may know of a client.
pub struct Info {
    pub id: u64,
    pub peer: String,
    pub since: Instant,
    pub db: AtomicU8,
    /// Milliseconds from `since` to its last command.
    pub last: AtomicU64,
    name: Mutex<String>,
    /// What it says it is: name and version.
    library: Mutex<[String; 2]>,
    stream: Arc<Stream>,
}

impl Info {
    pub fn new(id: u64, stream: &Arc<Stream>) -> Self {
        Self {
            id,
            peer: stream.peer(),
            since: Instant::now(),
            db: AtomicU8::new(0),
            last: AtomicU64::new(0),
            name: Mutex::default(),
            library: Mutex::default(),
            stream: Arc::clone(stream),
        }
    }

    pub fn name(&self) -> MutexGuard<'_, String> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn library(&self) -> MutexGuard<'_, [String; 2]> {
        self.library.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line as CLIENT LIST has them.
    pub fn line(&self) -> String {
        let age = self.since.elapsed();
        let idle = (age.as_millis() as u64).saturating_sub(self.last.load(Relaxed)) / 1000;
        let [lib_name, lib_ver] = &*self.library();
        format!(
            "id={} addr={} name={} age={} idle={idle} db={} lib-name={lib_name} lib-ver={lib_ver}",
            self.id,
            self.peer,
            self.name(),
            age.as_secs(),
            self.db.load(Relaxed),
        )
    }

    /// Ends its connection.
    pub fn kill(&self) {
        self.stream.shut_down(Shutdown::Both);
    }
}

/// All who are connected.
#[derive(Default)]
pub struct Registry {
    clients: Mutex<BTreeMap<u64, Arc<Info>>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Info>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, info: &Arc<Info>) {
        self.lock().insert(info.id, Arc::clone(info));
    }

    pub fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    pub fn all(&self) -> Vec<Arc<Info>> {
        self.lock().values().cloned().collect()
    }
}

/// Commands that wait for EXEC, each with its arguments.
#[derive(Default)]
pub struct Queue {
    pub commands: Vec<Vec<Vec<u8>>>,
    /// Bytes that they take.
    pub bytes: usize,
}

impl Queue {
    pub fn push(&mut self, args: &[&[u8]]) {
        self.bytes += args.iter().map(|arg| arg.len() + size_of::<Vec<u8>>()).sum::<usize>();
        self.commands.push(args.iter().map(|arg| arg.to_vec()).collect());
    }
}

/// What a connection remembers of its client.
pub struct Client {
    pub info: Arc<Info>,
    pub db: u8,
    pub resp3: bool,
    /// It has said the password, or there is none.
    pub known: bool,
    /// Commands since MULTI.
    pub queue: Option<Queue>,
    /// One of them was refused, so that EXEC will be.
    pub spoilt: bool,
    /// Wrong passwords so far.
    pub failures: u32,
    /// It is not to be heard until then.
    pub muted_until: Option<Instant>,
    /// It leaves when its answers are sent.
    pub leaving: bool,
}

impl Client {
    pub fn new(info: Arc<Info>, known: bool) -> Self {
        Self {
            info,
            db: 0,
            resp3: false,
            known,
            queue: None,
            spoilt: false,
            failures: 0,
            muted_until: None,
            leaving: false,
        }
    }

    /// As when it connected.
    pub fn reset(&mut self, known: bool) {
        self.info.db.store(0, Relaxed);
        self.info.name().clear();
        *self = Self { failures: self.failures, ..Self::new(Arc::clone(&self.info), known) };
    }
}
