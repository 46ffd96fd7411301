//! The first phase of a connection: options, until an export is chosen.
//!
//! A client has [`PATIENCE`] for all of it; so one that says nothing does not stay.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::export::Export;
use crate::protocol::{
    Asked, Broken, CONTEXT, CONTEXT_ID, ClientFlags, Info, OptionHead, Terms, greeting, option, option_reply,
    transmission as flag,
};

/// How long a client may take for the handshake.
pub const PATIENCE: Duration = Duration::from_secs(15);
const OPTIONS_MAX: u32 = 1000;
/// Longer data of an option are skipped, and the option is refused.
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Nobody has a reason to send this much.
const SKIPPED_BYTES_MAX: u32 = 1 << 20;

/// What clients can choose from, and what they can ask beside that.
pub trait House: Sync {
    /// The exports; the first can be had by the empty name.
    fn exports(&self) -> &[Arc<Export>];
    /// The figures as JSON.
    fn figures(&self) -> Vec<u8>;
}

/// Whether what is said is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// It is not, and need not be.
    None,
    /// It is not yet: until it is, nothing else is answered.
    Wanted,
    /// It is.
    Done,
}

/// What came of it.
pub enum Agreed {
    /// The client goes on with an export.
    Export(Arc<Export>, Terms),
    /// It goes on under TLS, with [`haggle`].
    Tls,
    /// It leaves.
    Left,
}

struct Talk<'a, S> {
    house: &'a dyn House,
    stream: &'a mut S,
    security: Security,
    no_zeroes: bool,
    structured: bool,
    /// The export for which contexts were chosen.
    allocation_of: Option<String>,
}

/// What both sides say first.
///
/// # Errors
/// When the connection fails, or what comes is no NBD ([`ErrorKind::InvalidData`]).
pub fn greet(stream: &mut (impl Read + Write)) -> io::Result<ClientFlags> {
    stream.write_all(&greeting())?;
    ClientFlags::decode(read(stream)?).map_err(broken)
}

/// Haggles until the client has chosen an export, goes over to TLS or leaves.
///
/// # Errors
/// When the connection fails, or what comes is no NBD ([`ErrorKind::InvalidData`]).
pub fn haggle(
    stream: &mut (impl Read + Write),
    house: &dyn House,
    flags: ClientFlags,
    security: Security,
) -> io::Result<Agreed> {
    let no_zeroes = flags.no_zeroes;
    let mut talk = Talk { house, stream, security, no_zeroes, structured: false, allocation_of: None };
    for _ in 0..OPTIONS_MAX {
        let head = OptionHead::decode(&read(talk.stream)?).map_err(broken)?;
        if !flags.fixed && head.code != option::EXPORT_NAME {
            return Err(broken(Broken("options without fixed newstyle")));
        }
        if let Some(agreed) = talk.answer(head)? {
            return Ok(agreed);
        }
    }
    Err(broken(Broken("too many options")))
}

/// A defect of what was sent, as an error of the connection.
pub fn broken(Broken(why): Broken) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

impl<S: Read + Write> Talk<'_, S> {
    fn answer(&mut self, head: OptionHead) -> io::Result<Option<Agreed>> {
        let code = head.code;
        if head.bytes > OPTION_BYTES_MAX {
            self.skip(head.bytes)?;
            self.refuse(code, option_reply::ERR_TOO_BIG, "the data of this option are too long")?;
            return Ok(None);
        }
        let mut data = vec![0; head.bytes as usize];
        self.stream.read_exact(&mut data)?;
        let asked = Asked::decode(code, &data);
        if self.security == Security::Wanted && !matches!(asked, Ok(Asked::StartTls | Asked::Abort)) {
            return self.insist(code);
        }
        match asked {
            Ok(Asked::ExportName(name)) => return self.export_by_name(name).map(Some),
            Err(why) if code == option::EXPORT_NAME => return Err(broken(Broken(why))),
            Err(why) => self.refuse(code, option_reply::ERR_INVALID, why)?,
            Ok(Asked::Abort) => {
                // Whoever does not wait for the answer has left all the same.
                let _ = self.say(code, option_reply::ACK, &[]);
                return Ok(Some(Agreed::Left));
            }
            Ok(Asked::List) => self.list(code)?,
            Ok(Asked::Export { name, go, wants_name, wants_description }) => {
                return self.export(code, name, go, wants_name, wants_description);
            }
            Ok(Asked::StructuredReply) => {
                self.structured = true;
                self.say(code, option_reply::ACK, &[])?;
            }
            Ok(Asked::Meta { name, set, queries }) => self.meta(code, name, set, queries.mean_allocation(set))?,
            Ok(Asked::Figures) => {
                self.say(code, option_reply::FIGURES, &self.house.figures())?;
                self.say(code, option_reply::ACK, &[])?;
            }
            Ok(Asked::StartTls) => match self.security {
                Security::Wanted => {
                    self.say(code, option_reply::ACK, &[])?;
                    return Ok(Some(Agreed::Tls));
                }
                Security::Done => self.refuse(code, option_reply::ERR_INVALID, "this is TLS already")?,
                Security::None => {
                    let why = "there is no TLS here: the server was started without --tls-certificates";
                    self.refuse(code, option_reply::ERR_UNSUP, why)?;
                }
            },
            Ok(Asked::Unknown) => self.refuse(code, option_reply::ERR_UNSUP, "there is no such option here")?,
        }
        Ok(None)
    }

    /// Nothing is said, and no name told, before there is TLS.
    fn insist(&mut self, code: u32) -> io::Result<Option<Agreed>> {
        if code == option::EXPORT_NAME {
            return Err(broken(Broken("an export without TLS")));
        }
        self.refuse(code, option_reply::ERR_TLS_REQD, "only with TLS, and a certificate of the client")?;
        Ok(None)
    }

    /// Reads what nobody wants.
    fn skip(&mut self, bytes: u32) -> io::Result<()> {
        if bytes > SKIPPED_BYTES_MAX {
            return Err(broken(Broken("an option of more than 1 MiB")));
        }
        let mut some = [0; 4096];
        let mut left = bytes as usize;
        while left > 0 {
            let part = left.min(some.len());
            self.stream.read_exact(&mut some[..part])?;
            left -= part;
        }
        Ok(())
    }

    fn say(&mut self, code: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        self.stream.write_all(&option_reply::encode(code, kind, data))
    }

    fn refuse(&mut self, code: u32, kind: u32, why: &str) -> io::Result<()> {
        self.say(code, kind, why.as_bytes())
    }

    fn find(&self, name: &str) -> Option<Arc<Export>> {
        let exports = self.house.exports();
        let named = exports.iter().find(|export| export.name == name);
        named.or_else(|| exports.first().filter(|_| name.is_empty())).cloned()
    }

    fn agree(&self, export: Arc<Export>) -> Agreed {
        let allocation = self.allocation_of.as_ref().is_some_and(|name| *name == export.name);
        let terms = Terms {
            size_bytes: export.size_bytes,
            read_only: export.read_only,
            structured: self.structured,
            allocation,
            fast_zero: export.backing.is_none(),
        };
        Agreed::Export(export, terms)
    }

    fn flags(&self, export: &Export) -> u16 {
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::SEND_CACHE
            | flag::CAN_MULTI_CONN;
        if export.read_only {
            flags |= flag::READ_ONLY;
        }
        if export.backing.is_none() {
            flags |= flag::SEND_FAST_ZERO;
        }
        if self.structured {
            flags |= flag::SEND_DF;
        }
        flags
    }

    /// The old way, which has no answer for a name that there is not.
    fn export_by_name(&mut self, name: &str) -> io::Result<Agreed> {
        let Some(export) = self.find(name) else {
            return Err(broken(Broken("an export that there is not")));
        };
        let mut answer = Info::export(export.size_bytes, self.flags(&export)).split_off(2);
        if !self.no_zeroes {
            answer.resize(answer.len() + 124, 0);
        }
        self.stream.write_all(&answer)?;
        Ok(self.agree(export))
    }

    fn list(&mut self, code: u32) -> io::Result<()> {
        for export in self.house.exports() {
            let name = export.name.as_bytes();
            self.say(code, option_reply::SERVER, &[&(name.len() as u32).to_be_bytes()[..], name].concat())?;
        }
        self.say(code, option_reply::ACK, &[])
    }

    fn export(
        &mut self,
        code: u32,
        name: &str,
        go: bool,
        wants_name: bool,
        wants_description: bool,
    ) -> io::Result<Option<Agreed>> {
        let Some(export) = self.find(name) else {
            self.refuse(code, option_reply::ERR_UNKNOWN, "there is no such export: NBD_OPT_LIST names all")?;
            return Ok(None);
        };
        self.say(code, option_reply::INFO, &Info::export(export.size_bytes, self.flags(&export)))?;
        self.say(code, option_reply::INFO, &Info::block_size())?;
        if wants_name {
            self.say(code, option_reply::INFO, &Info::Name.text(&export.name))?;
        }
        if wants_description {
            let what = match &export.backing {
                None => "tmem disk: compressed in RAM, gone with its server",
                Some(_) => "tmem disk: a compressed cache of a slower disk",
            };
            self.say(code, option_reply::INFO, &Info::Description.text(what))?;
        }
        self.say(code, option_reply::ACK, &[])?;
        Ok(go.then(|| self.agree(export)))
    }

    fn meta(&mut self, code: u32, name: &str, set: bool, means_allocation: bool) -> io::Result<()> {
        if set {
            self.allocation_of = None;
            if !self.structured {
                return self.refuse(code, option_reply::ERR_INVALID, "ask for structured replies first");
            }
        }
        let Some(export) = self.find(name) else {
            return self.refuse(code, option_reply::ERR_UNKNOWN, "there is no such export: NBD_OPT_LIST names all");
        };
        if means_allocation {
            let id = if set { CONTEXT_ID } else { 0 };
            let export = export.name.clone();
            self.say(code, option_reply::META_CONTEXT, &[&id.to_be_bytes()[..], CONTEXT.as_bytes()].concat())?;
            if set {
                self.allocation_of = Some(export);
            }
        }
        self.say(code, option_reply::ACK, &[])
    }
}
