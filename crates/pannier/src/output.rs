//! What the program prints: results for people or as JSON, bars, and failures.

use crate::api::types::ApiError;
use crate::cli::Output;
use crate::cli::size::Size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pannier_engine::error::ErrorKind;
use serde::Serialize;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Why a command failed: the kind of the API, and a text that names the thing, the cause and the
/// way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) ApiError);

impl Failure {
    /// A failure of a kind.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(ApiError { kind: kind_name(kind).to_owned(), message: message.into() })
    }

    /// A wrong request.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// An I/O error while doing `what`.
    pub(crate) fn io(what: impl std::fmt::Display, error: std::io::Error) -> Self {
        pannier_engine::error::Error::io(what, error).into()
    }
}

impl From<pannier_engine::error::Error> for Failure {
    fn from(error: pannier_engine::error::Error) -> Self {
        Self::new(error.kind(), error.context())
    }
}

/// A kind's name in the API.
pub(crate) fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Fenced => "fenced",
        ErrorKind::Invalid => "invalid",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::NoSpace => "no_space",
        ErrorKind::Closed => "closed",
        ErrorKind::Internal => "internal",
    }
}

/// Prints results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    output: Option<Output>,
}

impl Printer {
    /// A printer of this form.
    pub(crate) fn new(output: Output) -> Self {
        Self { output: Some(output) }
    }

    /// A printer that prints no results.
    pub(crate) fn quiet() -> Self {
        Self { output: None }
    }

    /// Whether results are JSON.
    pub(crate) fn json(&self) -> bool {
        self.output == Some(Output::Json)
    }

    /// A line for people; nothing in JSON.
    pub(crate) fn line(&self, text: &str) {
        if self.output == Some(Output::Text) {
            write_out(text);
        }
    }

    /// The command's result: `text` for people, else `value` as JSON.
    pub(crate) fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) {
        match self.output {
            Some(Output::Text) => write_out(&text()),
            Some(Output::Json) => match serde_json::to_string_pretty(value) {
                Ok(document) => write_out(&document),
                Err(error) => self.failure(&Failure::new(ErrorKind::Internal, error.to_string())),
            },
            None => {}
        }
    }

    /// The failure, on standard error.
    pub(crate) fn failure(&self, failure: &Failure) {
        let mut stderr = std::io::stderr().lock();
        // A closed standard error leaves nothing to say it to.
        let written = if self.json() {
            let document = serde_json::json!({ "error": failure.0 });
            writeln!(stderr, "{document}")
        } else {
            writeln!(stderr, "pannier: {}", failure.0.message)
        };
        drop(written);
    }

    /// A bar of bytes with rate and time left, on standard error; it appears after a second.
    /// Nothing is drawn in JSON or without a terminal.
    pub(crate) fn bytes_bar(&self, what: &str, total: u64) -> Bar {
        let template = "{msg:<12} {bar:30} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
        Bar::new(self.json(), template, what, total)
    }

    /// A spinner for a wait of unknown length.
    pub(crate) fn spinner(&self, what: &str) -> Bar {
        let bar = Bar::new(self.json(), "{spinner} {msg}  {elapsed}", what, 0);
        bar.bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }
}

/// A bar that appears only when the work takes longer than a second.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    since: Instant,
    silent: bool,
}

impl Bar {
    fn new(silent: bool, template: &str, what: &str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        Self { bar, since: Instant::now(), silent }
    }

    /// Where it is.
    pub(crate) fn set(&self, position: u64) {
        self.show();
        self.bar.set_position(position);
    }

    /// How far it goes.
    pub(crate) fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// What is being done.
    pub(crate) fn set_message(&self, what: impl Into<String>) {
        self.show();
        self.bar.set_message(what.into());
    }

    fn show(&self) {
        if !self.silent && self.bar.is_hidden() && self.since.elapsed() > Duration::from_secs(1) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Removes it.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a text and a line end to standard output; a closed one ends the program quietly, as a
/// pipe's reader expects.
fn write_out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// A table with left-aligned columns for people.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (width, cell) in widths.iter().zip(cells) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

/// Bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    Size(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["/a".to_owned(), "1 GiB".to_owned()]];
        assert_eq!(table(&["PATH", "SIZE"], &rows), "PATH  SIZE\n/a    1 GiB");
    }
}
