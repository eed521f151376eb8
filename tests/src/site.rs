//! One rack as its users see it: addresses, the two APIs, and the secrets that open them.
//!
//! Secrets lie in files that only their owner reads and reach curl by file name, never in argv.

use crate::field::{list, text};
use crate::http::{Api, Auth, ClickHouse, wait_until};
use crate::shell::{self, ShellError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The controller's job store on its server.
const STORE: &str = "/var/lib/rackwright/store/jobs.db";
const READY: Duration = Duration::from_mins(2);

/// Why a rack could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
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
    /// The inventory names no servers.
    #[error("find servers with addresses in {path}")]
    NoServers {
        /// The inventory.
        path: PathBuf,
    },
    /// The controller answered with something else than a token.
    #[error("make a token; the answer is {found}")]
    NoToken {
        /// What came instead.
        found: String,
    },
}

/// A rack, the product's binary to work on it, and a folder for its secrets.
#[derive(Debug)]
pub struct Site {
    rackwright: String,
    inventory: PathBuf,
    environment: Vec<(String, String)>,
    folder: PathBuf,
    addresses: BTreeMap<String, String>,
}

impl Site {
    /// Reads the addresses of an inventory and makes the folder for secrets.
    ///
    /// # Errors
    /// The inventory cannot be read or names no servers, or the folder cannot be made.
    pub fn open(
        rackwright: &str,
        inventory: &Path,
        environment: &[(&str, &str)],
        folder: &Path,
    ) -> Result<Self, SiteError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |cause| SiteError::File { path, cause }
        };
        std::fs::create_dir_all(folder).map_err(file(folder))?;
        let content = std::fs::read_to_string(inventory).map_err(file(inventory))?;
        let addresses =
            addresses(&content).ok_or_else(|| SiteError::NoServers { path: inventory.to_owned() })?;
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Ok(Self {
            rackwright: rackwright.to_owned(),
            inventory: inventory.to_owned(),
            environment: environment.iter().map(own).collect(),
            folder: folder.to_owned(),
            addresses,
        })
    }

    /// Names of the servers.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.addresses.keys().map(String::as_str)
    }

    /// A server's address.
    pub fn address(&self, server: &str) -> &str {
        self.addresses.get(server).map_or("", String::as_str)
    }

    /// Runs a command line on a server, as its root, and returns what it printed.
    ///
    /// # Errors
    /// It cannot be started or exits with another code than 0.
    pub fn on(&self, server: &str, line: &str) -> Result<String, ShellError> {
        let inventory = self.inventory.to_string_lossy();
        self.capture(&["lab", "ssh", "--inventory", &inventory, server, "--", line])
    }

    /// The controller's API with one of the tokens that were made before.
    pub fn api(&self, token: &str) -> Api {
        Api {
            base: self.controller(),
            ca: self.folder.join("ca.crt"),
            auth: Auth::Token(self.folder.join(format!("{token}.curl"))),
        }
    }

    /// Where the controller answers.
    pub fn controller(&self) -> String {
        format!("https://{}:7443", self.address("control1"))
    }

    /// Kubernetes' API with the operator's certificate.
    pub fn kubernetes(&self) -> Api {
        Api {
            base: format!("https://{}:6443", self.address("control1")),
            ca: self.folder.join("ca.crt"),
            auth: Auth::Certificate(self.folder.join("admin.crt"), self.folder.join("admin.key")),
        }
    }

    /// ClickHouse on a server, once [`Site::open_data`] has read its password.
    pub fn clickhouse(&self, server: &str) -> ClickHouse {
        ClickHouse {
            base: format!("http://{}:8123", self.address(server)),
            config: self.folder.join("clickhouse.curl"),
        }
    }

    /// Puts a bucket, or a file as an object (`bucket/name`), into the data server's MinIO, once
    /// [`Site::open_data`] has read its key.
    ///
    /// # Errors
    /// MinIO cannot be reached or refuses the object; a bucket may be there already.
    pub fn put_s3(&self, path: &str, file: Option<&Path>) -> Result<(), ShellError> {
        let config = self.folder.join("minio.curl").to_string_lossy().into_owned();
        let url = format!("http://{}:9000/{path}", self.address("data1"));
        let sign = ["-sS", "--noproxy", "*", "--config", &config, "--aws-sigv4", "aws:amz:us-east-1:s3"];
        let name = file.map(|file| file.to_string_lossy().into_owned());
        let what = match &name {
            Some(name) => {
                vec!["--fail-with-body", "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-T", name, &url]
            }
            None => vec!["-X", "PUT", &url],
        };
        shell::capture("curl", &[&sign[..], &what].concat()).map(drop)
    }

    /// Reads the passwords of ClickHouse and MinIO; they go to curl in files, never in argv.
    ///
    /// # Errors
    /// There are none in the folder, or a file cannot be written.
    pub fn open_data(&self, secrets: &Path) -> Result<(), SiteError> {
        let read = |name: &str| {
            let path = secrets.join(name);
            let text = std::fs::read_to_string(&path).map_err(|cause| SiteError::File { path, cause })?;
            Ok::<_, SiteError>(text.trim().to_owned())
        };
        let headers = "header = \"X-ClickHouse-User: rackwright\"\nheader = \"X-ClickHouse-Key: ";
        self.keep_secret("clickhouse.curl", &format!("{headers}{}\"\n", read("clickhouse")?))?;
        self.keep_secret("minio.curl", &format!("user = \"rackwright:{}\"\n", read("minio")?))?;
        Ok(())
    }

    /// What the product's client reads to reach the controller with one of the tokens.
    pub fn environment(&self, token: &str) -> [(&'static str, String); 3] {
        let file = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        [
            ("RACKWRIGHT_URL", self.controller()),
            ("RACKWRIGHT_CA", file("ca.crt")),
            ("RACKWRIGHT_TOKEN_FILE", file(&format!("{token}.token"))),
        ]
    }

    /// The operator's kubeconfig, taken apart for curl.
    ///
    /// # Errors
    /// There is none yet, or a file cannot be written.
    pub fn open_kubernetes(&self) -> Result<(), SiteError> {
        let kubeconfig = self.capture(&["kubeconfig", "--inventory", &self.inventory.to_string_lossy()])?;
        for (key, file) in [
            ("certificate-authority-data", "ca.crt"),
            ("client-certificate-data", "admin.crt"),
            ("client-key-data", "admin.key"),
        ] {
            let line = kubeconfig.split([',', '\n', '{', '}']).find_map(|part| part.trim().strip_prefix(key));
            let encoded = line.unwrap_or_default().trim_start_matches(':').trim().trim_matches('"');
            let plain = shell::capture_with("base64", &["-d"], encoded.as_bytes())?;
            self.keep_secret(file, &plain)?;
        }
        Ok(())
    }

    /// Names of the nodes that are Ready.
    pub fn ready_nodes(&self) -> Vec<String> {
        let nodes = self.kubernetes().get("/api/v1/nodes").unwrap_or_default();
        let ready = |node: &&Value| {
            let conditions = list(node.get("status").unwrap_or(&Value::Null), "conditions");
            conditions
                .iter()
                .any(|condition| text(condition, "type") == "Ready" && text(condition, "status") == "True")
        };
        let name = |node: &Value| text(node.get("metadata").unwrap_or(&Value::Null), "name");
        list(&nodes, "items").iter().filter(ready).map(name).collect()
    }

    /// Makes the token `operator` on the control server and waits until the controller takes it.
    ///
    /// # Errors
    /// The token cannot be made, or the controller does not become ready.
    pub fn make_operator(&self) -> Result<(), SiteError> {
        let create = format!(
            "rackwright serve token create --store {STORE} --role operator --owner operator --team ops --json"
        );
        let made = self.on("control1", &create)?;
        self.keep_token("operator", &serde_json::from_str(made.trim()).unwrap_or_default())?;
        let operator = self.api("operator");
        wait_until("the controller is ready", READY, || {
            let answer = operator.call("GET", "/readyz", None, &[]);
            Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
        })?;
        Ok(())
    }

    /// Makes a token over HTTP, named after its team.
    ///
    /// # Errors
    /// The controller refuses.
    pub fn make_token(&self, team: &str, role: &str) -> Result<(), SiteError> {
        let wanted = json!({"owner": format!("{team}-lead"), "team": team, "role": role});
        let made = self.api("operator").expect("POST", "/v1/tokens", Some(&wanted), &[])?;
        self.keep_token(team, &made)
    }

    fn keep_token(&self, name: &str, made: &Value) -> Result<(), SiteError> {
        let token = text(made, "token");
        if !token.starts_with("rw_") {
            return Err(SiteError::NoToken { found: made.to_string() });
        }
        self.keep_secret(&format!("{name}.token"), &token)?;
        self.keep_secret(&format!("{name}.curl"), &format!("header = \"Authorization: Bearer {token}\"\n"))?;
        Ok(())
    }

    /// Writes a file that only its owner reads.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn keep_secret(&self, name: &str, content: &str) -> Result<PathBuf, SiteError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.folder.join(name);
        let failed = |cause| SiteError::File { path: path.clone(), cause };
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.create(true).truncate(true).write(true).mode(0o600).open(&path).map_err(failed)?;
        std::io::Write::write_all(&mut file, content.as_bytes()).map_err(failed)?;
        Ok(path)
    }

    fn capture(&self, args: &[&str]) -> Result<String, ShellError> {
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        shell::capture_in(&self.rackwright, args, &environment)
    }
}

fn addresses(inventory: &str) -> Option<BTreeMap<String, String>> {
    let table: toml::Table = inventory.parse().ok()?;
    let servers = table.get("server")?.as_array()?;
    let pair = |server: &toml::Value| {
        Some((server.get("name")?.as_str()?.to_owned(), server.get("address")?.as_str()?.to_owned()))
    };
    servers.iter().map(pair).collect()
}
