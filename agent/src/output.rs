//! Data on stdout: one JSON value a line, flushed a line at a time.

use crate::failure::Failure;
use serde::Serialize;
use std::io::{self, Write};

/// Prints a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string(value).map_err(|error| Failure::new("io", &error))?;
    text.push('\n');
    lines(&text).map_err(|error| Failure::io("print the result", &error))
}

/// Prints whole lines at once.
pub(crate) fn lines(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
