//! Runs the programs that make artifacts (go, apt-get, dpkg-deb, mmdebstrap, tar), with progress and a useful end.

use crate::error::{SourceError, indented};
use crate::progress::{Event, Progress};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

/// How many of the last lines on stderr an error carries.
const TAIL_LINES: usize = 12;
/// How often a silent program is reported to be still running.
const STILL_EVERY: Duration = Duration::from_secs(5);

/// Whose progress a program's lines are.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    pub(crate) name: &'a str,
    pub(crate) usually: Duration,
    pub(crate) progress: &'a dyn Progress,
}

/// Runs a program to its end and returns its stdout. Its stderr lines become progress; the last ones explain a
/// failure. `help` says how to get the program when it is missing. Dropping the future kills it.
pub(crate) async fn run(
    mut command: Command,
    help: &'static str,
    watch: Watch<'_>,
) -> Result<String, SourceError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let program = shown(&command);
    let fail = |status: String, tail: &VecDeque<String>| SourceError::Program {
        program: program.clone(),
        status,
        tail: indented(tail, 4),
    };
    let mut tail = VecDeque::new();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(cause) if cause.kind() == ErrorKind::NotFound => {
            let program = command.as_std().get_program().to_string_lossy().into_owned();
            return Err(SourceError::NoProgram { program, help });
        }
        Err(cause) => return Err(fail(cause.to_string(), &tail)),
    };
    let mut stdout = child.stdout.take();
    let reading = async {
        let mut text = String::new();
        if let Some(stdout) = &mut stdout {
            stdout.read_to_string(&mut text).await?;
        }
        Ok::<String, std::io::Error>(text)
    };
    let stderr = child.stderr.take().map(|stderr| BufReader::new(stderr).lines());
    let (text, ()) = tokio::join!(reading, follow(stderr, &mut tail, watch));
    let text = text.map_err(|cause| fail(cause.to_string(), &tail))?;
    let status = child.wait().await.map_err(|cause| fail(cause.to_string(), &tail))?;
    if status.success() { Ok(text) } else { Err(fail(status.to_string(), &tail)) }
}

async fn follow(
    lines: Option<tokio::io::Lines<BufReader<tokio::process::ChildStderr>>>,
    tail: &mut VecDeque<String>,
    watch: Watch<'_>,
) {
    let Some(mut lines) = lines else { return };
    let started = Instant::now();
    let mut still = tokio::time::interval(STILL_EVERY);
    still.tick().await;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                watch.progress.event(&Event::Detail { name: watch.name, text: &line });
                tail.push_back(line);
                if tail.len() > TAIL_LINES {
                    tail.pop_front();
                }
            }
            _ = still.tick() => {
                let (name, usually) = (watch.name, watch.usually);
                watch.progress.event(&Event::Still { name, elapsed: started.elapsed(), usually });
            }
        }
    }
}

fn shown(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
