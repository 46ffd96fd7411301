//! The thread that answers: one loop over few connections, none of which can make it wait for longer than a moment.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::{THREAD, http, protocol};
use crate::control;
use crate::counters::{Counters, add};
use crate::error::Error;
use crate::figures;
use crate::proc;
use crate::report::Snapshot;
use crate::shared::Shared;

/// Connections at a time through one door. One more, and the oldest has to go.
const VISITS_MAX: usize = 8;
/// How long a visit may take, from the connection to the last byte.
const VISIT: Duration = Duration::from_secs(2);
/// How long the main thread may take for a snapshot; it looks every 50 ms at least.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often to look whether the supervisor ends.
const LOOK: Duration = Duration::from_millis(500);
/// What a stranger is told.
const STRANGER: &str = "it belongs to another user";

/// Where requests come in.
pub struct Doors {
    control: UnixListener,
    metrics: Option<TcpListener>,
}

impl Doors {
    /// Opens the doors of this process, before it starts a program. From then on it is known as a supervisor.
    ///
    /// # Errors
    /// When a name or address cannot be had.
    pub fn open(metrics: Option<SocketAddr>) -> Result<Doors, Error> {
        let control = control::listen_as_supervisor()?;
        let open = |address| TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
        let refuse = |address, e: std::io::Error| match e.kind() {
            ErrorKind::AddrInUse => {
                Error::own(format!("--metrics {address}: the address is in use: name another port"))
            }
            ErrorKind::AddrNotAvailable => Error::own(format!("--metrics {address}: this machine has no such address")),
            _ => Error::own(format!("--metrics {address}: {e}")),
        };
        let metrics = metrics.map(|address| open(address).map_err(|e| refuse(address, e))).transpose()?;
        Ok(Doors { control, metrics })
    }

    /// Where metrics are served.
    pub fn metrics_address(&self) -> Option<String> {
        let address = self.metrics.as_ref()?.local_addr().ok()?;
        Some(address.to_string())
    }

    fn descriptors(&self) -> impl Iterator<Item = (Door, i32)> {
        let metrics = self.metrics.as_ref().map(|listener| (Door::Metrics, listener.as_raw_fd()));
        [(Door::Control, self.control.as_raw_fd())].into_iter().chain(metrics)
    }

    /// Lets the next visitor in; nothing if there is none, or a stranger.
    fn admit(&self, door: Door, counters: &Counters) -> std::io::Result<Option<Visit>> {
        match door {
            Door::Control => {
                let (mut stream, _) = self.control.accept()?;
                stream.set_nonblocking(true)?;
                if !control::peer_may_ask(&stream) {
                    add(&counters.watch_stranger, 1);
                    // So short a line fits the buffer of a new socket.
                    return stream.write_all(&protocol::refusal(STRANGER)).map(|()| None);
                }
                Ok(Some(Visit::new(door, stream.into())))
            }
            Door::Metrics => {
                let Some(listener) = &self.metrics else { return Ok(None) };
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Some(Visit::new(door, stream.into())))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Control,
    Metrics,
}

/// What a visitor wants.
#[derive(Clone, Copy)]
enum Want {
    /// It has not said all yet.
    Unsaid,
    Figures {
        head_only: bool,
    },
    /// It has its answer.
    Nothing,
}

/// One connection.
struct Visit {
    door: Door,
    stream: File,
    until: Instant,
    input: Vec<u8>,
    want: Want,
    output: Vec<u8>,
    /// All was said: what still comes in is thrown away, because to close with something unread would take the answer back.
    parting: bool,
    done: bool,
}

impl Visit {
    fn new(door: Door, stream: OwnedFd) -> Visit {
        let until = Instant::now() + VISIT;
        let (input, output) = (Vec::new(), Vec::new());
        Visit { door, stream: stream.into(), until, input, want: Want::Unsaid, output, parting: false, done: false }
    }

    fn events(&self) -> i16 {
        if self.output.is_empty() { libc::POLLIN } else { libc::POLLOUT }
    }

    /// Reads what is there, and understands it.
    fn hear(&mut self, counters: &Counters) {
        let mut some = [0; 1024];
        match self.stream.read(&mut some) {
            Ok(0) => self.done = true,
            Ok(_) if self.parting => {}
            Ok(bytes) => {
                self.input.extend_from_slice(&some[..bytes]);
                self.understand(counters);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.done = true,
        }
    }

    fn understand(&mut self, counters: &Counters) {
        let refusal = match self.door {
            Door::Control => match protocol::read_request(&self.input) {
                protocol::Request::Incomplete => return,
                protocol::Request::Figures => return self.want = Want::Figures { head_only: false },
                protocol::Request::Bad(why) => protocol::refusal(why),
            },
            Door::Metrics => match http::read_request(&self.input) {
                http::Request::Incomplete => return,
                http::Request::Metrics { head_only } => return self.want = Want::Figures { head_only },
                http::Request::Bad(status) => http::refusal(status),
            },
        };
        add(&counters.watch_malformed, 1);
        self.say(refusal);
    }

    fn answer(&mut self, snapshot: Option<&Snapshot>) {
        let Want::Figures { head_only } = self.want else { return };
        let answer = match (self.door, snapshot) {
            (Door::Control, Some(snapshot)) => protocol::answer(snapshot),
            (Door::Control, None) => protocol::refusal("it is busy"),
            (Door::Metrics, Some(snapshot)) => http::metrics(&metrics(snapshot), head_only),
            (Door::Metrics, None) => http::refusal(http::Status::Unavailable),
        };
        self.say(answer);
    }

    fn say(&mut self, answer: Vec<u8>) {
        (self.want, self.output, self.input) = (Want::Nothing, answer, Vec::new());
        self.go_on();
    }

    /// Writes what can be written now.
    fn go_on(&mut self) {
        match self.stream.write(&self.output) {
            Ok(bytes) => drop(self.output.drain(..bytes)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Err(_) => self.done = true,
        }
        if self.output.is_empty() {
            self.parting = true;
            // SAFETY: plain system call on a descriptor that is ours.
            unsafe { libc::shutdown(self.stream.as_raw_fd(), libc::SHUT_WR) };
        }
    }
}

/// What Prometheus gets: of the processes only those that are managed, so that a build has not a thousand of them.
fn metrics(snapshot: &Snapshot) -> String {
    let mut snapshot = snapshot.clone();
    snapshot.processes.retain(|process| process.managed);
    figures::metrics(Snapshot::FIGURES, &snapshot)
}

/// Starts the thread. It ends when `shared.stopping` is set, or with the process. Without it the program runs all the same.
pub fn start(shared: &Arc<Shared>, doors: Doors) {
    let shared = Arc::clone(shared);
    let serve = move || {
        // A defect costs whoever is here their answers, no more.
        while catch_unwind(AssertUnwindSafe(|| serve(&shared, &doors))).is_err() {
            thread::sleep(LOOK);
        }
    };
    if let Err(e) = thread::Builder::new().name(THREAD.to_owned()).stack_size(256 << 10).spawn(serve) {
        eprintln!("tmem: `tmem top` and --metrics will show nothing: no thread for them: {e}");
    }
}

fn serve(shared: &Shared, doors: &Doors) {
    let counters = &shared.counters;
    let mut visits: Vec<Visit> = Vec::new();
    while !shared.stopping.load(Relaxed) {
        let ready = wait(doors, &visits);
        for (visit, _) in visits.iter_mut().zip(&ready.visits).filter(|(_, ready)| **ready) {
            if visit.output.is_empty() { visit.hear(counters) } else { visit.go_on() }
        }
        if visits.iter().any(|visit| matches!(visit.want, Want::Figures { .. })) {
            answer_all(shared, &mut visits);
        }
        let now = Instant::now();
        visits.retain(|visit| {
            let late = now >= visit.until;
            if late && !visit.done && !visit.parting {
                add(&counters.watch_malformed, 1);
            }
            !visit.done && !late
        });
        for door in ready.doors {
            admit(doors, door, &mut visits, counters);
        }
    }
}

fn answer_all(shared: &Shared, visits: &mut [Visit]) {
    let mut snapshot = shared.desk.ask(PATIENCE);
    if let Some(snapshot) = &mut snapshot {
        let name = |pid| protocol::harmless(&proc::name(pid).unwrap_or_default());
        snapshot.command = name(snapshot.program);
        snapshot.processes.iter_mut().for_each(|process| process.name = name(process.pid));
    }
    let wanting = visits.iter_mut().filter(|visit| matches!(visit.want, Want::Figures { .. }));
    let counter: &AtomicU64 =
        if snapshot.is_some() { &shared.counters.watch_answers } else { &shared.counters.watch_busy };
    for visit in wanting {
        visit.answer(snapshot.as_ref());
        add(counter, 1);
    }
}

fn admit(doors: &Doors, door: Door, visits: &mut Vec<Visit>, counters: &Counters) {
    match doors.admit(door, counters) {
        Ok(Some(visit)) => {
            let mut same = visits.iter().enumerate().filter(|(_, visit)| visit.door == door).map(|(at, _)| at);
            if let (Some(oldest), true) = (same.next(), same.count() + 1 >= VISITS_MAX) {
                visits.remove(oldest);
                add(&counters.watch_busy, 1);
            }
            visits.push(visit);
        }
        // Gone again, or no descriptor to be had: poll would say the same at once.
        Err(e) if e.kind() != ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(20)),
        _ => {}
    }
}

struct Ready {
    doors: Vec<Door>,
    visits: Vec<bool>,
}

fn wait(doors: &Doors, visits: &[Visit]) -> Ready {
    let poll = |fd, events| libc::pollfd { fd, events, revents: 0 };
    let open: Vec<_> = doors.descriptors().collect();
    let mut fds: Vec<_> = open.iter().map(|&(_, fd)| poll(fd, libc::POLLIN)).collect();
    fds.extend(visits.iter().map(|visit| poll(visit.stream.as_raw_fd(), visit.events())));
    let now = Instant::now();
    let next = visits.iter().map(|visit| visit.until.saturating_duration_since(now)).min().unwrap_or(LOOK);
    let timeout = next.min(LOOK).as_millis() as i32 + 1;
    // SAFETY: `fds` is a live array of the length stated.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
    let doors = open.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0).map(|((door, _), _)| *door).collect();
    Ready { doors, visits: fds[open.len()..].iter().map(|fd| fd.revents != 0).collect() }
}
