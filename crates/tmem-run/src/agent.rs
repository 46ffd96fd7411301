//! The agent: one small thread inside the target that runs the system calls only the target may make.
//!
//! [`Agent::inject`] puts it there by ptrace and leaves; afterwards a packet socket carries batches of system
//! calls to it and results back. The agent's machine code is in [`crate::arch`]. Its own descriptor table holds
//! the userfaultfd and the socket, invisible to the program; if the socket closes, the agent kills the program.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::arch;
use crate::proc;
use crate::ptrace::{StopError, Stopped};
use crate::sys::{self, Errno, PAGE};

/// Bytes of the message buffer in the target.
const BUFFER_BYTES: u64 = 64 << 10;
/// One call: a number and six arguments.
const CALL_WORDS: usize = 7;

/// Why no agent could be put into a process.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The process ended first.
    #[error("the process is gone")]
    Gone,
    /// It could not be stopped just now; worth another try.
    #[error("the process could not be stopped just now")]
    Busy,
    /// Ptrace is refused.
    #[error("ptrace is refused: {0}")]
    Refused(Errno),
    /// A system call inside the target failed.
    #[error("{0} failed in the target: {1}")]
    InTarget(&'static str, Errno),
    /// A call of ours failed.
    #[error("{0}: {1}")]
    Ours(&'static str, Errno),
    /// This kind of program cannot take an agent.
    #[error("{0}")]
    Unfit(&'static str),
}

impl From<StopError> for InjectError {
    fn from(e: StopError) -> InjectError {
        match e {
            StopError::Gone => InjectError::Gone,
            StopError::Busy => InjectError::Busy,
            StopError::Refused(e) => InjectError::Refused(e),
        }
    }
}

/// A batch of system calls for the agent, with the structures that their pointers mean.
#[derive(Default)]
pub struct Batch {
    calls: Vec<u64>,
    pointers: Vec<(usize, u64)>,
    payload: Vec<u64>,
}

impl Batch {
    /// Adds a call and gives its place in the results.
    pub fn call(&mut self, number: i64, args: [u64; 6]) -> usize {
        self.calls.push(number as u64);
        self.calls.extend_from_slice(&args);
        self.calls.len() / CALL_WORDS - 1
    }

    /// Adds a call whose argument `which` points at `words`, which the call may change; gives its place and the
    /// place of the words.
    pub fn call_with(&mut self, number: i64, args: [u64; 6], which: usize, words: &[u64]) -> (usize, usize) {
        let at = self.payload.len();
        self.pointers.push((self.calls.len() + 1 + which, at as u64 * 8));
        self.payload.extend_from_slice(words);
        (self.call(number, args), at)
    }

    /// Adds a MOVE of `bytes` on the userfaultfd that has this number in the target, waking nobody; gives the place of the
    /// call and of its words, the last of which says how many bytes were moved.
    pub fn move_pages(&mut self, uffd: u64, to: u64, from: u64, bytes: u64, mode: u64) -> (usize, usize) {
        let words = [to, from, bytes, sys::MOVE_MODE_DONTWAKE | mode, 0];
        self.call_with(libc::SYS_ioctl, [uffd, sys::UFFDIO_MOVE, 0, 0, 0, 0], 2, &words)
    }

    /// True if no call was added.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// What call `at` returned, once the batch came back.
    pub fn result(&self, at: usize) -> Result<i64, Errno> {
        match self.calls[at * CALL_WORDS] as i64 {
            e @ -4095..=-1 => Err(Errno(-e as i32)),
            value => Ok(value),
        }
    }

    /// A word of the payload, once the batch came back.
    pub fn word(&self, at: usize) -> u64 {
        self.payload[at]
    }
}

/// A live agent.
pub struct Agent {
    pid: i32,
    tid: i32,
    socket: OwnedFd,
    /// Code page and message buffer in the target.
    area: u64,
}

/// The agent is gone: its process ended or became another program.
#[derive(Debug)]
pub struct AgentGone;

impl Agent {
    /// Puts an agent into process `pid`.
    pub fn inject(pid: i32) -> Result<Agent, InjectError> {
        proc::check_fit(pid).map_err(InjectError::Unfit)?;
        let mut thread = Stopped::stop(pid, Duration::from_millis(20))?;
        // Looked up only now: before the stop the process may have become another program.
        let vdso = proc::find_in_vdso(pid, arch::SYSCALL_INSTRUCTION)
            .ok_or(InjectError::Unfit("it has no vDSO to run system calls through"))?;
        let area_bytes = PAGE + BUFFER_BYTES;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let area = thread.system_call(vdso, libc::SYS_mmap, [0, area_bytes, prot, flags, u64::MAX, 0])?;
        let area = in_target("mmap", area)? as u64;
        let tid = Self::start(&mut thread, pid, vdso, area).inspect_err(|_| {
            // The stopped thread is still ours: leave nothing of us behind.
            let _ = thread.system_call(vdso, libc::SYS_munmap, [area, area_bytes, 0, 0, 0, 0]);
        })?;
        drop(thread);
        let socket = Self::connect(pid, tid, area + PAGE)?;
        let agent = Agent { pid, tid, socket, area };
        let mut batch = Batch::default();
        batch.call(libc::SYS_close, [1, 0, 0, 0, 0, 0]);
        batch.call(libc::SYS_madvise, [area, area_bytes, libc::MADV_DONTFORK as u64, 0, 0, 0]);
        let name = u64::from_le_bytes(*b"tmem-agt");
        batch.call_with(libc::SYS_prctl, [libc::PR_SET_NAME as u64, 0, 0, 0, 0, 0], 1, &[name, 0]);
        agent.call(&mut batch).map_err(|AgentGone| InjectError::Gone)?;
        Ok(agent)
    }

    fn start(thread: &mut Stopped, pid: i32, vdso: u64, area: u64) -> Result<i32, InjectError> {
        sys::write_memory(pid, area, arch::agent_code()).map_err(|e| InjectError::Ours("writing the agent", e))?;
        let prot = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let protected = thread.system_call(vdso, libc::SYS_mprotect, [area, PAGE, prot, 0, 0, 0])?;
        in_target("mprotect", protected)?;
        let flags =
            (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM) as u64;
        let buffer = area + PAGE;
        let entry = arch::agent_entry(thread.saved(), area, flags, buffer + BUFFER_BYTES, buffer, BUFFER_BYTES);
        let tid = thread.run_to_trap(&entry)?;
        Ok(in_target("clone", tid)? as i32)
    }

    /// Waits for the new agent's sockets and takes one end.
    fn connect(pid: i32, tid: i32, buffer: u64) -> Result<OwnedFd, InjectError> {
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            let mut ready = [0_u8; 8];
            match sys::read_memory(pid, buffer + 8, &mut ready) {
                Err(_) => return Err(InjectError::Gone),
                Ok(_) if ready[0] != 0 => {
                    let error = i32::from_le_bytes([ready[4], ready[5], ready[6], ready[7]]);
                    in_target("socketpair", error.into())?;
                    break;
                }
                Ok(_) if Instant::now() > until => return Err(InjectError::Busy),
                Ok(_) => std::thread::sleep(Duration::from_micros(30)),
            }
        }
        let pidfd = sys::pidfd_open(tid, sys::PIDFD_THREAD).map_err(|e| match e.0 {
            libc::EINVAL => InjectError::Unfit("this kernel has no PIDFD_THREAD: Linux 6.9 or later is needed"),
            libc::ESRCH => InjectError::Gone,
            _ => InjectError::Ours("pidfd_open", e),
        })?;
        sys::pidfd_getfd(&pidfd, 1).map_err(|e| match e.0 {
            libc::ESRCH | libc::EBADF => InjectError::Gone,
            _ => InjectError::Ours("pidfd_getfd", e),
        })
    }

    /// The thread id of the agent, to be left alone by whoever stops the threads of the process.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// First and one-past-last address of what the agent itself lives in.
    pub fn area(&self) -> (u64, u64) {
        (self.area, self.area + PAGE + BUFFER_BYTES)
    }

    /// Runs the batch in the target and fills in its results.
    pub fn call(&self, batch: &mut Batch) -> Result<(), AgentGone> {
        self.send(batch)?;
        self.receive_into(batch)
    }

    fn send(&self, batch: &mut Batch) -> Result<(), AgentGone> {
        let payload_at = self.area + PAGE + 8 + batch.calls.len() as u64 * 8;
        for &(word, offset) in &batch.pointers {
            batch.calls[word] = payload_at + offset;
        }
        let words = [(batch.calls.len() / CALL_WORDS) as u64];
        let packet: Vec<u8> =
            words.iter().chain(&batch.calls).chain(&batch.payload).flat_map(|w| w.to_le_bytes()).collect();
        assert!(packet.len() as u64 <= BUFFER_BYTES, "a batch for the agent fits its buffer");
        sys::send_packet(&self.socket, &packet, None).map_err(|_| AgentGone)
    }

    /// Makes a userfaultfd in the target; gives our copy of it and its number in the agent's table. `device` is our
    /// own `/dev/userfaultfd`, for targets that may not make the system call themselves.
    pub fn new_uffd(&self, device: Option<&OwnedFd>) -> Result<(sys::Uffd, u64), InjectError> {
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let mut batch = Batch::default();
        let made = batch.call(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]);
        self.call(&mut batch)?;
        let number = match (batch.result(made), device) {
            (Ok(fd), _) => fd as u64,
            (Err(_), Some(device)) => {
                let device = self.give(device)?;
                let mut batch = Batch::default();
                let made = batch.call(libc::SYS_ioctl, [device, sys::USERFAULTFD_IOC_NEW, flags, 0, 0, 0]);
                batch.call(libc::SYS_close, [device, 0, 0, 0, 0, 0]);
                self.call(&mut batch)?;
                batch.result(made).map_err(|e| InjectError::InTarget("USERFAULTFD_IOC_NEW", e))? as u64
            }
            (Err(e), None) => return Err(InjectError::InTarget("userfaultfd", e)),
        };
        let pidfd = sys::pidfd_open(self.tid, sys::PIDFD_THREAD).map_err(|e| InjectError::Ours("pidfd_open", e))?;
        let ours = sys::pidfd_getfd(&pidfd, number as i32).map_err(|e| InjectError::Ours("pidfd_getfd", e))?;
        Ok((sys::Uffd::new(ours), number))
    }

    /// Puts a copy of our descriptor into the agent's table and gives its number there.
    pub fn give(&self, fd: &OwnedFd) -> Result<u64, InjectError> {
        // The agent waits in recvmsg while it works on this batch; the descriptor follows the batch in the socket.
        let mut batch = Batch::default();
        let base = self.area + PAGE + 8 + CALL_WORDS as u64 * 8;
        let (iov, data, control) = (base + 7 * 8, base + 9 * 8, base + 10 * 8);
        // msghdr: name, namelen, iov, iovlen, control, controllen, flags; then the iovec, one word of data, control.
        let words = [0, 0, iov, 1, control, 24, 0, data, 8, 0, 0, 0, 0];
        let (received, at) =
            batch.call_with(libc::SYS_recvmsg, [0, 0, libc::MSG_CMSG_CLOEXEC as u64, 0, 0, 0], 1, &words);
        self.send(&mut batch)?;
        sys::send_packet(&self.socket, &[0], Some(fd.as_raw_fd()))
            .map_err(|e| InjectError::Ours("passing a descriptor", e))?;
        self.receive_into(&mut batch)?;
        batch.result(received).map_err(|e| InjectError::InTarget("recvmsg", e))?;
        // The control message: a header of 16 bytes, then the number.
        Ok(batch.word(at + 12) & 0xffff_ffff)
    }

    fn receive_into(&self, batch: &mut Batch) -> Result<(), AgentGone> {
        let bytes = 8 + batch.calls.len() * 8 + batch.payload.len() * 8;
        let mut reply = vec![0_u8; bytes];
        let (got, _) = sys::receive_packet(&self.socket, &mut reply).map_err(|_| AgentGone)?;
        if got != bytes {
            return Err(AgentGone);
        }
        let words = reply[8..].chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
        let split = batch.calls.len();
        for (i, word) in words.enumerate() {
            if i < split { batch.calls[i] = word } else { batch.payload[i - split] = word }
        }
        Ok(())
    }

    /// What is to be said of a failure: if the agent has died, that its process is gone, or what it was. That shows in many an
    /// error, of which none is meant.
    pub fn reason(&self, error: InjectError) -> InjectError {
        let mut batch = Batch::default();
        batch.call(libc::SYS_gettid, [0; 6]);
        self.call(&mut batch).map_or(InjectError::Gone, |()| error)
    }

    /// Ends the agent and takes its memory out of the target. The caller has brought every page back.
    pub fn leave(self) {
        let mut batch = Batch::default();
        batch.call(libc::SYS_exit, [0; 6]);
        if self.send(&mut batch).is_err() {
            return;
        }
        // The thread is gone when its socket closes; only then may the code under it go.
        let mut end = [0_u8; 8];
        let _ = sys::receive_packet(&self.socket, &mut end);
        if let Ok(mut thread) = Stopped::stop(self.pid, Duration::from_millis(100))
            && self.is_in_place()
            && let Some(vdso) = proc::find_in_vdso(self.pid, arch::SYSCALL_INSTRUCTION)
        {
            let _ = thread.system_call(vdso, libc::SYS_munmap, [self.area, PAGE + BUFFER_BYTES, 0, 0, 0, 0]);
        }
    }

    /// Whether our code is where we put it. The process may have become another program, which may have something else there.
    fn is_in_place(&self) -> bool {
        let code = arch::agent_code();
        let mut found = vec![0_u8; code.len()];
        sys::read_memory(self.pid, self.area, &mut found).is_ok() && found == code
    }
}

impl From<AgentGone> for InjectError {
    fn from(_: AgentGone) -> InjectError {
        InjectError::Gone
    }
}

fn in_target(what: &'static str, result: i64) -> Result<i64, InjectError> {
    match result {
        e @ -4095..=-1 => Err(InjectError::InTarget(what, Errno(-e as i32))),
        value => Ok(value),
    }
}
