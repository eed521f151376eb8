//! Whether and where something fits: the one set of predicates that `decide` and `explain` share.
//!
//! Filters first (role, taints, ready, GPU type, price, data), then best fit: of the nodes with room, the one
//! that is left with the least. Members of a gang ask for the same, so placing them one by one finds a
//! place for all whenever there is one.

use super::config::Config;
use super::state::{Node, State};
use crate::job::{Capacity, DatasetPin, Gang, JobSpec, Resources};
use rackwright_wire::id::{DatasetName, JobId, NodeName};
use rackwright_wire::units::{Currency, Money};
use std::collections::{BTreeMap, BTreeSet};

/// What placement depends on; jobs of one shape fit or fail together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub(super) resources: Resources,
    pub(super) gang: Option<Gang>,
    pub(super) datasets: Vec<DatasetPin>,
    /// Of its money cap: on a node without a price in it, the cap would never be reached.
    pub(super) currency: Option<Currency>,
}

impl Shape {
    pub(super) fn of(spec: &JobSpec, datasets: &[DatasetPin]) -> Self {
        let mut datasets = datasets.to_vec();
        datasets.sort();
        let currency = spec.money_cap.map(Money::currency);
        Self { resources: spec.resources.clone(), gang: spec.gang, datasets, currency }
    }

    /// Pods that start together.
    pub(super) fn members(&self) -> u32 {
        self.gang.map_or(1, |gang| gang.size)
    }

    fn spread(&self) -> bool {
        self.gang.is_some_and(|gang| gang.spread)
    }
}

/// Room taken on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Used {
    pub(super) cpu: u64,
    /// Wider than an amount: sixteen pods of others may ask for 1 EiB each, and each is taken off again.
    pub(super) memory: u128,
    pub(super) gpu: u64,
    pub(super) pods: u32,
}

impl Used {
    pub(super) fn add(&mut self, requests: &Resources) {
        self.cpu += requests.cpu.get();
        self.memory += u128::from(requests.memory.get());
        self.gpu += requests.gpu.get();
        self.pods += 1;
    }

    pub(super) fn remove(&mut self, requests: &Resources) {
        self.cpu = self.cpu.saturating_sub(requests.cpu.get());
        self.memory = self.memory.saturating_sub(u128::from(requests.memory.get()));
        self.gpu = self.gpu.saturating_sub(requests.gpu.get());
        self.pods = self.pods.saturating_sub(1);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.cpu == 0 && self.memory == 0 && self.gpu == 0 && self.pods == 0
    }
}

/// Why a node does not take a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Blocker {
    /// Its role runs no jobs.
    Role,
    /// It has not as much of this, even when empty.
    TooSmall(Kind),
    /// Its GPUs are of another type.
    GpuType,
    /// Its hour has no price in this currency, which the money cap counts in.
    NoPrice(Currency),
    /// A taint that jobs do not tolerate.
    Taint(String),
    /// It is not ready.
    NotReady,
    /// It does not hold this version; it holds this generation.
    Dataset { name: DatasetName, held: Option<u64> },
    /// Too little of this is free.
    Full(Kind),
    /// It is held for a job that has waited long.
    Held(JobId),
}

/// A kind of capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Cpu,
    Memory,
    Gpu,
    Pods,
}

impl Blocker {
    /// Whether no amount of waiting helps, as long as the node stays what it is.
    pub(super) const fn is_permanent(&self) -> bool {
        matches!(self, Self::Role | Self::TooSmall(_) | Self::GpuType | Self::NoPrice(_))
    }
}

/// Nodes that are held for a job that has waited long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) job: JobId,
    pub(super) nodes: BTreeSet<NodeName>,
}

/// What a placement looks at.
pub(super) struct Rack<'a> {
    pub(super) config: &'a Config,
    pub(super) state: &'a State,
    pub(super) used: &'a BTreeMap<NodeName, Used>,
}

impl Rack<'_> {
    fn used_on(&self, node: &NodeName) -> Used {
        self.used.get(node).copied().unwrap_or_default()
    }

    /// Everything that keeps a node from taking one pod of this shape; empty when it can.
    pub(super) fn blockers(&self, node: &Node, shape: &Shape, hold: Option<&Hold>) -> Vec<Blocker> {
        let mut blockers = self.lasting_blockers(node, shape);
        let free = Free::of(&node.facts.allocatable, self.used_on(&node.facts.name));
        for (kind, _) in Free::of(&node.facts.allocatable, Used::default()).short_of(&shape.resources) {
            blockers.push(Blocker::TooSmall(kind));
        }
        for (kind, _) in free.short_of(&shape.resources) {
            if !blockers.contains(&Blocker::TooSmall(kind)) {
                blockers.push(Blocker::Full(kind));
            }
        }
        if let Some(hold) = hold
            && hold.nodes.contains(&node.facts.name)
        {
            blockers.push(Blocker::Held(hold.job));
        }
        blockers
    }

    fn lasting_blockers(&self, node: &Node, shape: &Shape) -> Vec<Blocker> {
        let facts = &node.facts;
        let mut blockers = Vec::new();
        let role = facts.labels.get(&self.config.role_label);
        if !role.is_some_and(|role| self.config.job_roles.contains(role)) {
            blockers.push(Blocker::Role);
        }
        if node.gone || !facts.ready {
            blockers.push(Blocker::NotReady);
        }
        let repels = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
        for taint in facts.taints.iter().filter(|taint| repels(&taint.effect)) {
            if !self.config.tolerated_taints.contains(&taint.key) {
                blockers.push(Blocker::Taint(taint.key.clone()));
            }
        }
        if shape.resources.gpu_type.is_some() && shape.resources.gpu_type != facts.gpu_type {
            blockers.push(Blocker::GpuType);
        }
        if let Some(currency) = shape.currency
            && !is_priced(node, currency)
        {
            blockers.push(Blocker::NoPrice(currency));
        }
        for wanted in &shape.datasets {
            let held = facts.datasets.get(&wanted.name).map(Vec::as_slice).unwrap_or_default();
            if !held.iter().any(|held| held.version == wanted.version) {
                let held = held.iter().map(|held| held.generation).max();
                blockers.push(Blocker::Dataset { name: wanted.name.clone(), held });
            }
        }
        blockers
    }

    /// Nodes for every member of a group of this shape, or nothing.
    pub(super) fn place(&self, shape: &Shape, hold: Option<&Hold>) -> Option<Vec<NodeName>> {
        let mut candidates: Vec<Candidate<'_>> = self
            .state
            .nodes
            .values()
            .filter(|node| self.blockers(node, shape, hold).is_empty())
            .map(|node| Candidate::new(node, self.used_on(&node.facts.name)))
            .collect();
        let mut places = Vec::new();
        for _ in 0..shape.members() {
            let best =
                candidates.iter_mut().filter(|candidate| candidate.takes(shape)).min_by_key(|candidate| {
                    (candidate.left_after(&shape.resources), &candidate.node.facts.name)
                })?;
            best.used.add(&shape.resources);
            best.members += 1;
            places.push(best.node.facts.name.clone());
        }
        Some(places)
    }

    /// Whether an empty rack of these nodes, all ready and with all data, would have room for the group.
    pub(super) fn could_ever_fit(&self, shape: &Shape) -> bool {
        let lasting = |node: &Node| {
            let blockers = self.blockers(node, shape, None);
            !blockers.iter().any(Blocker::is_permanent)
        };
        let mut room = 0_u64;
        for node in self.state.nodes.values().filter(|node| !node.gone && lasting(node)) {
            let members = Free::of(&node.facts.allocatable, Used::default()).times(&shape.resources);
            room += if shape.spread() { members.min(1) } else { members };
        }
        room >= u64::from(shape.members())
    }

    /// The nodes to hold for a group that has waited long: of those that could ever take it, the ones
    /// with the most room free already, as many as its members need when those nodes are empty.
    pub(super) fn hold_for(&self, job: JobId, shape: &Shape) -> Hold {
        let waitable = |blocker: &Blocker| matches!(blocker, Blocker::Full(_));
        let mut nodes: Vec<Candidate<'_>> = self
            .state
            .nodes
            .values()
            .filter(|node| self.blockers(node, shape, None).iter().all(waitable))
            .map(|node| Candidate::new(node, self.used_on(&node.facts.name)))
            .collect();
        nodes.sort_by_key(|candidate| {
            let free = Free::of(&candidate.node.facts.allocatable, candidate.used);
            (
                std::cmp::Reverse(free.share(&candidate.node.facts.allocatable)),
                candidate.node.facts.name.clone(),
            )
        });
        let mut held = BTreeSet::new();
        let mut room = 0_u64;
        for candidate in nodes {
            if room >= u64::from(shape.members()) {
                break;
            }
            let members =
                Free::of(&candidate.node.facts.allocatable, Used::default()).times(&shape.resources);
            room += if shape.spread() { members.min(1) } else { members };
            held.insert(candidate.node.facts.name.clone());
        }
        Hold { job, nodes: held }
    }
}

/// Whether what a node's hour costs is known in this currency.
pub(super) fn is_priced(node: &Node, currency: Currency) -> bool {
    node.facts.price_per_hour.is_some_and(|price| price.currency() == currency)
}

/// A node with what a placement under way has put on it.
struct Candidate<'a> {
    node: &'a Node,
    used: Used,
    members: u32,
}

impl<'a> Candidate<'a> {
    fn new(node: &'a Node, used: Used) -> Self {
        Self { node, used, members: 0 }
    }

    fn takes(&self, shape: &Shape) -> bool {
        let free = Free::of(&self.node.facts.allocatable, self.used);
        (self.members == 0 || !shape.spread()) && free.short_of(&shape.resources).next().is_none()
    }

    /// How much of the node would be left, in millionths summed over the kinds that it has.
    fn left_after(&self, requests: &Resources) -> u64 {
        let mut used = self.used;
        used.add(requests);
        Free::of(&self.node.facts.allocatable, used).share(&self.node.facts.allocatable)
    }
}

/// Room that is free on a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Free {
    pub(super) cpu: u64,
    pub(super) memory: u64,
    pub(super) gpu: u64,
    pub(super) pods: u32,
}

/// An amount, or the most that there can be.
pub(super) fn clamped(amount: u128) -> u64 {
    u64::try_from(amount).unwrap_or(u64::MAX)
}

impl Free {
    pub(super) fn of(allocatable: &Capacity, used: Used) -> Self {
        Self {
            cpu: allocatable.cpu.get().saturating_sub(used.cpu),
            memory: allocatable.memory.get().saturating_sub(clamped(used.memory)),
            gpu: allocatable.gpu.get().saturating_sub(used.gpu),
            pods: allocatable.pods.saturating_sub(used.pods),
        }
    }

    fn each(self, requests: &Resources) -> [(Kind, u64, u64); 4] {
        [
            (Kind::Cpu, self.cpu, requests.cpu.get()),
            (Kind::Memory, self.memory, requests.memory.get()),
            (Kind::Gpu, self.gpu, requests.gpu.get()),
            (Kind::Pods, u64::from(self.pods), 1),
        ]
    }

    /// The kinds of which too little is free, with how much is.
    pub(super) fn short_of(self, requests: &Resources) -> impl Iterator<Item = (Kind, u64)> + use<> {
        let short = |(kind, free, asked)| if free < asked { Some((kind, free)) } else { None };
        self.each(requests).into_iter().filter_map(short)
    }

    /// How many pods with these requests fit.
    fn times(self, requests: &Resources) -> u64 {
        let fits = |(_, free, asked): (Kind, u64, u64)| free.checked_div(asked).unwrap_or(u64::MAX);
        self.each(requests).into_iter().map(fits).min().unwrap_or_default()
    }

    /// Free share of a node in millionths, summed over CPU, memory and GPUs.
    pub(super) fn share(self, allocatable: &Capacity) -> u64 {
        let share = |free: u64, all: u64| {
            let millionths = (u128::from(free) * 1_000_000).checked_div(u128::from(all));
            clamped(millionths.unwrap_or_default())
        };
        share(self.cpu, allocatable.cpu.get())
            + share(self.memory, allocatable.memory.get())
            + share(self.gpu, allocatable.gpu.get())
    }
}

/// The largest share of a node that these requests take, in millionths: what a pod is charged for.
pub(super) fn dominant_share(requests: &Resources, allocatable: &Capacity) -> u64 {
    let share = |asked: u64, all: u64| {
        let millionths = (u128::from(asked) * 1_000_000).checked_div(u128::from(all));
        clamped(millionths.unwrap_or_default())
    };
    share(requests.cpu.get(), allocatable.cpu.get())
        .max(share(requests.memory.get(), allocatable.memory.get()))
        .max(share(requests.gpu.get(), allocatable.gpu.get()))
        .min(1_000_000)
}
