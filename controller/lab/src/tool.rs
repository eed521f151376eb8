//! Running the machine's own programs: one place that says what was run and what it answered.

use crate::error::LabError;
use std::ffi::OsString;
use std::process::Stdio;
use tokio::process::Command;

/// How much of a failed program's words is kept, in bytes.
const SAID_MAX: usize = 2_000;

/// A program with the machine's administration folders in its path (`sudo` and `su` may leave them out) and
/// messages in English.
pub(crate) fn command<S: Into<OsString>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command
        .args(args.into_iter().map(Into::into))
        .env("PATH", path())
        .env("LC_ALL", "C");
    command
}

/// The search path for programs.
pub(crate) fn path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// Runs a program to its end and returns what it wrote to stdout.
///
/// # Errors
/// [`LabError::Start`], [`LabError::Tool`].
pub(crate) async fn run<S: Into<OsString>>(
    program: &str,
    args: impl IntoIterator<Item = S>,
) -> Result<String, LabError> {
    finish(command(program, args), None).await
}

/// Runs a program that reads `input`.
///
/// # Errors
/// [`LabError::Start`], [`LabError::Tool`].
pub(crate) async fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<String, LabError> {
    finish(command(program, args.iter().copied()), Some(input)).await
}

async fn finish(mut command: Command, input: Option<&str>) -> Result<String, LabError> {
    let line = line(&command);
    tracing::debug!(command = line, "running");
    let start = |cause| LabError::Start {
        command: line.clone(),
        cause,
    };
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
        use tokio::io::AsyncWriteExt as _;
        // A program that ends before it has read everything says why itself.
        let _ended_early = stdin.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    Err(LabError::Tool {
        command: line,
        status: output.status.to_string(),
        said: tail(said),
    })
}

/// The command as a person would type it, near enough.
pub(crate) fn line(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last words of some output, on one line.
pub(crate) fn tail(output: &[u8]) -> String {
    let start = output.len().saturating_sub(SAID_MAX);
    let text = String::from_utf8_lossy(output.get(start..).unwrap_or_default()).into_owned();
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_program_is_quoted_with_its_words() {
        let error = run("sh", ["-c", "echo first >&2; echo second >&2; exit 3"])
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("(exit status: 3): first / second"), "{text}");
    }

    #[tokio::test]
    async fn input_reaches_the_program() {
        assert_eq!(run_with_input("cat", &[], "abc").await.unwrap(), "abc");
    }

    #[tokio::test]
    async fn an_absent_program_is_named() {
        let error = run("rackwright-no-such-program", ["x"]).await.unwrap_err();
        assert_eq!(error.to_string(), "start `rackwright-no-such-program x`");
    }
}
