//! One server: its overlay root, its disk, and the systemd-nspawn that is its power supply.
//!
//! What makes it this server and no other (host name, address, the operator's key) is written into the
//! overlay's upper layer before the first start, and never again: a later start finds what the server left.

use crate::base::place_file;
use crate::error::{LabError, file_error};
use crate::mount;
use crate::names;
use crate::paths::ServerPaths;
use crate::spec::{LabName, ServerSpec, Subnet};
use crate::tool::Tools;
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Devices of the machine that a server gets, where they exist: kubelets read the first, jobs may use the others.
const DEVICES: [&str; 3] = ["/dev/kmsg", "/dev/fuse", "/dev/net/tun"];
/// Calls beyond systemd-nspawn's own list that containers in a server need.
const CALLS: &str = "add_key keyctl bpf @keyring @mount";
/// systemd-nspawn's switches that no option covers: control groups of the server's own, and no lock files,
/// because the lab's record is the lock and nspawn's would stay behind.
pub(crate) const VARIABLES: [(&str, &str); 2] =
    [("SYSTEMD_NSPAWN_USE_CGNS", "1"), ("SYSTEMD_NSPAWN_LOCK", "0")];

/// Makes a server's folders, its disk, and the files that are its own.
///
/// # Errors
/// [`LabError::File`], what mkfs said.
pub(crate) async fn prepare(
    tools: &Tools,
    server: &ServerSpec,
    subnet: Subnet,
    paths: &ServerPaths,
    key: &str,
) -> Result<(), LabError> {
    let upper = paths.upper();
    let folders = [paths.root(), upper.clone(), paths.work(), paths.data()];
    let real = ServerPaths::REAL.iter().map(|(name, _)| paths.folder().join(name));
    for folder in folders.into_iter().chain(real) {
        std::fs::create_dir_all(&folder).map_err(file_error("make", &folder))?;
    }
    let home = upper.join("root");
    for secret in [home.clone(), home.join(".ssh")] {
        DirBuilder::new().mode(0o700).recursive(true).create(&secret).map_err(file_error("make", &secret))?;
    }
    place_file(&home.join(".ssh/authorized_keys"), 0o600, key.as_bytes())?;
    place_file(&upper.join("etc/hostname"), 0o644, format!("{}\n", server.name).as_bytes())?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {}\n", server.address, server.name);
    place_file(&upper.join("etc/hosts"), 0o644, hosts.as_bytes())?;
    place_file(&upper.join("etc/resolv.conf"), 0o644, resolvers().as_bytes())?;
    // It must sort before systemd's own 80-container-host0.network.
    let network = upper.join("etc/systemd/network/10-host0.network");
    place_file(&network, 0o644, network_text(server.address, subnet).as_bytes())?;
    let disk = File::create(paths.disk()).and_then(|file| file.set_len(server.disk.get()));
    disk.map_err(file_error("make", &paths.disk()))?;
    tools.run("mkfs.ext4", [OsString::from("-qF"), paths.disk().into()]).await?;
    Ok(())
}

/// Mounts a server's root and disk, unless they are mounted.
///
/// # Errors
/// What mount said.
pub(crate) async fn mount_all(tools: &Tools, paths: &ServerPaths, base: &Path) -> Result<(), LabError> {
    if !mount::is_mounted(&paths.data())? {
        let words = [OsString::from("-oloop"), paths.disk().into(), paths.data().into()];
        tools.run("mount", words).await?;
    }
    if !mount::is_mounted(&paths.root())? {
        let mut layers = OsString::from("lowerdir=");
        layers.push(base);
        layers.push(",upperdir=");
        layers.push(paths.upper());
        layers.push(",workdir=");
        layers.push(paths.work());
        let words = ["-toverlay".into(), "overlay".into(), "-o".into(), layers, paths.root().into()];
        tools.run::<OsString>("mount", words).await?;
    }
    Ok(())
}

/// Takes a server's mounts away, as a power cut does after the last write that reached the disk.
///
/// # Errors
/// [`LabError::File`].
pub(crate) async fn unmount_all(paths: &ServerPaths) -> Result<(), LabError> {
    mount::unmount(&paths.root()).await?;
    mount::unmount(&paths.data()).await
}

/// The systemd-nspawn command of a server.
pub(crate) fn nspawn(lab: &LabName, server: &ServerSpec, paths: &ServerPaths) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["systemd-nspawn".into()];
    let plain = [
        "--quiet",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        "--boot",
        "--capability=all",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=pipe",
    ];
    words.extend(plain.map(OsString::from));
    words.push(format!("--machine={}", names::machine(lab, &server.name)).into());
    words.push(format!("--hostname={}", server.name).into());
    words.push(format!("--network-bridge={}", names::lab_wide(lab)).into());
    words.push(format!("--system-call-filter={CALLS}").into());
    words.push(joined("--directory=", &paths.root(), ""));
    words.push(joined("--bind=", &paths.data(), ":/data"));
    for (name, inside) in ServerPaths::REAL {
        words.push(joined("--bind=", &paths.folder().join(name), &format!(":{inside}")));
    }
    for device in DEVICES.into_iter().filter(|device| Path::new(device).exists()) {
        words.push(format!("--bind={device}").into());
    }
    words
}

fn joined(option: &str, path: &Path, rest: &str) -> OsString {
    let mut word = OsString::from(option);
    word.push(path);
    word.push(rest);
    word
}

fn network_text(address: Ipv4Addr, subnet: Subnet) -> String {
    format!(
        "[Match]\nName=host0\n[Network]\nAddress={address}/{}\nGateway={}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        subnet.prefix(),
        subnet.gateway()
    )
}

/// The machine's resolvers, as far as a server can reach them: one on the machine's own loopback it cannot.
fn resolvers() -> String {
    let read = |path: &str| std::fs::read_to_string(PathBuf::from(path)).unwrap_or_default();
    let found = reachable(&read("/run/systemd/resolve/resolv.conf"));
    if found.is_empty() { reachable(&read("/etc/resolv.conf")) } else { found }
}

fn reachable(resolv_conf: &str) -> String {
    let useful =
        |line: &&str| line.starts_with("nameserver ") && !line.contains(" 127.") && !line.contains(" ::1");
    resolv_conf.lines().filter(useful).fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Paths;
    use crate::spec::tests::{lab, server};

    #[test]
    fn the_network_file_gives_the_address_and_the_way_out() {
        let spec = lab(vec![server("ml1", 13)]);
        let text = network_text(spec.servers[0].address, spec.subnet);
        assert!(text.contains("Address=10.77.0.13/24\nGateway=10.77.0.1\n"), "{text}");
    }

    #[test]
    fn a_resolver_on_the_machines_loopback_is_left_out() {
        let text = "# by hand\nsearch x\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver ::1\n";
        assert_eq!(reachable(text), "nameserver 9.9.9.9\n");
    }

    #[test]
    fn the_command_names_the_machine_and_the_bridge_of_its_lab() {
        let spec = lab(vec![server("ml1", 13)]);
        let paths = Paths::of_this_machine().lab(&spec.name).server("ml1");
        let words = nspawn(&spec.name, &spec.servers[0], &paths);
        let line = words.join(&OsString::from(" ")).into_string().unwrap();
        for part in ["--machine=dev-ml1 ", "--network-bridge=rw-dev ", ":/data ", ":/var/lib/etcd"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
}
