//! Asking the controller for what only it can give: a signature, a state of other servers, an artifact.
//!
//! The apply runs detached; questions leave through its journal, answers come in as files that whoever
//! follows the journal puts into the plan's inbox. That lies in memory: an answer must arrive although the disk
//! is full, and after a reboot every question is asked anew.

use crate::durable;
use crate::error::{Code, StepError};
use crate::host::Host;
use crate::journal::Record;
use rackwright_wire::event::{Answer, Ask, Reply, What};
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Someone who answers.
pub trait Controller: Sync {
    /// Asks on behalf of a step and waits at most `limit`.
    ///
    /// # Errors
    /// `controller-absent` when nobody answered in time.
    fn ask(&self, step: &str, ask: Ask, limit: Duration) -> Result<Reply, StepError>;
}

/// Nobody is there: every question fails at once.
#[derive(Debug)]
pub struct Silent;

impl Controller for Silent {
    fn ask(&self, step: &str, _: Ask, _: Duration) -> Result<Reply, StepError> {
        Err(absent(step))
    }
}

/// The plan's inbox: a folder of answers, one file a step.
pub struct Inbox<'a> {
    folder: PathBuf,
    journal: &'a dyn Record,
}

impl<'a> Inbox<'a> {
    /// The inbox of a plan, whose questions go to `journal`.
    pub fn new(host: &Host, plan: &str, journal: &'a dyn Record) -> Self {
        Self { folder: folder(host, plan), journal }
    }
}

impl Controller for Inbox<'_> {
    fn ask(&self, step: &str, ask: Ask, limit: Duration) -> Result<Reply, StepError> {
        let file = self.folder.join(file_name(step));
        // An answer to an earlier question of this step is no answer to this one.
        durable::make_dir(&self.folder, 0o700)
            .and_then(|()| durable::remove(&file))
            .map_err(|error| StepError::io("clear", &file, error))?;
        self.journal
            .write(What::Asking { step: step.to_owned(), ask })
            .map_err(|error| StepError::new(Code::Io, "write the question").because(error))?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = read(&file, step) {
                return Ok(answer.reply);
            }
            if Instant::now() >= deadline {
                return Err(absent(step));
            }
            thread::sleep(POLL);
        }
    }
}

fn absent(step: &str) -> StepError {
    StepError::new(Code::ControllerAbsent, format!("get an answer from the controller for {step}"))
}

/// Puts an answer into a plan's inbox. Answers that nobody waits for lie there until the next question.
///
/// # Errors
/// When the inbox cannot be written.
pub fn deliver(host: &Host, plan: &str, answer: &Answer) -> io::Result<()> {
    let folder = folder(host, plan);
    durable::make_dir(&folder, 0o700)?;
    let text = serde_json::to_vec(answer).map_err(io::Error::other)?;
    durable::write(&folder.join(file_name(&answer.step)), &text, 0o600, None)
}

/// Forgets all answers to a plan that is over.
pub fn forget(host: &Host, plan: &str) {
    // What cannot be removed is in nobody's way.
    let _removed = std::fs::remove_dir_all(folder(host, plan));
}

fn folder(host: &Host, plan: &str) -> PathBuf {
    host.volatile("inbox").join(plan)
}

/// Step ids hold slashes; a hash makes a name of any of them.
fn file_name(step: &str) -> String {
    let hash = blake3::hash(step.as_bytes()).to_hex();
    format!("{}.json", hash.get(..32).unwrap_or_default())
}

fn read(file: &std::path::Path, step: &str) -> Option<Answer> {
    let answer: Answer = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (answer.step == step).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::JournalError;
    use rackwright_wire::event::EVENT_VERSION;
    use std::sync::mpsc::{Sender, channel};

    struct Asked(std::sync::Mutex<Sender<What>>);

    impl Record for Asked {
        fn write(&self, what: What) -> Result<(), JournalError> {
            self.0.lock().unwrap().send(what).unwrap();
            Ok(())
        }
    }

    #[test]
    fn an_answer_reaches_the_step_that_asked_and_an_old_one_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let (sender, asked) = channel();
        let journal = Asked(std::sync::Mutex::new(sender));
        let answer = |reason: &str| Answer {
            version: EVENT_VERSION,
            step: "40-etcd/cert".to_owned(),
            reply: Reply::Refused { reason: reason.to_owned(), code: String::new() },
        };
        deliver(&host, "p", &answer("old")).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let inbox = Inbox::new(&host, "p", &journal);
                inbox.ask("40-etcd/cert", Ask::State { state: "s".to_owned() }, Duration::from_secs(20))
            });
            asked.recv_timeout(Duration::from_secs(20)).unwrap();
            deliver(&host, "p", &answer("new")).unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), answer("new").reply);
        });
    }
}
