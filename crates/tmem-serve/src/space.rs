//! All keys: shards by hash, each under a lock of its own, over one store.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use tmem::{PAGE_SIZE, PoolId, PoolKind, PoolOptions, Store};

use crate::Error;
use crate::pressure::Machine;
use crate::shard::{Around, Full, Ground, Name, Shard};

/// Locks: more than there will be threads.
const SHARDS: usize = 64;
/// Shards that are swept at a time: a sweep looks at every key.
const SWEPT: usize = 4;
/// The least RAM that is good for something.
pub const RAM_BYTES_MIN: u64 = 16 << 20;
/// Frames that the store takes back beyond what it is asked for, to have room to pack into.
const SPARE_FRAMES: u64 = 16;
/// Bits of a hash in a cursor.
const CURSOR_BITS: u32 = 48;

/// All keys.
pub struct Space {
    store: Store,
    pool: PoolId,
    shards: Box<[Mutex<Shard>]>,
    seed: [u8; 16],
    /// What everything may take.
    ram_bytes: AtomicU64,
    /// What the machine has for it at this moment, however much that is.
    lent_bytes: AtomicU64,
    /// What the program takes beside tables, buffers and the store.
    fixed_bytes: u64,
    /// Bytes of tables.
    tables: AtomicU64,
    /// Bytes of buffers of connections.
    pub buffers: AtomicU64,
    /// Values may be dropped when there is no room: allkeys-*.
    pub drops: bool,
    /// The shard that is swept next.
    next_swept: AtomicUsize,
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Around for Space {
    fn make_room(&self, bytes: u64) -> Result<(), Full> {
        self.tables.fetch_add(bytes, Relaxed);
        let room = self.settle();
        if room.is_err() {
            self.tables.fetch_sub(bytes, Relaxed);
        }
        room
    }

    fn recount(&self, before: u64, after: u64) {
        if after > before {
            self.tables.fetch_add(after - before, Relaxed);
        } else {
            self.tables.fetch_sub(before - after, Relaxed);
        }
    }

    fn hash(&self, db: u8, key: &[u8]) -> u128 {
        let mut hasher = SipHasher13::new_with_key(&self.seed);
        hasher.write(&[db]);
        hasher.write(key);
        hasher.finish128().as_u128()
    }
}

impl Space {
    /// An empty one.
    pub fn new(store: Store, ram_bytes: u64, fixed_bytes: u64, drops: bool) -> Result<Self, Error> {
        let kind = if drops { PoolKind::Ephemeral } else { PoolKind::Persistent };
        let pool =
            store.create_pool(kind, PoolOptions::default()).map_err(|e| Error(format!("no room for keys: {e}")))?;
        let mut seed = [0; 16];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error(format!("the system has no random numbers: {e}")))?;
        let space = Self {
            store,
            pool,
            shards: (0..SHARDS).map(|number| Mutex::new(Shard::new(number))).collect(),
            seed,
            ram_bytes: AtomicU64::new(ram_bytes),
            lent_bytes: AtomicU64::new(u64::MAX),
            fixed_bytes,
            tables: AtomicU64::new(0),
            buffers: AtomicU64::new(0),
            drops,
            next_swept: AtomicUsize::new(0),
        };
        space.count_tables();
        space.settle().map_err(|_| Error("--ram is too little".to_owned()))?;
        Ok(space)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What everything may take.
    pub fn ram_bytes(&self) -> u64 {
        self.ram_bytes.load(Relaxed)
    }

    /// Changes what everything may take. If less is taken away than asked for, nothing changes.
    pub fn set_ram_bytes(&self, bytes: u64) -> Result<(), Full> {
        let before = self.ram_bytes.swap(bytes, Relaxed);
        let room = if bytes < RAM_BYTES_MIN { Err(Full) } else { self.settle() };
        if room.is_err() {
            self.ram_bytes.store(before, Relaxed);
            let _ = self.settle();
        }
        room
    }

    /// Takes what the machine has at this moment into account.
    pub fn note_machine(&self, machine: Machine) {
        // Pages pack to a half, or else there is less to be had next time.
        let spare = if self.drops { u64::MAX } else { self.store.stats().unpacked_bytes / 2 };
        self.lent_bytes.store(machine.lends(self.used_bytes(), spare), Relaxed);
    }

    /// Bytes of what everything may take that the machine does not have at this moment.
    pub fn withheld_bytes(&self) -> u64 {
        self.ram_bytes().saturating_sub(self.lent_bytes.load(Relaxed))
    }

    /// What everything takes at present.
    pub fn used_bytes(&self) -> u64 {
        self.store.memory_bytes() + self.beside_store()
    }

    /// Of that, tables and pages that are being filled.
    pub fn table_bytes(&self) -> u64 {
        self.tables.load(Relaxed)
    }

    fn beside_store(&self) -> u64 {
        self.fixed_bytes + self.table_bytes() + self.buffers.load(Relaxed)
    }

    /// Gives the store what is left by everything else; makes it smaller for that, if it can.
    pub fn settle(&self) -> Result<(), Full> {
        let allowed = self.ram_bytes().min(self.lent_bytes.load(Relaxed));
        let left = allowed.saturating_sub(self.beside_store());
        let lacking = || self.store.memory_bytes().saturating_sub(left);
        if lacking() > 0 {
            // What must stay can be packed at least.
            self.store.reclaim(lacking().div_ceil(PAGE_SIZE as u64) + SPARE_FRAMES, None);
        }
        if lacking() > 0 {
            return Err(Full);
        }
        self.store.set_budget(left);
        Ok(())
    }

    fn count_tables(&self) {
        self.shards.iter().for_each(|shard| lock(shard).recount(self));
    }

    fn ground(&self, now: u64) -> Ground<'_> {
        Ground { store: &self.store, pool: self.pool, drops: self.drops, around: self, now }
    }

    /// How the table knows a key.
    pub fn name(&self, db: u8, key: &[u8]) -> Name {
        Name { hash: self.hash(db, key), db }
    }

    /// Locks what a key lies in.
    pub fn lock(&self, name: Name, now: u64) -> Locked<'_> {
        let number = shard_of(&name);
        Locked { space: self, guards: Guards::One(number, lock(&self.shards[number])), now }
    }

    /// Locks what these keys lie in, in order, so that nobody waits for ever.
    pub fn lock_many(&self, names: impl Iterator<Item = Name>, now: u64) -> Locked<'_> {
        let mut numbers: Vec<usize> = names.map(|name| shard_of(&name)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let guards = numbers.into_iter().map(|number| (number, lock(&self.shards[number]))).collect();
        Locked { space: self, guards: Guards::Many(guards), now }
    }

    /// Locks everything.
    pub fn lock_all(&self) -> Locked<'_> {
        let guards = self.shards.iter().enumerate().map(|(number, shard)| (number, lock(shard))).collect();
        Locked { space: self, guards: Guards::Many(guards), now: now() }
    }

    /// What is to be done now and then: in some shards, what has expired or was dropped is forgotten; and tables are counted.
    pub fn keep_up(&self) {
        let (evictions, ground) = (self.store.stats().evictions, self.ground(now()));
        for _ in 0..SWEPT {
            let number = self.next_swept.fetch_add(1, Relaxed) % SHARDS;
            lock(&self.shards[number]).sweep(ground, evictions);
        }
        self.count_tables();
        if self.settle().is_err() {
            // What it has it keeps, but it gets no more; the next who wants some is told.
            self.store.set_budget(self.store.memory_bytes());
        }
    }
}

fn shard_of(name: &Name) -> usize {
    name.hash as usize % SHARDS
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Some shards, for as long as a command or a transaction takes.
pub struct Locked<'a> {
    space: &'a Space,
    guards: Guards<'a>,
    now: u64,
}

/// What nearly all commands need is one.
enum Guards<'a> {
    One(usize, MutexGuard<'a, Shard>),
    /// In the order of their numbers.
    Many(Vec<(usize, MutexGuard<'a, Shard>)>),
}

impl<'a> Guards<'a> {
    fn many(&mut self) -> &mut [(usize, MutexGuard<'a, Shard>)] {
        match self {
            Self::One(..) => &mut [],
            Self::Many(guards) => guards,
        }
    }
}

impl Locked<'_> {
    /// Milliseconds since 1970, the same for all of it.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The shard of a key, which was named when it was locked, and what it needs.
    pub fn of(&mut self, name: Name) -> (&mut Shard, Ground<'_>) {
        let wanted = shard_of(&name);
        let guard = match &mut self.guards {
            Guards::One(number, guard) => Some(guard).filter(|_| *number == wanted),
            Guards::Many(guards) => {
                let at = guards.binary_search_by_key(&wanted, |(number, _)| *number).ok();
                at.map(|at| &mut guards[at].1)
            }
        };
        (guard.expect("its shard is locked"), self.space.ground(self.now))
    }

    /// All shards that are locked.
    pub fn each(&mut self, mut with: impl FnMut(&mut Shard, Ground<'_>)) {
        let ground = self.space.ground(self.now);
        self.guards.many().iter_mut().for_each(|(_, guard)| with(guard, ground));
    }

    /// Shows keys of a database from a cursor on, and says where to go on; 0 is the beginning and the end. Everything is locked.
    pub fn scan(&mut self, db: u8, cursor: u64, count: usize, mut with: impl FnMut(Vec<u8>)) -> u64 {
        let (first, mut from) = ((cursor >> CURSOR_BITS) as usize, cursor & ((1 << CURSOR_BITS) - 1));
        let ground = self.space.ground(self.now);
        let mut shown = 0;
        for (number, shard) in self.guards.many().iter_mut().skip(first) {
            if shown >= count {
                return (*number as u64) << CURSOR_BITS;
            }
            let left = count - shown;
            let mut show = |key| {
                shown += 1;
                with(key);
            };
            if let Some(next) = shard.scan(ground, db, from, left, &mut show) {
                return (*number as u64) << CURSOR_BITS | next;
            }
            from = 0;
        }
        0
    }

    /// Some key of a database. Everything is locked.
    pub fn any(&mut self, db: u8) -> Option<Vec<u8>> {
        let mut random = [0; 16];
        // Any key will do if there are no random numbers.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
        let random = u128::from_le_bytes(random);
        let ground = self.space.ground(self.now);
        let guards = self.guards.many();
        let (before, after) = guards.split_at_mut(random as usize % guards.len().max(1));
        after.iter_mut().chain(before).find_map(|(_, shard)| shard.any(ground, db, (random >> 80) as u64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::shard::Expiry;
    use tmem::Config;
    use tmem::testing::{Random, sample_pages};

    fn space(ram_bytes: u64, drops: bool) -> Space {
        let store = Store::new(Config::new(ram_bytes).packs_late(true)).unwrap();
        Space::new(store, ram_bytes, 0, drops).unwrap()
    }

    fn value(random: &mut Random) -> Vec<u8> {
        let bytes = match random.below(10) {
            0 => random.below(20_000),
            1 => 4000 + random.below(200),
            _ => random.below(500),
        };
        if random.below(2) == 0 {
            return (0..bytes).map(|_| random.number() as u8).collect();
        }
        sample_pages(bytes as usize / PAGE_SIZE + 1, random.number()).flatten().take(bytes as usize).collect()
    }

    fn set(space: &Space, db: u8, key: &[u8], value: &[u8], expiry: Expiry) -> Result<(), Full> {
        let name = space.name(db, key);
        let mut locked = space.lock(name, now());
        let (shard, ground) = locked.of(name);
        shard.write(ground, name, key, value, expiry)
    }

    fn get(space: &Space, db: u8, key: &[u8]) -> Option<Vec<u8>> {
        let name = space.name(db, key);
        let mut locked = space.lock(name, now());
        let (shard, ground) = locked.of(name);
        let mut value = Vec::new();
        shard.read(ground, name, &mut value, |bytes, _| 0..bytes).then_some(value)
    }

    fn remove(space: &Space, db: u8, key: &[u8]) -> bool {
        let name = space.name(db, key);
        let mut locked = space.lock(name, now());
        let (shard, ground) = locked.of(name);
        shard.remove(ground, name)
    }

    fn expiry(space: &Space, db: u8, key: &[u8]) -> Option<u64> {
        let name = space.name(db, key);
        let mut locked = space.lock(name, now());
        let (shard, ground) = locked.of(name);
        shard.expiry(ground, name)
    }

    /// Keys and values of all sizes come, change and go in three databases, through flushes and sweeps, in little RAM: each read is
    /// what was written last, and expires when it was said; what was refused is as it was before, and what may be dropped is whole or
    /// gone.
    fn against_a_map(drops: bool) {
        let space = space(4 << 20, drops);
        let mut oracle: HashMap<(u8, Vec<u8>), (Vec<u8>, u64)> = HashMap::new();
        let mut random = Random::new(3);
        let later = now() + 3_600_000;
        let (mut refused, mut gone, mut found) = (0, 0, 0);
        for step in 0..60_000 {
            let db = random.below(3) as u8;
            let key = match random.below(50) {
                0 => Vec::new(),
                1 => vec![b'k'; 5000 + random.below(3) as usize],
                _ => format!("key:{}", random.below(4000)).into_bytes(),
            };
            match random.below(10) {
                0..4 => {
                    let value = value(&mut random);
                    let before = expiry(&space, db, &key).unwrap_or(0);
                    let (how, at) = match random.below(4) {
                        0 => (Expiry::Keep, before),
                        1 => (Expiry::At(later + step), later + step),
                        _ => (Expiry::At(0), 0),
                    };
                    match set(&space, db, &key, &value, how) {
                        Ok(()) => drop(oracle.insert((db, key), (value, at))),
                        Err(Full) => refused += 1,
                    }
                }
                4 => {
                    let was = oracle.remove(&(db, key.clone())).is_some();
                    let removed = remove(&space, db, &key);
                    assert!(removed == was || (drops && !removed), "step {step}");
                }
                5 if step % 2000 == 0 => {
                    space.lock_all().each(|shard, ground| shard.flush(ground, Some(db)));
                    oracle.retain(|(of, _), _| *of != db);
                }
                6 if step % 100 == 0 => space.keep_up(),
                7 => {
                    // What expires at once is gone.
                    let at = [1, 0, later + step][random.below(3) as usize];
                    let name = space.name(db, &key);
                    let mut locked = space.lock(name, now());
                    let (shard, ground) = locked.of(name);
                    match shard.set_expiry(ground, name, at) {
                        Ok(true) if at == 1 => drop(oracle.remove(&(db, key))),
                        Ok(true) => drop(oracle.get_mut(&(db, key)).map(|(_, expires)| *expires = at)),
                        Ok(false) | Err(Full) => {}
                    }
                }
                _ => match (get(&space, db, &key), oracle.get(&(db, key.clone()))) {
                    (Some(value), wanted) => {
                        let same = wanted.is_some_and(|(wanted, _)| *wanted == value);
                        assert!(same, "step {step}: {db} {key:?} {} bytes, {wanted:?}", value.len());
                        assert_eq!(expiry(&space, db, &key), wanted.map(|(_, at)| *at), "step {step}: {db} {key:?}");
                        found += 1;
                    }
                    (None, None) => {}
                    (None, Some(_)) => {
                        assert!(drops, "step {step}: lost");
                        oracle.remove(&(db, key));
                        gone += 1;
                    }
                },
            }
            assert!(space.used_bytes() <= 4 << 20, "step {step}: {} bytes", space.used_bytes());
        }
        assert!(
            found > 2000 && if drops { gone > 100 } else { refused > 100 },
            "{found} found, {gone} gone, {refused} refused"
        );
        if !drops {
            // All keys are shown, and no others.
            let mut shown = Vec::new();
            for db in 0..3 {
                let mut cursor = 0;
                loop {
                    let before = shown.len();
                    cursor = space.lock_all().scan(db, cursor, 7, |key| shown.push((db, key)));
                    assert!(shown.len() - before < 14, "{} at once", shown.len() - before);
                    if cursor == 0 {
                        break;
                    }
                }
                let count = |expiring: bool| {
                    let is_one = |(of, at): (u8, u64)| of == db && (!expiring || at != 0);
                    oracle.iter().filter(|((of, _), (_, at))| is_one((*of, *at))).count() as u32
                };
                let (mut keys, mut expiring) = (0, 0);
                space.lock_all().each(|shard, _| {
                    let (of_shard, expire) = shard.keys(db);
                    (keys, expiring) = (keys + of_shard, expiring + expire);
                });
                assert_eq!((keys, expiring), (count(false), count(true)));
            }
            let mut wanted: Vec<_> = oracle.into_keys().collect();
            shown.sort();
            wanted.sort();
            assert_eq!(shown, wanted);
        }
        space.lock_all().each(|shard, ground| shard.flush(ground, None));
        assert_eq!(space.store().stats().pages, 0, "pages are left");
        let tables = space.table_bytes();
        space.count_tables();
        assert_eq!(space.table_bytes(), tables, "what tables take is counted as it changes");
    }

    #[test]
    fn what_is_kept_is_what_was_written_last() {
        against_a_map(false);
    }

    #[test]
    fn what_may_be_dropped_is_whole_or_gone() {
        against_a_map(true);
    }

    /// A machine that is short of memory lends nothing more; what can be dropped is given back.
    #[test]
    fn a_machine_that_is_short_lends_nothing_more() {
        const GIB: u64 = 1 << 30;
        let machine = |available_bytes| Machine { available_bytes, reserve_bytes: GIB };
        for drops in [false, true] {
            let space = space(64 << 20, drops);
            let mut random = Random::new(4);
            let mut write = |from: u32, to: u32| {
                let value =
                    |random: &mut Random| (0..500).flat_map(|_| random.number().to_le_bytes()).collect::<Vec<_>>();
                (from..to)
                    .filter(|key| set(&space, 0, &key.to_le_bytes(), &value(&mut random), Expiry::At(0)).is_ok())
                    .count()
            };
            assert_eq!(write(0, 4000), 4000);
            let used = space.used_bytes();
            space.note_machine(machine(GIB - (4 << 20)));
            space.keep_up();
            let written = write(4000, 6000);
            if drops {
                assert!(written == 2000 && space.used_bytes() <= used - (3 << 20), "{written} {}", space.used_bytes());
            } else {
                assert!(written < 400 && space.used_bytes() <= used + (2 << 20), "{written} {}", space.used_bytes());
                assert!((0..4000_u32).all(|key| get(&space, 0, &key.to_le_bytes()).is_some()));
            }
            assert!(space.withheld_bytes() > 0);
            space.note_machine(machine(8 * GIB));
            space.keep_up();
            assert_eq!((space.withheld_bytes(), write(6000, 7000)), (0, 1000));
        }
    }

    /// One put, and no pages more or less, as long as only the first page changes; and the key behind it stays right.
    #[test]
    fn a_large_value_is_written_over_where_it_lies() {
        let space = space(16 << 20, false);
        let mut random = Random::new(5);
        let (mut pages, mut puts) = (0, 0);
        for (bytes, in_place) in [
            (4096, false),
            (4096, true),
            (4096, true),
            (3000, false),
            (3500, true),
            (4000, true),
            (4090, false),
            (4090, true),
            (8192, false),
            (8192, false),
        ] {
            let value: Vec<u8> = (0..bytes).map(|_| random.number() as u8).collect();
            set(&space, 0, b"a key of some length", &value, Expiry::At(0)).unwrap();
            assert_eq!(get(&space, 0, b"a key of some length"), Some(value));
            let stats = space.store().stats();
            if in_place {
                assert_eq!((stats.pages, stats.puts), (pages, puts + 1), "{bytes} bytes");
            }
            (pages, puts) = (stats.pages, stats.puts);
            assert_eq!(pages, (bytes as u64 + 24).div_ceil(4096), "{bytes} bytes");
            let mut shown = Vec::new();
            space.lock_all().scan(0, 0, usize::MAX, |key| shown.push(key));
            assert_eq!(shown, [b"a key of some length"]);
        }
    }

    /// Pages that have become sparse are taken apart: dead values do not fill the RAM.
    #[test]
    fn overwriting_takes_no_more_room() {
        let space = space(16 << 20, false);
        let mut random = Random::new(9);
        for round in 0..8 {
            let mut live = 0;
            for index in 0..60_000 {
                let value = format!("{{\"round\":{round},\"number\":{},\"text\":\"some text\"}}", random.number());
                // At random, so that each page dies bit by bit.
                let key = format!("key:{}", if round == 0 { index } else { random.below(60_000) });
                set(&space, 0, key.as_bytes(), value.as_bytes(), Expiry::At(0)).unwrap();
                live += key.len() + value.len();
            }
            let taken = space.store().stats().original_bytes as usize;
            assert!(taken * 2 < live * 3, "round {round}: {taken} bytes of pages for {live}");
        }
    }

    #[test]
    fn threads_share_keys() {
        let space = space(16 << 20, false);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let space = &space;
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    for step in 0..5000_u64 {
                        let key = format!("own:{thread}:{}", random.below(50));
                        let value = vec![thread as u8; 1 + (step as usize * 7) % 6000];
                        set(space, 0, key.as_bytes(), &value, Expiry::At(0)).unwrap();
                        assert_eq!(get(space, 0, key.as_bytes()), Some(value));
                        let shared = format!("shared:{}", random.below(20));
                        let value = vec![thread as u8; 3000];
                        set(space, 0, shared.as_bytes(), &value, Expiry::At(0)).unwrap();
                        let got = get(space, 0, shared.as_bytes()).unwrap();
                        assert!(got.len() == 3000 && got.iter().all(|byte| *byte == got[0]));
                    }
                });
            }
        });
    }
}
