//! What everything is called. A network interface's name ends at 15 characters, and so does every name here.
//!
//! `LAB-SERVER` is readable and unambiguous, because a lab's name has no hyphen. Where it does not fit, a hash
//! without a hyphen takes its place, so that it meets no readable name either.

use crate::spec::LabName;

/// The longest name of a network interface, in characters (`IFNAMSIZ` less the closing zero).
pub const NAME_MAX: usize = 15;
/// What systemd-nspawn puts before a machine's name to name the host's end of its link.
const HOST_LINK_PREFIX: &str = "vb-";
/// Characters that remain for the machine.
const MACHINE_MAX: usize = NAME_MAX - HOST_LINK_PREFIX.len();

/// The name of the lab's bridge, nft table and control group.
pub fn lab_wide(lab: &LabName) -> String {
    format!("rw-{lab}")
}

/// The name under which systemd-nspawn knows a server; the server's own host name is another.
pub fn machine(lab: &LabName, server: &str) -> String {
    let readable = format!("{lab}-{server}");
    if readable.len() <= MACHINE_MAX {
        return readable;
    }
    let hash = blake3::hash(readable.as_bytes()).to_hex();
    let mut name = String::from("x");
    name.extend(hash.chars().take(MACHINE_MAX - 1));
    name
}

/// The host's end of a server's link.
pub fn host_link(lab: &LabName, server: &str) -> String {
    format!("{HOST_LINK_PREFIX}{}", machine(lab, server))
}

/// The control group of everything of a server, below each hierarchy's root.
pub fn server_group(lab: &LabName, server: &str) -> String {
    format!("{}/{server}", lab_wide(lab))
}

/// The group below a server's whose root the server itself sees, and which has its limits.
pub fn inner_group(lab: &LabName, server: &str) -> String {
    format!("{}/inner", server_group(lab, server))
}

/// The group below a server's of what starts it again when it reboots.
pub fn power_group(lab: &LabName, server: &str) -> String {
    format!("{}/power", server_group(lab, server))
}

/// The control group in which the base image is made. No server's name has a dot.
pub fn build_group(lab: &LabName) -> String {
    format!("{}/.base", lab_wide(lab))
}

/// A fixed hardware address for the bridge, in the locally administered range. Without it the bridge takes
/// that of a port and changes it when the port goes, and the servers' neighbours tables go stale.
pub fn bridge_address(lab: &LabName) -> String {
    let hash = blake3::hash(lab.as_str().as_bytes());
    hash.as_bytes().iter().take(5).fold(String::from("02"), |address, byte| format!("{address}:{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> LabName {
        text.parse().unwrap()
    }

    #[test]
    fn short_names_stay_readable() {
        assert_eq!(host_link(&name("dev"), "control1"), "vb-dev-control1");
        assert_eq!(lab_wide(&name("dev")), "rw-dev");
    }

    #[test]
    fn long_names_become_a_hash_that_is_the_same_each_time() {
        let link = host_link(&name("test42"), "results1");
        assert_eq!(link, host_link(&name("test42"), "results1"));
        assert_eq!(link.len(), NAME_MAX);
        assert!(link.starts_with("vb-x"));
        assert_ne!(link, host_link(&name("test42"), "results2"));
        assert_ne!(link, host_link(&name("test43"), "results1"));
    }

    #[test]
    fn the_bridge_has_a_local_unicast_address() {
        let address = bridge_address(&name("dev"));
        assert!(address.starts_with("02:"));
        assert_eq!(address.len(), 17);
    }

    proptest! {
        #[test]
        fn names_fit_and_two_labs_never_meet(
            labs in ("[a-z][a-z0-9]{0,11}", "[a-z][a-z0-9]{0,11}"),
            servers in ("[a-z][a-z0-9-]{0,20}[a-z0-9]", "[a-z][a-z0-9-]{0,20}[a-z0-9]"),
        ) {
            let (first, second) = (name(&labs.0), name(&labs.1));
            prop_assert!(lab_wide(&first).len() <= NAME_MAX);
            prop_assert!(host_link(&first, &servers.0).len() <= NAME_MAX);
            if (&first, &servers.0) != (&second, &servers.1) {
                prop_assert_ne!(host_link(&first, &servers.0), host_link(&second, &servers.1));
            }
        }
    }
}
