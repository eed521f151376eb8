//! Where things lie under `data_dir`, and what can be read from there without owning the store.
//!
//! ```text
//! objects/ab/<blake3>                    content, 0444, named by its BLAKE3
//! partial/<blake3>, <blake3>.chunks      content on its way, and which chunks are verified
//! manifests/<dataset>/<digest>.json      signed manifest of each version that is (or was) complete
//! versions/<dataset>/<digest>/           hard links to objects; `current` is for people only
//! pins/<dataset>/<digest>/<holder>       who keeps a version from eviction; the node unit writes them
//! layout.json                            the version of this layout
//! loaded/<set id>                        results server: the set is in the table, or was refused and why
//! sets/<id>.json                         sealed sets whose objects are all here
//! exports/<dataset>.json, .objects       what was exported last, on the data server
//! received/<digest>.json                 bytes received over the network, by peer
//! quarantine/<blake3>.<n>                objects that did not hash
//! wanted.json, trust.pub, scrub.json     what the controller wants; its key; scrub counters
//! ```
//! Every name that comes from outside is checked before it becomes a path.

use crate::durable;
use crate::error::Error;
use rackwright_wire::manifest::{Manifest, SignedManifest, is_blake3, is_dns_label};
use rackwright_wire::volume::{pins_folder, version_folder};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The version of this layout: what lies where, and the files without a version of their own (pins, marks).
pub(crate) const LAYOUT_VERSION: u32 = 1;

/// `layout.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayoutMark {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, LAYOUT_VERSION>")]
    pub(crate) version: u32,
}

/// The folders of one store.
#[derive(Debug, Clone)]
pub struct Layout {
    root: Arc<Path>,
}

impl Layout {
    /// A store's layout below `root`; touches nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: Arc::from(root.into()) }
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file or folder directly below the root.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The object with this hash, whether it is there or not.
    pub fn object(&self, hash: blake3::Hash) -> PathBuf {
        let hex = hash.to_hex();
        let folder: String = hex.chars().take(2).collect();
        self.root.join("objects").join(folder).join(hex.as_str())
    }

    pub(crate) fn partial(&self, hash: blake3::Hash) -> PathBuf {
        self.root.join("partial").join(hash.to_hex().as_str())
    }

    pub(crate) fn journal(&self, hash: blake3::Hash) -> PathBuf {
        self.root.join("partial").join(format!("{}.chunks", hash.to_hex()))
    }

    /// The signed manifest of a version.
    ///
    /// # Errors
    /// A name that is no DNS label or no digest.
    pub fn manifest(&self, dataset: &str, digest: &str) -> Result<PathBuf, Error> {
        check_names(dataset, digest)?;
        Ok(self.root.join("manifests").join(dataset).join(format!("{digest}.json")))
    }

    /// The folder of a version.
    ///
    /// # Errors
    /// A name that is no DNS label or no digest.
    pub fn version(&self, dataset: &str, digest: &str) -> Result<PathBuf, Error> {
        check_names(dataset, digest)?;
        Ok(version_folder(&self.root, dataset, digest))
    }

    /// Whether every object of a manifest is in place.
    pub(crate) fn has_all(&self, manifest: &Manifest) -> bool {
        manifest.files.iter().all(|file| hash_of(&file.blake3).is_ok_and(|hash| self.object(hash).is_file()))
    }

    /// Reads a stored manifest. Its signature was verified before it was stored.
    pub(crate) fn read_manifest(&self, dataset: &str, digest: &str) -> Result<Manifest, Error> {
        let path = self.manifest(dataset, digest)?;
        let signed: SignedManifest = read_json(&path)?;
        serde_json::from_str(&signed.manifest).map_err(|cause| Error::io("read", path)(cause.into()))
    }

    /// Every stored manifest that can be read, in path order.
    pub(crate) fn manifests(&self) -> Result<Vec<Manifest>, Error> {
        let readable = |manifest: Result<Manifest, Error>| match manifest {
            Ok(manifest) => Some(manifest),
            // One unreadable file must not hide the others; the version it names is not complete.
            Err(error) => {
                tracing::warn!("{}", error.chain());
                None
            }
        };
        Ok(self.read_manifests()?.into_iter().filter_map(readable).collect())
    }

    /// Every stored manifest, in path order, those that cannot be read too: what decides about deletes
    /// must know all of them.
    pub(crate) fn read_manifests(&self) -> Result<Vec<Result<Manifest, Error>>, Error> {
        let mut all = Vec::new();
        for dataset in names_in(&self.at("manifests"))? {
            for name in names_in(&self.at("manifests").join(&dataset))? {
                if let Some(digest) = name.strip_suffix(".json") {
                    all.push(self.read_manifest(&dataset, digest));
                }
            }
        }
        Ok(all)
    }

    /// Who pins a version, in name order. The node unit creates a pin before it looks for the version's
    /// folder, and removes it when the pod is gone.
    ///
    /// # Errors
    /// The folder cannot be listed: then nobody knows that there is no pin.
    pub fn pins(&self, dataset: &str, digest: &str) -> Result<Vec<String>, Error> {
        if check_names(dataset, digest).is_err() {
            return Ok(Vec::new());
        }
        names_in(&pins_folder(&self.root, dataset, digest))
    }

    /// The manifest of a sealed set.
    pub(crate) fn set(&self, id: &str) -> Result<PathBuf, Error> {
        if !is_file_name(id) {
            return Err(Error::refused(format!("a set {id:?}"), "not a plain name"));
        }
        Ok(self.at("sets").join(format!("{id}.json")))
    }
}

/// The hash that a checked hexadecimal text stands for.
///
/// # Errors
/// It is not 64 lower-case hexadecimal digits.
pub fn hash_of(text: &str) -> Result<blake3::Hash, Error> {
    let bad = || Error::refused(format!("hash {text:?}"), "not 64 lower-case hexadecimal digits");
    if !is_blake3(text) {
        return Err(bad());
    }
    blake3::Hash::from_hex(text).map_err(|_checked_before| bad())
}

/// Whether `name` is a plain file name: `A-Za-z0-9._-`, up to 200, no dot first.
pub(crate) fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// Names in a folder that are content (no dot first), sorted; none when the folder is missing.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(Error::io("list", folder)(cause)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", folder))?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads a JSON file.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|cause| Error::io("read", path)(cause.into()))
}

/// Replaces a JSON file durably, indented for readers.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|cause| Error::io("write", path)(cause.into()))?;
    bytes.push(b'\n');
    durable::replace(path, &bytes)
}

fn check_names(dataset: &str, digest: &str) -> Result<(), Error> {
    if is_dns_label(dataset) && is_blake3(digest) {
        return Ok(());
    }
    Err(Error::refused(format!("version {digest:?} of {dataset:?}"), "not a DNS label and a digest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_store_never_become_paths() {
        let layout = Layout::new("/nowhere");
        let digest = "0".repeat(64);
        for bad in ["..", "../x", "/etc", "a/b", "", ".hidden", "a\0b"] {
            assert!(layout.version(bad, &digest).is_err(), "{bad:?}");
            assert!(layout.version("packages", bad).is_err(), "{bad:?}");
            assert!(layout.manifest(bad, &digest).is_err(), "{bad:?}");
            assert!(layout.set(bad).is_err(), "{bad:?}");
            assert!(hash_of(bad).is_err(), "{bad:?}");
        }
        assert!(hash_of(&"AB".repeat(32)).is_err(), "upper case would be a second name for one object");
    }
}
