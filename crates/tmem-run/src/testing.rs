//! What fuzz targets need of the inside.

use crate::control;
use crate::figures;
use crate::report::{ProcessFigures, Snapshot};
use crate::watch::{http, protocol};

/// Reads bytes as everything that others can send over the sockets of a supervisor or to `tmem top`.
///
/// # Panics
/// When what was understood does not hold together.
pub fn watch_any(bytes: &[u8]) {
    control::supervisors_in(bytes).windows(2).for_each(|pair| assert!(pair[0] < pair[1]));
    match protocol::read_request(bytes) {
        protocol::Request::Figures => assert_eq!(bytes, protocol::REQUEST),
        protocol::Request::Incomplete => assert!(bytes.len() < protocol::REQUEST.len()),
        protocol::Request::Bad(_) => {}
    }
    if http::read_request(bytes) == http::Request::Incomplete {
        assert!(bytes.len() < http::HEAD_BYTES_MAX);
    }
    if let Ok(snapshot) = protocol::read_answer(bytes) {
        let again = protocol::read_answer(&protocol::answer(&snapshot)).expect("what was written can be read");
        assert_eq!((again.processes, again.command), (snapshot.processes.clone(), snapshot.command.clone()));
        let text = figures::metrics(Snapshot::FIGURES, &snapshot);
        assert!(text.lines().all(|line| line.starts_with("# HELP ") || line.starts_with("# TYPE ") || is_sample(line)));
    }
}

/// The same with messages as they should be, of which the input replaces a part: it begins with where that lies and how long it is.
///
/// # Panics
/// When what was understood does not hold together.
pub fn watch_damaged(input: &[u8]) {
    let Some((head, part)) = input.split_at_checked(4) else { return };
    let word = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let process =
        ProcessFigures { name: "name".to_owned(), refused: Some("why".to_owned()), ..ProcessFigures::default() };
    let snapshot = Snapshot { version: protocol::VERSION, processes: vec![process], ..Snapshot::default() };
    let names = b"0: 2 0 10000 1 1 9 @tmem/supervisor/41\n0: 2 0 10000 1 1 9 @tmem/supervisor/7\n";
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
    for whole in [&protocol::answer(&snapshot)[..], names, request, protocol::REQUEST] {
        let from = word(0) % (whole.len() + 1);
        let to = (from + word(2)).min(whole.len());
        watch_any(&[&whole[..from], part, &whole[to..]].concat());
    }
}

/// `name{label="text",...} number`.
fn is_sample(line: &str) -> bool {
    let value = line.rsplit(' ').next().unwrap_or_default();
    line.starts_with("tmem_") && value.parse::<f64>().is_ok_and(f64::is_finite) && !line.contains(char::is_control)
}
