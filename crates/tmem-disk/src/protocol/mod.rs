//! The NBD protocol, fixed newstyle, as bytes: what a client sends is decoded, what a server answers is encoded. No I/O.
//!
//! The source is `doc/proto.md` of the NetworkBlockDevice project. All numbers are big-endian. Whatever arrives, decoding it ends
//! and does not panic (`fuzz/fuzz_targets/nbd.rs`).

mod handshake;
mod reply;
mod request;

use tmem_net::Address;

pub use handshake::{Asked, ClientFlags, Info, NAME_BYTES_MAX, OptionHead, greeting, option, option_reply};
pub use reply::{ChunkKind, Extent, chunk_head, simple_head};
pub use request::{Action, Request, Terms};

/// The address of an export as clients take it, with TLS or without.
pub fn uri(address: &Address, export: &str, tls: bool) -> String {
    let scheme = if tls { "nbds" } else { "nbd" };
    let name = escaped(export.as_bytes(), b"-._~");
    match address {
        Address::Unix(path) => {
            let path = escaped(path.as_os_str().as_encoded_bytes(), b"-._~/");
            format!("{scheme}+unix:///{name}?socket={path}")
        }
        Address::Tcp(address) => format!("{scheme}://{address}/{name}"),
    }
}

/// With everything in percent notation that is neither a letter nor a digit nor in `plain`.
fn escaped(text: &[u8], plain: &[u8]) -> String {
    let escape = |&byte: &u8| match byte {
        _ if byte.is_ascii_alphanumeric() || plain.contains(&byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.iter().map(escape).collect()
}

/// The longest read or write that is accepted, as announced.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// The block size that costs least, as announced: a page.
pub const BLOCK_BYTES_PREFERRED: u32 = tmem::PAGE_SIZE as u32;
/// The number that stands for [`CONTEXT`] on a connection.
pub const CONTEXT_ID: u32 = 1;
/// The one metadata context that there is.
pub const CONTEXT: &str = "base:allocation";

/// Flags of an export and its commands (`NBD_FLAG_*`).
pub mod transmission {
    /// The flags mean something.
    pub const HAS_FLAGS: u16 = 1;
    /// Nothing can be written.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flushes are understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Writes that must reach the disk before they are answered are understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Trims are understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Zeroing is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Reads in one piece are understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// What one connection wrote, all others read.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Reads ahead of need are understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// Zeroing that must not be slow is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a command (`NBD_CMD_FLAG_*`).
pub mod command {
    /// Must have reached the disk.
    pub const FUA: u16 = 1;
    /// Keep the room.
    pub const NO_HOLE: u16 = 1 << 1;
    /// In one piece.
    pub const DF: u16 = 1 << 2;
    /// One extent only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Only if it is fast.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Numbers of errors in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Invalid argument.
    Invalid = 22,
    /// No space left on device.
    NoSpace = 28,
    /// Value too large.
    Overflow = 75,
    /// Not supported.
    NotSupported = 95,
}

/// Why a command is refused: a number for programs and a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The number.
    pub errno: Errno,
    /// The line.
    pub why: std::borrow::Cow<'static, str>,
}

impl Refusal {
    pub(crate) fn new(errno: Errno, why: &'static str) -> Self {
        Self { errno, why: why.into() }
    }
}

/// What a client sent is no NBD, or cannot be gone on with: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// Reads numbers and texts from the front of bytes.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length of 32 bits and so many bytes.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u32()?;
        self.take(bytes as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_clients_understand() {
        let unix = uri(&Address::Unix("/a b/c.sock".into()), "x/y", false);
        assert_eq!(unix, "nbd+unix:///x%2Fy?socket=/a%20b/c.sock");
        assert_eq!(uri(&Address::Tcp("[::1]:10809".to_owned()), "", true), "nbds://[::1]:10809/");
    }
}
