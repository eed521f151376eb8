//! `sysctl`: kernel settings, persisted in one file of ours and set now.
//!
//! A container shares the kernel's settings with its machine and may find them read-only: a setting that
//! has the wanted value already is fine there, another one is an error that says so.

use super::Found;
use super::attributes::Attributes;
use crate::diff;
use crate::durable;
use crate::error::{Code, StepError};
use crate::host::Host;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

type Values = BTreeMap<String, String>;

pub(super) fn check(host: &Host, values: &Values, file: &str) -> Result<Option<Found>, StepError> {
    let mut words = Vec::new();
    let mut detail = String::new();
    let path = persisted(file);
    let place = host.path(&path);
    let old = durable::read_if_there(&place).map_err(|error| StepError::io("read", &place, error))?;
    let content = content(values);
    if old.as_deref() == Some(content.as_bytes()) {
        let lines = Attributes::of_plain_file(host, &place)?;
        if !lines.is_empty() {
            words.push(format!("change mode or owner of {path}"));
            detail.push_str(&lines.join("\n"));
        }
    } else {
        let change = diff::text(&path, old.as_deref(), &content, false);
        words.push(change.summary);
        detail.push_str(&change.detail);
    }
    for (key, value) in values {
        let live = live(host, key);
        if live.as_deref() != Some(normal(value).as_str()) {
            words.push(format!("set {key} = {value} (is {})", live.as_deref().unwrap_or("not there")));
        }
    }
    Ok((!words.is_empty()).then(|| Found::new(words.join("; ")).with_detail(detail)))
}

pub(super) fn apply(host: &Host, values: &Values, file: &str) -> Result<(), StepError> {
    let place = host.path(&persisted(file));
    place
        .parent()
        .map_or(Ok(()), |folder| durable::make_dir(folder, 0o755))
        .and_then(|()| durable::write(&place, content(values).as_bytes(), 0o644, None))
        .map_err(|error| StepError::io("write", &place, error))?;
    for (key, value) in values {
        if live(host, key).as_deref() != Some(normal(value).as_str()) {
            set(host, key, value)?;
        }
    }
    Ok(())
}

fn set(host: &Host, key: &str, value: &str) -> Result<(), StepError> {
    let place = setting(host, key);
    fs::write(&place, format!("{value}\n")).map_err(|error| {
        // /proc/sys of a container is mounted read-only: EROFS, and EACCES for what is not namespaced.
        let read_only = matches!(Code::of_io(&error), Code::ReadOnly | Code::Permission);
        let code = if read_only { Code::ReadOnly } else { Code::SysctlRefused };
        StepError::new(code, format!("set {key} = {value}")).because(error)
    })
}

/// The value now, white space made plain; `None` when the kernel has no such setting.
fn live(host: &Host, key: &str) -> Option<String> {
    let read: io::Result<String> = fs::read_to_string(setting(host, key));
    Some(normal(&read.ok()?))
}

fn normal(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

fn setting(host: &Host, key: &str) -> PathBuf {
    host.path("/proc/sys").join(key.replace('.', "/"))
}

fn persisted(file: &str) -> String {
    format!("/etc/sysctl.d/{}", file.trim_start_matches("/etc/sysctl.d/"))
}

fn content(values: &Values) -> String {
    let lines: Vec<String> = values.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    lines.join(
        "
",
    ) + "
"
}

/// The file that apply writes.
pub(super) fn path(file: &str) -> String {
    persisted(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_persisted_and_set_and_then_satisfied() {
        let dir = tempfile::tempdir().unwrap();
        let proc_net = dir.path().join("proc/sys/net/ipv4");
        fs::create_dir_all(&proc_net).unwrap();
        fs::write(proc_net.join("ip_forward"), "0\n").unwrap();
        fs::write(proc_net.join("ip_local_port_range"), "32768\t60999\n").unwrap();
        let host = Host::new(dir.path(), 0);
        let values = Values::from([
            ("net.ipv4.ip_forward".to_owned(), "1".to_owned()),
            ("net.ipv4.ip_local_port_range".to_owned(), "32768 60999".to_owned()),
        ]);
        let found = check(&host, &values, "60-rackwright.conf").unwrap().unwrap();
        assert!(found.summary.ends_with("; set net.ipv4.ip_forward = 1 (is 0)"), "{}", found.summary);
        apply(&host, &values, "60-rackwright.conf").unwrap();
        assert_eq!(check(&host, &values, "60-rackwright.conf").unwrap(), None);
    }

    #[test]
    fn a_setting_that_the_kernel_lacks_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let values = Values::from([("net.nosuch".to_owned(), "1".to_owned())]);
        let error = apply(&host, &values, "x.conf").unwrap_err();
        assert_eq!((error.code, error.to_string().as_str()), (Code::SysctlRefused, "set net.nosuch = 1"));
    }
}
