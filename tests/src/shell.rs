//! Runs the commands that the demo shows, and captures what they print.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// A command that did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The program could not be started.
    #[error("start {program}")]
    Start {
        /// Program name.
        program: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The program exited with another code than 0.
    #[error("run `{command}`: exit {code}\n{stderr}")]
    Failed {
        /// Command line.
        command: String,
        /// Exit code, -1 for a signal.
        code: i32,
        /// Its last words.
        stderr: String,
    },
    /// Its output is not what was expected.
    #[error("read the output of `{command}`: {detail}")]
    Output {
        /// Command line.
        command: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// Runs a program and returns its standard output.
///
/// # Errors
/// When it cannot be started or exits with another code than 0.
pub fn capture(program: &str, args: &[&str]) -> Result<String, ShellError> {
    capture_with(program, args, b"")
}

/// As [`capture`], with additions to the environment.
///
/// # Errors
/// When it cannot be started or exits with another code than 0.
pub fn capture_in(program: &str, args: &[&str], environment: &[(&str, &str)]) -> Result<String, ShellError> {
    run(Command::new(program).envs(environment.iter().copied()), program, args, b"")
}

/// Runs a program with `input` on its standard input and returns its standard output.
///
/// # Errors
/// When it cannot be started or exits with another code than 0.
pub fn capture_with(program: &str, args: &[&str], input: &[u8]) -> Result<String, ShellError> {
    run(&mut Command::new(program), program, args, input)
}

fn run(command: &mut Command, program: &str, args: &[&str], input: &[u8]) -> Result<String, ShellError> {
    let start = |cause| ShellError::Start { program: program.to_owned(), cause };
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not read its input closes the pipe; that is its right.
            let _closed = stdin.map(|mut pipe| pipe.write_all(input));
        });
        child.wait_with_output()
    });
    let output = output.map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ShellError::Failed { command: line(program, args), code: output.status.code().unwrap_or(-1), stderr })
}

/// Runs a program and parses its standard output as JSON.
///
/// # Errors
/// When it fails, or prints no JSON.
pub fn json(program: &str, args: &[&str]) -> Result<serde_json::Value, ShellError> {
    let text = capture(program, args)?;
    serde_json::from_str(&text)
        .map_err(|cause| ShellError::Output { command: line(program, args), detail: cause.to_string() })
}

/// Runs a program whose talk (stderr) a person should see as it comes.
///
/// # Errors
/// When it cannot be started or exits with another code than 0.
pub fn show(program: &str, args: &[&str], environment: &[(&str, &str)]) -> Result<String, ShellError> {
    let start = |cause| ShellError::Start { program: program.to_owned(), cause };
    let output = Command::new(program)
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let code = output.status.code().unwrap_or(-1);
    Err(ShellError::Failed { command: line(program, args), code, stderr: String::new() })
}

/// What a program said, whatever its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code, -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a program in a folder; any exit code is an answer.
///
/// # Errors
/// When it cannot be started.
pub fn outcome(
    program: &str,
    args: &[&str],
    environment: &[(&str, &str)],
    folder: &std::path::Path,
) -> Result<Outcome, ShellError> {
    let output = Command::new(program)
        .args(args)
        .envs(environment.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| ShellError::Start { program: program.to_owned(), cause })?;
    Ok(Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn line(program: &str, args: &[&str]) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    std::iter::once(name).chain(args.iter().copied()).collect::<Vec<_>>().join(" ")
}
