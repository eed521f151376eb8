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
use std::collections::BTreeMap;

/// Nobody: owns nothing on any image.
const UID: u32 = 65534;
/// Seconds between the request to stop and the kill: enough to write a last checkpoint.
const STOP_GRACE_S: u32 = 30;
/// The kubelet's own deadline only counts while the controller is away. It counts from when the kubelet
/// took the pod, before its image, data and checkpoint are there; ours from when its container started.
/// So it is later than ours by the time that a start may take, and by this.
const DEADLINE_SLACK_S: u64 = 60;

/// What pods have in common.
#[derive(Debug, Clone)]
pub(crate) struct PodStyle {
    /// `imagePullPolicy`.
    pub(crate) image_pull_policy: String,
    /// Whether pods ask for the runtime's default seccomp profile.
    pub(crate) seccomp: bool,
    /// Seconds that a start may take.
    pub(crate) start_limit_s: u32,
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
    let slack_s = u64::from(style.start_limit_s) + DEADLINE_SLACK_S;
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
            "activeDeadlineSeconds": job.spec.max_run_time_s.saturating_add(slack_s),
            "tolerations": [
                {"key": TAINT_JOBS, "operator": "Exists"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
            ],
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": UID,
                "runAsGroup": UID,
                "seccompProfile": style.seccomp.then(|| json!({"type": "RuntimeDefault"})),
            },
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
    let mut amounts = BTreeMap::from([
        ("cpu", format!("{}m", resources.cpu.get())),
        ("memory", resources.memory.get().to_string()),
    ]);
    if !resources.gpu.is_zero() {
        amounts.insert("nvidia.com/gpu", resources.gpu.get().div_ceil(1000).to_string());
    }
    // An empty list would replace the image's own entry point by nothing.
    let given = |words: &Vec<String>| {
        (!words.is_empty()).then(|| json!(words.iter().map(|word| literal(word)).collect::<Vec<_>>()))
    };
    json!({
        "name": "job",
        "image": job.spec.image,
        "command": given(&job.spec.command),
        "args": given(&job.spec.args),
        "imagePullPolicy": style.image_pull_policy,
        "env": env(job, key, resume),
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        // What a job writes to /dev/termination-log is kept with its end: a small result needs no volume.
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    })
}

/// A word that reaches the container as it was submitted: of commands, arguments and values the kubelet
/// makes `$` from `$$`, and a variable's value from `$(NAME)`.
fn literal(word: &str) -> String {
    word.replace('$', "$$")
}

/// The job's own environment first, then ours: a later entry of the same name counts.
fn env(job: &JobRecord, key: PodKey, resume: Option<&CheckpointRef>) -> Vec<Value> {
    let mut all: Map<String, Value> =
        job.spec.env.iter().map(|(name, value)| (name.clone(), json!(literal(value)))).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_core::job::{DatasetPin, JobSpec, Limits};
    use rackwright_wire::id::{AttemptNo, DatasetName, DatasetVersion, JobId, Owner, TaskIndex};

    fn record(spec: &str) -> JobRecord {
        let spec = JobSpec::from_json(spec.as_bytes(), &Limits::default()).unwrap();
        let pin = |wanted: &rackwright_core::job::DatasetRef| DatasetPin {
            name: DatasetName::new(wanted.name.as_str()).unwrap(),
            version: DatasetVersion::new(&"0123456789abcdef".repeat(4)).unwrap(),
            generation: 3,
        };
        JobRecord {
            version: 1,
            id: JobId::new(33).unwrap(),
            owner: Owner::new("ada").unwrap(),
            team: Team::new("vision").unwrap(),
            submitted_at_ms: 1,
            datasets: spec.datasets.iter().map(pin).collect(),
            spec,
            dependencies_met: Vec::new(),
        }
    }

    fn rendered(spec: &str, task: u32, attempt: u32, resume: Option<&CheckpointRef>) -> String {
        let style = PodStyle { image_pull_policy: "Never".to_owned(), seccomp: true, start_limit_s: 600 };
        let job = record(spec);
        let key = PodKey { job: job.id, task: TaskIndex(task), attempt: AttemptNo(attempt) };
        let pod = render(&job, key, &NodeName::new("ml1").unwrap(), resume, &style).unwrap();
        serde_json::to_string_pretty(&pod).unwrap()
    }

    #[test]
    fn a_task_that_resumes_sees_its_data_and_its_work_volume() {
        let spec = r#"{"name": "fit", "image": "docker.io/rackwright/python:1", "command": ["python3", "/data/apt/fit.py"],
            "datasets": [{"name": "apt"}], "array": {"count": 20}, "retries": 1, "results": true,
            "checkpoint": {"interval_s": 60}, "env": {"ALPHA": "0.1"}, "project": "sweep",
            "resources": {"cpu": "1500m", "memory": "512MiB"}, "max_run_time_s": 600}"#;
        let resume = CheckpointRef { task: TaskIndex(7), step: 20, set: "checkpoint-x-7-1-20".to_owned() };
        insta::assert_snapshot!(rendered(spec, 7, 2, Some(&resume)));
    }

    #[test]
    fn what_is_submitted_is_what_runs() {
        let spec = r#"{"name": "fit", "image": "i", "command": ["sh", "-c", "echo $(RACKWRIGHT_JOB) $$ $HOME"],
            "args": ["$$(X)", "5$"], "env": {"PRICE": "$$5", "SAME": "$(PRICE)"}}"#;
        let pod: Value = serde_json::from_str(&rendered(spec, 0, 1, None)).unwrap();
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["command"], json!(["sh", "-c", "echo $$(RACKWRIGHT_JOB) $$$$ $$HOME"]));
        assert_eq!(container["args"], json!(["$$$$(X)", "5$$"]));
        let env = container["env"].as_array().unwrap();
        assert!(env.contains(&json!({"name": "PRICE", "value": "$$$$5"})));
        assert!(env.contains(&json!({"name": "SAME", "value": "$$(PRICE)"})));
    }

    #[test]
    fn a_gang_member_knows_its_rank_and_keeps_the_images_entry_point() {
        let spec = r#"{"name": "gang", "image": "i", "gang": {"size": 2, "spread": true},
            "resources": {"cpu": "1", "memory": "64MiB", "gpu": 2}}"#;
        insta::assert_snapshot!(rendered(spec, 1, 1, None));
    }
}
