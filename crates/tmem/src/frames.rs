//! Frames: one large reserved range of addresses, of which single frames are filled and given back.
//!
//! The range is mapped once, readable and writable, without claiming memory (`MAP_NORESERVE`): a frame comes into
//! being when it is first written and goes back to the system with `MADV_DONTNEED`. It is kept out of core dumps and
//! out of transparent huge pages, which would make one small page cost two megabytes.
//!
//! Who may touch what is not decided here. The invariant, upheld by `alloc` and `store`: the bytes of a zpage are
//! written once, before any word of the index names them, and are not touched again until no word names them and
//! no reader holds the lock of such a word. Only the header words of a zpage change while it lives, and they are
//! atomics.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use crate::error::{Error, ErrorKind};
use crate::page::PAGE_SIZE;

/// What a processor loads at a time.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const CACHE_LINE: usize = 64;

/// The reserved range. All offsets are in bytes from its start.
pub(crate) struct Frames {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: `Frames` is an address and a length; the memory behind them belongs to the process, not to a thread. Access
// to it follows the invariant in the module's documentation, whichever thread it comes from.
unsafe impl Send for Frames {}
// SAFETY: as for `Send`.
unsafe impl Sync for Frames {}

impl Frames {
    /// Reserves up to `bytes` of address space, or what the system lets us have, at least `min`.
    ///
    /// # Errors
    /// When not even `min` bytes can be reserved.
    pub(crate) fn reserve(bytes: usize, min: usize) -> Result<Self, Error> {
        let mut wanted = bytes.max(min);
        loop {
            match map(wanted) {
                Ok(base) => {
                    let frames = Self { base, bytes: wanted };
                    frames.advise();
                    return Ok(frames);
                }
                Err(_) if wanted > min => wanted = (wanted / 2).max(min),
                Err(source) => {
                    let what = "address space for the frames";
                    return Err(ErrorKind::System { what, source }.into());
                }
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn advise(&self) {
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTDUMP] {
            // Both are refinements: a kernel that lacks one of them serves us all the same.
            // SAFETY: the range is our own mapping, and neither advice changes its content.
            unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, advice) };
        }
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.bytes),
            "{len} bytes at {offset} lie outside of the frames"
        );
        // SAFETY: the assertion keeps the address inside of the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Asks for the cache lines of a range before they are needed, all at once: read one after the other, those of a cold zpage
    /// take a third longer. What lies behind the end is left out. Nothing is read, so that it does not matter who writes there.
    pub(crate) fn prefetch(&self, offset: usize, len: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        for line in (offset..(offset + len).min(self.bytes)).step_by(CACHE_LINE) {
            // SAFETY: in bounds; and a prefetch neither reads nor faults.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(self.at(line, 1).cast()) };
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = (offset, len);
    }

    /// The bytes of a zpage.
    ///
    /// # Safety
    /// The range must hold zpage bytes that stay as they are while the slice lives: the caller holds a lock of the
    /// word that names them, or the allocator's while they cannot be freed.
    pub(crate) unsafe fn slice(&self, offset: usize, len: usize) -> &[u8] {
        let start = self.at(offset, len);
        // SAFETY: in bounds by `at`, initialised because fresh frames read as zero, unchanged by the caller's promise.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Writes the bytes of a new zpage.
    ///
    /// # Safety
    /// The range must belong to no zpage that a word names, and to the caller alone.
    pub(crate) unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        let target = self.at(offset, bytes.len());
        // SAFETY: in bounds by `at`; nobody else touches the range by the caller's promise, so nothing overlaps.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// The 32-bit word at `offset`, which must be a multiple of four.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "unaligned word at {offset}");
        let word = self.at(offset, 4);
        // SAFETY: in bounds and aligned; header words are only ever accessed as atomics.
        unsafe { AtomicU32::from_ptr(word.cast()) }
    }

    /// Brings `count` frames into memory at once, which takes a third of the time of as many page faults. A kernel that
    /// cannot do it (before 5.14) leaves it to the faults.
    pub(crate) fn populate(&self, first: usize, count: usize) {
        let bytes = count * PAGE_SIZE;
        let start = self.at(first * PAGE_SIZE, bytes);
        // SAFETY: in bounds by `at`; populating changes no content.
        unsafe { libc::madvise(start.cast(), bytes, libc::MADV_POPULATE_WRITE) };
    }

    /// Gives `count` frames back to the system, starting with frame number `first`; they read as zero from now on.
    ///
    /// # Safety
    /// No zpage that a word names may lie in any of these frames.
    pub(crate) unsafe fn release(&self, first: usize, count: usize) {
        let bytes = count * PAGE_SIZE;
        let start = self.at(first * PAGE_SIZE, bytes);
        // SAFETY: in bounds by `at`, page-aligned because the mapping is; nobody needs the content by the caller's promise.
        let mut answer = unsafe { libc::madvise(start.cast(), bytes, libc::MADV_DONTNEED) };
        if answer != 0 {
            // The program has locked its memory (`mlockall`), which takes another word (since Linux 5.18).
            // SAFETY: as above.
            answer = unsafe { libc::madvise(start.cast(), bytes, libc::MADV_DONTNEED_LOCKED) };
        }
        // On our own private mapping one of them has no way to fail, and whoever comes next relies on zeroes.
        assert_eq!(answer, 0, "frames cannot be given back: {}", io::Error::last_os_error());
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and `&mut self` says that nobody borrows from it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice disturbs no other memory.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(base.cast()).expect("a mapping without MAP_FIXED does not start at zero"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_frame_reads_as_zero() {
        let frames = Frames::reserve(1 << 30, 1 << 20).unwrap();
        // SAFETY: the test is alone with the range.
        unsafe { frames.write(PAGE_SIZE, b"frame") };
        // SAFETY: as above.
        assert_eq!(unsafe { frames.slice(PAGE_SIZE, 5) }, b"frame");
        // SAFETY: as above.
        unsafe { frames.release(1, 1) };
        // SAFETY: as above.
        assert_eq!(unsafe { frames.slice(PAGE_SIZE, 5) }, [0; 5]);
    }

    #[test]
    fn a_locked_frame_is_given_back_as_well() {
        let frames = Frames::reserve(1 << 20, 1 << 20).unwrap();
        // SAFETY: the test is alone with the range.
        unsafe { frames.write(PAGE_SIZE, b"frame") };
        // SAFETY: locking changes no content.
        let answer = unsafe { libc::mlock(frames.at(PAGE_SIZE, PAGE_SIZE).cast(), PAGE_SIZE) };
        assert_eq!(answer, 0, "{}", io::Error::last_os_error());
        // SAFETY: the test is alone with the range.
        unsafe { frames.release(1, 1) };
        // SAFETY: as above.
        assert_eq!(unsafe { frames.slice(PAGE_SIZE, 5) }, [0; 5]);
    }

    #[test]
    #[should_panic(expected = "outside of the frames")]
    fn offsets_are_checked() {
        let frames = Frames::reserve(1 << 20, 1 << 20).unwrap();
        frames.word(1 << 20);
    }
}
