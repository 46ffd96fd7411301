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
    thread::Builder::new()
        .name(name)
        .stack_size(512 << 10)
        .spawn(body)
        .expect("a thread can be started at the beginning")
}

/// Each space has one handler: what it does happens under the lock of the space, so that a second one, woken by the next
/// fault, would only wait for the first (docs/decisions.md has the numbers). Spaces are dealt out in turn.
fn serve_faults(shared: &Shared, which: usize) {
    raise_priority(-10);
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

/// Asks for a better place in the queue for a processor, where this user may: a program waits for this thread.
pub fn raise_priority(nice: i32) {
    // SAFETY: plain system call; on Linux it applies to the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// Steps in a row that may find nothing but hot pages before eviction counts as fruitless.
const BARREN_MAX: u32 = 64;

/// Evicts while memory is over the high mark, down to the low mark. The second and further evictors help only when
/// the first does not keep up, so that the program keeps its processor.
fn evict(shared: &Shared, worker: usize) {
    raise_priority(-5);
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
        let mut barren = 0;
        let gate = shared.gate.read().unwrap_or_else(PoisonError::into_inner);
        while shared.account.estimate() > limits.low && !shared.stopping.load(Relaxed) {
            let achieved = !shared.is_at_floor()
                && candidates(shared).iter().any(|space| {
                    let step = evictor.step(shared, space);
                    barren = if step.pages > 0 { 0 } else { barren + 1 };
                    step.pages > 0 || (step.looked && barren < BARREN_MAX)
                });
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
