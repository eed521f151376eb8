//! Which artifact a server needs first. Pure.
//!
//! A file is as urgent as the longest chain of steps that waits for it (critical path, as in list scheduling:
//! Graham 1969, with Hu's levels): etcd's binary starts a chain of five, the binary that serves jobs one of
//! two. Of equals the smaller goes first, because more steps can then start sooner.

use crate::survey::artifact_of;
use rackwright_wire::plan::ServerPlan;
use rackwright_wire::step::{Step, StepKind, WaitState};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Hashes of the files that differing steps of a plan need, most urgent first. `size` is in bytes; files
/// that it does not know are left out.
pub fn order(plan: &ServerPlan, size: impl Fn(&str) -> Option<u64>) -> Vec<String> {
    let heights = heights(&plan.steps);
    let differing: BTreeSet<&str> = plan.differences.iter().map(|of| of.step.as_str()).collect();
    let mut files: Vec<(Reverse<u32>, u64, &str)> = plan
        .steps
        .iter()
        .filter(|step| differing.contains(step.id.as_str()))
        .filter_map(|step| {
            let sha256 = artifact_of(step)?;
            Some((Reverse(*heights.get(step.id.as_str())?), size(sha256)?, sha256))
        })
        .collect();
    files.sort_unstable();
    let mut order: Vec<String> = Vec::new();
    for (_, _, sha256) in files {
        if !order.iter().any(|known| known == sha256) {
            order.push(sha256.to_owned());
        }
    }
    order
}

/// Who waits for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Every server: a state of several servers cannot become true without it.
    Shared,
    /// This server: what it does once such a state is true cannot be done without it.
    Joining,
    /// Nobody in particular.
    Rest,
}

/// The tier of each file of a plan, by hash: what a step that waits for a state of several servers needs,
/// however indirectly, is shared; what steps behind such a wait need is joining.
pub fn tiers(plan: &ServerPlan) -> BTreeMap<&str, Tier> {
    let is_wait = |step: &&Step| matches!(&step.kind, StepKind::Wait { state: WaitState::Cluster(_), .. });
    let waits: Vec<&Step> = plan.steps.iter().filter(is_wait).collect();
    let mut behind: BTreeSet<&str> = waits.iter().map(|step| step.id.as_str()).collect();
    // Steps are in an order that respects `needs`: one pass finds everything behind a wait.
    let mut dependants = Vec::new();
    for step in &plan.steps {
        if step.needs.iter().any(|need| behind.contains(need.as_str())) && behind.insert(&step.id) {
            dependants.push(step);
        }
    }
    let mut tiers: BTreeMap<&str, Tier> =
        plan.steps.iter().filter_map(artifact_of).map(|sha256| (sha256, Tier::Rest)).collect();
    for (from, tier) in [(dependants, Tier::Joining), (waits, Tier::Shared)] {
        for sha256 in files_of(plan, from) {
            tiers.insert(sha256, tier);
        }
    }
    tiers
}

/// Files that steps need, however indirectly.
fn files_of<'p>(plan: &'p ServerPlan, mut open: Vec<&'p Step>) -> BTreeSet<&'p str> {
    let by_id: BTreeMap<&str, &Step> = plan.steps.iter().map(|step| (step.id.as_str(), step)).collect();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut files = BTreeSet::new();
    while let Some(step) = open.pop() {
        if seen.insert(&step.id) {
            files.extend(artifact_of(step));
            open.extend(step.needs.iter().filter_map(|need| by_id.get(need.as_str()).copied()));
        }
    }
    files
}

/// For each step the length of the longest chain of steps that need it. Steps are in an order that respects
/// `needs`, so one pass from the end is enough.
fn heights(steps: &[Step]) -> BTreeMap<&str, u32> {
    let mut heights: BTreeMap<&str, u32> = steps.iter().map(|step| (step.id.as_str(), 0)).collect();
    for step in steps.iter().rev() {
        let own = heights.get(step.id.as_str()).copied().unwrap_or(0);
        for need in &step.needs {
            if let Some(height) = heights.get_mut(need.as_str()) {
                *height = (*height).max(own + 1);
            }
        }
    }
    heights
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::step::Difference;

    fn artifact(id: &str, sha256: &str) -> Step {
        let (name, path, mode) = (id.to_owned(), format!("/{id}"), "0755".to_owned());
        let kind = StepKind::Artifact { name, path, sha256: sha256.to_owned(), mode };
        Step { id: id.to_owned(), needs: Vec::new(), kind }
    }

    fn wait(id: &str, needs: &[&str]) -> Step {
        let state = WaitState::Path("/x".to_owned());
        let needs = needs.iter().map(|need| (*need).to_owned()).collect();
        Step { id: id.to_owned(), needs, kind: StepKind::Wait { state, timeout_s: 1 } }
    }

    fn plan_of(differences: Vec<Difference>) -> ServerPlan {
        ServerPlan {
            version: 1,
            id: String::new(),
            server: "c".to_owned(),
            machine_id: String::new(),
            generation: 1,
            facts_digest: String::new(),
            steps: Vec::new(),
            differences,
        }
    }

    #[test]
    fn the_longest_chain_goes_first_and_the_smaller_of_equals() {
        let steps = vec![
            artifact("big", "b"),
            artifact("etcd", "e"),
            artifact("small", "s"),
            artifact("there", "t"),
            wait("etcd-unit", &["etcd"]),
            wait("quorum", &["etcd-unit"]),
            wait("node", &["quorum", "big", "small", "there"]),
        ];
        let differences = ["big", "etcd", "small", "quorum"].map(|step| Difference {
            step: step.to_owned(),
            summary: String::new(),
            detail: String::new(),
        });
        let plan = ServerPlan { steps, ..plan_of(differences.into()) };
        let size = |sha256: &str| Some(if sha256 == "b" { 100 } else { 1 });
        assert_eq!(order(&plan, size), ["e", "s", "b"]);
        assert_eq!(order(&plan, |sha256| (sha256 == "b").then_some(1)), ["b"]);
    }

    #[test]
    fn what_a_state_of_several_servers_needs_goes_before_what_joins_and_that_before_the_rest() {
        let mut ready = wait("ready", &["api-unit"]);
        ready.kind = StepKind::Wait { state: WaitState::Cluster("api:ready".to_owned()), timeout_s: 1 };
        let steps = vec![
            artifact("api", "a"),
            artifact("kubelet", "k"),
            artifact("image", "i"),
            wait("api-unit", &["api"]),
            ready,
            wait("node", &["ready", "kubelet"]),
            wait("job-image", &["image"]),
        ];
        let plan = ServerPlan { steps, ..plan_of(Vec::new()) };
        let expected = [("a", Tier::Shared), ("i", Tier::Rest), ("k", Tier::Joining)];
        assert_eq!(tiers(&plan), BTreeMap::from(expected));
    }
}
