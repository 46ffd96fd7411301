//! The second phase: commands, and whether they can be done.

use super::{Broken, Errno, REQUEST_BYTES_MAX, Reader, Refusal, command};

const MAGIC: u32 = 0x2560_9513;

/// Reads in one piece are accepted up to this size, which every server has to accept.
const DF_BYTES_MAX: u32 = 64 << 10;

/// A command as it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags.
    pub flags: u16,
    /// Which command.
    pub kind: u16,
    /// What its answer is to be called.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub bytes: u32,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;
const RESIZE: u16 = 8;

/// What was agreed on for a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of the export.
    pub size_bytes: u64,
    /// Nothing can be written.
    pub read_only: bool,
    /// Answers come in chunks.
    pub structured: bool,
    /// `base:allocation` can be asked for.
    pub allocation: bool,
    /// Zeroing is always fast.
    pub fast_zero: bool,
}

/// What is to be done. Offset and length are those of the request, and lie in the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read.
    Read,
    /// Write what follows the request.
    Write,
    /// Write zeroes, and keep the room or not.
    Zero {
        /// Reads as allocated afterwards.
        keep_room: bool,
    },
    /// Forget.
    Trim,
    /// All that was answered is to be safe.
    Flush,
    /// Bring back from disk.
    Cache,
    /// Say what is allocated.
    Status {
        /// One extent only.
        one: bool,
    },
    /// End.
    Disconnect,
}

impl Request {
    /// Bytes of a request, without what follows a write.
    pub const BYTES: usize = 28;

    /// Decodes a request.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, Broken> {
        let mut reader = Reader(bytes);
        let request = (|| {
            let magic = reader.u32()?;
            let (flags, kind, cookie) = (reader.u16()?, reader.u16()?, reader.u64()?);
            let (offset, bytes) = (reader.u64()?, reader.u32()?);
            (magic == MAGIC).then_some(Self { flags, kind, cookie, offset, bytes })
        })();
        request.ok_or(Broken("a request with a wrong magic number"))
    }

    /// Bytes that follow the request, whether it is accepted or not.
    pub fn payload_bytes(&self) -> u32 {
        if self.kind == WRITE { self.bytes } else { 0 }
    }

    /// What is to be done.
    ///
    /// # Errors
    /// When it cannot be done on these terms.
    pub fn action(&self, terms: &Terms) -> Result<Action, Refusal> {
        let (action, flags) = self.meant(terms)?;
        if self.flags & !flags != 0 {
            return Err(Refusal::new(Errno::Invalid, "this command does not take these flags"));
        }
        match action {
            Action::Disconnect | Action::Flush => return Ok(action),
            Action::Write | Action::Zero { .. } | Action::Trim if terms.read_only => {
                return Err(Refusal::new(Errno::Perm, "the export is read-only"));
            }
            _ if self.bytes == 0 => return Err(Refusal::new(Errno::Invalid, "a request of no bytes")),
            Action::Read | Action::Write if self.bytes > REQUEST_BYTES_MAX => {
                return Err(Refusal::new(Errno::Invalid, "a request of more than 32 MiB, the announced limit"));
            }
            Action::Read if self.is_whole() && self.bytes > DF_BYTES_MAX => {
                return Err(Refusal::new(Errno::Overflow, "a read of more than 64 KiB does not come in one piece"));
            }
            _ => {}
        }
        if self.offset.checked_add(self.bytes.into()).is_none_or(|end| end > terms.size_bytes) {
            let writes = matches!(action, Action::Write | Action::Zero { .. });
            let errno = if writes { Errno::NoSpace } else { Errno::Invalid };
            return Err(Refusal::new(errno, "the request goes past the end of the export"));
        }
        Ok(action)
    }

    /// The command, and the flags that it takes.
    fn meant(&self, terms: &Terms) -> Result<(Action, u16), Refusal> {
        let keep_room = self.flags & command::NO_HOLE != 0;
        let df = if terms.structured { command::DF } else { 0 };
        Ok(match self.kind {
            READ => (Action::Read, df | command::FUA),
            WRITE => (Action::Write, command::FUA),
            DISCONNECT => (Action::Disconnect, u16::MAX),
            FLUSH => (Action::Flush, command::FUA),
            TRIM => (Action::Trim, command::FUA),
            CACHE => (Action::Cache, command::FUA),
            WRITE_ZEROES => {
                let fast = if terms.fast_zero { command::FAST_ZERO } else { 0 };
                (Action::Zero { keep_room }, command::FUA | command::NO_HOLE | fast)
            }
            BLOCK_STATUS if terms.allocation => {
                let one = self.flags & command::REQ_ONE != 0;
                (Action::Status { one }, command::REQ_ONE | command::FUA)
            }
            BLOCK_STATUS => return Err(Refusal::new(Errno::Invalid, "base:allocation was not negotiated")),
            RESIZE => {
                let why = "a tmem disk cannot be resized: start one of the size that you need";
                return Err(Refusal::new(Errno::NotSupported, why));
            }
            _ => return Err(Refusal::new(Errno::Invalid, "there is no such command")),
        })
    }

    /// What it writes has to be safe before it is answered.
    pub fn is_to_be_safe(&self) -> bool {
        self.flags & command::FUA != 0 && matches!(self.kind, WRITE | TRIM | WRITE_ZEROES)
    }

    /// The answer has to come in one piece.
    pub fn is_whole(&self) -> bool {
        self.flags & command::DF != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms =
        Terms { size_bytes: 1 << 30, read_only: false, structured: true, allocation: true, fast_zero: true };

    fn request(kind: u16, flags: u16, offset: u64, bytes: u32) -> Request {
        Request { flags, kind, cookie: 0, offset, bytes }
    }

    fn errno(request: Request, terms: Terms) -> Errno {
        request.action(&terms).expect_err(&format!("{request:?}")).errno
    }

    #[test]
    fn requests_are_read_as_they_are_written() {
        let mut bytes = [0; Request::BYTES];
        Request::decode(&bytes).unwrap_err();
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..].copy_from_slice(&std::array::from_fn::<u8, 24, _>(|at| at as u8));
        let request = Request::decode(&bytes).unwrap();
        assert_eq!((request.flags, request.kind), (0x0001, 0x0203));
        assert_eq!((request.cookie, request.offset), (0x0405_0607_0809_0a0b, 0x0c0d_0e0f_1011_1213));
        assert_eq!(request.bytes, 0x1415_1617);
    }

    #[test]
    fn what_lies_in_the_export_is_done() {
        assert_eq!(request(READ, command::DF, (1 << 30) - 1, 1).action(&TERMS), Ok(Action::Read));
        assert_eq!(request(WRITE, command::FUA, 0, REQUEST_BYTES_MAX).action(&TERMS), Ok(Action::Write));
        let zero = command::FAST_ZERO | command::NO_HOLE;
        assert_eq!(request(WRITE_ZEROES, zero, 0, 1 << 30).action(&TERMS), Ok(Action::Zero { keep_room: true }));
        assert_eq!(request(BLOCK_STATUS, 0, 0, 1 << 30).action(&TERMS), Ok(Action::Status { one: false }));
        assert_eq!(request(FLUSH, 0, 0, 0).action(&Terms { read_only: true, ..TERMS }), Ok(Action::Flush));
    }

    #[test]
    fn everything_else_is_refused_with_the_number_that_the_protocol_names() {
        for (kind, outside) in [(READ, Errno::Invalid), (WRITE, Errno::NoSpace), (WRITE_ZEROES, Errno::NoSpace)] {
            assert_eq!(errno(request(kind, 0, 1 << 30, 1), TERMS), outside);
            assert_eq!(errno(request(kind, 0, u64::MAX, 2), TERMS), outside);
            assert_eq!(errno(request(kind, 0, 0, 0), TERMS), Errno::Invalid);
        }
        let read_only = Terms { read_only: true, ..TERMS };
        for kind in [WRITE, WRITE_ZEROES, TRIM] {
            assert_eq!(errno(request(kind, 0, 0, 512), read_only), Errno::Perm);
        }
        assert_eq!(errno(request(READ, 0, 0, REQUEST_BYTES_MAX + 1), TERMS), Errno::Invalid);
        assert_eq!(errno(request(READ, command::DF, 0, DF_BYTES_MAX + 1), TERMS), Errno::Overflow);
        assert_eq!(errno(request(READ, command::NO_HOLE, 0, 1), TERMS), Errno::Invalid);
        assert_eq!(errno(request(READ, 1 << 15, 0, 1), TERMS), Errno::Invalid);
        let simple = Terms { structured: false, allocation: false, ..TERMS };
        assert_eq!(errno(request(READ, command::DF, 0, 1), simple), Errno::Invalid);
        assert_eq!(errno(request(BLOCK_STATUS, 0, 0, 1), simple), Errno::Invalid);
        let slow = Terms { fast_zero: false, ..TERMS };
        assert_eq!(errno(request(WRITE_ZEROES, command::FAST_ZERO, 0, 1), slow), Errno::Invalid);
        assert_eq!(errno(request(RESIZE, 0, 0, 1), TERMS), Errno::NotSupported);
        assert_eq!(errno(request(99, 0, 0, 1), TERMS), Errno::Invalid);
    }
}
