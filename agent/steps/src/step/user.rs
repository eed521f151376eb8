//! `user`: a system user with a group of its own exists.

use super::Found;
use crate::error::{Code, StepError};
use crate::exec;
use crate::host::Host;
use std::fs;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn check(host: &Host, name: &str, home: &str) -> Result<Option<Found>, StepError> {
    let found = match current_home(host, name)? {
        None => Some(Found::new(format!("create user {name}"))),
        Some(is) if is != home => {
            Some(Found::new(format!("change user {name}")).with_detail(format!("home {is} -> {home}")))
        }
        Some(_) => None,
    };
    Ok(found)
}

pub(super) fn apply(host: &Host, name: &str, home: &str) -> Result<(), StepError> {
    if !host.is_server() {
        return Err(StepError::new(Code::BadStep, "make users below a folder"));
    }
    let done = if current_home(host, name)?.is_some() {
        exec::run("usermod", &["--home", home, name], LIMIT)?
    } else {
        let args = [
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            home,
            "--shell",
            "/usr/sbin/nologin",
            name,
        ];
        exec::run("useradd", &args, LIMIT)?
    };
    if done.success() {
        return Ok(());
    }
    Err(StepError::new(Code::UserFailed, format!("create user {name}")).with_evidence(&done.output()))
}

fn current_home(host: &Host, name: &str) -> Result<Option<String>, StepError> {
    let path = host.path("/etc/passwd");
    let passwd = fs::read_to_string(&path).map_err(|error| StepError::io("read", &path, error))?;
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    Ok(fields
        .into_iter()
        .find(|fields| fields.first() == Some(&name))
        .map(|fields| (*fields.get(5).unwrap_or(&"")).to_owned()))
}
