//! As much HTTP as a scrape needs: a request is read, one answer is given, the connection is closed.
//!
//! No library serves this small a case as safely: those that are light bound neither the time nor the number of connections.
//! The reading of a request is `httparse`'s.

/// The longest head of a request.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What was understood of a request that may not be complete yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// There must be more of it.
    Incomplete,
    /// Somebody wants the metrics.
    Metrics {
        /// Only the head of the answer (HEAD).
        head_only: bool,
    },
    /// Something else, and the status that refuses it.
    Bad(Status),
}

/// Why there are no metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is no HTTP.
    BadRequest,
    /// There is nothing by that name.
    NotFound,
    /// Metrics can be read and no more.
    MethodNotAllowed,
    /// The head is too long.
    TooLarge,
    /// No figures were to be had in time.
    Unavailable,
}

/// Reads what arrived of a request.
pub fn read_request(bytes: &[u8]) -> Request {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Request::Incomplete,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Request::Bad(Status::TooLarge),
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Request::Bad(Status::BadRequest),
    }
    let path = request.path.unwrap_or_default().split('?').next();
    match (request.method, path) {
        (Some(method @ ("GET" | "HEAD")), Some("/metrics")) => Request::Metrics { head_only: method == "HEAD" },
        (_, Some("/metrics")) => Request::Bad(Status::MethodNotAllowed),
        _ => Request::Bad(Status::NotFound),
    }
}

/// The answer with the metrics.
pub fn metrics(text: &str, head_only: bool) -> Vec<u8> {
    response("200 OK", METRICS_TYPE, "", text, head_only)
}

/// The answer that refuses.
pub fn refusal(status: Status) -> Vec<u8> {
    let (line, more, text) = match status {
        Status::BadRequest => ("400 Bad Request", "", "This is not HTTP.\n"),
        Status::NotFound => ("404 Not Found", "", "There is only /metrics here.\n"),
        Status::MethodNotAllowed => ("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "Metrics can be read only.\n"),
        Status::TooLarge => ("431 Request Header Fields Too Large", "", "The head of this request is too long.\n"),
        Status::Unavailable => ("503 Service Unavailable", "", "tmem is busy; ask again.\n"),
    };
    response(line, "text/plain; charset=utf-8", more, text, false)
}

fn response(status: &str, kind: &str, more: &str, body: &str, head_only: bool) -> Vec<u8> {
    let bytes = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\n{more}Connection: close\r\n\r\n"
    );
    [head.as_bytes(), if head_only { b"" } else { body.as_bytes() }].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let read = |text: &str| read_request(text.as_bytes());
        let metrics = Request::Metrics { head_only: false };
        assert_eq!(read("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), metrics);
        assert_eq!(read("GET /metrics?name[]=a HTTP/1.0\r\n\r\nbody"), metrics);
        assert_eq!(read("HEAD /metrics HTTP/1.1\r\n\r\n"), Request::Metrics { head_only: true });
        assert_eq!(read("GET /metrics HTTP/1.1\r\nHost: x\r\n"), Request::Incomplete);
        assert_eq!(read("POST /metrics HTTP/1.1\r\n\r\n"), Request::Bad(Status::MethodNotAllowed));
        assert_eq!(read("GET / HTTP/1.1\r\n\r\n"), Request::Bad(Status::NotFound));
        assert_eq!(read("GET /metrics/ HTTP/1.1\r\n\r\n"), Request::Bad(Status::NotFound));
        assert_eq!(read("\x16\x03\x01\x02"), Request::Bad(Status::BadRequest));
        assert_eq!(read("GET /metrics HTTP/2.0\r\n\r\n"), Request::Bad(Status::BadRequest));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(read(&many), Request::Bad(Status::TooLarge));
        let long = format!("GET /metrics HTTP/1.1\r\na: {}", "b".repeat(HEAD_BYTES_MAX));
        assert_eq!(read(&long), Request::Bad(Status::TooLarge));
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let text = String::from_utf8(super::metrics("tmem_x 1\n", false)).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("Content-Length: 9\r\n"));
        assert!(text.ends_with("\r\n\r\ntmem_x 1\n"));
        assert!(super::metrics("tmem_x 1\n", true).ends_with(b"\r\n\r\n"));
    }
}
