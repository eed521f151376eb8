//! A rack of a story's own: other name, addresses and state than the demo's, taken down whatever happens.

use crate::running::Running;
use crate::shell::{self, Outcome, ShellError};
use crate::site::{Site, SiteError};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A lab with its inventory, and the product's binary to work on it.
#[derive(Debug)]
pub struct StoryRack {
    rackwright: String,
    inventory: String,
    state: String,
    repository: PathBuf,
    folder: tempfile::TempDir,
}

impl StoryRack {
    /// Writes an inventory like the demo's with a name and a range (`10.79.0`) of its own, and takes down what
    /// an interrupted run of the same story left. Raises nothing yet.
    ///
    /// # Errors
    /// When the inventory of the checkout cannot be read, a folder not be made, or that rack not be removed.
    pub fn prepare(repository: &Path, name: &str, range: &str) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(name).tempdir()?;
        let secrets = format!("file:{}/secrets/", folder.path().display());
        let text = std::fs::read_to_string(repository.join("inventory/lab.toml"))?;
        let text = text
            .replace("name = \"lab\"", &format!("name = \"{name}\""))
            .replace("10.77.0", range)
            .replace("file:~/.local/state/rackwright/lab/secrets/", &secrets);
        let inventory = folder.path().join("inventory.toml");
        std::fs::write(&inventory, text)?;
        let rack = Self {
            rackwright: product("rackwright")?,
            inventory: inventory.to_string_lossy().into_owned(),
            state: folder.path().join("state").to_string_lossy().into_owned(),
            repository: repository.to_owned(),
            folder,
        };
        let down = rack.run(&["lab", "down"]).map_err(std::io::Error::other)?;
        if down.code == 0 { Ok(rack) } else { Err(std::io::Error::other(down.stderr)) }
    }

    /// Runs `rackwright ARGS --inventory …` and returns what it said, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Outcome, ShellError> {
        let environment = [("XDG_STATE_HOME", self.state.as_str())];
        shell::outcome(&self.rackwright, &self.with_inventory(args), &environment, &self.repository)
    }

    /// Starts `rackwright ARGS --inventory … --json`, to be watched and hurt.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, args: &[&str]) -> Result<Running, ShellError> {
        let mut command = Command::new(&self.rackwright);
        command.args(self.with_inventory(&[args, &["--json"]].concat()));
        command.env("XDG_STATE_HOME", &self.state).current_dir(&self.repository);
        Running::start(command)
    }

    /// Runs a shell script on a server, as `rackwright lab ssh SERVER -- SCRIPT`; returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn on(&self, server: &str, script: &str) -> Result<String, ShellError> {
        let Outcome { code, stdout, stderr } = self.run(&["lab", "ssh", server, "--", script])?;
        if code == 0 {
            return Ok(stdout);
        }
        Err(ShellError::Failed { command: format!("{script} (on {server})"), code, stderr })
    }

    /// Runs `rackwright ARGS` as a user of the controller with one of the site's tokens.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn client(&self, site: &Site, token: &str, args: &[&str]) -> Result<Outcome, ShellError> {
        let environment = site.environment(token);
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        shell::outcome(&self.rackwright, args, &environment, &self.repository)
    }

    /// Where the rack's inventory says that its passwords are.
    pub fn secrets(&self) -> PathBuf {
        self.folder.path().join("secrets")
    }

    fn with_inventory<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let with = ["--inventory", &self.inventory];
        let (command, rest) = args.split_at(args.len().min(if args.first() == Some(&"lab") { 2 } else { 1 }));
        [command, &with, rest].concat()
    }

    /// The rack as its users see it; its secrets are removed with the rack.
    ///
    /// # Errors
    /// When the inventory cannot be read.
    pub fn site(&self) -> Result<Site, SiteError> {
        let environment = [("XDG_STATE_HOME", self.state.as_str())];
        Site::open(&self.rackwright, self.inventory(), &environment, &self.folder.path().join("site"))
    }

    /// The rack's inventory, for stories that spoil it.
    pub fn inventory(&self) -> &Path {
        Path::new(&self.inventory)
    }

    /// Where this rack's secrets and plans are.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// As [`StoryRack::run`], with the data as JSON; the last line when there are several.
    ///
    /// # Errors
    /// When it cannot be started or prints no JSON.
    pub fn json(&self, args: &[&str]) -> Result<(i32, Value), ShellError> {
        let outcome = self.run(&[args, &["--json"]].concat())?;
        let last = outcome.stdout.trim().lines().next_back().unwrap_or_default();
        let value = serde_json::from_str(last).map_err(|cause| ShellError::Output {
            command: args.join(" "),
            detail: format!("{cause}; exit {}, stderr:\n{}", outcome.code, outcome.stderr),
        })?;
        Ok((outcome.code, value))
    }
}

impl Drop for StoryRack {
    fn drop(&mut self) {
        // A failed story must not leave servers behind; `down` also clears what a killed `up` left.
        let _best_effort = self.run(&["lab", "down"]);
    }
}

/// Stories and the product are built into one folder: `…/release/deps/stories-…` and `…/release/rackwright`.
fn product(name: &str) -> std::io::Result<String> {
    let own = std::env::current_exe()?;
    let folder = own.ancestors().nth(2).unwrap_or(&own);
    Ok(folder.join(name).to_string_lossy().into_owned())
}
