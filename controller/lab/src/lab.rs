//! The door to a lab: what it would change, up, down, and what can be done to its servers in between.

use crate::base;
use crate::changes::{Before, Changes};
use crate::error::LabError;
use crate::group::Hierarchies;
use crate::lock::Lock;
use crate::paths::{LabPaths, Paths};
use crate::raise::{self, Event, PATIENCE, Raised, Raising, Tell, Up};
use crate::record::{self, Journal, LinkState, Record};
use crate::site::Site;
use crate::spec::{LabName, LabSpec, Rate, ServerSpec};
use crate::status::{LabStatus, ServerState, ServerStatus};
use crate::tool::{self, Tools};
use crate::{mount, names, network, packages, process, settings, undo};
use std::path::PathBuf;
use std::time::Instant;

/// A lab, by its name; it may be up or not.
#[derive(Debug, Clone)]
pub struct Lab {
    name: LabName,
    paths: Paths,
}

impl Lab {
    /// The lab of that name on this machine.
    pub fn new(name: LabName) -> Self {
        Self { name, paths: Paths::of_this_machine() }
    }

    /// Its name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// The operator's private key, which every server of the lab accepts for root.
    pub fn key_path(&self) -> PathBuf {
        self.folders().key()
    }

    /// The servers' host keys, in the format of OpenSSH.
    pub fn known_hosts_path(&self) -> PathBuf {
        self.folders().known_hosts()
    }

    /// What a server wrote to its console.
    pub fn console_path(&self, server: &str) -> PathBuf {
        self.folders().server(server).console()
    }

    /// The SSH host key that a server was made with, such as `ssh-ed25519 AAAA...`: what a provider's API would
    /// tell.
    ///
    /// # Errors
    /// [`LabError::File`] before the lab is up, [`LabError::NoHostKey`].
    pub fn host_key(&self, server: &str) -> Result<String, LabError> {
        raise::host_key(&self.folders(), server)
    }

    /// What the lab that is up was raised from.
    ///
    /// # Errors
    /// [`LabError::NoLab`].
    pub fn spec(&self) -> Result<LabSpec, LabError> {
        self.read().map(|(_, spec)| spec)
    }

    /// What raising the lab would change on this machine. Changes nothing.
    ///
    /// # Errors
    /// [`LabError::Spec`], [`LabError::Differs`].
    pub async fn plan(&self, spec: &LabSpec) -> Result<Changes, LabError> {
        spec.check()?;
        let boot = process::boot()?;
        let is_up = match record::read(&self.folders().record())? {
            Some(record) => lives(&record, spec, &boot)?,
            None => false,
        };
        let has_module = settings::has_bridge_module();
        let packages = packages::missing(&tool::path(), !has_module);
        if packages.is_empty() {
            network::refuse_overlap(spec).await?;
        }
        let hierarchies = Hierarchies::among(&mount::all()?);
        let before = Before {
            is_up,
            packages,
            modules: if has_module { vec![] } else { vec![settings::BRIDGE_MODULE] },
            settings: settings::differing(settings::read_or_module_default),
            has_base: base::place(self.paths.cache()).exists(),
            hierarchies: &hierarchies,
        };
        Ok(Changes::of(spec, &self.paths, &before))
    }

    /// Raises the lab: what a dead one of its name left is cleared, one that is up gets its stopped servers started.
    ///
    /// # Errors
    /// Whatever could not be made; `down` or another `up` clears what was.
    pub async fn up(&self, spec: &LabSpec, tell: &(dyn Fn(Event) + Send + Sync)) -> Result<Up, LabError> {
        spec.check()?;
        need_root()?;
        let lock = Lock::take(&self.paths.lock(&self.name), PATIENCE).await?;
        let boot = process::boot()?;
        if let Some(record) = record::read(&self.folders().record())? {
            if lives(&record, spec, &boot)? {
                return Box::pin(self.start_stopped(&record, &lock, tell)).await;
            }
            tell(Event::Clearing);
            self.clear(&lock, &record, &boot).await?;
        }
        Box::pin(Raising { paths: &self.paths, spec, boot, lock: &lock, tell }.all()).await
    }

    /// Takes the lab away with everything that it made; says whether there was one.
    ///
    /// # Errors
    /// What would not go. The record stays, so that it can be repeated.
    pub async fn down(&self) -> Result<bool, LabError> {
        need_root()?;
        let lock = Lock::take(&self.paths.lock(&self.name), PATIENCE).await?;
        let boot = process::boot()?;
        let record = record::read(&self.folders().record())?;
        let existed = record.is_some() || self.folders().folder().exists();
        if existed {
            self.clear(&lock, &record.unwrap_or_default(), &boot).await?;
        }
        lock.remove();
        // Only the last lab leaves the folder of all labs empty.
        let _others_are_there = std::fs::remove_dir(self.paths.state());
        Ok(existed)
    }

    /// What the servers are doing now.
    ///
    /// # Errors
    /// [`LabError::NoLab`].
    pub async fn status(&self) -> Result<LabStatus, LabError> {
        let (record, spec) = self.read()?;
        let boot = process::boot()?;
        let hierarchies = Hierarchies::among(&mount::all()?);
        let (cut, rates) = (network::cut_links().await?, network::rates().await?);
        let status = |server: &ServerSpec| {
            let process = record.process(&server.name).filter(|id| process::is_alive(id, &boot));
            let link = names::host_link(&self.name, &server.name);
            let group = names::inner_group(&self.name, &server.name);
            ServerStatus {
                name: server.name.clone(),
                role: server.role.clone(),
                address: server.address,
                state: match process {
                    None => ServerState::Stopped,
                    Some(_) if cut.contains(&link) => ServerState::Cut,
                    Some(_) => ServerState::Running,
                },
                pid: process.map(|id| id.pid),
                cpus: server.cpus,
                memory: server.memory,
                memory_used: process.and_then(|_| hierarchies.memory_used(&group)),
                rate: rates.get(&link).copied(),
            }
        };
        Ok(LabStatus {
            name: self.name.to_string(),
            subnet: spec.subnet.to_string(),
            complete: record.complete && record.boot == boot,
            key: self.key_path(),
            servers: spec.servers.iter().map(status).collect(),
        })
    }

    /// Drops everything on a server's link, in both directions; its carrier stays.
    ///
    /// # Errors
    /// [`LabError::NoServer`], [`LabError::Stopped`].
    pub async fn cut(&self, server: &str) -> Result<(), LabError> {
        self.change_link(server, |link| link.cut = true).await
    }

    /// Lets everything through a server's link again; its rate stays.
    ///
    /// # Errors
    /// [`LabError::NoServer`], [`LabError::Stopped`].
    pub async fn heal(&self, server: &str) -> Result<(), LabError> {
        self.change_link(server, |link| link.cut = false).await
    }

    /// Limits a server's link in both directions, or lifts the limit. A server that reboots by itself gets a new
    /// link, which is whole and not limited; one that is killed and started keeps what was set.
    ///
    /// # Errors
    /// [`LabError::NoServer`], [`LabError::Stopped`].
    pub async fn shape(&self, server: &str, rate: Option<Rate>) -> Result<(), LabError> {
        self.change_link(server, |link| link.rate = rate).await
    }

    /// Takes a server's power away, as a power cut does. What it has not written to a disk is lost.
    ///
    /// # Errors
    /// [`LabError::NoServer`], what would not go.
    pub async fn kill(&self, server: &str) -> Result<(), LabError> {
        let (_lock, record, site) = self.open().await?;
        site.power_off(&record, site.spec.server(server)?).await
    }

    /// Gives a server its power back and waits for SSH. Its disks are as they were, and its link as it was set.
    ///
    /// # Errors
    /// [`LabError::NoServer`], [`LabError::Running`], [`LabError::Late`].
    pub async fn start(&self, server: &str) -> Result<Raised, LabError> {
        let (_lock, record, site) = self.open().await?;
        let spec = site.spec.server(server)?;
        if site.running(&record, server).is_some() {
            return Err(LabError::Running { server: server.to_owned() });
        }
        Box::pin(site.restart(&record, spec)).await
    }

    fn folders(&self) -> LabPaths {
        self.paths.lab(&self.name)
    }

    fn read(&self) -> Result<(Record, LabSpec), LabError> {
        let no_lab = || LabError::NoLab { name: self.name.to_string() };
        let record = record::read(&self.folders().record())?.ok_or_else(no_lab)?;
        let spec = record.spec.clone().ok_or_else(no_lab)?;
        Ok((record, spec))
    }

    /// Locks the lab and opens its record to change it.
    async fn open(&self) -> Result<(Lock, Record, Site), LabError> {
        need_root()?;
        // Before the lock: taking it makes the folder that would hold a lab.
        self.read()?;
        let lock = Lock::take(&self.paths.lock(&self.name), PATIENCE).await?;
        let (record, site) = self.site(&lock)?;
        Ok((lock, record, site))
    }

    fn site(&self, lock: &Lock) -> Result<(Record, Site), LabError> {
        let (record, spec) = self.read()?;
        let journal = Journal::open(&self.folders().record())?;
        let site = Site::new(&self.paths, record.base.clone(), spec, journal, Tools::that_hold(lock)?)?;
        Ok((record, site))
    }

    async fn change_link(&self, server: &str, change: impl FnOnce(&mut LinkState)) -> Result<(), LabError> {
        let (_lock, record, site) = self.open().await?;
        let spec = site.spec.server(server)?;
        let mut link = record.links.get(server).cloned().unwrap_or_default();
        change(&mut link);
        site.change_link(spec, &link).await
    }

    async fn start_stopped(&self, record: &Record, lock: &Lock, tell: Tell<'_>) -> Result<Up, LabError> {
        let begin = Instant::now();
        let (_, site) = self.site(lock)?;
        let mut raised = Vec::new();
        for server in site.spec.servers.iter().filter(|one| site.running(record, &one.name).is_none()) {
            let one = site.restart(record, server).await?;
            tell(Event::Ready(one.clone()));
            raised.push(one);
        }
        Ok(Up { raised, took: begin.elapsed() })
    }

    /// Undoes the record, then removes the lab's folder, and with the last lab what all of them shared.
    async fn clear(&self, lock: &Lock, record: &Record, boot: &str) -> Result<(), LabError> {
        let tools = Tools::that_hold(lock)?;
        undo::undo(&tools, record, &Hierarchies::among(&mount::all()?), boot).await?;
        let machine = Lock::take(&self.paths.machine_lock(), PATIENCE).await?;
        undo::remove_folder(self.folders().folder())?;
        if std::fs::remove_dir(self.paths.labs()).is_ok() {
            settings::restore(&self.paths.machine_record(), boot)?;
            machine.remove();
        }
        Ok(())
    }
}

/// Whether a lab with that record is up, and the same as the one wanted. One that never came to its end, or that
/// a reboot of the machine took, is dead.
fn lives(record: &Record, spec: &LabSpec, boot: &str) -> Result<bool, LabError> {
    if !record.complete || record.boot != boot {
        return Ok(false);
    }
    if record.spec.as_ref() == Some(spec) {
        Ok(true)
    } else {
        Err(LabError::Differs { name: spec.name.to_string() })
    }
}

fn need_root() -> Result<(), LabError> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(LabError::NotRoot) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::{lab, server};

    #[test]
    fn only_a_whole_lab_of_this_boot_lives() {
        let spec = lab(vec![server("ml1", 11)]);
        let whole =
            Record { spec: Some(spec.clone()), boot: "b1".to_owned(), complete: true, ..Record::default() };
        assert!(lives(&whole, &spec, "b1").unwrap());
        assert!(!lives(&whole, &spec, "b2").unwrap());
        let cut_short = Record { complete: false, ..whole.clone() };
        assert!(!lives(&cut_short, &spec, "b1").unwrap());
        let other = lab(vec![server("ml1", 11), server("ml2", 12)]);
        assert!(matches!(lives(&whole, &other, "b1"), Err(LabError::Differs { .. })));
    }

    #[tokio::test]
    async fn a_lab_that_is_not_there_has_no_status_and_says_so() {
        let lab = Lab { name: "none".parse().unwrap(), paths: Paths::at("/nowhere", "/nowhere") };
        let error = lab.status().await.unwrap_err();
        assert_eq!(error.to_string(), "find a lab named none");
    }
}
