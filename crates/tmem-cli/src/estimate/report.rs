//! What `tmem estimate` says, for people and for programs.

use serde_json::{Value, json};
use tmem::PAGE_SIZE;

use super::measure::Row;
use super::sample::{Content, Sample};
use super::source::Source;

/// A saving under this share is not worth the faults.
const SAVING_MIN: f64 = 0.1;

/// The smallest budget of `tmem run`.
const BUDGET_BYTES_MIN: f64 = (12 << 20) as f64;

/// All that was found.
pub struct Report<'a> {
    pub source: &'a dyn Source,
    pub sample: &'a Sample<'a>,
    pub content: Content,
    pub rows: &'a [Row],
}

/// Bytes in MiB, with as many digits as help.
pub fn mib(bytes: f64) -> String {
    let mib = bytes / f64::from(1 << 20);
    let digits = if mib.abs() < 9.995 { 2 } else { 1 };
    format!("{mib:.digits$} MiB")
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Report<'_> {
    fn bytes(&self) -> f64 {
        (self.sample.pages_total * PAGE_SIZE as u64) as f64
    }

    /// The table, with the sentence that it leads to.
    pub fn table(&self) -> String {
        let mut text = self.head();
        text.push_str(&format!(
            "\n{:<9}{:<10}{:>12}{:>12}{:>7}{:>12}{:>7}{:>9}{:>9}\n",
            "codec", "allocator", "takes", "margin", "ratio", "cold", "raw", "put", "get"
        ));
        for row in self.rows {
            let margin =
                if row.margin_bytes > 0.0 { format!("± {}", mib(row.margin_bytes)) } else { "exact".to_owned() };
            text.push_str(&format!(
                "{:<9}{:<10}{:>12}{margin:>12}{:>7.2}{:>12}{:>7}{:>9}{:>9}{}\n",
                row.codec,
                row.allocator,
                mib(row.bytes),
                self.bytes() / row.bytes,
                mib(row.cold_bytes),
                percent(row.incompressible, row.pages),
                microseconds(row.put_ns),
                microseconds(row.get_ns),
                if row.default { "  <- tmem run" } else { "" },
            ));
        }
        text.push_str(
            "\ntakes: all of it, in a store, with index, tables and codec contexts. raw: pages stored as they are.\n\
             cold: the same when nobody has touched it for long, and neighbours were packed again together.\n",
        );
        if self.rows.iter().any(|row| row.margin_bytes > 0.0) {
            text.push_str("margin: 95 of 100 samples are no further from the truth.\n");
        }
        text.push_str("put, get: mean time of a page on this machine, one thread.\n");
        if let Some(row) = self.rows.iter().find(|row| row.default) {
            text.push_str(&format!("\n{}\n", verdict(self.bytes(), row)));
        }
        text
    }

    fn head(&self) -> String {
        let (sample, content) = (self.sample, self.content);
        let mut text =
            format!("{}: {} in {} pages\n", self.source.title(), mib(self.bytes()), grouped(sample.pages_total));
        for note in self.source.notes() {
            text.push_str(&format!("{note}\n"));
        }
        let read = grouped(content.pages);
        text.push_str(&match content.pages == sample.pages_total {
            true => format!("Read: {read} pages, all that were there.\n"),
            false => format!(
                "Read: {read} pages, in {} of {} clusters of up to 64 neighbours, chosen at random (--seed {}).\n",
                grouped(content.clusters),
                grouped(sample.clusters_total),
                sample.seed
            ),
        });
        if sample.ended {
            text.push_str("It ended while it was read: the figures rest on what had been read by then.\n");
        } else if content.pages < sample.pages_chosen {
            let lost = grouped(sample.pages_chosen - content.pages);
            text.push_str(&format!("{lost} chosen pages could not be read: they were given up meanwhile.\n"));
        }
        text.push_str(&format!(
            "\nsame-filled  {:>6}   one repeated word, mostly zeros: takes no more than its entry in the index\n\
             duplicates   {:>6}   equal to another page{}; tmem does not merge them at present\n",
            percent(content.same_filled, content.pages),
            percent(content.duplicates, content.pages),
            if content.pages < sample.pages_total { " that was read" } else { "" },
        ));
        text
    }

    /// The same figures as one object.
    pub fn json(&self) -> Value {
        let (sample, content) = (self.sample, self.content);
        json!({
            "source": self.source.json(),
            "pages": sample.pages_total,
            "bytes": sample.pages_total * PAGE_SIZE as u64,
            "sample": {
                "pages_chosen": sample.pages_chosen,
                "pages_read": content.pages,
                "clusters_read": content.clusters,
                "clusters": sample.clusters_total,
                "seed": sample.seed,
                "ended": sample.ended,
            },
            "same_filled_pages": content.same_filled,
            "duplicate_pages": content.duplicates,
            "rows": self.rows.iter().map(|row| self.row_json(row)).collect::<Vec<_>>(),
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        json!({
            "codec": row.codec,
            "allocator": row.allocator,
            "default": row.default,
            "bytes": row.bytes.round() as u64,
            "margin_bytes": row.margin_bytes.round() as u64,
            "fixed_bytes": row.fixed_bytes,
            "ratio": self.bytes() / row.bytes,
            "cold_bytes": row.cold_bytes.round() as u64,
            "pages_read": row.pages,
            "incompressible_pages": row.incompressible,
            "put_ns": row.put_ns.round() as u64,
            "get_ns": row.get_ns.round() as u64,
        })
    }
}

/// One plain statement: does it pay?
fn verdict(whole: f64, row: &Row) -> String {
    let margin = if row.margin_bytes > 0.0 { format!(" (± {})", mib(row.margin_bytes)) } else { String::new() };
    let fits = format!("This memory of {} would fit into about {}{margin} under tmem run", mib(whole), mib(row.bytes));
    let share = row.bytes / whole;
    if share > 1.0 - SAVING_MIN {
        return format!("tmem does not pay here: it saves next to nothing.\n{fits}.");
    }
    if whole / 2.0 < BUDGET_BYTES_MIN {
        return format!("tmem hardly pays here: the smallest budget is {}.\n{fits}.", mib(BUDGET_BYTES_MIN));
    }
    let half = mib(whole / 2.0);
    if share >= 0.5 {
        return format!("{fits}, if all of it were compressed.\nHalf of the RAM ({half}) would not be enough.");
    }
    let stays = (0.5 - share) / (1.0 - share) * 100.0;
    format!(
        "{fits}, if all of it were compressed.\n\
         In half of the RAM ({half}), {stays:.0} % of its pages could stay as they are: what the program works on at a time \
         should fit into these."
    )
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

fn microseconds(ns: f64) -> String {
    format!("{:.2} us", ns / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(whole_mib: u32, takes_mib: u32, margin_mib: u32) -> String {
        let [bytes, margin_bytes] = [takes_mib, margin_mib].map(|mib| f64::from(mib << 20));
        let (codec, allocator, default) = ("zstd", "log", true);
        let (fixed_bytes, pages, incompressible, put_ns, get_ns, cold_bytes) = (0, 1, 0, 0.0, 0.0, bytes);
        let row = Row {
            codec,
            allocator,
            default,
            bytes,
            margin_bytes,
            cold_bytes,
            fixed_bytes,
            pages,
            incompressible,
            put_ns,
            get_ns,
        };
        verdict(f64::from(whole_mib << 20), &row)
    }

    #[test]
    fn the_verdict_is_honest() {
        let good = said(400, 100, 5);
        assert!(
            good.starts_with("This memory of 400.0 MiB would fit into about 100.0 MiB (± 5.00 MiB) under tmem run")
        );
        assert!(good.contains("In half of the RAM (200.0 MiB), 33 % of its pages could stay"), "{good}");
        assert!(said(400, 250, 0).contains("Half of the RAM (200.0 MiB) would not be enough"));
        assert!(!said(400, 250, 0).contains('±'));
        assert!(said(400, 370, 5).starts_with("tmem does not pay here"));
        assert!(said(400, 410, 0).starts_with("tmem does not pay here"));
        assert!(said(20, 5, 0).starts_with("tmem hardly pays here: the smallest budget is 12.0 MiB"));
    }

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(
            ["1", "999", "1,000", "1,234,567"],
            [1, 999, 1000, 1_234_567].map(grouped).each_ref().map(String::as_str)
        );
        assert_eq!(mib(f64::from(3 << 19)), "1.50 MiB");
        assert_eq!(mib(f64::from(10 << 20)), "10.0 MiB");
        assert_eq!((percent(1, 8), percent(0, 0)), ("12.5 %".to_owned(), "0.0 %".to_owned()));
    }
}
