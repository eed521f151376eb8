//! How a pod asks the agent's CSI node plugin for data: the `volumeAttributes` of an inline volume; and
//! what the plugin shares with the data unit on disk.

use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The CSI driver's name.
pub const DRIVER: &str = "data.rackwright.dev";
/// The version of the attributes that this build writes, under the key [`FORMAT_KEY`].
pub const ATTRIBUTES_VERSION: u32 = 1;
/// Not `version`, which is a dataset's.
pub const FORMAT_KEY: &str = "format";
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
        let own = object.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
        own.chain([(FORMAT_KEY.to_owned(), ATTRIBUTES_VERSION.to_string())]).collect()
    }

    /// Reads the attributes back, ignoring the `csi.storage.k8s.io/…` keys that a kubelet adds.
    ///
    /// # Errors
    /// The attributes are of another version, or the message names the key that is missing, unknown or of
    /// no use.
    pub fn from_attributes<'a>(
        attributes: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, serde_json::Error> {
        let own = attributes.into_iter().filter(|(key, _)| !key.contains('/'));
        let mut object: serde_json::Map<String, serde_json::Value> =
            own.map(|(key, value)| (key.clone(), value.clone().into())).collect();
        match object.remove(FORMAT_KEY) {
            Some(format) if format == ATTRIBUTES_VERSION.to_string().as_str() => {
                serde_json::from_value(object.into())
            }
            Some(other) => Err(serde_json::Error::custom(format!(
                "attributes have version {other}, this build reads {ATTRIBUTES_VERSION}"
            ))),
            None => Err(serde_json::Error::custom(format!("missing key `{FORMAT_KEY}`"))),
        }
    }
}

/// The folder of pins of a version below `data_dir`: an empty file a holder. The plugin writes them, and
/// the data unit removes no version that has one; both must look in the same place.
pub fn pins_folder(data_dir: &Path, dataset: &str, digest: &str) -> PathBuf {
    data_dir.join("pins").join(dataset).join(digest)
}

/// The folder of a complete version below `data_dir`, which the data unit makes and the plugin mounts.
pub fn version_folder(data_dir: &Path, dataset: &str, digest: &str) -> PathBuf {
    data_dir.join("versions").join(dataset).join(digest)
}
