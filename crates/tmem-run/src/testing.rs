//! What fuzz targets need of the inside.

use tmem_watch::testing::{REQUEST, answer, is_exposition, read_answer, read_any};
use tmem_watch::{VERSION, metrics, understand};

use crate::report::{ProcessFigures, Snapshot};

/// Reads bytes as everything that others can send over the sockets of a supervisor or to `tmem top`.
///
/// # Panics
/// When what was understood does not hold together.
pub fn watch_any(bytes: &[u8]) {
    let snapshot: Option<Snapshot> = read_any(bytes).and_then(|figures| understand(figures).ok());
    if let Some(snapshot) = snapshot {
        let again: Snapshot =
            read_answer(&answer(&snapshot)).and_then(understand).expect("what was written can be read");
        assert_eq!((again.processes, again.command), (snapshot.processes.clone(), snapshot.command.clone()));
        assert!(is_exposition(&metrics("tmem", Snapshot::FIGURES, &snapshot)));
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
    let snapshot = Snapshot { version: VERSION, processes: vec![process], ..Snapshot::default() };
    let names = b"0: 2 0 10000 1 1 9 @tmem/supervisor/41\n0: 2 0 10000 1 1 9 @tmem/supervisor/7\n";
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
    for whole in [&answer(&snapshot)[..], names, request, REQUEST] {
        let from = word(0) % (whole.len() + 1);
        let to = (from + word(2)).min(whole.len());
        watch_any(&[&whole[..from], part, &whole[to..]].concat());
    }
}
