//! `command`: a command whose effect has a check of its own. The last resort, counted in the playbooks.

use super::Found;
use crate::error::{Code, StepError};
use crate::exec;
use std::time::Duration;

const CHECK_LIMIT: Duration = Duration::from_secs(30);
const APPLY_LIMIT: Duration = Duration::from_mins(10);

pub(super) fn check(step: &str, check: &str, apply: &str) -> Result<Option<Found>, StepError> {
    let done = exec::run("/bin/sh", &["-c", check], CHECK_LIMIT)?;
    if done.timed_out {
        return Err(StepError::new(
            Code::CommandTimeout,
            format!("check {step} within {} s", CHECK_LIMIT.as_secs()),
        )
        .with_evidence(&done.output()));
    }
    Ok((!done.success()).then(|| Found::new(format!("run {step}")).with_detail(apply)))
}

pub(super) fn apply(step: &str, apply: &str) -> Result<(), StepError> {
    let done = exec::run("/bin/sh", &["-c", apply], APPLY_LIMIT)?;
    if done.success() {
        return Ok(());
    }
    let (code, how) = if done.timed_out {
        (Code::CommandTimeout, format!("within {} s", APPLY_LIMIT.as_secs()))
    } else {
        (
            Code::CommandFailed,
            done.status.map_or("(killed)".to_owned(), |status| format!("(exit status {status})")),
        )
    };
    Err(StepError::new(code, format!("run {step} {how}")).with_evidence(&done.output()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_brings_its_status_and_output() {
        let error = apply("x/y", "echo why >&2; exit 7").unwrap_err();
        assert_eq!(
            (error.code, error.to_string().as_str()),
            (Code::CommandFailed, "run x/y (exit status 7)")
        );
        assert_eq!(error.evidence, "why");
    }

    #[test]
    fn the_check_decides_what_differs() {
        assert_eq!(check("x/y", "true", "boom").unwrap(), None);
        assert!(check("x/y", "false", "boom").unwrap().is_some());
    }
}
