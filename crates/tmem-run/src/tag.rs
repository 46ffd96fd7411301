//! Tags: by what an address space is known from outside.
//!
//! The kernel does not say which process a userfaultfd serves. So each space has a page whose address we know, which a forked child
//! finds empty, and into which a COPY through the userfaultfd puts what is written here. Whichever process has that in its
//! memory is the one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::sys::{self, PAGE, Region};

/// What the tags of one supervisor have in common and nobody else's have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark([u8; 16]);

impl Mark {
    /// One that nobody had before.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new() -> io::Result<Mark> {
        let mut bytes = [0; 16];
        // SAFETY: the call fills at most the bytes of `bytes`. Up to 256 bytes come in one piece.
        match unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } {
            n if n == bytes.len() as isize => Ok(Mark(bytes)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// What a tag page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Whose it is.
    pub mark: Mark,
    /// The number of the space.
    pub id: u64,
}

impl Tag {
    /// The contents of its page.
    pub fn page(self) -> Box<[u8; PAGE as usize]> {
        let mut page = Box::new([0; PAGE as usize]);
        page[..16].copy_from_slice(&self.mark.0);
        page[16..24].copy_from_slice(&self.id.to_le_bytes());
        page
    }

    /// The tag that process `pid` has at an address, if it has any. What is not there is not faulted in: that would wait for
    /// whoever serves it.
    pub fn of(pid: i32, address: u64) -> Option<Tag> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok()?;
        let mut region = [Region::default()];
        let (1, _) = sys::scan_present(pagemap.as_fd(), address, address + PAGE, &mut region).ok()? else {
            return None;
        };
        let mut bytes = [0; 24];
        sys::read_memory(pid, address, &mut bytes).ok()?;
        let mark = Mark(*bytes.first_chunk().expect("16 of 24"));
        Some(Tag { mark, id: u64::from_le_bytes(*bytes.last_chunk().expect("8 of 24")) })
    }
}
