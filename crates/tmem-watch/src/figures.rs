//! The one table of figures. A figure is declared once, with its meaning, as a field of a structure; the names in JSON
//! (`--stats`, `tmem top --json`), the metrics of `--metrics` and `docs/stats.md` come from that.
//!
//! A metric is called like its field, with a prefix in front, dots turned into underscores, and `_total` behind a counter.

use serde::Serialize;
use serde_json::Value;

/// What kind of figure a field is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Is only ever added to.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Names what the others are about: no metric, but a label of metrics.
    Label,
    /// Only in JSON.
    Note,
    /// A structure of figures.
    Group(&'static [Figure]),
    /// A structure whose fields stand in place of this one.
    Inline(&'static [Figure]),
    /// Any number of structures of figures; the word is what one of them is called in metrics.
    List(&'static str, &'static [Figure]),
}

/// One field of a structure of figures.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// What it means.
    pub meaning: &'static str,
}

/// Declares a structure of figures and the table of its fields. It needs `serde` where it is used.
#[macro_export]
macro_rules! figures {
    ($(#[$doc:meta])* $name:ident { $($(#[$more:meta])* $field:ident: $type:ty, $kind:expr, $meaning:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name { $(#[doc = $meaning] $(#[$more])* pub $field: $type),+ }

        impl $name {
            /// The table of its fields.
            pub const FIGURES: &'static [$crate::figures::Figure] = {
                use $crate::figures::Kind::*;
                &[$($crate::figures::Figure { name: stringify!($field), kind: $kind, meaning: $meaning }),+]
            };
        }
    };
}

/// A figure with its place.
#[derive(Clone, Debug)]
pub struct Described {
    /// Where it is in JSON: names with dots, `[]` behind a list.
    pub path: String,
    /// What it is called as a metric, if it is one.
    pub metric: Option<String>,
    /// What kind of metric it is.
    pub kind: Kind,
    /// What it means.
    pub meaning: &'static str,
}

/// All figures of a structure, groups and lists unfolded. Metrics begin with `prefix`.
pub fn describe(prefix: &str, figures: &[Figure]) -> Vec<Described> {
    let mut all = Vec::new();
    describe_into(figures, "", prefix, &mut all);
    all
}

fn describe_into(figures: &[Figure], path: &str, prefix: &str, all: &mut Vec<Described>) {
    for &Figure { name, kind, meaning } in figures {
        let here = format!("{path}{name}");
        match kind {
            Kind::Group(fields) => describe_into(fields, &format!("{here}."), &format!("{prefix}_{name}"), all),
            Kind::Inline(fields) => describe_into(fields, path, prefix, all),
            Kind::List(one, fields) => describe_into(fields, &format!("{here}[]."), &format!("{prefix}_{one}"), all),
            _ => all.push(Described { path: here, metric: metric(prefix, name, kind), kind, meaning }),
        }
    }
}

fn metric(prefix: &str, name: &str, kind: Kind) -> Option<String> {
    match kind {
        Kind::Counter => Some(format!("{prefix}_{name}_total")),
        Kind::Gauge => Some(format!("{prefix}_{name}")),
        _ => None,
    }
}

/// All metrics of a structure in Prometheus' text format (version 0.0.4). They begin with `prefix`.
pub fn metrics(prefix: &str, figures: &'static [Figure], structure: &impl Serialize) -> String {
    let mut text = String::new();
    // A structure of numbers and texts has nothing that JSON has not.
    let value = serde_json::to_value(structure).unwrap_or_default();
    add_metrics(figures, &[&value], prefix, &mut text);
    text
}

/// Adds the metrics of structures of one kind: all values of one metric stand together, as the format wants it.
fn add_metrics(figures: &'static [Figure], structures: &[&Value], prefix: &str, text: &mut String) {
    for &Figure { name, kind, meaning } in figures {
        match kind {
            Kind::Group(fields) => {
                let groups: Vec<_> = structures.iter().filter_map(|value| value.get(name)).collect();
                add_metrics(fields, &groups, &format!("{prefix}_{name}"), text);
            }
            Kind::Inline(fields) => add_metrics(fields, structures, prefix, text),
            Kind::List(one, fields) => {
                let lists = structures.iter().filter_map(|value| value.get(name)?.as_array());
                add_metrics(fields, &lists.flatten().collect::<Vec<_>>(), &format!("{prefix}_{one}"), text);
            }
            _ => {
                let Some(metric) = metric(prefix, name, kind) else { continue };
                let word = if matches!(kind, Kind::Counter) { "counter" } else { "gauge" };
                *text += &format!("# HELP {metric} {}\n# TYPE {metric} {word}\n", escaped(meaning, false));
                for structure in structures {
                    if let Some(number) = structure.get(name).filter(|value| value.is_number()) {
                        *text += &format!("{metric}{} {number}\n", labels(figures, structure));
                    }
                }
            }
        }
    }
}

fn labels(figures: &[Figure], structure: &Value) -> String {
    let label = |figure: &Figure| {
        let value = match structure.get(figure.name)? {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(format!("{}=\"{}\"", figure.name, escaped(&value, true)))
    };
    let all: Vec<_> = figures.iter().filter(|f| matches!(f.kind, Kind::Label)).filter_map(label).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn escaped(text: &str, quoted: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quoted { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    figures! {
        /// A part.
        Part { pid: i32, Label, "Number."; name: String, Label, "Name."; bytes: u64, Gauge, "Bytes of \\ it."; }
    }
    figures! {
        /// A whole.
        Whole {
            hits: u64, Counter, "Hits.";
            word: String, Note, "Text.";
            part: Part, Group(Part::FIGURES), "One.";
            parts: Vec<Part>, List("each", Part::FIGURES), "Many.";
        }
    }

    #[test]
    fn names_come_from_the_table() {
        let all = describe("tmem", Whole::FIGURES);
        let paths: Vec<_> = all.iter().map(|d| (d.path.as_str(), d.metric.as_deref())).collect();
        assert_eq!(paths[0], ("hits", Some("tmem_hits_total")));
        assert_eq!(paths[1], ("word", None));
        assert!(paths.contains(&("part.bytes", Some("tmem_part_bytes"))));
        assert!(paths.contains(&("parts[].bytes", Some("tmem_each_bytes"))));
    }

    #[test]
    fn metrics_stand_together_and_are_escaped() {
        let part = |pid, name: &str| Part { pid, name: name.to_owned(), bytes: 7 };
        let parts = vec![part(1, "a\"b\\c\nd"), part(2, "e")];
        let text = metrics("tmem", Whole::FIGURES, &Whole { hits: 3, parts, ..Whole::default() });
        assert!(text.starts_with("# HELP tmem_hits_total Hits.\n# TYPE tmem_hits_total counter\ntmem_hits_total 3\n"));
        let each = "# HELP tmem_each_bytes Bytes of \\\\ it.\n# TYPE tmem_each_bytes gauge\n\
                    tmem_each_bytes{pid=\"1\",name=\"a\\\"b\\\\c\\nd\"} 7\ntmem_each_bytes{pid=\"2\",name=\"e\"} 7\n";
        assert!(text.ends_with(each), "{text}");
    }
}
