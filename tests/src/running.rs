//! A command of the product that runs while a story watches what it reports, and hurts it at a chosen moment.

use crate::shell::{Outcome, ShellError};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A command that prints a JSON value a line. Killed when it is dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    lines: Receiver<String>,
    seen: String,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    /// Starts a command and reads what it prints.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self, ShellError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let start = |cause| ShellError::Start { program: name.clone(), cause };
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().map_err(start)?;
        let (sender, lines) = channel();
        let stdout = child.stdout.take();
        thread::spawn(move || {
            let whole = stdout.map(|pipe| BufReader::new(pipe).lines().map_while(Result::ok));
            // A story that has seen enough listens no more.
            whole.into_iter().flatten().all(|line| sender.send(line).is_ok())
        });
        let stderr = child.stderr.take();
        let stderr = Some(thread::spawn(move || stderr.map(text).unwrap_or_default()));
        Ok(Self { name, child, lines, seen: String::new(), stderr })
    }

    /// Waits until it prints a value that `wanted` accepts, and returns that.
    ///
    /// # Errors
    /// When it ends before, or takes longer than `limit`: with all that it said.
    pub fn until(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, ShellError> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                    if let Some(value) = serde_json::from_str(&line).ok().filter(&wanted) {
                        return Ok(value);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err(self.missed(what, "it takes too long")),
                Err(RecvTimeoutError::Disconnected) => return Err(self.missed(what, "it has ended")),
            }
        }
    }

    fn missed(&mut self, what: &str, why: &str) -> ShellError {
        self.kill();
        let stderr = self.take_stderr();
        let detail = format!("{why}, without {what}\nstdout:\n{}\nstderr:\n{stderr}", self.seen);
        ShellError::Output { command: self.name.clone(), detail }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn end(mut self) -> Result<Outcome, ShellError> {
        let wait = |cause| ShellError::Start { program: self.name.clone(), cause };
        let code = self.child.wait().map_err(wait)?.code().unwrap_or(-1);
        for line in &self.lines {
            self.seen.push_str(&line);
            self.seen.push('\n');
        }
        let stderr = self.take_stderr();
        Ok(Outcome { code, stdout: std::mem::take(&mut self.seen), stderr })
    }

    fn take_stderr(&mut self) -> String {
        self.stderr.take().and_then(|reader| reader.join().ok()).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before an error is what there is.
    let _partial = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
