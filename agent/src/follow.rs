//! `follow`: a plan's journal to stdout, answers from stdin to its inbox, until it is finished.
//!
//! Whoever follows also keeps the apply going: when its journal is not finished and nobody applies it (a
//! reboot, a kill that systemd gave up on), it is started again.

use crate::failure::{FAILED, Failure};
use crate::{launch, output};
use rackwright_steps::host::Host;
use rackwright_steps::{controller, journal, log_tail, plans};
use rackwright_wire::event::{Answer, Event, What};
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a new line may go unseen.
const POLL: Duration = Duration::from_millis(15);
/// A unit that was just started needs so long to take the lock, on a busy machine.
const START_GRACE: Duration = Duration::from_secs(3);
/// Starts without a new line in between, after which something is wrong for good.
const MOST_STARTS: u32 = 5;

pub(crate) fn run(host: Host, plan: &str, from_seq: u64) -> Result<(), Failure> {
    plans::load(&host, plan)?;
    follow(host, plan, from_seq)
}

/// Follows a stored plan to its end, starting it when nobody applies it.
pub(crate) fn follow(host: Host, plan: &str, from_seq: u64) -> Result<(), Failure> {
    let host = Arc::new(host);
    take_answers(Arc::clone(&host), plan.to_owned());
    let mut reader = Reader { path: journal::path(&host, plan), offset: 0, from_seq };
    let mut starter = Starter { started: None, starts: 0 };
    loop {
        let read = match reader.read() {
            // Whoever followed is gone; the apply goes on.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            read => read.map_err(|error| Failure::io("follow the journal", &error))?,
        };
        match read {
            Progress::Finished => return Ok(()),
            Progress::Lines => starter.starts = 0,
            Progress::Nothing => starter.keep_going(&host, plan)?,
        }
        thread::sleep(POLL);
    }
}

/// Answers come for as long as stdin is open; one that cannot be read is skipped with a warning.
fn take_answers(host: Arc<Host>, plan: String) {
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
            let delivered = serde_json::from_str::<Answer>(&line)
                .map_err(io::Error::other)
                .and_then(|answer| controller::deliver(&host, &plan, &answer));
            if let Err(error) = delivered {
                tracing::warn!(%error, "answer not taken");
            }
        }
    });
}

enum Progress {
    Nothing,
    Lines,
    Finished,
}

/// Reads what was appended since the last look and prints its whole lines.
struct Reader {
    path: PathBuf,
    offset: u64,
    from_seq: u64,
}

impl Reader {
    fn read(&mut self) -> io::Result<Progress> {
        let text = match self.appended() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Progress::Nothing),
            text => text?,
        };
        let mut wanted = String::new();
        let mut last = None;
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            self.offset += line.len() as u64;
            let event: Event = serde_json::from_str(line).map_err(io::Error::other)?;
            if event.seq >= self.from_seq {
                wanted.push_str(line);
            }
            last = Some(event.what);
        }
        if !wanted.is_empty() {
            output::lines(&wanted)?;
        }
        Ok(match last {
            None => Progress::Nothing,
            Some(What::Finished { .. }) => Progress::Finished,
            Some(_) => Progress::Lines,
        })
    }

    fn appended(&self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        // A torn last line is cut off when the apply starts again: never a whole line that was read here.
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        bytes.truncate(whole);
        String::from_utf8(bytes).map_err(io::Error::other)
    }
}

/// Starts the apply when nobody does it.
struct Starter {
    started: Option<Instant>,
    starts: u32,
}

impl Starter {
    fn keep_going(&mut self, host: &Host, plan: &str) -> Result<(), Failure> {
        let just_started = self.started.is_some_and(|at| at.elapsed() < START_GRACE);
        if just_started || plans::running(host).is_some_and(|running| running == plan) {
            return Ok(());
        }
        // It may have finished between the last look at its journal and the look at its lock.
        if plans::is_finished(host, plan) {
            return Ok(());
        }
        if self.starts >= MOST_STARTS {
            return Err(given_up(host, &launch::unit_name(plan)));
        }
        self.starts += 1;
        self.started = Some(Instant::now());
        launch::start(host, plan)
    }
}

/// An apply that ends whenever it is started: with the last words that it left in its unit's log.
fn given_up(host: &Host, unit: &str) -> Failure {
    let log = if host.is_server() { log_tail(unit) } else { String::new() };
    let what = format!("keep the apply going: it ended {MOST_STARTS} times without a new line");
    match Failure::last_in(&log) {
        Some(last) => Failure { error: format!("{what}: {}", last.error), evidence: log, ..last },
        None => Failure {
            code: "apply-died".to_owned(),
            error: format!("{what}, see journalctl -u {unit}"),
            evidence: log,
            exit: FAILED,
        },
    }
}
