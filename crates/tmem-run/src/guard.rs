//! The guard: a second process that outlives the supervisor by a moment.
//!
//! When the last copy of a userfaultfd closes, evicted pages read as zeros. So the guard shares the supervisor's table of
//! descriptors: a userfaultfd that the supervisor gets, were it by reading the message of a fork, the guard has in the same
//! instant, and it stays open when the supervisor dies. Then the guard kills every process in our care, and lets go of a
//! descriptor when the kernel says that its address space is gone; not sooner, even if that were never: who waits for a page
//! reads no wrong one.
//!
//! Nothing is sent to the guard: what it will need to know lies in memory that it shares with the supervisor.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::proc;
use crate::sys::{self, Errno, Filled, Message, Uffd};
use crate::tag::{Mark, Tag};

/// Processes or tags that are noted at most. Of more, some may have to wait for ever instead of being killed.
const NOTED_MAX: usize = 4096;
/// A family has been found when so many looks in a row find nobody new.
const LOOKS: u32 = 3;
/// A family that grows all the time is killed after so many looks.
const LOOKS_MAX: u32 = 100;
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two looks for processes that are still to be killed.
const HUNT_PAUSE_MAX: Duration = Duration::from_millis(100);
/// What may be sent to a whole session or to all that is called tmem, and is not meant for the guard.
const NOT_OURS: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE];

/// Our side of the guard.
pub struct Guard {
    notes: &'static Notes,
    mark: Mark,
    pid: i32,
    /// By which the guard hears of our end. In the table that is also its own, so it must stay open.
    _supervisor: OwnedFd,
    /// Only one at a time may take note of tags.
    tagging: Mutex<()>,
}

/// What the guard will have to know. In memory that both processes map, so every bit pattern must be valid, zeros mean nothing.
struct Notes {
    processes: List,
    tags: List,
}

/// A list that is whole at every moment in which its writer can die.
struct List {
    /// Which of the halves counts; the other one is for writing.
    current: AtomicUsize,
    halves: [Half; 2],
}

struct Half {
    len: AtomicUsize,
    items: [AtomicU64; NOTED_MAX],
}

impl List {
    /// Replaces what is listed. One thread may do that at a time.
    fn set(&self, items: impl Iterator<Item = u64>) {
        let next = 1 - (self.current.load(Relaxed) & 1);
        let half = &self.halves[next];
        let mut len = 0;
        for (to, item) in half.items.iter().zip(items) {
            to.store(item, Relaxed);
            len += 1;
        }
        half.len.store(len, Relaxed);
        self.current.store(next, Release);
    }

    fn items(&self) -> impl Iterator<Item = u64> {
        let half = &self.halves[self.current.load(Acquire) & 1];
        half.items.iter().take(half.len.load(Relaxed)).map(|item| item.load(Relaxed))
    }
}

/// A way to the guard for a program that is about to start.
pub struct Introduction {
    notes: &'static Notes,
    supervisor: u32,
}

impl Introduction {
    /// Puts the calling process into the guard's care. For a child between fork and exec: allocates nothing.
    ///
    /// # Errors
    /// When the supervisor has ended already: then the guard may not have seen the note any more, and the child must not go on.
    pub fn give(&self) -> Result<(), Errno> {
        self.notes.processes.set(std::iter::once(u64::from(std::process::id())));
        // The guard reads the notes after the supervisor's end, and that is when our parent becomes another one.
        fence(SeqCst);
        if std::os::unix::process::parent_id() == self.supervisor { Ok(()) } else { Err(Errno(libc::ESRCH)) }
    }
}

impl Guard {
    /// Starts the guard. Call it while the process has one thread only.
    ///
    /// # Errors
    /// What the kernel says against a second process.
    pub fn start() -> std::io::Result<Guard> {
        let mark = Mark::new()?;
        let error = |e: Errno| std::io::Error::from_raw_os_error(e.0);
        // SAFETY: notes are made of atomic integers.
        let notes = unsafe { sys::share_zeros::<Notes>() }.map_err(error)?;
        let supervisor = sys::pidfd_open(std::process::id() as i32, 0).map_err(error)?;
        match sys::fork_sharing_files().map_err(error)? {
            0 => {
                watch(supervisor, notes, mark);
                // SAFETY: ends this process without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Guard { notes, mark, pid, _supervisor: supervisor, tagging: Mutex::new(()) }),
        }
    }

    /// The guard's process, which is no part of the tree.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// By what the guard knows our address spaces.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// For the program to be started, which must be in the guard's care before it runs: if the supervisor ends between the
    /// start and its first look, nobody else knows of the program.
    pub fn introduction(&self) -> Introduction {
        Introduction { notes: self.notes, supervisor: std::process::id() }
    }

    /// Replaces the list of processes to kill. One thread may do that at a time.
    pub fn set_processes(&self, pids: &[i32]) {
        self.notes.processes.set(pids.iter().map(|&pid| pid as u64));
    }

    /// Replaces the list of addresses at which our address spaces have their tags. `addresses` is asked when nobody else changes
    /// the list.
    pub fn set_tags(&self, addresses: impl FnOnce() -> BTreeSet<u64>) {
        let _one = self.tagging.lock().unwrap_or_else(PoisonError::into_inner);
        self.notes.tags.set(addresses().into_iter());
    }

    /// Ends the guard without killing anybody.
    pub fn dismiss(&self) {
        sys::kill(self.pid, libc::SIGKILL);
        // SAFETY: reaps our own child; no pointers kept.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// The guard's whole life.
fn watch(supervisor: OwnedFd, notes: &Notes, mark: Mark) {
    // SAFETY: plain system calls that concern this process alone.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"tmem-guard".as_ptr());
        libc::setsid();
        NOT_OURS.into_iter().for_each(|signal| _ = libc::signal(signal, libc::SIG_IGN));
    }
    sys::wait_readable(&supervisor);
    for pid in family(notes.processes.items().map(|pid| pid as i32).collect()) {
        sys::kill(pid, libc::SIGKILL);
    }
    // Agents kill when their sockets close. And no pipe of the user's may wait for us.
    drop(supervisor);
    let uffds = keep_userfaultfds();
    Hunt { uffds, tags: notes.tags.items().collect(), mark }.finish();
}

/// These processes and all below them, stopped: what is stopped does not fork.
fn family(mut pids: BTreeSet<i32>) -> BTreeSet<i32> {
    let mut same = 0;
    for _ in 0..LOOKS_MAX {
        pids.retain(|&pid| sys::kill(pid, libc::SIGSTOP));
        let children: Vec<i32> = pids.iter().flat_map(|&pid| proc::children(pid)).collect();
        let before = pids.len();
        pids.extend(children);
        same = if pids.len() == before { same + 1 } else { 0 };
        if same == LOOKS {
            break;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    pids
}

/// Closes all descriptors of this process but the userfaultfds.
fn keep_userfaultfds() -> Vec<Uffd> {
    let listed = loop {
        // Without a list all stay open, and so do we.
        match fs::read_dir("/proc/self/fd") {
            Ok(listed) => break listed,
            Err(_) => std::thread::sleep(HUNT_PAUSE_MAX),
        }
    };
    let numbers: Vec<i32> = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let mut kept = Vec::new();
    for number in numbers {
        let target = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
        if target.as_os_str() == "anon_inode:[userfaultfd]" {
            kept.push(Uffd::new(sys::adopt(number)));
        } else {
            // SAFETY: whoever owned the descriptor was the supervisor, which is gone.
            unsafe { libc::close(number) };
        }
    }
    kept
}

/// The hunt for processes that escaped: the parent of an orphan may have ended before anybody knew of the orphan.
struct Hunt {
    /// Of address spaces that may still be there.
    uffds: Vec<Uffd>,
    tags: Vec<u64>,
    mark: Mark,
}

impl Hunt {
    /// Returns when all the address spaces are gone.
    fn finish(mut self) {
        let mut pause = LOOK_PAUSE;
        loop {
            self.tag();
            if self.uffds.is_empty() {
                return;
            }
            for pid in proc::all() {
                let is_ours = |&tag: &u64| Tag::of(pid, tag).is_some_and(|tag| tag.mark == self.mark);
                if self.tags.iter().any(is_ours) {
                    sys::kill(pid, libc::SIGKILL);
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(HUNT_PAUSE_MAX);
        }
    }

    /// Puts tags into all address spaces that can take one now, and lets go of those that are gone.
    ///
    /// Whoever changes its mappings or forks is held up until its message is read, and takes no tag so long. So each message is
    /// read here and the tag tried again, but only once: if it forks again, and ends, its child will wait in the same way,
    /// with its tag, to be found.
    fn tag(&mut self) {
        let page = Tag { mark: self.mark, id: 0 }.page();
        let put = |uffd: &Uffd| {
            let puts = self.tags.iter().map(|&tag| uffd.copy(tag, &page[..]));
            puts.filter(|filled| matches!(filled, Filled::Changing(_))).count() == 0
        };
        let mut born = Vec::new();
        for uffd in self.uffds.iter().filter(|uffd| !put(uffd)) {
            born.extend(uffd.read().filter_map(|message| match message {
                Message::Fork { child } => Some(Uffd::new(sys::adopt(child))),
                _ => None,
            }));
        }
        self.uffds.iter().chain(&born).for_each(|uffd| _ = put(uffd));
        self.uffds.append(&mut born);
        self.uffds.retain(|uffd| !uffd.is_dead());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_whole_even_if_its_writer_dies() {
        // SAFETY: a list is made of atomic integers.
        let list = unsafe { sys::share_zeros::<List>() }.unwrap();
        let items = || list.items().collect::<Vec<_>>();
        assert_eq!(items(), [0; 0]);
        list.set([1, 2, 3].into_iter());
        assert_eq!(items(), [1, 2, 3]);
        let dies = [4, 5].into_iter().chain(std::iter::once_with(|| panic!("as it is meant to")));
        std::panic::catch_unwind(|| list.set(dies)).unwrap_err();
        assert_eq!(items(), [1, 2, 3]);
        list.set([6].into_iter());
        assert_eq!(items(), [6]);
        list.set(0..NOTED_MAX as u64 + 5);
        assert_eq!(items().len(), NOTED_MAX);
    }

    #[test]
    fn a_family_that_was_found_does_not_grow() {
        // Two that fork all the time, and wait for it.
        let script = "f() { while :; do (exit 0); done; }; f & f";
        let mut shell = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let found = family(BTreeSet::from([shell.id() as i32]));
        std::thread::sleep(Duration::from_millis(20));
        let stranger = found.iter().flat_map(|&pid| proc::children(pid)).find(|child| !found.contains(child));
        found.iter().for_each(|&pid| _ = sys::kill(pid, libc::SIGKILL));
        shell.wait().unwrap();
        assert!(found.len() > 1 && stranger.is_none(), "{stranger:?} beside {found:?}");
    }
}
