//! `module`: kernel modules are loaded now and at boot; built-in ones count.

use super::Found;
use crate::durable;
use crate::error::{Code, StepError};
use crate::exec;
use crate::facts::module_present;
use crate::host::Host;
use std::time::Duration;

const LOAD_LIMIT: Duration = Duration::from_secs(30);

pub(super) fn check(host: &Host, step: &str, names: &[String]) -> Result<Option<Found>, StepError> {
    let mut words = Vec::new();
    let path = path(step);
    let place = host.path(&path);
    let old = durable::read_if_there(&place).map_err(|error| StepError::io("read", &place, error))?;
    if old.as_deref() != Some(content(names).as_bytes()) {
        words.push(format!("write {path}"));
    }
    let absent = absent(host, names);
    if !absent.is_empty() {
        words.push(format!("load {}", absent.join(", ")));
    }
    Ok((!words.is_empty()).then(|| Found::new(words.join("; "))))
}

pub(super) fn apply(host: &Host, step: &str, names: &[String]) -> Result<(), StepError> {
    let place = host.path(&path(step));
    place
        .parent()
        .map_or(Ok(()), |folder| durable::make_dir(folder, 0o755))
        .and_then(|()| durable::write(&place, content(names).as_bytes(), 0o644, None))
        .map_err(|error| StepError::io("write", &place, error))?;
    for name in absent(host, names) {
        let done = exec::run("modprobe", &["--", name], LOAD_LIMIT)?;
        if !done.success() {
            return Err(StepError::new(Code::ModuleMissing, format!("load the kernel module {name}"))
                .with_evidence(&done.output()));
        }
    }
    Ok(())
}

fn absent<'a>(host: &Host, names: &'a [String]) -> Vec<&'a str> {
    names.iter().map(String::as_str).filter(|name| !module_present(host.root(), name)).collect()
}

fn content(names: &[String]) -> String {
    names.join("\n") + "\n"
}

/// The file that apply writes, one a step.
pub(super) fn path(step: &str) -> String {
    let slug: String = step.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("/etc/modules-load.d/rackwright-{slug}.conf")
}
