//! What the demo shows while it runs: a line a stage, the commands as a person would type them, and how
//! long each stage took.

use std::fmt::Display;
use std::time::Instant;

/// Numbers the stages and keeps their times.
#[derive(Debug)]
pub struct Stages {
    total: usize,
    from: usize,
    number: usize,
    /// Stage name and seconds, in order.
    pub seconds: Vec<(&'static str, f64)>,
}

impl Stages {
    /// A run of so many stages, of which those before `from` (counted from 1) are skipped.
    pub fn new(total: usize, from: usize) -> Self {
        Self { total, from, number: 0, seconds: Vec::new() }
    }

    /// Announces a stage, runs it and notes its time.
    ///
    /// # Errors
    /// Those of the stage itself.
    pub fn run<E>(
        &mut self,
        name: &'static str,
        title: &str,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.number += 1;
        if self.number < self.from {
            return Ok(());
        }
        eprintln!("\n[{}/{}] {title}", self.number, self.total);
        let start = Instant::now();
        work()?;
        let took = start.elapsed().as_secs_f64();
        eprintln!("      {name}: {took:.1} s");
        self.seconds.push((name, took));
        Ok(())
    }
}

/// A line under the current stage.
pub fn note(text: impl Display) {
    eprintln!("      {text}");
}

/// A command under the current stage, as a person would type it.
pub fn command(text: impl Display) {
    eprintln!("    $ {text}");
}
