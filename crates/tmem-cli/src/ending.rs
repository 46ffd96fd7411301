//! Ending as the command ended, so that a shell sees the same status.

use std::process::ExitCode;

use tmem_run::Ending;

/// The exit status for an ending of `tmem run`; does not return if a signal ended the command.
pub fn end_like(ending: &Ending) -> ExitCode {
    match *ending {
        // The kernel keeps eight bits of a status, and so does every shell.
        Ending::Exited(status) => ExitCode::from((status & 0xff) as u8),
        Ending::Detached => ExitCode::SUCCESS,
        Ending::Signaled(signal) => {
            die_by(signal);
            // Only if the signal could not be raised: the status that a shell would have made of it.
            ExitCode::from((128 + signal) as u8)
        }
    }
}

/// Dies by `signal` as the command did, without leaving a core dump of our own.
fn die_by(signal: i32) {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `no_core` outlives the call, which only reads it.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) };
    // A core limit of 0 does not stop a handler that the core is piped to; a process that is not dumpable has none.
    // SAFETY: PR_SET_DUMPABLE takes integers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    // SAFETY: restoring the default action installs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: an all-zero `sigset_t` is a valid value for `sigemptyset` to overwrite.
    let mut only: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `only` is a local of the right type.
    unsafe { libc::sigemptyset(&raw mut only) };
    // SAFETY: as above; a signal number out of range is refused with an error.
    unsafe { libc::sigaddset(&raw mut only, signal) };
    // SAFETY: `only` is initialised; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut()) };
    // SAFETY: raising a signal in this thread touches no memory of ours.
    unsafe { libc::raise(signal) };
}
