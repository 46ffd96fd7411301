//! The threads that do the work: handlers serve faults, evictors keep memory under the budget.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use crate::evict::Evictor;
use crate::fault::Scratch;
use crate::shared::Shared;
use crate::space::Space;

/// Starts all threads. They end when `shared.stopping` is set.
pub fn start(shared: &Arc<Shared>, handlers: usize) -> Vec<thread::JoinHandle<()>> {
    // A thread that panics leaves a space half changed: end at once, so that the agents kill rather than the
    // program see a wrong byte.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
    let mut threads = Vec::new();
    for which in 0..handlers {
        let shared = Arc::clone(shared);
        threads.push(spawn(format!("tmem-fault-{which}"), move || serve_faults(&shared, which)));
    }
    for worker in 0..shared.evictors {
        let shared = Arc::clone(shared);
        threads.push(spawn(format!("tmem-evict-{worker}"), move || evict(&shared, worker)));
    }
    threads
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new().name(name).stack_size(512 << 10).spawn(body).expect("a thread can be started at the beginning")
}

/// One handler per processor, bound to it. All of them wake for a fault; the one on the processor of the faulting
/// thread runs as soon as that thread sleeps, long before a halted processor has come up, and the others find the
/// fault served. That they were woken keeps the scheduler from moving the program to a processor that sleeps.
fn serve_faults(shared: &Shared, which: usize) {
    bind_to_processor(which);
    let mut scratch = Scratch::default();
    let mut ready = Vec::new();
    while !shared.stopping.load(Relaxed) {
        shared.wait_for_faults(which, &mut ready);
        for &id in &ready {
            if let Some(space) = shared.space(id) {
                let mut inner = space.lock();
                space.pump(shared, &mut inner, &mut scratch);
            }
        }
    }
}

fn bind_to_processor(which: usize) {
    // SAFETY: an all-zero set is valid; `CPU_SET` stays within it because `which` is far below its size.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut allowed);
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        let processors = (0..libc::CPU_SETSIZE as usize).filter(|&c| libc::CPU_ISSET(c, &allowed));
        if let Some(processor) = processors.clone().nth(which % processors.count().max(1)) {
            libc::CPU_SET(processor, &mut one);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
        }
    }
}

/// Evicts while memory is over the high mark, down to the low mark. The second and further evictors help only when
/// the first does not keep up, so that the program keeps its processor.
fn evict(shared: &Shared, worker: usize) {
    let mut evictor = Evictor::new(worker);
    let mut scratch = Scratch::default();
    let limits = shared.limits;
    let start_above = if worker == 0 { limits.high } else { limits.high.midpoint(limits.ram) };
    while !shared.stopping.load(Relaxed) {
        if shared.account.estimate() <= start_above {
            serve_parked(shared, &mut scratch);
            shared.wait_for_need(Duration::from_millis(5));
            continue;
        }
        let gate = shared.gate.read().unwrap_or_else(PoisonError::into_inner);
        while shared.account.estimate() > limits.low && !shared.stopping.load(Relaxed) {
            let achieved = !shared.is_at_floor() && candidates(shared).iter().any(|space| evictor.step(shared, space).pages > 0);
            serve_parked(shared, &mut scratch);
            shared.store.maintain();
            if !achieved {
                shared.fruitless.fetch_add(1, Relaxed);
                break;
            }
            shared.fruitless.store(0, Relaxed);
        }
        shared.spaces().iter().for_each(|space| evictor.rest(shared, space));
        drop(gate);
        if shared.fruitless.load(Relaxed) > 0 {
            thread::sleep(Duration::from_millis(1));
            serve_parked(shared, &mut scratch);
        }
    }
}

/// Spaces in the order of the age of their oldest page.
fn candidates(shared: &Shared) -> Vec<Arc<Space>> {
    let now = shared.arrivals();
    let mut spaces = shared.spaces();
    spaces.sort_by_key(|s| match s.oldest.load(Relaxed) {
        u64::MAX => u64::MAX,
        stamp => u64::from(u32::MAX - now.wrapping_sub(stamp as u32)),
    });
    spaces
}

fn serve_parked(shared: &Shared, scratch: &mut Scratch) {
    for space in shared.spaces() {
        if space.parked.load(Relaxed) > 0 {
            let mut inner = space.lock();
            space.serve_parked(shared, &mut inner, scratch);
        }
    }
}
