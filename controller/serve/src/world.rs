//! What the cluster was last seen to hold, and what each sight means to the scheduler.
//!
//! Translation only: whether an event is news, and what follows from it, is decided in `core::sched`.
//! A full list is older than the changes that arrived while it was under way: what was expected before
//! it was asked for, and what went away since, keep it from undoing them.

use crate::cluster::{Change, Snapshot};
use crate::seen::{Ended, PodSeen, PodState};
use rackwright_core::job::{ForeignPod, NodeFacts, Outcome, PodPhase, What};
use rackwright_core::sched::Sched;
use rackwright_wire::id::{NodeName, PodKey, PodUid};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// The last sight of nodes and pods.
#[derive(Debug, Default)]
pub(crate) struct World {
    nodes: BTreeMap<NodeName, NodeFacts>,
    pods: HashMap<String, PodSeen>,
    by_key: HashMap<PodKey, String>,
    expected: BTreeMap<PodKey, PodUid>,
    known_at_request: HashSet<String>,
    gone_since_request: HashSet<String>,
    peak: usize,
}

impl World {
    /// Nodes by name.
    pub(crate) fn nodes(&self) -> &BTreeMap<NodeName, NodeFacts> {
        &self.nodes
    }

    /// Pods that the cluster holds now, everybody's.
    pub(crate) fn pods(&self) -> usize {
        self.pods.len()
    }

    /// The most that it held at once since this controller started.
    pub(crate) fn peak(&self) -> usize {
        self.peak
    }

    /// Our pods that the cluster holds now.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &PodSeen> {
        self.pods.values().filter(|pod| pod.ours.is_some())
    }

    /// All pods that the cluster holds now.
    pub(crate) fn all(&self) -> impl Iterator<Item = &PodSeen> {
        self.pods.values()
    }

    /// The pod of an attempt, when it is there.
    pub(crate) fn pod_of(&self, key: PodKey) -> Option<&PodSeen> {
        self.pods.get(self.by_key.get(&key)?)
    }

    /// A full list is being asked for now.
    pub(crate) fn requested(&mut self, sched: &Sched) {
        self.expected = sched.expected_pods();
        self.known_at_request = self.pods.keys().cloned().collect();
        self.gone_since_request.clear();
    }

    /// What a change means.
    pub(crate) fn change(&mut self, change: Change, sched: &Sched) -> Vec<What> {
        match change {
            Change::Node(node) => {
                self.nodes.insert(node.name.clone(), (*node).clone());
                vec![What::NodeSeen { node }]
            }
            Change::NodeGone(name) => self.node_gone(&name).into_iter().collect(),
            Change::Pod(pod) => self.pod(&pod, sched).into_iter().collect(),
            Change::PodGone(pod) => self.pod_gone(&pod).into_iter().collect(),
        }
    }

    /// Remembers a pod; its end may be something that the scheduler must not hear of yet.
    pub(crate) fn note(&mut self, pod: &PodSeen) {
        if let Some(key) = pod.ours {
            self.by_key.insert(key, pod.uid.clone());
        }
        let mut noted = pod.clone();
        if let Some(known) = self.pods.get(&pod.uid) {
            noted.keep_note(known);
        }
        self.pods.insert(pod.uid.clone(), noted);
        self.peak = self.peak.max(self.pods.len());
    }

    /// What a full list means: all that is there, and all that is not there any more. The pods `held`
    /// are in it, but their ends are not told yet.
    pub(crate) fn snapshot(
        &mut self,
        snapshot: Snapshot,
        held: &HashSet<String>,
        sched: &Sched,
    ) -> Vec<What> {
        let mut events = self.nodes_listed(snapshot.nodes, sched);
        let mut pods = snapshot.pods;
        pods.retain(|pod| !self.gone_since_request.contains(&pod.uid));
        let listed: BTreeSet<PodUid> = pods.iter().filter_map(|pod| PodUid::new(&pod.uid).ok()).collect();
        events.extend(self.forget_absent(&pods));
        events.extend(Sched::vanished(&self.expected, &listed));
        for pod in pods {
            if held.contains(&pod.uid) {
                self.note(&pod);
            } else {
                events.extend(self.pod(&pod, sched));
            }
        }
        events
    }

    fn nodes_listed(&mut self, nodes: Vec<NodeFacts>, sched: &Sched) -> Vec<What> {
        let listed: HashSet<&NodeName> = nodes.iter().map(|node| &node.name).collect();
        // The scheduler may remember nodes that this process never saw.
        let known = sched.nodes().into_iter().map(|node| node.name).chain(self.nodes.keys().cloned());
        let absent: BTreeSet<NodeName> = known.filter(|name| !listed.contains(name)).collect();
        let mut events: Vec<What> = absent.iter().filter_map(|name| self.node_gone(name.as_str())).collect();
        for node in nodes {
            events.extend(self.change(Change::Node(Box::new(node)), sched));
        }
        events
    }

    /// Forgets pods that were known before the list and are not in it.
    fn forget_absent(&mut self, listed: &[PodSeen]) -> Vec<What> {
        let there: HashSet<&str> = listed.iter().map(|pod| pod.uid.as_str()).collect();
        let is_absent = |uid: &String| self.known_at_request.contains(uid) && !there.contains(uid.as_str());
        let absent: Vec<String> = self.pods.keys().filter(|uid| is_absent(uid)).cloned().collect();
        let mut events = Vec::new();
        for pod in absent.iter().filter_map(|uid| self.pods.remove(uid)) {
            if pod.ours.is_none() {
                events.extend(PodUid::new(&pod.uid).ok().map(|uid| What::ForeignPodGone { uid }));
            }
        }
        events
    }

    fn node_gone(&mut self, name: &str) -> Option<What> {
        let node = NodeName::new(name).ok()?;
        self.nodes.remove(&node);
        Some(What::NodeGone { node })
    }

    fn pod(&mut self, pod: &PodSeen, sched: &Sched) -> Option<What> {
        let uid = PodUid::new(&pod.uid).ok()?;
        self.note(pod);
        let pod = self.pods.get(&pod.uid)?;
        match pod.ours {
            Some(key) => ours(key, uid, pod, sched),
            None => foreign(uid, pod),
        }
    }

    fn pod_gone(&mut self, pod: &PodSeen) -> Option<What> {
        let uid = PodUid::new(&pod.uid).ok()?;
        self.pods.remove(&pod.uid);
        self.gone_since_request.insert(pod.uid.clone());
        let Some(key) = pod.ours else { return Some(What::ForeignPodGone { uid }) };
        if self.by_key.get(&key) == Some(&pod.uid) {
            self.by_key.remove(&key);
        }
        Some(What::PodGone { pod: key, uid: Some(uid) })
    }
}

/// What a sight of one of our pods means.
fn ours(key: PodKey, uid: PodUid, pod: &PodSeen, sched: &Sched) -> Option<What> {
    if !sched.knows(&key) {
        let (node, requests) = (pod.node.clone()?, pod.requests.clone());
        return Some(What::OrphanSeen { pod: key, uid, node, requests });
    }
    Some(match &pod.state {
        PodState::Pending(_) => {
            What::PodObserved { pod: key, uid, phase: PodPhase::Pending, started_at_ms: None }
        }
        PodState::Running { started_ms } => {
            What::PodObserved { pod: key, uid, phase: PodPhase::Running, started_at_ms: Some(*started_ms) }
        }
        PodState::Refused(reason) => What::PodRefused { pod: key, uid, reason: reason.clone() },
        PodState::Failed(end) if was_taken(end) => What::AttemptLost { pod: key, uid, reason: said(end) },
        // We delete nothing that has not ended and is not archived: somebody else ended this one.
        PodState::Failed(end) if pod.deleting => {
            What::AttemptLost { pod: key, uid, reason: format!("its pod was deleted: {}", said(end)) }
        }
        // Ours stop sooner; this one passed the kubelet's own deadline while we were away.
        PodState::Failed(end) if end.reason == "DeadlineExceeded" => {
            finished(key, uid, Outcome::TimeLimit, end)
        }
        PodState::Failed(end) => finished(key, uid, Outcome::Failed, end),
        PodState::Succeeded(end) => finished(key, uid, Outcome::Succeeded, end),
    })
}

/// The kubelet ended it for the node's sake, or found it dead after a reboot: not for anything that it
/// did. containerd and the kubelet each have a word for a container that ended without their seeing it.
fn was_taken(end: &Ended) -> bool {
    match end.reason.as_str() {
        "Evicted" => !end.message.contains("exceed"),
        "Preempting"
        | "Shutdown"
        | "Terminated"
        | "NodeShutdown"
        | "NodeLost"
        | "Unknown"
        | "ContainerStatusUnknown" => true,
        _ => false,
    }
}

fn finished(pod: PodKey, uid: PodUid, outcome: Outcome, end: &Ended) -> What {
    let known = |ms: u64| (ms > 0).then_some(ms);
    What::AttemptFinished {
        pod,
        uid,
        outcome,
        exit_code: end.exit_code,
        reason: said(end),
        started_at_ms: known(end.started_ms),
        finished_at_ms: known(end.finished_ms),
    }
}

fn said(end: &Ended) -> String {
    match (end.reason.as_str(), end.message.trim()) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

/// Everybody else's pods take room from the moment they are bound until they end.
fn foreign(uid: PodUid, pod: &PodSeen) -> Option<What> {
    let node = pod.node.clone()?;
    if !pod.takes_room() {
        return Some(What::ForeignPodGone { uid });
    }
    let name = format!("{}/{}", pod.namespace, pod.name);
    Some(What::ForeignPodSeen { pod: ForeignPod { uid, name, node, requests: pod.requests.clone() } })
}
