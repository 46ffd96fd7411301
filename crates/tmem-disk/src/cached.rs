//! Blocks of a slower file or device, of which RAM holds those that are used: what cleancache was.
//!
//! Pages of an ephemeral pool are copies: reads fill them, writes go through to the backing and renew them, memory pressure drops them.
//! Whatever becomes of a copy, the backing has the block. What makes a copy, or makes one wrong, holds the lock of its page while it
//! looks at the backing and at the pool, so a copy is never older than its block; reads that find a copy take no lock.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tmem::{PAGE_SIZE, Page, PoolKind, Store};

use crate::backing::{Backing, Room};
use crate::error::Error;
use crate::export::{Blocks, Held, Hits, show_extents};
use crate::pages::Pages;
use crate::protocol::{Errno, Extent, Refusal};
use crate::stripes::{RUN_PAGES, Stripes};

const PAGE: u64 = PAGE_SIZE as u64;
/// Bytes that are read or written at a time where nobody gave a buffer.
const PIECE: u64 = 64 << 10;

/// The blocks of a disk that is a cache.
pub struct CachedBlocks {
    pages: Pages,
    backing: Backing,
    stripes: Stripes,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl CachedBlocks {
    /// An empty cache of a file or device, which nobody else may change meanwhile.
    pub fn open(store: &Arc<Store>, path: &Path, read_only: bool) -> Result<Self, Error> {
        let backing = Backing::open(path, read_only)?;
        let pages = Pages::new(store, PoolKind::Ephemeral)?;
        Ok(Self { pages, backing, stripes: Stripes::new(), hits: AtomicU64::new(0), misses: AtomicU64::new(0) })
    }

    pub fn size_bytes(&self) -> u64 {
        self.backing.size_bytes
    }

    /// Copies a page out, if there is a copy that can be read.
    fn get(&self, page: u64, out: &mut Page) -> bool {
        let key = self.pages.key(page);
        let found = self.pages.store.get(key, out);
        if found.is_err() {
            // The backing has it.
            self.pages.store.flush_page(key);
        }
        found.unwrap_or(false)
    }

    /// Makes a copy of a page, or at least sees to it that there is no other one. Its lock is held.
    fn put(&self, page: u64, bytes: &Page) {
        let key = self.pages.key(page);
        if self.pages.store.put(key, bytes).is_err() {
            self.pages.store.flush_page(key);
        }
    }

    /// Reads from the backing at least the first byte of `out`, and says how many bytes.
    fn fetch(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let (page, within) = (offset / PAGE, (offset % PAGE) as usize);
        if within > 0 || out.len() < PAGE_SIZE {
            let _held = self.stripes.lock(page);
            let mut whole = [0; PAGE_SIZE];
            let bytes = (self.backing.size_bytes - page * PAGE).min(PAGE) as usize;
            self.backing.read(page * PAGE, &mut whole[..bytes])?;
            self.put(page, &whole);
            self.misses.fetch_add(1, Relaxed);
            let bytes = out.len().min(PAGE_SIZE - within);
            out[..bytes].copy_from_slice(&whole[within..within + bytes]);
            return Ok(bytes);
        }
        let most = (page + (out.len() / PAGE_SIZE) as u64).min(run_end(page));
        let end = self.pages.next_stored(page + 1..most).unwrap_or(most);
        let out = &mut out[..((end - page) * PAGE) as usize];
        let _held = self.stripes.lock_run(page..end);
        self.backing.read(offset, out)?;
        for (page, bytes) in (page..end).zip(out.as_chunks().0) {
            self.put(page, bytes);
        }
        self.misses.fetch_add(end - page, Relaxed);
        Ok(out.len())
    }

    /// Makes the copies of what was written as they should be. The locks are held.
    fn renew(&self, offset: u64, mut bytes: &[u8]) {
        let mut at = offset;
        while !bytes.is_empty() {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let (part, rest) = bytes.split_at(bytes.len().min(PAGE_SIZE - within));
            match <&Page>::try_from(part) {
                Ok(whole) => self.put(page, whole),
                Err(_) => {
                    let mut whole = [0; PAGE_SIZE];
                    if self.get(page, &mut whole) {
                        whole[within..within + part.len()].copy_from_slice(part);
                        self.put(page, &whole);
                    }
                }
            }
            (at, bytes) = (at + part.len() as u64, rest);
        }
    }

    /// Makes whole pages zero without writing zeroes, if the backing can.
    fn zero_pages(&self, pages: Range<u64>, room: Room) -> Result<bool, Refusal> {
        let _held = self.stripes.lock_pages(pages.clone());
        let zeroed = self.backing.zero(pages.start * PAGE, (pages.end - pages.start) * PAGE, room);
        self.pages.flush(pages);
        zeroed.map_err(refusal)
    }

    fn write_zeroes(&self, offset: u64, end: u64) -> Result<(), Refusal> {
        let zeroes = [0; PIECE as usize];
        let mut at = offset;
        while at < end {
            let bytes = (end - at).min(PIECE);
            self.write(at, &zeroes[..bytes as usize])?;
            at += bytes;
        }
        Ok(())
    }
}

impl Blocks for CachedBlocks {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<Held, Refusal> {
        let mut at = offset;
        let mut left = out;
        while !left.is_empty() {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let bytes = left.len().min(PAGE_SIZE - within);
            let part = &mut left[..bytes];
            let found = match <&mut Page>::try_from(&mut *part) {
                Ok(whole) => self.get(page, whole),
                Err(_) => {
                    let mut whole = [0; PAGE_SIZE];
                    let found = self.get(page, &mut whole);
                    part.copy_from_slice(&whole[within..within + bytes]);
                    found
                }
            };
            let bytes = if found {
                self.hits.fetch_add(1, Relaxed);
                bytes
            } else {
                self.fetch(at, left).map_err(refusal)?
            };
            (at, left) = (at + bytes as u64, &mut left[bytes..]);
        }
        Ok(Held::Data)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let mut at = offset;
        let mut left = bytes;
        while !left.is_empty() {
            let page = at / PAGE;
            let (part, rest) = left.split_at(left.len().min((run_end(page) * PAGE - at) as usize));
            let end = at + part.len() as u64;
            let pages = page..end.div_ceil(PAGE);
            let _held = self.stripes.lock_run(pages.clone());
            if let Err(e) = self.backing.write(at, part) {
                // Nobody knows how much of it was written.
                self.pages.flush(pages);
                return Err(refusal(e));
            }
            self.renew(at, part);
            (at, left) = (end, rest);
        }
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, keep_room: bool) -> Result<(), Refusal> {
        let end = offset + bytes;
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        let room = if keep_room { Room::Keep } else { Room::Free };
        if whole.is_empty() || !self.zero_pages(whole.clone(), room)? {
            return self.write_zeroes(offset, end);
        }
        self.write_zeroes(offset, whole.start * PAGE)?;
        self.write_zeroes(whole.end * PAGE, end)
    }

    fn trim(&self, offset: u64, bytes: u64) -> Result<(), Refusal> {
        let whole = offset.div_ceil(PAGE)..(offset + bytes) / PAGE;
        if !whole.is_empty() {
            self.zero_pages(whole, Room::Free)?;
        }
        Ok(())
    }

    fn cache(&self, offset: u64, bytes: u64) -> Result<(), Refusal> {
        let end = offset + bytes;
        let mut piece = [0; PIECE as usize];
        (offset..end).step_by(PIECE as usize).try_for_each(|at| {
            let part = &mut piece[..(end - at).min(PIECE) as usize];
            self.read(at, part).map(drop)
        })
    }

    fn flush(&self) -> Result<(), Refusal> {
        self.backing.sync().map_err(refusal)
    }

    fn status(&self, offset: u64, bytes: u64, extents_max: usize, with: &mut dyn FnMut(Extent)) {
        let look = |at| {
            let hole = self.backing.next(at, false) > at;
            (hole, self.backing.next(at, !hole))
        };
        show_extents(offset, bytes, extents_max, look, with);
    }

    fn is_away(&self, offset: u64) -> bool {
        !self.pages.store.contains(self.pages.key(offset / PAGE))
    }

    fn pages(&self) -> &Pages {
        &self.pages
    }

    fn hits(&self) -> Hits {
        Hits { hits: self.hits.load(Relaxed), misses: self.misses.load(Relaxed) }
    }
}

/// Where the run ends in which a page lies.
fn run_end(page: u64) -> u64 {
    (page / RUN_PAGES + 1) * RUN_PAGES
}

fn refusal(error: io::Error) -> Refusal {
    let errno = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Errno::NoSpace,
        _ => Errno::Io,
    };
    Refusal { errno, why: format!("the backing: {error}").into() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use tmem::Config;
    use tmem::testing::{Random, sample_page};

    const SIZE: usize = 3_000_001;
    const THREADS: usize = 3;

    /// A cache with less room than the file has, packed.
    fn cache(path: &Path, read_only: bool) -> CachedBlocks {
        let store = Arc::new(Store::new(Config::new(1 << 20)).unwrap());
        CachedBlocks::open(&store, path, read_only).unwrap()
    }

    fn contents(random: &mut Random, size: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..size / PAGE_SIZE).flat_map(|_| sample_page(random)).collect();
        bytes.resize(size, 5);
        bytes
    }

    /// Whose byte it is: stretches of odd lengths, one thread after the other.
    fn owner(at: usize) -> usize {
        at / 1009 % THREADS
    }

    /// Changes what is its own, down to the byte, so that threads share pages, and reads everything. Gives back what its bytes must be.
    fn work(cache: &CachedBlocks, me: usize, mut shadow: Vec<u8>) -> Vec<u8> {
        let mut random = Random::new(7 + me as u64);
        for step in 0..12_000 {
            let at = random.below(shadow.len() as u64) as usize;
            let mine = owner(at) == me;
            let end = if mine { (at / 1009 + 1) * 1009 } else { at + 30_000 }.min(shadow.len());
            let bytes = (random.below(20_000) as usize + 1).min(end - at);
            let part = at..at + bytes;
            match random.below(4) {
                0 if mine => {
                    cache.zero(at as u64, bytes as u64, step % 2 == 0).unwrap();
                    shadow[part].fill(0);
                }
                1 if mine => {
                    let page = sample_page(&mut random);
                    cache.write(at as u64, &page[..bytes]).unwrap();
                    shadow[part].copy_from_slice(&page[..bytes]);
                }
                _ => {
                    let mut out = vec![9; bytes];
                    cache.read(at as u64, &mut out).unwrap();
                    let same = |at: usize| owner(at) != me || out[at - part.start] == shadow[at];
                    assert!(part.clone().all(same), "step {step}: {bytes} bytes at {at}");
                }
            }
        }
        shadow
    }

    /// Works with some threads on a file of so many bytes, while `beside` goes on, and looks at what they read and what the file has.
    fn race(size: usize, beside: impl Fn(&CachedBlocks) + Sync) -> CachedBlocks {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let start = contents(&mut Random::new(1), size);
        fs::write(&path, &start).unwrap();
        let cache = cache(&path, false);
        let done = AtomicBool::new(false);
        let shadows: Vec<Vec<u8>> = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    beside(&cache);
                }
            });
            let threads: [_; THREADS] = std::array::from_fn(|me| {
                let (cache, start) = (&cache, start.clone());
                scope.spawn(move || work(cache, me, start))
            });
            let shadows = threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>();
            done.store(true, Relaxed);
            shadows.into_iter().map(Result::unwrap).collect()
        });
        let file = fs::read(&path).unwrap();
        let wrong = (0..size).find(|&at| file[at] != shadows[owner(at)][at]);
        assert_eq!((file.len(), wrong), (size, None));
        cache
    }

    #[test]
    fn what_is_read_was_written_last_and_the_file_has_it() {
        let cache = race(SIZE, |_| std::thread::park_timeout(std::time::Duration::from_millis(1)));
        let Hits { hits, misses } = cache.hits();
        let dropped = cache.pages.store.stats().evictions;
        assert!(
            hits > 1000 && misses > 1000 && dropped > 100,
            "too easy: {hits} hits, {misses} misses, {dropped} dropped"
        );
    }

    /// Copies that vanish all the time are made anew while their pages are written.
    #[test]
    fn a_copy_is_never_older_than_its_block() {
        let cache = race(40_001, |cache| cache.pages.flush(0..10));
        let Hits { hits, misses } = cache.hits();
        assert!(hits > 1000 && misses > 100, "too easy: {hits} hits, {misses} misses");
    }

    #[test]
    fn what_is_read_again_is_not_read_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, contents(&mut Random::new(2), SIZE)).unwrap();
        let cache = cache(&path, true);
        let mut out = vec![0; 300_000];
        assert!(cache.is_away(5000));
        cache.cache(5000, 300_000).unwrap();
        assert!(!cache.is_away(5000));
        let Hits { misses, .. } = cache.hits();
        for _ in 0..3 {
            cache.read(5000, &mut out).unwrap();
        }
        assert_eq!(cache.hits().misses, misses);
        assert!(out == fs::read(&path).unwrap()[5000..305_000]);
    }

    #[test]
    fn what_the_backing_has_lost_is_an_error_and_the_rest_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, contents(&mut Random::new(3), SIZE)).unwrap();
        let cache = cache(&path, false);
        let mut out = vec![0; 100_000];
        cache.read(0, &mut out).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(50_000).unwrap();
        // What there is a copy of is served.
        cache.read(60_000, &mut out[..4096]).unwrap();
        assert_eq!(cache.read(200_000, &mut out).unwrap_err().errno, Errno::Io);
        cache.read(0, &mut out[..40_000]).unwrap();
    }

    #[test]
    fn holes_are_told_and_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let cache = cache(&path, false);
        cache.write(64 << 10, &[7; 64 << 10]).unwrap();
        let extents = |cache: &CachedBlocks| {
            let mut all = Vec::new();
            cache.status(0, 1 << 20, 100, &mut |extent| all.push((extent.bytes, extent.hole)));
            all
        };
        assert_eq!(extents(&cache), [(64 << 10, true), (64 << 10, false), (896 << 10, true)]);
        cache.trim(64 << 10, 32 << 10).unwrap();
        assert_eq!(extents(&cache), [(96 << 10, true), (32 << 10, false), (896 << 10, true)]);
        cache.zero(0, 1 << 20, true).unwrap();
        let mut out = vec![1; 1 << 20];
        cache.read(0, &mut out).unwrap();
        assert!(out.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_file_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let store = Arc::new(Store::new(Config::new(1 << 20)).unwrap());
        let open = |read_only| CachedBlocks::open(&store, &path, read_only).map(drop).map_err(|e| e.to_string());
        assert!(open(false).unwrap_err().contains("No such file"));
        fs::write(&path, "").unwrap();
        assert!(open(false).unwrap_err().contains("empty"));
        fs::write(&path, "x").unwrap();
        let first = CachedBlocks::open(&store, &path, true).unwrap();
        assert!(open(true).is_ok() && open(false).unwrap_err().contains("another process"));
        drop(first);
        open(false).unwrap();
        let other = CachedBlocks::open(&store, folder.path(), true).map(drop).unwrap_err().to_string();
        assert!(other.contains("neither a file"), "{other}");
    }
}
