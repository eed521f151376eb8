//! One printer for every failure: what failed, its causes a line each, and what helps. Every text is a fragment that
//! reads after "failed to".

use std::error::Error;
use std::fmt;

/// A failed command, ready to print.
#[derive(Debug)]
pub(crate) struct Report {
    error: Box<dyn Error + Send + Sync>,
    help: Option<String>,
    exit: u8,
}

impl Report {
    /// Exit code for bad input: inventory, flags, job files.
    pub(crate) const BAD_INPUT: u8 = 2;

    /// A failure with the general exit code 1.
    pub(crate) fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: error.into(), help: None, exit: 1 }
    }

    /// Adds what the reader can do about it.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Sets a documented exit code.
    #[must_use]
    pub(crate) fn exit(mut self, code: u8) -> Self {
        self.exit = code;
        self
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.exit
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Report {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: failed to {}", self.error)?;
        let mut cause = self.error.source();
        while let Some(inner) = cause {
            write!(f, "\n  caused by: {}", inner.to_string().trim_end().replace('\n', "\n  "))?;
            cause = inner.source();
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}
