//! The supervisor of a program tree: watches its memory, decides who is managed and when.
//!
//! A program that fits its budget is only looked at: no agent, no registration, no ptrace. When the tree comes
//! near its budget, the large processes get agents; their memory is registered then, so growth is governed from
//! there on.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tmem_watch::Doors;

use crate::agent::{Agent, InjectError};
use crate::control::Control;
use crate::error::Error;
use crate::fault::Scratch;
use crate::guard::Guard;
use crate::keeper::Binding;
use crate::leave;
use crate::options::{OnFull, Options};
use crate::proc;
use crate::ptrace;
use crate::recall;
use crate::report::{Report, count_refusal, ratio};
use crate::shared::Shared;
use crate::signals::{Signal, Signals};
use crate::space::{Probe, Space};
use crate::spill::SpillFile;
use crate::sys;
use crate::throttle::Throttle;
use crate::tree::{Process, Tree};
use crate::watch::{self, Identity};
use crate::workers;

/// How the supervised program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Signaled(i32),
    /// It goes on without us.
    Detached,
}

/// What a run or an attachment came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Its figures.
    pub report: Report,
}

/// The longest time between two looks at what the programs hold.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Processes smaller than this are not worth an agent.
const MANAGED_BYTES_MIN: u64 = 1 << 20;

/// Looks after one tree until it ends.
pub struct Supervisor {
    options: Options,
    shared: Arc<Shared>,
    signals: Signals,
    control: Control,
    tree: Tree,
    scratch: Scratch,
    main: i32,
    main_is_ours: bool,
    ending: Option<Ending>,
    identity: Identity,
    report: Report,
    /// What the programs held at the last look, in bytes.
    resident: u64,
    refreshed: Instant,
    /// How long the last look at the tree took.
    refreshing: Duration,
    /// Slows what grows without faults of ours.
    throttle: Throttle,
    /// Where the busiest worker is bound to.
    binding: Binding,
    over_since: Option<Instant>,
    told_full: bool,
    /// What spilling has taken back, and when that was last more than before.
    spilled: (u64, Instant),
    /// Detached by request: nothing is managed any more.
    released: bool,
    drawn: Instant,
}

impl Supervisor {
    /// Starts the threads that look after the tree of process `main`, which is `ours` if we started it.
    ///
    /// # Errors
    /// When somebody else manages it, or the system refuses what we need.
    pub fn new(
        options: &Options,
        (guard, doors, spill): (Guard, Doors, SpillFile),
        signals: Signals,
        tree: Tree,
        main: i32,
        ours: bool,
    ) -> Result<Supervisor, Error> {
        let control = Control::claim(main)?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared::new(options.ram_bytes, processors.clamp(1, 4), guard, spill)?);
        workers::start(&shared);
        recall::start(&shared);
        let now = Instant::now();
        let identity = Identity { program: main, metrics: doors.metrics_address(), started: now };
        // Before priority is asked for, which it does not need.
        watch::start(&shared, doors);
        // The program was started before, so it does not inherit this.
        workers::set_priority(0, -10);
        Ok(Supervisor {
            options: options.clone(),
            shared,
            signals,
            control,
            tree,
            scratch: Scratch::default(),
            main,
            main_is_ours: ours,
            ending: None,
            identity,
            report: Report { ram_limit_bytes: options.ram_bytes, ..Report::default() },
            resident: 0,
            refreshed: now - Duration::from_secs(1),
            refreshing: Duration::ZERO,
            throttle: Throttle::new(),
            binding: Binding::new(),
            over_since: None,
            told_full: false,
            spilled: (0, now),
            released: false,
            drawn: now,
        })
    }

    /// Stays until the tree has ended or is detached.
    pub fn supervise(mut self) -> Outcome {
        loop {
            let pause = self.tick();
            if let Some(ending) = self.finished() {
                return self.conclude(ending);
            }
            self.wait(pause);
            while let Some(signal) = self.signals.next() {
                self.heed(signal);
            }
            self.reap();
            if let Some(mut stream) = self.control.request() {
                let pages = self.release();
                let _ = writeln!(stream, "ok {pages}");
            }
        }
    }

    /// One look at the tree; returns how long the next may wait.
    fn tick(&mut self) -> Duration {
        let total = self.sample();
        let limits = self.shared.limits;
        let near = total > limits.trigger;
        // Memory can grow by some 3 GB a second and processor: look again before the room to the trigger is gone. What is
        // shared may not be any more.
        let room = limits.trigger.saturating_sub(self.tree.at_most() + self.shared.own.load(Relaxed));
        let pause = Duration::from_micros((room / (6 << 10)).clamp(1_000, PAUSE_MAX.as_micros() as u64));
        // A new process can fill the budget before we know of it; looking costs at most a twentieth of one processor, and a
        // hundredth while there is room for what it could do meanwhile. A fork that was followed has a process that needs an
        // agent now.
        let lost = self.shared.spaces().iter().any(|space| space.pid.load(Relaxed) == 0);
        let interval = (self.refreshing * 100).min(pause).max(self.refreshing * 20);
        let interval = interval.clamp(Duration::from_millis(5), Duration::from_millis(50));
        if lost || self.refreshed.elapsed() > interval {
            let start = Instant::now();
            if self.tree.refresh() && !self.released {
                let pids: Vec<i32> = self.tree.processes.keys().copied().collect();
                self.shared.guard_processes(&pids);
            }
            self.drop_dead_spaces();
            self.find_children();
            self.shared.spill.tell_peers();
            (self.refreshed, self.refreshing) = (Instant::now(), start.elapsed());
        }
        let shared = Arc::clone(&self.shared);
        self.throttle.govern(&shared, total, || shared.spaces());
        if near && !self.released {
            self.manage();
        }
        let (worker, mut far) = shared.serving_and_others();
        far.push(0);
        let near = [worker, shared.faulter_agent.load(Relaxed)];
        self.binding.follow(&shared.keeper, shared.faulter.load(Relaxed), &near, &far);
        if total > limits.high {
            self.shared.need_room();
        }
        self.watch_full(total);
        self.draw(total);
        if shared.desk.is_wanted() {
            let report = self.report.clone();
            shared.desk.lay(watch::take(&shared, &self.tree, self.resident, report, &self.identity));
        }
        pause
    }

    fn sample(&mut self) -> u64 {
        let noted = self.shared.account.noted();
        let own = proc::anonymous_bytes(std::process::id() as i32).unwrap_or(0);
        let targets = self.tree.sample(self.shared.limits.trigger.saturating_sub(own));
        let total = targets + own;
        self.shared.own.store(own, Relaxed);
        self.resident = targets;
        self.shared.account.sample(total, noted);
        let r = &mut self.report;
        let peak = total.max(self.shared.peak_between.swap(0, Relaxed));
        r.ram_peak_bytes = r.ram_peak_bytes.max(peak);
        r.resident_peak_bytes = r.resident_peak_bytes.max(targets);
        r.store_peak_bytes = r.store_peak_bytes.max(own);
        r.over_budget_peak_bytes = r.over_budget_peak_bytes.max(peak.saturating_sub(r.ram_limit_bytes));
        let stats = self.shared.store.stats();
        self.shared.besides.store(own.saturating_sub(stats.memory_bytes), Relaxed);
        r.spill.file_peak_bytes = r.spill.file_peak_bytes.max(stats.spill.file_bytes);
        let ratio = ratio(&stats);
        // The ratio that mattered: while most was stored.
        if ratio > 0.0 && (own == r.store_peak_bytes || r.compression_ratio == 0.0) {
            r.compression_ratio = ratio;
        }
        total
    }

    /// Gives agents to processes that are large enough, and registers what they mapped since.
    fn manage(&mut self) {
        let mut new = self.unmanaged();
        if !new.is_empty() {
            // A message of a fork is read and handled under the lock of its space: once each lock was free, every child
            // that we know of has its space. To take it for a stranger would leave its memory out of reach for good.
            self.shared.spaces().iter().for_each(|space| drop(space.lock()));
            self.find_children();
            new = self.unmanaged();
        }
        // The largest first. While one gets its agent, the others could fill the rest of the budget several times.
        new.sort_by_key(|pid| self.tree.processes[pid].anonymous);
        let others = new.len().saturating_sub(1);
        let mut held: Vec<_> = new[..others].iter().map(|&pid| ptrace::hold_running(pid, 0)).collect();
        while let Some(pid) = new.pop() {
            let _ = self.take_charge(pid);
            drop(held.pop());
        }
        for pid in self.tree.by_size() {
            let space = self.tree.processes.get(&pid).and_then(|p| p.space).and_then(|id| self.shared.space(id));
            let Some(space) = space else { continue };
            // While the program stands still there is time to wait for the lock.
            let inner = if self.throttle.holds() { Some(space.lock()) } else { space.try_lock() };
            if let Some(mut inner) = inner
                && inner.agent.is_some()
                && !inner.dead
            {
                let anonymous = self.tree.processes[&pid].anonymous;
                if inner.survey_is_due(anonymous) {
                    let new = space.survey(&self.shared, &mut inner, &mut self.scratch);
                    if space.queue_hidden(&self.shared, &mut inner, &mut self.scratch, anonymous) || new {
                        self.shared.found_more();
                    }
                    space.pump(&self.shared, &mut inner, &mut self.scratch);
                }
                drop(inner);
                space.settle_going(&self.shared);
            }
        }
    }

    /// Processes that are large enough for an agent and have none.
    fn unmanaged(&self) -> Vec<i32> {
        let now = Instant::now();
        let is_new = |(_, p): &(&i32, &Process)| {
            let wait = p.refused.as_ref().is_some_and(|(until, _)| *until > now);
            p.space.is_none() && !p.borrowed && p.anonymous >= MANAGED_BYTES_MIN && !wait
        };
        self.tree.processes.iter().filter(is_new).map(|(&pid, _)| pid).collect()
    }

    /// Takes charge of a process at once.
    ///
    /// # Errors
    /// When it cannot be managed; nobody is then.
    pub fn take_charge_now(&mut self, pid: i32) -> Result<(), InjectError> {
        self.tree.refresh();
        self.take_charge(pid).inspect_err(|_| self.shared.dismiss_guard())
    }

    fn take_charge(&mut self, pid: i32) -> Result<(), InjectError> {
        let held = ptrace::hold_others(pid);
        let result = Space::manage(&self.shared, pid).map(|space| {
            self.shared.adopt(Arc::clone(&space));
            let mut inner = space.lock();
            space.survey(&self.shared, &mut inner, &mut self.scratch);
            space.pump(&self.shared, &mut inner, &mut self.scratch);
            drop(inner);
            self.introduce(pid, &space);
            space.id
        });
        drop(held);
        self.note_charge(pid, &result);
        result.map(|_| ())
    }

    /// A process that was forked before anybody managed it may share pages with its parent, children and siblings.
    fn introduce(&self, pid: i32, space: &Space) {
        let parent = proc::parent(pid);
        for other in self.shared.spaces() {
            let theirs = other.pid.load(Relaxed);
            let kin = Some(theirs) == parent || proc::parent(theirs).is_some_and(|p| p == pid || Some(p) == parent);
            if other.id != space.id && theirs != 0 && kin {
                // One lock at a time.
                let pool = other.lock().pool;
                space.lock().add_relative(pool);
                let pool = space.lock().pool;
                other.lock().add_relative(pool);
            }
        }
    }

    fn note_charge(&mut self, pid: i32, result: &Result<u64, InjectError>) {
        if let Err(e) = result {
            count_refusal(&self.shared.counters, e);
        }
        let Some(process) = self.tree.processes.get_mut(&pid) else { return };
        match result {
            Ok(id) => process.space = Some(*id),
            Err(e) => {
                // Who is gone leaves the tree by itself; who is still in it executed another program meanwhile, and that one
                // grows.
                let again = if matches!(e, InjectError::Busy | InjectError::Gone) { 5 } else { 1000 };
                process.refused = Some((Instant::now() + Duration::from_millis(again), e.to_string()));
            }
        }
    }

    /// Finds the processes of forked spaces, and gives them agents of their own.
    fn find_children(&mut self) {
        let lost: Vec<Arc<Space>> = self.shared.spaces().into_iter().filter(|s| s.pid.load(Relaxed) == 0).collect();
        if lost.is_empty() {
            return;
        }
        for pid in self.tree.by_size() {
            if self.tree.processes[&pid].space.is_some() {
                continue;
            }
            let answers = lost.iter().filter(|s| s.pid.load(Relaxed) == 0).map(|s| (s, s.is_of(pid)));
            let Some((space, certain)) = answers.filter(|(_, is)| *is != Some(false)).max_by_key(|(_, is)| *is) else {
                continue;
            };
            if certain.is_none() {
                // To be asked again, and not to be taken for a stranger meanwhile.
                self.note_charge(pid, &Err(InjectError::Busy));
                continue;
            }
            let equipped = Agent::inject(pid).and_then(|agent| space.equip(&self.shared, pid, agent, None));
            if equipped.is_ok() {
                let mut inner = space.lock();
                let ranges: Vec<_> = inner.registered.iter().collect();
                for (start, end) in ranges {
                    space.queue_present(&self.shared, &mut inner, start, end);
                }
                space.publish(&self.shared, &inner);
            }
            self.note_charge(pid, &equipped.map(|()| space.id));
        }
    }

    /// Drops spaces whose process ended or became another program.
    fn drop_dead_spaces(&mut self) {
        for space in self.shared.spaces() {
            let Some(inner) = space.try_lock() else { continue };
            let dead = inner.dead || space.probe(&inner) == Probe::Dead;
            drop(inner);
            if dead {
                self.shared.drop_space(space.id);
                for process in self.tree.processes.values_mut().filter(|p| p.space == Some(space.id)) {
                    process.space = None;
                }
            }
        }
    }

    /// Over the budget, and nothing that could be done about it for a while?
    fn watch_full(&mut self, total: u64) {
        let shared = &self.shared;
        if self.released || total <= shared.limits.ram + (1 << 20) {
            self.over_since = None;
            shared.lower_floor();
            return;
        }
        // Either eviction says that it finds nothing, or it had a second and did not get there.
        let barren = shared.patience().is_zero();
        let spilled = shared.spill.taken_back();
        if spilled > self.spilled.0 {
            self.spilled = (spilled, Instant::now());
        }
        // A disk takes its time, but not for ever; one that is full or fails is waited for no longer.
        let progresses = spilled > 0 && self.spilled.1.elapsed() < Duration::from_secs(1);
        let spills = !shared.spill.is_stuck() && (progresses || shared.spill.is_busy());
        let enough = Duration::from_millis(if spills {
            10_000
        } else if barren {
            200
        } else {
            1000
        });
        if self.over_since.get_or_insert_with(Instant::now).elapsed() < enough {
            return;
        }
        // Not all at once: perhaps a little more is enough.
        self.over_since = Some(Instant::now());
        shared.raise_floor();
        if self.told_full {
            return;
        }
        self.told_full = true;
        self.shared.counters.on_full_events.fetch_add(1, Relaxed);
        let why = self.why_stuck();
        let (over, budget) = ((total - self.shared.limits.ram) >> 20, self.shared.limits.ram >> 20);
        let act = match self.options.on_full {
            OnFull::Grow => "it goes on over its budget",
            OnFull::Stop => "it is stopped; SIGCONT lets it go on",
            OnFull::Kill => "it is killed",
        };
        eprintln!("tmem: the program is {over} MiB over its {budget} MiB and nothing can shrink any more{why}; {act}");
        let signal = match self.options.on_full {
            OnFull::Grow => return,
            OnFull::Stop => libc::SIGSTOP,
            OnFull::Kill => libc::SIGKILL,
        };
        self.tree.processes.keys().for_each(|&pid| {
            sys::kill(pid, signal);
        });
    }

    fn why_stuck(&self) -> String {
        let refusals = self.tree.processes.iter().filter_map(|(pid, p)| p.refused.as_ref().map(|(_, why)| (pid, why)));
        refusals.map(|(pid, why)| format!(" (process {pid} is not managed: {why})")).next().unwrap_or_default()
    }

    fn draw(&mut self, total: u64) {
        if !self.options.progress
            || self.drawn.elapsed() < Duration::from_millis(250)
            || !std::io::stderr().is_terminal()
        {
            return;
        }
        self.drawn = Instant::now();
        let stats = self.shared.store.stats();
        let c = &self.shared.counters;
        let spilled = match stats.spill.live_bytes >> 20 {
            0 => String::new(),
            mib => format!(" and {mib} MiB on disk"),
        };
        eprint!(
            "\r\x1b[Ktmem: {} of {} MiB in use, {} MiB stored in {} MiB{spilled}, {} pages out, {} back ",
            total >> 20,
            self.shared.limits.ram >> 20,
            stats.original_bytes >> 20,
            stats.memory_bytes >> 20,
            c.pages_evicted.load(Relaxed),
            c.pages_returned.load(Relaxed),
        );
    }

    fn wait(&self, most: Duration) {
        let mut fds = [libc::pollfd { fd: self.signals.raw(), events: libc::POLLIN, revents: 0 }];
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: most.as_nanos() as i64 };
        // SAFETY: `fds` and `timeout` are live locals; no mask is given.
        unsafe { libc::ppoll(fds.as_mut_ptr(), 1, &timeout, std::ptr::null()) };
    }

    fn heed(&mut self, signal: Signal) {
        if signal.number == libc::SIGCHLD {
            return;
        }
        if self.main_is_ours {
            if signal.sent && self.ending.is_none() {
                sys::kill(self.main, signal.number);
            }
        } else if matches!(signal.number, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT) {
            self.release();
        }
    }

    /// Collects ended children; stops with the program when job control stops it.
    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: `status` is a live local.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::WUNTRACED | libc::__WALL) };
            if pid <= 0 {
                return;
            }
            if libc::WIFSTOPPED(status) && ptrace::let_go(pid, status) {
                continue;
            }
            if self.shared.is_guard(pid) && !libc::WIFSTOPPED(status) {
                // Without it our end could give a program wrong data: it comes now, while we can still kill.
                self.tree.processes.keys().for_each(|&pid| _ = sys::kill(pid, libc::SIGKILL));
                self.shared.fail_stop_all("the guard process is gone");
            }
            if pid != self.main || !self.main_is_ours {
                continue;
            }
            if libc::WIFSTOPPED(status) {
                // A shell that stopped the job waits for us to stop too. A plain SIGSTOP was meant for the program
                // alone, and its SIGCONT may come to it alone: we must be there then.
                if libc::WSTOPSIG(status) == libc::SIGSTOP {
                    continue;
                }
                sys::kill(std::process::id() as i32, libc::SIGSTOP);
                sys::kill(self.main, libc::SIGCONT);
            } else {
                self.ended(status);
            }
        }
    }

    fn ended(&mut self, status: i32) {
        self.ending = Some(if libc::WIFSIGNALED(status) {
            Ending::Signaled(libc::WTERMSIG(status))
        } else {
            Ending::Exited(libc::WEXITSTATUS(status))
        });
    }

    /// Brings everything back and manages nothing any more.
    fn release(&mut self) -> u64 {
        self.throttle.let_go();
        let pages = leave::release_all(&self.shared);
        self.tree.processes.values_mut().for_each(|p| p.space = None);
        self.released = true;
        self.shared.guard_processes(&[]);
        // `run` stays as the parent that passes signals and the exit status on, without a budget.
        if !self.main_is_ours {
            self.ending = Some(Ending::Detached);
        }
        pages
    }

    fn finished(&mut self) -> Option<Ending> {
        let ending = match self.ending {
            Some(ending) => ending,
            None if !self.main_is_ours && matches!(proc::state(self.main), Some(('Z' | 'X', _)) | None) => {
                Ending::Exited(0)
            }
            None => return None,
        };
        // Others of the tree may still need pages that only we have.
        self.drop_dead_spaces();
        self.shared.spaces().is_empty().then_some(ending)
    }

    fn conclude(mut self, ending: Ending) -> Outcome {
        self.shared.stopping.store(true, Relaxed);
        self.shared.need_room();
        self.shared.dismiss_guard();
        if self.options.progress && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        let r = &mut self.report;
        r.count(&self.shared, self.identity.started);
        r.exit_status = Some(match ending {
            Ending::Exited(status) => status,
            Ending::Signaled(signal) => 128 + signal,
            Ending::Detached => 0,
        });
        self.shared.spill.clear();
        Outcome { ending, report: self.report }
    }
}
