//! `package`: Debian packages are installed, without starting their daemons.
//!
//! A daemon that starts before its configuration is there does harm (it opens ports, writes default
//! data); so while apt runs, policy-rc.d says no, and the unit steps start what the playbook wants.

use super::Found;
use crate::dpkg;
use crate::durable;
use crate::error::{Code, StepError};
use crate::exec::{self, Finished};
use crate::host::Host;
use std::fs;
use std::io;
use std::process::Command;
use std::time::Duration;

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str = "#!/bin/sh\n# rackwright: units are started by their own steps\nexit 101\n";
/// A slow mirror and a big package; apt reports its own network time-outs long before.
const INSTALL_LIMIT: Duration = Duration::from_mins(20);

/// Where programs and units of packages lie; the last two are links to the ones before on a merged /usr.
const KEPT: [&str; 6] = ["/usr/bin/", "/usr/sbin/", "/usr/lib/systemd/", "/lib/systemd/", "/bin/", "/sbin/"];

pub(super) fn check(host: &Host, names: &[String]) -> Result<Option<Found>, StepError> {
    let missing = missing(host, names)?;
    let mut words = Vec::new();
    if !missing.is_empty() {
        words.push(format!("install {}", missing.join(", ")));
    }
    let damaged = damaged(host, names, &missing);
    words.extend(damaged.iter().map(|(name, path)| format!("reinstall {name} ({path} is gone)")));
    Ok((!words.is_empty()).then(|| Found::new(words.join("; "))))
}

/// Installed packages that lost a program or a unit, with the first one that is gone. Others of their files may
/// be left out on purpose, such as documentation on small images.
fn damaged<'a>(host: &Host, names: &'a [String], missing: &[&str]) -> Vec<(&'a str, String)> {
    let mut damaged = Vec::new();
    for name in names.iter().map(String::as_str).filter(|name| !missing.contains(name)) {
        let bare = name.split_once('=').map_or(name, |(bare, _)| bare);
        let files = dpkg::files(&host.path(dpkg::INFO), bare);
        let matters = |path: &&String| KEPT.iter().any(|folder| path.starts_with(folder));
        let gone = |path: &&String| fs::symlink_metadata(host.path(path)).is_err();
        damaged.extend(files.iter().filter(matters).find(gone).map(|path| (name, path.clone())));
    }
    damaged
}

/// Those of `names` (`name` or `name=version`) that are not installed so.
pub(super) fn missing<'a>(host: &Host, names: &'a [String]) -> Result<Vec<&'a str>, StepError> {
    let installed = host.packages()?;
    let there = |name: &str| match name.split_once('=') {
        Some((name, version)) => installed.get(name).is_some_and(|is| is == version),
        None => installed.contains_key(name),
    };
    Ok(names.iter().map(String::as_str).filter(|name| !there(name)).collect())
}

pub(super) fn apply(host: &Host, names: &[String]) -> Result<(), StepError> {
    if !host.is_server() {
        return Err(StepError::new(Code::BadStep, "install packages below a folder"));
    }
    let _one_at_a_time = host.apt();
    // Another package step may have brought it along.
    host.forget_packages();
    let mut wanted = missing(host, names)?;
    let damaged = damaged(host, names, &wanted);
    wanted.extend(damaged.into_iter().map(|(name, _)| name));
    if wanted.is_empty() {
        return Ok(());
    }
    let ours = set_policy(host)?;
    let installed = install(host, &wanted);
    host.forget_packages();
    if ours {
        clear_policy(host)?;
    }
    installed
}

fn install(host: &Host, missing: &[&str]) -> Result<(), StepError> {
    if dpkg::interrupted(&host.path("/var/lib/dpkg/updates")) {
        let done = apt_like("dpkg", &["--force-confold", "--configure", "-a"], &[])?;
        judge(&done, "finish an interrupted package installation")?;
    }
    let what = format!("install {}", missing.join(", "));
    if no_lists(host) {
        update()?;
        return judge(&apt_install(missing)?, &what);
    }
    let first = apt_install(missing)?;
    match judge(&first, &what) {
        // Lists that are too old name versions which the mirror has no more.
        Err(error) if error.code == Code::PackageUnknown || error.code == Code::PackageNetwork => {
            update()?;
            judge(&apt_install(missing)?, &what)
        }
        judged => judged,
    }
}

fn update() -> Result<(), StepError> {
    judge(
        &apt_like("apt-get", &["-q", "-o", "DPkg::Lock::Timeout=120"], &["update"])?,
        "update the package lists",
    )
}

fn apt_install(names: &[&str]) -> Result<Finished, StepError> {
    let options = [
        "-q",
        "-y",
        // Says nothing of those that are not installed yet.
        "--reinstall",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=120",
        "-o",
        "Dpkg::Options::=--force-confold",
        "-o",
        "Acquire::Retries=2",
        "install",
    ];
    apt_like("apt-get", &options, names)
}

fn apt_like(program: &str, options: &[&str], names: &[&str]) -> Result<Finished, StepError> {
    let mut command = Command::new(program);
    command.args(options).args(names).env("DEBIAN_FRONTEND", "noninteractive");
    exec::run_command(command, INSTALL_LIMIT)
}

fn no_lists(host: &Host) -> bool {
    let lists = fs::read_dir(host.path("/var/lib/apt/lists")).into_iter().flatten().flatten();
    !lists.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn judge(done: &Finished, what: &str) -> Result<(), StepError> {
    if done.success() {
        return Ok(());
    }
    let output = done.output();
    Err(StepError::new(code_of(&output), what).with_evidence(&output))
}

/// apt has no exit statuses worth the name; its English messages are stable.
fn code_of(output: &str) -> Code {
    let any = |phrases: &[&str]| phrases.iter().any(|phrase| output.contains(phrase));
    if any(&["No space left on device", "don't have enough free space"]) {
        Code::DiskFull
    } else if any(&["Read-only file system"]) {
        Code::ReadOnly
    } else if any(&["Could not get lock", "is another process using it"]) {
        Code::PackageLocked
    } else if any(&["Unable to locate package", "has no installation candidate", "was not found"]) {
        Code::PackageUnknown
    } else if any(&[
        "Could not resolve",
        "Temporary failure",
        "Could not connect",
        "Failed to fetch",
        "timed out",
    ]) {
        Code::PackageNetwork
    } else {
        Code::PackageFailed
    }
}

/// Forbids daemon starts; false when the server has a policy of its own, which stays.
fn set_policy(host: &Host) -> Result<bool, StepError> {
    let path = host.path(POLICY);
    let old = durable::read_if_there(&path).map_err(|error| StepError::io("read", &path, error))?;
    if old.is_some_and(|old| old != POLICY_TEXT.as_bytes()) {
        return Ok(false);
    }
    durable::write(&path, POLICY_TEXT.as_bytes(), 0o755, None)
        .map_err(|error| StepError::io("write", &path, error))?;
    Ok(true)
}

/// Removes our policy, also one that an interrupted apply left behind.
pub(crate) fn clear_policy(host: &Host) -> Result<(), StepError> {
    let path = host.path(POLICY);
    let remove = || -> io::Result<()> {
        if durable::read_if_there(&path)?.is_some_and(|text| text == POLICY_TEXT.as_bytes()) {
            durable::remove(&path)?;
        }
        Ok(())
    };
    remove().map_err(|error| StepError::io("remove", &path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_lost_a_program_is_named_and_one_without_its_documentation_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let put = |path: &str, text: &str| {
            let place = dir.path().join(path);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, text).unwrap();
        };
        let status = "Package: socat\nStatus: install ok installed\nVersion: 1.7\n";
        put("var/lib/dpkg/status", status);
        put("var/lib/dpkg/info/socat:amd64.list", "/.\n/usr/bin\n/usr/bin/socat\n/usr/share/doc/socat\n");
        put("usr/bin/socat", "");
        let names = ["socat".to_owned()];
        assert_eq!(check(&host, &names).unwrap(), None);
        fs::remove_file(dir.path().join("usr/bin/socat")).unwrap();
        let found = check(&host, &names).unwrap().unwrap();
        assert_eq!(found.summary, "reinstall socat (/usr/bin/socat is gone)");
    }

    #[test]
    fn apt_messages_have_codes() {
        for (output, code) in [
            ("dpkg: error: unable to create: No space left on device", Code::DiskFull),
            ("E: You don't have enough free space in /var/cache/apt/archives/.", Code::DiskFull),
            ("E: Unable to locate package nosuch", Code::PackageUnknown),
            ("Err:1 http://x bookworm\n  Temporary failure resolving 'x'", Code::PackageNetwork),
            ("E: Could not get lock /var/lib/dpkg/lock-frontend.", Code::PackageLocked),
            ("dpkg: error processing package x", Code::PackageFailed),
        ] {
            assert_eq!(code_of(output), code, "{output}");
        }
    }

    #[test]
    fn only_what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("var/lib/dpkg/status");
        fs::create_dir_all(status.parent().unwrap()).unwrap();
        fs::write(&status, "Package: runc\nStatus: install ok installed\nVersion: 1.1.5\n").unwrap();
        let host = Host::new(dir.path(), 0);
        let names = ["runc", "runc=1.1.5", "runc=2", "socat"].map(str::to_owned);
        assert_eq!(check(&host, &names).unwrap(), Some(Found::new("install runc=2, socat")));
    }

    #[test]
    fn a_policy_left_behind_is_removed_and_a_foreign_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path(), 0);
        let policy = dir.path().join("usr/sbin/policy-rc.d");
        fs::create_dir_all(policy.parent().unwrap()).unwrap();
        assert!(set_policy(&host).unwrap());
        clear_policy(&host).unwrap();
        assert!(!policy.exists());
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        assert!(!set_policy(&host).unwrap());
        clear_policy(&host).unwrap();
        assert!(policy.exists());
    }
}
