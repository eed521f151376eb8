//! Sealed sets on the server that keeps them: objects first, the manifest last and once.
//!
//! A set that is listed is whole. The same set may be stored again (an upload that lost its answer);
//! another one under the same id is refused, so no attempt overwrites another.

use crate::durable;
use crate::error::Error;
use crate::layout::{hash_of, is_file_name, names_in, read_json};
use crate::store::Store;
use rackwright_wire::manifest::{check_files, is_dns_label};
use rackwright_wire::sealed::{SealedSet, SetKind};
use serde::Deserialize;
use std::fs;

/// Which sets to list; empty fields do not restrict.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetFilter {
    /// Ids that begin with this.
    pub prefix: Option<String>,
    /// Results or checkpoints only.
    pub kind: Option<SetKind>,
    /// Of this team.
    pub team: Option<String>,
    /// Of this project.
    pub project: Option<String>,
    /// Of this job.
    pub job: Option<String>,
    /// Of this task.
    pub task: Option<u32>,
}

impl SetFilter {
    fn matches(&self, set: &SealedSet) -> bool {
        let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
        self.prefix.as_ref().is_none_or(|prefix| set.id().starts_with(prefix))
            && self.kind.is_none_or(|kind| kind == set.kind)
            && same(&self.team, &set.team)
            && same(&self.project, &set.project)
            && same(&self.job, &set.job)
            && self.task.is_none_or(|task| task == set.task)
    }
}

impl Store {
    /// Stores a set whose objects are all here; false when exactly this set was here before.
    ///
    /// # Errors
    /// An object is missing, a path is hostile, or another set has this id.
    pub fn put_set(&self, set: &SealedSet) -> Result<bool, Error> {
        let id = set.id();
        let mut findings = check_files(&set.files);
        if !is_dns_label(&set.team) || !is_dns_label(&set.project) {
            findings.push(format!("team {:?} or project {:?} is not a DNS label", set.team, set.project));
        }
        if !findings.is_empty() {
            return Err(Error::refused(format!("set {id}"), findings.join("; ")));
        }
        for file in &set.files {
            let object = self.layout().object(hash_of(&file.blake3)?);
            if fs::metadata(&object).map(|meta| meta.len()).ok() != Some(file.bytes) {
                let missing = format!("object {} of {:?}", file.blake3, file.path);
                return Err(Error::Incomplete { what: format!("set {id}"), missing });
            }
        }
        let path = self.layout().set(&id)?;
        let mut json =
            serde_json::to_vec_pretty(set).map_err(|cause| Error::io("write", &path)(cause.into()))?;
        json.push(b'\n');
        if durable::create(&path, &json)? {
            return Ok(true);
        }
        if self.set(&id)? == *set {
            return Ok(false);
        }
        Err(Error::refused(format!("set {id}"), "another set of this id was stored before"))
    }

    /// One set.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn set(&self, id: &str) -> Result<SealedSet, Error> {
        let path = self.layout().set(id)?;
        if !path.exists() {
            return Err(Error::Missing(format!("set {id}")));
        }
        read_json(&path)
    }

    /// Sets that match, in the order of job, task, attempt, step.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn list_sets(&self, filter: &SetFilter) -> Result<Vec<SealedSet>, Error> {
        let folder = self.layout().at("sets");
        // A set's file is named after its id: what the prefix rules out need not be read.
        let is_meant = |name: &String| {
            let id = name.strip_suffix(".json").filter(|_| is_file_name(name));
            id.is_some_and(|id| filter.prefix.as_ref().is_none_or(|prefix| id.starts_with(prefix)))
        };
        let names = names_in(&folder)?.into_iter().filter(is_meant);
        let mut sets =
            names.map(|name| read_json::<SealedSet>(&folder.join(name))).collect::<Result<Vec<_>, _>>()?;
        sets.retain(|set| filter.matches(set));
        sets.sort_by(|left, right| {
            let key = |set: &SealedSet| (set.job.clone(), set.task, set.attempt, set.step);
            key(left).cmp(&key(right))
        });
        Ok(sets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::sealed::SEALED_VERSION;

    fn set(store: &Store, content: &[u8], path: &str) -> SealedSet {
        let mut incoming = store.begin().unwrap();
        incoming.write(content).unwrap();
        let file = incoming.commit(path, None).unwrap();
        SealedSet {
            version: SEALED_VERSION,
            kind: SetKind::Results,
            team: "vision".into(),
            project: "default".into(),
            job: "j1".into(),
            task: 3,
            attempt: 1,
            step: 0,
            node: "ml1".into(),
            files: vec![file],
            refused: None,
            left_out: 0,
        }
    }

    #[test]
    fn a_set_is_created_once_and_the_same_again_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Some(0)).unwrap();
        let first = set(&store, b"{\"score\":1}\n", "scores.jsonl");
        assert!(store.put_set(&first).unwrap());
        assert!(!store.put_set(&first).unwrap());
        let other = set(&store, b"{\"score\":2}\n", "scores.jsonl");
        assert!(store.put_set(&other).unwrap_err().to_string().contains("stored before"));
        assert_eq!(store.list_sets(&SetFilter::default()).unwrap(), [first]);
    }

    #[test]
    fn a_set_without_its_objects_or_with_hostile_paths_does_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Some(0)).unwrap();
        for path in ["../escape", "/etc/passwd", "a//b", "a/./b", ""] {
            assert!(store.put_set(&set(&store, b"x", path)).is_err(), "{path:?}");
        }
        let mut missing = set(&store, b"x", "ok");
        missing.files[0].blake3 = "0".repeat(64);
        assert!(store.put_set(&missing).is_err());
        assert!(store.list_sets(&SetFilter::default()).unwrap().is_empty());
    }
}
