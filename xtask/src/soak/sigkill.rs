//! `cargo xtask soak sigkill`: the supervisor is killed at any moment, and nothing of its run may be left.
//!
//! Each round starts a program in less memory than it wants, sends SIGKILL to the supervisor alone, and waits until every trace is
//! gone: processes, spill file, sockets. The programs check their own memory all the time, so one that went on without its
//! pages, if only for a moment, would say so. Program and moment follow from the seed and the number of the round.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use clap::Args;
use tempfile::TempDir;
use tmem::testing::Random;

use super::remains::{MARK, Run};
use crate::measure::median;
use crate::table::mib;
use crate::{interrupt, process_tree, project};

/// How many rounds, and which.
#[derive(Args)]
pub struct SigkillArgs {
    /// Rounds of `sigkill`.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What programs and moments of `sigkill` follow from; else another one each time.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The first round of `sigkill`, to see one again.
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: u32,
}

/// All must be gone so soon after the supervisor was killed.
const BOUND: Duration = Duration::from_secs(2);
/// What takes longer is told.
const SLOW: Duration = Duration::from_millis(250);
const RAM: &str = "32M";
/// A run of many rounds in which fewer than one in so many had spilled when it was killed was too easy.
const SPILLED_MIN_PART: u32 = 4;
/// So few rounds may be of any kind.
const ROUNDS_FEW: u32 = 40;
/// Nobody is told more often how far it is.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A round is killed before one of these, in milliseconds: while the supervisor starts, while the program does, while memory
/// fills, and, half of the rounds, at any time up to when all that does not fit is on disk.
const MOMENTS_MS: [u64; 6] = [8, 40, 300, 1500, 1500, 1500];

/// A program of `tests/programs` that wants several times [`RAM`] and does not end by itself before it fails to be ended.
struct Program {
    name: &'static str,
    args: &'static [&'static str],
}

/// Memory that does not compress at all: three rounds out of four.
const NOISE: Program = Program { name: "noise", args: &["128", "1000"] };
/// The fourth goes to those that fork: all of whom live on, none of whom does, with orphans of another user, with new orphans all the time.
const FORKING: [Program; 4] = [
    Program { name: "fork_tree", args: &["96", "1000"] },
    Program { name: "process_churn", args: &["128", "100000"] },
    Program { name: "daemon", args: &["128", "100000"] },
    Program { name: "orphans", args: &["128", "1000000"] },
];

impl Outcome {
    /// Says what went wrong, or what took long.
    fn tell(&self, round: u32, program: &Program, moment: Duration) {
        let what = format!("round {round}: {} killed after {moment:.1?}", program.name);
        if !self.faults.is_empty() {
            println!("FAILED: {what}");
            self.faults.iter().for_each(|fault| println!("    {fault}"));
        } else if self.gone_after > SLOW {
            println!("slow: {what}, all gone {:.1?} later", self.gone_after);
            self.last.iter().for_each(|what| println!("    last to go: {what}"));
        }
    }
}

/// What all rounds share.
struct Setting {
    tmem: PathBuf,
    programs: TempDir,
    /// On a disk, and of nobody else.
    spill: TempDir,
    seed: u64,
}

/// What a round came to.
struct Outcome {
    /// The supervisor had ended before it could be killed.
    ended: bool,
    /// The program ran when the supervisor was killed.
    started: bool,
    processes: usize,
    /// Of the spill file when the supervisor was killed; `None` if it had none.
    spilled_bytes: Option<u64>,
    /// Until nothing was left.
    gone_after: Duration,
    /// What went last.
    last: Vec<String>,
    /// What should not have been.
    faults: Vec<String>,
}

/// Runs all rounds and says what they came to.
///
/// # Errors
///
/// When anything was left after any round, or too few of them had spilled.
pub fn sigkill(args: &SigkillArgs) -> anyhow::Result<()> {
    let seed = args.seed.unwrap_or_else(any_seed);
    let setting = Setting::new(seed)?;
    if let Some(why) = setting.refusal()? {
        println!("\nSKIPPED: sigkill: tmem cannot run here: {why}");
        return Ok(());
    }
    process_tree::adopt_orphans();
    let result = setting.play(args);
    // Of an interrupted round, all is left.
    process_tree::kill_descendants();
    result
}

fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // Few digits, since somebody may have to type them.
    now.map_or(0, |now| now.as_micros() as u64 % 1_000_000_000)
}

/// Program and moment of a round.
fn plan(seed: u64, round: u32) -> (&'static Program, Duration) {
    let mut random = Random::new(seed.wrapping_add(u64::from(round) << 32));
    let before_ms = MOMENTS_MS[random.below(MOMENTS_MS.len() as u64) as usize];
    let moment = Duration::from_micros(random.below(before_ms * 1000));
    let program = match round % 4 {
        3 => &FORKING[(round / 4) as usize % FORKING.len()],
        _ => &NOISE,
    };
    (program, moment)
}

impl Setting {
    fn new(seed: u64) -> anyhow::Result<Self> {
        let tmem = project::build_tmem()?;
        let programs = tempfile::tempdir().context("cannot create a temporary directory")?;
        for program in FORKING.iter().chain([&NOISE]) {
            project::compile_program(program.name, programs.path())?;
        }
        // The system's temporary directory may be RAM.
        let spill = tempfile::tempdir_in(project::target_dir()?).context("cannot create a directory to spill to")?;
        Ok(Self { tmem, programs, spill, seed })
    }

    /// Why nothing can be run here.
    fn refusal(&self) -> anyhow::Result<Option<String>> {
        let mut command = Command::new(&self.tmem);
        command.args(["run", "--ram", RAM, "--spill"]).arg(self.spill.path()).args(["--", "true"]);
        let output = command.output().context("cannot run tmem")?;
        Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    fn play(&self, args: &SigkillArgs) -> anyhow::Result<()> {
        println!("\nsigkill: {} rounds, --seed {}", args.rounds, self.seed);
        let disk = self.spill.path();
        let free_before = free_bytes(disk)?;
        let mut summary = Summary::default();
        let mut told = Instant::now();
        for round in args.first..args.first.saturating_add(args.rounds) {
            let (program, moment) = plan(self.seed, round);
            let outcome = self.round(round, program, moment)?;
            outcome.tell(round, program, moment);
            summary.add(&outcome);
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                println!("  {}", summary.line());
            }
        }
        println!("  {}", summary.line());
        println!("  {}", summary.details());
        summary.judge(free_before.saturating_sub(free_bytes(disk)?), self.seed)
    }

    /// One round. Whatever it leaves is put away.
    fn round(&self, round: u32, program: &Program, moment: Duration) -> anyhow::Result<Outcome> {
        let spill_dir = self.spill.path().canonicalize()?.join(round.to_string());
        fs::create_dir(&spill_dir).context("cannot create a directory to spill to")?;
        let mark = format!("{}-{round}", std::process::id());
        let (mut said, mut complained) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = self.command(program, &spill_dir);
        command.env(MARK, &mark).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(complained.try_clone()?);
        let mut supervisor = command.spawn().context("cannot run tmem")?;
        let start = Instant::now();
        let mut run = Run::new(&mark, supervisor.id() as i32, &spill_dir);
        sleep_until(start + moment)?;
        let mut outcome = kill(&mut supervisor, &mut run, program.name)?;
        if !outcome.faults.is_empty() {
            process_tree::kill_descendants();
        }
        if fs::remove_dir_all(&spill_dir).is_err() {
            outcome.faults.push("the spill directory cannot be removed".to_owned());
        }
        let (said, complained) = (text(&mut said)?, text(&mut complained)?);
        let wrong = |line: &&str| ["MISMATCH", "FAIL"].iter().any(|word| line.contains(word));
        outcome.faults.extend(said.lines().filter(wrong).map(|line| format!("it said: {line}")));
        if !outcome.faults.is_empty() {
            outcome.faults.extend(complained.lines().map(|line| format!("standard error: {line}")));
        }
        Ok(outcome)
    }

    fn command(&self, program: &Program, spill_dir: &Path) -> Command {
        let mut command = Command::new(&self.tmem);
        command.args(["run", "--ram", RAM, "--spill"]).arg(spill_dir).arg("--");
        command.arg(self.programs.path().join(program.name)).args(program.args);
        // What interrupts us must not reach it.
        command.process_group(0);
        command
    }
}

/// Kills the supervisor and waits until nothing is left, no longer than the bound.
fn kill(supervisor: &mut Child, run: &mut Run, program: &str) -> anyhow::Result<Outcome> {
    run.look();
    let mut faults = run.in_other_groups();
    let spilled_bytes = run.spilled_bytes();
    let ended = supervisor.try_wait()?.is_some();
    let start = Instant::now();
    supervisor.kill()?;
    supervisor.wait()?;
    let (mut left, mut last) = (run.left(), Vec::new());
    while !left.is_empty() && start.elapsed() < BOUND {
        std::thread::sleep(Duration::from_millis(1));
        interrupt::check()?;
        last = std::mem::replace(&mut left, run.left());
    }
    let gone_after = start.elapsed();
    faults.extend(left.into_iter().map(|what| format!("left after {gone_after:.1?}: {what}")));
    let (started, processes) = (run.has(program), run.processes());
    Ok(Outcome { ended, started, processes, spilled_bytes, gone_after, last, faults })
}

fn sleep_until(then: Instant) -> anyhow::Result<()> {
    loop {
        interrupt::check()?;
        match then.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return Ok(()),
            // A signal does not end the sleep, so it is short.
            rest => std::thread::sleep(rest.min(Duration::from_millis(100))),
        }
    }
}

fn text(file: &mut File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn free_bytes(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: `statvfs` is plain integers, for which zero is a value.
    let mut data: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends with a zero byte, and `data` is a live local that the call fills.
    let result = unsafe { libc::statvfs(name.as_ptr(), &raw mut data) };
    ensure!(result == 0, "{}: {}", dir.display(), std::io::Error::last_os_error());
    Ok(data.f_bfree * data.f_frsize)
}

/// What the rounds so far came to.
#[derive(Default)]
struct Summary {
    rounds: u32,
    failed: u32,
    ended: u32,
    started: u32,
    with_file: u32,
    spilled: u32,
    spilled_bytes: u64,
    spilled_bytes_max: u64,
    processes_max: usize,
    gone_after_ms: Vec<f64>,
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        let spilled_bytes = outcome.spilled_bytes.unwrap_or(0);
        self.rounds += 1;
        self.failed += u32::from(!outcome.faults.is_empty());
        self.ended += u32::from(outcome.ended);
        self.started += u32::from(outcome.started);
        self.with_file += u32::from(outcome.spilled_bytes.is_some());
        self.spilled += u32::from(spilled_bytes > 0);
        self.spilled_bytes += spilled_bytes;
        self.spilled_bytes_max = self.spilled_bytes_max.max(spilled_bytes);
        self.processes_max = self.processes_max.max(outcome.processes);
        self.gone_after_ms.push(outcome.gone_after.as_secs_f64() * 1000.0);
    }

    fn line(&self) -> String {
        let longest = self.gone_after_ms.iter().copied().fold(0.0, f64::max);
        format!(
            "{} rounds, {} had spilled when they were killed; all gone after {longest:.0} ms at most; {} failed",
            self.rounds, self.spilled, self.failed
        )
    }

    fn details(&self) -> String {
        format!(
            "{} killed before the program ran, {} with a spill file open, up to {} in it; up to {} processes; {} had ended; \
             median until all was gone {:.0} ms",
            self.rounds - self.started,
            self.with_file,
            mib(self.spilled_bytes_max),
            self.processes_max,
            self.ended,
            median(self.gone_after_ms.iter().copied())
        )
    }

    /// Whether that is what it should be; `missing_bytes` is how much less is free on the disk than before.
    fn judge(&self, missing_bytes: u64, seed: u64) -> anyhow::Result<()> {
        if self.failed > 0 {
            bail!("{} of {} rounds left something behind, --seed {seed}", self.failed, self.rounds);
        }
        if self.rounds < ROUNDS_FEW {
            return Ok(());
        }
        // Others write to this disk, too: only what would be most of the spilled pages is worth a failure.
        let missing = missing_bytes > (1 << 30) && missing_bytes > self.spilled_bytes / 2;
        ensure!(!missing, "{} are missing on the disk of {} spilled", mib(missing_bytes), mib(self.spilled_bytes));
        let easy = self.spilled < self.rounds / SPILLED_MIN_PART;
        ensure!(!easy, "too easy: only {} of {} rounds had spilled, --seed {seed}", self.spilled, self.rounds);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_follow_from_the_seed_and_differ() {
        let moments = |seed| (0..200).map(|round| plan(seed, round).1).collect::<Vec<_>>();
        assert_eq!(moments(1), moments(1));
        assert_ne!(moments(1), moments(2));
        let early = moments(1).iter().filter(|moment| moment.as_millis() < 40).count();
        let late = moments(1).iter().filter(|moment| moment.as_millis() > 500).count();
        assert!(early > 30 && late > 40, "{early} {late}");
        let forking = (0..12).filter(|&round| plan(1, round).0.name != "noise").count();
        assert_eq!(forking, 3);
    }

    fn summary(failed: u32, spilled: u32) -> Summary {
        Summary { rounds: 100, failed, spilled, spilled_bytes: 8 << 30, ..Summary::default() }
    }

    #[test]
    fn what_is_left_or_too_easy_fails() {
        summary(0, 50).judge(0, 1).unwrap();
        summary(1, 50).judge(0, 1).unwrap_err();
        summary(0, 20).judge(0, 1).unwrap_err();
        summary(0, 50).judge(5 << 30, 1).unwrap_err();
    }
}
