//! Why a job does not run yet, in one precise sentence and per node, from the predicates of `decide`.

use super::Sched;
use super::fit::{Blocker, Free, Hold, Kind, Shape, Used, is_priced};
use super::index::Order;
use super::state::{Job, Node};
use crate::job::{JobPhase, Resources};
use rackwright_wire::id::{JobId, NodeName};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

/// Nodes held for the first starved job, computed when the first answer needs it.
type FirstHold = OnceCell<Option<(Order, Hold)>>;

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// The job.
    pub job: JobId,
    /// In one word.
    pub verdict: Verdict,
    /// In one sentence.
    pub sentence: String,
    /// Node by node, by name; empty when placement is not what it waits for.
    pub nodes: Vec<NodeAnswer>,
}

/// Why a job is where it is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It has ended.
    Ended,
    /// Everything of it has a place.
    Placed,
    /// It has a place now, if nothing before it in the order takes it.
    Fits,
    /// It waits for room, data or a node.
    Waits,
    /// No node can ever take it.
    Never,
    /// It waits for the turn of a retry.
    Backoff,
    /// It waits for another job.
    Dependency,
    /// It is being stopped.
    Stopping,
    /// Launches pause until finished pods are archived, or pods that were asked for exist.
    Paused,
}

/// What one node says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAnswer {
    /// The node.
    pub node: NodeName,
    /// It would take one pod now.
    pub fits: bool,
    /// Why not, all reasons.
    pub reasons: Vec<String>,
}

impl Sched {
    /// Why a job is where it is; unknown once it has ended and its pods are gone.
    pub fn explain(&self, id: JobId) -> Option<Explanation> {
        self.explain_with(id, &FirstHold::new())
    }

    /// As [`Sched::explain`], for several jobs at less than the price of each.
    pub fn explain_all(&self, ids: &[JobId]) -> BTreeMap<JobId, Explanation> {
        let hold = FirstHold::new();
        ids.iter().filter_map(|id| Some((*id, self.explain_with(*id, &hold)?))).collect()
    }

    fn explain_with(&self, id: JobId, hold: &FirstHold) -> Option<Explanation> {
        let job = self.state.jobs.get(&id)?;
        let say = |verdict, sentence: String| Explanation { job: id, verdict, sentence, nodes: Vec::new() };
        let view = self.view(id)?;
        if let Some(outcome) = job.outcome {
            return Some(say(Verdict::Ended, format!("has ended: {}", outcome.as_str())));
        }
        if let Some(why) = job.stop {
            let left = view.counts.starting + view.counts.running;
            let sentence = format!("is being stopped ({}): {}", why.outcome().as_str(), pods(left));
            return Some(say(Verdict::Stopping, sentence));
        }
        if job.doomed {
            return Some(say(
                Verdict::Dependency,
                "cannot start: a job that it depends on did not succeed".to_owned(),
            ));
        }
        if !job.blocked_on.is_empty() {
            let names: Vec<String> = job.blocked_on.iter().map(ToString::to_string).collect();
            return Some(say(Verdict::Dependency, format!("waits for {} to succeed", names.join(", "))));
        }
        if !job.has_pending() {
            let word = if view.phase == JobPhase::Running { "runs" } else { "starts" };
            let sentence = format!("{word}: everything has a place, {} running", pods(view.counts.running));
            return Some(say(Verdict::Placed, sentence));
        }
        if job.fresh == job.groups() && !self.index.ready.contains_key(&id) {
            let next = job.waiting.values().map(|retry| retry.not_before_ms).min().unwrap_or_default();
            let wait_s = next.saturating_sub(self.clock_ms).div_ceil(1000);
            return Some(say(Verdict::Backoff, format!("waits {wait_s} s before its next attempt")));
        }
        Some(self.explain_placement(id, job, hold))
    }

    fn explain_placement(&self, id: JobId, job: &Job, hold: &FirstHold) -> Explanation {
        let shape = Shape::of(&job.record.spec, &job.record.datasets);
        let rack = self.rack();
        let hold = hold.get_or_init(|| self.first_hold()).as_ref();
        let hold = hold.filter(|(holder, _)| *holder < self.order_of(job)).map(|(_, hold)| hold);
        let asked: Vec<(&Node, Vec<Blocker>)> =
            self.state.nodes.values().map(|node| (node, rack.blockers(node, &shape, hold))).collect();
        let answers = asked.iter().map(|(node, blockers)| NodeAnswer {
            node: node.facts.name.clone(),
            fits: blockers.is_empty(),
            reasons: blockers.iter().map(|blocker| self.reason(node, blocker, &shape)).collect(),
        });
        let (verdict, sentence) = if !rack.could_ever_fit(&shape) {
            (Verdict::Never, self.why_never(&shape))
        } else if self.is_backlogged() {
            let sentence =
                format!("waits: {} finished pods are not archived and pruned yet", self.index.backlog);
            (Verdict::Paused, sentence)
        } else if self.is_creating() {
            let sentence = format!("waits: {} pods are being created already", self.index.reserved);
            (Verdict::Paused, sentence)
        } else if rack.place(&shape, hold).is_some() {
            (
                Verdict::Fits,
                "fits now: starts with the next decision unless a job before it takes the room".to_owned(),
            )
        } else {
            (Verdict::Waits, self.why_waits(&shape, &asked))
        };
        Explanation { job: id, verdict, sentence, nodes: answers.collect() }
    }

    /// The nodes that run jobs and could be the ones, with what stops them for good.
    fn job_nodes(&self) -> Vec<&Node> {
        let runs_jobs = |node: &&Node| {
            let role = node.facts.labels.get(&self.config.role_label);
            !node.gone && role.is_some_and(|role| self.config.job_roles.contains(role))
        };
        self.state.nodes.values().filter(runs_jobs).collect()
    }

    fn roles(&self) -> String {
        self.config.job_roles.iter().map(String::as_str).collect::<Vec<_>>().join("/")
    }

    fn why_never(&self, shape: &Shape) -> String {
        let nodes = self.job_nodes();
        let roles = self.roles();
        let asked = &shape.resources;
        if nodes.is_empty() {
            return format!("cannot run: no node with role {roles} is known; add one");
        }
        if let Some(wanted) = &asked.gpu_type
            && nodes.iter().all(|node| node.facts.gpu_type.as_ref() != Some(wanted))
        {
            return format!(
                "needs GPUs of type {wanted}, which no {roles} node has: change the request or add a node"
            );
        }
        if let Some(currency) = shape.currency
            && !nodes.iter().any(|node| is_priced(node, currency))
        {
            return format!(
                "has a money cap in {currency}, and no {roles} node has a price in that: change the cap or give a \
                 server a contract"
            );
        }
        let too_much = [Kind::Cpu, Kind::Memory, Kind::Gpu].into_iter().find_map(|kind| {
            let largest =
                nodes.iter().max_by_key(|node| (offered(kind, node), std::cmp::Reverse(&node.facts.name)))?;
            let most = offered(kind, largest);
            (wanted(kind, asked) > most).then(|| {
                let (wanted, most) = (amount(kind, wanted(kind, asked)), amount(kind, most));
                format!(
                    "needs {wanted} of {}; the largest {roles} node ({}) can ever offer {most}: \
                     change the request or add a node",
                    kind.name(),
                    largest.facts.name,
                )
            })
        });
        if let Some(sentence) = too_much {
            return sentence;
        }
        let what = ask(asked);
        match shape.gang {
            None => format!("needs {what} on one node; each {roles} node has too little of one or the other"),
            Some(gang) => {
                let apart = if gang.spread { ", each on a node of its own" } else { "" };
                format!(
                    "needs {} at once with {what} each{apart}; the {} with role {roles} cannot take them all even \
                     when empty: change the request or add a node",
                    pods(gang.size),
                    count(nodes.len(), "node"),
                )
            }
        }
    }

    /// The reasons that the nodes which could ever take it have in common, most frequent first.
    fn why_waits(&self, shape: &Shape, asked: &[(&Node, Vec<Blocker>)]) -> String {
        let able: Vec<&(&Node, Vec<Blocker>)> = asked
            .iter()
            .filter(|(node, blockers)| !node.gone && !blockers.iter().any(Blocker::is_permanent))
            .collect();
        let roles = self.roles();
        let of = count(able.len(), &format!("{roles} node"));
        let mut parts = Vec::new();
        let full: Vec<&Node> = with(&able, |blocker| matches!(blocker, Blocker::Full(_)));
        if let Some(best) =
            full.iter().max_by_key(|node| (self.free_share(node), std::cmp::Reverse(&node.facts.name)))
        {
            parts.push(format!("{} of {of} full, {}", full.len(), self.free_on(best, shape)));
        }
        for (node, blockers) in &able {
            for blocker in blockers.iter().filter(|blocker| !matches!(blocker, Blocker::Full(_))) {
                parts.push(format!("{} {}", node.facts.name, self.reason(node, blocker, shape)));
            }
        }
        let free = able.iter().filter(|(_, blockers)| blockers.is_empty()).count();
        if let Some(gang) = shape.gang.filter(|_| free > 0) {
            parts.insert(
                0,
                format!("its {} do not all fit at once, {free} of {of} would take one", pods(gang.size)),
            );
        }
        let shown: Vec<String> = parts.iter().take(4).cloned().collect();
        let more = parts.len().saturating_sub(shown.len());
        let tail = if more > 0 { format!("; and {more} more reasons") } else { String::new() };
        format!("waits: {}{tail}", shown.join("; "))
    }

    fn reason(&self, node: &Node, blocker: &Blocker, shape: &Shape) -> String {
        match blocker {
            Blocker::Role => format!("does not have role {}", self.roles()),
            Blocker::TooSmall(kind) => format!(
                "has {} of {} even when empty, {} needed",
                amount(*kind, offered(*kind, node)),
                kind.name(),
                amount(*kind, wanted(*kind, &shape.resources)),
            ),
            Blocker::GpuType => "has GPUs of another type".to_owned(),
            Blocker::NoPrice(currency) => {
                format!("has no price in {currency}, the currency of the money cap")
            }
            Blocker::Taint(key) => format!("has taint {key}, which jobs do not tolerate"),
            Blocker::NotReady => "is not ready".to_owned(),
            Blocker::Dataset { name, held } => {
                let pin = shape.datasets.iter().find(|pin| pin.name == *name);
                let version = pin.map_or("?", |pin| pin.version.short());
                let generation = pin.map_or(0, |pin| pin.generation);
                let held = held.map_or("has none".to_owned(), |held| format!("has generation {held}"));
                format!("waits for dataset {name}@{version}, generation {generation} ({held})")
            }
            Blocker::Full(kind) => {
                let free = Free::of(&node.facts.allocatable, self.used_of(node));
                let free = match kind {
                    Kind::Cpu => free.cpu,
                    Kind::Memory => free.memory,
                    Kind::Gpu => free.gpu,
                    Kind::Pods => u64::from(free.pods),
                };
                format!("has {} of {} free", amount(*kind, free), kind.name())
            }
            Blocker::Held(job) => format!("is held for {job}, which has waited long"),
        }
    }

    fn used_of(&self, node: &Node) -> Used {
        self.index.used.get(&node.facts.name).copied().unwrap_or_default()
    }

    fn free_share(&self, node: &Node) -> u64 {
        Free::of(&node.facts.allocatable, self.used_of(node)).share(&node.facts.allocatable)
    }

    /// What the freest node lacks: `0.4 of 3.8 cpu free on ml2`.
    fn free_on(&self, node: &Node, shape: &Shape) -> String {
        let short = Free::of(&node.facts.allocatable, self.used_of(node)).short_of(&shape.resources);
        let parts: BTreeSet<String> = short
            .map(|(kind, free)| {
                let all = amount(kind, offered(kind, node));
                format!("{} of {all} {} free", amount(kind, free), kind.name())
            })
            .collect();
        let parts: Vec<String> = parts.into_iter().collect();
        format!("{} on {}, {} needed", parts.join(" and "), node.facts.name, ask(&shape.resources))
    }
}

/// Nodes that have a blocker of some kind.
fn with<'a>(asked: &[&(&'a Node, Vec<Blocker>)], is: impl Fn(&Blocker) -> bool) -> Vec<&'a Node> {
    asked.iter().filter(|(_, blockers)| blockers.iter().any(&is)).map(|(node, _)| *node).collect()
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Gpu => "gpu",
            Self::Pods => "pods",
        }
    }
}

fn offered(kind: Kind, node: &Node) -> u64 {
    let all = &node.facts.allocatable;
    match kind {
        Kind::Cpu => all.cpu.get(),
        Kind::Memory => all.memory.get(),
        Kind::Gpu => all.gpu.get(),
        Kind::Pods => u64::from(all.pods),
    }
}

fn wanted(kind: Kind, requests: &Resources) -> u64 {
    match kind {
        Kind::Cpu => requests.cpu.get(),
        Kind::Memory => requests.memory.get(),
        Kind::Gpu => requests.gpu.get(),
        Kind::Pods => 1,
    }
}

/// An amount as people write it.
fn amount(kind: Kind, value: u64) -> String {
    match kind {
        Kind::Cpu => MilliCpu::new(value).unwrap_or(MilliCpu::MAX).to_string(),
        Kind::Memory => Bytes::new(value).unwrap_or(Bytes::MAX).to_string(),
        Kind::Gpu => MilliGpu::new(value).unwrap_or(MilliGpu::MAX).to_string(),
        Kind::Pods => value.to_string(),
    }
}

/// A request as people say it: `2 cpu and 1 GiB of memory`.
fn ask(requests: &Resources) -> String {
    let gpu = if requests.gpu.is_zero() { String::new() } else { format!(", {} gpu", requests.gpu) };
    format!("{} cpu{gpu} and {} of memory", requests.cpu, requests.memory)
}

fn pods(number: u32) -> String {
    format!("{number} pod{}", if number == 1 { "" } else { "s" })
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
