//! The closed set of things the agent can make true on a server.
//!
//! A step is fully rendered: no template and no decision is left for the server. The agent checks it,
//! applies it when it differs, and checks it again; a step that still differs has failed.

use serde::{Deserialize, Serialize};

/// One thing that must be true on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Unique on the server: `<playbook>/<step>`, such as `30-etcd/unit`.
    pub id: String,
    /// Ids of steps on the same server that must be satisfied first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// What must be true.
    pub kind: StepKind,
}

/// What must be true, by kind. The set is closed on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum StepKind {
    /// Debian packages are installed (any version, or exactly `name=version`).
    Package {
        /// Package names, optionally with `=version`.
        names: Vec<String>,
    },
    /// A file has this content, mode and owner; or does not exist.
    File {
        /// Absolute path.
        path: String,
        /// Whole content; `None` with `absent`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<String>,
        /// Octal mode such as `0644`.
        #[serde(default = "mode_0644")]
        mode: String,
        /// `user:group`.
        #[serde(default = "root_root")]
        owner: String,
        /// The file must not exist.
        #[serde(default, skip_serializing_if = "is_false")]
        absent: bool,
        /// Content is shown as `(secret)` in diffs and never logged.
        #[serde(default, skip_serializing_if = "is_false")]
        secret: bool,
    },
    /// A directory exists.
    Directory {
        /// Absolute path.
        path: String,
        /// Octal mode such as `0755`.
        #[serde(default = "mode_0755")]
        mode: String,
        /// `user:group`.
        #[serde(default = "root_root")]
        owner: String,
    },
    /// A systemd unit has this content, is enabled and runs; it is restarted when its own file or one
    /// of `restart_on` changed since it was started.
    Unit {
        /// Full unit name, such as `etcd.service`.
        name: String,
        /// Unit file content; `None` leaves a packaged unit as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<String>,
        /// Drop-in content (`/etc/systemd/system/<name>.d/rackwright.conf`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drop_in: Option<String>,
        /// Enabled at boot.
        #[serde(default = "yes")]
        enabled: bool,
        /// Active now; false means stopped.
        #[serde(default = "yes")]
        active: bool,
        /// Paths whose change restarts the unit.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        restart_on: Vec<String>,
        /// Do not wait until the unit is up (a first etcd member blocks until quorum).
        #[serde(default, skip_serializing_if = "is_false")]
        no_block: bool,
    },
    /// Kernel settings, persisted in one file of ours and set now.
    Sysctl {
        /// Dotted key and value.
        values: std::collections::BTreeMap<String, String>,
        /// File under `/etc/sysctl.d/`.
        file: String,
    },
    /// Kernel modules are loaded now and at boot.
    Module {
        /// Module names.
        names: Vec<String>,
    },
    /// A device is mounted, now and at boot.
    Mount {
        /// Device or `UUID=…`.
        source: String,
        /// Absolute mount point.
        target: String,
        /// File system type.
        fs: String,
        /// Options, comma separated.
        #[serde(default)]
        options: String,
    },
    /// A binary of the lockfile is in place.
    Artifact {
        /// Name in the lockfile.
        name: String,
        /// Absolute path on the server.
        path: String,
        /// SHA-256 (hex) of the content.
        sha256: String,
        /// Octal mode.
        #[serde(default = "mode_0755")]
        mode: String,
    },
    /// A container image of the lockfile is in containerd's `k8s.io` namespace.
    Image {
        /// Name in the lockfile.
        name: String,
        /// Reference, such as `docker.io/rackwright/pause:1`.
        reference: String,
        /// SHA-256 (hex) of the OCI archive.
        sha256: String,
    },
    /// A key made on this server and a certificate of one of our CAs for it.
    Certificate(CertificateStep),
    /// A key pair without certificate, made on this server (service-account keys, manifest signing).
    KeyPair {
        /// Private key path, mode 0600, PKCS#8 PEM.
        key: String,
        /// Public key path, SPKI PEM.
        public: String,
        /// Algorithm.
        algorithm: KeyAlgorithm,
        /// `user:group` of both files.
        #[serde(default = "root_root")]
        owner: String,
    },
    /// A system user exists.
    User {
        /// Login name.
        name: String,
        /// Home directory.
        home: String,
    },
    /// A systemd slice with limits exists.
    Slice {
        /// Name with `.slice`.
        name: String,
        /// `MemoryMax`, bytes; 0 for none.
        memory_bytes: u64,
        /// `CPUWeight`.
        cpu_weight: u32,
    },
    /// A named state is true: local ones are probed by the agent, cross-server ones answered by the
    /// controller through [`crate::event::Ask::State`].
    Wait {
        /// What to wait for.
        state: WaitState,
        /// Give up after so many seconds.
        timeout_s: u32,
    },
    /// A command whose effect has a check of its own.
    Command {
        /// Exits 0 when nothing is left to do; run with `/bin/sh -c`.
        check: String,
        /// Makes the check pass; run with `/bin/sh -c`.
        apply: String,
        /// Reverts it; empty when there is nothing to revert.
        #[serde(default)]
        undo: String,
    },
}

/// A certificate that must exist, with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateStep {
    /// Which CA signs: `kubernetes`, `etcd`, `front-proxy`, `data`.
    pub ca: String,
    /// Subject common name.
    pub common_name: String,
    /// Subject organisation, empty for none.
    #[serde(default)]
    pub organization: String,
    /// DNS names and IP addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sans: Vec<String>,
    /// Extended key usage server authentication.
    #[serde(default, skip_serializing_if = "is_false")]
    pub server: bool,
    /// Extended key usage client authentication.
    #[serde(default, skip_serializing_if = "is_false")]
    pub client: bool,
    /// Certificate path (PEM, leaf only).
    pub cert: String,
    /// Private key path, mode 0600.
    pub key: String,
    /// Where the CA's certificate is kept beside it.
    pub ca_cert: String,
    /// SHA-256 (hex) of the CA certificate (DER) that must have signed it.
    pub ca_sha256: String,
    /// `user:group` of all three files.
    #[serde(default = "root_root")]
    pub owner: String,
    /// Life in hours when newly issued.
    pub life_hours: u32,
    /// Renew when fewer hours are left.
    pub renew_hours: u32,
}

/// Key algorithms for [`StepKind::KeyPair`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyAlgorithm {
    /// ECDSA on P-256: service-account tokens (ES256).
    EcdsaP256,
    /// Ed25519: manifest signatures.
    Ed25519,
}

/// States that a step can wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitState {
    /// A TCP port accepts, `host:port`; probed on the server.
    Port(String),
    /// A path exists; probed on the server.
    Path(String),
    /// A state of several servers, such as `etcd:quorum` or `api:ready`; the controller answers.
    Cluster(String),
}

/// What differs between a step and the server, and what a dry run prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// The step.
    pub step: String,
    /// One line: `install runc`, `change /etc/… (3 lines)`, `restart etcd.service`.
    pub summary: String,
    /// Unified diff or detail lines; empty when the summary says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

fn mode_0644() -> String {
    "0644".to_owned()
}
fn mode_0755() -> String {
    "0755".to_owned()
}
fn root_root() -> String {
    "root:root".to_owned()
}
fn yes() -> bool {
    true
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}
