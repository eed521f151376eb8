//! What the cluster shows of its nodes and pods, reduced to what scheduling needs.
//!
//! Plain functions from Kubernetes objects; nothing here asks the cluster or remembers anything.

use crate::quantity;
use k8s_openapi::api::core::v1::{
    Container, ContainerStateTerminated, Node, NodeStatus, Pod, PodCondition, PodSpec, PodStatus, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rackwright_core::job::{self, Capacity, HeldDataset, NodeFacts, Resources};
use rackwright_wire::id::{
    AttemptNo, DatasetName, DatasetVersion, GpuType, JobId, NodeName, PodKey, TaskIndex,
};
use std::collections::BTreeMap;

/// Label with the job's id.
pub(crate) const LABEL_JOB: &str = "rackwright.dev/job";
/// Label with the task's index; a gang member's rank.
pub(crate) const LABEL_TASK: &str = "rackwright.dev/task";
/// Label with the attempt's number.
pub(crate) const LABEL_ATTEMPT: &str = "rackwright.dev/attempt";
/// Prefix of the labels that placement reads.
const LABEL_PREFIX: &str = "rackwright.dev/";
/// Taint of the nodes that run jobs.
pub(crate) const TAINT_JOBS: &str = "rackwright.dev/jobs";
/// Label with the type of a node's GPUs.
const LABEL_GPU_TYPE: &str = "rackwright.dev/gpu-type";
/// Annotation with what an hour of the node costs, such as `0.42 EUR`.
const ANNOTATION_PRICE: &str = "rackwright.dev/price-per-hour";
/// Prefix of the labels (first 32 digits) and annotations (`digest[@generation],…`) of data versions.
const DATA_PREFIX: &str = "data.rackwright.dev/";
/// Extended resource of whole GPUs.
const GPU_RESOURCE: &str = "nvidia.com/gpu";
/// Container terminations keep at most this much of a message (the kubelet's own limit).
const MESSAGE_BYTES: usize = 4096;

/// How far a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodState {
    /// Not running yet; with what the kubelet waits for, when it says so.
    Pending(Option<String>),
    /// Its container runs.
    Running {
        /// Milliseconds since the epoch.
        started_ms: u64,
    },
    /// Its container ended with 0.
    Succeeded(Ended),
    /// Its container ended otherwise, or the kubelet ended the pod.
    Failed(Ended),
    /// The kubelet did not take it: nothing of it ever ran.
    Refused(String),
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ended {
    /// Exit code, when a container ran.
    pub(crate) exit_code: Option<i32>,
    /// `OOMKilled`, `DeadlineExceeded`, `Evicted`, `Error`, `Completed`…
    pub(crate) reason: String,
    /// The container's termination message.
    pub(crate) message: String,
    /// Milliseconds since the epoch; 0 when nothing ran.
    pub(crate) started_ms: u64,
    /// Milliseconds since the epoch; 0 when the kubelet did not say.
    pub(crate) finished_ms: u64,
    /// Kubernetes says that it took the pod away, such as with its node.
    pub(crate) disrupted: bool,
}

/// A pod as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodSeen {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// Uid: what deletes are bound to.
    pub(crate) uid: String,
    /// Which attempt it is; `None` for everybody else's pods.
    pub(crate) ours: Option<PodKey>,
    /// The node, once it has one.
    pub(crate) node: Option<NodeName>,
    /// What it asks for.
    pub(crate) requests: Resources,
    /// How far it is.
    pub(crate) state: PodState,
    /// Its deletion has begun.
    pub(crate) deleting: bool,
}

impl PodSeen {
    /// Whether it still takes room on its node.
    pub(crate) fn takes_room(&self) -> bool {
        matches!(self.state, PodState::Pending(_) | PodState::Running { .. })
    }

    /// When it was ended without having started, what its kubelet waited for says more than how it was ended.
    pub(crate) fn keep_note(&mut self, before: &Self) {
        let PodState::Failed(end) = &mut self.state else { return };
        let note = match &before.state {
            PodState::Pending(note) => note.clone(),
            PodState::Failed(end) => Some(end.message.clone()),
            PodState::Running { .. } | PodState::Succeeded(_) | PodState::Refused(_) => None,
        };
        if let Some(note) = note.filter(|_| end.started_ms == 0) {
            end.message = note;
        }
    }
}

/// Reduces a node; `None` for one whose name we would never have given.
pub(crate) fn node(node: &Node) -> Option<NodeFacts> {
    let name = NodeName::new(node.metadata.name.as_deref()?).ok()?;
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let annotations = node.metadata.annotations.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    Some(NodeFacts {
        name,
        ready: is_ready(&status),
        taints: taints(node),
        capacity: capacity(&status.capacity.unwrap_or_default()),
        allocatable: capacity(&status.allocatable.unwrap_or_default()),
        gpu_type: labels.get(LABEL_GPU_TYPE).and_then(|text| GpuType::new(text).ok()),
        datasets: datasets(&labels, &annotations),
        price_per_hour: annotations.get(ANNOTATION_PRICE).and_then(|text| text.parse().ok()),
        labels: labels.into_iter().filter(|(key, _)| key.starts_with(LABEL_PREFIX)).collect(),
    })
}

fn is_ready(status: &NodeStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// All taints; a cordon counts as one, also before the node controller has written it.
fn taints(node: &Node) -> Vec<job::Taint> {
    let spec = node.spec.clone().unwrap_or_default();
    let own = |taint: Taint| job::Taint {
        key: taint.key,
        value: taint.value.unwrap_or_default(),
        effect: taint.effect,
    };
    let mut taints: Vec<_> = spec.taints.unwrap_or_default().into_iter().map(own).collect();
    if spec.unschedulable == Some(true) {
        taints.push(job::Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            value: String::new(),
            effect: "NoSchedule".to_owned(),
        });
    }
    taints.sort();
    taints.dedup();
    taints
}

/// The versions of the annotations whose label agrees: the label is what was written last.
fn datasets(
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> BTreeMap<DatasetName, Vec<HeldDataset>> {
    let held = |(key, text): (&String, &String)| {
        let name = DatasetName::new(key.strip_prefix(DATA_PREFIX)?).ok()?;
        let label = labels.get(key)?;
        let versions: Vec<_> = text.split(',').filter_map(held_version).collect();
        let shown = versions.iter().any(|held| held.version.label() == label);
        shown.then_some((name, versions))
    };
    annotations.iter().filter_map(held).collect()
}

fn held_version(text: &str) -> Option<HeldDataset> {
    let (digest, generation) = text.split_once('@').unwrap_or((text, "0"));
    Some(HeldDataset {
        version: DatasetVersion::new(digest.trim()).ok()?,
        generation: generation.trim().parse().ok()?,
    })
}

fn capacity(map: &BTreeMap<String, Quantity>) -> Capacity {
    let amounts = amounts(map);
    let pods = map.get("pods").and_then(|quantity| quantity::count(&quantity.0)).unwrap_or(0);
    Capacity {
        cpu: amounts.cpu,
        memory: amounts.memory,
        gpu: amounts.gpu,
        pods: u32::try_from(pods).unwrap_or(u32::MAX),
    }
}

fn amounts(map: &BTreeMap<String, Quantity>) -> Resources {
    let text = |key: &str| map.get(key).map_or("0", |q| q.0.as_str());
    Resources {
        cpu: quantity::cpu(text("cpu")).unwrap_or_default(),
        memory: quantity::bytes(text("memory")).unwrap_or_default(),
        gpu: quantity::gpu(text(GPU_RESOURCE)).unwrap_or_default(),
        gpu_type: None,
    }
}

/// Reduces a pod.
pub(crate) fn pod(pod: &Pod) -> PodSeen {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    PodSeen {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        ours: identity(pod),
        node: spec.and_then(|spec| NodeName::new(spec.node_name.as_deref()?).ok()),
        requests: spec.map(requests).unwrap_or_default(),
        state: pod.status.as_ref().map_or(PodState::Pending(None), state),
        deleting: meta.deletion_timestamp.is_some(),
    }
}

/// Ours is what has our labels in one of our namespaces, under the name that the labels give.
fn identity(pod: &Pod) -> Option<PodKey> {
    let labels = pod.metadata.labels.as_ref()?;
    let key = PodKey {
        job: labels.get(LABEL_JOB)?.parse::<JobId>().ok()?,
        task: TaskIndex(labels.get(LABEL_TASK)?.parse().ok()?),
        attempt: AttemptNo(labels.get(LABEL_ATTEMPT)?.parse().ok()?),
    };
    let named = pod.metadata.name.as_deref() == Some(key.to_string().as_str());
    let placed = pod.metadata.namespace.as_deref().is_some_and(|namespace| namespace.starts_with("team-"));
    (named && placed).then_some(key)
}

/// The scheduler's own sum: containers together, or the largest start-up container beside the sidecars
/// that started before it, whichever is more, and the runtime's overhead.
fn requests(spec: &PodSpec) -> Resources {
    let mut steady = Resources::default();
    let mut peak = Resources::default();
    for init in spec.init_containers.iter().flatten() {
        let with = plus(&steady, &container(init));
        peak = max(&peak, &with);
        if init.restart_policy.as_deref() == Some("Always") {
            steady = with;
        }
    }
    for main in &spec.containers {
        steady = plus(&steady, &container(main));
    }
    let overhead = spec.overhead.as_ref().map(amounts).unwrap_or_default();
    plus(&max(&steady, &peak), &overhead)
}

fn plus(left: &Resources, right: &Resources) -> Resources {
    Resources {
        cpu: left.cpu + right.cpu,
        memory: left.memory + right.memory,
        gpu: left.gpu + right.gpu,
        gpu_type: None,
    }
}

fn max(left: &Resources, right: &Resources) -> Resources {
    Resources {
        cpu: left.cpu.max(right.cpu),
        memory: left.memory.max(right.memory),
        gpu: left.gpu.max(right.gpu),
        gpu_type: None,
    }
}

/// Requests, and limits where a request is left out, as the apiserver defaults them.
fn container(container: &Container) -> Resources {
    let Some(resources) = &container.resources else { return Resources::default() };
    let mut map = resources.limits.clone().unwrap_or_default();
    map.extend(resources.requests.clone().unwrap_or_default());
    amounts(&map)
}

fn state(status: &PodStatus) -> PodState {
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let terminated = containers.iter().find_map(|c| c.state.as_ref()?.terminated.as_ref());
    match status.phase.as_deref() {
        Some("Succeeded") => PodState::Succeeded(ended(status, terminated)),
        Some("Failed") if never_ran(status) => PodState::Refused(why(status)),
        Some("Failed") => PodState::Failed(ended(status, terminated)),
        Some("Running") => {
            let started =
                containers.iter().find_map(|c| c.state.as_ref()?.running.as_ref()?.started_at.as_ref());
            let started = started.or(status.start_time.as_ref());
            PodState::Running { started_ms: started.map_or(0, millis) }
        }
        _ => {
            let waiting = containers.iter().find_map(|c| c.state.as_ref()?.waiting.as_ref());
            PodState::Pending(waiting.map(|waiting| match &waiting.message {
                Some(message) => format!("{}: {message}", waiting.reason.as_deref().unwrap_or("waiting")),
                None => waiting.reason.clone().unwrap_or_else(|| "waiting".to_owned()),
            }))
        }
    }
}

/// The kubelet sets these reasons when it refuses a pod at admission; an evicted or overdue pod has
/// other ones, and may have run.
fn never_ran(status: &PodStatus) -> bool {
    let reason = status.reason.as_deref().unwrap_or_default();
    reason.starts_with("OutOf")
        || matches!(
            reason,
            "UnexpectedAdmissionError"
                | "NodeAffinity"
                | "TopologyAffinityError"
                | "NodeShutdown"
                | "AppArmor"
                | "PodOSNotSupported"
                | "InvalidNodeInfo"
        )
}

fn why(status: &PodStatus) -> String {
    let reason = status.reason.as_deref().unwrap_or("Failed");
    match status.message.as_deref() {
        Some(message) if !message.is_empty() => format!("{reason}: {message}"),
        _ => reason.to_owned(),
    }
}

fn ended(status: &PodStatus, terminated: Option<&ContainerStateTerminated>) -> Ended {
    let pod_reason = status.reason.clone().filter(|reason| !reason.is_empty());
    let disruption = disruption(status);
    let Some(own) = terminated else {
        let (reason, message) =
            disruption.map(|it| (it.reason.clone(), it.message.clone())).unwrap_or_default();
        return Ended {
            reason: pod_reason.or(reason).unwrap_or_default(),
            message: status.message.clone().or(message).unwrap_or_default(),
            disrupted: disruption.is_some(),
            ..Ended::default()
        };
    };
    let mut message = own.message.clone().or_else(|| status.message.clone()).unwrap_or_default();
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
    Ended {
        exit_code: Some(own.exit_code),
        reason: pod_reason.or_else(|| own.reason.clone()).unwrap_or_default(),
        message,
        started_ms: own.started_at.as_ref().map_or(0, millis),
        // Kubernetes cuts times to whole seconds: the room was held until some moment of that second, which
        // the scheduler ends at what it has seen itself.
        finished_ms: own.finished_at.as_ref().map_or(0, |at| millis(at) + 999),
        disrupted: disruption.is_some(),
    }
}

/// Set by the pod garbage collector, the taint manager, evictions and preemptions.
fn disruption(status: &PodStatus) -> Option<&PodCondition> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.iter().find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
}

fn millis(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> u64 {
    u64::try_from(time.0.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::units::{Bytes, MilliCpu};
    use serde_json::json;

    fn pod_of(value: serde_json::Value) -> PodSeen {
        pod(&serde_json::from_value::<Pod>(value).unwrap())
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_its_largest_start() {
        let seen = pod_of(json!({
            "metadata": {"name": "x", "namespace": "other"},
            "spec": {
                "nodeName": "ml1",
                "overhead": {"memory": "1Mi"},
                "initContainers": [
                    {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                    {"name": "big", "resources": {"requests": {"cpu": "2", "memory": "10Mi"}}}
                ],
                "containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "64Mi"}}},
                    {"name": "b", "resources": {"requests": {"cpu": "250m"}}}
                ]
            }
        }));
        assert_eq!(seen.requests.cpu, MilliCpu::new(2100).unwrap());
        assert_eq!(seen.requests.memory, Bytes::mib(65));
        assert_eq!(seen.node, Some(NodeName::new("ml1").unwrap()));
        assert_eq!(seen.ours, None);
        assert!(seen.takes_room());
    }

    #[test]
    fn a_pod_that_the_kubelet_refused_never_ran() {
        let seen = pod_of(json!({
            "metadata": {"name": "j0000000001-0-1", "namespace": "team-a", "labels": {"rackwright.dev/job": "j0000000001", "rackwright.dev/task": "0", "rackwright.dev/attempt": "1"}},
            "status": {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"}
        }));
        assert_eq!(seen.state, PodState::Refused("OutOfcpu: Node didn't have enough resource: cpu".into()));
        assert_eq!(seen.ours.map(|key| key.to_string()), Some("j0000000001-0-1".into()));
        assert!(!seen.takes_room());
    }

    #[test]
    fn an_end_keeps_exit_code_reason_and_message() {
        let seen = pod_of(json!({"status": {"phase": "Failed", "containerStatuses": [{
            "name": "job", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "bye",
                "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:02Z"}}
        }]}}));
        let PodState::Failed(end) = seen.state else { panic!("{:?}", seen.state) };
        assert_eq!(
            (end.exit_code, end.reason.as_str(), end.message.as_str()),
            (Some(137), "OOMKilled", "bye")
        );
        assert_eq!(end.finished_ms - end.started_ms, 2999, "until the end of the second that it names");
    }

    #[test]
    fn a_pod_that_went_with_its_node_says_so() {
        let condition = |status: &str| {
            let seen = pod_of(json!({"status": {"phase": "Failed",
                "conditions": [{"type": "DisruptionTarget", "status": status, "reason": "DeletionByPodGC",
                    "message": "PodGC: node no longer exists"}],
                "containerStatuses": [{"name": "job", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}}));
            let PodState::Failed(end) = seen.state else { panic!("{seen:?}") };
            end
        };
        let taken = condition("True");
        assert_eq!((taken.disrupted, taken.exit_code), (true, None));
        assert_eq!(taken.reason, "DeletionByPodGC");
        assert_eq!(taken.message, "PodGC: node no longer exists");
        assert_eq!(condition("False"), Ended::default());
    }

    #[test]
    fn labels_alone_make_no_pod_ours() {
        let labels = json!({"rackwright.dev/job": "j0000000001", "rackwright.dev/task": "0", "rackwright.dev/attempt": "1"});
        let other_name =
            pod_of(json!({"metadata": {"name": "x", "namespace": "team-a", "labels": labels.clone()}}));
        let other_place = pod_of(
            json!({"metadata": {"name": "j0000000001-0-1", "namespace": "default", "labels": labels}}),
        );
        assert_eq!((other_name.ours, other_place.ours), (None, None));
    }

    #[test]
    fn a_node_shows_room_role_data_and_what_closes_it() {
        let digest = "0123456789abcdef".repeat(4);
        let label = digest.get(..32).unwrap();
        let mut value = json!({
            "metadata": {"name": "ml1",
                "labels": {"rackwright.dev/role": "ml", "data.rackwright.dev/apt": label, "data.rackwright.dev/old": "00", "other": "x"},
                "annotations": {"data.rackwright.dev/apt": format!("{digest}@7"), "data.rackwright.dev/old": digest}},
            "spec": {"taints": [{"key": "rackwright.dev/jobs", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "1500m", "memory": "1Gi", "pods": "110"},
                       "conditions": [{"type": "Ready", "status": "True"}]}
        });
        let seen = node(&serde_json::from_value(value.clone()).unwrap()).unwrap();
        assert_eq!(seen.allocatable.cpu, MilliCpu::new(1500).unwrap());
        assert_eq!((seen.allocatable.pods, seen.ready), (110, true));
        assert_eq!(seen.labels.keys().collect::<Vec<_>>(), ["rackwright.dev/role"]);
        assert_eq!(seen.datasets.len(), 1, "a version whose label says otherwise is not there");
        let held = seen.datasets.values().flatten().next().unwrap();
        assert_eq!((held.version.as_str(), held.generation), (digest.as_str(), 7));
        assert_eq!(seen.taints.len(), 1);
        value["spec"]["unschedulable"] = json!(true);
        let cordoned = node(&serde_json::from_value(value).unwrap()).unwrap();
        assert!(cordoned.taints.iter().any(|taint| taint.key == "node.kubernetes.io/unschedulable"));
    }
}
