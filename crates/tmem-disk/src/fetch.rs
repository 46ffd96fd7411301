//! Threads of a connection that wait for the disk, so that the commands behind need not.
//!
//! They are started when there is something to fetch for the first time. There are at most [`FETCHERS_MAX`] of them and
//! [`WAITING_MAX`] requests that wait for them; what is more, the connection's own thread does, and reads nothing meanwhile.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};

use crate::connection::{Connection, PIECE_BYTES};
use crate::protocol::Request;

const FETCHERS_MAX: usize = 4;
const WAITING_MAX: usize = 64;
const STACK_BYTES: usize = 256 << 10;
/// A piece, with room for what stands in front of it.
const BUFFER_BYTES: usize = PIECE_BYTES as usize + 64;

/// Bytes that the fetchers of a connection take.
pub const FETCHERS_BYTES: u64 = (FETCHERS_MAX * (BUFFER_BYTES + (32 << 10))) as u64;

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request; `None` at the end.
    fn next(&self) -> Option<Request> {
        let mut waiting = self.lock();
        loop {
            if let Some(request) = waiting.requests.pop_front() {
                return Some(request);
            }
            if waiting.closed {
                return None;
            }
            waiting.idle += 1;
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}

/// The fetchers of a connection, started or not. When it is dropped they do what waits, and end.
pub struct Fetchers<'scope, 'env, W> {
    scope: &'scope Scope<'scope, 'env>,
    connection: &'env Connection<'env, W>,
    queue: Arc<Queue>,
    started: usize,
}

impl<'scope, 'env, W: Write + Send> Fetchers<'scope, 'env, W> {
    pub fn new(scope: &'scope Scope<'scope, 'env>, connection: &'env Connection<'env, W>) -> Self {
        Self { scope, connection, queue: Arc::default(), started: 0 }
    }

    /// Takes over a read that begins on disk and is not long. `false` if it is none, or there are too many.
    pub fn take(&mut self, request: &Request) -> bool {
        let short = u64::from(request.bytes) <= PIECE_BYTES;
        if !short || !self.connection.export.blocks.is_away(request.offset) {
            return false;
        }
        let mut waiting = self.queue.lock();
        if waiting.requests.len() >= WAITING_MAX {
            return false;
        }
        let busy = waiting.requests.len() >= waiting.idle;
        if busy && self.started < FETCHERS_MAX && self.start().is_ok() {
            self.started += 1;
        }
        if self.started == 0 {
            return false;
        }
        waiting.requests.push_back(*request);
        self.queue.more.notify_one();
        true
    }

    fn start(&self) -> std::io::Result<()> {
        let (connection, queue) = (self.connection, Arc::clone(&self.queue));
        let fetch = move || {
            let mut buffer = vec![0; BUFFER_BYTES];
            while let Some(request) = queue.next() {
                // If the client cannot be reached, the thread that hears it finds out as well.
                let _ = connection.read_apart(request, &mut buffer);
            }
        };
        let thread = Builder::new().name("tmem-fetch".to_owned()).stack_size(STACK_BYTES);
        thread.spawn_scoped(self.scope, fetch).map(drop)
    }
}

impl<W> Drop for Fetchers<'_, '_, W> {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.more.notify_all();
    }
}
