//! How a subcommand fails: a stable code, the chain of causes, an exit status. One JSON line on stderr.

use rackwright_steps::apply::ApplyError;
use rackwright_steps::error::{Code, StepError, chain};
use rackwright_steps::plans::PlanError;
use std::error::Error;
use std::io::{self, Write};

/// An operation failed.
const FAILED: u8 = 1;
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

    pub(crate) fn print(&self) {
        let mut line = serde_json::json!({ "code": self.code, "error": self.error });
        if let (false, Some(object)) = (self.evidence.is_empty(), line.as_object_mut()) {
            object.insert("evidence".to_owned(), self.evidence.clone().into());
        }
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
        Self::new("apply-broken", &error)
    }
}

fn one_line(chain: &str) -> String {
    chain.replace('\n', ": ")
}
