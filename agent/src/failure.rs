//! How a subcommand fails: a stable code, the chain of causes, an exit status. One JSON line on stderr.

use rackwright_steps::apply::ApplyError;
use rackwright_steps::error::{Code, StepError, chain};
use rackwright_steps::plans::PlanError;
use rackwright_wire::complaint::{COMPLAINT_VERSION, Complaint};
use std::error::Error;
use std::io::{self, Write};

/// An operation failed.
pub(crate) const FAILED: u8 = 1;
/// Refused with nothing touched; 2 is clap's, for usage.
const REFUSED: u8 = 3;

/// Why a subcommand did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) error: String,
    pub(crate) evidence: String,
    pub(crate) exit: u8,
}

impl Failure {
    /// An operation that failed with this cause.
    pub(crate) fn new(code: &str, error: &dyn Error) -> Self {
        Self { code: code.to_owned(), error: one_line(&chain(error)), evidence: String::new(), exit: FAILED }
    }

    /// An operation that failed; `what` reads after "failed to".
    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        let code = Code::of_io(error).as_str().to_owned();
        Self { code, error: format!("{what}: {error}"), evidence: String::new(), exit: FAILED }
    }

    /// Input that is not what it should be; nothing was touched.
    pub(crate) fn bad_input(what: &str, error: &dyn Error) -> Self {
        let error = format!("{what}: {}", one_line(&chain(error)));
        Self { code: "bad-input".to_owned(), error, evidence: String::new(), exit: REFUSED }
    }

    /// The last one that was printed into a log, whatever stands before it on its line.
    pub(crate) fn last_in(log: &str) -> Option<Self> {
        let printed = |line: &str| {
            let Complaint { code, error, evidence, .. } =
                serde_json::from_str(line.get(line.find('{')?..)?).ok()?;
            Some(Self { code, error, evidence, exit: FAILED })
        };
        log.lines().rev().find_map(printed)
    }

    pub(crate) fn print(&self) {
        let complaint = Complaint {
            version: COMPLAINT_VERSION,
            code: self.code.clone(),
            error: self.error.clone(),
            evidence: self.evidence.clone(),
        };
        let line = serde_json::to_string(&complaint).unwrap_or_default();
        // Nobody may be listening any more.
        let _printed = writeln!(io::stderr(), "{line}");
    }
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        let evidence = error.evidence.clone();
        Self { evidence, ..Self::new(error.code.as_str(), &error) }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let exit = if error.is_refusal() { REFUSED } else { FAILED };
        Self { exit, ..Self::new(error.code(), &error) }
    }
}

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        match error.code() {
            Some(code) => Self::new(code.as_str(), &error),
            None => Self::new("apply-broken", &error),
        }
    }
}

fn one_line(chain: &str) -> String {
    chain.replace('\n', ": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_of_a_log_is_found_behind_its_time_stamp() {
        let log = "12:01 s1 agent[7]: {\"version\":1,\"code\":\"io\",\"error\":\"first\"}\n\
                   12:02 s1 agent[8]:  INFO apply step=\"a\"\n\
                   12:03 s1 agent[8]: {\"version\":1,\"code\":\"disk-full\",\"error\":\"write the journal\"}\n\
                   12:03 s1 systemd[1]: Failed with result 'exit-code'.\n";
        let last = Failure::last_in(log).unwrap();
        assert_eq!((last.code.as_str(), last.error.as_str()), ("disk-full", "write the journal"));
        assert!(Failure::last_in("nothing\n{}").is_none());
    }
}
