//! From flags to a driver: inventory, playbooks, artifacts, keys, secrets, authorities.

use super::Place;
use super::watch::Watch;
use crate::cli::artifacts as artifacts_cli;
use crate::out::Out;
use crate::report::Report;
use rackwright_artifacts::{Artifacts, Lock};
use rackwright_core::finding::Finding;
use rackwright_core::inventory::Inventory;
use rackwright_core::playbook::Playbook;
use rackwright_lab::{Lab, LabName};
use rackwright_rack::agent::AgentBinary;
use rackwright_rack::connect::{FirstUse, Rack};
use rackwright_rack::drive::{Driver, now_s};
use rackwright_rack::ledger::{HostLedger, LedgerError};
use rackwright_rack::pki::{Authorities, PkiError};
use rackwright_rack::progress::Teller;
use rackwright_rack::ramp::Patience;
use rackwright_rack::setup::{self, Provider, SetupError};
use rackwright_rack::state::{StateDir, StateError};
use rackwright_rack::survey::{LocalArtifact, Wanted};
use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Everything that acting on a rack needs. All that is wrong with the input is said at once.
pub(super) async fn driver(place: &Place, out: Out) -> Result<(Driver, Watch), Report> {
    let inventory = inventory(&place.inventory)?;
    let playbooks = playbooks(place.playbooks.as_deref())?;
    let artifacts = artifacts_cli::load(&place.artifacts)?;
    release(&inventory, artifacts.lock())?;
    let provider = provider(&inventory);
    let state = StateDir::open(&inventory.cluster.name).map_err(state)?;
    let mut ledger = HostLedger::open(&state).map_err(Report::new)?;
    let now = jiff::Timestamp::now().to_string();
    setup::learn(&mut ledger, &inventory, &provider, &now).map_err(setup)?;
    let targets = setup::targets(&inventory, &provider).map_err(setup)?;
    let secrets = setup::secrets(&inventory, &provider).map_err(setup)?;
    let authorities = Authorities::open(&state, &inventory.cluster.name, now_s()).map_err(pki)?;
    let agent = AgentBinary::open(&beside("rackwright-agent")?)
        .map_err(|error| Report::new(error).help("rackwright-agent must lie beside rackwright"))?;
    let mut files = cached(&artifacts, out).await?;
    files.push(own("rackwright-agent", &agent)?);
    let controller = AgentBinary::open(&own_path()?).map_err(Report::new)?;
    files.push(own("rackwright", &controller)?);
    let servers: Vec<String> = inventory.servers.iter().map(|server| server.name.clone()).collect();
    let wanted =
        Wanted { inventory, playbooks, artifacts: files, pki: authorities.fingerprints(), secrets, agent };
    let first_use = if place.accept_new { FirstUse::Accept } else { FirstUse::Refuse };
    let rack = Rack::new(targets, ledger, first_use, Patience::default());
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let watch = Watch::start(out, &servers, receiver);
    let driver = Driver::new(wanted, rack, authorities, state, Teller::new(sender)).map_err(Report::new)?;
    Ok((driver, watch))
}

/// The inventory and the authorities, for what needs no server.
pub(super) fn authorities(place: &Place) -> Result<(Inventory, Authorities), Report> {
    let inventory = inventory(&place.inventory)?;
    let state = StateDir::open(&inventory.cluster.name).map_err(state)?;
    let authorities = Authorities::open(&state, &inventory.cluster.name, now_s()).map_err(pki)?;
    Ok((inventory, authorities))
}

/// The servers that `--only` names, or all.
pub(super) fn chosen<'d>(place: &Place, driver: &'d Driver) -> Result<Vec<&'d str>, Report> {
    let all = driver.servers();
    for name in &place.only {
        if !all.contains(&name.as_str()) {
            let unknown = format!("find a server named {name:?} in the inventory");
            let known = format!("it has {}", all.join(", "));
            return Err(Report::new(unknown).help(known).exit(Report::BAD_INPUT));
        }
    }
    let wanted = |name: &&str| place.only.is_empty() || place.only.iter().any(|only| only == name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Writes a file that only its owner reads.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), Report> {
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|cause: std::io::Error| Report::new(Unwritten { path: path.to_owned(), cause }))
}

/// A state folder's error with its help.
pub(super) fn state(error: StateError) -> Report {
    let locked = matches!(error, StateError::Locked { .. });
    let report = Report::new(error);
    if locked { report.help("wait for the other one; the lock ends with its process") } else { report }
}

/// An authority's error with its help.
fn pki(error: PkiError) -> Report {
    let help = error.help();
    let report = Report::new(error);
    match help {
        Some(help) => report.help(help),
        None => report,
    }
}

#[derive(Debug, thiserror::Error)]
#[error("write {}", path.display())]
struct Unwritten {
    path: PathBuf,
    #[source]
    cause: std::io::Error,
}

#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
struct Unread {
    path: PathBuf,
    #[source]
    cause: std::io::Error,
}

/// Everything that is wrong with files that people wrote.
#[derive(Debug)]
pub(super) struct Wrong(pub(super) Vec<Finding>);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let findings = self.0.len();
        write!(
            f,
            "use the input: {findings} finding{}, nothing was touched",
            if findings == 1 { "" } else { "s" }
        )?;
        self.0.iter().try_for_each(|finding| write!(f, "\n{finding}"))
    }
}

impl std::error::Error for Wrong {}

fn wrong(findings: Vec<Finding>) -> Report {
    Report::new(Wrong(findings)).exit(Report::BAD_INPUT)
}

fn inventory(path: &Path) -> Result<Inventory, Report> {
    let text = std::fs::read_to_string(path).map_err(|cause| {
        let help = "inventory/example.toml is a complete one; name yours with --inventory";
        Report::new(Unread { path: path.to_owned(), cause }).help(help).exit(Report::BAD_INPUT)
    })?;
    Inventory::parse(&path.display().to_string(), &text).map_err(wrong)
}

fn playbooks(folder: Option<&Path>) -> Result<Vec<Playbook>, Report> {
    let Some(folder) = folder else { return Playbook::builtin().map_err(wrong) };
    let unread = |cause| Report::new(Unread { path: folder.to_owned(), cause }).exit(Report::BAD_INPUT);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = std::fs::read_to_string(&path).map_err(unread)?;
            files.push((path.display().to_string(), text));
        }
    }
    files.sort();
    let files = files.iter().map(|(file, text)| (file.as_str(), text.as_str()));
    Playbook::parse_all(files).map_err(wrong)
}

/// What the lab says about the servers that it made.
fn provider(inventory: &Inventory) -> Provider {
    if inventory.lab.is_none() {
        return Provider::default();
    }
    let Ok(name) = inventory.cluster.name.parse::<LabName>() else { return Provider::default() };
    let lab = Lab::new(name);
    let known = |name: &String| Some((name.clone(), lab.host_key(name).ok()?));
    Provider {
        key: Some(lab.key_path()).filter(|path| path.exists()),
        host_keys: inventory.servers.iter().filter_map(|server| known(&server.name)).collect(),
        makes_secrets: true,
    }
}

fn setup(error: SetupError) -> Report {
    let help = match &error {
        SetupError::Credential(error) => Some(error.help().to_owned()),
        SetupError::Ledger(LedgerError::Contradiction { server, .. }) => Some(format!(
            "if {server} was reinstalled on purpose, remove [hosts.{server}] from hosts.toml in the cluster's state folder"
        )),
        SetupError::Ledger(_) => None,
        SetupError::Secret { .. } => Some("set the variable, or write the file, and run again".to_owned()),
    };
    let report = Report::new(error).exit(Report::BAD_INPUT);
    match help {
        Some(help) => report.help(help),
        None => report,
    }
}

/// The lock decides what is built: an inventory that asks for another release is told so.
fn release(inventory: &Inventory, lock: &Lock) -> Result<(), Report> {
    let (wanted, name) = (&inventory.cluster.kubernetes, "kube-apiserver");
    let pinned = lock.artifact(name).map(|artifact| artifact.version.as_str());
    if pinned == Some(wanted) {
        return Ok(());
    }
    let pinned = pinned.unwrap_or("no release");
    Err(Report::new(format!("build Kubernetes {wanted}: the artifact lock pins {pinned}"))
        .help(format!(
            "write `kubernetes = \"{pinned}\"` into the inventory, or name another lock with --lock"
        ))
        .exit(Report::BAD_INPUT))
}

/// The lock's artifacts, had first where they are missing.
async fn cached(artifacts: &Artifacts, out: Out) -> Result<Vec<LocalArtifact>, Report> {
    let names: Vec<&str> = artifacts.lock().artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    let resolved = artifacts.ensure(&names, artifacts_cli::progress(out).as_ref()).await;
    let resolved = resolved.map_err(Report::new)?;
    // Playbooks call an image by its short name, which a binary of the lock may have too.
    let local = |of: rackwright_artifacts::Resolved| {
        let image = of.name.strip_prefix("image-").filter(|_| of.reference.is_some()).map(str::to_owned);
        let is_image = image.is_some();
        let name = image.unwrap_or(of.name);
        (is_image, LocalArtifact { name, sha256: of.sha256, path: of.path, bytes: of.size_bytes })
    };
    let mut local: Vec<_> = resolved.into_iter().map(local).collect();
    local.sort_by_key(|(is_image, _)| *is_image);
    Ok(local.into_iter().map(|(_, artifact)| artifact).collect())
}

/// One of our own binaries, which no lockfile pins: servers run what the controller was built with.
fn own(name: &str, binary: &AgentBinary) -> Result<LocalArtifact, Report> {
    let path = binary.path.clone();
    let bytes =
        std::fs::metadata(&path).map_err(|cause| Report::new(Unread { path: path.clone(), cause }))?.len();
    Ok(LocalArtifact { name: name.to_owned(), sha256: binary.sha256.clone(), path, bytes })
}

fn own_path() -> Result<PathBuf, Report> {
    std::env::current_exe().map_err(|cause| Report::new(format!("find this program's own file: {cause}")))
}

fn beside(name: &str) -> Result<PathBuf, Report> {
    Ok(own_path()?.with_file_name(name))
}
