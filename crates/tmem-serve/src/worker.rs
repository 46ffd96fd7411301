//! A thread that serves many connections: it waits for all of them at once, reads what has come, does it, and writes what there is to
//! answer. The answers to all that had come go out together at the end, as those of Redis do: the first wakes whoever waits for them, and
//! the others find them awake.
//!
//! What arrives goes into a buffer of the thread; a connection has one of its own only while a command is not whole, and one for answers
//! only while the client does not take them. So one that is idle takes a few hundred bytes. A client that does not read is not heard either.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustls::ServerConnection;
use tmem_net::Stream;

use crate::client::{Client, Info};
use crate::commands;
use crate::reply::Reply;
use crate::resp::{Broken, Decoder, Found, Limits};
use crate::server::Shared;
use crate::space::now;

/// What is read at a time.
const READ_BYTES: usize = 64 << 10;
/// With so much to be sent, nothing more is done for a client.
const OUT_BYTES_MAX: usize = 256 << 10;
/// Answers go out together until there are so many bytes of them, which are still close at hand then.
const TOGETHER_BYTES: usize = 32 << 10;
/// Bytes of a connection that nobody hears of.
const CONNECTION_BYTES: u64 = 1 << 10;
/// More of them under TLS: records on their way in and out, and keys.
const TLS_BYTES: u64 = 96 << 10;
/// Arguments that a command has at most, mostly.
const FEW_ARGS: usize = 8;
/// The name of what wakes a worker.
const WAKE: u64 = 0;
/// How often to look at connections that are not heard for a while.
const TICK: Duration = Duration::from_millis(50);

/// A connection for a worker.
pub enum Arrival {
    New(u64, Stream),
    /// From another worker.
    Moved(u64, Box<Connection>),
}

/// What others know of a worker.
pub struct Worker {
    number: usize,
    arrivals: Mutex<Vec<Arrival>>,
    epoll: OwnedFd,
    wake: OwnedFd,
}

impl Worker {
    pub fn new(number: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self { number, arrivals: Mutex::default(), epoll, wake })
    }

    /// Hands over a connection.
    pub fn take(&self, arrival: Arrival) {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        self.wake();
    }

    pub fn wake(&self) {
        // If it cannot be added to, it will wake as it is.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// A client that is being served.
pub struct Connection {
    stream: Arc<Stream>,
    /// If all that is said is encrypted.
    tls: Option<Box<ServerConnection>>,
    client: Client,
    decoder: Decoder,
    /// What has arrived of a command that is not whole, or of those that are not done yet.
    input: Vec<u8>,
    /// Bytes that there have to be before there is any use in decoding.
    wanted: usize,
    output: Vec<u8>,
    sent: usize,
    /// What is waited for.
    events: epoll::EventFlags,
    /// Bytes that were counted for it.
    counted: u64,
}

/// Serves until the server stops.
pub fn serve(shared: &Shared, worker: &Worker) {
    let mut serving = Serving {
        shared,
        worker,
        connections: HashMap::new(),
        muted: HashSet::new(),
        heard: Vec::new(),
        unsent: 0,
        buffer: vec![0; READ_BYTES],
    };
    let mut active = shared.balance.active();
    let mut events = Vec::with_capacity(256);
    while !shared.stopping.load(Relaxed) {
        events.clear();
        let timeout =
            (!serving.muted.is_empty()).then_some(Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() });
        match epoll::wait(&worker.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                eprintln!("tmem: waiting for clients fails: {e}");
                return;
            }
        }
        serving.unmute();
        if active != shared.balance.active() {
            active = shared.balance.active();
            serving.move_away();
        }
        for event in &events {
            match event.data.u64() {
                WAKE => serving.welcome(),
                id => serving.hear(id, event.flags),
            }
        }
        serving.answer();
    }
    // What has been answered is sent, as far as it can be.
    for (id, mut connection) in serving.connections.drain() {
        let _ = connection.send();
        leave(shared, id, &connection);
    }
}

/// What a worker serves at present.
struct Serving<'a> {
    shared: &'a Shared,
    worker: &'a Worker,
    connections: HashMap<u64, Box<Connection>>,
    /// Those that are not heard for a while.
    muted: HashSet<u64>,
    /// Those that have been heard and are to be answered, and how many bytes there are for them.
    heard: Vec<u64>,
    unsent: usize,
    buffer: Vec<u8>,
}

impl Serving<'_> {
    /// Takes in those that were handed over.
    fn welcome(&mut self) {
        // Whoever is given away has been answered.
        self.answer();
        let _ = rustix::io::read(&self.worker.wake, &mut [0; 8]);
        let arrivals = std::mem::take(&mut *self.worker.arrivals.lock().unwrap_or_else(PoisonError::into_inner));
        for arrival in arrivals {
            let (id, connection) = match arrival {
                Arrival::New(id, stream) => match Connection::new(self.shared, id, stream) {
                    Ok(connection) => (id, Box::new(connection)),
                    Err(_) => {
                        self.shared.counters.refused.fetch_add(1, Relaxed);
                        continue;
                    }
                },
                Arrival::Moved(id, connection) => (id, connection),
            };
            let data = epoll::EventData::new_u64(id);
            if epoll::add(&self.worker.epoll, &*connection.stream, data, connection.events).is_err() {
                self.shared.counters.refused.fetch_add(1, Relaxed);
                leave(self.shared, id, &connection);
                continue;
            }
            if connection.client.muted_until.is_some() {
                self.muted.insert(id);
            }
            self.connections.insert(id, connection);
        }
        // How many serve may have changed while they were on their way.
        self.move_away();
    }

    /// Gives away the connections that belong to other workers now.
    fn move_away(&mut self) {
        let elsewhere = |id: &u64| self.shared.home(*id).number != self.worker.number;
        let ids: Vec<u64> = self.connections.keys().copied().filter(elsewhere).collect();
        for id in ids {
            if let Some(connection) = self.take_out(id) {
                self.shared.home(id).take(Arrival::Moved(id, connection));
            }
        }
    }

    /// Waits for a connection no more. It may be open all the same: others know of it.
    fn take_out(&mut self, id: u64) -> Option<Box<Connection>> {
        let connection = self.connections.remove(&id)?;
        self.muted.remove(&id);
        // One that is not waited for any more cannot wake this thread for nothing.
        let _ = epoll::delete(&self.worker.epoll, &*connection.stream);
        Some(connection)
    }

    /// Hears those again whose time has come.
    fn unmute(&mut self) {
        if self.muted.is_empty() {
            return;
        }
        let now = Instant::now();
        let until = |id: &u64| self.connections.get(id).and_then(|connection| connection.client.muted_until);
        let due: Vec<u64> =
            self.muted.iter().copied().filter(|id| until(id).is_none_or(|until| until <= now)).collect();
        for id in due {
            self.muted.remove(&id);
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.client.muted_until = None;
            }
            self.hear(id, epoll::EventFlags::empty());
        }
    }

    /// Does what a connection asks for. It is answered with the others, or before there is too much to be sent.
    fn hear(&mut self, id: u64, flags: epoll::EventFlags) {
        let shared = self.shared;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.go_on(shared, flags, &mut self.buffer) {
            Ok(()) => {
                self.unsent += connection.output.len();
                self.heard.push(id);
            }
            Err(e) => {
                if e.kind() == ErrorKind::InvalidData {
                    shared.counters.broken.fetch_add(1, Relaxed);
                }
                self.let_go(id);
            }
        }
        if self.unsent >= TOGETHER_BYTES {
            self.answer();
        }
    }

    /// Answers those that were heard; then waits for the right things of each, counts its buffers, or lets it go.
    fn answer(&mut self) {
        let mut heard = std::mem::take(&mut self.heard);
        for id in heard.drain(..) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let goes_on = connection.send().is_ok() && (!connection.client.leaving || connection.has_more());
            if connection.client.muted_until.is_some() {
                self.muted.insert(id);
            }
            let stays = goes_on && connection.count(self.shared) && {
                let events = connection.wanted_events();
                let same = events == connection.events;
                connection.events = events;
                let data = epoll::EventData::new_u64(id);
                same || epoll::modify(&self.worker.epoll, &*connection.stream, data, events).is_ok()
            };
            if !stays {
                self.let_go(id);
            }
        }
        (self.heard, self.unsent) = (heard, 0);
    }

    fn let_go(&mut self, id: u64) {
        if let Some(connection) = self.take_out(id) {
            leave(self.shared, id, &connection);
        }
    }
}

/// What a connection takes without its buffers.
fn fixed_bytes(tls: bool) -> u64 {
    CONNECTION_BYTES + if tls { TLS_BYTES } else { 0 }
}

fn leave(shared: &Shared, id: u64, connection: &Connection) {
    connection.stream.shut_down(std::net::Shutdown::Both);
    shared.registry.remove(id);
    shared.space.buffers.fetch_sub(connection.counted, Relaxed);
}

impl Connection {
    fn new(shared: &Shared, id: u64, stream: Stream) -> io::Result<Self> {
        let tls = shared.tls.as_ref().map(|config| ServerConnection::new(Arc::clone(config)));
        let tls = tls.transpose().map_err(io::Error::other)?;
        let counted = fixed_bytes(tls.is_some());
        let stream = Arc::new(stream);
        let info = Arc::new(Info::new(id, &stream));
        shared.registry.add(&info);
        shared.space.buffers.fetch_add(counted, Relaxed);
        Ok(Self {
            stream,
            tls: tls.map(Box::new),
            client: Client::new(info, shared.password.is_none()),
            decoder: Decoder::default(),
            input: Vec::new(),
            wanted: 1,
            output: Vec::new(),
            sent: 0,
            events: epoll::EventFlags::IN,
            counted,
        })
    }

    /// Reads what is there already, as it was said.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&*self.stream).read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // Whoever goes without a farewell has gone as well: no command is done before it is there as a whole.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                answer => return answer,
            }
            if tls.read_tls(&mut &*self.stream)? == 0 {
                return Ok(0);
            }
            if let Err(e) = tls.process_new_packets() {
                // The alert says why.
                let _ = tls.write_tls(&mut &*self.stream);
                return Err(io::Error::new(ErrorKind::InvalidData, e));
            }
        }
    }

    /// Sends some of the answers. [`ErrorKind::WouldBlock`] if nothing more can be sent now.
    fn send_some(&mut self) -> io::Result<usize> {
        let rest = &self.output[self.sent..];
        let Some(tls) = &mut self.tls else { return (&*self.stream).write(rest) };
        // Records that are under way come first, so that there are never many of them.
        while tls.wants_write() {
            tls.write_tls(&mut &*self.stream)?;
        }
        tls.writer().write(rest)
    }

    /// There is something to be sent.
    fn has_more(&self) -> bool {
        self.sent < self.output.len() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Does what can be done now; its answers are still to be sent.
    ///
    /// # Errors
    /// When the client has left, or says what is no command.
    fn go_on(&mut self, shared: &Shared, flags: epoll::EventFlags, buffer: &mut [u8]) -> io::Result<()> {
        if flags.contains(epoll::EventFlags::ERR) {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if flags.contains(epoll::EventFlags::OUT) {
            self.send()?;
        }
        // What waits was left because too much was to be sent, or because the client was not heard.
        self.work_on_input(shared)?;
        // What TLS has decrypted is not told of by the socket.
        let there_is = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP) || self.tls.is_some();
        while self.hears() && there_is {
            match self.receive(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    shared.counters.reads.fetch_add(1, Relaxed);
                    self.hear(shared, &buffer[..bytes])?;
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => break,
                Err(e) => return Err(e),
            }
            if self.tls.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn hears(&self) -> bool {
        self.output.len() - self.sent < OUT_BYTES_MAX && self.client.muted_until.is_none() && !self.client.leaving
    }

    fn wanted_events(&self) -> epoll::EventFlags {
        let mut events = epoll::EventFlags::empty();
        if self.hears() {
            events |= epoll::EventFlags::IN;
        }
        // What was left because too much was to be sent is gone on with as soon as it is sent; others have their turn in between.
        if self.has_more() || (self.hears() && self.has_left()) {
            events |= epoll::EventFlags::OUT;
        }
        events
    }

    /// There may be a command in what has arrived.
    fn has_left(&self) -> bool {
        !self.input.is_empty() && self.input.len() >= self.wanted
    }

    /// Takes what has arrived.
    fn hear(&mut self, shared: &Shared, bytes: &[u8]) -> io::Result<()> {
        if self.input.is_empty() {
            let done = self.work_on(shared, bytes)?;
            self.input.extend_from_slice(&bytes[done..]);
            return Ok(());
        }
        self.input.extend_from_slice(bytes);
        self.work_on_input(shared)
    }

    fn work_on_input(&mut self, shared: &Shared) -> io::Result<()> {
        if !self.has_left() {
            return Ok(());
        }
        let input = std::mem::take(&mut self.input);
        let done = self.work_on(shared, &input);
        self.input = input;
        let done = done?;
        self.input.drain(..done);
        if self.input.is_empty() && self.input.capacity() > 0 {
            self.input = Vec::new();
        }
        Ok(())
    }

    /// Does the commands at the front of what has arrived, as many as there are and as it can answer, and says how many bytes they were.
    fn work_on(&mut self, shared: &Shared, input: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        let mut ran = 0;
        let now = now();
        while self.hears() {
            let limits = if self.client.known { Limits::known(shared.value_bytes_max()) } else { Limits::STRANGER };
            let found = self.decoder.decode(&input[done..], limits);
            match found {
                Ok(Found::Incomplete(bytes)) => {
                    self.wanted = bytes;
                    break;
                }
                Ok(Found::Command(bytes)) => {
                    let input = &input[done..];
                    let words = self.decoder.args().iter().map(|range| &input[range.clone()]);
                    // Few are looked at where they are.
                    let (mut few, many): ([&[u8]; FEW_ARGS], Vec<&[u8]>);
                    let args = if words.len() <= FEW_ARGS {
                        few = [&[]; FEW_ARGS];
                        few.iter_mut().zip(words.clone()).for_each(|(to, word)| *to = word);
                        &few[..words.len()]
                    } else {
                        many = words.collect();
                        &many
                    };
                    if !args.is_empty() {
                        commands::run(shared, &mut self.client, args, &mut self.output, now);
                        ran += 1;
                    }
                    done += bytes;
                    self.wanted = 1;
                }
                Err(Broken(why)) => {
                    Reply { out: &mut self.output, resp3: false }.error(&why);
                    // It is told, and nothing more that it says is heard.
                    let _ = self.send();
                    return Err(io::Error::new(ErrorKind::InvalidData, why));
                }
            }
        }
        if ran > 0 {
            shared.counters.commands.fetch_add(ran, Relaxed);
            self.client.info.last.store(self.client.info.since.elapsed().as_millis() as u64, Relaxed);
        }
        Ok(done)
    }

    /// Sends what can be sent now.
    fn send(&mut self) -> io::Result<()> {
        while self.has_more() {
            match self.send_some() {
                Ok(0) if self.sent < self.output.len() => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => self.sent += bytes,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.sent = 0;
        self.output.clear();
        Ok(())
    }

    /// Counts its buffers. `false` if there is no room for them.
    fn count(&mut self, shared: &Shared) -> bool {
        // Of an answer that is sent nothing stays, however much there is still to be done.
        if self.output.is_empty() {
            self.output = Vec::new();
        }
        let queued = self.client.queue.as_ref().map_or(0, |queue| queue.bytes);
        let buffers = self.input.capacity() + self.output.capacity() + queued;
        let now = fixed_bytes(self.tls.is_some()) + buffers as u64;
        let before = std::mem::replace(&mut self.counted, now);
        let buffers = &shared.space.buffers;
        if now <= before {
            buffers.fetch_sub(before - now, Relaxed);
            return true;
        }
        let all = buffers.fetch_add(now - before, Relaxed) + now - before;
        // Little is looked at by the upkeep, as long as all of it together is little.
        let is_little = now - before < READ_BYTES as u64 && all < shared.space.ram_bytes() / 16;
        is_little || shared.space.settle().is_ok()
    }
}
