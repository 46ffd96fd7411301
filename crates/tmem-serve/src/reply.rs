//! What is answered, in RESP2 or RESP3.

/// Writes answers behind each other.
pub struct Reply<'a> {
    /// Where they go.
    pub out: &'a mut Vec<u8>,
    /// In the newer of the two languages.
    pub resp3: bool,
}

impl Reply<'_> {
    fn line(&mut self, kind: u8, text: &str) {
        self.out.push(kind);
        self.out.extend_from_slice(text.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    fn head(&mut self, kind: u8, number: impl itoa::Integer) {
        self.line(kind, itoa::Buffer::new().format(number));
    }

    /// A status, `OK` above all.
    pub fn status(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// `OK`.
    pub fn ok(&mut self) {
        self.out.extend_from_slice(b"+OK\r\n");
    }

    /// An error: a word in capitals and a line of text.
    pub fn error(&mut self, text: &str) {
        let line: String = text.chars().map(|c| if c == '\r' || c == '\n' { ' ' } else { c }).collect();
        self.line(b'-', &line);
    }

    /// A whole number.
    pub fn integer(&mut self, number: i64) {
        match number {
            0 => self.out.extend_from_slice(b":0\r\n"),
            1 => self.out.extend_from_slice(b":1\r\n"),
            _ => self.head(b':', number),
        }
    }

    /// The head of a bulk string of so many bytes; these and a line end are to follow.
    pub fn bulk_head(&mut self, bytes: usize) {
        self.head(b'$', bytes);
    }

    /// A bulk string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.bulk_head(bytes.len());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    /// Nothing.
    pub fn null(&mut self) {
        self.out.extend_from_slice(if self.resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// The head of an array.
    pub fn array(&mut self, length: usize) {
        self.head(b'*', length);
    }

    /// The head of a map of so many pairs.
    pub fn map(&mut self, pairs: usize) {
        if self.resp3 { self.head(b'%', pairs) } else { self.array(2 * pairs) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_languages() {
        for (resp3, wanted) in [
            (false, &b"+OK\r\n-ERR a  b\r\n:-7\r\n$2\r\n\r\n\r\n$-1\r\n*3\r\n*4\r\n"[..]),
            (true, b"+OK\r\n-ERR a  b\r\n:-7\r\n$2\r\n\r\n\r\n_\r\n*3\r\n%2\r\n"),
        ] {
            let mut out = Vec::new();
            let mut reply = Reply { out: &mut out, resp3 };
            reply.ok();
            reply.error("ERR a\r\nb");
            reply.integer(-7);
            reply.bulk(b"\r\n");
            reply.null();
            reply.array(3);
            reply.map(2);
            assert_eq!(out, wanted);
        }
    }
}
