//! What fuzz targets need of the inside.

use crate::{http, names, protocol};
use serde_json::Value;

pub use crate::protocol::{REQUEST, answer, read_answer};

/// Reads bytes as everything that others can send over the sockets of a process or to `tmem top`; as an answer, if they are one.
///
/// # Panics
/// When what was understood does not hold together.
pub fn read_any(bytes: &[u8]) -> Option<Value> {
    names::all_in("supervisor", bytes).windows(2).for_each(|pair| assert!(pair[0] < pair[1]));
    match protocol::read_request(bytes) {
        protocol::Request::Figures => assert_eq!(bytes, protocol::REQUEST),
        protocol::Request::Incomplete => assert!(bytes.len() < protocol::REQUEST.len()),
        protocol::Request::Bad(_) => {}
    }
    if http::read_request(bytes) == http::Request::Incomplete {
        assert!(bytes.len() < http::HEAD_BYTES_MAX);
    }
    let value = read_answer(bytes).ok()?;
    assert_eq!(read_answer(&answer(&value)).as_ref(), Ok(&value), "what was written can be read");
    Some(value)
}

/// True if all lines are as Prometheus wants them: comments, and `name{label="text",...} number`.
pub fn is_exposition(text: &str) -> bool {
    let is_sample = |line: &str| {
        let value = line.rsplit(' ').next().unwrap_or_default();
        line.starts_with("tmem_") && value.parse::<f64>().is_ok_and(f64::is_finite) && !line.contains(char::is_control)
    };
    text.lines().all(|line| line.starts_with("# HELP ") || line.starts_with("# TYPE ") || is_sample(line))
}
