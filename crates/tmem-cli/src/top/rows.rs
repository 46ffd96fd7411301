//! The rows of `tmem top`, the same for the terminal and for `--once`.

use tmem_disk::ExportRates;
use tmem_run::{ProcessFigures, Snapshot, SpillFigures};

use super::{Cache, Disk, Silent, Supervisor, View, Watched};

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

/// What there is to say about supervisors and their processes. The first two are written from the left, the others to the right.
pub const SUPERVISORS: &[Column] = &[
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

/// The same about servers of disks and their disks.
pub const DISKS: &[Column] = &[
    column("PID", 9, 0),
    column("DISK", 15, 0),
    column("IN USE", 8, 0),
    column("STORED", 8, 1),
    column("PACKED", 8, 3),
    column("SPILLED", 8, 5),
    column("RATIO", 5, 4),
    column("CLIENTS", 7, 6),
    column("HIT %", 7, 7),
    column("READS/s", 7, 2),
    column("WRITES/s", 8, 2),
    column("READ/s", 8, 4),
    column("WRITE/s", 8, 4),
];

/// The same about caches.
pub const CACHES: &[Column] = &[
    column("PID", 9, 0),
    column("CACHE", 15, 0),
    column("IN USE", 8, 0),
    column("STORED", 8, 1),
    column("PACKED", 8, 3),
    column("RATIO", 5, 4),
    column("KEYS", 10, 1),
    column("CLIENTS", 7, 6),
    column("HIT %", 7, 3),
    column("COMMANDS/s", 10, 2),
    column("EVICTED/s", 9, 4),
];

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A supervisor and its whole tree, or a server and all of its disks.
    Whole,
    /// The same, over its budget.
    Over,
    /// One process, or one disk.
    Part,
    /// A remark.
    Remark,
    /// Titles of columns.
    Title,
}

/// A line of the table; short ones end early, and the last cell of a remark may be as long as it likes.
pub struct Row {
    pub level: Level,
    pub cells: Vec<String>,
}

/// What there is to say about things of one kind.
pub struct Table {
    pub columns: &'static [Column],
    pub rows: Vec<Row>,
}

/// A table for each kind of which there is something.
pub fn tables(view: &View) -> Vec<Table> {
    let mut supervisors = Vec::new();
    for watched in &view.supervisors {
        supervisors.push(supervisor(watched));
        supervisors.extend(watched.snapshot.processes.iter().flat_map(process));
        supervisors.extend(unseen(&watched.snapshot));
        supervisors.extend(put_off(&watched.snapshot.report.spill));
    }
    let mut disks: Vec<Row> = view.disks.iter().flat_map(disk).collect();
    let mut caches: Vec<Row> = view.caches.iter().map(cache).collect();
    for Silent { kind, pid, why } in &view.silent {
        let rows = match *kind {
            tmem_disk::KIND => &mut disks,
            tmem_serve::KIND => &mut caches,
            _ => &mut supervisors,
        };
        rows.push(remark(&pid.to_string(), why));
    }
    let table = |columns, rows| Table { columns, rows };
    let tables = [table(SUPERVISORS, supervisors), table(DISKS, disks), table(CACHES, caches)];
    tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
}

impl Table {
    /// The titles of its columns.
    pub fn titles(&self) -> Row {
        let cells = self.columns.iter().map(|column| column.title.to_owned()).collect();
        Row { level: Level::Title, cells }
    }
}

fn shown_ratio(ratio: f64) -> String {
    if ratio > 0.0 { format!("{ratio:.2}") } else { "-".to_owned() }
}

fn supervisor(Watched { snapshot, rates }: &Supervisor) -> Row {
    let (now, report) = (&snapshot.now, &snapshot.report);
    let over = now.ram_bytes > report.ram_limit_bytes + (1 << 20);
    let cells = vec![
        snapshot.pid.to_string(),
        snapshot.command.clone(),
        bytes(now.resident_bytes as f64),
        bytes(now.stored_bytes as f64),
        bytes(now.packed_bytes as f64),
        bytes(now.spilled_bytes as f64),
        shown_ratio(now.ratio),
        format!("{:.0}", rates.faults),
        time(report.fault_ns.p50),
        time(report.fault_ns.p90),
        time(report.fault_ns.p99),
        format!("{:.0}", rates.refaults),
        bytes(rates.spill_written_bytes),
        bytes(rates.spill_read_bytes),
    ];
    Row { level: if over { Level::Over } else { Level::Whole }, cells }
}

fn disk(Watched { snapshot, rates }: &Disk) -> Vec<Row> {
    let figures = &snapshot.figures;
    let sum = |of: fn(&ExportRates) -> f64| rates.exports.iter().map(of).sum::<f64>();
    let cells = vec![
        snapshot.pid.to_string(),
        snapshot.address.clone(),
        bytes(figures.used_bytes as f64),
        bytes(figures.stored_bytes as f64),
        bytes(figures.packed_bytes as f64),
        bytes(figures.spilled_bytes as f64),
        shown_ratio(figures.ratio),
        figures.connections.to_string(),
        String::new(),
        format!("{:.0}", sum(|rates| rates.reads)),
        format!("{:.0}", sum(|rates| rates.writes)),
        bytes(sum(|rates| rates.read_bytes)),
        bytes(sum(|rates| rates.written_bytes)),
    ];
    let level = if figures.used_bytes > figures.ram_bytes { Level::Over } else { Level::Whole };
    let mut rows = vec![Row { level, cells }];
    for (at, export) in figures.exports.iter().enumerate() {
        let rates = rates.exports.get(at).cloned().unwrap_or_default();
        let looked_up = rates.cache_hits + rates.cache_misses;
        let hits = if looked_up > 0.0 { format!("{:.1}", 100.0 * rates.cache_hits / looked_up) } else { String::new() };
        let name = if export.name.is_empty() { "(first)" } else { &export.name };
        let cells = vec![
            String::new(),
            format!("  {name}"),
            String::new(),
            bytes(export.stored_bytes as f64),
            bytes(export.packed_bytes as f64),
            String::new(),
            String::new(),
            String::new(),
            hits,
            format!("{:.0}", rates.reads),
            format!("{:.0}", rates.writes),
            bytes(rates.read_bytes),
            bytes(rates.written_bytes),
        ];
        rows.push(Row { level: Level::Part, cells });
    }
    rows
}

fn cache(Watched { snapshot, rates }: &Cache) -> Row {
    let figures = &snapshot.figures;
    let looked_up = rates.hits + rates.misses;
    let cells = vec![
        snapshot.pid.to_string(),
        snapshot.address.clone(),
        bytes(figures.used_bytes as f64),
        bytes(figures.stored_bytes as f64),
        bytes(figures.packed_bytes as f64),
        shown_ratio(figures.ratio),
        figures.keys.to_string(),
        figures.connections.to_string(),
        if looked_up > 0.0 { format!("{:.1}", 100.0 * rates.hits / looked_up) } else { String::new() },
        format!("{:.0}", rates.commands),
        format!("{:.0}", rates.evicted),
    ];
    Row { level: if figures.used_bytes > figures.ram_bytes { Level::Over } else { Level::Whole }, cells }
}

fn process(process: &ProcessFigures) -> Vec<Row> {
    let mut cells = vec![format!("  {}", process.pid), process.name.clone(), bytes(process.resident_bytes as f64)];
    // Where each packed page lies is not known by process.
    cells.extend(process.managed.then(|| bytes(process.stored_bytes as f64)));
    let mut rows = vec![Row { level: Level::Part, cells }];
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

/// The tables as text.
pub fn plain(view: &View) -> String {
    let mut text = String::new();
    for table in tables(view) {
        let all = (0..table.columns.len()).collect::<Vec<_>>();
        for row in [&table.titles()].into_iter().chain(&table.rows) {
            text += line(row, table.columns, &all).trim_end();
            text.push('\n');
        }
    }
    text
}

/// Those cells of a row that are shown.
pub fn line(row: &Row, columns: &[Column], shown: &[usize]) -> String {
    let cells = shown.iter().filter_map(|&at| row.cells.get(at).map(|cell| aligned(cell, at, columns)));
    cells.collect::<Vec<_>>().join(" ")
}

/// A cell as wide as its column at least.
fn aligned(text: &str, at: usize, columns: &[Column]) -> String {
    let width = columns[at].width;
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
    use tmem_disk::{ExportFigures, Figures};
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
        let silent = vec![Silent { kind: tmem_run::KIND, pid: 7, why: "it does not answer".to_owned() }];
        let text = plain(&View { supervisors: vec![watched], silent, ..View::default() });
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

    #[test]
    fn disks_have_a_table_of_their_own() {
        let export =
            |name: &str| ExportFigures { name: name.to_owned(), stored_bytes: 5 << 20, ..ExportFigures::default() };
        let figures = Figures { connections: 3, exports: vec![export(""), export("b")], ..Figures::default() };
        let snapshot = tmem_disk::Snapshot { pid: 8, address: "unix:/x".to_owned(), figures, ..Default::default() };
        let rates = |reads| ExportRates { reads, cache_hits: 3.0, cache_misses: 1.0, ..ExportRates::default() };
        let rates = tmem_disk::Rates { exports: vec![rates(10.0), rates(5.4)], ..tmem_disk::Rates::default() };
        let silent = vec![Silent { kind: tmem_disk::KIND, pid: 9, why: "it does not answer".to_owned() }];
        let text = plain(&View { disks: vec![Watched { snapshot, rates }], silent, ..View::default() });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[0].starts_with("PID       DISK "), "{text}");
        assert!(lines[1].starts_with("8         unix:/x ") && lines[1].contains(" 15 "), "{text}");
        assert!(lines[2].contains("  (first) ") && lines[2].contains("75.0"), "{text}");
        assert!(lines[3].contains("  b ") && lines[3].contains("5.0 MiB"), "{text}");
        assert_eq!(lines[4], "9         it does not answer");
    }

    #[test]
    fn caches_have_one_too() {
        let figures = tmem_serve::Figures { keys: 12_345, ..tmem_serve::Figures::default() };
        let snapshot =
            tmem_serve::Snapshot { pid: 8, address: "127.0.0.1:1".to_owned(), figures, ..Default::default() };
        let rates = tmem_serve::Rates { hits: 3.0, misses: 1.0, commands: 77.0, ..tmem_serve::Rates::default() };
        let text = plain(&View { caches: vec![Watched { snapshot, rates }], ..View::default() });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 2 && lines[0].starts_with("PID       CACHE "), "{text}");
        assert!(["127.0.0.1:1", "12345", "75.0", " 77 "].iter().all(|cell| lines[1].contains(cell)), "{text}");
    }
}
