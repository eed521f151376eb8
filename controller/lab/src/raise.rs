//! Raising a lab, in order: the record, what all labs share, the base image, the network, and all servers at once.

use crate::base::{self, Workshop};
use crate::changes;
use crate::error::{LabError, file_error};
use crate::launch;
use crate::lock::Lock;
use crate::network;
use crate::packages;
use crate::paths::{LabPaths, Paths};
use crate::record::{Entry, Journal};
use crate::settings;
use crate::site::Site;
use crate::spec::{LabSpec, ServerSpec};
use crate::tool::{self, Tools};
use rackwright_wire::words::counted;
use std::ffi::OsString;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long another command on the same lab, or on what all labs share, is waited for; a whole `lab up`
/// without the base image fits into it.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

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
    /// So many servers are given power.
    Starting(usize),
    /// A server answers SSH.
    Ready(Raised),
}

/// Who is told.
pub(crate) type Tell<'a> = &'a (dyn Fn(Event) + Send + Sync);

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
            Self::Starting(count) => write!(f, "starting {}", counted(*count, "server")),
            Self::Ready(raised) => write!(f, "{raised}"),
        }
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, address, took } = self;
        write!(f, "{name} answers SSH at {address} after {:.1} s", took.as_secs_f64())
    }
}

/// A lab that is being raised, under its lock.
pub(crate) struct Raising<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) spec: &'a LabSpec,
    pub(crate) boot: String,
    pub(crate) lock: &'a Lock,
    pub(crate) tell: Tell<'a>,
}

impl Raising<'_> {
    /// Records everything first, then makes it.
    ///
    /// # Errors
    /// Whatever could not be made.
    pub(crate) async fn all(self) -> Result<Up, LabError> {
        let tools = Tools::that_hold(self.lock)?;
        self.install(&tools).await?;
        network::refuse_overlap(self.spec).await?;
        let journal = self.settle(&tools).await?;
        let site = Site::new(self.paths, base::place(self.paths.cache()), self.spec.clone(), journal, tools)?;
        self.make_base(&site).await?;
        let begin = Instant::now();
        let key = self.make_key(&site.tools).await?;
        network::raise(&site.tools, &self.spec.name, self.spec.subnet).await?;
        let site = Arc::new(site);
        let raised = self.start_all(&site, &key).await?;
        note_host_keys(&site.paths, self.spec)?;
        launch::append(&site.journal, &Entry::Complete)?;
        Ok(Up { raised, took: begin.elapsed() })
    }

    fn folders(&self) -> LabPaths {
        self.paths.lab(&self.spec.name)
    }

    async fn install(&self, tools: &Tools) -> Result<(), LabError> {
        let missing = packages::missing(&tool::path(), !settings::has_bridge_module());
        if missing.is_empty() {
            return Ok(());
        }
        (self.tell)(Event::Installing(missing.iter().map(|&name| name.to_owned()).collect()));
        packages::install(tools, &missing).await
    }

    /// Opens the record, so that other labs see this one, and changes what all labs share.
    async fn settle(&self, tools: &Tools) -> Result<Journal, LabError> {
        let _machine = Lock::take(&self.paths.machine_lock(), PATIENCE).await?;
        let mut journal = Journal::create(
            &self.folders().record(),
            &self.boot,
            self.spec,
            &base::place(self.paths.cache()),
        )?;
        journal.write(&Entry::Making { things: changes::things(self.spec, self.paths) })?;
        if !settings::has_bridge_module() {
            // A kernel without it has no bridged packets to show; kube-proxy says so where it matters.
            let _none = tools.run("modprobe", [settings::BRIDGE_MODULE]).await;
        }
        settings::apply(&self.paths.machine_record(), &self.boot)?;
        Ok(journal)
    }

    async fn make_base(&self, site: &Site) -> Result<(), LabError> {
        if site.base.exists() {
            return Ok(());
        }
        let begin = Instant::now();
        (self.tell)(Event::MakingBase(base::USUAL_S));
        let workshop = Workshop {
            lab: &self.spec.name,
            cache: self.paths.cache(),
            paths: &site.paths,
            hierarchies: &site.hierarchies,
            journal: &site.journal,
            boot: &site.boot,
        };
        Box::pin(workshop.ensure()).await?;
        (self.tell)(Event::MadeBase(begin.elapsed()));
        Ok(())
    }

    /// Makes the operator's key pair and returns its public half.
    async fn make_key(&self, tools: &Tools) -> Result<String, LabError> {
        let key = self.folders().key();
        let comment = format!("operator-of-lab-{}", self.spec.name);
        let words = ["-q", "-t", "ed25519", "-N", "", "-C", &comment, "-f"].map(OsString::from);
        tools.run("ssh-keygen", words.into_iter().chain([key.clone().into_os_string()])).await?;
        let public = key.with_extension("pub");
        std::fs::read_to_string(&public).map_err(file_error("read", &public))
    }

    async fn start_all(&self, site: &Arc<Site>, key: &str) -> Result<Vec<Raised>, LabError> {
        (self.tell)(Event::Starting(self.spec.servers.len()));
        let key: Arc<str> = key.into();
        let mut starts = JoinSet::new();
        for server in self.spec.servers.clone() {
            let (site, key) = (Arc::clone(site), Arc::clone(&key));
            starts.spawn(async move { site.raise(&server, &key).await });
        }
        let mut raised = Vec::new();
        while let Some(one) = starts.join_next().await {
            let lost = |cause: tokio::task::JoinError| LabError::Start {
                command: "a server".to_owned(),
                cause: cause.into(),
            };
            let one = one.map_err(lost)??;
            (self.tell)(Event::Ready(one.clone()));
            raised.push(one);
        }
        Ok(raised)
    }
}

/// Writes down the servers' host keys, in the format of OpenSSH: what they are when the lab makes them.
fn note_host_keys(folders: &LabPaths, spec: &LabSpec) -> Result<(), LabError> {
    let mut text = String::new();
    for server in &spec.servers {
        let path = folders.server(&server.name).host_key();
        let key = std::fs::read_to_string(&path).map_err(file_error("read", &path))?;
        text.push_str(&known_host(server, &key));
    }
    base::place_file(&folders.known_hosts(), 0o644, text.as_bytes())
}

fn known_host(server: &ServerSpec, key: &str) -> String {
    let key: Vec<_> = key.split_whitespace().take(2).collect();
    format!("{},{} {}\n", server.address, server.name, key.join(" "))
}

/// A server's SSH host key as it was when the lab made it. What lies on the server's disk now proves nothing:
/// whoever took the server over has put it there.
///
/// # Errors
/// [`LabError::File`] before the lab is up, [`LabError::NoHostKey`].
pub(crate) fn host_key(folders: &LabPaths, server: &str) -> Result<String, LabError> {
    let path = folders.known_hosts();
    let text = std::fs::read_to_string(&path).map_err(file_error("read", &path))?;
    noted(&text, server).ok_or_else(|| LabError::NoHostKey { server: server.to_owned(), path })
}

fn noted(known_hosts: &str, server: &str) -> Option<String> {
    known_hosts.lines().find_map(|line| {
        let (names, key) = line.split_once(' ')?;
        names.split(',').any(|name| name == server).then(|| key.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::server;

    #[test]
    fn a_noted_host_key_is_found_by_the_servers_name() {
        let text = known_host(&server("ml1", 13), "ssh-ed25519 AAAA root@base\n")
            + &known_host(&server("ml12", 14), "ssh-ed25519 BBBB root@base\n");
        assert_eq!(noted(&text, "ml1").as_deref(), Some("ssh-ed25519 AAAA"));
        assert_eq!(noted(&text, "ml12").as_deref(), Some("ssh-ed25519 BBBB"));
        assert_eq!(noted(&text, "ml"), None);
    }
}
