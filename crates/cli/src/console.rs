//! The only module that writes to the terminal. Results go to stdout, everything else to stderr.
//!
//! It knows colour and whether anybody watches; it does not know what is printed.

use clap::ValueEnum;
use std::{
    io::{self, IsTerminal, Write},
    sync::Arc,
};

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A way to mark text.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    /// Stands out.
    Bold,
    /// Steps back.
    Dim,
    /// Good.
    Green,
    /// Worth a look.
    Yellow,
    /// Bad.
    Red,
}

/// The terminal.
#[derive(Clone, Debug)]
pub struct Console {
    stdout_color: bool,
    stderr_color: bool,
    /// Whether stderr is watched by a person, so that bars may move on it.
    live: bool,
    bars: Arc<indicatif::MultiProgress>,
}

impl Console {
    /// The process's terminal.
    pub fn new(color: ColorChoice) -> Self {
        let unless_plain = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let colored = |terminal: bool| match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && unless_plain,
        };
        let live = io::stderr().is_terminal();
        Self {
            stdout_color: colored(io::stdout().is_terminal()),
            stderr_color: colored(live),
            live,
            bars: Arc::new(indicatif::MultiProgress::new()),
        }
    }

    /// Whether bars may move on stderr.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Where bars are added.
    pub fn bars(&self) -> &indicatif::MultiProgress {
        &self.bars
    }

    /// Whether stdout is coloured.
    pub fn colors_stdout(&self) -> bool {
        self.stdout_color
    }

    /// Whether stderr is coloured.
    pub fn colors_stderr(&self) -> bool {
        self.stderr_color
    }

    /// Text for stdout, marked if stdout is coloured.
    pub fn mark(&self, mark: Mark, text: &str) -> String {
        marked(self.stdout_color, mark, text)
    }

    /// Prints a line of the result. A reader that went away (`| head`) is not an error.
    pub fn print(&self, text: &str) {
        self.bars.suspend(|| {
            // Nothing sensible is left to do when nobody reads.
            let _ = writeln!(io::stdout().lock(), "{text}");
        });
    }

    /// Prints text of the result as it is, without a line break of its own.
    pub fn print_raw(&self, text: &[u8]) {
        let _ = io::stdout().lock().write_all(text);
    }

    /// Tells the user something beside the result.
    pub fn note(&self, text: &str) {
        self.bars.suspend(|| {
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }

    /// Warns.
    pub fn warn(&self, text: &str) {
        self.note(&format!("{} {text}", marked(self.stderr_color, Mark::Yellow, "warning:")));
    }

    /// Says what went wrong.
    pub fn error(&self, text: &str) {
        self.note(&format!("{} {text}", marked(self.stderr_color, Mark::Red, "error:")));
    }
}

/// `text` with ANSI codes, if `colored`.
pub fn marked(colored: bool, mark: Mark, text: &str) -> String {
    if !colored {
        return text.to_owned();
    }
    let code = match mark {
        Mark::Bold => 1,
        Mark::Dim => 2,
        Mark::Green => 32,
        Mark::Yellow => 33,
        Mark::Red => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Writes log lines round the bars: `tracing` gets this as its writer.
#[derive(Clone, Debug)]
pub struct LogWriter(pub Console);

impl Write for LogWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.bars.suspend(|| io::stderr().lock().write_all(buffer)).map(|()| buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Lines of equally wide columns, two spaces between them; the last column is not padded.
pub fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|i| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0))
        .collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                let pad = if i + 1 == row.len() { 0 } else { widths[i] + 2 - cell.chars().count() };
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', pad));
            }
            line
        })
        .collect()
}

/// So many of something: `1 stage`, `2 stages`.
pub fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", thousands(count))
}

/// `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes for people, in powers of 1,000: `98.4 MB`.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "bb".into(), "c".into()], vec!["aaa".into(), "b".into(), "cc".into()]];
        assert_eq!(columns(&rows), ["a    bb  c", "aaa  b   cc"]);
    }

    #[test]
    fn numbers_are_grouped_and_scaled() {
        assert_eq!([0, 999, 1_000, 970_009, 1_000_209].map(thousands), ["0", "999", "1,000", "970,009", "1,000,209"]);
        assert_eq!([12, 4_924_029, 98_362_432].map(bytes), ["12 B", "4.9 MB", "98.4 MB"]);
    }

    #[test]
    fn marks_leave_plain_text_alone() {
        assert_eq!(marked(false, Mark::Red, "x"), "x");
        assert_eq!(marked(true, Mark::Bold, "x"), "\x1b[1mx\x1b[0m");
    }
}
