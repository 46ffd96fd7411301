//! The thread that answers: one loop over few connections, none of which can make it wait for longer than a moment.
//!
//! Whatever a visitor does, it takes bounded memory and time, and a defect in here must not harm the process: this thread may panic.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::doors::{Door, Doors, Visitor};
use crate::figures::{self, Figure};
use crate::{http, protocol};

/// The name of the thread.
pub const THREAD: &str = "tmem-watch";

/// Connections at a time through one door. One more, and the oldest has to go.
const VISITS_MAX: usize = 8;
/// How long a visit may take, from the connection to the last byte.
const VISIT: Duration = Duration::from_secs(2);
/// How often to look whether the process ends.
const LOOK: Duration = Duration::from_millis(500);

/// What became of requests.
#[derive(Debug, Default)]
pub struct Counters {
    /// Answered.
    pub answers: AtomicU64,
    /// Of another user.
    pub stranger: AtomicU64,
    /// Malformed, too long or too slow.
    pub malformed: AtomicU64,
    /// Dropped for newer ones, or nobody had time for them.
    pub busy: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Whose figures are asked for.
pub trait Source: Send + Sync + 'static {
    /// All that there is to say: [`VERSION`](crate::VERSION) is in its field `version`.
    type Figures: Serialize;
    /// The table of its fields.
    const FIGURES: &'static [Figure];
    /// What its metrics begin with.
    const PREFIX: &'static str;

    /// The figures of this moment, if they can be had soon.
    fn take(&self) -> Option<Self::Figures>;

    /// What of them becomes metrics.
    fn for_metrics(&self, figures: &mut Self::Figures) {
        let _ = figures;
    }

    /// Where requests are counted.
    fn counters(&self) -> &Counters;

    /// Nobody needs answers any more.
    fn is_over(&self) -> bool;
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
    fn new(door: Door, stream: File) -> Visit {
        let until = Instant::now() + VISIT;
        let (input, output) = (Vec::new(), Vec::new());
        Visit { door, stream, until, input, want: Want::Unsaid, output, parting: false, done: false }
    }

    fn events(&self) -> PollFlags {
        if self.output.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    fn wants_figures(&self) -> bool {
        matches!(self.want, Want::Figures { .. })
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
        count(&counters.malformed);
        self.say(refusal);
    }

    fn answer(&mut self, told: Option<&Told>) {
        let Want::Figures { head_only } = self.want else { return };
        let answer = match (self.door, told) {
            (Door::Control, Some(told)) => told.line.clone(),
            (Door::Control, None) => protocol::refusal("it is busy"),
            (Door::Metrics, Some(told)) => http::metrics(&told.metrics, head_only),
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
            // If it is gone, nothing more is to be said.
            let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
        }
    }
}

/// The figures of a moment, for each door.
struct Told {
    line: Vec<u8>,
    metrics: String,
}

impl Told {
    fn by<S: Source>(source: &S) -> Option<Told> {
        let mut figures = source.take()?;
        let line = protocol::answer(&figures);
        source.for_metrics(&mut figures);
        Some(Told { line, metrics: figures::metrics(S::PREFIX, S::FIGURES, &figures) })
    }
}

/// Starts the thread. It ends when the source is over, or with the process. Without it the process runs all the same.
pub fn start<S: Source>(source: S, doors: Doors) {
    let serve = move || {
        // A defect costs whoever is here their answers, no more.
        while catch_unwind(AssertUnwindSafe(|| serve(&source, &doors))).is_err() {
            thread::sleep(LOOK);
        }
    };
    if let Err(e) = thread::Builder::new().name(THREAD.to_owned()).stack_size(256 << 10).spawn(serve) {
        eprintln!("tmem: `tmem top` and --metrics will show nothing: no thread for them: {e}");
    }
}

/// Answers all who come, until the source is over.
pub fn serve<S: Source>(source: &S, doors: &Doors) {
    let counters = source.counters();
    let mut visits: Vec<Visit> = Vec::new();
    while !source.is_over() {
        let ready = wait(doors, &visits);
        for (visit, _) in visits.iter_mut().zip(&ready.visits).filter(|(_, ready)| **ready) {
            if visit.output.is_empty() { visit.hear(counters) } else { visit.go_on() }
        }
        if visits.iter().any(Visit::wants_figures) {
            answer_all(source, &mut visits);
        }
        let now = Instant::now();
        visits.retain(|visit| {
            let late = now >= visit.until;
            if late && !visit.done && !visit.parting {
                count(&counters.malformed);
            }
            !visit.done && !late
        });
        for door in ready.doors {
            admit(doors, door, &mut visits, counters);
        }
    }
}

fn answer_all<S: Source>(source: &S, visits: &mut [Visit]) {
    let told = Told::by(source);
    let counters = source.counters();
    for visit in visits.iter_mut().filter(|visit| visit.wants_figures()) {
        visit.answer(told.as_ref());
        count(if told.is_some() { &counters.answers } else { &counters.busy });
    }
}

fn admit(doors: &Doors, door: Door, visits: &mut Vec<Visit>, counters: &Counters) {
    match doors.admit(door) {
        Ok(Visitor::Welcome(stream)) => {
            let mut same = visits.iter().enumerate().filter(|(_, visit)| visit.door == door).map(|(at, _)| at);
            if let (Some(oldest), true) = (same.next(), same.count() + 1 >= VISITS_MAX) {
                visits.remove(oldest);
                count(&counters.busy);
            }
            visits.push(Visit::new(door, stream));
        }
        Ok(Visitor::Stranger) => count(&counters.stranger),
        // Gone again, or no descriptor to be had: poll would say the same at once.
        Err(e) if e.kind() != ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(20)),
        Err(_) => {}
    }
}

struct Ready {
    doors: Vec<Door>,
    visits: Vec<bool>,
}

fn wait(doors: &Doors, visits: &[Visit]) -> Ready {
    let open: Vec<_> = doors.descriptors().collect();
    let mut fds: Vec<_> = open.iter().map(|&(_, fd)| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    fds.extend(visits.iter().map(|visit| PollFd::from_borrowed_fd(visit.stream.as_fd(), visit.events())));
    let now = Instant::now();
    let next = visits.iter().map(|visit| visit.until.saturating_duration_since(now)).min().unwrap_or(LOOK);
    let timeout = next.min(LOOK) + Duration::from_millis(1);
    let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos().into() };
    if poll(&mut fds, Some(&timeout)).is_err() {
        // A signal: nothing is known to be ready.
        return Ready { doors: Vec::new(), visits: vec![false; visits.len()] };
    }
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    let doors = open.iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|((door, _), _)| *door).collect();
    Ready { doors, visits: fds[open.len()..].iter().map(is_ready).collect() }
}
