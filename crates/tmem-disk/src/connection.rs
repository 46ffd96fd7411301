//! The second phase of a connection: commands, one after the other, and their answers.
//!
//! One thread reads, does and answers what one connection asks. What has arrived is done without a look at the socket, and
//! answers are gathered meanwhile, so that 32 commands in flight take two system calls, not sixty-four. Before the thread
//! waits for anything, what it has is sent. A client that does not read its answers stops its own thread and nobody else's.
//! Long reads and writes go through the two buffers piece by piece: a connection takes the same memory whatever is asked.

use std::io::{self, Read, Write};
use std::sync::atomic::Ordering::Relaxed;

use crate::export::{Export, Held};
use crate::input::Input;
use crate::negotiate::broken;
use crate::output::{OUTPUT_BYTES, Output};
use crate::protocol::{Action, ChunkKind, Errno, Extent, Refusal, Request, Terms, chunk_head, simple_head};

/// Bytes of a connection's buffers and of its thread.
pub const CONNECTION_BYTES: u64 = (crate::input::INPUT_BYTES + OUTPUT_BYTES + (48 << 10)) as u64;

/// What is read, or written, between two looks at the buffers.
const PIECE_BYTES: u64 = 64 << 10;
/// Answers wait for more of them up to this: the client begins on the first while we are at the next.
const SEND_BYTES: usize = 32 << 10;
/// Extents in an answer.
const EXTENTS_MAX: usize = 1024;

const _: () = assert!(32 + PIECE_BYTES as usize <= OUTPUT_BYTES && EXTENTS_MAX * Extent::BYTES <= PIECE_BYTES as usize);

struct Connection<'a, S> {
    stream: &'a mut S,
    export: &'a Export,
    terms: Terms,
    input: Input,
    output: Output,
}

/// Serves a client until it leaves.
///
/// # Errors
/// When the connection fails or what comes is no NBD.
pub fn serve(stream: &mut (impl Read + Write), export: &Export, terms: Terms) -> io::Result<()> {
    let mut connection = Connection { stream, export, terms, input: Input::new(), output: Output::new() };
    while let Some(request) = connection.next()? {
        if !connection.answer(request)? {
            break;
        }
    }
    connection.send()
}

impl<S: Read + Write> Connection<'_, S> {
    fn send(&mut self) -> io::Result<()> {
        self.output.send(self.stream)
    }

    /// Waits until so much has arrived, and sends what there is if that takes waiting.
    fn wait_for(&mut self, bytes: usize) -> io::Result<bool> {
        if self.input.held().len() < bytes {
            self.send()?;
        }
        self.input.wait_for(bytes, self.stream)
    }

    fn next(&mut self) -> io::Result<Option<Request>> {
        if !self.wait_for(Request::BYTES)? {
            return Ok(None);
        }
        let head = self.input.held().first_chunk().expect("so much was waited for");
        let request = Request::decode(head).map_err(broken)?;
        self.input.consume(Request::BYTES);
        Ok(Some(request))
    }

    /// Does what was asked. `false` if the client leaves.
    fn answer(&mut self, request: Request) -> io::Result<bool> {
        let (offset, bytes) = (request.offset, u64::from(request.bytes));
        let action = match request.action(&self.terms) {
            Ok(action) => action,
            Err(refusal) => {
                self.export.tally.refused(&refusal, false);
                self.skip(request.payload_bytes())?;
                return self.refuse(request, &refusal).map(|()| true);
            }
        };
        let done = match action {
            Action::Disconnect => return Ok(false),
            Action::Read => {
                self.read(request)?;
                return self.send_if_much().map(|()| true);
            }
            Action::Status { one } => {
                self.status(request, if one { 1 } else { EXTENTS_MAX })?;
                return Ok(true);
            }
            Action::Write => self.write(request)?,
            Action::Zero { keep_room } => self.export.zero(offset, bytes, keep_room),
            Action::Trim => {
                self.export.trim(offset, bytes);
                Ok(())
            }
            Action::Cache => self.export.cache(offset, bytes),
            // What was answered is in RAM, or in a spill file that ends with us: nothing makes it safer.
            Action::Flush => Ok(()),
        };
        self.count(action, bytes);
        match done {
            Ok(()) => self.succeed(request)?,
            Err(refusal) => {
                self.export.tally.refused(&refusal, false);
                self.refuse(request, &refusal)?;
            }
        }
        Ok(true)
    }

    fn count(&self, action: Action, bytes: u64) {
        let tally = &self.export.tally;
        let (count, sum) = match action {
            Action::Read => (&tally.reads, &tally.read_bytes),
            Action::Write => (&tally.writes, &tally.written_bytes),
            Action::Zero { .. } | Action::Trim => (&tally.trims, &tally.trimmed_bytes),
            _ => return,
        };
        count.fetch_add(1, Relaxed);
        sum.fetch_add(bytes, Relaxed);
    }

    fn send_if_much(&mut self) -> io::Result<()> {
        if self.output.waiting() >= SEND_BYTES { self.send() } else { Ok(()) }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.push(bytes, self.stream)
    }

    fn succeed(&mut self, request: Request) -> io::Result<()> {
        if self.terms.structured {
            let (head, bytes) = chunk_head(request.cookie, true, ChunkKind::None);
            self.push(&head[..bytes])
        } else {
            self.push(&simple_head(0, request.cookie))
        }
    }

    fn refuse(&mut self, request: Request, refusal: &Refusal) -> io::Result<()> {
        let errno = refusal.errno as u32;
        if !self.terms.structured {
            return self.push(&simple_head(errno, request.cookie));
        }
        let text = refusal.why.as_bytes();
        let text = &text[..text.len().min(1024)];
        let (head, bytes) = chunk_head(request.cookie, true, ChunkKind::Error { errno, text_bytes: text.len() as u16 });
        self.push(&head[..bytes])?;
        self.push(text)
    }

    /// Reads what belongs to a request that is refused.
    fn skip(&mut self, bytes: u32) -> io::Result<()> {
        let mut left = bytes as usize;
        while left > 0 {
            self.wait_for(1)?;
            let part = self.input.held().len().min(left);
            if part == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.input.consume(part);
            left -= part;
        }
        Ok(())
    }

    /// Writes what follows the request, as it comes, in pieces that end with a page.
    fn write(&mut self, request: Request) -> io::Result<Result<(), Refusal>> {
        let (mut at, end) = (request.offset, request.offset + u64::from(request.bytes));
        while at < end {
            let page_end = (at / 4096 + 1) * 4096;
            let least = (page_end.min(end) - at) as usize;
            if !self.wait_for(least)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let held = self.input.held();
            let mut piece = (end - at).min(held.len() as u64);
            if at + piece < end {
                piece -= (at + piece) % 4096;
            }
            let written = self.export.write(at, &held[..piece as usize]);
            self.input.consume(piece as usize);
            at += piece;
            if written.is_err() {
                self.skip((end - at) as u32)?;
                return Ok(written);
            }
        }
        Ok(Ok(()))
    }

    /// Answers a read piece by piece. A simple answer says first that all went well; if it turns out that it did not, there is no
    /// other way than to end the connection.
    fn read(&mut self, request: Request) -> io::Result<()> {
        let (mut at, end) = (request.offset, request.offset + u64::from(request.bytes));
        while at < end {
            // Pieces end with a page.
            let piece = (PIECE_BYTES - at % 4096).min(end - at) as u32;
            let last = at + u64::from(piece) == end;
            let head_bytes = match (self.terms.structured, at == request.offset) {
                (true, _) => 28,
                (false, true) => 16,
                (false, false) => 0,
            };
            let room = self.output.room(head_bytes + piece as usize, self.stream)?;
            let (head, data) = room.split_at_mut(head_bytes);
            let held = match self.export.read(at, data) {
                Ok(held) => held,
                Err(refusal) => {
                    self.export.tally.refused(&refusal, true);
                    if !self.terms.structured && at > request.offset {
                        return Err(io::Error::other("a page cannot be read, in the middle of an answer"));
                    }
                    return self.refuse(request, &refusal);
                }
            };
            if !self.terms.structured {
                if head_bytes > 0 {
                    head.copy_from_slice(&simple_head(0, request.cookie));
                }
                self.output.add(head_bytes + piece as usize);
            } else if held == Held::Data || request.is_whole() {
                let kind = ChunkKind::Data { offset: at, bytes: piece };
                head.copy_from_slice(&chunk_head(request.cookie, last, kind).0[..28]);
                self.output.add(head_bytes + piece as usize);
            } else {
                let (hole, bytes) = chunk_head(request.cookie, last, ChunkKind::Hole { offset: at, bytes: piece });
                self.output.push(&hole[..bytes], self.stream)?;
            }
            at += u64::from(piece);
        }
        self.count(Action::Read, request.bytes.into());
        Ok(())
    }

    fn status(&mut self, request: Request, extents_max: usize) -> io::Result<()> {
        let mut list = Vec::new();
        let keep = |extent: Extent| list.extend_from_slice(&extent.encode());
        self.export.status(request.offset, request.bytes.into(), extents_max, keep);
        if list.is_empty() {
            return self.refuse(request, &Refusal::new(Errno::Invalid, "there is no extent"));
        }
        let extents = (list.len() / Extent::BYTES) as u32;
        let (head, bytes) = chunk_head(request.cookie, true, ChunkKind::Status { extents });
        self.push(&head[..bytes])?;
        self.push(&list)
    }
}
