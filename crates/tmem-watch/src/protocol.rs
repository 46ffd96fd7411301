//! What is said over a control socket: one line that asks, one line of JSON that answers. Version 1.
//!
//! Both sides read what somebody else wrote, and must come to an end with it whatever it is (`fuzz/fuzz_targets/watch.rs`).

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The version that this program speaks. What only adds fields does not change it.
pub const VERSION: u32 = 1;
/// What a client asks.
pub const REQUEST: &[u8] = b"tmem 1 figures\n";
/// The longest answer that a client reads; one with 256 processes has 60 KiB.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What to tell of an answer that is none.
const NOT_UNDERSTOOD: &str = "its answer is not understood";
/// The longest text that is taken over from an answer, in characters.
const TEXT_MAX: usize = 200;

/// What was understood of a request that may not be complete yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// There must be more of it.
    Incomplete,
    /// Somebody wants to see the figures.
    Figures,
    /// Something else, and why it is refused.
    Bad(&'static str),
}

/// Reads what arrived of a request.
pub fn read_request(bytes: &[u8]) -> Request {
    if bytes == REQUEST {
        Request::Figures
    } else if REQUEST.starts_with(bytes) {
        Request::Incomplete
    } else {
        Request::Bad("this tmem understands `tmem 1 figures` only")
    }
}

/// A line that says why there are no figures.
pub fn refusal(why: &str) -> Vec<u8> {
    let mut line = serde_json::json!({ "error": why }).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// A line with the figures.
pub fn answer(figures: &impl Serialize) -> Vec<u8> {
    // Numbers and texts with names can always be written.
    let mut line = serde_json::to_vec(figures).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads an answer: an object of this version. Texts in it come out short and without anything that a terminal would obey.
///
/// # Errors
/// When it is none, or of another version: what to tell the user.
pub fn read_answer(bytes: &[u8]) -> Result<Value, String> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|_| NOT_UNDERSTOOD.to_owned())?;
    if let Some(why) = value.get("error") {
        return Err(harmless(why.as_str().unwrap_or("it refuses")));
    }
    match value.get("version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(format!("it speaks version {version}, and this tmem version {VERSION}")),
        None => return Err(NOT_UNDERSTOOD.to_owned()),
    }
    make_harmless(&mut value);
    Ok(value)
}

/// Takes figures for those of a kind.
///
/// # Errors
/// When they are none: what to tell the user.
pub fn understand<T: DeserializeOwned>(figures: Value) -> Result<T, String> {
    serde_json::from_value(figures).map_err(|_| NOT_UNDERSTOOD.to_owned())
}

fn make_harmless(value: &mut Value) {
    match value {
        Value::String(text) => *text = harmless(text),
        Value::Array(all) => all.iter_mut().for_each(make_harmless),
        Value::Object(fields) => fields.values_mut().for_each(make_harmless),
        _ => {}
    }
}

/// A text of limited length without control characters, those that turn the direction of writing included: names of processes
/// are what their owners like.
pub fn harmless(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().take(TEXT_MAX).map(|c| if c.is_control() || turns(c) { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_is_read_byte_by_byte() {
        for end in 0..REQUEST.len() {
            assert_eq!(read_request(&REQUEST[..end]), Request::Incomplete);
        }
        assert_eq!(read_request(REQUEST), Request::Figures);
        for bad in [&b"tmem 2 figures\n"[..], b"x", b"tmem 1 figures\nx", b"\0"] {
            assert!(matches!(read_request(bad), Request::Bad(_)), "{bad:?}");
        }
    }

    #[test]
    fn an_answer_comes_back_as_it_was_but_for_what_a_terminal_would_obey() {
        let long = "x".repeat(TEXT_MAX + 1);
        let sent =
            json!({"version": 1, "many": u64::MAX, "list": [{"name": "\u{1b}[2Jx"}], "text": ["\u{202e}", long]});
        let got = json!({"version": 1, "many": u64::MAX, "list": [{"name": "?[2Jx"}], "text": ["?", long[1..]]});
        assert_eq!(read_answer(&answer(&sent)).unwrap(), got);
    }

    #[test]
    fn other_versions_and_nonsense_are_told() {
        assert_eq!(read_answer(br#"{"version":2}"#).unwrap_err(), "it speaks version 2, and this tmem version 1");
        assert_eq!(read_answer(&refusal("no")).unwrap_err(), "no");
        assert!(read_answer(br#"{"version":1,"later":[],"pid":3}"#).is_ok_and(|value| value["pid"] == 3));
        for bad in [&b""[..], b"{}", b"[]", b"1", b"[1]", b"\xff"] {
            assert!(read_answer(bad).is_err(), "{bad:?}");
        }
    }
}
