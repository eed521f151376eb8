//! All differences of a server at once: what `rackwright-agent check` answers.
//!
//! Changes nothing (but the memory of hashes). Independent checks run on a few threads, systemd and
//! containerd are asked once each; the target is 80 steps on a converged server in 300 ms.

use crate::error::StepError;
use crate::host::{Host, lock};
use crate::plans::{self, PlanError};
use crate::receive;
use crate::step::{self, Expected};
use rackwright_wire::plan::{CheckReport, CheckRequest, PLAN_VERSION};
use rackwright_wire::step::{Difference, Step, StepKind};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Checks mostly wait for files and for one or two programs.
const THREADS: usize = 6;

/// Compares the steps of a request with the server.
///
/// A step that cannot be checked is a difference that says so: a plan must show it.
///
/// # Errors
/// What this server accepted before cannot be read.
pub fn check(host: &Host, request: &CheckRequest) -> Result<CheckReport, PlanError> {
    let generation = plans::accepted(host)?.map_or(0, |accepted| accepted.generation);
    let unfinished = plans::unfinished(host)?;
    let (units, others): (Vec<&Step>, Vec<&Step>) =
        request.steps.iter().partition(|step| unit_name(step).is_some());
    let found = thread::scope(|scope| {
        let names = units.iter().filter_map(|step| unit_name(step));
        // Fails where there is no systemd; then each unit's own check says so.
        let prefetch = scope.spawn(|| if host.is_server() { host.units.prefetch(names) } else { Ok(()) });
        let found = check_all(host, &others, &Expected::default());
        // A panic there would have aborted the process.
        let _prefetched = prefetch.join();
        found
    });
    let expected = Expected::of(&request.steps, |step| found.contains_key(step.id.as_str()));
    let mut differences = check_all(host, &units, &expected);
    differences.extend(found);
    Ok(CheckReport {
        version: PLAN_VERSION,
        missing_artifacts: missing(host, request, &differences),
        differences: request.steps.iter().filter_map(|step| differences.remove(step.id.as_str())).collect(),
        generation,
        unfinished,
    })
}

fn unit_name(step: &Step) -> Option<&str> {
    let kind = &step.kind;
    if let StepKind::Unit { name, .. } | StepKind::Slice { name, .. } = kind { Some(name) } else { None }
}

fn check_all<'a>(host: &Host, steps: &[&'a Step], expected: &Expected) -> BTreeMap<&'a str, Difference> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..THREADS.min(steps.len()) {
            scope.spawn(|| {
                while let Some(step) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let difference =
                        step::check(host, step, expected).unwrap_or_else(|error| Some(unknown(step, &error)));
                    lock(&found).extend(difference.map(|difference| (step.id.as_str(), difference)));
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn unknown(step: &Step, error: &StepError) -> Difference {
    let summary = format!("cannot be checked: failed to {error}");
    Difference { step: step.id.clone(), summary, detail: format!("{}\n{}", error.chain(), error.evidence) }
}

/// Artifacts that somebody must send: not staged, and not in place already.
fn missing(host: &Host, request: &CheckRequest, differences: &BTreeMap<&str, Difference>) -> Vec<String> {
    let in_place = |sha256: &String| {
        let mut users =
            request.steps.iter().filter(|step| step::staged_need(step) == Some(sha256)).peekable();
        users.peek().is_some() && users.all(|step| !differences.contains_key(step.id.as_str()))
    };
    let is_here = |sha256: &String| receive::source(host, sha256).is_ok_and(|source| source.is_some());
    request.artifacts.iter().filter(|sha256| !in_place(sha256) && !is_here(sha256)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashes::hash_bytes;
    use std::fs;

    fn step(id: &str, kind: StepKind) -> Step {
        Step { id: id.to_owned(), needs: vec![], kind }
    }

    fn file(id: &str, path: &str, content: &str) -> Step {
        let kind = StepKind::File {
            path: path.to_owned(),
            content: Some(content.to_owned()),
            mode: "0644".to_owned(),
            owner: "0:0".to_owned(),
            absent: false,
            secret: false,
        };
        step(id, kind)
    }

    fn artifact(id: &str, path: &str, sha256: &str) -> Step {
        let kind = StepKind::Artifact {
            name: id.to_owned(),
            path: path.to_owned(),
            sha256: sha256.to_owned(),
            mode: "0644".to_owned(),
        };
        step(id, kind)
    }

    #[test]
    fn differences_come_in_step_order_and_unknowns_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        fs::create_dir(dir.path().join("folder")).unwrap();
        let request = CheckRequest {
            version: PLAN_VERSION,
            steps: vec![file("b", "/b", "x\n"), file("a", "/folder", "x\n"), file("c", "/c", "y\n")],
            artifacts: vec![],
        };
        let report = check(&host, &request).unwrap();
        let summaries: Vec<&str> =
            report.differences.iter().map(|difference| difference.summary.as_str()).collect();
        assert_eq!(summaries.len(), 3);
        assert_eq!((summaries[0], summaries[2]), ("create /b", "create /c"));
        assert!(summaries[1].starts_with("cannot be checked: failed to read "), "{}", summaries[1]);
    }

    #[test]
    fn only_artifacts_that_somebody_must_send_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let [installed, staged, absent] =
            ["one", "two", "three"].map(|content| hash_bytes(content.as_bytes()));
        fs::write(dir.path().join("installed"), "one").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(dir.path().join("installed"), mode).unwrap();
        receive::receive(&host, &staged, 0o644, &mut b"two".as_slice()).unwrap();
        let request = CheckRequest {
            version: PLAN_VERSION,
            steps: vec![
                artifact("i", "/installed", &installed),
                artifact("s", "/staged", &staged),
                artifact("a", "/absent", &absent),
            ],
            artifacts: vec![installed, staged, absent.clone()],
        };
        let report = check(&host, &request).unwrap();
        assert_eq!(report.missing_artifacts, [absent]);
        assert_eq!(report.differences.len(), 2);
    }
}
