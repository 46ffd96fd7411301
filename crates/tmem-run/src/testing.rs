//! What fuzz targets need of the inside.

use crate::control;
use crate::figures;
use crate::report::Snapshot;
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

/// `name{label="text",...} number`.
fn is_sample(line: &str) -> bool {
    let value = line.rsplit(' ').next().unwrap_or_default();
    line.starts_with("tmem_") && value.parse::<f64>().is_ok_and(f64::is_finite) && !line.contains(char::is_control)
}
