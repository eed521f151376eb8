//! A rack of a story's own: other name, addresses and state than the demo's, taken down whatever happens.

use crate::shell::{self, Outcome, ShellError};
use serde_json::Value;
use std::path::{Path, PathBuf};

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
    /// Writes an inventory like the demo's with a name and a range (`10.79.0`) of its own. Raises nothing yet.
    ///
    /// # Errors
    /// When the inventory of the checkout cannot be read or a folder not be made.
    pub fn prepare(repository: &Path, name: &str, range: &str) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(name).tempdir()?;
        let text = std::fs::read_to_string(repository.join("inventory/lab.toml"))?;
        let text = text
            .replace("name = \"lab\"", &format!("name = \"{name}\""))
            .replace("10.77.0", range)
            .replace("/rackwright/lab/", &format!("/rackwright/{name}/"));
        let inventory = folder.path().join("inventory.toml");
        std::fs::write(&inventory, text)?;
        Ok(Self {
            rackwright: product("rackwright")?,
            inventory: inventory.to_string_lossy().into_owned(),
            state: folder.path().join("state").to_string_lossy().into_owned(),
            repository: repository.to_owned(),
            folder,
        })
    }

    /// Runs `rackwright ARGS --inventory …` and returns what it said, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> Result<Outcome, ShellError> {
        let with = ["--inventory", &self.inventory];
        let (command, rest) = args.split_at(args.len().min(if args.first() == Some(&"lab") { 2 } else { 1 }));
        let environment = [("XDG_STATE_HOME", self.state.as_str())];
        shell::outcome(&self.rackwright, &[command, &with, rest].concat(), &environment, &self.repository)
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
