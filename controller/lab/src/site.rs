//! One lab's place on the machine: raising a server in it, cutting its power, and starting it again.

use crate::changes::nspawn_folder;
use crate::error::LabError;
use crate::group::{Hierarchies, Limits};
use crate::launch::{self, Launch};
use crate::paths::{LabPaths, Paths, ServerPaths};
use crate::raise::Raised;
use crate::record::{Entry, Journal, LinkState, ProcessId, Record};
use crate::spec::{LabName, LabSpec, ServerSpec};
use crate::tool::Tools;
use crate::{mount, names, network, process, ready, server, undo};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

/// Everything that is the same for all servers of a lab.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) spec: LabSpec,
    pub(crate) paths: LabPaths,
    pub(crate) base: PathBuf,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) journal: Mutex<Journal>,
    pub(crate) boot: String,
    pub(crate) tools: Tools,
}

impl Site {
    /// The place of a lab with that record.
    ///
    /// # Errors
    /// [`LabError::File`] when the machine's state cannot be read.
    pub(crate) fn new(
        paths: &Paths,
        base: PathBuf,
        spec: LabSpec,
        journal: Journal,
        tools: Tools,
    ) -> Result<Self, LabError> {
        Ok(Self {
            base,
            paths: paths.lab(&spec.name),
            spec,
            hierarchies: Hierarchies::among(&mount::all()?),
            journal: Mutex::new(journal),
            boot: process::boot()?,
            tools,
        })
    }

    fn lab(&self) -> &LabName {
        &self.spec.name
    }

    fn folders(&self, server: &ServerSpec) -> ServerPaths {
        self.paths.server(&server.name)
    }

    /// Makes a server and gives it power.
    ///
    /// # Errors
    /// What could not be made, or [`LabError::Late`].
    pub(crate) async fn raise(&self, server: &ServerSpec, key: &str) -> Result<Raised, LabError> {
        server::prepare(&self.tools, server, self.spec.subnet, &self.folders(server), key).await?;
        self.power_on(server, &LinkState::default()).await
    }

    /// Gives a server that does not run its power back, after taking away what its last end left.
    ///
    /// # Errors
    /// What could not be started, or [`LabError::Late`].
    pub(crate) async fn restart(&self, record: &Record, server: &ServerSpec) -> Result<Raised, LabError> {
        self.power_off(record, server).await?;
        let link = record.links.get(&server.name).cloned().unwrap_or_default();
        self.power_on(server, &link).await
    }

    /// Gives power to a server that was made before, and waits for SSH. Then its link becomes as it was set.
    async fn power_on(&self, server: &ServerSpec, link: &LinkState) -> Result<Raised, LabError> {
        let folders = self.folders(server);
        let (inner, power) =
            (names::inner_group(self.lab(), &server.name), names::power_group(self.lab(), &server.name));
        let limits = Limits { memory: server.memory, cpus: server.cpus };
        server::mount_all(&self.tools, &folders, &self.base).await?;
        self.hierarchies.make(&inner, Some(limits))?;
        self.hierarchies.make(&power, None)?;
        let nspawn = server::nspawn(self.lab(), server, &folders);
        let launch = Launch {
            server: Some(&server.name),
            groups: self.hierarchies.folders(&power),
            words: launch::rebooting(self.hierarchies.folders(&inner), nspawn),
            variables: &server::VARIABLES,
            output: &folders.console(),
        };
        let start = Instant::now();
        // Dropping the handle leaves the server running and lets the runtime collect its end.
        let (_child, id) = launch.start(&self.journal, &self.boot).await?;
        ready::wait_for_ssh(&server.name, server.address, &id, &folders.console()).await?;
        let took = start.elapsed();
        self.hierarchies.show_limits(&inner, limits);
        if *link != LinkState::default() {
            self.apply_link(server, link).await?;
        }
        Ok(Raised { name: server.name.clone(), address: server.address, took })
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
            network::remove_link(&self.tools, &link).await?;
        }
        server::unmount_all(&self.folders(server)).await?;
        undo::remove_folder(&nspawn_folder(&names::machine(self.lab(), &server.name)))
    }

    /// Changes a server's link, after noting it, so that the next start does the same.
    ///
    /// # Errors
    /// [`LabError::Stopped`], what bridge or tc said.
    pub(crate) async fn change_link(&self, server: &ServerSpec, state: &LinkState) -> Result<(), LabError> {
        self.inner_init(server)?;
        let entry = Entry::Link { server: server.name.clone(), state: state.clone() };
        launch::append(&self.journal, &entry)?;
        self.apply_link(server, state).await
    }

    async fn apply_link(&self, server: &ServerSpec, state: &LinkState) -> Result<(), LabError> {
        let link = self.link(server);
        network::shape(&self.tools, &link, self.inner_init(server)?, state.rate).await?;
        network::set_cut(&self.tools, &link, state.cut).await
    }

    /// The recorded process of a server, if it runs.
    pub(crate) fn running<'a>(&self, record: &'a Record, server: &str) -> Option<&'a ProcessId> {
        record.process(server).filter(|id| process::is_alive(id, &self.boot))
    }

    fn link(&self, server: &ServerSpec) -> String {
        names::host_link(self.lab(), &server.name)
    }

    fn inner_init(&self, server: &ServerSpec) -> Result<i32, LabError> {
        let group = names::server_group(self.lab(), &server.name);
        let init = self.hierarchies.members(&group).into_iter().find(|pid| process::is_inner_init(*pid));
        init.ok_or_else(|| LabError::Stopped { server: server.name.clone() })
    }
}
