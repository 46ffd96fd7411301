//! The second phase of a connection: commands, and their answers.
//!
//! One thread reads, does and answers what one connection asks. What has arrived is done without a look at the socket, and
//! answers are gathered meanwhile, so that 32 commands in flight take two system calls, not sixty-four. Before the thread
//! waits for anything, what it has is sent. Only what has to be fetched from disk is left to [`crate::fetch`], so that the
//! commands behind it need not wait. A client that does not read its answers stops its own threads and nobody else's.
//! Long reads and writes go through the two buffers piece by piece: a connection takes the same memory whatever is asked.

use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;

use crate::export::{Export, Held};
use crate::fetch::Fetchers;
use crate::input::Input;
use crate::negotiate::broken;
use crate::output::{OUTPUT_BYTES, Replies, Sending};
use crate::polling::Hear;
use crate::protocol::{Action, ChunkKind, Errno, Extent, Refusal, Request, Terms, chunk_head, simple_head};

/// Bytes of a connection's buffers and of its thread.
pub const CONNECTION_BYTES: u64 = (crate::input::INPUT_BYTES + OUTPUT_BYTES + (48 << 10)) as u64;

/// What is read, or written, between two looks at the buffers.
pub const PIECE_BYTES: u64 = 64 << 10;
/// What can stand in front of a piece.
const HEAD_BYTES_MAX: usize = 32;
/// Extents in an answer.
const EXTENTS_MAX: usize = 1024;

const _: () = assert!(
    HEAD_BYTES_MAX + PIECE_BYTES as usize <= OUTPUT_BYTES && EXTENTS_MAX * Extent::BYTES <= PIECE_BYTES as usize
);

/// What the threads of a connection share.
pub struct Connection<'a, W> {
    pub export: &'a Export,
    pub terms: Terms,
    pub replies: Replies<W>,
}

/// Serves a client until it leaves. `from` and `to` are the two ways of its stream.
///
/// # Errors
/// When the connection fails or what comes is no NBD.
pub fn serve(from: &mut impl Hear, to: impl Write + Send, export: &Export, terms: Terms) -> io::Result<()> {
    let connection = Connection { export, terms, replies: Replies::new(to) };
    // What is being fetched is answered before the scope ends.
    std::thread::scope(|scope| {
        let fetchers = Fetchers::new(scope, &connection);
        let mut hearing = Hearing { from, connection: &connection, input: Input::new(), fetchers };
        while let Some(request) = hearing.next()? {
            if !hearing.answer(request)? {
                break;
            }
        }
        connection.replies.lock().send()
    })
}

/// The thread that reads what the client says.
struct Hearing<'a, 'scope, 'env, R, W> {
    from: &'a mut R,
    connection: &'env Connection<'env, W>,
    input: Input,
    fetchers: Fetchers<'scope, 'env, W>,
}

impl<R: Hear, W: Write + Send> Hearing<'_, '_, '_, R, W> {
    /// Waits until so much has arrived, and sends what there is if that takes waiting.
    fn wait_for(&mut self, bytes: usize) -> io::Result<bool> {
        if self.input.held().len() < bytes {
            self.connection.replies.lock().send()?;
        }
        self.input.wait_for(bytes, self.from)
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
        let (connection, export) = (self.connection, self.connection.export);
        let action = match request.action(&connection.terms) {
            Ok(action) => action,
            Err(refusal) => {
                export.tally.refused(&refusal, false);
                self.skip(request.payload_bytes())?;
                return connection.refuse(request, &refusal).map(|()| true);
            }
        };
        let done = match action {
            Action::Disconnect => return Ok(false),
            Action::Read => {
                if !self.fetchers.take(&request) {
                    connection.read(request)?;
                }
                return Ok(true);
            }
            Action::Status { one } => {
                connection.status(request, if one { 1 } else { EXTENTS_MAX })?;
                return Ok(true);
            }
            Action::Write => self.write(request)?,
            Action::Zero { keep_room } => export.blocks.zero(offset, bytes, keep_room),
            Action::Trim => export.blocks.trim(offset, bytes),
            Action::Cache => export.blocks.cache(offset, bytes),
            Action::Flush => export.blocks.flush(),
        };
        let done = done.and_then(|()| if request.is_to_be_safe() { export.blocks.flush() } else { Ok(()) });
        connection.count(action, bytes);
        match done {
            Ok(()) => connection.succeed(request)?,
            Err(refusal) => {
                export.tally.refused(&refusal, false);
                connection.refuse(request, &refusal)?;
            }
        }
        Ok(true)
    }

    /// Reads what belongs to a request that is refused.
    fn skip(&mut self, bytes: u32) -> io::Result<()> {
        let mut left = bytes as usize;
        while left > 0 {
            if !self.wait_for(1)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = self.input.held().len().min(left);
            self.input.consume(part);
            left -= part;
        }
        Ok(())
    }

    /// Writes what follows the request, as it comes, in pieces that end with a page.
    fn write(&mut self, request: Request) -> io::Result<Result<(), Refusal>> {
        const PAGE: u64 = tmem::PAGE_SIZE as u64;
        let (mut at, end) = (request.offset, request.offset + u64::from(request.bytes));
        while at < end {
            let page_end = (at / PAGE + 1) * PAGE;
            let least = (page_end.min(end) - at) as usize;
            if !self.wait_for(least)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let held = self.input.held();
            let mut piece = (end - at).min(held.len() as u64);
            if at + piece < end {
                piece -= (at + piece) % PAGE;
            }
            let written = self.connection.export.blocks.write(at, &held[..piece as usize]);
            self.input.consume(piece as usize);
            at += piece;
            if written.is_err() {
                self.skip((end - at) as u32)?;
                return Ok(written);
            }
        }
        Ok(Ok(()))
    }
}

impl<W: Write> Connection<'_, W> {
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

    fn succeed(&self, request: Request) -> io::Result<()> {
        let mut replies = self.replies.lock();
        if self.terms.structured {
            let (head, bytes) = chunk_head(request.cookie, true, ChunkKind::None);
            replies.push(&head[..bytes])?;
        } else {
            replies.push(&simple_head(0, request.cookie))?;
        }
        replies.complete()
    }

    fn refuse(&self, request: Request, refusal: &Refusal) -> io::Result<()> {
        self.refuse_to(&mut self.replies.lock(), request, refusal)
    }

    fn refuse_to(&self, replies: &mut Sending<'_, W>, request: Request, refusal: &Refusal) -> io::Result<()> {
        let errno = refusal.errno as u32;
        if !self.terms.structured {
            replies.push(&simple_head(errno, request.cookie))?;
            return replies.complete();
        }
        let text = refusal.why.as_bytes();
        let text = &text[..text.len().min(1024)];
        let kind = ChunkKind::Error { errno, text_bytes: text.len() as u16 };
        let (head, bytes) = chunk_head(request.cookie, true, kind);
        replies.push(&head[..bytes])?;
        replies.push(text)?;
        replies.complete()
    }

    /// Answers a read piece by piece. A simple answer says first that all went well; if it turns out that it did not, there is no
    /// other way than to end the connection. Nobody else answers in between.
    fn read(&self, request: Request) -> io::Result<()> {
        let mut replies = self.replies.lock();
        let (mut at, end) = (request.offset, request.offset + u64::from(request.bytes));
        while at < end {
            let piece = piece_at(at, end);
            let head_bytes = self.head_bytes(at == request.offset);
            let room = replies.room(HEAD_BYTES_MAX + piece as usize)?;
            let held = match self.export.blocks.read(at, &mut room[head_bytes..][..piece as usize]) {
                Ok(held) => held,
                Err(refusal) => {
                    self.export.tally.refused(&refusal, true);
                    if !self.terms.structured && at > request.offset {
                        return Err(io::Error::other("a page cannot be read, in the middle of an answer"));
                    }
                    return self.refuse_to(&mut replies, request, &refusal);
                }
            };
            let sent = self.put_head(request, at, piece, held, &mut room[..HEAD_BYTES_MAX]);
            replies.add(sent);
            at += u64::from(piece);
        }
        self.count(Action::Read, request.bytes.into());
        replies.complete()
    }

    /// Answers a read of one piece, for which there is room in `buffer`, and holds nobody up while it is being read.
    pub fn read_apart(&self, request: Request, buffer: &mut [u8]) -> io::Result<()> {
        let head_bytes = self.head_bytes(true);
        match self.export.blocks.read(request.offset, &mut buffer[head_bytes..][..request.bytes as usize]) {
            Ok(held) => {
                let front = &mut buffer[..HEAD_BYTES_MAX];
                let sent = self.put_head(request, request.offset, request.bytes, held, front);
                self.count(Action::Read, request.bytes.into());
                let mut replies = self.replies.lock();
                replies.push(&buffer[..sent])?;
                replies.send()
            }
            Err(refusal) => {
                self.export.tally.refused(&refusal, true);
                let mut replies = self.replies.lock();
                self.refuse_to(&mut replies, request, &refusal)?;
                replies.send()
            }
        }
    }

    /// Bytes in front of a piece.
    fn head_bytes(&self, first: bool) -> usize {
        match (self.terms.structured, first) {
            (true, _) => 28,
            (false, true) => 16,
            (false, false) => 0,
        }
    }

    /// Writes what stands in front of a piece that was read, and says how many bytes are to be sent: none of the piece if
    /// nothing is stored there.
    fn put_head(&self, request: Request, at: u64, piece: u32, held: Held, front: &mut [u8]) -> usize {
        let last = at + u64::from(piece) == request.offset + u64::from(request.bytes);
        if !self.terms.structured {
            let head_bytes = self.head_bytes(at == request.offset);
            front[..head_bytes].copy_from_slice(&simple_head(0, request.cookie)[..head_bytes]);
            return head_bytes + piece as usize;
        }
        let kind = match held {
            Held::Nothing if !request.is_whole() => ChunkKind::Hole { offset: at, bytes: piece },
            _ => ChunkKind::Data { offset: at, bytes: piece },
        };
        let (head, head_bytes) = chunk_head(request.cookie, last, kind);
        front[..head_bytes].copy_from_slice(&head[..head_bytes]);
        if matches!(kind, ChunkKind::Data { .. }) { head_bytes + piece as usize } else { head_bytes }
    }

    fn status(&self, request: Request, extents_max: usize) -> io::Result<()> {
        let mut list = Vec::new();
        let mut keep = |extent: Extent| list.extend_from_slice(&extent.encode());
        self.export.blocks.status(request.offset, request.bytes.into(), extents_max, &mut keep);
        if list.is_empty() {
            return self.refuse(request, &Refusal::new(Errno::Invalid, "there is no extent"));
        }
        let extents = (list.len() / Extent::BYTES) as u32;
        let (head, bytes) = chunk_head(request.cookie, true, ChunkKind::Status { extents });
        let mut replies = self.replies.lock();
        replies.push(&head[..bytes])?;
        replies.push(&list)?;
        replies.complete()
    }
}

/// How long the piece of a read is that begins here: it ends with a page.
fn piece_at(at: u64, end: u64) -> u32 {
    (PIECE_BYTES - at % tmem::PAGE_SIZE as u64).min(end - at) as u32
}
