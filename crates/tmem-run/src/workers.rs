//! The threads that do the work. Each serves the faults of the spaces that are dealt to it. While memory is short, one that
//! does not serve just now evicts, and looks for faults of its own spaces after every page that it compresses; the others
//! join in when one does not keep up. How a fault finds its worker without waking a processor: see [`crate::keeper`] and
//! [`Polling`]. docs/decisions.md has the numbers.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::evict::Evictor;
use crate::fault::Scratch;
use crate::shared::Shared;
use crate::space::Space;

/// Starts all threads. They end when `shared.stopping` is set.
pub fn start(shared: &Arc<Shared>) {
    // A thread that panics leaves a space half changed: end at once, so that the agents kill rather than the
    // program see a wrong byte. The one thread that only looks may go.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        if thread::current().name() != Some(tmem_watch::THREAD) {
            std::process::abort();
        }
    }));
    for which in 0..shared.workers {
        let shared = Arc::clone(shared);
        thread::Builder::new()
            .name(format!("tmem-work-{which}"))
            .stack_size(512 << 10)
            .spawn(move || work(&shared, which))
            .expect("a thread can be started at the beginning");
    }
}

/// Asks for another place in the queue for a processor for thread `tid` (0: the caller), where this user may: a program
/// waits for most of our threads.
pub fn set_priority(tid: i32, nice: i32) {
    // SAFETY: plain system call; on Linux it applies to one thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, tid as u32, nice) };
}

/// How long a worker sleeps at most when nothing is asked of it, and while faults wait for room.
const INTERVAL: Duration = Duration::from_millis(100);
const PARKED: Duration = Duration::from_millis(2);
/// How long eviction rests at least after it found nothing to evict, and as long as that took. A program that is over
/// its budget anyway must not crawl, so faults are served meanwhile.
const FUTILE: Duration = Duration::from_millis(1);

fn work(shared: &Shared, which: usize) {
    set_priority(0, -10);
    // SAFETY: no arguments, no effects.
    shared.worker_tids[which].store(unsafe { libc::gettid() }, Relaxed);
    let mut server = Server { which, scratch: Scratch::default(), ready: Vec::new(), polling: Polling::new() };
    let mut evictor = Evictor::new(which);
    let mut futile_until = Instant::now();
    while !shared.stopping.load(Relaxed) {
        if shared.fruitless.load(Relaxed) > 0 && Instant::now() < futile_until {
            server.await_faults(shared, FUTILE);
        } else if let Err(Fruitless { took }) = make_room(shared, &mut evictor, &mut server) {
            futile_until = Instant::now() + FUTILE.max(took);
        } else if shared.may_be_parked() {
            server.await_faults(shared, PARKED);
        } else if !server.await_faults(shared, INTERVAL.min(shared.until_upkeep())) {
            shared.upkeep();
        }
        serve_parked(shared, &mut server.scratch);
    }
}

/// Serves the faults of the spaces that are dealt to one worker.
pub struct Server {
    which: usize,
    /// What pages are brought back through.
    pub scratch: Scratch,
    ready: Vec<u64>,
    polling: Polling,
}

impl Server {
    /// Serves what waits, or the first that arrives within this time. True if there was something.
    pub fn serve(&mut self, shared: &Shared, most: Duration) -> bool {
        shared.wait_for_faults(self.which, most, &mut self.ready);
        for &id in &self.ready {
            if let Some(space) = shared.space(id) {
                let mut inner = space.lock();
                space.pump(shared, &mut inner, &mut self.scratch);
            }
        }
        !self.ready.is_empty()
    }

    /// Waits for faults, at most about this long and awake where that pays, and serves them. True if there were some.
    fn await_faults(&mut self, shared: &Shared, most: Duration) -> bool {
        let began = Instant::now();
        let mut served = false;
        let mut now = began;
        while !served && !shared.keeper.exists() && self.polling.goes_on(began, now) {
            served = self.serve(shared, Duration::ZERO);
            // If somebody else wants this processor, it is not idle.
            thread::yield_now();
            let before = std::mem::replace(&mut now, Instant::now());
            self.polling.looked(before, now);
        }
        if !served {
            served = self.serve(shared, most);
        }
        if served {
            self.polling.found(began.elapsed());
            shared.keeper.served(self.polling.gap < Polling::GAP_MAX);
        }
        served
    }
}

/// Decides between polling and sleeping: waking a processor that sleeps costs as much as the fault itself, above all in
/// a virtual machine. Polling pays while faults follow closely and nobody else wants the processor.
struct Polling {
    /// Time between two faults, a moving average.
    gap: Duration,
    /// No polling before this: the processor is wanted.
    not_before: Instant,
    /// How long the next such pause takes.
    pause: Duration,
}

impl Polling {
    const GAP_MAX: Duration = Duration::from_micros(250);
    const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));
    /// Between two looks at faults that takes longer than this, somebody else had the processor.
    const LOOK_MAX: Duration = Duration::from_micros(100);

    fn new() -> Polling {
        Polling { gap: Duration::from_secs(1), not_before: Instant::now(), pause: Self::PAUSES.0 }
    }

    fn goes_on(&self, began: Instant, now: Instant) -> bool {
        self.gap < Self::GAP_MAX && now >= self.not_before && now - began < Self::GAP_MAX * 2
    }

    fn looked(&mut self, before: Instant, now: Instant) {
        if now - before > Self::LOOK_MAX {
            self.not_before = now + self.pause;
            self.pause = (self.pause * 2).min(Self::PAUSES.1);
        }
    }

    fn found(&mut self, gap: Duration) {
        self.gap = (self.gap * 7 + gap.min(Self::GAP_MAX * 4)) / 8;
        if self.pause > Self::PAUSES.0 {
            self.pause -= self.pause / 64;
        }
    }
}

/// Steps in a row that may find nothing but hot pages before eviction counts as fruitless.
const BARREN_MAX: u32 = 64;

/// Nothing was found to evict.
struct Fruitless {
    /// How long it took to find that out.
    took: Duration,
}

/// Evicts while memory is over the high mark, down to the low mark, if that is for this worker to do.
fn make_room(shared: &Shared, evictor: &mut Evictor, server: &mut Server) -> Result<(), Fruitless> {
    let Some(_turn) = shared.take_turn(server.which) else { return Ok(()) };
    let _gate = shared.gate.read().unwrap_or_else(PoisonError::into_inner);
    let mut barren = 0;
    let mut result = Ok(());
    let is_wanted = || shared.account.estimate() > shared.limits.low && !shared.stopping.load(Relaxed);
    while result.is_ok() && is_wanted() {
        if shared.should_spill() {
            if shared.serves(server.which) {
                // A write would keep faults waiting; others do it.
                break;
            }
            if spill(shared, server) {
                continue;
            }
        }
        if shared.is_at_floor() {
            break;
        }
        let (began, finds) = (Instant::now(), shared.finds.load(Relaxed));
        let fruitful = candidates(shared).iter().any(|space| {
            let step = evictor.step(shared, space, server);
            // Not all that was looked at is this worker's to serve, and a step may compress nothing.
            server.serve(shared, Duration::ZERO);
            barren = if step.pages > 0 { 0 } else { barren + 1 };
            step.pages > 0 || (step.looked && barren < BARREN_MAX)
        });
        serve_parked(shared, &mut server.scratch);
        shared.store.maintain();
        if fruitful {
            shared.fruitless.store(0, Relaxed);
            shared.need_room();
        } else if finds == shared.finds.load(Relaxed) {
            shared.fruitless.fetch_add(1, Relaxed);
            result = Err(Fruitless { took: began.elapsed() });
        }
    }
    shared.spaces().iter().for_each(|space| evictor.rest(shared, space));
    result
}

/// Moves cold pages of the store to the spill file. False if that got nowhere.
fn spill(shared: &Shared, server: &mut Server) -> bool {
    let bytes = shared.spill.step(&shared.store, || shared.drop_kept());
    if bytes == 0 {
        return false;
    }
    shared.account.note(-(bytes as i64));
    shared.fruitless.store(0, Relaxed);
    shared.need_room();
    server.serve(shared, Duration::ZERO);
    serve_parked(shared, &mut server.scratch);
    true
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
    if !shared.take_parked() {
        return;
    }
    for space in shared.spaces() {
        if space.parked.load(Relaxed) > 0 {
            let mut inner = space.lock();
            space.serve_parked(shared, &mut inner, scratch);
        }
    }
}
