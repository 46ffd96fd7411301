//! How many threads serve at present.
//!
//! One thread that is never idle answers small commands faster than two that have to be woken for each, as long as clients need the other
//! processors themselves; when there are processors idle and those that serve are busy, there have to be more. So it is measured: how
//! busy the threads are, how idle the machine is, and how many commands come at once. Whether one more or one fewer is better is tried
//! out: one more stays if clearly more is answered with it, one fewer if hardly less is; then nothing is tried for a while, for longer
//! each time, unless there is much more or less to do than before.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// A thread is as good as always busy with more than this part of the time.
const BUSY: f64 = 0.8;
/// A processor that is idle for so much of the time can serve; with less, those who ask may lack one.
const IDLE: f64 = 0.15;
/// With fewer commands at a time, waking may take longer than working.
const FEW_COMMANDS: f64 = 2.0;
/// So many looks in a row have to agree.
const LOOKS: i32 = 2;
/// One more thread has to be worth so much, or it rests.
const GAIN: f64 = 1.1;
/// One fewer may cost so much: it leaves a processor to others.
const LOSS: f64 = 0.97;
/// If it costs so much, it does not have to be tried any longer.
const GREAT_LOSS: f64 = 0.8;
/// So much less is not for that reason.
const HARDLY_ANY: f64 = 0.25;
/// Looks until that is judged: the first is of the time before and after.
const TRIAL_LOOKS: u32 = 4;
/// Looks for which nothing is tried after the first time, and at most.
const REST_LOOKS: (u32, u32) = (20, 600);
/// With so much more or less to do than when something was tried last it is tried soon: something else is asked for.
const CHANGE: f64 = 1.25;
/// Looks until then, at least.
const CHANGE_LOOKS: u32 = 5;

/// What was measured between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Look {
    /// Processors' worth of time that our threads used.
    busy: f64,
    /// The same that nobody used.
    idle: f64,
    /// Commands for each time that something was read.
    commands_at_once: f64,
    /// Commands a second.
    rate: f64,
}

/// Decides how many threads serve.
pub struct Balance {
    /// Threads that there are.
    most: usize,
    active: AtomicUsize,
}

impl Balance {
    /// One serves at first.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), active: AtomicUsize::new(1) }
    }

    /// Threads that there are.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Threads that serve.
    pub fn active(&self) -> usize {
        self.active.load(Relaxed)
    }

    /// Changes how many serve.
    pub fn set_active(&self, active: usize) {
        self.active.store(active.clamp(1, self.most), Relaxed);
    }
}

/// Looks now and then.
pub struct Looker {
    at: Instant,
    busy_ns: u64,
    idle_ticks: u64,
    counts: (u64, u64),
    /// Looks in a row that asked for more, or, if negative, for fewer.
    agreed: i32,
    trial: Option<Trial>,
    /// Looks since something was tried, for how many nothing is, and what was done then.
    since_trial: u32,
    rest: u32,
    tried_rate: f64,
}

/// One thread more or fewer than before serves for a while.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Threads before, and commands a second with them.
    before: usize,
    rate: f64,
    looks: u32,
    /// Commands a second since, summed up over the looks but for the first.
    sum: f64,
}

impl Looker {
    pub fn new() -> Self {
        Self {
            at: Instant::now(),
            busy_ns: busy_ns(),
            idle_ticks: idle_ticks(),
            counts: (0, 0),
            agreed: 0,
            trial: None,
            since_trial: 0,
            rest: 0,
            tried_rate: 0.0,
        }
    }

    /// Looks, and says how many threads should serve. `counts` are commands and reads so far.
    pub fn look(&mut self, balance: &Balance, counts: (u64, u64)) -> usize {
        let seconds = self.at.elapsed().as_secs_f64().max(1e-3);
        let (busy_ns, idle_ticks) = (busy_ns(), idle_ticks());
        let look = Look {
            busy: busy_ns.saturating_sub(self.busy_ns) as f64 / 1e9 / seconds,
            idle: idle_ticks.saturating_sub(self.idle_ticks) as f64 / TICKS / seconds,
            rate: (counts.0 - self.counts.0) as f64 / seconds,
            commands_at_once: (counts.0 - self.counts.0) as f64 / (counts.1 - self.counts.1).max(1) as f64,
        };
        (self.at, self.busy_ns, self.idle_ticks, self.counts) = (Instant::now(), busy_ns, idle_ticks, counts);
        self.judge(look, balance.active(), balance.most())
    }

    fn judge(&mut self, look: Look, active: usize, most: usize) -> usize {
        self.since_trial = self.since_trial.saturating_add(1);
        if let Some(trial) = self.trial.take() {
            return self.go_on(trial, look, active);
        }
        let wish = if !self.may_try(look) {
            0
        } else if active < most && look.busy > BUSY * active as f64 && look.idle > IDLE {
            1
        } else if active > 1 && look.busy > IDLE && (look.commands_at_once < FEW_COMMANDS || look.idle < IDLE) {
            -1
        } else {
            0
        };
        self.agreed = if wish * self.agreed < 0 || wish == 0 { wish } else { self.agreed + wish };
        if self.agreed.abs() < LOOKS {
            return active;
        }
        self.agreed = 0;
        self.trial = Some(Trial { before: active, rate: look.rate, looks: 0, sum: 0.0 });
        active.saturating_add_signed(wish as isize)
    }

    fn may_try(&self, look: Look) -> bool {
        let change = look.rate / self.tried_rate.max(1.0);
        self.since_trial >= self.rest || (self.since_trial >= CHANGE_LOOKS && !(1.0 / CHANGE..CHANGE).contains(&change))
    }

    /// Goes on with what is tried, or judges it.
    fn go_on(&mut self, mut trial: Trial, look: Look, active: usize) -> usize {
        let is_more = active > trial.before;
        if look.rate < HARDLY_ANY * trial.rate {
            // Less is asked for than before, with or without it: that says nothing.
            return trial.before;
        }
        trial.looks += 1;
        trial.sum += if trial.looks == 1 { 0.0 } else { look.rate };
        let ends = look.rate < GREAT_LOSS * trial.rate;
        if trial.looks < TRIAL_LOOKS && !ends {
            self.trial = Some(trial);
            return active;
        }
        let rate = trial.sum / f64::from(TRIAL_LOOKS - 1);
        let stays = !ends && rate > trial.rate * if is_more { GAIN } else { LOSS };
        self.rest = (2 * self.rest).clamp(REST_LOOKS.0, REST_LOOKS.1);
        // Something else is asked for than before.
        if !(1.0 / CHANGE..CHANGE).contains(&(trial.rate / self.tried_rate.max(1.0))) {
            self.rest = REST_LOOKS.0;
        }
        self.since_trial = 0;
        self.tried_rate = if stays { rate } else { trial.rate };
        if stays { active } else { trial.before }
    }
}

/// Of the time in /proc/stat.
const TICKS: f64 = 100.0;

/// Time that our threads which serve have used.
fn busy_ns() -> u64 {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 0 };
    let of = |path: std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let stat = fs::read_to_string(path.join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok().filter(|_| name.starts_with("tmem-serve-"))
    };
    tasks.filter_map(|task| of(task.ok()?.path())).sum()
}

/// Time that processors were idle, waiting for disks included.
fn idle_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let number = |at: usize| stat.lines().next()?.split_ascii_whitespace().nth(at)?.parse::<u64>().ok();
    number(4).unwrap_or(0) + number(5).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_serve_when_processors_are_idle_and_fewer_when_waking_is_all_they_do() {
        let mut looker = Looker::new();
        let mut judge = |look: Look, active| {
            looker.trial = None;
            (0..LOOKS).fold(active, |active, _| looker.judge(look, active, 4))
        };
        let look = |busy, idle, commands_at_once| Look { busy, idle, commands_at_once, rate: 1000.0 };
        assert_eq!(judge(look(0.95, 2.0, 1.0), 1), 2);
        assert_eq!(judge(look(0.95, 0.1, 16.0), 1), 1, "no processor is idle");
        assert_eq!(judge(look(0.5, 3.0, 1.0), 1), 1, "it has time");
        assert_eq!(judge(look(1.6, 0.0, 1.2), 2), 1);
        assert_eq!(judge(look(1.2, 0.0, 16.0), 2), 1, "whoever asks may need the processor");
        assert_eq!(judge(look(1.6, 0.3, 16.0), 2), 2, "there are enough processors");
        assert_eq!(judge(look(4.0, 5.0, 16.0), 4), 4, "there are no more");
        // One look is no reason.
        looker.trial = None;
        assert_eq!(looker.judge(look(0.95, 2.0, 1.0), 1, 4), 1);
        assert_eq!(looker.judge(look(0.1, 2.0, 1.0), 1, 4), 1);
        assert_eq!(looker.judge(look(0.95, 2.0, 1.0), 1, 4), 1);
        assert!(idle_ticks() > 0);
    }

    #[test]
    fn one_fewer_serves_if_that_costs_little() {
        // What was right for many commands at once may be wrong for one at a time.
        let with = |rates: [f64; 2], commands_at_once, idle| {
            let (mut looker, mut active) = (Looker::new(), 2);
            for _ in 0..100 {
                let look = Look { busy: active as f64, idle, commands_at_once, rate: rates[active - 1] };
                active = looker.judge(look, active, 2);
            }
            active
        };
        for (commands_at_once, idle) in [(1.0, 0.3), (1.0, 0.0), (16.0, 0.0)] {
            assert_eq!(with([120_000.0, 110_000.0], commands_at_once, idle), 1);
            assert_eq!(with([109_000.0, 110_000.0], commands_at_once, idle), 1);
            assert_eq!(with([100_000.0, 110_000.0], commands_at_once, idle), 2);
        }
        assert_eq!(with([120_000.0, 110_000.0], 16.0, 0.3), 2, "it is not tried");
    }

    /// How many looks of a second it had two threads serve, with so many commands a second for one and for two.
    fn looks_with_two(looker: &mut Looker, looks: u32, one: f64, two: f64) -> u32 {
        let (mut active, mut with_two) = (1, 0);
        for _ in 0..looks {
            with_two += u32::from(active == 2);
            let rate = if active == 2 { two } else { one };
            active =
                looker.judge(Look { busy: 0.95 * active as f64, idle: 0.3, commands_at_once: 1.0, rate }, active, 2);
        }
        with_two
    }

    #[test]
    fn one_more_serves_if_that_is_of_use_and_rests_if_not() {
        assert!(looks_with_two(&mut Looker::new(), 1000, 50_000.0, 80_000.0) > 990);
        let mut looker = Looker::new();
        let tried = looks_with_two(&mut looker, 1000, 50_000.0, 51_000.0);
        assert!((8..40).contains(&tried), "{tried}");
        // There is much more to do than then, or much less.
        assert!(looks_with_two(&mut looker, 100, 70_000.0, 100_000.0) > 90);
        looks_with_two(&mut looker, 100, 50_000.0, 51_000.0);
        assert!(looks_with_two(&mut looker, 100, 20_000.0, 30_000.0) > 90);
        // Nobody asks for anything: that says nothing, and the next time it is tried at once.
        let none = Look { busy: 0.0, idle: 2.0, commands_at_once: 0.0, rate: 0.0 };
        let rest = looker.rest;
        looker.since_trial = rest;
        looker.trial = Some(Trial { before: 1, rate: 50_000.0, looks: 1, sum: 0.0 });
        assert_eq!((looker.judge(none, 2, 2), looker.trial.is_none(), looker.rest), (1, true, rest));
        assert!(looker.since_trial > rest);
    }

    /// Clients that lack a processor: two threads are less busy than one was, because less is asked of them.
    #[test]
    fn one_more_that_takes_a_processor_from_clients_goes_at_once() {
        let (mut looker, mut active, mut with_two) = (Looker::new(), 1, 0);
        for _ in 0..100 {
            with_two += u32::from(active == 2);
            let (busy, rate) = if active == 2 { (0.7, 474_000.0) } else { (0.91, 880_000.0) };
            active = looker.judge(Look { busy, idle: 0.3, commands_at_once: 16.0, rate }, active, 2);
        }
        assert!((1..8).contains(&with_two), "{with_two}");
    }
}
