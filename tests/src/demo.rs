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

use crate::http::{Api, Auth, ClickHouse};
use crate::shell::{self, ShellError};
use crate::stage::{self, Stages};
use findings::Findings;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A command failed.
    #[error(transparent)]
    Shell(#[from] ShellError),
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
    /// Server name to address.
    addresses: BTreeMap<String, String>,
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
    pub fn open(repository: &Path, options: Options) -> Result<Self, DemoError> {
        let folder = repository.join("target/demo");
        let inventory = repository.join("inventory/lab.toml");
        let file = |path: &Path| {
            let path = path.to_owned();
            move |cause| DemoError::File { path, cause }
        };
        std::fs::create_dir_all(&folder).map_err(file(&folder))?;
        let text = std::fs::read_to_string(&inventory).map_err(file(&inventory))?;
        let addresses =
            addresses(&text).ok_or_else(|| unexpected("servers with addresses", "none", &inventory))?;
        let binary = std::env::current_exe().map_err(file(Path::new("/proc/self/exe")))?;
        Ok(Self {
            rackwright: binary.with_file_name("rackwright").to_string_lossy().into_owned(),
            folder,
            inventory: inventory.to_string_lossy().into_owned(),
            addresses,
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
        match std::fs::remove_dir_all(&self.folder) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                Err(DemoError::File { path: self.folder.clone(), cause })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Shows and runs a command of the product; its talk goes to the person, its data comes back.
    fn rackwright(&self, args: &[&str]) -> Result<String, ShellError> {
        let shown: Vec<_> =
            args.iter().map(|arg| arg.strip_prefix(&self.repository()).unwrap_or(arg)).collect();
        stage::command(format_args!("rackwright {}", shown.join(" ")));
        let [ca, token] =
            ["ca.crt", "operator.token"].map(|name| self.folder.join(name).to_string_lossy().into_owned());
        let url = format!("https://{}:7443", self.address("control1"));
        let controller =
            [("RACKWRIGHT_URL", url.as_str()), ("RACKWRIGHT_CA", &ca), ("RACKWRIGHT_TOKEN_FILE", &token)];
        shell::show(&self.rackwright, args, &controller)
    }

    fn rackwright_json(&self, args: &[&str]) -> Result<serde_json::Value, ShellError> {
        let text = self.rackwright(&[args, &["--json"]].concat())?;
        // A command may stream objects, one a line; the last one is the outcome.
        let last = text.trim().lines().next_back().unwrap_or_default();
        serde_json::from_str(text.trim())
            .or_else(|_| serde_json::from_str(last))
            .map_err(|cause| ShellError::Output { command: args.join(" "), detail: cause.to_string() })
    }

    /// Runs a command line on a server of the lab, as its root.
    fn on(&self, server: &str, line: &str) -> Result<String, ShellError> {
        shell::capture(&self.rackwright, &["lab", "ssh", "--inventory", &self.inventory, server, "--", line])
    }

    fn address(&self, server: &str) -> &str {
        self.addresses.get(server).map_or("", String::as_str)
    }

    /// The controller's API with the token of one of the demo's teams.
    fn api(&self, team: &str) -> Api {
        Api {
            base: format!("https://{}:7443", self.address("control1")),
            ca: self.folder.join("ca.crt"),
            auth: Auth::Token(self.folder.join(format!("{team}.curl"))),
        }
    }

    /// Kubernetes' API with the operator's certificate.
    fn kubernetes(&self) -> Api {
        Api {
            base: format!("https://{}:6443", self.address("control1")),
            ca: self.folder.join("ca.crt"),
            auth: Auth::Certificate(self.folder.join("admin.crt"), self.folder.join("admin.key")),
        }
    }

    fn clickhouse(&self, server: &str) -> ClickHouse {
        ClickHouse {
            base: format!("http://{}:8123", self.address(server)),
            config: self.folder.join("clickhouse.curl"),
        }
    }

    /// Writes a file that only its owner reads.
    fn keep_secret(&self, name: &str, text: &str) -> Result<PathBuf, DemoError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.folder.join(name);
        let failed = |cause| DemoError::File { path: path.clone(), cause };
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.create(true).truncate(true).write(true).mode(0o600).open(&path).map_err(failed)?;
        std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)?;
        Ok(path)
    }

    fn repository(&self) -> String {
        self.inventory.trim_end_matches("inventory/lab.toml").to_owned()
    }

    fn next_steps(&self) -> String {
        let folder = self.folder.display();
        let url = format!("https://{}:7443", self.address("control1"));
        format!(
            "  export RACKWRIGHT_URL={url} RACKWRIGHT_CA={folder}/ca.crt RACKWRIGHT_TOKEN_FILE={folder}/vision.token\n\
             \x20 rackwright job list                                  every job of your team\n\
             \x20 rackwright job submit tests/demo/hello.json          a job of your own; then `job logs ID`\n\
             \x20 rackwright plan --inventory inventory/lab.toml       nothing to do; change a file on a server and look again\n\
             \x20 rackwright lab kill ml1; rackwright job list         pull a plug\n\
             \x20 RACKWRIGHT_TOKEN_FILE={folder}/operator.token rackwright cost bill    who used what\n\
             \x20 make demo-down                                       remove everything"
        )
    }
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

fn addresses(inventory: &str) -> Option<BTreeMap<String, String>> {
    let table: toml::Table = inventory.parse().ok()?;
    let servers = table.get("server")?.as_array()?;
    let pair = |server: &toml::Value| {
        Some((server.get("name")?.as_str()?.to_owned(), server.get("address")?.as_str()?.to_owned()))
    };
    servers.iter().map(pair).collect()
}
