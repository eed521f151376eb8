//! What a job asks for: the body of a submit, with every default filled in and visible.
//!
//! Reading one from a person goes through [`JobSpec::from_json`](super::check), which reports all that is
//! wrong at once; the strict serde form here is for the log and the store.

use rackwright_wire::id::{DatasetName, DatasetVersion, GpuType, JobId, JobName, ModelName, Project};
use rackwright_wire::units::{Bytes, MilliCpu, MilliGpu, Money};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// The environment variable that tells a pod its task index.
pub const TASK_INDEX_ENV: &str = "RACKWRIGHT_TASK_INDEX";
/// Seconds that a job may run when it does not say: one day.
pub const DEFAULT_MAX_RUN_TIME_S: u64 = 24 * 3600;
/// The priority class of a job that does not say.
pub const DEFAULT_PRIORITY: &str = "normal";
/// The project of a job that does not say.
pub const DEFAULT_PROJECT: &str = "default";

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// For people; need not be unique.
    pub name: JobName,
    /// Scopes checkpoints, results and caches, and is a line of the bill.
    pub project: Project,
    /// The model that it works for: a line of the bill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Datasets that its pods see read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetRef>,
    /// Image reference.
    pub image: String,
    /// Replaces the image's entry point when not empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment; names with the prefix `RACKWRIGHT_` are ours.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What each pod needs.
    pub resources: Resources,
    /// Many independent tasks, each with its index in [`TASK_INDEX_ENV`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<Array>,
    /// Pods that start together or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<Gang>,
    /// Name of a priority class of the cluster.
    pub priority: String,
    /// Whether its pods may be moved.
    pub class: Class,
    /// Seconds that one attempt may run.
    pub max_run_time_s: u64,
    /// Seconds since the epoch by which it must have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u64>,
    /// It is stopped when it has cost this much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money_cap: Option<Money>,
    /// How often a failed task (or gang) is tried again.
    pub retries: u32,
    /// It writes checkpoints, which retries resume from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpointing>,
    /// Its pods get a writable volume of the project with `checkpoints/` and `results/`.
    pub results: bool,
    /// Names its computation for the compute cache; recorded with its results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<String>,
    /// Jobs that must have succeeded first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<JobId>,
}

impl JobSpec {
    /// Number of tasks: the array's count, the gang's size, or one.
    pub fn tasks(&self) -> u32 {
        match (self.array, self.gang) {
            (Some(array), _) => array.count,
            (None, Some(gang)) => gang.size,
            (None, None) => 1,
        }
    }

    /// Pods that start together: the gang's size, or one.
    pub fn members(&self) -> u32 {
        self.gang.map_or(1, |gang| gang.size)
    }

    /// Whether its pods get the writable volume.
    pub fn has_work_volume(&self) -> bool {
        self.results || self.checkpoint.is_some()
    }
}

/// What one pod needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// CPU; both request and limit.
    pub cpu: MilliCpu,
    /// Memory; both request and limit.
    pub memory: Bytes,
    /// GPUs.
    #[serde(default, skip_serializing_if = "is_no_gpu")]
    pub gpu: MilliGpu,
    /// Type of GPU; any when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_type: Option<GpuType>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_no_gpu(gpu: &MilliGpu) -> bool {
    gpu.is_zero()
}

/// A dataset that a job wants to see.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetRef {
    /// The dataset.
    pub name: DatasetName,
    /// Which version; the newest at submit when not given.
    #[serde(default)]
    pub version: VersionWanted,
}

/// Which version of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum VersionWanted {
    /// The newest when the job is accepted (`"latest"`); the job then keeps it.
    #[default]
    Latest,
    /// Exactly this one.
    Exact(DatasetVersion),
}

impl Serialize for VersionWanted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Latest => serializer.serialize_str("latest"),
            Self::Exact(version) => version.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for VersionWanted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let refuse = |error| serde::de::Error::custom(format_args!("{error}, or write \"latest\""));
        DatasetVersion::new(&text).map(Self::Exact).map_err(refuse)
    }
}

/// Many independent tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Array {
    /// How many.
    pub count: u32,
}

/// Pods that start together or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gang {
    /// How many.
    pub size: u32,
    /// Each on a node of its own.
    #[serde(default)]
    pub spread: bool,
}

/// Whether a job's pods may be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Never moved.
    Fixed,
    /// May be stopped and started elsewhere.
    #[default]
    Flexible,
}

/// How a job checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpointing {
    /// Seconds between checkpoints, as the job promises.
    pub interval_s: u64,
}
