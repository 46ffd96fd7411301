//! What every allocator must do, against a naive model of it.
//!
//! Random operations from a seed that is printed; `TMEM_SEED` chooses another one for the run that has a new one each time.
//! The bytes of everything that lives are looked at after each step.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::counting::allocations_of;
use super::{
    Allocator, Class, FrameId, HEADER_BYTES, Handle, Log, NewZpage, NoRoom, OWNER_BITS, Owner, Queue, Tenants,
    Xvmalloc, Zbud, Zsmalloc,
};
use crate::budget::{Budget, Purpose};
use crate::codec::Encoding;
use crate::frames::Frames;
use crate::page::PAGE_SIZE;
use crate::testing::Random;

/// Little, so that it is full soon.
const BUDGET_BYTES: u64 = 512 << 10;
const RESERVED_BYTES: usize = 64 << 20;
const CLASSES: [Class; 2] = [Class::Ephemeral, Class::Persistent];
const QUEUES: [Queue; 2] = [Queue::Small, Queue::Main];

/// What allocators may do differently.
#[derive(Clone, Copy)]
struct Promise {
    /// Moves append, for which a segment may have to be opened. Elsewhere they need nothing from the heap.
    moves_append: bool,
    /// Frames that are kept although nothing lives there: those at the heads of a log.
    heads: u64,
    /// Up to here a frame is sparse for whoever wants an end of the moves.
    sparse_bytes_max: usize,
    /// Frames in which the zpages of the test of sparse frames, 60 kB, end.
    sparse_frames_max: u64,
    /// What was not used itself may count as used for what it lies beside.
    lends_use: bool,
}

const IN_PLACE: Promise =
    Promise { moves_append: false, heads: 0, sparse_bytes_max: PAGE_SIZE, sparse_frames_max: 20, lends_use: false };
const LOG: Promise = Promise { moves_append: true, heads: 4, sparse_bytes_max: 2048, ..IN_PLACE };
/// Zspages of several frames stay partly filled in each class.
const ZSMALLOC: Promise = Promise { sparse_frames_max: 40, ..IN_PLACE };
/// Fifty zpages, two in a frame, and their headers in three frames.
const ZBUD: Promise = Promise { sparse_frames_max: 30, lends_use: true, ..IN_PLACE };
/// Nothing reaches over the end of a frame, and only frames are emptied of which every zpage finds a hole elsewhere.
const XVMALLOC: Promise = Promise { sparse_frames_max: 24, ..IN_PLACE };

/// An allocator alone with a budget.
pub(super) fn allocator<A>(
    budget_bytes: u64,
    new: impl Fn(Frames, Arc<Budget>, Arc<AtomicU64>) -> A,
) -> (A, Arc<Budget>) {
    let budget = Arc::new(Budget::new(budget_bytes));
    let frames = Frames::reserve(RESERVED_BYTES, RESERVED_BYTES).unwrap();
    (new(frames, Arc::clone(&budget), Arc::default()), budget)
}

/// Stores a persistent zpage that the budget has room for.
pub(super) fn store(allocator: &impl Allocator, owner: u64, payload: &[u8]) -> Handle {
    let zpage = NewZpage { encoding: Encoding::Raw, check: owner as u32, owner: Owner(owner), payload };
    allocator.store(Class::Persistent, Queue::Small, &zpage, Purpose::Admit).unwrap()
}

/// A zpage as the model knows it.
struct Live {
    handle: Handle,
    class: Class,
    owner: Owner,
    used: bool,
    encoding: Encoding,
    check: u32,
    payload: Vec<u8>,
}

struct World<A> {
    random: Random,
    allocator: A,
    budget: Arc<Budget>,
    /// The address of the first frame.
    base: usize,
    promise: Promise,
    live: Vec<Live>,
    refused: u64,
    moved: u64,
}

impl<A: Allocator> World<A> {
    fn new(seed: u64, promise: Promise, new: impl Fn(Frames, Arc<Budget>, Arc<AtomicU64>) -> A) -> Self {
        println!("seed {seed:#x}");
        let base = std::cell::Cell::new(0);
        let (allocator, budget) = allocator(BUDGET_BYTES, |frames, budget, clock| {
            base.set(frames.word(0).as_ptr() as usize);
            new(frames, budget, clock)
        });
        let (random, live) = (Random::new(seed), Vec::new());
        Self { random, allocator, budget, base: base.get(), promise, live, refused: 0, moved: 0 }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=44 => self.store(),
            45..=59 => self.read(),
            60..=79 => self.free(),
            80..=86 => self.relocate(),
            87..=89 => self.keep(),
            90..=94 => self.set_owner(),
            95 => self.empty_coldest(),
            96 => self.empty_sparse(),
            97 => drop(self.allocator.give_back(false)),
            98 => drop(self.allocator.give_back(true)),
            _ if self.random.below(20) == 0 => (0..self.live.len() * 3 / 4).for_each(|_| self.free()),
            _ => {}
        }
    }

    fn pick(&mut self) -> Option<usize> {
        (!self.live.is_empty()).then(|| self.random.below(self.live.len() as u64) as usize)
    }

    /// All sizes, the smallest and the largest often.
    fn payload(&mut self) -> Vec<u8> {
        let bytes = match self.random.below(16) {
            0 => self.random.below(20),
            1 => PAGE_SIZE as u64 - self.random.below(20),
            2 => [0, PAGE_SIZE as u64][self.random.below(2) as usize],
            3..=9 => 300 + self.random.below(1500),
            _ => self.random.below(PAGE_SIZE as u64 + 1),
        };
        let mut payload = vec![0; bytes as usize];
        payload
            .chunks_mut(8)
            .for_each(|piece| piece.copy_from_slice(&self.random.number().to_le_bytes()[..piece.len()]));
        payload
    }

    fn owner(&mut self) -> Owner {
        Owner(self.random.below(1 << OWNER_BITS))
    }

    fn store(&mut self) {
        let (payload, owner) = (self.payload(), self.owner());
        let class = CLASSES[self.random.below(2) as usize];
        let queue = QUEUES[self.random.below(2) as usize];
        let encoding = [Encoding::Raw, Encoding::Lz4, Encoding::Zstd][self.random.below(3) as usize];
        let check = self.random.number() as u32;
        let zpage = NewZpage { encoding, check, owner, payload: &payload };
        match self.allocator.store(class, queue, &zpage, Purpose::Admit) {
            Ok(handle) => {
                assert!(self.budget.used() <= self.budget.limit());
                self.live.push(Live { handle, class, owner, used: false, encoding, check, payload });
            }
            Err(NoRoom) => {
                self.refused += 1;
                (0..8).for_each(|_| self.free());
            }
        }
    }

    fn read(&mut self) {
        let Some(at) = self.pick() else {
            return;
        };
        let used = self.random.below(2) == 0;
        let live = &mut self.live[at];
        let (payload_bytes, allocations) =
            allocations_of(|| self.allocator.read(live.handle, used, |zpage| zpage.payload.len()));
        assert_eq!((payload_bytes, allocations), (live.payload.len(), 0));
        assert_eq!(self.allocator.payload_bytes(live.handle) as usize, payload_bytes);
        live.used |= used;
    }

    fn free(&mut self) {
        let Some(at) = self.pick() else {
            return;
        };
        let handle = self.live.swap_remove(at).handle;
        let ((), allocations) = allocations_of(|| self.allocator.free(handle));
        assert_eq!(allocations, 0);
    }

    fn relocate(&mut self) {
        let Some(at) = self.pick() else {
            return;
        };
        self.relocate_at(at);
    }

    /// Says whether there was room elsewhere.
    fn relocate_at(&mut self, at: usize) -> bool {
        let live = &mut self.live[at];
        let (moved, allocations) = allocations_of(|| self.allocator.relocate(live.handle));
        assert!(allocations == 0 || self.promise.moves_append);
        if let Ok(handle) = moved {
            assert_ne!(handle, live.handle);
            live.handle = handle;
            self.moved += 1;
        }
        moved.is_ok()
    }

    fn keep(&mut self) {
        let Some(at) = self.pick() else {
            return;
        };
        let live = &mut self.live[at];
        let (kept, allocations) = allocations_of(|| self.allocator.keep(live.handle));
        assert!(allocations == 0 || self.promise.moves_append);
        if let Ok(handle) = kept {
            (live.handle, live.used) = (handle, false);
        }
    }

    fn set_owner(&mut self) {
        if let Some(at) = self.pick() {
            let owner = self.owner();
            self.allocator.set_owner(self.live[at].handle, owner);
            self.live[at].owner = owner;
        }
    }

    /// Drops what lives in the coldest region of a queue, or gives it a second chance.
    fn empty_coldest(&mut self) {
        let (class, queue) = (CLASSES[self.random.below(2) as usize], QUEUES[self.random.below(2) as usize]);
        let age = self.allocator.coldest_age(class, queue);
        let Some(frames) = self.allocator.coldest(class, queue) else {
            assert_eq!(age, None);
            return;
        };
        assert!(age.is_some());
        let mut found = 0;
        for frame in frames {
            for handle in self.tenants(frame) {
                let at = self.live.iter().position(|live| live.handle == handle);
                let at = at.expect("one thread changes nothing behind its own back");
                assert_eq!(self.live[at].class, class);
                found += 1;
                if self.live[at].used {
                    if let Ok(handle) = self.allocator.keep(handle) {
                        (self.live[at].handle, self.live[at].used) = (handle, false);
                    }
                } else {
                    self.allocator.free(self.live.swap_remove(at).handle);
                }
            }
        }
        assert!(found > 0, "a region in which something lives");
    }

    fn empty_sparse(&mut self) {
        let live_bytes_max = self.random.below(PAGE_SIZE as u64) as usize;
        let Some(FrameId(frame)) = self.allocator.sparse_frame(live_bytes_max) else {
            return;
        };
        let tenants = self.tenants(frame);
        assert!(!tenants.is_empty(), "frames without a zpage are not to be emptied");
        for handle in tenants {
            let at = self.live.iter().position(|live| live.handle == handle).unwrap();
            self.relocate_at(at);
        }
    }

    /// The handles of the tenants of a frame.
    fn tenants(&self, frame: u32) -> Vec<Handle> {
        let mut tenants = Tenants::new();
        let ((), allocations) = allocations_of(|| self.allocator.tenants(FrameId(frame), &mut tenants));
        assert_eq!(allocations, 0);
        tenants.as_slice().iter().map(|tenant| tenant.handle).collect()
    }

    /// Everything is as it was stored, and nothing overlaps. Answers the frames that each payload touches.
    fn assert_intact(&self) -> Vec<std::ops::Range<usize>> {
        let mut places = Vec::with_capacity(self.live.len());
        for live in &self.live {
            assert_eq!(live.handle, Handle::untagged(live.handle.tagged(7)));
            self.allocator.read(live.handle, false, |zpage| {
                assert!(zpage.payload == live.payload, "the payload of {:?} has changed", live.handle);
                assert_eq!((zpage.encoding, zpage.check), (Some(live.encoding), live.check));
                let start = zpage.payload.as_ptr() as usize - self.base;
                places.push(start..start + zpage.payload.len());
            });
        }
        let mut sorted = places.clone();
        sorted.sort_unstable_by_key(|place| (place.start, place.end));
        assert!(sorted.is_sorted_by(|one, next| one.end <= next.start), "two payloads overlap");
        places
    }

    /// The tenants of all frames are the live zpages, and no others.
    fn assert_tenants(&self, places: &[std::ops::Range<usize>]) {
        /// The account of frames is kept for as many at a time.
        const STEP: usize = 64;
        // A payload of no bytes lies in a frame, too.
        let frames = places.iter().map(|place| place.end.div_ceil(PAGE_SIZE).max(place.start / PAGE_SIZE + 1));
        let frames = frames.max().unwrap_or(0);
        let by_handle: HashMap<u64, usize> = self.live.iter().map(|live| live.handle.0).zip(0..).collect();
        let mut frames_of = vec![Vec::new(); self.live.len()];
        let mut tenants = Tenants::new();
        for frame in 0..frames.next_multiple_of(STEP) {
            self.allocator.tenants(FrameId(frame as u32), &mut tenants);
            for tenant in tenants.as_slice() {
                let at = *by_handle.get(&tenant.handle.0).expect("a tenant that does not live");
                let live = &self.live[at];
                assert_eq!((tenant.owner, tenant.class), (live.owner, live.class));
                assert!(tenant.used == live.used || tenant.used && self.promise.lends_use);
                frames_of[at].push(frame);
            }
        }
        for (place, frames) in places.iter().zip(frames_of) {
            assert!(!frames.is_empty() && frames.is_sorted_by(|one, next| one + 1 == *next), "{place:?}: {frames:?}");
            // Header and padding may reach into others.
            let touched = place.start / PAGE_SIZE..place.end.div_ceil(PAGE_SIZE);
            assert!(frames.len() <= touched.len() + 1, "{place:?}: {frames:?}");
            assert!(place.is_empty() || touched.into_iter().all(|frame| frames.contains(&frame)));
        }
    }

    fn assert_usage(&self) {
        let usage = self.allocator.usage();
        let payload_bytes: usize = self.live.iter().map(|live| live.payload.len()).sum();
        assert_eq!((usage.zpages, usage.payload_bytes), (self.live.len() as u64, payload_bytes as u64));
        assert!(usage.live_bytes >= usage.payload_bytes + usage.zpages * HEADER_BYTES as u64);
        let mut live_bytes = 0;
        for class in CLASSES {
            let bytes: u64 = QUEUES.iter().map(|queue| self.allocator.queue_bytes(class, *queue)).sum();
            let lives = self.live.iter().any(|live| live.class == class);
            assert_eq!(bytes > 0, lives);
            let ages = QUEUES.map(|queue| self.allocator.coldest_age(class, queue));
            assert_eq!(ages.iter().any(Option::is_some), lives);
            live_bytes += bytes;
        }
        assert_eq!(live_bytes, usage.live_bytes);
        assert_eq!(self.budget.used(), usage.frame_bytes + usage.table_bytes);
        assert!(self.budget.used() <= self.budget.limit());
    }
}

/// Runs a world to its end and says whether it was hard: the budget was full, and zpages were moved.
fn random_operations<A: Allocator>(
    seed: u64,
    steps: u32,
    promise: Promise,
    new: impl Fn(Frames, Arc<Budget>, Arc<AtomicU64>) -> A,
) -> bool {
    let mut world = World::new(seed, promise, new);
    for step in 0..steps {
        world.step();
        let places = world.assert_intact();
        world.assert_usage();
        if step % 16 == 0 {
            world.assert_tenants(&places);
        }
    }
    println!("{} refused, {} moved, {:?}", world.refused, world.moved, world.allocator.usage());
    let hard = world.refused > 0 && world.moved > 0;
    while !world.live.is_empty() {
        world.free();
    }
    world.allocator.give_back(true);
    let usage = world.allocator.usage();
    assert!(usage.frame_bytes <= promise.heads * PAGE_SIZE as u64, "{usage:?}");
    assert_eq!((usage.zpages, usage.payload_bytes, usage.live_bytes), (0, 0, 0));
    assert_eq!(world.budget.used(), usage.frame_bytes + usage.table_bytes);
    for (class, queue) in CLASSES.into_iter().flat_map(|class| QUEUES.map(|queue| (class, queue))) {
        assert_eq!(world.allocator.coldest(class, queue), None);
    }
    hard
}

fn sparse_frames_can_be_emptied<A: Allocator>(
    promise: Promise,
    new: impl Fn(Frames, Arc<Budget>, Arc<AtomicU64>) -> A,
) {
    let (allocator, budget) = allocator(16 << 20, new);
    let payloads: Vec<Vec<u8>> = (0..400_usize).map(|i| vec![i as u8; 200 + i % 3 * 1000]).collect();
    let handles: Vec<Handle> =
        payloads.iter().zip(0..).map(|(payload, owner)| store(&allocator, owner, payload)).collect();
    for (i, handle) in handles.iter().enumerate() {
        if i % 8 != 0 {
            allocator.free(*handle);
        }
    }
    let (mut tenants, mut moved) = (Tenants::new(), 0);
    while let Some(frame) = allocator.sparse_frame(promise.sparse_bytes_max) {
        allocator.tenants(frame, &mut tenants);
        assert!(!tenants.as_slice().is_empty());
        let mut left = 0;
        for tenant in tenants.as_slice() {
            let Ok(to) = allocator.relocate(tenant.handle) else {
                continue;
            };
            allocator.read(to, false, |zpage| {
                assert_eq!(zpage.payload, payloads[tenant.owner.0 as usize]);
                assert_eq!(u64::from(zpage.check), tenant.owner.0);
            });
            left += 1;
        }
        assert!(left > 0, "a frame that is hopeless is not named");
        moved += left;
        assert!(moved < 200, "the fifty that live do not move again and again");
    }
    assert!(moved > 0);
    allocator.give_back(true);
    let usage = allocator.usage();
    assert_eq!((usage.zpages, usage.payload_bytes), (50, payloads.iter().step_by(8).map(|it| it.len() as u64).sum()));
    assert!(usage.frame_bytes <= promise.sparse_frames_max * PAGE_SIZE as u64, "{usage:?}");
    assert_eq!(budget.used(), usage.frame_bytes + usage.table_bytes);
}

fn no_more_frames_than_the_budget_has_room_for<A: Allocator>(
    promise: Promise,
    new: impl Fn(Frames, Arc<Budget>, Arc<AtomicU64>) -> A,
) {
    let (allocator, budget) = allocator(1 << 20, new);
    let payload = vec![5; PAGE_SIZE];
    let zpage = NewZpage { encoding: Encoding::Raw, check: 0, owner: Owner(0), payload: &payload };
    let mut handles = Vec::new();
    while let Ok(handle) = allocator.store(Class::Ephemeral, Queue::Small, &zpage, Purpose::Admit) {
        handles.push(handle);
    }
    assert!(handles.len() > 200, "{}", handles.len());
    assert!(budget.used() <= 1 << 20);
    assert_eq!(allocator.coldest(Class::Persistent, Queue::Small), None);
    assert_eq!(allocator.coldest(Class::Ephemeral, Queue::Small).unwrap().start, 0);
    handles.into_iter().for_each(|handle| allocator.free(handle));
    allocator.give_back(true);
    let usage = allocator.usage();
    assert_eq!((usage.zpages, usage.live_bytes), (0, 0));
    assert!(usage.frame_bytes <= promise.heads * PAGE_SIZE as u64, "{usage:?}");
    assert_eq!(budget.used(), usage.frame_bytes + usage.table_bytes);
}

fn seed() -> u64 {
    match std::env::var("TMEM_SEED") {
        Ok(seed) => seed.parse().expect("TMEM_SEED is a number"),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    }
}

macro_rules! suite {
    ($name:ident, $allocator:ident, $promise:ident) => {
        mod $name {
            use super::{$allocator, $promise};

            #[test]
            fn random_operations() {
                assert!(super::random_operations(1, 8000, $promise, $allocator::new), "the run was too easy");
            }

            #[test]
            fn a_new_seed_each_time() {
                super::random_operations(super::seed(), 4000, $promise, $allocator::new);
            }

            #[test]
            fn sparse_frames_can_be_emptied() {
                super::sparse_frames_can_be_emptied($promise, $allocator::new);
            }

            #[test]
            fn no_more_frames_than_the_budget_has_room_for() {
                super::no_more_frames_than_the_budget_has_room_for($promise, $allocator::new);
            }
        }
    };
}

suite!(log, Log, LOG);
suite!(zsmalloc, Zsmalloc, ZSMALLOC);
suite!(zbud, Zbud, ZBUD);
suite!(xvmalloc, Xvmalloc, XVMALLOC);
