//! Keeps a fault on one processor, on machines that have two.
//!
//! For a fault, the thread of the program sleeps and a worker wakes, and back. The kernel places who wakes on a processor
//! that is idle, if there is one, and waking that takes longer than all the rest of the fault: in a virtual machine 15 to
//! 50 µs against 11 (docs/decisions.md). So while faults follow closely, a thread of the lowest priority keeps the other
//! processor from being idle, and the worker is bound to the processor on which the program waits. That thread gives way
//! to whoever else wants to run, and stops some milliseconds after the last dense faults.

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::proc;
use crate::workers;

/// Keeps the second processor awake on demand.
#[derive(Default)]
pub struct Keeper {
    /// Its thread, once it runs.
    thread: OnceLock<Thread>,
    keeping: AtomicBool,
    /// Times that faults were served.
    served: AtomicU64,
}

/// It looks this often whether faults are still dense, and stops when fewer came meanwhile.
const INTERVAL: Duration = Duration::from_millis(2);
const SERVED_MIN: u64 = 8;

impl Keeper {
    /// A keeper for this machine: one that never does anything, unless there are exactly two processors, both ours.
    pub fn start() -> Arc<Keeper> {
        let keeper = Arc::new(Keeper::default());
        let processors = thread::available_parallelism().map_or(1, usize::from);
        if processors == 2 && processors_of(0).is_some_and(|set| count(&set) == 2) {
            let ours = Arc::clone(&keeper);
            let run = move || {
                workers::set_priority(0, 19);
                loop {
                    thread::park();
                    ours.keep();
                }
            };
            let named = thread::Builder::new().name("tmem-keep".into()).stack_size(64 << 10);
            // Without it faults take longer, no more.
            if let Ok(handle) = named.spawn(run) {
                keeper.thread.get_or_init(|| handle.thread().clone());
            }
        }
        keeper
    }

    /// True if this machine has one: then workers sleep while they wait.
    pub fn exists(&self) -> bool {
        self.thread.get().is_some()
    }

    /// True while the second processor is kept awake.
    pub fn is_keeping(&self) -> bool {
        self.keeping.load(Relaxed)
    }

    /// Notes that faults were served; `dense` if they follow closely.
    pub fn served(&self, dense: bool) {
        self.served.fetch_add(1, Relaxed);
        if let Some(thread) = self.thread.get()
            && dense
            && !self.keeping.load(Acquire)
        {
            thread.unpark();
        }
    }

    fn keep(&self) {
        self.keeping.store(true, Relaxed);
        loop {
            let (before, began) = (self.served.load(Relaxed), Instant::now());
            while began.elapsed() < INTERVAL {
                (0..100).for_each(|_| std::hint::spin_loop());
                thread::yield_now();
            }
            if self.served.load(Relaxed) - before < SERVED_MIN {
                break;
            }
        }
        self.keeping.store(false, Release);
    }
}

/// Binds threads to the processor on which the program waits for faults, or to the other one, while that is of use.
pub struct Binding {
    /// Where our threads may run.
    everywhere: Option<libc::cpu_set_t>,
    /// The threads that are bound: each to one processor.
    bound: Vec<(i32, usize)>,
}

impl Binding {
    /// Nobody is bound.
    pub fn new() -> Binding {
        Binding { everywhere: processors_of(0), bound: Vec::new() }
    }

    /// Binds the threads `near` to where `faulter` runs and the threads `far` (0: the caller) to the other processor, or
    /// nobody if nothing is kept.
    pub fn follow(&mut self, keeper: &Keeper, faulter: i32, near: &[i32], far: &[i32]) {
        let Some(everywhere) = self.everywhere.filter(|_| keeper.is_keeping() || !self.bound.is_empty()) else {
            return;
        };
        let here = if keeper.is_keeping() { proc::processor(faulter) } else { None };
        // SAFETY: CPU_ISSET reads the set only.
        let there =
            (0..libc::CPU_SETSIZE as usize).find(|&p| Some(p) != here && unsafe { libc::CPU_ISSET(p, &everywhere) });
        let wanted = match (here, there) {
            (Some(here), Some(there)) => {
                near.iter().map(|&tid| (tid, here)).chain(far.iter().map(|&tid| (tid, there))).collect()
            }
            _ => Vec::new(),
        };
        for (tid, _) in self.bound.iter().filter(|(tid, _)| !wanted.iter().any(|(other, _)| other == tid)) {
            bind(*tid, &everywhere);
        }
        for &(tid, processor) in wanted.iter().filter(|pair| !self.bound.contains(pair)) {
            // SAFETY: an all-zero set is the empty set, and CPU_SET checks the bound.
            let set = unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(processor, &mut set);
                set
            };
            bind(tid, &set);
        }
        self.bound = wanted;
    }
}

/// Fails only if the thread is gone or the processor is not ours; then it stays where it is.
fn bind(tid: i32, set: &libc::cpu_set_t) {
    // SAFETY: `set` is a live set of the stated size.
    unsafe { libc::sched_setaffinity(tid, size_of_val(set), set) };
}

/// The processors that thread `tid` (0: the caller) may use.
fn processors_of(tid: i32) -> Option<libc::cpu_set_t> {
    // SAFETY: an all-zero set is valid and the call fills at most its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(tid, size_of_val(&set), &mut set) == 0).then_some(set)
    }
}

fn count(set: &libc::cpu_set_t) -> i32 {
    // SAFETY: reads the set only.
    unsafe { libc::CPU_COUNT(set) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stops_when_faults_do() {
        let keeper = Arc::new(Keeper::default());
        let ours = Arc::clone(&keeper);
        let kept = thread::spawn(move || ours.keep());
        // On a busy machine it may be over before anybody looks.
        while !keeper.is_keeping() && !kept.is_finished() {
            thread::yield_now();
        }
        (0..200).for_each(|_| keeper.served(true));
        kept.join().expect("it stops by itself");
        assert!(!keeper.is_keeping());
    }

    #[test]
    fn a_thread_is_bound_and_let_go() {
        // SAFETY: no arguments, no effects.
        let me = unsafe { libc::gettid() };
        let before = processors_of(me).expect("this thread exists");
        let keeper = Keeper::default();
        let mut binding = Binding::new();
        binding.follow(&keeper, me, &[me], &[]);
        assert_eq!(count(&processors_of(me).unwrap()), count(&before), "nothing is kept, nobody is bound");
        if count(&before) < 2 {
            return;
        }
        keeper.keeping.store(true, Relaxed);
        binding.follow(&keeper, me, &[me], &[]);
        assert_eq!(count(&processors_of(me).unwrap()), 1);
        keeper.keeping.store(false, Relaxed);
        binding.follow(&keeper, me, &[me], &[]);
        assert_eq!(count(&processors_of(me).unwrap()), count(&before));
    }
}
