//! One thread of the stress test: random operations on pages that it alone changes, and a model of them.
//!
//! A page is made from its tag, which names the thread that made it and counts that thread's pages, so whoever finds a
//! page anywhere can check each of its bytes. In the pools that all threads share, each has objects of its own. The first
//! of them is public: others read it, and must not find a page that was gone before they asked.

use std::collections::HashMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tmem::testing::{Random, sample_page};
use tmem::{Key, ObjectId, PAGE_SIZE, Page, PoolId, PoolKind, PoolOptions, Store};

const INDEXES: u64 = 150;
const OBJECTS: u64 = 3;
const PUBLIC: u64 = 0;
const SPACES_MAX: usize = 6;
const OWNER_SHIFT: u32 = 40;

/// The page of a tag. One in eight is same-filled.
fn page_of(tag: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    if tag.is_multiple_of(8) {
        page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&tag.to_le_bytes()));
        return page;
    }
    page = sample_page(&mut Random::new(tag));
    for at in [0, PAGE_SIZE - 8] {
        page[at..at + 8].copy_from_slice(&tag.to_le_bytes());
    }
    page
}

/// The tag of a page that the store gave, every byte of it checked.
fn tag_of(page: &Page) -> u64 {
    let tag = u64::from_le_bytes(page[..8].try_into().expect("eight bytes"));
    assert!(*page == page_of(tag), "a page that nobody put: it begins with {tag:#x}");
    tag
}

/// For each index of a thread's public object in both shared pools: no older tag may be found there any more.
pub struct Floors([[AtomicU64; INDEXES as usize]; 2]);

impl Default for Floors {
    fn default() -> Self {
        Self(std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))))
    }
}

macro_rules! counts {
    ($($name:ident),*) => {
        /// How often each thing happened.
        #[derive(Debug, Default)]
        pub struct Counts { $($name: AtomicU64),* }

        impl Counts {
            /// Whether nothing was left out.
            pub fn are_hard(&self) -> bool {
                [$(&self.$name),*].iter().all(|count| count.load(Ordering::Relaxed) > 0)
            }
        }
    };
}

counts!(
    puts,
    refused,
    frozen,
    hits,
    misses,
    seen,
    flushed,
    rekeyed,
    cloned,
    destroyed,
    liked,
    shared_liked,
    replaced_commons
);

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What all threads share.
pub struct World<'a> {
    pub store: &'a Store,
    /// An ephemeral pool and a persistent one.
    pub pools: [(PoolId, PoolKind); 2],
    /// A pool that anybody may destroy and replace while others use it.
    pub commons: RwLock<PoolId>,
    pub floors: Vec<Floors>,
    pub counts: Counts,
}

impl World<'_> {
    pub fn destroy(self) {
        let commons = self.commons.into_inner().expect("no thread failed");
        for pool in [self.pools[0].0, self.pools[1].0, commons] {
            self.store.destroy_pool(pool);
        }
    }
}

/// A pool as one thread knows it.
struct Space {
    pool: PoolId,
    kind: PoolKind,
    exclusive: bool,
    frozen: bool,
    /// Other threads' pages are in it, too.
    shared: bool,
    tags: HashMap<(u64, u32), u64>,
}

pub struct Worker<'a> {
    world: &'a World<'a>,
    owner: u64,
    random: Random,
    next_tag: u64,
    /// The first two are the pools that all threads share.
    spaces: Vec<Space>,
}

impl<'a> Worker<'a> {
    pub fn new(world: &'a World<'a>, owner: u64, seed: u64) -> Self {
        let space =
            |(pool, kind)| Space { pool, kind, exclusive: false, frozen: false, shared: true, tags: HashMap::new() };
        let random = Random::new(seed ^ (owner + 1) << 56);
        let spaces = world.pools.map(space).into();
        Self { world, owner, random, next_tag: (owner + 1) << OWNER_SHIFT, spaces }
    }

    pub fn step(&mut self) {
        match self.random.below(1000) {
            0..=489 => self.put(),
            490..=669 => self.get(),
            670..=769 => self.get_of_others(),
            770..=849 => self.use_commons(),
            850..=879 => self.flush_page(),
            880..=889 => self.flush_range(),
            890 => self.flush_object(),
            891..=900 => self.rekey(),
            901..=960 => self.put_like(),
            961..=980 => self.put_like_of_others(),
            981..=984 => self.create(),
            985..=987 => self.clone_pool(),
            988..=989 => self.destroy(),
            990..=994 => self.freeze(),
            995 => self.replace_commons(),
            _ => drop(self.world.store.maintain()),
        }
    }

    fn pick(&mut self) -> usize {
        self.random.below(self.spaces.len() as u64) as usize
    }

    fn index(&mut self) -> u32 {
        self.random.below(INDEXES) as u32
    }

    fn place(&mut self) -> (u64, u32) {
        (self.random.below(OBJECTS), self.index())
    }

    fn object(&self, object: u64) -> ObjectId {
        ObjectId([self.owner, 0, object])
    }

    fn key(&self, space: usize, (object, index): (u64, u32)) -> Key {
        Key { pool: self.spaces[space].pool, object: self.object(object), index }
    }

    fn new_tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    /// Tells the others that tags below `floor` are gone from these places.
    fn publish(&self, space: usize, object: u64, indexes: std::ops::Range<u32>, floor: u64) {
        if space < 2 && object == PUBLIC {
            for index in indexes {
                // Release pairs with the Acquire in `get_of_others`: what the store did before is done.
                self.world.floors[self.owner as usize].0[space][index as usize].store(floor, Ordering::Release);
            }
        }
    }

    fn put(&mut self) {
        let (at, place, tag) = (self.pick(), self.place(), self.new_tag());
        let key = self.key(at, place);
        let answer = self.world.store.put(key, &page_of(tag));
        let counts = &self.world.counts;
        let space = &mut self.spaces[at];
        let old = space.tags.remove(&place);
        match answer {
            Ok(put) => {
                assert!(!space.frozen);
                assert!(put.replaced == old.is_some() || space.kind == PoolKind::Ephemeral);
                space.tags.insert(place, tag);
                count(&counts.puts);
            }
            Err(error) => {
                assert_eq!(error.is_frozen(), space.frozen);
                assert!(error.is_frozen() || error.is_no_room(), "{error}");
                count(if space.frozen { &counts.frozen } else { &counts.refused });
                assert!(!self.world.store.contains(key));
            }
        }
        self.publish(at, place.0, place.1..place.1 + 1, tag);
    }

    fn get(&mut self) {
        let (at, place) = (self.pick(), self.place());
        self.check(at, place);
    }

    /// Gets a page and compares it with the model.
    fn check(&mut self, at: usize, place: (u64, u32)) {
        let (key, store) = (self.key(at, place), self.world.store);
        let space = &mut self.spaces[at];
        let mut out = [0x5a; PAGE_SIZE];
        let found = store.get(key, &mut out).unwrap();
        match space.tags.get(&place) {
            Some(tag) if found => assert_eq!(tag_of(&out), *tag),
            Some(tag) => assert_eq!(space.kind, PoolKind::Ephemeral, "page {tag:#x} is lost"),
            None => assert!(!found, "page {:#x} was gone", tag_of(&out)),
        }
        if !found || space.exclusive {
            space.tags.remove(&place);
            assert!(!store.contains(key) && !store.matches(key, &out));
        } else if space.kind == PoolKind::Persistent {
            assert!(store.contains(key) && store.matches(key, &out));
            out[77] ^= 1;
            assert!(!store.matches(key, &out));
        }
        count(if found { &self.world.counts.hits } else { &self.world.counts.misses });
    }

    /// A page of somebody's public object may be new, but not older than what was known before the get.
    fn get_of_others(&mut self) {
        let (space, index) = (self.random.below(2) as usize, self.index());
        let owner = self.random.below(self.world.floors.len() as u64);
        let key = Key { pool: self.world.pools[space].0, object: ObjectId([owner, 0, PUBLIC]), index };
        // Acquire pairs with the Release in `publish`.
        let floor = self.world.floors[owner as usize].0[space][index as usize].load(Ordering::Acquire);
        let mut out = [0; PAGE_SIZE];
        if self.world.store.get(key, &mut out).unwrap() {
            let tag = tag_of(&out);
            assert!(tag >> OWNER_SHIFT == owner + 1 && tag >= floor, "page {tag:#x} where {floor:#x} was known");
            count(&self.world.counts.seen);
        }
    }

    fn flush_page(&mut self) {
        let (at, place) = (self.pick(), self.place());
        let was = self.spaces[at].tags.remove(&place).is_some();
        let flushed = self.world.store.flush_page(self.key(at, place));
        self.assert_flushed(at, was.into(), flushed.into());
        let floor = self.new_tag();
        self.publish(at, place.0, place.1..place.1 + 1, floor);
    }

    fn flush_range(&mut self) {
        let (at, (object, start)) = (self.pick(), self.place());
        let end = (start + self.random.below(40) as u32).min(INDEXES as u32);
        let gone = self.forget(at, object, start..end);
        let flushed = self.world.store.flush_range(self.spaces[at].pool, self.object(object), start..end);
        self.assert_flushed(at, gone, flushed);
        let floor = self.new_tag();
        self.publish(at, object, start..end, floor);
    }

    fn flush_object(&mut self) {
        let (at, object) = (self.pick(), self.random.below(OBJECTS));
        let gone = self.forget(at, object, 0..u32::MAX);
        let flushed = self.world.store.flush_object(self.spaces[at].pool, self.object(object));
        self.assert_flushed(at, gone, flushed);
        let floor = self.new_tag();
        self.publish(at, object, 0..INDEXES as u32, floor);
    }

    fn forget(&mut self, at: usize, object: u64, range: std::ops::Range<u32>) -> u64 {
        let tags = &mut self.spaces[at].tags;
        let before = tags.len();
        tags.retain(|place, _| place.0 != object || !range.contains(&place.1));
        (before - tags.len()) as u64
    }

    fn assert_flushed(&self, at: usize, expected: u64, flushed: u64) {
        let lossy = self.spaces[at].kind == PoolKind::Ephemeral;
        assert!(flushed == expected || (lossy && flushed < expected), "{flushed} flushed of {expected}");
        self.world.counts.flushed.fetch_add(flushed, Ordering::Relaxed);
    }

    /// Moves pages between the objects that nobody else reads.
    fn rekey(&mut self) {
        let (at, start, to_start) = (self.pick(), self.index(), self.index());
        let [from, to] = [0; 2].map(|_| 1 + self.random.below(OBJECTS - 1));
        let len = (self.random.below(80) as u32).min(INDEXES as u32 - start.max(to_start));
        if (from, start) == (to, to_start) {
            return;
        }
        let ids = (self.object(from), self.object(to));
        let moved = self.world.store.rekey_range(self.spaces[at].pool, ids.0, start..start + len, ids.1, to_start);
        let tags = &mut self.spaces[at].tags;
        let taken: Vec<_> = (0..len).map(|offset| tags.remove(&(from, start + offset))).collect();
        for (offset, tag) in (to_start..).zip(&taken) {
            tags.remove(&(to, offset));
            if let Some(tag) = tag {
                tags.insert((to, offset), *tag);
            }
        }
        let expected = taken.iter().flatten().count() as u64;
        assert!(moved == expected || (moved < expected && self.spaces[at].kind == PoolKind::Ephemeral));
        self.world.counts.rekeyed.fetch_add(moved, Ordering::Relaxed);
    }

    /// Gives a page of ours, or nearly one, a second name.
    fn put_like(&mut self) {
        let (from, source) = (self.pick(), self.place());
        let Some(&tag) = self.spaces[from].tags.get(&source) else {
            return;
        };
        let mut page = page_of(tag);
        let equal = self.random.below(4) > 0;
        page[99] ^= u8::from(!equal);
        let like = self.key(from, source);
        if let Some(to) = self.put_like_key(&page, like, tag) {
            assert!(equal && [from, to].iter().all(|&at| self.spaces[at].kind == PoolKind::Persistent));
            count(&self.world.counts.liked);
        }
    }

    /// The same with a page of another thread, which may change it at any moment.
    fn put_like_of_others(&mut self) {
        let owner = self.random.below(self.world.floors.len() as u64);
        let like = Key { pool: self.world.pools[1].0, object: ObjectId([owner, 0, PUBLIC]), index: self.index() };
        let mut page = [0; PAGE_SIZE];
        if self.world.store.get(like, &mut page).unwrap() && self.put_like_key(&page, like, tag_of(&page)).is_some() {
            count(&self.world.counts.shared_liked);
        }
    }

    /// Under a key that nobody else reads. Says in which space.
    fn put_like_key(&mut self, page: &Page, like: Key, tag: u64) -> Option<usize> {
        let (at, object, index) = (self.pick(), 1 + self.random.below(OBJECTS - 1), self.index());
        let key = self.key(at, (object, index));
        self.world.store.put_like(key, page, like).then(|| {
            assert!(!self.spaces[at].frozen);
            self.spaces[at].tags.insert((object, index), tag);
            at
        })
    }

    fn create(&mut self) {
        if self.spaces.len() == SPACES_MAX {
            return;
        }
        let kind = [PoolKind::Ephemeral, PoolKind::Persistent][self.random.below(2) as usize];
        let exclusive = self.random.below(3) == 0;
        let options = PoolOptions::default().exclusive_gets(exclusive);
        let pool = self.world.store.create_pool(kind, options).unwrap();
        self.spaces.push(Space { pool, kind, exclusive, frozen: false, shared: false, tags: HashMap::new() });
    }

    /// What is ours does not change during the call, so that our part of the clone is exact.
    fn clone_pool(&mut self) {
        if self.spaces.len() == SPACES_MAX {
            return;
        }
        let at = self.pick();
        let space = &self.spaces[at];
        match self.world.store.clone_pool(space.pool) {
            Ok(pool) => {
                let tags = match space.kind {
                    PoolKind::Ephemeral => HashMap::new(),
                    PoolKind::Persistent => space.tags.clone(),
                };
                let twin = Space { pool, tags, ..*space };
                self.spaces.push(twin);
                count(&self.world.counts.cloned);
            }
            Err(error) => assert!(error.is_no_room(), "{error}"),
        }
    }

    fn destroy(&mut self) {
        let at = self.pick();
        if at >= 2 {
            self.destroy_space(at);
        }
    }

    fn destroy_space(&mut self, at: usize) {
        let space = self.spaces.swap_remove(at);
        let (pool, expected) = (space.pool, space.tags.len() as u64);
        let flushed = self.world.store.destroy_pool(pool);
        match space.kind {
            PoolKind::Ephemeral => assert!(flushed <= expected),
            PoolKind::Persistent if space.shared => assert!(flushed >= expected),
            PoolKind::Persistent => assert_eq!(flushed, expected),
        }
        self.assert_no_pool(pool);
        count(&self.world.counts.destroyed);
    }

    /// The name of a pool that is gone finds nothing.
    fn assert_no_pool(&mut self, pool: PoolId) {
        let (store, index) = (self.world.store, self.index());
        let key = Key { pool, object: self.object(PUBLIC), index };
        assert!(store.put(key, &[9; PAGE_SIZE]).unwrap_err().is_no_pool());
        assert!(!store.get(key, &mut [0; PAGE_SIZE]).unwrap() && !store.contains(key) && !store.flush_page(key));
        assert!(store.clone_pool(pool).unwrap_err().is_no_pool() && store.pool_stats(pool).is_none());
        assert!(!store.set_frozen(pool, true) && store.destroy_pool(pool) == 0);
    }

    /// Freezes a pool, or thaws the one that is frozen: clones of frozen ones are frozen, too.
    fn freeze(&mut self) {
        let frozen = self.spaces.iter().position(|space| space.frozen);
        let at = frozen.unwrap_or_else(|| self.pick());
        if frozen.is_some() || at >= 2 {
            let space = &mut self.spaces[at];
            space.frozen = !space.frozen;
            assert!(self.world.store.set_frozen(space.pool, space.frozen));
        }
    }

    fn commons(&self) -> PoolId {
        *self.world.commons.read().expect("no thread failed")
    }

    /// Puts into a pool that may be ending, and reads what anybody put there.
    fn use_commons(&mut self) {
        let (pool, index, store) = (self.commons(), self.index(), self.world.store);
        let others = ObjectId([self.random.below(self.world.floors.len() as u64), 0, PUBLIC]);
        let mine = Key { pool, object: self.object(PUBLIC), index };
        match self.random.below(8) {
            0..=3 => {
                let tag = self.new_tag();
                let error = store.put(mine, &page_of(tag)).err();
                assert!(error.is_none_or(|error| error.is_no_room() || error.is_no_pool()));
            }
            4 => drop(store.rekey_range(pool, mine.object, index..index + 20, self.object(1), index)),
            5 => drop(store.flush_range(pool, others, index..index + 20)),
            _ => {
                let mut out = [0; PAGE_SIZE];
                if store.get(Key { object: others, ..mine }, &mut out).unwrap() {
                    tag_of(&out);
                }
            }
        }
    }

    /// Ends the common pool under everybody's hands; what follows is a new one or a clone.
    fn replace_commons(&mut self) {
        let store = self.world.store;
        let old = self.commons();
        let twin = if self.random.below(2) == 0 { store.clone_pool(old).ok() } else { None };
        let new = twin.unwrap_or_else(|| store.create_pool(PoolKind::Persistent, PoolOptions::default()).unwrap());
        let old = std::mem::replace(&mut *self.world.commons.write().expect("no thread failed"), new);
        store.destroy_pool(old);
        self.assert_no_pool(old);
        count(&self.world.counts.replaced_commons);
    }

    /// Compares a few pages of each pool, and its figures.
    pub fn assert_some(&mut self) {
        for at in 0..self.spaces.len() {
            let space = &self.spaces[at];
            let pages = self.world.store.pool_stats(space.pool).expect("the pool lives").pages;
            if !space.shared {
                let expected = space.tags.len() as u64;
                assert!(pages == expected || (space.kind == PoolKind::Ephemeral && pages < expected));
            }
            let place = self.place();
            self.check(at, place);
        }
    }

    /// Compares everything and destroys the pools that are ours.
    pub fn assert_all(mut self) {
        for at in (0..self.spaces.len()).rev() {
            for place in (0..OBJECTS).flat_map(|object| (0..INDEXES as u32).map(move |index| (object, index))) {
                self.check(at, place);
            }
            if at >= 2 {
                self.destroy_space(at);
            }
        }
    }
}
