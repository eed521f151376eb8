//! The one door to the terminal: data to stdout, talk to stderr.

use serde::Serialize;
use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

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

    /// Prints one line of data on stdout. A closed pipe (`| head`) is no error.
    pub(crate) fn line(self, text: impl Display) {
        let _closed_pipe = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// Prints one line of talk on stderr.
    pub(crate) fn say(self, text: impl Display) {
        let _closed_pipe = writeln!(std::io::stderr().lock(), "{text}");
    }
}
