//! What looks dangerous in a plan, before anything is touched.
//!
//! A lint never changes a plan. `apply` refuses a plan with lints unless the operator insists.

use crate::plan::Plan;
use rackwright_wire::plan::ServerPlan;
use rackwright_wire::step::{Step, StepKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// One thing that looks dangerous.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Lint {
    /// Stable code, such as `quorum-restart`.
    pub code: &'static str,
    /// The server, or `rack` for the whole.
    pub server: String,
    /// The step, empty for the whole.
    pub step: String,
    /// What is wrong and what helps.
    pub message: String,
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.server)?;
        if !self.step.is_empty() {
            write!(f, " {}", self.step)?;
        }
        write!(f, ": {} [{}]", self.message, self.code)
    }
}

/// Looks at a plan. `secrets` are the values that must not stand in a file that others can read.
pub fn lint(plan: &Plan, secrets: &BTreeMap<String, String>) -> Vec<Lint> {
    let mut lints = Vec::new();
    lints.extend(quorum(plan));
    lints.extend(service_accounts(plan));
    for server in &plan.servers {
        lints.extend(paths(server));
        for step in &server.steps {
            lints.extend(self::step(&server.server, step, secrets));
        }
    }
    lints.sort();
    lints
}

/// etcd keeps its quorum only while more than half of its members run.
fn quorum(plan: &Plan) -> Option<Lint> {
    let members = |server: &&ServerPlan| server.steps.iter().any(is_etcd);
    let all = plan.servers.iter().filter(members).count();
    let restarts: Vec<&str> = plan
        .servers
        .iter()
        .filter(|server| server.differences.iter().any(|of| of.summary.contains("restart etcd.service")))
        .map(|server| server.server.as_str())
        .collect();
    let spare = all.saturating_sub(1) / 2;
    (all > 1 && restarts.len() > spare).then(|| Lint {
        code: "quorum-restart",
        server: "rack".to_owned(),
        step: String::new(),
        message: format!(
            "restarts etcd on {} at once; {all} members survive {spare}: apply with `--only` one at a time",
            restarts.join(", ")
        ),
    })
}

fn is_etcd(step: &Step) -> bool {
    matches!(&step.kind, StepKind::Unit { name, .. } if name == "etcd.service")
}

/// Tokens signed by one control server must be accepted by all: until the key can be shared, one server has it.
fn service_accounts(plan: &Plan) -> Option<Lint> {
    let signs = |step: &Step| matches!(&step.kind, StepKind::KeyPair { key, .. } if key.ends_with("/sa.key"));
    let signers: Vec<&str> = plan
        .servers
        .iter()
        .filter(|server| server.steps.iter().any(signs))
        .map(|server| server.server.as_str())
        .collect();
    (signers.len() > 1).then(|| Lint {
        code: "unshared-key",
        server: "rack".to_owned(),
        step: String::new(),
        message: format!(
            "{} would each make a service-account key of their own, and refuse each other's tokens: \
             one control server for now",
            signers.join(", ")
        ),
    })
}

/// Two steps that write the same file undo each other for ever. A CA's certificate may be kept by several
/// steps, if they agree on it and on its owner.
fn paths(server: &ServerPlan) -> Vec<Lint> {
    let mut first: BTreeMap<&str, (&str, String)> = BTreeMap::new();
    let mut lints = Vec::new();
    for step in &server.steps {
        for (path, content) in written(step) {
            if let Some((other, before)) = first.insert(path, (&step.id, content.clone()))
                && before != content
            {
                lints.push(Lint {
                    code: "same-path",
                    server: server.server.clone(),
                    step: step.id.clone(),
                    message: format!("writes {path}, which `{other}` writes too"),
                });
            }
        }
    }
    lints
}

/// What a step writes, with what must agree for two steps to write the same.
fn written(step: &Step) -> Vec<(&str, String)> {
    let alone = || step.id.clone();
    if let StepKind::File { path, .. } | StepKind::Directory { path, .. } | StepKind::Artifact { path, .. } =
        &step.kind
    {
        return vec![(path, alone())];
    }
    if let StepKind::KeyPair { key, public, .. } = &step.kind {
        return vec![(key, alone()), (public, alone())];
    }
    if let StepKind::Certificate(of) = &step.kind {
        let authority = format!("{} {}", of.ca_sha256, of.owner);
        return vec![(&of.cert, alone()), (&of.key, alone()), (&of.ca_cert, authority)];
    }
    Vec::new()
}

fn step(server: &str, step: &Step, secrets: &BTreeMap<String, String>) -> Vec<Lint> {
    let mut found = Vec::new();
    if let StepKind::File { content, mode, secret, .. } = &step.kind {
        found = file(content.as_deref().unwrap_or_default(), mode, *secret, secrets);
    } else if let StepKind::Unit { content, drop_in, .. } = &step.kind {
        let texts = [content, drop_in].into_iter().flatten();
        found = texts
            .flat_map(|text| holds_secret(text, secrets))
            .map(|name| ("secret-in-unit", format!("holds the secret `{name}`: units are readable by all")))
            .collect();
    } else if let StepKind::Command { check, .. } = &step.kind {
        if matches!(check.trim(), "" | "true" | ":" | "false") {
            found.push(("no-check", "its check says nothing about the server".to_owned()));
        }
    } else if let StepKind::Wait { timeout_s: 0, .. } = &step.kind {
        found.push(("no-deadline", "waits without a deadline".to_owned()));
    } else if let StepKind::Certificate(certificate) = &step.kind
        && certificate.renew_hours >= certificate.life_hours
    {
        found.push(("renews-always", "renews a certificate that was just issued".to_owned()));
    }
    let (server, id) = (server.to_owned(), step.id.clone());
    found
        .into_iter()
        .map(|(code, message)| Lint { code, server: server.clone(), step: id.clone(), message })
        .collect()
}

fn file(
    content: &str,
    mode: &str,
    secret: bool,
    secrets: &BTreeMap<String, String>,
) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let open = u32::from_str_radix(mode, 8).is_ok_and(|mode| mode & 0o007 != 0);
    let held = holds_secret(content, secrets);
    if open && (secret || !held.is_empty()) {
        let message = format!("holds a secret and has mode {mode}: everybody on the server can read it");
        found.push(("open-secret", message));
    }
    if !secret && !held.is_empty() {
        let names = held.join("`, `");
        let message = format!("holds the secret `{names}` and is not marked `secret`: diffs would show it");
        found.push(("unmarked-secret", message));
    }
    if content.contains("PRIVATE KEY-----") {
        let message = "holds a private key: keys are made on the server";
        found.push(("shipped-key", message.to_owned()));
    }
    found
}

/// Names of the secrets whose value stands in a text. Short values would match by chance and are not looked for.
fn holds_secret<'s>(text: &str, secrets: &'s BTreeMap<String, String>) -> Vec<&'s str> {
    secrets
        .iter()
        .filter(|(_, value)| value.len() >= 8 && text.contains(value.as_str()))
        .map(|(name, _)| name.as_str())
        .collect()
}
