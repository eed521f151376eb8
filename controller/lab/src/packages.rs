//! The Debian packages that a lab needs on the machine: found by the program that each brings.

use crate::error::LabError;
use crate::tool::Tools;
use std::path::Path;

/// Programs that the lab runs, with the package of each. What Debian marks essential is not listed.
const NEEDED: [(&str, &str); 8] = [
    ("systemd-nspawn", "systemd-container"),
    ("mmdebstrap", "mmdebstrap"),
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("ssh", "openssh-client"),
    ("mkfs.ext4", "e2fsprogs"),
];

/// Needed only where a kernel module is to be loaded.
const FOR_MODULES: (&str, &str) = ("modprobe", "kmod");

/// Packages that are absent, judged by a search path of folders separated by colons.
pub(crate) fn missing(search_path: &str, loads_modules: bool) -> Vec<&'static str> {
    let exists =
        |program: &str| search_path.split(':').any(|folder| Path::new(folder).join(program).exists());
    let mut absent: Vec<_> = NEEDED
        .into_iter()
        .chain(loads_modules.then_some(FOR_MODULES))
        .filter(|(program, _)| !exists(program))
        .map(|(_, package)| package)
        .collect();
    absent.dedup();
    absent
}

/// Installs packages from the machine's own sources.
///
/// # Errors
/// What apt-get said.
pub(crate) async fn install(tools: &Tools, packages: &[&str]) -> Result<(), LabError> {
    tools.run("apt-get", ["-q", "update"]).await?;
    let options =
        ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "--no-install-recommends", "install"];
    tools.run("env", options.iter().chain(packages)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_machine_misses_each_package_once() {
        let expected = [
            "systemd-container",
            "mmdebstrap",
            "iproute2",
            "nftables",
            "openssh-client",
            "e2fsprogs",
            "kmod",
        ];
        assert_eq!(missing("/nowhere:/neither", true), expected);
    }

    #[test]
    fn a_package_counts_as_there_when_its_program_is_in_any_folder_of_the_path() {
        let folder = tempfile::tempdir().unwrap();
        for program in ["ip", "bridge", "tc", "nft"] {
            std::fs::write(folder.path().join(program), "").unwrap();
        }
        let absent = missing(&format!("/nowhere:{}", folder.path().display()), false);
        assert!(!absent.contains(&"iproute2") && !absent.contains(&"nftables"), "{absent:?}");
    }
}
