//! What the controller wants this node to hold: accepted, remembered, never rolled back.
//!
//! A wanted set is refused when it is older than the last one, when a manifest is not signed by the
//! pinned key, or when it would take a dataset back to an older generation. So neither a replayed
//! message nor a controller restored from an old backup can undo a publication.

use crate::durable;
use crate::error::Error;
use crate::layout::{Layout, read_json, write_json};
use crate::tls;
use rackwright_wire::manifest::{Manifest, SignedManifest, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// A wanted set whose every manifest was verified.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// As it came.
    pub wanted: Wanted,
    /// All its manifests, by dataset in name order, the newest of a dataset last.
    pub manifests: Vec<(SignedManifest, Manifest)>,
}

impl Accepted {
    /// Digests of all versions in it.
    pub fn digests(&self) -> BTreeSet<String> {
        self.manifests.iter().map(|(_, manifest)| manifest.digest()).collect()
    }

    /// Newest generation of each dataset.
    fn generations(&self) -> BTreeMap<&str, u64> {
        newest(self.manifests.iter().map(|(_, manifest)| manifest))
    }
}

fn newest<'m>(manifests: impl IntoIterator<Item = &'m Manifest>) -> BTreeMap<&'m str, u64> {
    let mut newest = BTreeMap::new();
    for manifest in manifests {
        let generation = newest.entry(manifest.dataset.as_str()).or_insert(0);
        *generation = manifest.generation.max(*generation);
    }
    newest
}

/// Pins the controller's manifest key (SPKI PEM), the first time; later only the same key is fine.
///
/// # Errors
/// Another key is pinned, or the text is no Ed25519 key.
pub fn pin_key(layout: &Layout, pem: &str) -> Result<[u8; 32], Error> {
    let key = tls::ed25519_public(pem)?;
    let path = layout.at("trust.pub");
    if durable::create(&path, pem.as_bytes())? || pinned_key(layout)? == Some(key) {
        return Ok(key);
    }
    let why = format!("another key is pinned; remove {} to trust a new one", path.display());
    Err(Error::refused("the manifest key", why))
}

/// The pinned key, if any.
///
/// # Errors
/// The file cannot be read or holds something else.
pub fn pinned_key(layout: &Layout) -> Result<Option<[u8; 32]>, Error> {
    let path = layout.at("trust.pub");
    match fs::read_to_string(&path) {
        Ok(pem) => tls::ed25519_public(&pem).map(Some),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", path)(cause)),
    }
}

/// Checks a wanted set against the key and against the one before; says whether it is new. Where the one
/// before is not remembered, what is held says how far each dataset was.
///
/// # Errors
/// It is refused; nothing has changed.
pub fn check(
    wanted: &Wanted,
    key: Option<[u8; 32]>,
    before: Option<&Accepted>,
    held: &[Manifest],
) -> Result<(Accepted, bool), Error> {
    let what = || format!("wanted generation {}", wanted.generation);
    let key = key.ok_or_else(|| Error::refused(what(), "no manifest key is pinned yet"))?;
    let accepted = open(wanted.clone(), &key)?;
    let offered_now = accepted.generations();
    for (dataset, generation) in before.map_or_else(|| newest(held), Accepted::generations) {
        if offered_now.get(dataset).is_some_and(|offered| *offered < generation) {
            return Err(Error::refused(what(), format!("{dataset} was at generation {generation} already")));
        }
    }
    let Some(before) = before else { return Ok((accepted, true)) };
    match wanted.generation.cmp(&before.wanted.generation) {
        std::cmp::Ordering::Less => Err(Error::refused(
            what(),
            format!("generation {} was accepted before", before.wanted.generation),
        )),
        std::cmp::Ordering::Equal if before.wanted != *wanted => {
            Err(Error::refused(what(), "another set of this generation was accepted before"))
        }
        std::cmp::Ordering::Equal => Ok((accepted, false)),
        std::cmp::Ordering::Greater => Ok((accepted, true)),
    }
}

/// Remembers a wanted set.
///
/// # Errors
/// The file system refuses.
pub fn remember(layout: &Layout, accepted: &Accepted) -> Result<(), Error> {
    write_json(&layout.at("wanted.json"), &accepted.wanted)
}

/// The wanted set from before a restart, verified again.
///
/// # Errors
/// The file cannot be read, or does not verify any more.
pub fn recall(layout: &Layout) -> Result<Option<Accepted>, Error> {
    let path = layout.at("wanted.json");
    if !path.exists() {
        return Ok(None);
    }
    let wanted: Wanted = read_json(&path)?;
    let key = pinned_key(layout)?.ok_or_else(|| Error::Missing("the pinned manifest key".to_owned()))?;
    open(wanted, &key).map(Some)
}

fn open(wanted: Wanted, key: &[u8; 32]) -> Result<Accepted, Error> {
    let mut manifests = Vec::new();
    for (dataset, signed) in &wanted.datasets {
        for signed in signed {
            let wrong = |source| Error::Manifest { dataset: dataset.clone(), source };
            let manifest = signed.open(key).map_err(wrong)?;
            if &manifest.dataset != dataset {
                let why = format!("it is signed for {:?}", manifest.dataset);
                return Err(Error::refused(format!("a manifest of {dataset:?}"), why));
            }
            manifests.push((signed.clone(), manifest));
        }
    }
    Ok(Accepted { wanted, manifests })
}
