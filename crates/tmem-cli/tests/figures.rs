//! One table of figures: what `docs/stats.md` says, what is declared, and what is printed are the same.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::{can_run, run_tmem};
use serde_json::Value;
use tmem_run::{Rates, Report, Snapshot};
use tmem_watch::{Described, describe};

const MARKS: (&str, &str) = ("<!-- figures: begin -->\n", "<!-- figures: end -->\n");

fn all() -> Vec<Described> {
    let rates = describe("tmem", Rates::FIGURES).into_iter();
    let rates = rates.map(|rate| Described { path: format!("rates.{}", rate.path), ..rate });
    describe("tmem", Snapshot::FIGURES).into_iter().chain(rates).collect()
}

fn table() -> String {
    let at_the_end: BTreeSet<String> =
        describe("tmem", Report::FIGURES).into_iter().map(|figure| figure.path).collect();
    let mut text = "| field | metric | `--stats` | meaning |\n|---|---|---|---|\n".to_owned();
    for Described { path, metric, meaning, .. } in all() {
        let metric = metric.map(|name| format!("`{name}`")).unwrap_or_default();
        let stats = if at_the_end.contains(&path) { "yes" } else { "" };
        text += &format!("| `{path}` | {metric} | {stats} | {meaning} |\n");
    }
    text
}

/// `UPDATE_DOCS=1` writes the table anew.
#[test]
fn the_documented_table_is_the_declared_one() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/stats.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS.0).unwrap();
    let (documented, after) = rest.split_once(MARKS.1).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return fs::write(&path, [before, MARKS.0, &table(), MARKS.1, after].concat()).unwrap();
    }
    assert_eq!(documented, table(), "docs/stats.md is not up to date: run this test with UPDATE_DOCS=1");
}

#[test]
fn names_are_unique_and_fit_prometheus() {
    let figures = all();
    let paths: BTreeSet<_> = figures.iter().map(|figure| &figure.path).collect();
    let metrics: Vec<_> = figures.iter().filter_map(|figure| figure.metric.clone()).collect();
    assert_eq!(paths.len(), figures.len());
    assert_eq!(metrics.iter().collect::<BTreeSet<_>>().len(), metrics.len());
    assert!(metrics.iter().all(|name| name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')));
}

/// The paths of everything in a JSON value.
fn paths(value: &Value, at: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            let dot = if at.is_empty() { "" } else { "." };
            paths(value, &format!("{at}{dot}{name}"), out);
        }),
        Value::Array(all) => all.iter().for_each(|value| paths(value, &format!("{at}[]"), out)),
        _ => drop(out.insert(at.to_owned())),
    }
}

#[test]
fn stats_has_exactly_what_is_declared() {
    if !can_run("stats_has_exactly_what_is_declared") {
        return;
    }
    let (status, out, err) = run_tmem(&["run", "--ram", "64M", "--stats", "-", "--", "true"]);
    assert_eq!(status, 0, "{err}");
    let mut printed = BTreeSet::new();
    paths(&serde_json::from_str(&out).unwrap(), "", &mut printed);
    let declared: BTreeSet<_> = describe("tmem", Report::FIGURES).into_iter().map(|figure| figure.path).collect();
    assert_eq!(printed, declared);
}

/// A live one: what `tmem top` prints about the shell that asks, and what a scrape of it gives.
#[test]
fn top_and_metrics_have_exactly_what_is_declared() {
    if !can_run("top_and_metrics_have_exactly_what_is_declared") {
        return;
    }
    let top = format!("{} top --once --json", common::tmem().display());
    let words = ["run", "--ram", "64M", "--metrics", "127.0.0.1:0", "--", "sh", "-c", &top];
    let (status, out, err) = run_tmem(&words);
    assert_eq!(status, 0, "{err}");
    let value: Value = serde_json::from_str(&out).unwrap();
    let ours =
        value["supervisors"].as_array().unwrap().iter().find(|s| s["metrics"].is_string() && s["command"] == "sh");
    let mut printed = BTreeSet::new();
    paths(ours.unwrap_or_else(|| panic!("{out}")), "", &mut printed);
    assert_eq!(printed, all().into_iter().map(|figure| figure.path).collect());
}
