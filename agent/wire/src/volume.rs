//! How a pod asks the agent's CSI node plugin for data: the `volumeAttributes` of an inline volume.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The CSI driver's name.
pub const DRIVER: &str = "data.rackwright.dev";
/// A job writes this empty file into its work volume to have `results/` sealed now.
pub const SEAL_MARKER: &str = "SEAL";

/// What an inline volume asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum VolumeRequest {
    /// One dataset version, read-only.
    Dataset {
        /// Dataset name.
        dataset: String,
        /// Full version digest.
        version: String,
    },
    /// The attempt's own writable folder with `checkpoints/` and `results/`.
    Work {
        /// Team of the job.
        team: String,
        /// Project of the job.
        project: String,
        /// Job id.
        job: String,
        /// Task index, decimal.
        task: String,
        /// Attempt number, decimal.
        attempt: String,
        /// Checkpoint set id to restore into `checkpoints/` first; empty for none.
        #[serde(default)]
        resume: String,
    },
}

impl VolumeRequest {
    /// The attributes as Kubernetes wants them: a flat map of strings.
    pub fn to_attributes(&self) -> BTreeMap<String, String> {
        let value = serde_json::to_value(self).unwrap_or_default();
        let object = value.as_object().cloned().unwrap_or_default();
        object.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned()))).collect()
    }

    /// Reads the attributes back, ignoring the `csi.storage.k8s.io/…` keys that a kubelet adds.
    ///
    /// # Errors
    /// The message names the key that is missing, unknown or of no use.
    pub fn from_attributes<'a>(
        attributes: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, serde_json::Error> {
        let own = attributes.into_iter().filter(|(key, _)| !key.contains('/'));
        let object: serde_json::Map<String, serde_json::Value> =
            own.map(|(key, value)| (key.clone(), value.clone().into())).collect();
        serde_json::from_value(object.into())
    }
}
