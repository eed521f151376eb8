//! Playbooks: what a server must look like, as TOML files of typed steps, one file a layer.
//!
//! ```toml
//! title = "container runtime"
//!
//! [[step]]
//! id = "config"                      # unique in the file; its full id is `<file stem>/<id>`
//! kind = "file"                      # a kind of rackwright_wire::step::StepKind
//! roles = ["ml", "control"]          # default: every server
//! when = "facts.os.container"        # a minijinja expression; default: always
//! needs = ["ctr", "20-pki/kubelet"]  # ids of this file, full ids, or `20-pki/*` for a whole layer
//! path = "/etc/…"                    # the parameters of the kind
//! content = '''…'''
//! ```
//!
//! Every text parameter is a minijinja template over the [`Context`]; one that is a single `{{ expression }}`
//! keeps the type of its value, so that numbers and lists can be computed. An undefined name is a finding, not an empty
//! text. Rendering is a pure function: the same inventory, facts and lockfile give the same steps, byte for byte.
//!
//! Three parameters are filled in from the context where a step leaves them out: `sha256` of artifacts and
//! images, `ca_sha256` of certificates.

mod builtin;
mod context;
mod order;
mod parse;
mod render;

pub use builtin::BUILTIN;
pub use context::{Context, ContextError};
pub use render::render;

use crate::finding::Finding;
use crate::inventory::Role;

/// One playbook file, read and checked as far as that is possible without a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Playbook {
    /// The file as the user named it.
    pub file: String,
    /// The file's stem, such as `40-etcd`: the first part of every step's id.
    pub layer: String,
    /// What the layer is for, in a few words.
    pub title: String,
    /// The steps, in the order of the file.
    pub(crate) steps: Vec<Template>,
}

/// A step before rendering.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template {
    /// `<layer>/<id>`.
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) needs: Vec<Need>,
    /// Empty for every role.
    pub(crate) roles: Vec<Role>,
    pub(crate) when: Option<Text>,
    pub(crate) parameters: Vec<(String, Parameter)>,
    /// Line of the step in its file.
    pub(crate) line: usize,
}

/// What must come first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Need {
    /// A full step id, or `<layer>/*`.
    pub(crate) id: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A text with the line on which its content starts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// A parameter of a step, as TOML knows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Parameter {
    Text(Text),
    Integer(i64),
    Boolean(bool),
    List(Vec<Parameter>),
    Table(Vec<(String, Parameter)>),
}

impl Playbook {
    /// Reads one file. The last component of `file` without `.toml` is the layer.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Finding>> {
        parse::playbook(file, text)
    }

    /// Reads the playbooks that this build carries.
    pub fn builtin() -> Result<Vec<Self>, Vec<Finding>> {
        Self::parse_all(BUILTIN.iter().copied())
    }

    /// Reads several files and returns all findings of all of them.
    pub fn parse_all<'t>(
        files: impl IntoIterator<Item = (&'t str, &'t str)>,
    ) -> Result<Vec<Self>, Vec<Finding>> {
        let (mut playbooks, mut findings) = (Vec::new(), Vec::new());
        for (file, text) in files {
            match Self::parse(file, text) {
                Ok(playbook) => playbooks.push(playbook),
                Err(found) => findings.extend(found),
            }
        }
        if findings.is_empty() { Ok(playbooks) } else { Err(findings) }
    }

    /// How many steps run a command: the fewer, the more is checked by type.
    pub fn commands(&self) -> usize {
        self.steps.iter().filter(|step| step.kind == "command").count()
    }
}
