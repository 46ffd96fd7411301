//! The other side: finding processes of tmem and asking all of them at once.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::Value;

use crate::names;
use crate::protocol::{ANSWER_BYTES_MAX, REQUEST, read_answer};

/// How long all of them together may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// One process, and what it said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of what kind it is.
    pub kind: &'static str,
    /// Its process number.
    pub pid: i32,
    /// Its figures, or why there are none. Texts in them are as short and harmless as it liked.
    pub figures: Result<Value, String>,
}

/// Whom there is to ask on this machine.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Processes of this user; for root, of all users.
    pub ours: Vec<Answer>,
    /// How many belong to others.
    pub others: usize,
}

/// Asks every process of these kinds that this user may ask. One that does not answer is waited for a second.
pub fn ask_all(kinds: &[&'static str]) -> Answers {
    let mut answers = Answers::default();
    let mut questions = Vec::new();
    for (kind, pid) in kinds.iter().flat_map(|kind| names::all(kind).into_iter().map(move |pid| (*kind, pid))) {
        match Question::ask(kind, pid) {
            Asked::Question(question) => questions.push(question),
            Asked::Other => answers.others += 1,
            Asked::Gone => {}
            Asked::Silent => {
                answers.ours.push(Answer { kind, pid, figures: Err("it does not answer".to_owned()) });
            }
        }
    }
    let until = Instant::now() + PATIENCE;
    while questions.iter().any(|question| !question.ended) && Instant::now() < until {
        wait(&questions, until);
        questions.iter_mut().filter(|question| !question.ended).for_each(Question::hear);
    }
    answers.ours.extend(questions.into_iter().filter_map(Question::conclude));
    answers.ours.sort_by_key(|answer| answer.pid);
    answers
}

fn wait(questions: &[Question], until: Instant) {
    let open = questions.iter().filter(|question| !question.ended);
    let mut fds: Vec<_> = open.map(|question| PollFd::new(&question.stream, PollFlags::IN)).collect();
    let timeout = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos().into() };
    // After a signal it is tried again.
    let _ = poll(&mut fds, Some(&timeout));
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

/// A process that was asked.
struct Question {
    kind: &'static str,
    pid: i32,
    stream: UnixStream,
    answer: Vec<u8>,
    /// It said all that it will.
    ended: bool,
}

impl Question {
    fn ask(kind: &'static str, pid: i32) -> Asked {
        let mut stream = match names::connect(kind, pid) {
            Ok(stream) => stream,
            Err(Errno::AGAIN) => return Asked::Silent,
            Err(_) => return Asked::Gone,
        };
        // Anybody can take such a name. Who listens is told by the kernel.
        let Some(peer) = names::peer(&stream).filter(|peer| peer.pid == pid) else { return Asked::Gone };
        if names::me() != 0 && peer.uid != names::me() {
            return Asked::Other;
        }
        match stream.write_all(REQUEST) {
            Ok(()) => Asked::Question(Question { kind, pid, stream, answer: Vec::new(), ended: false }),
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

    /// What came of it; nothing if the process ended instead.
    fn conclude(self) -> Option<Answer> {
        let mut figures = match (self.ended, self.answer.is_empty()) {
            (true, true) => return None,
            (true, false) => read_answer(&self.answer),
            (false, _) => Err("it does not answer".to_owned()),
        };
        if let Ok(value) = &mut figures {
            // Others may be told apart by it, so it is the one that was asked.
            value["pid"] = self.pid.into();
        }
        Some(Answer { kind: self.kind, pid: self.pid, figures })
    }
}
