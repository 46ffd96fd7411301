//! What clients send: commands as arrays of bulk strings, or in a line of their own (RESP2 and RESP3 are the same there).
//!
//! A command that has not arrived as a whole is gone on with where it was left, however slowly it comes. Whatever arrives, decoding it
//! ends and takes no memory for what is only announced.

use std::ops::Range;

/// Arguments of a command.
const ARGS_MAX: usize = 1 << 20;
/// The longest argument: that of Redis.
pub const BULK_BYTES_MAX: usize = 512 << 20;
/// The longest line.
const LINE_BYTES_MAX: usize = 64 << 10;
/// The same before a client has said who it is.
const STRANGERS_ARGS_MAX: usize = 10;
const STRANGERS_BULK_BYTES_MAX: usize = 16 << 10;

/// What is not understood; the connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl Broken {
    fn new(why: impl std::fmt::Display) -> Self {
        Self(format!("ERR Protocol error: {why}"))
    }
}

/// What is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest argument.
    pub bulk_bytes: usize,
    /// Arguments of a command.
    pub args: usize,
}

impl Limits {
    /// Those of a client that has said who it is, or need not.
    pub fn known(bulk_bytes: usize) -> Self {
        Self { bulk_bytes: bulk_bytes.min(BULK_BYTES_MAX), args: ARGS_MAX }
    }

    /// Those of one that has not yet.
    pub const STRANGER: Self = Self { bulk_bytes: STRANGERS_BULK_BYTES_MAX, args: STRANGERS_ARGS_MAX };
}

/// Decodes commands one by one. It remembers how far it has come with one that is not whole.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Where the arguments lie that have been found.
    args: Vec<Range<usize>>,
    /// Arguments that are to come; none has begun if `None`.
    left: Option<usize>,
    /// Bytes that were understood.
    at: usize,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A command of so many bytes. It may have no arguments: then there is nothing to do.
    Command(usize),
    /// There have to be so many bytes before there is any use in looking again.
    Incomplete(usize),
}

impl Decoder {
    /// Looks for a command at the front of `input`, which begins where the last one ended.
    ///
    /// # Errors
    /// When it is none, or too large.
    pub fn decode(&mut self, input: &[u8], limits: Limits) -> Result<Found, Broken> {
        if self.left.is_none() {
            match input.first() {
                None => return Ok(Found::Incomplete(1)),
                Some(b'*') => {}
                Some(_) => return self.decode_line(input),
            }
            let Some((line, end)) = line(input, 0, "too big mbulk count string")? else {
                return Ok(Found::Incomplete(input.len() + 1));
            };
            let count = number(&line[1..]).filter(|count| *count <= ARGS_MAX as i64);
            let count = count.ok_or_else(|| Broken::new("invalid multibulk length"))?;
            if count.max(0) as usize > limits.args {
                return Err(Broken::new("unauthenticated multibulk length"));
            }
            self.args.clear();
            (self.left, self.at) = (Some(count.max(0) as usize), end);
        }
        while let Some(left @ 1..) = self.left {
            let Some((head, start)) = line(input, self.at, "too big bulk count string")? else {
                return Ok(Found::Incomplete(input.len() + 1));
            };
            if head.first() != Some(&b'$') {
                let got = head.first().map_or(' ', |&byte| char::from(byte));
                return Err(Broken::new(format_args!("expected '$', got '{}'", got.escape_default())));
            }
            let bytes = number(&head[1..]).and_then(|bytes| usize::try_from(bytes).ok());
            let bytes = bytes.filter(|&bytes| bytes <= BULK_BYTES_MAX);
            let bytes = bytes.ok_or_else(|| Broken::new("invalid bulk length"))?;
            if bytes > limits.bulk_bytes {
                let stranger = limits.args == STRANGERS_ARGS_MAX;
                let why = if stranger { "unauthenticated bulk length" } else { "a value that is too large for --ram" };
                return Err(Broken::new(why));
            }
            let end = start + bytes;
            if input.len() < end + 2 {
                return Ok(Found::Incomplete(end + 2));
            }
            if &input[end..end + 2] != b"\r\n" {
                return Err(Broken::new("a bulk string that does not end where it should"));
            }
            self.args.push(start..end);
            (self.left, self.at) = (Some(left - 1), end + 2);
        }
        self.left = None;
        Ok(Found::Command(self.at))
    }

    /// A command in a line: words, with quotes around those that have spaces.
    fn decode_line(&mut self, input: &[u8]) -> Result<Found, Broken> {
        let Some(end) = input.iter().take(LINE_BYTES_MAX).position(|&byte| byte == b'\n') else {
            if input.len() >= LINE_BYTES_MAX {
                return Err(Broken::new("too big inline request"));
            }
            return Ok(Found::Incomplete(input.len() + 1));
        };
        self.args.clear();
        let mut at = 0;
        while at < end {
            let byte = input[at];
            if byte.is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let quote = (byte == b'"' || byte == b'\'').then_some(byte);
            let start = at + usize::from(quote.is_some());
            let ends = |byte: u8| quote.map_or(byte.is_ascii_whitespace(), |quote| byte == quote);
            let word = input[start..end].iter().position(|&byte| ends(byte));
            let stop = match (word, quote) {
                (Some(bytes), _) => start + bytes,
                (None, None) => end,
                (None, Some(_)) => return Err(Broken::new("unbalanced quotes in request")),
            };
            self.args.push(start..stop);
            at = stop + usize::from(quote.is_some());
        }
        self.at = end + 1;
        Ok(Found::Command(self.at))
    }

    /// Where the arguments of the command lie that was found last.
    pub fn args(&self) -> &[Range<usize>] {
        &self.args
    }
}

/// The line that begins at `at`, without its end, and where the next one begins.
fn line<'a>(input: &'a [u8], at: usize, too_long: &str) -> Result<Option<(&'a [u8], usize)>, Broken> {
    /// Numbers have no more.
    const BYTES_MAX: usize = 32;
    let rest = &input[at.min(input.len())..];
    match rest.iter().take(BYTES_MAX).position(|&byte| byte == b'\r') {
        Some(end) if end + 1 < rest.len() => {
            if rest[end + 1] != b'\n' {
                return Err(Broken::new("a line that does not end with CR LF"));
            }
            Ok(Some((&rest[..end], at + end + 2)))
        }
        Some(_) => Ok(None),
        None if rest.len() >= BYTES_MAX => Err(Broken::new(too_long)),
        None => Ok(None),
    }
}

/// A whole number in decimal, as Redis reads it: no spaces, no plus, no zeros in front.
pub fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let plain = match digits {
        [] => false,
        [b'0'] => text.len() == 1,
        [first, ..] => *first != b'0' && digits.iter().all(u8::is_ascii_digit),
    };
    if !plain {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bulk_bytes: 1000, args: ARGS_MAX };

    fn all(input: &[u8]) -> Result<Vec<Vec<Vec<u8>>>, Broken> {
        let (mut decoder, mut rest, mut commands) = (Decoder::default(), input, Vec::new());
        while let Found::Command(bytes) = decoder.decode(rest, LIMITS)? {
            commands.push(decoder.args().iter().map(|range| rest[range.clone()].to_vec()).collect());
            rest = &rest[bytes..];
        }
        Ok(commands)
    }

    #[test]
    fn commands_come_in_both_ways_and_in_pieces() {
        let input = b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\nPING  \"a b\" 'c'\r\n*0\r\n*-1\r\n\n*1\r\n$0\r\n\r\n";
        let words = |words: &[&[u8]]| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>();
        let wanted =
            [words(&[b"GET", b"\r\n"]), words(&[b"PING", b"a b", b"c"]), vec![], vec![], vec![], words(&[b""])];
        assert_eq!(all(input).unwrap(), wanted);
        // Byte by byte it is the same.
        let (mut decoder, mut start, mut commands) = (Decoder::default(), 0, Vec::new());
        for end in 0..=input.len() {
            match decoder.decode(&input[start..end], LIMITS).unwrap() {
                Found::Command(bytes) => {
                    commands
                        .push(decoder.args().iter().map(|r| input[start..][r.clone()].to_vec()).collect::<Vec<_>>());
                    start += bytes;
                }
                Found::Incomplete(bytes) => assert!(bytes > end - start),
            }
        }
        assert_eq!(commands, wanted);
    }

    #[test]
    fn nonsense_is_refused_in_the_words_of_redis() {
        for (input, why) in [
            (&b"*1048577\r\n"[..], "invalid multibulk length"),
            (b"*x\r\n", "invalid multibulk length"),
            (b"*1\r\nx\r\n", "expected '$', got 'x'"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$536870913\r\n", "invalid bulk length"),
            (b"*1\r\n$1001\r\n", "too large for --ram"),
            (b"*1\r\n$1\r\nabc", "does not end"),
            (b"*11111111111111111111111111111111", "too big mbulk count string"),
            (b"get \"a\r\n", "unbalanced quotes"),
            (&[b'a'; LINE_BYTES_MAX], "too big inline request"),
        ] {
            let said = all(input).unwrap_err().0;
            assert!(said.starts_with("ERR Protocol error: ") && said.contains(why), "{said}");
        }
        let decode = |input: &[u8]| Decoder::default().decode(input, Limits::STRANGER);
        assert!(decode(b"*11\r\n").unwrap_err().0.contains("unauthenticated multibulk"));
        assert!(decode(b"*1\r\n$16385\r\n").unwrap_err().0.contains("unauthenticated bulk"));
        assert_eq!(decode(b"*1\r\n$16384\r\n"), Ok(Found::Incomplete(4 + 8 + 16384 + 2)));
    }

    #[test]
    fn numbers_are_strict() {
        for (text, value) in
            [("0", 0), ("-1", -1), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)]
        {
            assert_eq!(number(text.as_bytes()), Some(value));
        }
        for text in ["", "-", "+1", " 1", "1 ", "01", "-0", "9223372036854775808", "1x", "\u{661}"] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
    }
}
