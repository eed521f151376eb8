//! `unit`: a systemd unit has this content, is enabled, and runs with the files it has now.
//!
//! Whether a unit must be restarted is decided by digests: when we start a unit, we note what its own file
//! and its `restart_on` paths were. Times of files say nothing (a file put back is newer and the same).

use super::Found;
use super::attributes::Attributes;
use super::expected::{Content, Expected};
use crate::diff;
use crate::durable;
use crate::error::{Code, StepError};
use crate::hashes::hash_bytes;
use crate::host::Host;
use crate::systemd::{self, UnitState};
use rackwright_wire::step::StepKind;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The version of [`Record`] that this build writes.
const RECORD_VERSION: u32 = 1;
const FOLDER: &str = "/etc/systemd/system";
/// Where an administrator's drop-ins lie (`systemctl edit`, `edit --runtime`, `set-property`): systemd.unit(5).
/// A package's own, below `/usr/lib`, belong to the package.
const DROP_IN_FOLDERS: [&str; 4] =
    [FOLDER, "/etc/systemd/system.control", "/run/systemd/system", "/run/systemd/system.control"];

/// Whole units here go before those in [`FOLDER`].
const BEFORE_OURS: [&str; 2] = ["/etc/systemd/system.control", "/run/systemd/system.control"];

/// What a unit was started with (`journal/units/<unit>.json`).
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, RECORD_VERSION>")]
    version: u32,
    unit: String,
    /// Path to SHA-256 (hex), or `absent`.
    paths: BTreeMap<String, String>,
}

/// A unit as a step wants it.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) content: Option<Cow<'a, str>>,
    pub(super) drop_in: Option<&'a str>,
    pub(super) enabled: bool,
    pub(super) active: bool,
    /// Paths that matter beside its own files; `None` for units that a reload is enough for (slices).
    pub(super) restart_on: Option<&'a [String]>,
    pub(super) no_block: bool,
}

/// Everything that differs.
#[derive(Debug, Default)]
struct Findings {
    files: Vec<(String, diff::TextChange)>,
    /// Units and drop-ins that somebody put before or beside ours: the unit is not what the plan says while
    /// they lie there.
    strangers: Vec<(String, diff::TextChange)>,
    /// The files are right and systemd has not read them: whoever wrote them was cut off.
    is_outdated: bool,
    enable: Option<bool>,
    job: Option<Job>,
}

#[derive(Debug, PartialEq, Eq)]
enum Job {
    Start,
    Stop,
    Restart { because: String },
}

impl<'a> Wanted<'a> {
    /// Reads a unit step; other kinds are a defect of the caller.
    pub(super) fn of(kind: &'a StepKind) -> Result<Self, StepError> {
        let StepKind::Unit { name, content, drop_in, enabled, active, restart_on, no_block } = kind else {
            return Err(StepError::new(Code::BadStep, "read a unit step"));
        };
        Ok(Self {
            name,
            content: content.as_deref().map(Cow::Borrowed),
            drop_in: drop_in.as_deref(),
            enabled: *enabled,
            active: *active,
            restart_on: Some(restart_on),
            no_block: *no_block,
        })
    }

    pub(super) fn check(&self, host: &Host, expected: &Expected) -> Result<Option<Found>, StepError> {
        let findings = self.find(host, expected)?;
        let texts = || findings.files.iter().chain(&findings.strangers).map(|(_, change)| change);
        let mut words: Vec<String> = texts().map(|change| change.summary.clone()).collect();
        if findings.is_outdated && words.is_empty() {
            words.push(format!("reload the definition of {}", self.name));
        }
        words.extend(
            findings.enable.map(|on| format!("{} {}", if on { "enable" } else { "disable" }, self.name)),
        );
        words.extend(findings.job.as_ref().map(|job| match job {
            Job::Start => format!("start {}", self.name),
            Job::Stop => format!("stop {}", self.name),
            Job::Restart { because } => format!("restart {} ({because})", self.name),
        }));
        let detail: Vec<&str> = texts().map(|change| change.detail.as_str()).collect();
        Ok((!words.is_empty()).then(|| Found::new(words.join("; ")).with_detail(detail.join(""))))
    }

    pub(super) fn apply(&self, host: &Host) -> Result<(), StepError> {
        let before = self.state(host)?;
        let findings = self.find(host, &Expected::default())?;
        for (path, _) in &findings.files {
            let content = if *path == self.unit_path() { self.content.as_deref() } else { self.drop_in };
            let place = host.path(path);
            if let Some(folder) = place.parent() {
                durable::make_dir(folder, 0o755).map_err(|error| StepError::io("make", folder, error))?;
            }
            durable::write(&place, content.unwrap_or_default().as_bytes(), 0o644, None)
                .map_err(|error| StepError::io("write", &place, error))?;
        }
        if !findings.strangers.is_empty() {
            // First of all: cut off before its restart, the unit must not count as started with these files.
            let record = record_path(host, self.name);
            durable::remove(&record).map_err(|error| StepError::io("remove", &record, error))?;
        }
        for (path, _) in &findings.strangers {
            let place = host.path(path);
            durable::remove(&place).map_err(|error| StepError::io("remove", &place, error))?;
        }
        // systemd reads the file of a unit that it does not know yet by itself; only a known one is stale.
        let changed = !findings.files.is_empty() || !findings.strangers.is_empty() || findings.is_outdated;
        if changed && before.load != "not-found" {
            host.units.note_written();
            host.units.reload()?;
        }
        if let Some(enable) = findings.enable {
            let verb = if enable { "enable" } else { "disable" };
            systemd::systemctl(&[verb, "--no-reload", "--quiet", self.name], self.name)?;
        }
        let done = findings.job.map_or(Ok(()), |job| self.run(host, &job, &before));
        host.units.forget(self.name);
        done
    }

    fn run(&self, host: &Host, job: &Job, before: &UnitState) -> Result<(), StepError> {
        let verb = match job {
            Job::Start => "start",
            Job::Stop => return systemd::systemctl(&["stop", self.name], self.name),
            Job::Restart { .. } => "restart",
        };
        if before.active == "failed" {
            // A start limit that was hit would refuse the start.
            systemd::systemctl(&["reset-failed", self.name], self.name)?;
        }
        // Before the start: a file that changes while the unit starts must count as changed.
        let paths = self.digests(host, &Expected::default())?;
        let mut args = vec![verb, self.name];
        if self.no_block {
            args.insert(0, "--no-block");
        }
        match systemd::systemctl(&args, self.name) {
            Err(error) if error.evidence.contains("not found") => {
                // The folder's listing was cached before we wrote the file.
                host.units.note_written();
                host.units.reload()?;
                systemd::systemctl(&args, self.name)?;
            }
            done => done?,
        }
        if self.no_block {
            systemd::wait_begun(self.name)?;
        }
        self.record(host, paths)
    }

    fn find(&self, host: &Host, expected: &Expected) -> Result<Findings, StepError> {
        let files = self.changed_files(host)?;
        let state = self.state(host)?;
        let strangers = self.strangers(host)?;
        let mut findings =
            Findings { files, strangers, is_outdated: state.is_outdated, ..Findings::default() };
        if self.enabled != self.is_enabled(host, &state) && (self.enabled || is_linked(host, self.name)) {
            findings.enable = Some(self.enabled);
        }
        let runs = self.runs(&state);
        if self.active && !runs {
            findings.job = Some(Job::Start);
        } else if !self.active && !matches!(state.active.as_str(), "inactive" | "failed" | "") {
            findings.job = Some(Job::Stop);
        } else if self.active {
            let restarts = self.restart_on.is_some();
            let stranger =
                findings.strangers.first().filter(|_| restarts).map(|(path, _)| format!("{path} goes"));
            let because = self.stale(host, expected)?.or(stranger);
            findings.job = because.map(|because| Job::Restart { because });
        }
        Ok(findings)
    }

    fn changed_files(&self, host: &Host) -> Result<Vec<(String, diff::TextChange)>, StepError> {
        let wanted = [(self.unit_path(), self.content.as_deref()), (self.drop_in_path(), self.drop_in)];
        let mut changed = Vec::new();
        for (path, content) in wanted {
            let Some(content) = content else { continue };
            let place = host.path(&path);
            let old = durable::read_if_there(&place).map_err(|error| StepError::io("read", &place, error))?;
            if old.as_deref() == Some(content.as_bytes()) {
                let lines = Attributes::of_plain_file(host, &place)?;
                if !lines.is_empty() {
                    let summary = format!("change mode or owner of {path}");
                    changed.push((path, diff::TextChange { summary, detail: lines.join("\n") }));
                }
            } else {
                let change = diff::text(&path, old.as_deref(), content, false);
                changed.push((path, change));
            }
        }
        Ok(changed)
    }

    fn strangers(&self, host: &Host) -> Result<Vec<(String, diff::TextChange)>, StepError> {
        let mut strangers = Vec::new();
        for path in stranger_paths(host, self.name, self.our_drop_in().as_deref())? {
            let place = host.path(&path);
            let old = durable::read_if_there(&place).map_err(|error| StepError::io("read", &place, error))?;
            let summary = format!("remove {path}");
            let detail = diff::text(&path, old.as_deref(), "", false).detail;
            strangers.push((path, diff::TextChange { summary, detail }));
        }
        Ok(strangers)
    }

    fn state(&self, host: &Host) -> Result<UnitState, StepError> {
        if host.is_server() {
            host.units.state(self.name)
        } else {
            Err(StepError::new(Code::BadStep, "ask systemd about units below a folder"))
        }
    }

    fn runs(&self, state: &UnitState) -> bool {
        match state.active.as_str() {
            "active" | "reloading" => true,
            "activating" => self.no_block && state.sub != "auto-restart",
            _ => false,
        }
    }

    /// Linked into a target, or without an `[Install]` section that says where to.
    fn is_enabled(&self, host: &Host, state: &UnitState) -> bool {
        let text = match &self.content {
            Some(content) => content.to_string(),
            None => fs::read_to_string(host.path(&state.fragment)).unwrap_or_default(),
        };
        let is_static = !text.is_empty() && !text.lines().any(|line| line.trim() == "[Install]");
        is_static || is_linked(host, self.name)
    }

    /// Why the running unit is not what its files say, if so.
    fn stale(&self, host: &Host, expected: &Expected) -> Result<Option<String>, StepError> {
        let now = self.digests(host, expected)?;
        if now.is_empty() {
            return Ok(None);
        }
        let Some(record) = self.recorded(host) else {
            return Ok(Some("it was not started by us with these files".to_owned()));
        };
        let changed: Vec<&str> = now
            .iter()
            .filter(|(path, digest)| record.paths.get(*path) != Some(digest))
            .map(|(path, _)| path.as_str())
            .collect();
        Ok((!changed.is_empty()).then(|| format!("{} changed", changed.join(", "))))
    }

    /// What the files that matter to the unit are, or will be.
    fn digests(&self, host: &Host, expected: &Expected) -> Result<BTreeMap<String, String>, StepError> {
        let mut digests = BTreeMap::new();
        let Some(restart_on) = self.restart_on else {
            return Ok(digests);
        };
        if let Some(content) = &self.content {
            digests.insert(self.unit_path(), hash_bytes(content.as_bytes()));
        }
        if let Some(content) = self.drop_in {
            digests.insert(self.drop_in_path(), hash_bytes(content.as_bytes()));
        }
        for path in restart_on {
            let digest = match expected.get(path) {
                Some(Content::Sha256(sha256)) => sha256.clone(),
                Some(Content::Absent) => "absent".to_owned(),
                Some(Content::Anew) => "anew".to_owned(),
                None => digest(host, path)?,
            };
            digests.insert(path.clone(), digest);
        }
        Ok(digests)
    }

    /// `None` also for a record of another version: the unit is then started anew, and the record with it.
    fn recorded(&self, host: &Host) -> Option<Record> {
        let text = fs::read(record_path(host, self.name)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn record(&self, host: &Host, paths: BTreeMap<String, String>) -> Result<(), StepError> {
        let place = record_path(host, self.name);
        let record = Record { version: RECORD_VERSION, unit: self.name.to_owned(), paths };
        let text = serde_json::to_vec_pretty(&record).unwrap_or_default();
        place
            .parent()
            .map_or(Ok(()), |folder| durable::make_dir(folder, 0o700))
            .and_then(|()| durable::write(&place, &text, 0o600, None))
            .map_err(|error| StepError::io("write", &place, error))
    }

    fn unit_path(&self) -> String {
        format!("{FOLDER}/{}", self.name)
    }

    fn drop_in_path(&self) -> String {
        format!("{FOLDER}/{}.d/rackwright.conf", self.name)
    }

    /// Where our drop-in lies, when the plan writes one.
    fn our_drop_in(&self) -> Option<String> {
        self.drop_in.map(|_| self.drop_in_path())
    }

    /// The files that apply writes or removes.
    pub(super) fn paths(&self, host: &Host) -> Result<Vec<String>, StepError> {
        let unit = self.content.as_ref().map(|_| self.unit_path());
        let drop_in = self.our_drop_in();
        let strangers = stranger_paths(host, self.name, drop_in.as_deref())?;
        Ok(unit.into_iter().chain(drop_in).chain(strangers).collect())
    }
}

/// What stands in the way of the unit as the plan has it: whole units that go before ours, then drop-ins other than
/// `ours` of its name or of a part of it that ends with a dash, sorted within each folder.
fn stranger_paths(host: &Host, unit: &str, ours: Option<&str>) -> Result<Vec<String>, StepError> {
    let mut paths: Vec<String> = BEFORE_OURS.iter().map(|folder| format!("{folder}/{unit}")).collect();
    paths.retain(|path| fs::symlink_metadata(host.path(path)).is_ok());
    let (stem, kind) = unit.rsplit_once('.').unwrap_or((unit, "service"));
    let dashes = stem.match_indices('-').filter_map(|(at, _)| stem.get(..=at));
    let names: Vec<String> =
        std::iter::once(unit.to_owned()).chain(dashes.map(|part| format!("{part}.{kind}"))).collect();
    for (folder, name) in
        DROP_IN_FOLDERS.iter().flat_map(|folder| names.iter().map(move |name| (folder, name)))
    {
        let folder_path = format!("{folder}/{name}.d");
        let place = host.path(&folder_path);
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StepError::io("list", &place, error)),
        };
        let mut files: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        files.retain(|name| {
            Path::new(name).extension().is_some_and(|ext| ext == "conf") && !name.starts_with('.')
        });
        files.sort();
        let found = files.into_iter().map(|name| format!("{folder_path}/{name}"));
        paths.extend(found.filter(|path| Some(path.as_str()) != ours));
    }
    Ok(paths)
}

fn record_path(host: &Host, unit: &str) -> std::path::PathBuf {
    host.state("journal/units").join(format!("{unit}.json"))
}

/// A file's SHA-256; a folder's is that of its sorted names and their digests.
fn digest(host: &Host, path: &str) -> Result<String, StepError> {
    let place = host.path(path);
    if place.is_dir() {
        return folder_digest(host, &place);
    }
    let digest = host.hashes.sha256(&place).map_err(|error| StepError::io("hash", &place, error))?;
    Ok(digest.unwrap_or_else(|| "absent".to_owned()))
}

fn folder_digest(host: &Host, folder: &Path) -> Result<String, StepError> {
    let entries = fs::read_dir(folder).map_err(|error| StepError::io("list", folder, error))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut listing = String::new();
    for path in paths {
        let digest = host.hashes.sha256(&path).map_err(|error| StepError::io("hash", &path, error))?;
        listing.push_str(&path.to_string_lossy());
        listing.push(' ');
        listing.push_str(digest.as_deref().unwrap_or("-"));
        listing.push('\n');
    }
    Ok(hash_bytes(listing.as_bytes()))
}

/// Whether some target wants or requires the unit, as `systemctl enable` links it.
fn is_linked(host: &Host, name: &str) -> bool {
    let folders = fs::read_dir(host.path(FOLDER)).into_iter().flatten().flatten();
    folders
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "wants" || ext == "requires"))
        .any(|folder| folder.join(name).is_symlink())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(restart_on: &[String]) -> Wanted<'_> {
        Wanted {
            name: "etcd.service",
            content: Some("[Service]\nExecStart=/x\n".into()),
            drop_in: None,
            enabled: true,
            active: true,
            restart_on: Some(restart_on),
            no_block: false,
        }
    }

    #[test]
    fn a_unit_is_stale_when_a_file_is_other_than_at_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let config = dir.path().join("config");
        fs::write(&config, "one").unwrap();
        let paths = ["/config".to_owned()];
        let unit = unit(&paths);
        let none = Expected::default();
        assert!(unit.stale(&host, &none).unwrap().is_some(), "started by nobody we know");
        unit.record(&host, unit.digests(&host, &none).unwrap()).unwrap();
        assert_eq!(unit.stale(&host, &none).unwrap(), None);
        fs::write(&config, "two").unwrap();
        assert_eq!(unit.stale(&host, &none).unwrap().as_deref(), Some("/config changed"));
        fs::write(&config, "one").unwrap();
        assert_eq!(unit.stale(&host, &none).unwrap(), None, "put back is unchanged, whatever its time says");
    }

    #[test]
    fn a_file_that_drifted_and_will_be_put_back_restarts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        fs::write(dir.path().join("config"), "one").unwrap();
        let paths = ["/config".to_owned()];
        let unit = unit(&paths);
        unit.record(&host, unit.digests(&host, &Expected::default()).unwrap()).unwrap();
        fs::write(dir.path().join("config"), "drifted").unwrap();
        let file = |content: &str| rackwright_wire::step::Step {
            id: "x/config".to_owned(),
            needs: vec![],
            kind: StepKind::File {
                path: "/config".to_owned(),
                content: Some(content.to_owned()),
                mode: "0644".to_owned(),
                owner: "0:0".to_owned(),
                absent: false,
                secret: false,
            },
        };
        assert_eq!(unit.stale(&host, &Expected::of(&[file("one")], |_| true)).unwrap(), None);
        let will_change = unit.stale(&host, &Expected::of(&[file("new")], |_| true)).unwrap();
        assert_eq!(will_change.as_deref(), Some("/config changed"));
    }

    #[test]
    fn a_drop_in_that_is_not_ours_is_found_wherever_systemd_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        assert!(unit(&[]).strangers(&host).unwrap().is_empty());
        let put = |path: &str| {
            let place = dir.path().join(path);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, "[Service]\nMemoryMax=1G\n").unwrap();
        };
        put("etc/systemd/system/etcd.service.d/rackwright.conf");
        put("etc/systemd/system/etcd.service.d/notes.txt");
        put("etc/systemd/system/other.service.d/override.conf");
        let ours = Wanted { drop_in: Some("[Service]\n"), ..unit(&[]) };
        assert!(ours.strangers(&host).unwrap().is_empty());
        assert_eq!(unit(&[]).strangers(&host).unwrap().len(), 1, "ours of an earlier plan is a stranger too");
        put("etc/systemd/system/etcd.service.d/override.conf");
        let dashed = Wanted { name: "rackwright-data.service", ..unit(&[]) };
        assert!(dashed.strangers(&host).unwrap().is_empty());
        put("run/systemd/system/rackwright-.service.d/all.conf");
        put("etc/systemd/system.control/rackwright-data.service");
        assert_eq!(dashed.strangers(&host).unwrap().len(), 2, "a whole unit, and a drop-in for all of ours");
        put("run/systemd/system.control/etcd.service.d/50-MemoryMax.conf");
        let found = ours.strangers(&host).unwrap();
        let words: Vec<&str> = found.iter().map(|(_, change)| change.summary.as_str()).collect();
        let [first, second] = words.as_slice() else { panic!("{words:?}") };
        assert_eq!(*first, "remove /etc/systemd/system/etcd.service.d/override.conf");
        assert_eq!(*second, "remove /run/systemd/system.control/etcd.service.d/50-MemoryMax.conf");
        assert!(found[0].1.detail.contains("-MemoryMax=1G"), "the plan shows what goes: {found:?}");
    }

    #[test]
    fn the_record_reads_like_this() {
        let paths = BTreeMap::from([
            ("/etc/x".to_owned(), "ab".repeat(32)),
            ("/etc/y".to_owned(), "absent".to_owned()),
        ]);
        let record = Record { version: RECORD_VERSION, unit: "etcd.service".to_owned(), paths };
        let text = serde_json::to_string_pretty(&record).unwrap();
        insta::assert_snapshot!(text);
        let newer = serde_json::from_str::<Record>(&text.replace("\"version\": 1", "\"version\": 2"));
        assert!(newer.unwrap_err().to_string().starts_with("version 2, this build reads 1"));
    }

    #[test]
    fn a_unit_in_a_restart_loop_does_not_count_as_running() {
        let looping =
            UnitState { active: "activating".into(), sub: "auto-restart".into(), ..UnitState::default() };
        let starting = UnitState { active: "activating".into(), sub: "start".into(), ..UnitState::default() };
        let patient = Wanted { no_block: true, ..unit(&[]) };
        assert!(!patient.runs(&looping));
        assert!(patient.runs(&starting));
        assert!(!unit(&[]).runs(&starting));
    }
}
