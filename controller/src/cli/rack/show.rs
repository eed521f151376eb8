//! What people read: facts, obstacles, plans, outcomes.

use crate::out::Out;
use rackwright_core::lint::Lint;
use rackwright_core::plan::Verdict;
use rackwright_rack::drive::{Applied, Driver, cluster_problem, now_s};
use rackwright_rack::follow::Failure;
use rackwright_rack::preflight::{Obstacle, preflight};
use rackwright_rack::saved::{Saved, ServerOutcome};
use rackwright_rack::survey::{Survey, SurveyError, chain};
use rackwright_wire::words::counted;
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// More changes than this are not read before an apply.
const READABLE: usize = 40;

/// What each server is, and everything that stands in the way.
pub(super) fn facts(driver: &Driver, survey: &Survey, obstacles: &[Obstacle], out: Out) {
    for server in &driver.wanted.inventory.servers {
        let Some(facts) = survey.facts.get(&server.name) else { continue };
        let text = format!(
            "{:<12} {:<8} {} {} kernel {}, cgroup v{}, {}.{:03} CPUs, {} MiB, {} GPUs",
            server.name,
            server.role,
            facts.os.id,
            facts.os.codename,
            facts.os.kernel,
            facts.os.cgroup_version,
            facts.cpu.allowed_milli / 1000,
            facts.cpu.allowed_milli % 1000,
            facts.memory.allowed_bytes >> 20,
            facts.gpus.len(),
        );
        out.data(text, &json!({ "server": server.name, "facts": facts }));
    }
    for obstacle in obstacles {
        out.data(obstacle, obstacle);
    }
    broken(survey, out);
}

/// Says which servers could not be compared, with help; whether there were any.
pub(super) fn broken(survey: &Survey, out: Out) -> bool {
    for (server, error) in &survey.failed {
        out.say(format_args!("error: {server}: failed to {}", chain(error)));
        match error {
            SurveyError::Connect(error) => {
                if let Some(help) = error.help() {
                    out.say(format_args!("  help: {help}"));
                }
            }
            SurveyError::Playbooks { findings, .. } => findings.iter().for_each(|finding| out.say(finding)),
            SurveyError::Agent(_) | SurveyError::Context(_) => {}
        }
    }
    !survey.failed.is_empty()
}

/// Says what stands in the way; whether anything must not be planned around.
pub(super) fn blocked(driver: &Driver, survey: &Survey, out: Out) -> bool {
    let obstacles = preflight(&driver.wanted.inventory, &survey.facts, now_s());
    for obstacle in &obstacles {
        out.say(obstacle);
    }
    obstacles.iter().any(|obstacle| obstacle.blocks)
}

/// The plan with its diffs, the cluster's own objects, and what looks dangerous.
pub(super) fn plan(saved: &Saved, lints: &[Lint], out: Out) {
    let mut text = saved.plan.to_string();
    if !saved.objects.is_empty() {
        text.push_str("\ncluster:\n");
        for object in &saved.objects {
            let _infallible = writeln!(text, "  {}", object.summary);
            for line in object.detail.lines() {
                let _infallible = writeln!(text, "      {line}");
            }
        }
    }
    out.data(
        text.trim_end(),
        &json!({ "plan": saved.plan, "objects": saved.objects, "changes": saved.changes() }),
    );
    for lint in lints {
        out.say(lint);
    }
}

/// A plan that is about to be applied: whole when a person can read it, else how much changes where.
pub(super) fn before_apply(saved: &Saved, lints: &[Lint], out: Out) {
    if out.is_json() || saved.changes() <= READABLE {
        plan(saved, lints, out);
        return;
    }
    for server in saved.plan.servers.iter().filter(|server| !server.is_empty()) {
        out.line(format_args!("{}: {}", server.server, counted(server.differences.len(), "change")));
    }
    for absent in &saved.plan.absent {
        out.line(format_args!("{}: absent: {}", absent.server, absent.reason));
    }
    let objects = counted(saved.objects.len(), "change");
    out.line(format_args!("cluster: {objects}; `rackwright plan` shows every diff"));
    for lint in lints {
        out.say(lint);
    }
}

/// The second apply. `finished` counts changes of interrupted plans that were finished just before.
pub(super) fn nothing(saved: &Saved, finished: u32, took: Duration, out: Out) {
    let servers = saved.plan.servers.len();
    let seconds = took.as_secs_f64();
    let what = if finished == 0 {
        "nothing to do".to_owned()
    } else {
        format!("finished what was interrupted, {}, nothing more to do", counted(finished, "change"))
    };
    let are = if servers == 1 { "is" } else { "are" };
    let text = format!("{what}: {} {are} as planned ({seconds:.2} s)", counted(servers, "server"));
    out.data(text, &json!({ "changes": finished, "servers": servers, "seconds": seconds }));
}

/// What failed on a server and why, and once for all of it what helps.
fn failed(server: &str, failures: &[Failure], out: Out) {
    let (skipped, tried): (Vec<_>, Vec<_>) = failures.iter().partition(|failure| failure.code == "skipped");
    for failure in &tried {
        out.say(format_args!("{server}: {} failed [{}]", failure.step, failure.code));
        out.say(format_args!("    {}", failure.error.replace('\n', "\n    ")));
        for line in failure.evidence.lines() {
            out.say(format_args!("    | {line}"));
        }
    }
    if !skipped.is_empty() {
        let skipped = counted(skipped.len(), "step");
        out.say(format_args!("{server}: not tried, for want of a failed one: {skipped}"));
    }
    let helps: BTreeSet<_> = tried.iter().filter_map(|failure| failure.help()).collect();
    for help in helps {
        out.say(format_args!("  help: {server}: {help}"));
    }
}

/// What came of an apply.
pub(super) fn applied(saved: &Saved, applied: &Applied, took: Duration, out: Out) {
    for (server, outcome) in &applied.outcomes {
        let text = match outcome {
            ServerOutcome::Unchanged => continue,
            ServerOutcome::Done { changed } => {
                out.say(format_args!("{server}: {changed} changed"));
                continue;
            }
            ServerOutcome::Failed { failures, .. } => {
                failed(server, failures, out);
                continue;
            }
            ServerOutcome::Absent { reason } => format!("absent: {reason}"),
            ServerOutcome::Untrusted { reason } => format!("STOPPED before login: {reason}"),
            ServerOutcome::Refused { reason } => {
                format!("refused: {reason}; `rackwright plan` makes a new one")
            }
        };
        out.say(format_args!("{server}: {text}"));
    }
    if let Some(problem) = cluster_problem(applied) {
        out.say(format_args!("cluster: failed to {problem}"));
    }
    let seconds = took.as_secs_f64();
    let ready_s = applied.ready_after.map(|after| after.as_secs_f64());
    let ready = ready_s.map_or_else(String::new, |ready| {
        format!(", {} Ready after {ready:.1} s", counted(saved.plan.servers.len(), "node"))
    });
    let changes = counted(applied.changes(), "change");
    let text = format!("{}: {changes} in {seconds:.1} s{ready}", judged(applied));
    let value = json!({
        "generation": saved.plan.generation,
        "outcomes": applied.outcomes,
        "changes": applied.changes(),
        "seconds": seconds,
        "ready_s": ready_s,
        "cluster": cluster_problem(applied),
    });
    out.data(text, &value);
}

/// Servers and cluster in one line: a node that is missing is a step of no server.
fn judged(applied: &Applied) -> String {
    match (&applied.cluster, &applied.verdict) {
        (None, verdict) => verdict.to_string(),
        (Some(_), Verdict::Complete) => "every server's steps are as planned, the cluster is not".to_owned(),
        (Some(_), verdict @ (Verdict::Enough(_) | Verdict::Short(_))) => {
            format!("the cluster is not as planned, {verdict}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_rack::cluster::ClusterError;
    use std::collections::BTreeMap;

    #[test]
    fn a_missing_node_is_never_all_as_planned() {
        let missing =
            ClusterError::NotReady { wanted: 5, waited_s: 300, missing: "ml1 (not registered)".to_owned() };
        let mut applied = Applied {
            outcomes: BTreeMap::new(),
            objects_changed: 0,
            cluster: Some(missing),
            ready_after: None,
            verdict: Verdict::Complete,
        };
        assert_eq!(judged(&applied), "every server's steps are as planned, the cluster is not");
        applied.cluster = None;
        assert_eq!(judged(&applied), "every server is as planned");
    }
}
