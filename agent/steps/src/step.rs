//! One step: what differs, how to remove the difference, and what to keep so that it can be undone.
//!
//! One file per kind. A kind's `check` reads, its `apply` changes; whether apply worked is for the next
//! check to say. Checks must be fast (80 of them in 300 ms) and may run at the same time as others.

mod artifact;
mod attributes;
mod before;
mod certificate;
mod command;
mod directory;
mod expected;
mod file;
mod image;
mod key_pair;
mod module;
mod mount;
mod package;
mod slice;
mod sysctl;
mod unit;
mod user;
mod wait;

use crate::controller::Controller;
use crate::error::StepError;
use crate::host::Host;
use rackwright_wire::step::{Difference, Step, StepKind};

pub use before::before;
pub use expected::Expected;
pub use image::ARCHIVE_LABEL;

pub(crate) use package::clear_policy;
pub(crate) use wait::ask as ask_state;

/// What differs between the step and the server; `None` when nothing does.
///
/// `expected` holds what files will be once earlier steps of the same request are applied; pass
/// [`Expected::default`] when they are applied already.
///
/// # Errors
/// When the server cannot be asked, or the step makes no sense on it.
pub fn check(host: &Host, step: &Step, expected: &Expected) -> Result<Option<Difference>, StepError> {
    let found = match &step.kind {
        StepKind::Package { names } => package::check(host, names)?,
        StepKind::File { path, content, mode, owner, absent, secret } => {
            let file = file::Wanted {
                path,
                content: content.as_deref(),
                mode,
                owner,
                absent: *absent,
                secret: *secret,
            };
            file.check(host)?
        }
        StepKind::Directory { path, mode, owner } => directory::check(host, path, mode, owner)?,
        StepKind::Unit { .. } => unit::Wanted::of(&step.kind)?.check(host, expected)?,
        StepKind::Sysctl { values, file } => sysctl::check(host, values, file)?,
        StepKind::Module { names } => module::check(host, &step.id, names)?,
        StepKind::Mount { source, target, fs, options } => {
            mount::Wanted { source, target, fs, options }.check(host)?
        }
        StepKind::Artifact { path, sha256, mode, .. } => artifact::check(host, path, sha256, mode)?,
        StepKind::Image { reference, sha256, .. } => image::check(host, reference, sha256)?,
        StepKind::Certificate(wanted) => certificate::check(host, wanted)?,
        StepKind::KeyPair { key, public, algorithm, owner } => {
            key_pair::Wanted { key, public, algorithm: *algorithm, owner }.check(host)?
        }
        StepKind::User { name, home } => user::check(host, name, home)?,
        StepKind::Slice { name, memory_bytes, cpu_weight } => {
            slice::as_unit(name, *memory_bytes, *cpu_weight).check(host, expected)?
        }
        StepKind::Wait { state, .. } => wait::check(host, state)?,
        StepKind::Command { check, apply, .. } => command::check(&step.id, check, apply)?,
    };
    Ok(found.map(|Found { summary, detail }| Difference { step: step.id.clone(), summary, detail }))
}

/// Removes the difference that [`check`] found. Idempotent: it may have been cut off before.
///
/// # Errors
/// With the code of the error catalogue and, where there is one, the log that explains it.
pub fn apply(
    host: &Host,
    step: &Step,
    difference: &Difference,
    controller: &dyn Controller,
) -> Result<(), StepError> {
    tracing::info!(step = step.id, summary = difference.summary, "apply");
    match &step.kind {
        StepKind::Package { names } => package::apply(host, names),
        StepKind::File { path, content, mode, owner, absent, secret } => {
            let file = file::Wanted {
                path,
                content: content.as_deref(),
                mode,
                owner,
                absent: *absent,
                secret: *secret,
            };
            file.apply(host)
        }
        StepKind::Directory { path, mode, owner } => directory::apply(host, path, mode, owner),
        StepKind::Unit { .. } => unit::Wanted::of(&step.kind)?.apply(host),
        StepKind::Sysctl { values, file } => sysctl::apply(host, values, file),
        StepKind::Module { names } => module::apply(host, &step.id, names),
        StepKind::Mount { source, target, fs, options } => {
            mount::Wanted { source, target, fs, options }.apply(host)
        }
        StepKind::Artifact { path, sha256, mode, .. } => artifact::apply(host, path, sha256, mode),
        StepKind::Image { reference, sha256, .. } => image::apply(host, reference, sha256),
        StepKind::Certificate(wanted) => certificate::apply(host, &step.id, wanted, controller),
        StepKind::KeyPair { key, public, algorithm, owner } => {
            key_pair::Wanted { key, public, algorithm: *algorithm, owner }.apply(host)
        }
        StepKind::User { name, home } => user::apply(host, name, home),
        StepKind::Slice { name, memory_bytes, cpu_weight } => {
            slice::as_unit(name, *memory_bytes, *cpu_weight).apply(host)
        }
        StepKind::Wait { state, timeout_s } => wait::apply(host, &step.id, state, *timeout_s, controller),
        StepKind::Command { check: _, apply, .. } => command::apply(&step.id, apply),
    }
}

/// Forgets what was looked up for a step, so that its next check sees the server as it is now.
pub(crate) fn forget(host: &Host, step: &Step) {
    let kind = &step.kind;
    if let StepKind::Unit { name, .. } | StepKind::Slice { name, .. } = kind {
        host.units.forget(name);
    } else if let StepKind::Image { .. } = kind {
        host.forget_images();
    } else if let StepKind::Package { .. } = kind {
        host.forget_packages();
    }
}

/// The staged file that a step needs: its SHA-256, if it needs one.
pub fn staged_need(step: &Step) -> Option<&str> {
    let kind = &step.kind;
    if let StepKind::Artifact { sha256, .. } | StepKind::Image { sha256, .. } = kind {
        Some(sha256)
    } else {
        None
    }
}

/// A difference without its step's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) summary: String,
    pub(crate) detail: String,
}

impl Found {
    pub(crate) fn new(summary: impl Into<String>) -> Self {
        Self { summary: summary.into(), detail: String::new() }
    }

    #[must_use]
    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}
