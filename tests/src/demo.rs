//! `make demo`: from nothing to a bill, on real parts, with the commands a person would type.
//!
//! [`Demo::up`] is the table of contents. Each stage is a file; what it measures goes into [`Findings`]
//! and from there into `target/demo/report.json` and the closing table.

mod bill;
mod data;
mod findings;
mod jobs;
mod rack;
mod results;

use crate::csv;
use crate::shell::{self, ShellError};
use crate::site::{Site, SiteError};
use crate::stage::{self, Stages};
use findings::Findings;
use std::path::{Path, PathBuf};

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A command failed.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// The rack could not be used.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// A file could not be read or written.
    #[error("use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The user's table cannot be read.
    #[error("read {path} as CSV")]
    Csv {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: crate::csv::CsvError,
    },
    /// Something is not as it must be.
    #[error("find {expected}; found {found}")]
    Unexpected {
        /// What must be.
        expected: String,
        /// What is.
        found: String,
    },
}

/// What the user can choose.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// A CSV file instead of apt's package index.
    pub data: Option<PathBuf>,
    /// The column that the sweep predicts.
    pub target: Option<String>,
    /// Go on from this stage on a rack that is up; what earlier stages measure is missing then.
    pub from: usize,
}

/// A demo under way.
#[derive(Debug)]
pub struct Demo {
    /// The product's binary.
    rackwright: String,
    /// `target/demo` of the checkout: kubeconfig, tokens, logs, the report.
    folder: PathBuf,
    /// The inventory, as given to every command.
    inventory: String,
    /// The rack, as its users see it.
    site: Site,
    /// Milliseconds since the epoch when the servers were raised: the bill's first hour.
    since_ms: u128,
    /// The sweep's job id: its rows are the ones that count.
    sweep: String,
    options: Options,
    findings: Findings,
}

impl Demo {
    /// Prepares the folder and reads the addresses of the lab's inventory.
    ///
    /// # Errors
    /// When the checkout is not as it should be.
    pub fn open(repository: &Path, mut options: Options) -> Result<Self, DemoError> {
        if options.data.is_some() {
            // As the columns are named once they are read.
            options.target = options.target.as_deref().map(csv::column_name);
        }
        let folder = repository.join("target/demo");
        let inventory = repository.join("inventory/lab.toml");
        let file = |path: &Path| {
            let path = path.to_owned();
            move |cause| DemoError::File { path, cause }
        };
        std::fs::create_dir_all(&folder).map_err(file(&folder))?;
        let binary = std::env::current_exe().map_err(file(Path::new("/proc/self/exe")))?;
        let rackwright = binary.with_file_name("rackwright").to_string_lossy().into_owned();
        let site = Site::open(&rackwright, &inventory, &[], &folder)?;
        Ok(Self {
            rackwright,
            folder,
            inventory: inventory.to_string_lossy().into_owned(),
            site,
            since_ms: 0,
            sweep: String::new(),
            options,
            findings: Findings::default(),
        })
    }

    /// Runs every stage, prints the table and writes the report.
    ///
    /// # Errors
    /// The first thing that is not as it must be; the rack stays up for a look.
    pub fn up(mut self) -> Result<(), DemoError> {
        self.check_data()?;
        let mut stages = Stages::new(8, self.options.from);
        stages.run("lab", "Five servers with systemd and sshd", || self.raise_lab())?;
        stages.run("artifacts", "Kubernetes, etcd, containerd, MinIO, images: by hash", || {
            self.fetch_artifacts()
        })?;
        stages.run("rack", "From bare servers to five Ready nodes", || self.build_rack())?;
        stages.run("data", "Master data on every ml node", || self.replicate())?;
        stages.run("jobs", "A sweep, a gang, a retry, and one that cannot start", || self.run_jobs())?;
        stages.run("prune", "Finished pods leave etcd", || self.prune())?;
        stages.run("results", "Results, with both ml nodes cut off", || self.query_results())?;
        stages.run("bill", "What it cost, and what the cloud would have", || self.bill())?;
        self.findings.seconds =
            stages.seconds.iter().map(|(name, took)| ((*name).to_owned(), *took)).collect();
        let path = self.folder.join("report.json");
        self.findings.write(&path).map_err(|cause| DemoError::File { path: path.clone(), cause })?;
        println!("{}", self.findings);
        println!("The same in {}. The rack stays up; try next:\n", path.display());
        println!("{}", self.next_steps());
        Ok(())
    }

    /// Removes everything that a demo made on this machine.
    ///
    /// # Errors
    /// When the lab cannot be taken down.
    pub fn down(&self) -> Result<(), DemoError> {
        self.rackwright(&["lab", "down", "--inventory", &self.inventory])?;
        for folder in state_folders().chain([self.folder.clone()]) {
            match std::fs::remove_dir_all(&folder) {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                    return Err(DemoError::File { path: folder, cause });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Shows and runs a command of the product; its talk goes to the person, its data comes back.
    fn rackwright(&self, args: &[&str]) -> Result<String, ShellError> {
        let shown: Vec<_> =
            args.iter().map(|arg| arg.strip_prefix(&self.repository()).unwrap_or(arg)).collect();
        stage::command(format_args!("rackwright {}", shown.join(" ")));
        let operator = self.site.environment("operator");
        shell::show(&self.rackwright, args, &operator.each_ref().map(|(name, value)| (*name, value.as_str())))
    }

    fn rackwright_json(&self, args: &[&str]) -> Result<serde_json::Value, ShellError> {
        let text = self.rackwright(&[args, &["--json"]].concat())?;
        // A command may stream objects, one a line; the last one is the outcome.
        let last = text.trim().lines().next_back().unwrap_or_default();
        serde_json::from_str(text.trim())
            .or_else(|_| serde_json::from_str(last))
            .map_err(|cause| ShellError::Output { command: args.join(" "), detail: cause.to_string() })
    }

    fn repository(&self) -> String {
        self.inventory.trim_end_matches("inventory/lab.toml").to_owned()
    }

    fn next_steps(&self) -> String {
        let folder = self.folder.display();
        let url = self.site.controller();
        let programs = Path::new(&self.rackwright).parent().unwrap_or_else(|| Path::new(".")).display();
        format!(
            "  export PATH={programs}:$PATH\n\
             \x20 export RACKWRIGHT_URL={url} RACKWRIGHT_CA={folder}/ca.crt RACKWRIGHT_TOKEN_FILE={folder}/vision.token\n\
             \x20 rackwright job list                                  every job of your team\n\
             \x20 rackwright job submit tests/demo/hello.json          a job of your own; then `job logs ID`\n\
             \x20 rackwright plan --inventory inventory/lab.toml       nothing to do; change a file on a server and look again\n\
             \x20 rackwright lab kill ml1; rackwright job list         pull a plug\n\
             \x20 RACKWRIGHT_TOKEN_FILE={folder}/operator.token rackwright cost bill    who used what\n\
             \x20 make demo-down                                       remove everything"
        )
    }
}

/// Where the controller keeps the lab's CAs, plans and host keys, and where the lab's inventory has its secrets.
fn state_folders() -> impl Iterator<Item = PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let homes = [set("XDG_STATE_HOME"), set("HOME").map(|home| home.join(".local/state"))];
    homes.into_iter().flatten().map(|home| home.join("rackwright/lab"))
}

/// An expectation that was not met.
fn unexpected(expected: &str, found: impl std::fmt::Display, whence: &Path) -> DemoError {
    DemoError::Unexpected {
        expected: format!("{expected} in {}", whence.display()),
        found: found.to_string(),
    }
}

/// Fails with both sides when something is not as it must be.
fn must(holds: bool, expected: &str, found: impl std::fmt::Display) -> Result<(), DemoError> {
    if holds {
        return Ok(());
    }
    Err(DemoError::Unexpected { expected: expected.to_owned(), found: found.to_string() })
}
