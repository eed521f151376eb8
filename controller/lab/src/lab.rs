//! The door to a lab: what it would change, up, down, and what can be done to its servers in between.

use crate::base::{self, Recipe, Workshop};
use crate::changes::{self, Before, Changes};
use crate::error::{LabError, file_error};
use crate::group::Hierarchies;
use crate::lock::Lock;
use crate::paths::{LabPaths, Paths};
use crate::record::{self, Entry, Journal, LinkState, Record};
use crate::site::Site;
use crate::spec::{LabName, LabSpec, Rate, ServerSpec};
use crate::status::{LabStatus, ServerState, ServerStatus};
use crate::{launch, mount, names, network, packages, process, settings, tool, undo};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long another command on the same lab is waited for; a whole `lab up` fits into it.
const PATIENCE: Duration = Duration::from_mins(1);
/// The module that shows bridged packets to iptables, which kube-proxy in the servers needs and cannot load.
const BRIDGE_MODULE: &str = "br_netfilter";

/// Something worth telling while a lab is raised.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A dead lab of the same name is taken away first.
    Clearing,
    /// Packages are being installed.
    Installing(Vec<String>),
    /// The base image is being made, which usually takes so many seconds.
    MakingBase(u64),
    /// The base image is there, after so long.
    MadeBase(Duration),
    /// So many servers were given power.
    Starting(usize),
    /// A server answers SSH.
    Ready(Raised),
}

/// A server that answers SSH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// Its host name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// From power to SSH's banner.
    pub took: Duration,
}

/// A lab that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// The servers that were started now, in the order in which they answered.
    pub raised: Vec<Raised>,
    /// From the base image being there to the last server's answer.
    pub took: Duration,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clearing => write!(f, "clearing what a dead lab of this name left"),
            Self::Installing(names) => write!(f, "installing {}", names.join(" ")),
            Self::MakingBase(usual_s) => write!(f, "making the base image (usually {usual_s} s)"),
            Self::MadeBase(took) => write!(f, "the base image is there after {:.1} s", took.as_secs_f64()),
            Self::Starting(count) => write!(f, "starting {count} servers"),
            Self::Ready(raised) => {
                let (name, address, took) = (&raised.name, raised.address, raised.took.as_secs_f64());
                write!(f, "{name} answers SSH at {address} after {took:.1} s")
            }
        }
    }
}

/// A lab, by its name; it may be up or not.
#[derive(Debug, Clone)]
pub struct Lab {
    name: LabName,
    paths: Paths,
}

impl Lab {
    /// The lab of that name on this machine.
    pub fn new(name: LabName) -> Self {
        Self {
            name,
            paths: Paths::of_this_machine(),
        }
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

    /// A server's SSH host key, such as `ssh-ed25519 AAAA...`: what a provider's API would tell.
    ///
    /// # Errors
    /// [`LabError::File`] before the server's first start.
    pub fn host_key(&self, server: &str) -> Result<String, LabError> {
        let path = self.folders().server(server).host_key();
        let text = std::fs::read_to_string(&path).map_err(file_error("read", &path))?;
        Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
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
        let bridged = |key: &str| settings::read(key).or_else(|| bridge_default(key));
        let hierarchies = Hierarchies::among(&mount::all()?);
        let before = Before {
            is_up,
            packages: packages::missing(&tool::path(), !has_bridge_module()),
            modules: if has_bridge_module() {
                vec![]
            } else {
                vec![BRIDGE_MODULE]
            },
            settings: settings::differing(bridged),
            has_base: Recipe::of(spec).place(self.paths.cache()).exists(),
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
        let _lock = Lock::take(&self.paths.lock(&self.name), PATIENCE).await?;
        let boot = process::boot()?;
        if let Some(record) = record::read(&self.folders().record())? {
            if lives(&record, spec, &boot)? {
                return Box::pin(self.start_stopped(&record, tell)).await;
            }
            tell(Event::Clearing);
            self.clear(&record, &boot).await?;
        }
        let missing = packages::missing(&tool::path(), !has_bridge_module());
        if !missing.is_empty() {
            tell(Event::Installing(
                missing.iter().map(|&name| name.to_owned()).collect(),
            ));
            packages::install(&missing).await?;
        }
        self.refuse_what_is_in_the_way(spec).await?;
        Box::pin(self.raise(spec, boot, tell)).await
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
            self.clear(&record.unwrap_or_default(), &boot).await?;
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
        let cut = network::cut_links().await?;
        let status = |server: &ServerSpec| {
            let process = record
                .process(&server.name)
                .filter(|id| process::is_alive(id, &boot));
            let state = match process {
                None => ServerState::Stopped,
                Some(_) if cut.contains(&names::host_link(&self.name, &server.name)) => ServerState::Cut,
                Some(_) => ServerState::Running,
            };
            let group = names::server_group(&self.name, &server.name);
            ServerStatus {
                name: server.name.clone(),
                role: server.role.clone(),
                address: server.address,
                state,
                pid: process.map(|id| id.pid),
                cpus: server.cpus,
                memory: server.memory,
                memory_used: process.and_then(|_| hierarchies.memory_used(&group)),
                rate: record.links.get(&server.name).and_then(|link| link.rate),
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

    /// Limits a server's link in both directions, or lifts the limit.
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
            return Err(LabError::Running {
                server: server.to_owned(),
            });
        }
        Box::pin(start(&site, &record, spec)).await
    }

    fn folders(&self) -> LabPaths {
        self.paths.lab(&self.name)
    }

    fn read(&self) -> Result<(Record, LabSpec), LabError> {
        let no_lab = || LabError::NoLab {
            name: self.name.to_string(),
        };
        let record = record::read(&self.folders().record())?.ok_or_else(no_lab)?;
        let spec = record.spec.clone().ok_or_else(no_lab)?;
        Ok((record, spec))
    }

    /// Locks the lab and opens its record to change it.
    async fn open(&self) -> Result<(Lock, Record, Site), LabError> {
        need_root()?;
        self.read()?;
        let lock = Lock::take(&self.paths.lock(&self.name), PATIENCE).await?;
        let (record, spec) = self.read()?;
        let site = self.site(spec, Journal::open(&self.folders().record())?, process::boot()?)?;
        Ok((lock, record, site))
    }

    fn site(&self, spec: LabSpec, journal: Journal, boot: String) -> Result<Site, LabError> {
        Ok(Site {
            base: Recipe::of(&spec).place(self.paths.cache()),
            spec,
            paths: self.folders(),
            hierarchies: Hierarchies::among(&mount::all()?),
            journal: Mutex::new(journal),
            boot,
        })
    }

    async fn change_link(&self, server: &str, change: impl FnOnce(&mut LinkState)) -> Result<(), LabError> {
        let (_lock, record, site) = self.open().await?;
        let old = record.links.get(server).cloned().unwrap_or_default();
        let mut new = old.clone();
        change(&mut new);
        site.change_link(site.spec.server(server)?, &old, &new).await
    }

    async fn start_stopped(
        &self,
        record: &Record,
        tell: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<Up, LabError> {
        let begin = Instant::now();
        let (_, spec) = self.read()?;
        let site = self.site(spec, Journal::open(&self.folders().record())?, process::boot()?)?;
        let mut raised = Vec::new();
        for server in site
            .spec
            .servers
            .iter()
            .filter(|one| site.running(record, &one.name).is_none())
        {
            let one = start(&site, record, server).await?;
            tell(Event::Ready(one.clone()));
            raised.push(one);
        }
        Ok(Up {
            raised,
            took: begin.elapsed(),
        })
    }

    /// Records everything first, then makes it.
    async fn raise(
        &self,
        spec: &LabSpec,
        boot: String,
        tell: &(dyn Fn(Event) + Send + Sync),
    ) -> Result<Up, LabError> {
        let journal = self.settle(spec, &boot).await?;
        let site = Arc::new(self.site(spec.clone(), journal, boot)?);
        let begin = Instant::now();
        if !site.base.exists() {
            tell(Event::MakingBase(base::USUAL_S));
            self.make_base(&site).await?;
            tell(Event::MadeBase(begin.elapsed()));
        }
        let begin = Instant::now();
        let key: Arc<str> = self.make_key().await?.into();
        network::raise(&self.name, spec.subnet).await?;
        tell(Event::Starting(spec.servers.len()));
        let mut starts = JoinSet::new();
        for server in spec.servers.clone() {
            let (site, key) = (Arc::clone(&site), Arc::clone(&key));
            starts.spawn(async move {
                let took = site.raise(&server, &key).await?;
                Ok::<_, LabError>(Raised {
                    name: server.name,
                    address: server.address,
                    took,
                })
            });
        }
        let mut raised = Vec::new();
        while let Some(one) = starts.join_next().await {
            let one = one.map_err(|cause| LabError::Start {
                command: "a server".to_owned(),
                cause: cause.into(),
            })??;
            tell(Event::Ready(one.clone()));
            raised.push(one);
        }
        self.note_host_keys(spec)?;
        launch::append(&site.journal, &Entry::Complete)?;
        Ok(Up {
            raised,
            took: begin.elapsed(),
        })
    }

    /// Opens the record, so that other labs see this one, and changes what all labs share.
    async fn settle(&self, spec: &LabSpec, boot: &str) -> Result<Journal, LabError> {
        let _machine = Lock::take(&self.paths.machine_lock(), PATIENCE).await?;
        let mut journal = Journal::create(&self.folders().record(), boot, spec)?;
        journal.write(&Entry::Making {
            things: changes::things(spec, &self.paths),
        })?;
        if !has_bridge_module() {
            // A kernel without it has no bridged packets to show; kube-proxy says so where it matters.
            let _none = tool::run("modprobe", [BRIDGE_MODULE]).await;
        }
        settings::apply(&self.paths.machine_record(), boot)?;
        Ok(journal)
    }

    async fn make_base(&self, site: &Site) -> Result<(), LabError> {
        let workshop = Workshop {
            lab: &self.name,
            cache: self.paths.cache(),
            paths: &site.paths,
            hierarchies: &site.hierarchies,
            journal: &site.journal,
            boot: &site.boot,
        };
        Box::pin(workshop.ensure(&Recipe::of(&site.spec)))
            .await
            .map(|_| ())
    }

    /// Makes the operator's key pair and returns its public half.
    async fn make_key(&self) -> Result<String, LabError> {
        let key = self.key_path();
        let comment = format!("operator-of-lab-{}", self.name);
        let words = ["-q", "-t", "ed25519", "-N", "", "-C", &comment, "-f"].map(std::ffi::OsString::from);
        tool::run(
            "ssh-keygen",
            words.into_iter().chain([key.clone().into_os_string()]),
        )
        .await?;
        let public = key.with_extension("pub");
        std::fs::read_to_string(&public).map_err(file_error("read", &public))
    }

    fn note_host_keys(&self, spec: &LabSpec) -> Result<(), LabError> {
        let mut text = String::new();
        for server in &spec.servers {
            let key = self.host_key(&server.name)?;
            text.extend([
                server.address.to_string(),
                ",".to_owned(),
                server.name.clone(),
                " ".to_owned(),
                key,
            ]);
            text.push('\n');
        }
        base::place_file(&self.known_hosts_path(), 0o644, text.as_bytes())
    }

    async fn refuse_what_is_in_the_way(&self, spec: &LabSpec) -> Result<(), LabError> {
        let others = network::in_the_way(&names::lab_wide(&self.name), spec.subnet).await?;
        if others.is_empty() {
            return Ok(());
        }
        let fault = format!(
            "{} is in use on this machine by {}",
            spec.subnet,
            others.join(", ")
        );
        Err(LabError::Spec { faults: vec![fault] })
    }

    /// Undoes the record, then removes the lab's folder, and with the last lab what all of them shared.
    async fn clear(&self, record: &Record, boot: &str) -> Result<(), LabError> {
        undo::undo(record, &Hierarchies::among(&mount::all()?), boot).await?;
        let machine = Lock::take(&self.paths.machine_lock(), PATIENCE).await?;
        undo::remove_folder(self.folders().folder())?;
        if std::fs::remove_dir(self.paths.labs()).is_ok() {
            settings::restore(&self.paths.machine_record(), boot)?;
            machine.remove();
        }
        Ok(())
    }
}

/// Starts a server that does not run; what its last end left is taken away first.
async fn start(site: &Site, record: &Record, server: &ServerSpec) -> Result<Raised, LabError> {
    site.power_off(record, server).await?;
    let link = record.links.get(&server.name).cloned().unwrap_or_default();
    let took = site.power_on(server, &link).await?;
    Ok(Raised {
        name: server.name.clone(),
        address: server.address,
        took,
    })
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
        Err(LabError::Differs {
            name: spec.name.to_string(),
        })
    }
}

fn has_bridge_module() -> bool {
    settings::read("net.bridge.bridge-nf-call-iptables").is_some()
}

/// What a setting will be once the module is loaded.
fn bridge_default(key: &str) -> Option<String> {
    (key == "net.bridge.bridge-nf-call-iptables").then(|| "1".to_owned())
}

fn need_root() -> Result<(), LabError> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(LabError::NotRoot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::{lab, server};

    #[test]
    fn only_a_whole_lab_of_this_boot_lives() {
        let spec = lab(vec![server("ml1", 11)]);
        let whole = Record {
            spec: Some(spec.clone()),
            boot: "b1".to_owned(),
            complete: true,
            ..Record::default()
        };
        assert!(lives(&whole, &spec, "b1").unwrap());
        assert!(!lives(&whole, &spec, "b2").unwrap());
        let cut_short = Record {
            complete: false,
            ..whole.clone()
        };
        assert!(!lives(&cut_short, &spec, "b1").unwrap());
        let other = lab(vec![server("ml1", 11), server("ml2", 12)]);
        assert!(matches!(
            lives(&whole, &other, "b1"),
            Err(LabError::Differs { .. })
        ));
    }

    #[tokio::test]
    async fn a_lab_that_is_not_there_has_no_status_and_says_so() {
        let lab = Lab {
            name: "none".parse().unwrap(),
            paths: Paths::at("/nowhere", "/nowhere"),
        };
        let error = lab.status().await.unwrap_err();
        assert_eq!(error.to_string(), "find a lab named none");
    }
}
