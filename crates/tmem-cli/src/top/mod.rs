//! `tmem top`: what runs under `tmem`, as a live table, a plain one, or JSON.

mod rows;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tmem_watch::{Answer, Answers, understand};

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
        view.update(look());
        thread::sleep(ONCE);
        view.update(look());
        return print(&view, args.json);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("tmem top needs a terminal; `tmem top --once` prints a table, `tmem top --once --json` JSON");
    }
    screen::run(args.interval).context("tmem top")
}

/// A process with what happened since it was looked at before.
#[derive(Serialize)]
struct Watched<S, R> {
    #[serde(flatten)]
    snapshot: S,
    rates: R,
}

/// `tmem run` or `tmem attach`.
type Supervisor = Watched<tmem_run::Snapshot, tmem_run::Rates>;
/// `tmem disk`.
type Disk = Watched<tmem_disk::Snapshot, tmem_disk::Rates>;

/// `tmem serve`.
type Cache = Watched<tmem_serve::Snapshot, tmem_serve::Rates>;

/// A process that gave no figures.
#[derive(Serialize)]
struct Silent {
    #[serde(skip)]
    kind: &'static str,
    pid: i32,
    why: String,
}

/// What is shown.
#[derive(Default, Serialize)]
struct View {
    supervisors: Vec<Supervisor>,
    disks: Vec<Disk>,
    caches: Vec<Cache>,
    silent: Vec<Silent>,
    /// Processes of other users, which are not shown.
    others: usize,
}

/// Asks whom there is to ask.
fn look() -> Answers {
    tmem_watch::ask_all(&[tmem_run::KIND, tmem_disk::KIND, tmem_serve::KIND])
}

impl View {
    /// Takes over what was seen now.
    fn update(&mut self, seen: Answers) {
        let before = std::mem::take(self);
        self.others = seen.others;
        for Answer { kind, pid, figures } in seen.ours {
            let taken = figures.and_then(|figures| {
                match kind {
                    tmem_disk::KIND => {
                        let snapshot: tmem_disk::Snapshot = understand(figures)?;
                        let before = before.disks.iter().find(|disk| disk.snapshot.pid == pid);
                        let rates = before.map(|before| tmem_disk::Rates::between(&before.snapshot, &snapshot));
                        self.disks.push(Watched { snapshot, rates: rates.unwrap_or_default() });
                    }
                    tmem_serve::KIND => {
                        let snapshot: tmem_serve::Snapshot = understand(figures)?;
                        let before = before.caches.iter().find(|cache| cache.snapshot.pid == pid);
                        let rates = before.map(|before| tmem_serve::Rates::between(&before.snapshot, &snapshot));
                        self.caches.push(Watched { snapshot, rates: rates.unwrap_or_default() });
                    }
                    _ => {
                        let snapshot: tmem_run::Snapshot = understand(figures)?;
                        let before = before.supervisors.iter().find(|one| one.snapshot.pid == pid);
                        let rates = before.map(|before| tmem_run::Rates::between(&before.snapshot, &snapshot));
                        self.supervisors.push(Watched { snapshot, rates: rates.unwrap_or_default() });
                    }
                }
                Ok(())
            });
            if let Err(why) = taken {
                self.silent.push(Silent { kind, pid, why });
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.supervisors.is_empty() && self.disks.is_empty() && self.caches.is_empty() && self.silent.is_empty()
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

    fn seen(pid: i32, wall_seconds: f64, evicted: u64) -> Answer {
        let figures = serde_json::json!({
            "pid": pid, "program": pid + 1, "wall_seconds": wall_seconds, "pages_evicted": evicted
        });
        Answer { kind: tmem_run::KIND, pid, figures: Ok(figures) }
    }

    #[test]
    fn rates_are_of_the_same_supervisor() {
        let mut view = View::default();
        view.update(Answers { ours: vec![seen(1, 1.0, 10), seen(5, 1.0, 10)], others: 0 });
        assert!(view.supervisors.iter().all(|watched| watched.rates.seconds == 0.0));
        view.update(Answers { ours: vec![seen(5, 2.0, 30), seen(9, 2.0, 30)], others: 2 });
        let rates: Vec<_> = view.supervisors.iter().map(|w| (w.snapshot.pid, w.rates.pages_evicted)).collect();
        assert_eq!(rates, [(5, 20.0), (9, 0.0)]);
        let disk = |seconds: f64, reads: u64| {
            let figures = serde_json::json!({"pid": 5, "seconds": seconds, "exports": [{"reads": reads}]});
            Answer { kind: tmem_disk::KIND, pid: 5, figures: Ok(figures) }
        };
        let broken = Answer { kind: tmem_disk::KIND, pid: 6, figures: Ok(serde_json::json!({"seconds": "x"})) };
        view.update(Answers { ours: vec![disk(1.0, 7), broken], others: 0 });
        assert_eq!((view.supervisors.len(), view.disks.len(), view.silent.len()), (0, 1, 1));
        view.update(Answers { ours: vec![disk(3.0, 107)], others: 0 });
        assert_eq!(view.disks[0].rates.exports[0].reads, 50.0);
        view.update(Answers { ours: vec![], others: 2 });
        assert!(view.is_empty() && view.advice().contains("2 of other users"));
    }
}
