//! Running the machine's own programs: one place that says what was run and what it answered.

use crate::error::LabError;
use crate::lock::Lock;
use std::ffi::OsString;
use std::fs::File;
use std::process::Stdio;
use tokio::process::Command;

/// How much of a failed program's words is kept, in bytes.
const SAID_MAX: usize = 2_000;

/// A program with the machine's administration folders in its path (`sudo` and `su` may leave them out) and
/// messages in English.
pub(crate) fn command<S: Into<OsString>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args.into_iter().map(Into::into)).env("PATH", path()).env("LC_ALL", "C");
    command
}

/// The search path for programs.
pub(crate) fn path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// Runs programs that end soon.
///
/// Each holds the lab's lock as its stdin, which is an empty file. So when we are killed while one runs, the
/// lock is free only after it has ended, and whoever clears up afterwards finds everything that it made.
#[derive(Debug)]
pub(crate) struct Tools {
    lock: Option<File>,
}

impl Tools {
    /// For programs that only look: they hold nothing.
    pub(crate) fn that_look() -> Self {
        Self { lock: None }
    }

    /// For programs that change what the lock is for.
    ///
    /// # Errors
    /// [`LabError::File`] when no more files can be opened.
    pub(crate) fn that_hold(lock: &Lock) -> Result<Self, LabError> {
        Ok(Self { lock: Some(lock.share()?) })
    }

    /// Runs a program to its end and returns what it wrote to stdout.
    ///
    /// # Errors
    /// [`LabError::Start`], [`LabError::Tool`].
    pub(crate) async fn run<S: Into<OsString>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String, LabError> {
        let mut command = command(program, args);
        let line = line(&command);
        tracing::debug!(command = line, "running");
        let start = |cause| LabError::Start { command: line.clone(), cause };
        let stdin = match &self.lock {
            Some(lock) => lock.try_clone().map_err(start)?.into(),
            None => Stdio::null(),
        };
        let output = command.stdin(stdin).output().await.map_err(start)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        Err(LabError::Tool { command: line, status: output.status.to_string(), said: tail(said) })
    }
}

/// The command as a person would type it, near enough.
pub(crate) fn line(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The last words of some output, on one line.
pub(crate) fn tail(output: &[u8]) -> String {
    let start = output.len().saturating_sub(SAID_MAX);
    let text = String::from_utf8_lossy(output.get(start..).unwrap_or_default()).into_owned();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_failing_program_is_quoted_with_its_words() {
        let script = ["-c", "echo first >&2; echo second >&2; exit 3"];
        let error = Tools::that_look().run("sh", script).await.unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("(exit status: 3): first / second"), "{text}");
    }

    #[tokio::test]
    async fn the_lock_is_held_until_a_program_of_a_dead_holder_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dev.lock");
        let lock = Lock::take(&path, Duration::ZERO).await.unwrap();
        let tools = Tools::that_hold(&lock).unwrap();
        // What is left when the holder is killed: its program, and nobody who waits for it.
        let mut program = command("cat", ["-"]);
        let held = tools.lock.as_ref().unwrap().try_clone().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut child = program.stdin(reader).stdout(held).spawn().unwrap();
        drop((program, tools, lock));
        assert!(Lock::take(&path, Duration::ZERO).await.is_err());
        drop(writer);
        child.wait().await.unwrap();
        Lock::take(&path, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn an_absent_program_is_named() {
        let error = Tools::that_look().run("rackwright-no-such-program", ["x"]).await.unwrap_err();
        assert_eq!(error.to_string(), "start `rackwright-no-such-program x`");
    }
}
