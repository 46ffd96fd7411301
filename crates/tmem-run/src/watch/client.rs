//! The other side: finding supervisors and asking all of them at once.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::protocol::{ANSWER_BYTES_MAX, REQUEST, read_answer};
use crate::control;
use crate::figures::figures;
use crate::report::Snapshot;
use crate::sys;

/// How long all of them together may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// One supervisor, and what it said.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its process number.
    pub pid: i32,
    /// Its figures, or why there are none.
    pub answer: Result<Snapshot, String>,
}

/// Whom there is to ask on this machine.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// Supervisors of this user; for root, of all users.
    pub ours: Vec<Seen>,
    /// How many belong to others.
    pub others: usize,
}

figures! {
    /// What happened between two snapshots, by the second.
    Rates {
        seconds: f64, Note, "What the rates are over: seconds between two looks; 0, and so are the rates, if there was one only.";
        faults: f64, Note, "Faults served a second.";
        refaults: f64, Note, "Of those, faults for pages that had been in use all the time (`pages_refaulted`).";
        pages_evicted: f64, Note, "Pages moved out of the programs a second.";
        pages_returned: f64, Note, "Pages brought back a second.";
        spill_written_bytes: f64, Note, "Bytes written to the spill file a second.";
        spill_read_bytes: f64, Note, "Bytes read from it a second.";
    }
}

impl Rates {
    /// What happened from one snapshot of a supervisor to a later one.
    pub fn between(before: &Snapshot, after: &Snapshot) -> Rates {
        let seconds = after.report.wall_seconds - before.report.wall_seconds;
        // A process number may have gone to another supervisor meanwhile.
        if seconds.is_nan() || seconds <= 0.0 || before.program != after.program {
            return Rates::default();
        }
        let rate = |of: fn(&Snapshot) -> u64| of(after).saturating_sub(of(before)) as f64 / seconds;
        Rates {
            seconds,
            faults: rate(|s| s.report.fault_ns.count),
            refaults: rate(|s| s.report.pages_refaulted),
            pages_evicted: rate(|s| s.report.pages_evicted),
            pages_returned: rate(|s| s.report.pages_returned),
            spill_written_bytes: rate(|s| s.report.spill.written_bytes),
            spill_read_bytes: rate(|s| s.report.spill.read_bytes),
        }
    }
}

/// Asks every supervisor that this user may ask. One that does not answer is waited for a second.
pub fn look() -> Neighbours {
    let mut neighbours = Neighbours::default();
    let mut questions = Vec::new();
    for pid in control::supervisors() {
        match Question::ask(pid) {
            Asked::Question(question) => questions.push(question),
            Asked::Other => neighbours.others += 1,
            Asked::Gone => {}
            Asked::Silent => neighbours.ours.push(Seen { pid, answer: Err("it does not answer".to_owned()) }),
        }
    }
    let until = Instant::now() + PATIENCE;
    while questions.iter().any(|question| !question.ended) && Instant::now() < until {
        wait(&questions, until);
        questions.iter_mut().filter(|question| !question.ended).for_each(Question::hear);
    }
    neighbours.ours.extend(questions.into_iter().filter_map(Question::conclude));
    neighbours.ours.sort_by_key(|seen| seen.pid);
    neighbours
}

fn wait(questions: &[Question], until: Instant) {
    let open = questions.iter().filter(|question| !question.ended);
    let poll = |q: &Question| libc::pollfd { fd: q.stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut fds: Vec<_> = open.map(poll).collect();
    let timeout = until.saturating_duration_since(Instant::now()).as_millis() as i32 + 1;
    // SAFETY: `fds` is a live array of the length stated.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
}

enum Asked {
    Question(Question),
    /// Nobody is there any more.
    Gone,
    /// It has no time to listen.
    Silent,
    /// Another user's.
    Other,
}

/// A supervisor that was asked.
struct Question {
    pid: i32,
    stream: UnixStream,
    answer: Vec<u8>,
    /// It said all that it will.
    ended: bool,
}

impl Question {
    fn ask(pid: i32) -> Asked {
        let mut stream = match control::connect_to_supervisor(pid) {
            Ok(stream) => stream,
            Err(e) if e.0 == libc::EAGAIN => return Asked::Silent,
            Err(_) => return Asked::Gone,
        };
        // Anybody can take such a name. Who listens is told by the kernel.
        let Some(peer) = sys::peer(&stream).filter(|peer| peer.pid == pid) else { return Asked::Gone };
        // SAFETY: no arguments, no effects.
        let me = unsafe { libc::geteuid() };
        if me != 0 && peer.uid != me {
            return Asked::Other;
        }
        match stream.write_all(REQUEST) {
            Ok(()) => Asked::Question(Question { pid, stream, answer: Vec::new(), ended: false }),
            Err(_) => Asked::Gone,
        }
    }

    fn hear(&mut self) {
        let mut some = [0; 16 << 10];
        loop {
            match self.stream.read(&mut some) {
                Ok(0) => break,
                Ok(bytes) if self.answer.len() + bytes <= ANSWER_BYTES_MAX => {
                    self.answer.extend_from_slice(&some[..bytes]);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        self.ended = true;
    }

    /// What came of it; nothing if the supervisor ended instead.
    fn conclude(self) -> Option<Seen> {
        let answer = match (self.ended, self.answer.is_empty()) {
            (true, true) => return None,
            (true, false) => read_answer(&self.answer),
            (false, _) => Err("it does not answer".to_owned()),
        };
        // Others may be told apart by it, so it is the one that was asked.
        Some(Seen { pid: self.pid, answer: answer.map(|snapshot| Snapshot { pid: self.pid, ..snapshot }) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_by_the_second_and_never_negative() {
        let mut before = Snapshot::default();
        (before.report.wall_seconds, before.report.pages_evicted, before.report.fault_ns.count) = (1.0, 100, 10);
        let mut after = before.clone();
        (after.report.wall_seconds, after.report.pages_evicted, after.report.fault_ns.count) = (3.0, 300, 5);
        let rates = Rates::between(&before, &after);
        assert_eq!((rates.seconds, rates.pages_evicted, rates.faults), (2.0, 100.0, 0.0));
        assert_eq!(Rates::between(&after, &before), Rates::default());
        after.program = 1;
        assert_eq!(Rates::between(&before, &after), Rates::default(), "another program");
    }
}
