//! The live table on the terminal.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::{DefaultTerminal, Frame};

use super::rows::{self, Column, Level};
use super::{View, Watched};

/// How often to look whether a signal arrived.
const LOOK: Duration = Duration::from_millis(100);

/// Draws until the user has seen enough. The terminal is as it was afterwards, also after a panic.
///
/// # Errors
///
/// When the terminal refuses.
pub fn run(interval: Duration) -> io::Result<()> {
    end_on_signals();
    let terminal = ratatui::try_init()?;
    let result = watch(terminal, interval);
    let restored = ratatui::try_restore();
    result.and(restored)
}

/// Set by a signal that asks to end.
static ENDED: AtomicBool = AtomicBool::new(false);

/// A signal from outside must not leave the terminal as it is drawn on.
fn end_on_signals() {
    extern "C" fn end(_: libc::c_int) {
        ENDED.store(true, Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: the handler stores to an atomic and does nothing else, which is allowed in a handler.
        unsafe { libc::signal(signal, end as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// What the user asked for.
enum Wish {
    End,
    Scroll(isize),
    Nothing,
}

fn watch(mut terminal: DefaultTerminal, interval: Duration) -> io::Result<()> {
    let mut screen = Screen { view: View::default(), interval, top: 0, colour: wants_colour() };
    let mut next = Instant::now();
    while !ENDED.load(Relaxed) {
        if Instant::now() >= next {
            screen.view.update(super::look());
            next = Instant::now() + interval;
        }
        terminal.draw(|frame| screen.draw(frame))?;
        while !ENDED.load(Relaxed) && Instant::now() < next {
            if !event::poll(LOOK.min(next.saturating_duration_since(Instant::now())))? {
                continue;
            }
            match wish(&event::read()?) {
                Wish::End => return Ok(()),
                Wish::Scroll(lines) => screen.top = screen.top.saturating_add_signed(lines),
                Wish::Nothing => {}
            }
            // Drawn anew, also where only the size has changed.
            break;
        }
    }
    Ok(())
}

fn wish(event: &Event) -> Wish {
    let Event::Key(key) = event else { return Wish::Nothing };
    if key.kind == KeyEventKind::Release {
        return Wish::Nothing;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Wish::End,
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Wish::End,
        KeyCode::Up | KeyCode::Char('k') => Wish::Scroll(-1),
        KeyCode::Down | KeyCode::Char('j') => Wish::Scroll(1),
        KeyCode::PageUp => Wish::Scroll(-10),
        KeyCode::PageDown => Wish::Scroll(10),
        KeyCode::Home => Wish::Scroll(isize::MIN),
        _ => Wish::Nothing,
    }
}

fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

struct Screen {
    view: View,
    interval: Duration,
    /// The first row that is shown.
    top: usize,
    colour: bool,
}

impl Screen {
    fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
        frame.render_widget(Line::from(self.summary()).style(Modifier::BOLD), head);
        let keys = format!("q ends, arrows scroll; every {} s", self.interval.as_secs_f64());
        frame.render_widget(Line::from(keys).style(Modifier::DIM), foot);
        if self.view.is_empty() {
            frame.render_widget(Paragraph::new(self.view.advice()).wrap(ratatui::widgets::Wrap { trim: true }), body);
            return;
        }
        self.draw_tables(frame, body);
    }

    fn draw_tables(&mut self, frame: &mut Frame<'_>, body: Rect) {
        let mut lines = Vec::new();
        for table in rows::tables(&self.view) {
            let shown = columns_for(table.columns, body.width.into());
            for row in [&table.titles()].into_iter().chain(&table.rows) {
                let mut text = rows::line(row, table.columns, &shown);
                if row.level == Level::Title {
                    text = format!("{text:<width$}", width = body.width.into());
                }
                lines.push(Line::from(text).style(self.style(row.level)));
            }
        }
        self.top = self.top.min(lines.len().saturating_sub(body.height.into()));
        let visible: Vec<_> = lines.into_iter().skip(self.top).take(body.height.into()).collect();
        frame.render_widget(Paragraph::new(visible), body);
    }

    fn style(&self, level: Level) -> Style {
        let (modifier, colour) = match level {
            Level::Whole => (Modifier::BOLD, Color::Green),
            Level::Over => (Modifier::BOLD, Color::Red),
            Level::Part => (Modifier::empty(), Color::Reset),
            Level::Remark => (Modifier::empty(), Color::Yellow),
            Level::Title => (Modifier::REVERSED, Color::Reset),
        };
        let style = Style::new().add_modifier(modifier);
        if self.colour { style.fg(colour) } else { style }
    }

    fn summary(&self) -> String {
        let runs = self
            .view
            .supervisors
            .iter()
            .map(|Watched { snapshot, .. }| (snapshot.now.ram_bytes, snapshot.report.ram_limit_bytes));
        let disks = self
            .view
            .disks
            .iter()
            .map(|Watched { snapshot, .. }| (snapshot.figures.used_bytes, snapshot.figures.ram_bytes));
        let caches = self
            .view
            .caches
            .iter()
            .map(|Watched { snapshot, .. }| (snapshot.figures.used_bytes, snapshot.figures.ram_bytes));
        let all: Vec<(u64, u64)> = runs.chain(disks).chain(caches).collect();
        let (now, limit) = all.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let others =
            if self.view.others > 0 { format!(", {} of other users", self.view.others) } else { String::new() };
        let (count, now, limit) = (all.len(), rows::bytes(now as f64), rows::bytes(limit as f64));
        format!("tmem top: {count} running{others}; {now} of {limit} in use")
    }
}

/// The columns that fit so many characters.
fn columns_for(columns: &[Column], width: usize) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needs = |shown: &[usize]| shown.iter().map(|&at| columns[at].width + 1).sum::<usize>() - 1;
    while needs(&shown) > width {
        let worst = shown.iter().copied().max_by_key(|&at| columns[at].rank).filter(|&at| columns[at].rank > 0);
        let Some(worst) = worst else { break };
        shown.retain(|&at| at != worst);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;
    use tmem_watch::{Answer, Answers};

    use super::super::rows::SUPERVISORS;

    fn drawn(view: View, width: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, 8)).unwrap();
        let mut screen = Screen { view, interval: Duration::from_secs(1), top: 99, colour: true };
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn columns_go_by_rank_where_there_is_no_room() {
        assert_eq!(columns_for(SUPERVISORS, 200).len(), SUPERVISORS.len());
        let titles =
            |width| columns_for(SUPERVISORS, width).into_iter().map(|at| SUPERVISORS[at].title).collect::<Vec<_>>();
        let narrow = titles(80);
        assert!(narrow.contains(&"SPILLED") && narrow.contains(&"FAULT/s") && !narrow.contains(&"P90"), "{narrow:?}");
        assert_eq!(titles(1), ["PID", "PROGRAM", "RESIDENT"]);
    }

    #[test]
    fn it_is_drawn_on_any_terminal() {
        for width in [1, 40, 80, 300] {
            let mut view = View::default();
            let text = drawn(View::default(), width);
            assert!(width < 80 || text.contains("tmem run --ram 1G"), "{text}");
            let answer = |kind, pid, figures| Answer { kind, pid, figures: Ok(figures) };
            let run = answer(tmem_run::KIND, 4711, json!({"pid": 4711, "command": "sort"}));
            let disk = answer(tmem_disk::KIND, 4712, json!({"pid": 4712, "exports": [{"name": "scratch"}]}));
            view.update(Answers { ours: vec![run, disk], others: 1 });
            let text = drawn(view, width);
            assert!(
                width < 80 || ["4711", "4712", "scratch", "1 of other users"].iter().all(|t| text.contains(t)),
                "{text}"
            );
        }
    }
}
