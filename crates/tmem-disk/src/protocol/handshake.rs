//! The first phase: a client haggles for options and chooses an export.

use super::{BLOCK_BYTES_PREFERRED, Broken, CONTEXT, REQUEST_BYTES_MAX, Reader};

const MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 1 << 1;

/// The longest name of an export.
pub const NAME_BYTES_MAX: usize = 4096;

/// What the server says first.
pub fn greeting() -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    out
}

/// What the client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags {
    /// It knows that options can be refused.
    pub fixed: bool,
    /// It does without 124 zeroes behind the answer to `EXPORT_NAME`.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Decodes the flags.
    ///
    /// # Errors
    /// When there are others than a server of this kind may get.
    pub fn decode(bytes: [u8; 4]) -> Result<Self, Broken> {
        let flags = u32::from_be_bytes(bytes);
        let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        if flags & !known != 0 {
            return Err(Broken("unknown client flags"));
        }
        let has = |flag: u16| flags & u32::from(flag) != 0;
        Ok(Self { fixed: has(FLAG_FIXED_NEWSTYLE), no_zeroes: has(FLAG_NO_ZEROES) })
    }
}

/// The head of an option: what it is and how much data follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// Which option.
    pub code: u32,
    /// Bytes of its data.
    pub bytes: u32,
}

impl OptionHead {
    /// Bytes of a head.
    pub const BYTES: usize = 16;

    /// Decodes a head.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, Broken> {
        let mut reader = Reader(bytes);
        let head = (|| Some((reader.u64()?, reader.u32()?, reader.u32()?)))();
        match head {
            Some((OPTION_MAGIC, code, bytes)) => Ok(Self { code, bytes }),
            _ => Err(Broken("an option with a wrong magic number")),
        }
    }
}

/// Numbers of options (`NBD_OPT_*`).
pub mod option {
    /// Choose an export without an answer; the last option.
    pub const EXPORT_NAME: u32 = 1;
    /// End.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Go over to TLS.
    pub const STARTTLS: u32 = 5;
    /// Tell about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Answers in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Not of the protocol: the figures of this server, as JSON. The number reads "tmem".
    pub const FIGURES: u32 = 0x746d_656d;
}

/// Numbers of answers to options (`NBD_REP_*`), and the answers.
pub mod option_reply {
    use super::OPTION_REPLY_MAGIC;

    /// Done.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Not of the protocol: figures, as JSON.
    pub const FIGURES: u32 = 0x746d_656d;
    /// Not without TLS.
    pub const ERR_TLS_REQD: u32 = 1 << 31 | 5;
    /// There is no such option here.
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    /// It is not understood.
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    /// There is too much of it.
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;

    /// Bytes of the head of an answer.
    pub const HEAD_BYTES: usize = 20;

    /// An answer to option `code`.
    pub fn encode(code: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + data.len());
        out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        out
    }

    /// The kind of an answer and the bytes of its data.
    pub fn decode(head: &[u8; HEAD_BYTES]) -> Option<(u32, u32)> {
        let mut reader = super::Reader(head);
        let (magic, _, kind, bytes) = (reader.u64()?, reader.u32()?, reader.u32()?, reader.u32()?);
        (magic == OPTION_REPLY_MAGIC).then_some((kind, bytes))
    }
}

/// What a client asks for by an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// An export, at once.
    ExportName(&'a str),
    /// The end.
    Abort,
    /// The names of exports.
    List,
    /// What an export is like; or that, and to go on with it.
    Export {
        /// Its name.
        name: &'a str,
        /// It wants to go on.
        go: bool,
        /// It asks for the name.
        wants_name: bool,
        /// It asks for a description.
        wants_description: bool,
    },
    /// TLS.
    StartTls,
    /// Answers in chunks.
    StructuredReply,
    /// Metadata contexts of an export; or to have them from now on.
    Meta {
        /// Its name.
        name: &'a str,
        /// It wants to have them.
        set: bool,
        /// Which ones.
        queries: MetaQueries<'a>,
    },
    /// Figures.
    Figures,
    /// Something that is not known here.
    Unknown,
}

impl<'a> Asked<'a> {
    /// Decodes the data of an option.
    ///
    /// # Errors
    /// When it is not what the option takes: a line for the client.
    pub fn decode(code: u32, data: &'a [u8]) -> Result<Self, &'static str> {
        let nothing = |asked| if data.is_empty() { Ok(asked) } else { Err("this option takes no data") };
        match code {
            option::EXPORT_NAME => name(data).map(Self::ExportName),
            option::ABORT => Ok(Self::Abort),
            option::LIST => nothing(Self::List),
            option::STRUCTURED_REPLY => nothing(Self::StructuredReply),
            option::STARTTLS => nothing(Self::StartTls),
            option::FIGURES => nothing(Self::Figures),
            option::INFO | option::GO => Self::export(data, code == option::GO),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => Self::meta(data, code == option::SET_META_CONTEXT),
            _ => Ok(Self::Unknown),
        }
    }

    fn export(data: &'a [u8], go: bool) -> Result<Self, &'static str> {
        let mut reader = Reader(data);
        let parts = (|| {
            let name = reader.counted()?;
            let count = reader.u16()?;
            let wanted = reader.take(usize::from(count) * 2)?;
            reader.0.is_empty().then_some((name, wanted))
        })();
        let (text, wanted) = parts.ok_or("the lengths in this option do not fit together")?;
        let wants = |info: Info| wanted.as_chunks::<2>().0.iter().any(|w| u16::from_be_bytes(*w) == info as u16);
        let (wants_name, wants_description) = (wants(Info::Name), wants(Info::Description));
        Ok(Self::Export { name: name(text)?, go, wants_name, wants_description })
    }

    fn meta(data: &'a [u8], set: bool) -> Result<Self, &'static str> {
        const LENGTHS: &str = "the lengths in this option do not fit together";
        let mut reader = Reader(data);
        let parts = (|| Some((reader.counted()?, reader.u32()?)))();
        let (text, count) = parts.ok_or(LENGTHS)?;
        let queries = MetaQueries { count, reader };
        let mut rest = reader;
        for _ in 0..count {
            rest.counted().ok_or(LENGTHS)?;
        }
        if !rest.0.is_empty() {
            return Err(LENGTHS);
        }
        Ok(Self::Meta { name: name(text)?, set, queries })
    }
}

fn name(bytes: &[u8]) -> Result<&str, &'static str> {
    if bytes.len() > NAME_BYTES_MAX {
        return Err("the name is longer than 4096 bytes");
    }
    std::str::from_utf8(bytes).map_err(|_| "the name is not UTF-8")
}

/// The metadata contexts that a client named.
#[derive(Clone, Copy)]
pub struct MetaQueries<'a> {
    count: u32,
    reader: Reader<'a>,
}

impl MetaQueries<'_> {
    /// Whether [`CONTEXT`] is meant. To list them, a name space is enough, and no query at all means all.
    pub fn mean_allocation(&self, set: bool) -> bool {
        let mut reader = self.reader;
        let mut queries = (0..self.count).map_while(|_| reader.counted());
        if set {
            return queries.any(|query| query == CONTEXT.as_bytes());
        }
        self.count == 0 || queries.any(|query| query == CONTEXT.as_bytes() || query == b"base:")
    }
}

impl std::fmt::Debug for MetaQueries<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetaQueries").field("count", &self.count).finish_non_exhaustive()
    }
}

impl PartialEq for MetaQueries<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.count, self.reader.0) == (other.count, other.reader.0)
    }
}

impl Eq for MetaQueries<'_> {}

/// What there is to say about an export (`NBD_INFO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Info {
    /// Its size and flags.
    Export = 0,
    /// Its name.
    Name = 1,
    /// A line about it.
    Description = 2,
    /// Sizes of requests.
    BlockSize = 3,
}

impl Info {
    /// Size and flags, as data of an answer.
    pub fn export(size_bytes: u64, flags: u16) -> Vec<u8> {
        [&(Self::Export as u16).to_be_bytes()[..], &size_bytes.to_be_bytes(), &flags.to_be_bytes()].concat()
    }

    /// The smallest, the preferred and the largest request, as data of an answer.
    pub fn block_size() -> Vec<u8> {
        let sizes = [1, BLOCK_BYTES_PREFERRED, REQUEST_BYTES_MAX].map(u32::to_be_bytes);
        [&(Self::BlockSize as u16).to_be_bytes()[..], sizes.as_flattened()].concat()
    }

    /// A name or a description, as data of an answer.
    pub fn text(self, text: &str) -> Vec<u8> {
        [&(self as u16).to_be_bytes()[..], text.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
    }

    #[test]
    fn an_export_is_asked_for_with_what_is_wanted_of_it() {
        let data = [counted("disk"), vec![0, 2, 0, 1, 0, 3]].concat();
        let asked = Asked::Export { name: "disk", go: true, wants_name: true, wants_description: false };
        assert_eq!(Asked::decode(option::GO, &data), Ok(asked));
        for cut in 0..data.len() {
            assert!(Asked::decode(option::INFO, &data[..cut]).is_err(), "{cut}");
        }
        Asked::decode(option::INFO, &[data, vec![0]].concat()).unwrap_err();
        Asked::decode(option::INFO, &[&u32::MAX.to_be_bytes()[..], b"x"].concat()).unwrap_err();
    }

    #[test]
    fn contexts_are_meant_by_name_or_by_name_space() {
        let ask = |queries: &[&str], set| {
            let list: Vec<u8> = queries.iter().flat_map(|query| counted(query)).collect();
            let data = [counted(""), (queries.len() as u32).to_be_bytes().to_vec(), list].concat();
            let code = if set { option::SET_META_CONTEXT } else { option::LIST_META_CONTEXT };
            match Asked::decode(code, &data) {
                Ok(Asked::Meta { queries, .. }) => queries.mean_allocation(set),
                other => panic!("{other:?}"),
            }
        };
        assert!(ask(&[], false) && ask(&["base:"], false) && ask(&["x:y", CONTEXT], false));
        assert!(!ask(&[], true) && !ask(&["base:"], true) && ask(&["x:y", CONTEXT], true));
        let many = [counted(""), u32::MAX.to_be_bytes().to_vec()].concat();
        Asked::decode(option::LIST_META_CONTEXT, &many).unwrap_err();
    }

    #[test]
    fn what_is_no_option_is_told_from_one_that_is_not_known() {
        OptionHead::decode(&[7; 16]).unwrap_err();
        assert_eq!(Asked::decode(77, b"anything"), Ok(Asked::Unknown));
        ClientFlags::decode([0, 0, 0, 4]).unwrap_err();
        assert_eq!(ClientFlags::decode([0, 0, 0, 1]), Ok(ClientFlags { fixed: true, no_zeroes: false }));
        Asked::decode(option::EXPORT_NAME, b"\xff").unwrap_err();
        Asked::decode(option::EXPORT_NAME, &[b'x'; NAME_BYTES_MAX + 1]).unwrap_err();
    }
}
