//! How supervision begins: a command is started, or a running process is joined, after everything that speaks against it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::agent::InjectError;
use crate::control;
use crate::error::Error;
use crate::guard::Guard;
use crate::options::Options;
use crate::proc;
use crate::shared::RAM_BYTES_MIN;
use crate::signals::Signals;
use crate::spill::SpillFile;
use crate::supervisor::{Outcome, Supervisor};
use crate::sys;
use crate::tree::{Root, Tree};
use crate::watch;

/// Runs `command` and everything it starts in `options.ram_bytes` of memory; returns when all of it has ended.
///
/// # Errors
/// When the command cannot be started (exit status 126 or 127) or tmem cannot work here (125).
pub fn run(command: &[OsString], options: &Options) -> Result<Outcome, Error> {
    check_budget(options)?;
    let spill = SpillFile::prepare(options)?;
    let Some((program, args)) = command.split_first() else { return Err(Error::own("no command was given")) };
    // SAFETY: plain system call; orphans of the tree become our children instead of init's.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    let doors = watch::open(options.metrics)?;
    let guard = Guard::start().map_err(|e| Error::own(format!("the guard process cannot be started: {e}")))?;
    let signals = Signals::open().map_err(|e| Error::own(format!("signalfd: {e}")))?;
    let child = match Command::new(program).args(args).spawn_unwaited(&guard) {
        Ok(pid) => pid,
        Err(e) => {
            guard.dismiss();
            let text = format!("'{}': {}", program.to_string_lossy(), io_text(&e));
            return Err(if e.kind() == std::io::ErrorKind::NotFound {
                Error::not_found(text)
            } else {
                Error::not_runnable(text)
            });
        }
    };
    let tree = Tree::new(Root::Below { guard: guard.pid() });
    let supervisor = Supervisor::new(options, (guard, doors, spill), signals, tree, child, true).inspect_err(|_| {
        // Better no program than one without its budget.
        sys::kill(child, libc::SIGKILL);
    })?;
    Ok(supervisor.supervise())
}

/// Takes a running process and everything below it under management, until it ends or is detached.
///
/// # Errors
/// When the process is gone, cannot be managed, is managed already, or is not ours to manage.
pub fn attach(pid: u32, options: &Options) -> Result<Outcome, Error> {
    check_budget(options)?;
    let pid = pid as i32;
    check_target(pid)?;
    let spill = SpillFile::prepare(options)?;
    let doors = watch::open(options.metrics)?;
    let guard = Guard::start().map_err(|e| Error::own(format!("the guard process cannot be started: {e}")))?;
    let signals = Signals::open().map_err(|e| Error::own(format!("signalfd: {e}")))?;
    let mut supervisor =
        Supervisor::new(options, (guard, doors, spill), signals, Tree::new(Root::Process(pid)), pid, false)?;
    // An attachment should fail now, not when memory runs short.
    supervisor
        .take_charge_now(pid)
        .map_err(|e| Error::own(format!("process {pid} cannot be managed: {}", advice(&e))))?;
    Ok(supervisor.supervise())
}

fn io_text(e: &std::io::Error) -> String {
    e.raw_os_error().map_or_else(
        || e.to_string(),
        |n| {
            let text = std::io::Error::from_raw_os_error(n).to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        },
    )
}

fn check_budget(options: &Options) -> Result<(), Error> {
    if options.ram_bytes < RAM_BYTES_MIN {
        return Err(Error::own(format!("--ram is too small: {} MiB is the least that works", RAM_BYTES_MIN >> 20)));
    }
    Ok(())
}

fn check_target(pid: i32) -> Result<(), Error> {
    if pid <= 1 || !std::path::Path::new(&format!("/proc/{pid}")).exists() {
        return Err(Error::own(format!("there is no process {pid}")));
    }
    if matches!(proc::state(pid), Some(('Z' | 'X', _)) | None) {
        return Err(Error::own(format!("process {pid} has ended already")));
    }
    if pid == std::process::id() as i32 || control::is_supervisor(pid) {
        return Err(Error::own(format!("process {pid} is a tmem supervisor itself; attach to the program it runs")));
    }
    if control::connect(pid).is_some() {
        return Err(Error::own(format!("process {pid} is already managed by tmem; `tmem detach {pid}` frees it")));
    }
    if let Some(uids) = proc::status_field(pid, "Uid") {
        // SAFETY: no arguments, no effects.
        let me = unsafe { libc::geteuid() };
        let owner = uids.split_ascii_whitespace().nth(1).and_then(|u| u.parse::<u32>().ok());
        if me != 0 && owner != Some(me) {
            return Err(Error::own(format!("process {pid} belongs to another user; run tmem as root or as that user")));
        }
    }
    proc::check_fit(pid).map_err(|why| Error::own(format!("process {pid} cannot be managed: {why}")))
}

fn advice(e: &InjectError) -> String {
    match e {
        InjectError::Refused(_) => format!("{e}; `tmem doctor` says what to grant"),
        InjectError::InTarget("userfaultfd", _) | InjectError::Ours("enabling userfaultfd", _) => {
            format!("{e}; `tmem doctor` says what to grant")
        }
        _ => e.to_string(),
    }
}

/// Starting a command without a handle that would wait for it: the supervisor reaps by itself.
trait SpawnUnwaited {
    fn spawn_unwaited(&mut self, guard: &Guard) -> std::io::Result<i32>;
}

impl SpawnUnwaited for Command {
    fn spawn_unwaited(&mut self, guard: &Guard) -> std::io::Result<i32> {
        let introduction = guard.introduction();
        // SAFETY: the closure only makes system calls, as is allowed between fork and exec.
        let child = unsafe {
            self.pre_exec(move || {
                introduction.give().map_err(|e| std::io::Error::from_raw_os_error(e.0))?;
                Signals::unblock_all();
                Ok(())
            })
        }
        .spawn()?;
        Ok(child.id() as i32)
    }
}
