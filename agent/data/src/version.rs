//! Making a version visible, keeping its links right, and taking it away again.
//!
//! A version's folder appears by one rename, after every object of it was verified and linked: nobody
//! ever sees half of one. What is removed is first renamed away, and only when nobody pins it.

use crate::durable;
use crate::error::Error;
use crate::layout::{hash_of, is_file_name, names_in, read_json, write_json};
use crate::store::Store;
use rackwright_wire::manifest::{MANIFEST_FILE, Manifest, SignedManifest};
use rackwright_wire::sealed::SealedSet;
use rackwright_wire::source::Exported;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

/// Unreferenced objects younger than this stay: an upload puts objects first and their set last.
const UNREFERENCED_FOR: Duration = Duration::from_hours(1);

impl Store {
    /// Makes a version visible. Every object must be here; the caller verified the signature.
    ///
    /// # Errors
    /// An object is missing or has another size, or the file system refuses: then nothing is visible
    /// that was not before.
    pub fn publish(&self, signed: &SignedManifest, manifest: &Manifest) -> Result<(), Error> {
        let findings = manifest.check();
        if !findings.is_empty() {
            return Err(Error::refused(format!("a manifest of {:?}", manifest.dataset), findings.join("; ")));
        }
        let digest = manifest.digest();
        self.check_objects(manifest)?;
        let stored = self.layout().manifest(&manifest.dataset, &digest)?;
        durable::make_folder(stored.parent().unwrap_or(self.layout().root()))?;
        if read_json::<SignedManifest>(&stored).ok().as_ref() != Some(signed) {
            write_json(&stored, signed)?;
        }
        self.lay_out(signed, manifest)?;
        let folder = self.layout().version(&manifest.dataset, &digest)?;
        point_current(folder.parent().unwrap_or(self.layout().root()), &digest)
    }

    /// Makes a version's folder what its manifest says: all of it when it is gone, else the links and the manifest
    /// that are not right. Every object must be here.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn lay_out(&self, signed: &SignedManifest, manifest: &Manifest) -> Result<(), Error> {
        let _one_at_a_time = self.laying.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = manifest.digest();
        let folder = self.layout().version(&manifest.dataset, &digest)?;
        if folder.is_dir() {
            self.relink(manifest)?;
            if !has_text(&folder, &signed.manifest) {
                durable::replace(&folder.join(MANIFEST_FILE), signed.manifest.as_bytes())?;
            }
            return Ok(());
        }
        let versions = folder.parent().unwrap_or(self.layout().root());
        durable::make_folder(versions)?;
        let building = versions.join(format!(".building-{digest}"));
        self.build(&building, signed, manifest)?;
        durable::rename(&building, &folder)
    }

    /// Whether a version is visible, has its manifest and every object, and links exactly these.
    pub fn is_complete(&self, manifest: &Manifest) -> bool {
        let digest = manifest.digest();
        let Ok(folder) = self.layout().version(&manifest.dataset, &digest) else { return false };
        let linked = manifest.files.iter().all(|file| {
            let object = hash_of(&file.blake3).map(|hash| self.layout().object(hash));
            object.is_ok_and(|object| same_inode(&object, &folder.join(&file.path)))
        });
        // The stored copy is the signed one; pods read the other.
        let stored = self.layout().manifest(&manifest.dataset, &digest);
        let signed = stored.and_then(|stored| read_json::<SignedManifest>(&stored));
        linked && signed.is_ok_and(|signed| has_text(&folder, &signed.manifest))
    }

    /// Relinks every object of a visible version that was replaced by a repair; returns how many.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn relink(&self, manifest: &Manifest) -> Result<u64, Error> {
        let folder = self.layout().version(&manifest.dataset, &manifest.digest())?;
        let mut relinked = 0;
        for file in &manifest.files {
            let object = self.layout().object(hash_of(&file.blake3)?);
            let link = folder.join(&file.path);
            if !folder.is_dir() || same_inode(&object, &link) || !object.exists() {
                continue;
            }
            if let Some(parent) = link.parent() {
                fs::create_dir_all(parent).map_err(Error::io("make the folder", parent))?;
            }
            let name = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let temp = link.with_file_name(format!(".{name}.relink"));
            durable::remove(&temp)?;
            fs::hard_link(&object, &temp).map_err(Error::io("link", &temp))?;
            durable::rename(&temp, &link)?;
            relinked += 1;
        }
        Ok(relinked)
    }

    /// Removes versions that nobody wants and nobody pins, oldest generation first, until `needed`
    /// bytes fit. Returns what was removed, as `dataset/digest`.
    ///
    /// # Errors
    /// [`Error::Full`] when all that may go is gone and it still does not fit.
    pub fn make_room(&self, needed: u64, wanted: &BTreeSet<String>) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        let mut candidates = self.layout().manifests()?;
        candidates.sort_by_key(|manifest| manifest.generation);
        for manifest in candidates {
            if self.admit(needed).is_ok() {
                break;
            }
            let digest = manifest.digest();
            if !wanted.contains(&digest) && self.evict(&manifest, &digest)? {
                removed.push(format!("{}/{digest}", manifest.dataset));
                self.collect_garbage()?;
            }
        }
        self.admit(needed).map(|()| removed)
    }

    /// Takes a version away unless someone pins it, also at the last moment.
    fn evict(&self, manifest: &Manifest, digest: &str) -> Result<bool, Error> {
        if !self.layout().pins(&manifest.dataset, digest)?.is_empty() {
            return Ok(false);
        }
        let folder = self.layout().version(&manifest.dataset, digest)?;
        let away = folder.with_file_name(format!(".evicted-{digest}"));
        if folder.is_dir() {
            durable::rename(&folder, &away)?;
            // A pod pins first and looks for the folder second, so one of the two sees the other.
            let pins = self.layout().pins(&manifest.dataset, digest);
            if !matches!(&pins, Ok(pins) if pins.is_empty()) {
                durable::rename(&away, &folder)?;
                return pins.map(|_pinned| false);
            }
        }
        durable::remove(&self.layout().manifest(&manifest.dataset, digest)?)?;
        if away.is_dir() {
            fs::remove_dir_all(&away).map_err(Error::io("remove", &away))?;
        }
        Ok(true)
    }

    /// Removes objects that no manifest, set or export names and that are not fresh.
    fn collect_garbage(&self) -> Result<(), Error> {
        let named = self.referenced()?;
        let deadline = SystemTime::now().checked_sub(UNREFERENCED_FOR);
        for hash in
            self.objects()?.into_iter().filter(|hash| !named.contains(hash) && !self.is_expected(*hash))
        {
            let path = self.layout().object(hash);
            let modified =
                fs::metadata(&path).and_then(|meta| meta.modified()).map_err(Error::io("look at", &path))?;
            if deadline.is_some_and(|deadline| modified < deadline) {
                durable::remove(&path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn referenced(&self) -> Result<HashSet<blake3::Hash>, Error> {
        // Objects of a manifest that this build cannot read are in use all the same.
        let manifests: Vec<Manifest> =
            self.layout().read_manifests()?.into_iter().collect::<Result<_, _>>()?;
        let mut files: Vec<_> = manifests.into_iter().flat_map(|manifest| manifest.files).collect();
        files.extend(self.sets()?.into_iter().flat_map(|set| set.files));
        files.extend(self.exports()?.into_iter().flat_map(|export| export.files));
        Ok(files.iter().filter_map(|file| hash_of(&file.blake3).ok()).collect())
    }

    /// Every sealed set that is here.
    ///
    /// # Errors
    /// The file system refuses, or a set's manifest cannot be read.
    pub fn sets(&self) -> Result<Vec<SealedSet>, Error> {
        self.json_folder("sets")
    }

    pub(crate) fn exports(&self) -> Result<Vec<Exported>, Error> {
        self.json_folder("exports")
    }

    fn json_folder<T: serde::de::DeserializeOwned>(&self, folder: &str) -> Result<Vec<T>, Error> {
        let folder = self.layout().at(folder);
        let names = names_in(&folder)?
            .into_iter()
            .filter(|name| is_file_name(name) && name.strip_suffix(".json").is_some());
        names.map(|name| read_json(&folder.join(name))).collect()
    }

    fn check_objects(&self, manifest: &Manifest) -> Result<(), Error> {
        for file in &manifest.files {
            let object = self.layout().object(hash_of(&file.blake3)?);
            let bytes = fs::metadata(&object).map(|meta| meta.len());
            if bytes.as_ref().ok() != Some(&file.bytes) {
                return Err(Error::Missing(format!("object {} of {:?} whole", file.blake3, file.path)));
            }
        }
        Ok(())
    }

    fn build(&self, building: &Path, signed: &SignedManifest, manifest: &Manifest) -> Result<(), Error> {
        if building.exists() {
            fs::remove_dir_all(building).map_err(Error::io("remove", building))?;
        }
        fs::create_dir(building).map_err(Error::io("make the folder", building))?;
        let mut folders = BTreeSet::from([building.to_owned()]);
        for file in &manifest.files {
            let link = building.join(&file.path);
            if let Some(folder) = link.parent() {
                fs::create_dir_all(folder).map_err(Error::io("make the folder", folder))?;
                folders
                    .extend(folder.ancestors().take_while(|up| up.starts_with(building)).map(Path::to_owned));
            }
            let object = self.layout().object(hash_of(&file.blake3)?);
            fs::hard_link(&object, &link).map_err(Error::io("link", &link))?;
        }
        durable::replace(&building.join(MANIFEST_FILE), signed.manifest.as_bytes())?;
        folders.iter().rev().try_for_each(|folder| durable::sync_folder(folder))
    }

    /// Removes folders that a killed process was building or evicting, and folders without manifest.
    pub(crate) fn clear_half_made_versions(&self) -> Result<(), Error> {
        for dataset in names_in(&self.layout().at("versions"))? {
            let versions = self.layout().at("versions").join(&dataset);
            for entry in fs::read_dir(&versions).map_err(Error::io("list", &versions))? {
                let path = entry.map_err(Error::io("list", &versions))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if let Some(digest) = name.strip_prefix(".evicted-")
                    && !self.layout().pins(&dataset, digest)?.is_empty()
                {
                    durable::rename(&path, &versions.join(digest))?;
                    continue;
                }
                let half_made = name.starts_with('.')
                    || self.layout().manifest(&dataset, &name).is_ok_and(|manifest| !manifest.exists());
                if half_made
                    && path.is_dir()
                    && !path.is_symlink()
                    && self.layout().pins(&dataset, &name)?.is_empty()
                {
                    fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the manifest beside a version's files is this one.
fn has_text(folder: &Path, manifest: &str) -> bool {
    fs::read(folder.join(MANIFEST_FILE)).is_ok_and(|text| text == manifest.as_bytes())
}

fn same_inode(left: &Path, right: &Path) -> bool {
    let id = |path| fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    id(left).is_some_and(|left| Some(left) == id(right))
}

fn point_current(versions: &Path, digest: &str) -> Result<(), Error> {
    let (current, temp) = (versions.join("current"), versions.join(".current.new"));
    if fs::read_link(&current).is_ok_and(|target| target == Path::new(digest)) {
        return Ok(());
    }
    durable::remove(&temp)?;
    std::os::unix::fs::symlink(digest, &temp).map_err(Error::io("link", &temp))?;
    durable::rename(&temp, &current)
}
