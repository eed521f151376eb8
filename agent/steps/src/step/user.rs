//! `user`: a system user with a group of its own exists.

use super::Found;
use crate::error::{Code, StepError};
use crate::exec;
use crate::host::Host;
use std::fs;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// Nobody logs in as a system user.
const SHELL: &str = "/usr/sbin/nologin";

pub(super) fn check(host: &Host, name: &str, home: &str) -> Result<Option<Found>, StepError> {
    let Some(is) = current(host, name)? else {
        return Ok(Some(Found::new(format!("create user {name}"))));
    };
    let mut lines = Vec::new();
    for (what, is, wanted) in [("home", &is.home, home), ("shell", &is.shell, SHELL)] {
        if is != wanted {
            lines.push(format!("{what} {is} -> {wanted}"));
        }
    }
    Ok((!lines.is_empty()).then(|| Found::new(format!("change user {name}")).with_detail(lines.join("\n"))))
}

pub(super) fn apply(host: &Host, name: &str, home: &str) -> Result<(), StepError> {
    if !host.is_server() {
        return Err(StepError::new(Code::BadStep, "make users below a folder"));
    }
    let done = if current(host, name)?.is_some() {
        exec::run("usermod", &["--home", home, "--shell", SHELL, name], LIMIT)?
    } else {
        let args =
            ["--system", "--user-group", "--no-create-home", "--home-dir", home, "--shell", SHELL, name];
        exec::run("useradd", &args, LIMIT)?
    };
    if done.success() {
        return Ok(());
    }
    Err(StepError::new(Code::UserFailed, format!("create user {name}")).with_evidence(&done.output()))
}

struct Account {
    home: String,
    shell: String,
}

fn current(host: &Host, name: &str) -> Result<Option<Account>, StepError> {
    let path = host.path("/etc/passwd");
    let passwd = fs::read_to_string(&path).map_err(|error| StepError::io("read", &path, error))?;
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    Ok(fields.into_iter().find(|fields| fields.first() == Some(&name)).map(|fields| {
        let field = |at: usize| (*fields.get(at).unwrap_or(&"")).to_owned();
        Account { home: field(5), shell: field(6) }
    }))
}
