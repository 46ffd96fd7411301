//! The process tree: who belongs to it, how much memory each process holds, which space it lives in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::proc;
use crate::sys::{self, PAGE};

/// Where the tree begins.
#[derive(Clone, Debug)]
pub enum Root {
    /// Everything below this supervisor, orphans included (it is their reaper), except the guard.
    Below { guard: i32 },
    /// This process and what is below it.
    Process(i32),
}

/// One process of the tree.
#[derive(Debug)]
pub struct Process {
    /// When it started, to tell it from a later one with the same number.
    started: u64,
    /// Its anonymous resident bytes.
    pub anonymous: u64,
    /// Its share of shared memory.
    shmem: u64,
    /// Its share of its anonymous memory, between 0 and 1: pages shared with a forked relative count once.
    share: f64,
    /// Its page faults when it was weighed.
    faults: u64,
    /// It runs in its parent's address space (vfork).
    pub borrowed: bool,
    /// The managed space it lives in.
    pub space: Option<u64>,
    /// Not to be asked again before this time, and why.
    pub refused: Option<(Instant, String)>,
}

impl Process {
    /// Large enough for its share of common memory to matter.
    fn is_large(&self) -> bool {
        !self.borrowed && self.anonymous > 1 << 20
    }
}

/// How often shares are looked at, at most.
const WEIGH_INTERVAL: Duration = Duration::from_millis(50);

/// The processes of one job.
pub struct Tree {
    root: Root,
    /// By process number.
    pub processes: HashMap<i32, Process>,
    weighed: Instant,
    weighing: Duration,
}

impl Tree {
    /// A tree of which nothing is known yet.
    pub fn new(root: Root) -> Tree {
        let now = Instant::now();
        Tree { root, processes: HashMap::new(), weighed: now, weighing: Duration::ZERO }
    }

    /// Looks who is there now. True if somebody came or went.
    pub fn refresh(&mut self) -> bool {
        let mut next: Vec<(i32, i32)> = match self.root {
            Root::Below { guard } => {
                let me = std::process::id() as i32;
                proc::children(me).into_iter().filter(|&p| p != guard).map(|p| (p, 0)).collect()
            }
            Root::Process(pid) => vec![(pid, 0)],
        };
        let mut seen = HashMap::new();
        while let Some((pid, parent)) = next.pop() {
            let Some((letter, started)) = proc::state(pid) else { continue };
            if letter == 'Z' || letter == 'X' || seen.contains_key(&pid) {
                continue;
            }
            seen.insert(pid, (started, parent));
            next.extend(proc::children(pid).into_iter().map(|child| (child, pid)));
        }
        let before = self.processes.len();
        self.processes.retain(|pid, p| seen.get(pid).is_some_and(|&(started, _)| started == p.started));
        let mut changed = before != self.processes.len();
        let mut born = Vec::new();
        for (pid, (started, parent)) in seen {
            let process = self.processes.entry(pid).or_insert_with(|| {
                changed = true;
                Process {
                    started,
                    anonymous: 0,
                    shmem: 0,
                    share: 1.0,
                    faults: 0,
                    borrowed: parent != 0,
                    space: None,
                    refused: None,
                }
            });
            if process.borrowed {
                process.borrowed = sys::same_address_space(parent, pid);
            }
            if changed && process.anonymous == 0 && !process.borrowed {
                weigh(pid, process);
                born.push(parent);
            }
        }
        // What a parent shares with its new child it no longer has alone.
        for parent in born {
            if let Some(process) = self.processes.get_mut(&parent).filter(|p| !p.borrowed) {
                weigh(parent, process);
            }
        }
        changed
    }

    /// Adds up the tree's memory: anonymous (shared pages once) and shared. It need not be exact while it is below `near`
    /// however much is shared.
    pub fn sample(&mut self, near: u64) -> u64 {
        for (&pid, process) in &mut self.processes {
            process.anonymous = if process.borrowed { 0 } else { proc::anonymous_bytes(pid).unwrap_or(0) };
        }
        // Shares cost a walk over page tables, which the program may have to wait for: spend a hundredth of the time on them
        // while they decide nothing, else at most a twentieth, or a quarter if they must have changed much.
        let pause = if self.at_most() < near {
            (self.weighing * 100).max(WEIGH_INTERVAL)
        } else if self.has_copied_much() {
            self.weighing * 4
        } else {
            (self.weighing * 20).max(WEIGH_INTERVAL)
        };
        if self.weighed.elapsed() > pause {
            let start = Instant::now();
            self.weigh_all();
            (self.weighing, self.weighed) = (start.elapsed(), Instant::now());
        }
        self.processes.values().map(|p| (p.anonymous as f64 * p.share) as u64 + p.shmem).sum()
    }

    /// Adds up the tree's memory as if nothing were shared.
    pub fn at_most(&self) -> u64 {
        self.processes.values().map(|p| p.anonymous + p.shmem).sum()
    }

    /// Whether relatives may have copied many shared pages since they were weighed. That shows in no counter but that of
    /// their page faults.
    fn has_copied_much(&self) -> bool {
        const FAULTS: u64 = (2 << 20) / PAGE;
        let faults =
            |(&pid, p): (&i32, &Process)| proc::minor_faults(pid).map_or(0, |now| now.saturating_sub(p.faults));
        self.large() > 1 && self.processes.iter().filter(|(_, p)| p.is_large()).map(faults).sum::<u64>() > FAULTS
    }

    fn large(&self) -> usize {
        self.processes.values().filter(|p| p.is_large()).count()
    }

    fn weigh_all(&mut self) {
        let large = self.large();
        for (&pid, process) in self.processes.iter_mut().filter(|(_, p)| !p.borrowed) {
            if large > 1 && process.is_large() {
                weigh(pid, process);
            } else {
                process.share = 1.0;
                process.shmem = proc::status_bytes(pid, "RssShmem").unwrap_or(0);
            }
        }
    }

    /// Live processes, the largest first.
    pub fn by_size(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self.processes.iter().filter(|(_, p)| !p.borrowed).map(|(&pid, _)| pid).collect();
        pids.sort_by_key(|pid| std::cmp::Reverse(self.processes[pid].anonymous));
        pids
    }
}

fn weigh(pid: i32, process: &mut Process) {
    let Some(anonymous) = proc::anonymous_bytes(pid) else { return };
    process.faults = proc::minor_faults(pid).unwrap_or(0);
    process.anonymous = anonymous;
    if let Some((own, shmem)) = proc::proportional_bytes(pid) {
        process.share = (own as f64 / anonymous.max(1) as f64).min(1.0);
        process.shmem = shmem;
    }
}
