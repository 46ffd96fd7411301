//! Stopping one thread of another process for a moment and running system calls in it.
//!
//! Nothing stays attached: a stop lasts well under a millisecond, then the thread goes on as if nothing had been.
//! All of this is done by the supervisor's main thread, because ptrace ties a tracee to one thread, and because a thread
//! that stops too late has to be let go by whoever waits for it ([`let_go`]).

use std::time::{Duration, Instant};

use crate::arch;
use crate::proc;
use crate::sys::{Errno, check};

/// Why a thread could not be stopped or used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopError {
    /// The thread is gone. If it was our child, its wait status is still there for whoever collects those.
    Gone,
    /// The kernel refused: permission, or somebody else traces it already.
    Refused(Errno),
    /// It did not stop in time, or is stopped by job control.
    Busy,
}

impl From<Errno> for StopError {
    fn from(e: Errno) -> StopError {
        if e.0 == libc::ESRCH { StopError::Gone } else { StopError::Refused(e) }
    }
}

/// A thread that waits for us, nothing about it changed; dropped, it goes on.
pub struct Paused {
    tid: i32,
    alive: bool,
}

/// A paused thread with all signals blocked, in which system calls can be run; dropped, it goes on with the registers
/// and the signal mask it had.
pub struct Stopped {
    thread: Paused,
    saved: arch::Registers,
    mask: u64,
}

const PTRACE_EVENT_STOP: i32 = 128;

fn ptrace(request: libc::c_uint, tid: i32, address: u64, data: u64) -> Result<i64, Errno> {
    // SAFETY: callers pass addresses of live locals of the size the request wants, or plain numbers.
    check(unsafe { libc::ptrace(request as _, tid, address, data) })
}

impl Paused {
    /// Stops thread `tid`. Signals that arrive first are passed on to it.
    pub fn pause(tid: i32, patience: Duration) -> Result<Paused, StopError> {
        match ptrace(libc::PTRACE_SEIZE, tid, 0, 0) {
            // It is still seized from an earlier attempt that it did not heed in time.
            Err(Errno(libc::EPERM)) if proc::tracer(tid) == std::process::id() as i32 => {}
            result => drop(result?),
        }
        if let Err(e) = ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) {
            return Err(e.into());
        }
        let mut paused = Paused { tid, alive: true };
        let until = Instant::now() + patience;
        loop {
            match paused.wait(until)? {
                None => {
                    // Not stoppable now (a vfork parent, a thread deep in the kernel). It stops when it can; the
                    // supervisor's next look at wait statuses lets it go then.
                    paused.alive = false;
                    return Err(StopError::Busy);
                }
                Some(status) if status >> 16 == PTRACE_EVENT_STOP => {
                    if libc::WSTOPSIG(status) != libc::SIGTRAP {
                        paused.alive = false;
                        let _ = ptrace(libc::PTRACE_DETACH, tid, 0, 0);
                        return Err(StopError::Busy);
                    }
                    return Ok(paused);
                }
                Some(status) => {
                    ptrace(libc::PTRACE_CONT, tid, 0, libc::WSTOPSIG(status) as u64)?;
                }
            }
        }
    }

    /// Waits for the next stop; `None` when `until` has passed.
    fn wait(&mut self, until: Instant) -> Result<Option<i32>, StopError> {
        loop {
            match stop_of(self.tid) {
                Ok(Some(stop)) => return Ok(Some(stop)),
                Ok(None) => {}
                Err(_) => {
                    self.alive = false;
                    return Err(StopError::Gone);
                }
            }
            if Instant::now() > until {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

/// The stop of a thread, if it is in one, as the wait status that `waitpid` would give; an error if it has ended. Its end is
/// not asked for: the wait status of a child can be had once, and is for whoever collects those.
fn stop_of(tid: i32) -> Result<Option<i32>, Errno> {
    // SAFETY: a siginfo is plain integers; all-zero is a value of it, and the call fills it.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        check(
            libc::waitid(libc::P_PID, tid as libc::id_t, &mut info, libc::WSTOPPED | libc::__WALL | libc::WNOHANG)
                .into(),
        )?;
        Ok((info.si_pid() == tid).then(|| info.si_status() << 8 | 0x7f))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if self.alive {
            // Fails only if the thread was killed meanwhile.
            let _ = ptrace(libc::PTRACE_DETACH, self.tid, 0, 0);
        }
    }
}

impl Stopped {
    /// Stops thread `tid` and blocks its signals.
    pub fn stop(tid: i32, patience: Duration) -> Result<Stopped, StopError> {
        let thread = Paused::pause(tid, patience)?;
        let mut stopped = Stopped { saved: registers_of(tid)?, mask: 0, thread };
        ptrace(libc::PTRACE_GETSIGMASK, tid, 8, &raw mut stopped.mask as u64)?;
        let all = u64::MAX;
        ptrace(libc::PTRACE_SETSIGMASK, tid, 8, &raw const all as u64)?;
        Ok(stopped)
    }

    /// Registers as they were when the thread stopped.
    pub fn saved(&self) -> &arch::Registers {
        &self.saved
    }

    /// Runs one system call through the `syscall` instruction at `instruction`.
    pub fn system_call(&mut self, instruction: u64, number: i64, args: [u64; 6]) -> Result<i64, StopError> {
        let registers = arch::with_system_call(&self.saved, instruction, number, args);
        self.run(&registers, libc::PTRACE_SINGLESTEP)
    }

    /// Resumes with `registers` until the thread traps; gives what the system call returned.
    pub fn run_to_trap(&mut self, registers: &arch::Registers) -> Result<i64, StopError> {
        self.run(registers, libc::PTRACE_CONT)
    }

    fn run(&mut self, registers: &arch::Registers, how: libc::c_uint) -> Result<i64, StopError> {
        let tid = self.thread.tid;
        ptrace(libc::PTRACE_SETREGS, tid, 0, registers as *const _ as u64)?;
        ptrace(how, tid, 0, 0)?;
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match self.thread.wait(until)? {
                None => return Err(StopError::Busy),
                Some(status) if status >> 16 == 0 && libc::WSTOPSIG(status) == libc::SIGTRAP => break,
                // A job-control stop or a second interrupt: go on with what was begun.
                Some(status) if status >> 16 == PTRACE_EVENT_STOP => {
                    ptrace(how, tid, 0, 0)?;
                }
                // Every signal that could be blocked is; this is a fault of the call itself.
                Some(_) => return Err(StopError::Busy),
            }
        }
        Ok(arch::result(&registers_of(tid)?))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if !self.thread.alive {
            return;
        }
        // Each of these fails only if the thread was killed meanwhile; then there is nothing left to restore.
        let _ = ptrace(libc::PTRACE_SETREGS, self.thread.tid, 0, &raw const self.saved as u64);
        let _ = ptrace(libc::PTRACE_SETSIGMASK, self.thread.tid, 8, &raw const self.mask as u64);
    }
}

fn registers_of(tid: i32) -> Result<arch::Registers, Errno> {
    // SAFETY: a register set is plain integers; all-zero is a value of it.
    let mut registers: arch::Registers = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut registers as u64)?;
    Ok(registers)
}

/// Lets a thread go that was seized but stopped only after our patience had ended; `status` is its wait status.
/// False if it was no tracee of ours: then this is a stop by job control.
pub fn let_go(tid: i32, status: i32) -> bool {
    let signal = if status >> 16 == 0 { libc::WSTOPSIG(status) } else { 0 };
    ptrace(libc::PTRACE_DETACH, tid, 0, signal as u64).is_ok()
}

/// Stops the threads of a process but the first, until the guards are dropped: while an agent is put in place and
/// mappings are registered, they could fill the rest of the budget several times.
pub fn hold_others(pid: i32) -> Vec<Paused> {
    let others = proc::threads(pid).into_iter().filter(|&tid| tid != pid);
    others.filter_map(|tid| Paused::pause(tid, Duration::from_millis(3)).ok()).collect()
}

/// Stops the threads of a process that are running, but for its agent: those that sleep take no memory.
pub fn hold_running(pid: i32, agent: i32) -> Vec<Paused> {
    let others = proc::threads(pid).into_iter().filter(|&tid| tid != agent);
    let running = others.filter(|&tid| matches!(proc::state(tid), Some(('R', _))));
    running.filter_map(|tid| Paused::pause(tid, Duration::from_millis(1)).ok()).collect()
}

/// Stops every thread of a process once and lets it go: afterwards no thread is still inside a system call that
/// it had begun before (a stop happens only on the way back to the program, or in an interruptible sleep).
pub fn quiesce(pid: i32) -> bool {
    proc::threads(pid)
        .into_iter()
        .all(|tid| matches!(Paused::pause(tid, Duration::from_millis(50)), Ok(_) | Err(StopError::Gone)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_end_of_a_child_that_is_being_stopped_is_still_heard_of() {
        for round in 0..300 {
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            let pid = child.id() as i32;
            let killer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(20 * (round % 30)));
                // SAFETY: the child is reaped by the other thread only after it was killed.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            });
            while let Ok(_) | Err(StopError::Busy) = Paused::pause(pid, Duration::from_millis(20)) {}
            killer.join().unwrap();
            let status = child.wait().expect("its status is still there");
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
        }
    }
}
