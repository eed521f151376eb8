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

/// What a kubelet says of every pod that it ends at a deadline. We stop pods by a deadline that is over,
/// so it misleads: the outcome says which limit it was, or that somebody cancelled the job.
const PAST_DEADLINE: &str = "Pod was active on the node longer than the specified deadline";

/// The last sight of nodes and pods.
#[derive(Debug, Default)]
pub(crate) struct World {
    nodes: BTreeMap<NodeName, NodeFacts>,
    pods: HashMap<String, PodSeen>,
    by_key: HashMap<PodKey, String>,
    expected: BTreeMap<PodKey, PodUid>,
    known_at_request: HashSet<String>,
    gone_since_request: HashSet<String>,
    listing: bool,
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

    /// A full list is to be asked for now; false while one is under way or its answer waits: a pod that
    /// was made after that one was read would be expected in it, found absent, and started a second time.
    pub(crate) fn request(&mut self, sched: &Sched) -> bool {
        if std::mem::replace(&mut self.listing, true) {
            return false;
        }
        self.expected = sched.expected_pods();
        self.known_at_request = self.pods.keys().cloned().collect();
        self.gone_since_request.clear();
        true
    }

    /// The list that was asked for will not come.
    pub(crate) fn unlisted(&mut self) {
        self.listing = false;
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
        self.listing = false;
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
        for pod in absent.iter().filter_map(|uid| self.forget(uid)) {
            if pod.ours.is_none() {
                events.extend(PodUid::new(&pod.uid).ok().map(|uid| What::ForeignPodGone { uid }));
            }
        }
        events
    }

    fn forget(&mut self, uid: &str) -> Option<PodSeen> {
        let pod = self.pods.remove(uid)?;
        if let Some(key) = pod.ours
            && self.by_key.get(&key).is_some_and(|newest| newest == uid)
        {
            self.by_key.remove(&key);
        }
        Some(pod)
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
        self.forget(&pod.uid);
        self.gone_since_request.insert(pod.uid.clone());
        let Some(key) = pod.ours else { return Some(What::ForeignPodGone { uid }) };
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
        // What we stop ends so too, and the scheduler knows why it stopped it; any other one passed the
        // kubelet's own deadline, which comes later than ours, while we were away.
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
        "DeadlineExceeded" => false,
        // Its container may have failed by itself just before, and then that counts.
        _ => end.disrupted && end.exit_code.is_none_or(|code| code == 0),
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
        ("DeadlineExceeded", "" | PAST_DEADLINE) => "stopped".to_owned(),
        ("DeadlineExceeded", message) => format!("stopped: {message}"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_core::job::Resources;
    use rackwright_core::sched::Config;

    fn pod(name: &str) -> PodSeen {
        PodSeen {
            namespace: "team-a".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            ours: name.parse().ok(),
            node: NodeName::new("ml1").ok(),
            requests: Resources::default(),
            state: PodState::Pending(None),
            deleting: false,
        }
    }

    #[test]
    fn what_a_list_does_not_show_any_more_leaves_nothing_behind() {
        let (sched, mut world) = (Sched::new(Config::default()), World::default());
        let before = pod("j0000000001-0-1");
        let after = pod("j0000000002-0-1");
        world.note(&before);
        assert!(world.request(&sched));
        world.note(&after);
        world.snapshot(Snapshot::default(), &HashSet::new(), &sched);
        assert_eq!(world.by_key.keys().copied().collect::<Vec<_>>(), [after.ours.unwrap()]);
        assert_eq!(world.pods(), 1, "what came after the list was asked for stays");
    }

    #[test]
    fn one_list_is_asked_for_at_a_time() {
        let (sched, mut world) = (Sched::new(Config::default()), World::default());
        assert!(world.request(&sched));
        assert!(!world.request(&sched), "one is under way");
        world.unlisted();
        assert!(world.request(&sched), "it failed, or nobody took it");
        world.snapshot(Snapshot::default(), &HashSet::new(), &sched);
        assert!(world.request(&sched), "it came");
    }

    #[test]
    fn what_kubernetes_took_away_is_lost_unless_it_had_ended_by_itself() {
        let end = |reason: &str, exit_code, disrupted| Ended {
            reason: reason.to_owned(),
            message: "usage exceeds its limit".to_owned(),
            exit_code,
            disrupted,
            ..Ended::default()
        };
        assert!(was_taken(&end("DeletionByPodGC", None, true)));
        assert!(was_taken(&end("Completed", Some(0), true)), "nobody has said that it succeeded");
        assert!(!was_taken(&end("Error", None, false)), "nobody took it");
        assert!(!was_taken(&end("Error", Some(3), true)), "it had failed before");
        assert!(!was_taken(&end("Evicted", None, true)), "it took more than it had asked for");
        assert!(!was_taken(&end("DeadlineExceeded", None, true)), "we stopped it");
    }

    #[test]
    fn a_pod_that_was_stopped_is_not_said_to_have_run_for_too_long() {
        let end = |message: &str| Ended {
            reason: "DeadlineExceeded".to_owned(),
            message: message.to_owned(),
            ..Ended::default()
        };
        assert_eq!(said(&end(PAST_DEADLINE)), "stopped");
        assert_eq!(said(&end("ErrImagePull: no such image")), "stopped: ErrImagePull: no such image");
    }
}
