//! A pull as the user sees it: terms, a bar or plain lines, one line a failed mirror.

use crate::{
    console::{Console, bytes},
    sources::PullEvent,
};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

/// How often a plain line is printed.
const EVERY: Duration = Duration::from_secs(10);

/// Shows the events of pulls.
pub struct PullView {
    console: Console,
    state: RefCell<State>,
}

struct State {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl PullView {
    /// A view on the terminal.
    pub fn new(console: Console) -> Self {
        Self { console, state: RefCell::new(State { bar: None, last_line: Instant::now() }) }
    }

    /// Shows one event.
    pub fn show(&self, event: PullEvent) {
        match event {
            PullEvent::Terms { name, title, terms } => {
                self.console.note(&format!("pulling {name}: {title}\n  terms: {terms}"));
            }
            PullEvent::Waiting { name } => {
                self.console.note(&format!("another process is pulling {name}; waiting for it"));
            }
            PullEvent::Trying { mirror } => {
                self.console.note(&format!("  from {mirror}"));
                self.begin();
            }
            PullEvent::Bytes { done, total } => self.advance(done, total),
            PullEvent::MirrorFailed { why, .. } => {
                self.end();
                self.console.note(&format!("  failed: {why}"));
            }
            PullEvent::Done { record, folder } => {
                self.end();
                let variant = if record.note.is_empty() {
                    String::new()
                } else {
                    format!("; variant {}: {}", record.variant, record.note)
                };
                let size = bytes(record.files.iter().map(|f| f.bytes).sum());
                // What to pin is told where the catalogue does not pin it.
                let digest =
                    if record.name.contains(':') { format!("; sha256 {}", record.digest) } else { String::new() };
                self.console.note(&format!("  verified: {size} in {}{variant}{digest}", folder.display()));
            }
        }
    }

    fn begin(&self) {
        let mut state = self.state.borrow_mut();
        state.last_line = Instant::now();
        if self.console.is_live() {
            let bar = self.console.bars().add(ProgressBar::new_spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar.set_style(style("  {spinner} {elapsed}"));
            state.bar = Some(bar);
        }
    }

    fn advance(&self, done: u64, total: u64) {
        let mut state = self.state.borrow_mut();
        if let Some(bar) = &state.bar {
            if bar.length() != Some(total) {
                bar.set_length(total);
                bar.set_style(style("  [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}"));
            }
            bar.set_position(done);
        } else if state.last_line.elapsed() >= EVERY {
            state.last_line = Instant::now();
            self.console.note(&format!("  {} of {}", bytes(done), bytes(total)));
        }
    }

    fn end(&self) {
        if let Some(bar) = self.state.borrow_mut().bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A style from a template that is part of this program.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
