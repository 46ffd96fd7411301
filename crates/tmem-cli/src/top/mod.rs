//! `tmem top`: what runs under `tmem`, as a live table, a plain one, or JSON.

mod rows;
mod screen;

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tmem_run::{Neighbours, Rates, Seen, Snapshot};

use crate::flags::TopArgs;

/// Over this time `--once` takes its rates.
const ONCE: Duration = Duration::from_millis(200);

/// Does what `tmem top` says.
///
/// # Errors
///
/// When there is no terminal to draw on, or standard output cannot be written.
pub fn top(args: &TopArgs) -> anyhow::Result<()> {
    if args.once {
        let mut view = View::default();
        view.update(tmem_run::look());
        thread::sleep(ONCE);
        view.update(tmem_run::look());
        return print(&view, args.json);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("tmem top needs a terminal; `tmem top --once` prints a table, `tmem top --once --json` JSON");
    }
    screen::run(args.interval).context("tmem top")
}

/// A supervisor with what happened since it was looked at before.
#[derive(Serialize)]
struct Watched {
    #[serde(flatten)]
    snapshot: Snapshot,
    rates: Rates,
}

/// A supervisor that gave no figures.
#[derive(Serialize)]
struct Silent {
    pid: i32,
    why: String,
}

/// What is shown.
#[derive(Default, Serialize)]
struct View {
    supervisors: Vec<Watched>,
    silent: Vec<Silent>,
    /// Supervisors of other users, which are not shown.
    others: usize,
}

impl View {
    /// Takes over what was seen now.
    fn update(&mut self, seen: Neighbours) {
        let before: HashMap<i32, Snapshot> =
            self.supervisors.drain(..).map(|watched| (watched.snapshot.pid, watched.snapshot)).collect();
        *self = View { others: seen.others, ..View::default() };
        for Seen { pid, answer } in seen.ours {
            match answer {
                Ok(snapshot) => {
                    let rates = before.get(&pid).map(|before| Rates::between(before, &snapshot)).unwrap_or_default();
                    self.supervisors.push(Watched { snapshot, rates });
                }
                Err(why) => self.silent.push(Silent { pid, why }),
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.supervisors.is_empty() && self.silent.is_empty()
    }

    /// What to do where there is nothing to see.
    fn advice(&self) -> String {
        let others = match self.others {
            0 => String::new(),
            1 => " One of another user is: only that user and root can see it.".to_owned(),
            n => format!(" {n} of other users are: only these users and root can see them."),
        };
        format!("no tmem of this user is running: start one with `tmem run --ram 1G -- PROGRAM`.{others}")
    }
}

fn print(view: &View, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, view).map_err(io::Error::from)?;
        writeln!(out)?;
    } else if view.is_empty() {
        writeln!(io::stderr(), "tmem: {}", view.advice())?;
    } else {
        out.write_all(rows::plain(view).as_bytes())?;
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pid: i32, wall_seconds: f64, evicted: u64) -> Seen {
        let mut snapshot = Snapshot { pid, program: pid + 1, ..Snapshot::default() };
        (snapshot.report.wall_seconds, snapshot.report.pages_evicted) = (wall_seconds, evicted);
        Seen { pid, answer: Ok(snapshot) }
    }

    #[test]
    fn rates_are_of_the_same_supervisor() {
        let mut view = View::default();
        view.update(Neighbours { ours: vec![seen(1, 1.0, 10), seen(5, 1.0, 10)], others: 0 });
        assert!(view.supervisors.iter().all(|watched| watched.rates.seconds == 0.0));
        view.update(Neighbours { ours: vec![seen(5, 2.0, 30), seen(9, 2.0, 30)], others: 2 });
        let rates: Vec<_> = view.supervisors.iter().map(|w| (w.snapshot.pid, w.rates.pages_evicted)).collect();
        assert_eq!(rates, [(5, 20.0), (9, 0.0)]);
        view.update(Neighbours { ours: vec![], others: 2 });
        assert!(view.is_empty() && view.advice().contains("2 of other users"));
    }
}
