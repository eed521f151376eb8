//! Renders one attempt of one task as a pod: plain data in, a Kubernetes object out.
//!
//! Every pod runs under the restricted Pod Security profile, sees its datasets read-only at
//! `/data/<name>` and its own work volume at `/work`, tolerates that its node is away for as long as it
//! takes (nobody but us deletes it), and is bound to its node when it is made.

use crate::seen::{LABEL_ATTEMPT, LABEL_JOB, LABEL_TASK, TAINT_JOBS};
use k8s_openapi::api::core::v1::Pod;
use rackwright_core::job::{CheckpointRef, JobRecord};
use rackwright_wire::id::{NodeName, PodKey, Team};
use rackwright_wire::volume::{DRIVER, VolumeRequest};
use serde_json::{Map, Value, json};

/// Nobody: owns nothing on any image.
const UID: u32 = 65534;
/// Seconds between the request to stop and the kill: enough to write a last checkpoint.
const STOP_GRACE_S: u32 = 30;
/// The kubelet's own deadline is this much later than ours: it only counts while the controller is away.
const DEADLINE_SLACK_S: u64 = 60;

/// What pods have in common.
#[derive(Debug, Clone)]
pub(crate) struct PodStyle {
    /// `imagePullPolicy`.
    pub(crate) image_pull_policy: String,
    /// Whether pods ask for the runtime's default seccomp profile.
    pub(crate) seccomp: bool,
}

/// A team's namespace.
pub(crate) fn namespace(team: &Team) -> String {
    format!("team-{team}")
}

/// The pod of one attempt, or nothing when a task index or an amount does not fit Kubernetes' types.
///
/// # Errors
/// The rendered object is not a pod: a defect here, told with the field.
pub(crate) fn render(
    job: &JobRecord,
    key: PodKey,
    node: &NodeName,
    resume: Option<&CheckpointRef>,
    style: &PodStyle,
) -> Result<Pod, serde_json::Error> {
    let (volumes, mounts) = volumes(job, key, resume);
    let mut pod_security =
        json!({"runAsNonRoot": true, "runAsUser": UID, "runAsGroup": UID});
    if style.seccomp {
        pod_security["seccompProfile"] = json!({"type": "RuntimeDefault"});
    }
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": key.to_string(),
            "namespace": namespace(&job.team),
            "labels": {
                LABEL_JOB: key.job.to_string(),
                LABEL_TASK: key.task.to_string(),
                LABEL_ATTEMPT: key.attempt.to_string(),
                "rackwright.dev/team": job.team,
                "rackwright.dev/project": job.spec.project,
                "rackwright.dev/owner": job.owner,
            },
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            // The node's resolver: there may be no cluster DNS, and then the kubelet would write an event a pod.
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": STOP_GRACE_S,
            "activeDeadlineSeconds": job.spec.max_run_time_s.saturating_add(DEADLINE_SLACK_S),
            "tolerations": [
                {"key": TAINT_JOBS, "operator": "Exists"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
            ],
            "securityContext": pod_security,
            "containers": [container(job, key, resume, &mounts, style)],
            "volumes": volumes,
        },
    }))
}

fn container(
    job: &JobRecord,
    key: PodKey,
    resume: Option<&CheckpointRef>,
    mounts: &[Value],
    style: &PodStyle,
) -> Value {
    let resources = &job.spec.resources;
    let mut amounts = json!({
        "cpu": format!("{}m", resources.cpu.get()),
        "memory": resources.memory.get().to_string(),
    });
    if !resources.gpu.is_zero() {
        amounts["nvidia.com/gpu"] = json!(resources.gpu.get().div_ceil(1000).to_string());
    }
    let mut container = json!({
        "name": "job",
        "image": job.spec.image,
        "imagePullPolicy": style.image_pull_policy,
        "env": env(job, key, resume),
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    });
    // An empty list would replace the image's own entry point by nothing.
    if !job.spec.command.is_empty() {
        container["command"] = json!(job.spec.command);
    }
    if !job.spec.args.is_empty() {
        container["args"] = json!(job.spec.args);
    }
    container
}

/// The job's own environment first, then ours: a later entry of the same name counts.
fn env(job: &JobRecord, key: PodKey, resume: Option<&CheckpointRef>) -> Vec<Value> {
    let mut all: Map<String, Value> =
        job.spec.env.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut ours = |name: &str, value: String| all.insert(format!("RACKWRIGHT_{name}"), json!(value));
    ours("JOB", key.job.to_string());
    ours("TASK_INDEX", key.task.to_string());
    ours("TASKS", job.spec.tasks().to_string());
    ours("ATTEMPT", key.attempt.to_string());
    if let Some(checkpoint) = resume {
        ours("RESUME_STEP", checkpoint.step.to_string());
    }
    if let Some(gang) = job.spec.gang {
        ours("GANG_RANK", key.task.to_string());
        ours("GANG_SIZE", gang.size.to_string());
    }
    for pin in &job.datasets {
        let name = pin.name.as_str().to_ascii_uppercase().replace('-', "_");
        ours(&format!("DATA_{name}"), format!("/data/{}", pin.name));
        ours(&format!("VERSION_{name}"), pin.version.to_string());
    }
    all.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

fn volumes(job: &JobRecord, key: PodKey, resume: Option<&CheckpointRef>) -> (Vec<Value>, Vec<Value>) {
    let mut volumes = Vec::new();
    let mut mounts = Vec::new();
    let mut add = |name: String, path: String, read_only: bool, request: &VolumeRequest| {
        mounts.push(json!({"name": name, "mountPath": path, "readOnly": read_only}));
        volumes.push(json!({"name": name, "csi": {
            "driver": DRIVER, "readOnly": read_only, "volumeAttributes": request.to_attributes(),
        }}));
    };
    for pin in &job.datasets {
        let request =
            VolumeRequest::Dataset { dataset: pin.name.to_string(), version: pin.version.to_string() };
        add(format!("data-{}", pin.name), format!("/data/{}", pin.name), true, &request);
    }
    if job.spec.has_work_volume() {
        let request = VolumeRequest::Work {
            team: job.team.to_string(),
            project: job.spec.project.to_string(),
            job: key.job.to_string(),
            task: key.task.to_string(),
            attempt: key.attempt.to_string(),
            resume: resume.map(|checkpoint| checkpoint.set.clone()).unwrap_or_default(),
        };
        add("work".to_owned(), "/work".to_owned(), false, &request);
    }
    (volumes, mounts)
}
