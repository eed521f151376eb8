//! Artifacts on their way to one server, while its other steps already run.
//!
//! Sent in the order of [`crate::urgency`], a few at once: one connection has one key stream, so more would
//! only make the first arrive later.

use crate::agent::Agent;
use crate::head_start::{HeadStart, Held};
use crate::survey::LocalArtifact;
use crate::urgency::{self, Tier};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rackwright_wire::plan::ServerPlan;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Artifacts at once to one server.
const AT_ONCE: usize = 2;

/// The artifacts of this machine by hash.
pub type Shelf = Arc<BTreeMap<String, LocalArtifact>>;

/// What is sent, was sent and could not be sent to one server.
pub(crate) struct Uploads {
    shelf: Shelf,
    head_start: HeadStart,
    tiers: BTreeMap<String, Tier>,
    /// Those of the queue and in flight that others wait for.
    held: BTreeMap<String, Held>,
    queue: VecDeque<String>,
    running: FuturesUnordered<BoxFuture<'static, Ended>>,
    in_flight: BTreeSet<String>,
    arrived: BTreeSet<String>,
}

/// One upload that ended.
pub(crate) struct Ended {
    pub(crate) sha256: String,
    pub(crate) name: String,
    pub(crate) took_ms: u64,
    /// Why not, when it did not arrive.
    pub(crate) result: Result<(), Unsent>,
}

/// Why an artifact did not arrive.
pub(crate) struct Unsent {
    pub(crate) reason: String,
    /// The code that the agent gave, or empty.
    pub(crate) code: String,
    /// Whether the connection was why: then the next one sends it again.
    pub(crate) lost: bool,
}

/// What is known about an artifact that a step waits for.
pub(crate) enum Known {
    /// It is there.
    Arrived,
    /// It is or will be on its way.
    Coming,
    /// This machine does not have it.
    Unknown,
}

impl Uploads {
    /// Queues what differing steps of a plan need, most urgent first.
    pub(crate) fn new(shelf: &Shelf, head_start: &HeadStart, plan: &ServerPlan) -> Self {
        let tiers: BTreeMap<String, Tier> =
            urgency::tiers(plan).into_iter().map(|(sha256, tier)| (sha256.to_owned(), tier)).collect();
        let tier = |sha256: &String| tiers.get(sha256).copied().unwrap_or(Tier::Rest);
        let mut order = urgency::order(plan, |sha256| shelf.get(sha256).map(|file| file.bytes));
        // Stable: within a tier the longest chain stays first.
        order.sort_by_key(tier);
        let wait_for = |sha256: &String| (sha256.clone(), head_start.hold(tier(sha256)));
        let held = order.iter().map(wait_for).collect();
        Self {
            shelf: Arc::clone(shelf),
            head_start: head_start.clone(),
            tiers,
            held,
            queue: order.into(),
            running: FuturesUnordered::new(),
            in_flight: BTreeSet::new(),
            arrived: BTreeSet::new(),
        }
    }

    /// A step waits for this artifact now.
    pub(crate) fn want(&mut self, sha256: &str) -> Known {
        if self.arrived.contains(sha256) {
            return Known::Arrived;
        }
        if self.in_flight.contains(sha256) {
            return Known::Coming;
        }
        if !self.shelf.contains_key(sha256) {
            return Known::Unknown;
        }
        // What is queued keeps its place: steps ask in the order in which they happen to start.
        if !self.queue.iter().any(|queued| queued == sha256) {
            self.queue.push_front(sha256.to_owned());
        }
        Known::Coming
    }

    /// Starts what may start, and returns what was started.
    pub(crate) fn start(&mut self, agent: &Agent) -> Vec<LocalArtifact> {
        let mut started = Vec::new();
        while self.running.len() < AT_ONCE {
            let Some(sha256) = self.queue.front() else { break };
            if self.head_start.holds(self.tier(sha256)) {
                break;
            }
            let Some(sha256) = self.queue.pop_front() else { break };
            let Some(artifact) = self.shelf.get(&sha256) else { continue };
            self.in_flight.insert(sha256);
            self.running.push(Box::pin(send(agent.clone(), artifact.clone())));
            started.push(artifact.clone());
        }
        started
    }

    /// Whether anything is on its way or waits for the head start of others.
    pub(crate) fn is_busy(&self) -> bool {
        !self.running.is_empty() || !self.queue.is_empty()
    }

    /// The next one that ends; `None` when the head start is over and more may start.
    pub(crate) async fn next(&mut self) -> Option<Ended> {
        let front = self.queue.front().map_or(Tier::Shared, |sha256| self.tier(sha256));
        let held = self.running.len() < AT_ONCE && self.head_start.holds(front);
        let ended = tokio::select! {
            Some(ended) = self.running.next() => ended,
            () = self.head_start.over(front), if held => return None,
            else => return std::future::pending().await,
        };
        self.in_flight.remove(&ended.sha256);
        match &ended.result {
            Ok(()) => {
                self.held.remove(&ended.sha256);
                self.arrived.insert(ended.sha256.clone());
            }
            Err(Unsent { lost: true, .. }) => self.queue.push_front(ended.sha256.clone()),
            Err(Unsent { lost: false, .. }) => drop(self.held.remove(&ended.sha256)),
        }
        Some(ended)
    }

    fn tier(&self, sha256: &str) -> Tier {
        self.tiers.get(sha256).copied().unwrap_or(Tier::Rest)
    }

    /// The connection is gone: what was on its way starts again on the next one, and nobody waits for it.
    pub(crate) fn disconnected(&mut self) {
        self.held.clear();
        self.running = FuturesUnordered::new();
        for sha256 in std::mem::take(&mut self.in_flight) {
            self.queue.push_front(sha256);
        }
    }
}

async fn send(agent: Agent, artifact: LocalArtifact) -> Ended {
    let started = Instant::now();
    let sent = Box::pin(agent.receive(&artifact.sha256, "0755", &artifact.path, |_| ())).await;
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let result = sent.map_err(|error| Unsent {
        reason: crate::survey::chain(&error),
        code: error.code().to_owned(),
        lost: error.is_lost_connection(),
    });
    Ended { sha256: artifact.sha256, name: artifact.name, took_ms, result }
}
