//! One lab's place on the machine: raising a server in it, cutting its power, and starting it again.

use crate::changes::nspawn_folder;
use crate::error::LabError;
use crate::group::{Hierarchies, Limits};
use crate::launch::{self, Launch};
use crate::network;
use crate::paths::{LabPaths, ServerPaths};
use crate::process;
use crate::ready;
use crate::record::{Entry, Journal, LinkState, ProcessId, Record};
use crate::server;
use crate::spec::{LabName, LabSpec, ServerSpec};
use crate::{names, undo};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Everything that is the same for all servers of a lab.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) spec: LabSpec,
    pub(crate) paths: LabPaths,
    pub(crate) base: PathBuf,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) journal: Mutex<Journal>,
    pub(crate) boot: String,
}

impl Site {
    fn lab(&self) -> &LabName {
        &self.spec.name
    }

    fn folders(&self, server: &ServerSpec) -> ServerPaths {
        self.paths.server(&server.name)
    }

    /// Makes a server and gives it power; returns how long it took from there to SSH's banner.
    ///
    /// # Errors
    /// What could not be made, or [`LabError::Late`].
    pub(crate) async fn raise(&self, server: &ServerSpec, key: &str) -> Result<Duration, LabError> {
        server::prepare(server, self.spec.subnet, &self.folders(server), key).await?;
        self.power_on(server, &LinkState::default()).await
    }

    /// Gives power to a server that was made before, and waits for SSH, unless its link is cut.
    ///
    /// # Errors
    /// What could not be started, or [`LabError::Late`].
    pub(crate) async fn power_on(&self, server: &ServerSpec, link: &LinkState) -> Result<Duration, LabError> {
        let folders = self.folders(server);
        let group = names::server_group(self.lab(), &server.name);
        let limits = Limits {
            memory: server.memory,
            cpus: server.cpus,
        };
        server::mount_all(&folders, &self.base).await?;
        self.hierarchies.make(&group, Some(limits))?;
        let launch = Launch {
            server: Some(&server.name),
            groups: self.hierarchies.folders(&group),
            words: server::nspawn(self.lab(), server, &folders),
            variables: &server::VARIABLES,
            output: &folders.console(),
        };
        let start = Instant::now();
        // Dropping the handle leaves the server running and lets the runtime collect its end.
        let (_child, id) = launch.start(&self.journal, &self.boot).await?;
        ready::wait_for_ssh(&server.name, server.address, &id, &folders.console()).await?;
        let took = start.elapsed();
        self.hierarchies.show_limits(&group, limits);
        if link.rate.is_some() {
            network::shape(&self.link(server), self.inner_init(server)?, link.rate).await?;
        }
        if link.cut {
            network::set_cut(&self.link(server), true).await?;
        }
        Ok(took)
    }

    /// Takes a server's power away: everything in it ends at once, nothing is written any more.
    ///
    /// # Errors
    /// What would not go.
    pub(crate) async fn power_off(&self, record: &Record, server: &ServerSpec) -> Result<(), LabError> {
        if let Some(id) = record.process(&server.name) {
            process::kill(id, &self.boot);
        }
        let group = names::server_group(self.lab(), &server.name);
        self.hierarchies.kill(&group).await?;
        self.hierarchies.remove(&group).await?;
        let link = self.link(server);
        if network::is_link(&link) {
            network::remove_link(&link).await?;
        }
        server::unmount_all(&self.folders(server)).await?;
        undo::remove_folder(&nspawn_folder(&names::machine(self.lab(), &server.name)))
    }

    /// Changes a server's link, after noting it, so that the next start does the same.
    ///
    /// # Errors
    /// [`LabError::Stopped`], what bridge or tc said.
    pub(crate) async fn change_link(
        &self,
        server: &ServerSpec,
        old: &LinkState,
        new: &LinkState,
    ) -> Result<(), LabError> {
        let inner_init = self.inner_init(server)?;
        launch::append(
            &self.journal,
            &Entry::Link {
                server: server.name.clone(),
                state: new.clone(),
            },
        )?;
        let link = self.link(server);
        if old.rate != new.rate {
            network::shape(&link, inner_init, new.rate).await?;
        }
        network::set_cut(&link, new.cut).await
    }

    /// The recorded process of a server, if it runs.
    pub(crate) fn running<'a>(&self, record: &'a Record, server: &str) -> Option<&'a ProcessId> {
        record
            .process(server)
            .filter(|id| process::is_alive(id, &self.boot))
    }

    fn link(&self, server: &ServerSpec) -> String {
        names::host_link(self.lab(), &server.name)
    }

    fn inner_init(&self, server: &ServerSpec) -> Result<i32, LabError> {
        let group = names::server_group(self.lab(), &server.name);
        let init = self
            .hierarchies
            .members(&group)
            .into_iter()
            .find(|pid| process::is_inner_init(*pid));
        init.ok_or_else(|| LabError::Stopped {
            server: server.name.clone(),
        })
    }
}
