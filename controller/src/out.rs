//! The one door to the terminal: data to stdout, talk to stderr.

use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether data could not be written: the command has not done what it was asked, whatever else it did.
static LOST: AtomicBool = AtomicBool::new(false);

/// Where a command's data and talk go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    json: bool,
}

#[expect(clippy::unused_self, reason = "printing goes through the one door, whatever it needs of it")]
impl Out {
    /// With `json`, data is one JSON document (or one object a line for streams) instead of text.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether data is to be JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Whether a person watches: progress bars are drawn only then.
    pub(crate) fn is_interactive(self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }

    /// Prints data: text for people, or the value as JSON.
    pub(crate) fn data(self, text: impl Display, value: &impl Serialize) {
        if self.json {
            self.json_line(value);
        } else {
            self.line(text);
        }
    }

    /// Prints one value as one JSON line on stdout.
    pub(crate) fn json_line(self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => self.line(line),
            Err(cause) => self.say(format_args!("error: failed to print as JSON: {cause}")),
        }
    }

    /// Prints one line of data on stdout.
    pub(crate) fn line(self, text: impl Display) {
        let text = text.to_string();
        keep(&writeln!(io::stdout().lock(), "{}", printable(&text)));
    }

    /// Prints bytes on stdout as they are, such as a job's log; `false` when nobody reads on.
    pub(crate) fn raw(self, bytes: &[u8]) -> bool {
        let mut stdout = io::stdout().lock();
        keep(&stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Prints one line of talk on stderr.
    pub(crate) fn say(self, text: impl Display) {
        let text = text.to_string();
        let _nowhere_else = writeln!(io::stderr().lock(), "{}", printable(&text));
    }

    /// Whether data was lost on its way to stdout.
    pub(crate) fn is_lost(self) -> bool {
        LOST.load(Ordering::Relaxed)
    }
}

/// Notes what went wrong; whether all is well. A closed pipe (`| head`) is no error, and the end all the same.
fn keep(written: &io::Result<()>) -> bool {
    if written.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        LOST.store(true, Ordering::Relaxed);
    }
    written.is_ok()
}

/// Text of jobs, servers and files must not steer the terminal: control characters are shown, not obeyed.
fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |char: char| !char.is_control() || matches!(char, '\n' | '\t');
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let shown =
        |char: char| if is_plain(char) { char.to_string() } else { char.escape_default().to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(printable("a\tü\nb"), "a\tü\nb");
        assert_eq!(printable("\u{1b}[2Jgone\u{9b}0m\r"), "\\u{1b}[2Jgone\\u{9b}0m\\r");
    }
}
