//! `tmem doctor`: what the checks found, for people or for programs.

use std::io::{self, IsTerminal, Write};

use tmem_run::doctor::{Check, CheckState};

/// Prints the checks and tells whether `tmem run` can work here.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn print(checks: &[Check], json: bool) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, checks)?;
        writeln!(out)?;
    } else {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        out.write_all(table(checks, colour).as_bytes())?;
    }
    out.flush()?;
    Ok(can_run(checks))
}

fn can_run(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != CheckState::Missing)
}

fn table(checks: &[Check], colour: bool) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (word, code) = match check.state {
            CheckState::Ok => ("ok", "32"),
            CheckState::Missing => ("MISSING", "31;1"),
            CheckState::Note => ("note", "33"),
        };
        let word = format!("{word:<7}");
        let word = if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word };
        text.push_str(&format!("{word}  {:<width$}  {}\n", check.name, check.finding));
        for line in check.fix.iter().flat_map(|fix| fix.lines()) {
            text.push_str(&format!("{:width$}  -> {line}\n", "", width = width + 9));
        }
    }
    let verdict = match can_run(checks) {
        true => "tmem run can work here.",
        false => "tmem run cannot work here: grant what is missing, then ask again.",
    };
    text.push_str(&format!("\n{verdict}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, state: CheckState, fix: Option<&str>) -> Check {
        Check { name: name.to_owned(), state, finding: "found".to_owned(), fix: fix.map(str::to_owned) }
    }

    #[test]
    fn a_missing_thing_shows_how_to_grant_it() {
        let checks =
            [check("kernel", CheckState::Ok, None), check("userfaultfd", CheckState::Missing, Some("first\nsecond"))];
        assert!(!can_run(&checks));
        let text = table(&checks, false);
        assert_eq!(
            text,
            "ok       kernel       found\n\
             MISSING  userfaultfd  found\n\
             \x20                     -> first\n\
             \x20                     -> second\n\
             \ntmem run cannot work here: grant what is missing, then ask again.\n"
        );
        assert!(table(&checks, true).contains("\x1b[31;1mMISSING\x1b[0m"));
    }

    #[test]
    fn notes_do_not_stand_in_the_way() {
        assert!(can_run(&[check("huge pages", CheckState::Note, Some("a hint"))]));
    }
}
