//! Running a program to its end, with a limit on time and on output.
//!
//! Never inherits stdin or a locale; the child has a process group of its own, which dies as a whole
//! when the time is over.

use crate::error::{Code, StepError};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Output beyond this is read and thrown away.
const OUTPUT_LIMIT: usize = 4 * 1024 * 1024;
/// A daemon that inherited the pipes may hold them open for ever; its output is not waited for.
const PIPE_GRACE: Duration = Duration::from_secs(2);

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit status; `None` after a signal.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) timed_out: bool,
}

impl Finished {
    pub(crate) fn success(&self) -> bool {
        self.status == Some(0) && !self.timed_out
    }

    /// Both outputs, for evidence.
    pub(crate) fn output(&self) -> String {
        match (self.stdout.trim_end(), self.stderr.trim_end()) {
            ("", err) => err.to_owned(),
            (out, "") => out.to_owned(),
            (out, err) => format!("{out}\n{err}"),
        }
    }
}

/// Runs `program` with `args`, at most for `limit`.
///
/// # Errors
/// Only when it cannot be started; how it ended is in the result.
pub(crate) fn run(program: &str, args: &[&str], limit: Duration) -> Result<Finished, StepError> {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command, limit)
}

/// Runs a prepared command, at most for `limit`.
pub(crate) fn run_command(mut command: Command, limit: Duration) -> Result<Finished, StepError> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8");
    let mut child = command
        .spawn()
        .map_err(|error| StepError::new(Code::of_io(&error), format!("start {name}")).because(error))?;
    let (stdout, out_done) = collect(child.stdout.take());
    let (stderr, err_done) = collect(child.stderr.take());
    let (status, timed_out) = wait(&mut child, limit)
        .map_err(|error| StepError::new(Code::Io, format!("wait for {name}")).because(error))?;
    let deadline = Instant::now() + PIPE_GRACE;
    for done in [out_done, err_done] {
        let _closed: Result<(), RecvTimeoutError> =
            done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    Ok(Finished { status, stdout: text(&stdout), stderr: text(&stderr), timed_out })
}

/// Waits by polling: std has no wait with a time-out, and a poll of 1 to 10 ms costs nothing beside a fork.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<(Option<i32>, bool)> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status.code(), false));
        }
        if Instant::now() >= deadline {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                // Gone already is fine.
                let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let status = child.wait()?;
            return Ok((status.code(), true));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

type Buffer = Arc<Mutex<Vec<u8>>>;

fn collect(pipe: Option<impl Read + Send + 'static>) -> (Buffer, Receiver<()>) {
    let buffer = Buffer::default();
    let (done, finished) = channel();
    if let Some(mut pipe) = pipe {
        let buffer = Arc::clone(&buffer);
        thread::spawn(move || {
            let mut chunk = [0_u8; 8192];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                let mut kept = buffer.lock().unwrap_or_else(PoisonError::into_inner);
                let room = OUTPUT_LIMIT.saturating_sub(kept.len()).min(count);
                kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
            }
            // Nobody may be waiting any more.
            let _receiver_left = done.send(());
        });
    }
    (buffer, finished)
}

fn text(buffer: &Buffer) -> String {
    String::from_utf8_lossy(&buffer.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_come_back() {
        let done = run("sh", &["-c", "echo out; echo err >&2; exit 3"], Duration::from_secs(20)).unwrap();
        assert_eq!((done.status, done.output().as_str()), (Some(3), "out\nerr"));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let done = run("sh", &["-c", "sleep 600 & wait"], Duration::from_millis(100)).unwrap();
        assert!(done.timed_out && !done.success());
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_open_delays_nobody_for_long() {
        let done = run("sh", &["-c", "setsid sleep 8 & echo started"], Duration::from_secs(20)).unwrap();
        assert!(done.success());
        assert_eq!(done.stdout, "started\n");
    }
}
