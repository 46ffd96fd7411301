//! The rows of `tmem top`, the same for the terminal and for `--once`.

use tmem_run::{ProcessFigures, Snapshot, SpillFigures};

use super::{Silent, View, Watched};

/// A column.
pub struct Column {
    pub title: &'static str,
    pub width: usize,
    /// Where there is no room for all, the highest goes first.
    pub rank: u8,
}

const fn column(title: &'static str, width: usize, rank: u8) -> Column {
    Column { title, width, rank }
}

/// The first two are written from the left, the others to the right.
pub const COLUMNS: [Column; 14] = [
    column("PID", 9, 0),
    column("PROGRAM", 15, 0),
    column("RESIDENT", 8, 0),
    column("STORED", 8, 1),
    column("PACKED", 8, 3),
    column("SPILLED", 8, 2),
    column("RATIO", 5, 4),
    column("FAULT/s", 7, 2),
    column("P50", 7, 6),
    column("P90", 7, 8),
    column("P99", 7, 5),
    column("REFLT/s", 7, 7),
    column("WRITE/s", 8, 4),
    column("READ/s", 8, 5),
];

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A supervisor and its whole tree.
    Supervisor,
    /// The same, over its budget.
    Over,
    /// One process.
    Process,
    /// A remark.
    Remark,
}

/// A line of the table; short ones end early, and the last cell of a remark may be as long as it likes.
pub struct Row {
    pub level: Level,
    pub cells: Vec<String>,
}

/// All rows.
pub fn rows(view: &View) -> Vec<Row> {
    let mut rows = Vec::new();
    for watched in &view.supervisors {
        rows.push(supervisor(watched));
        rows.extend(watched.snapshot.processes.iter().flat_map(process));
        rows.extend(unseen(&watched.snapshot));
        rows.extend(put_off(&watched.snapshot.report.spill));
    }
    rows.extend(view.silent.iter().map(|Silent { pid, why }| remark(&pid.to_string(), why)));
    rows
}

fn supervisor(Watched { snapshot, rates }: &Watched) -> Row {
    let (now, report) = (&snapshot.now, &snapshot.report);
    let over = now.ram_bytes > report.ram_limit_bytes + (1 << 20);
    let cells = vec![
        snapshot.pid.to_string(),
        snapshot.command.clone(),
        bytes(now.resident_bytes as f64),
        bytes(now.stored_bytes as f64),
        bytes(now.packed_bytes as f64),
        bytes(now.spilled_bytes as f64),
        if now.ratio > 0.0 { format!("{:.2}", now.ratio) } else { "-".to_owned() },
        format!("{:.0}", rates.faults),
        time(report.fault_ns.p50),
        time(report.fault_ns.p90),
        time(report.fault_ns.p99),
        format!("{:.0}", rates.refaults),
        bytes(rates.spill_written_bytes),
        bytes(rates.spill_read_bytes),
    ];
    Row { level: if over { Level::Over } else { Level::Supervisor }, cells }
}

fn process(process: &ProcessFigures) -> Vec<Row> {
    let mut cells = vec![format!("  {}", process.pid), process.name.clone(), bytes(process.resident_bytes as f64)];
    // Where each packed page lies is not known by process.
    cells.extend(process.managed.then(|| bytes(process.stored_bytes as f64)));
    let mut rows = vec![Row { level: Level::Process, cells }];
    rows.extend(process.refused.as_ref().map(|why| remark("", &format!("not managed: {why}"))));
    rows
}

fn unseen(snapshot: &Snapshot) -> Option<Row> {
    let more = snapshot.now.tree_processes.saturating_sub(snapshot.processes.len() as u64);
    // Those that only borrow memory (vfork) are not listed.
    (snapshot.processes.len() >= 256 && more > 0).then(|| remark("", &format!("{more} smaller processes more")))
}

/// Less than what a step of spilling wants to write.
const WRITES_LEFT_MIN: u64 = 1 << 20;

fn put_off(spill: &SpillFigures) -> Option<Row> {
    let waits = spill.writes_put_off > 0 && spill.writes_left_bytes < WRITES_LEFT_MIN;
    let per_day = bytes(spill.writes_per_day as f64);
    waits.then(|| remark("", &format!("nothing is spilled for now: its {per_day} a day are written")))
}

fn remark(pid: &str, text: &str) -> Row {
    Row { level: Level::Remark, cells: vec![pid.to_owned(), text.to_owned()] }
}

/// The table as text.
pub fn plain(view: &View) -> String {
    let mut text = line(COLUMNS.iter().map(|column| column.title.to_owned()).zip(0..));
    for row in rows(view) {
        text += &line(row.cells.into_iter().zip(0..));
    }
    text
}

fn line(cells: impl Iterator<Item = (String, usize)>) -> String {
    let cells: Vec<_> = cells.map(|(text, at)| aligned(&text, at)).collect();
    format!("{}\n", cells.join(" ").trim_end())
}

/// A cell as wide as its column at least.
pub fn aligned(text: &str, at: usize) -> String {
    let width = COLUMNS[at].width;
    if at < 2 { format!("{text:<width$}") } else { format!("{text:>width$}") }
}

/// A number of bytes in at most eight characters.
pub fn bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut left = bytes;
    let mut unit = 0;
    while left >= 1000.0 && unit + 1 < units.len() {
        left /= 1024.0;
        unit += 1;
    }
    let places = usize::from(unit > 0 && left < 99.95);
    format!("{left:.places$} {}", units[unit])
}

/// A time in at most seven characters.
fn time(ns: u64) -> String {
    match ns {
        0 => "-".to_owned(),
        1..10_000 => format!("{:.1} us", ns as f64 / 1e3),
        10_000..1_000_000 => format!("{:.0} us", ns as f64 / 1e3),
        1_000_000..99_950_000 => format!("{:.1} ms", ns as f64 / 1e6),
        99_950_000..1_000_000_000 => format!("{:.0} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tmem_run::Rates;

    #[test]
    fn numbers_fit_their_columns() {
        for n in [0, 1, 999, 1000, 1023, 1 << 20, 102_399 << 10, 1_023_999, 1 << 45, u64::MAX] {
            let text = bytes(n as f64);
            assert!(text.len() <= 8, "{text}");
        }
        assert_eq!((bytes(0.0).as_str(), bytes(1536.0).as_str()), ("0 B", "1.5 KiB"));
        assert_eq!(bytes(f64::from(300 << 20)), "300 MiB");
        for n in [0, 1, 9_999, 10_000, 999_999, 1_000_000, 99_999_999, 999_999_999, 1_000_000_000, 99_000_000_000] {
            assert!(time(n).len() <= 7, "{}", time(n));
        }
    }

    #[test]
    fn a_plain_table() {
        let process = ProcessFigures {
            pid: 12,
            name: "noise".to_owned(),
            resident_bytes: 3 << 20,
            refused: Some("ptrace is refused".to_owned()),
            ..ProcessFigures::default()
        };
        let mut snapshot =
            Snapshot { pid: 11, command: "sh".to_owned(), processes: vec![process], ..Snapshot::default() };
        snapshot.report.fault_ns.p50 = 12_345;
        snapshot.report.spill = SpillFigures { writes_per_day: 20 << 30, writes_put_off: 3, ..SpillFigures::default() };
        let watched = Watched { snapshot, rates: Rates { faults: 100.4, ..Rates::default() } };
        let silent = vec![Silent { pid: 7, why: "it does not answer".to_owned() }];
        let text = plain(&View { supervisors: vec![watched], silent, others: 0 });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines[0].starts_with("PID       PROGRAM         RESIDENT") && lines[0].ends_with("READ/s"));
        assert!(lines[1].starts_with("11        sh "), "{text}");
        assert!(lines[1].contains("     100   12 us "), "{text}");
        assert_eq!(lines[2], "  12      noise            3.0 MiB");
        assert!(lines[3].ends_with("not managed: ptrace is refused"));
        assert!(lines[4].ends_with(" nothing is spilled for now: its 20.0 GiB a day are written"));
        assert_eq!(lines[5], "7         it does not answer");
    }
}
