//! What lab is wanted: its name, its subnet, and each server's role, address and sizes.
//!
//! Plain values: whoever reads the inventory hands them over. [`LabSpec::check`] finds everything that is
//! wrong with them at once and touches nothing.

use rackwright_wire::units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::error::LabError;

/// The longest lab name: `rw-` and 12 characters are the 15 that a network interface's name may have.
const LAB_NAME_MAX: usize = 12;
/// The longest server name: a DNS label.
const SERVER_NAME_MAX: usize = 63;

/// A lab's name: a small letter, then small letters and digits, at most 12 of them together.
/// No hyphen: it separates the lab from the server in the names of links and machines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabName {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if plain && text.len() <= LAB_NAME_MAX && text.starts_with(|first: char| first.is_ascii_lowercase()) {
            return Ok(Self(text.to_owned()));
        }
        let fault =
            format!("the lab's name {text:?} is not a letter and up to 11 letters and digits, all small");
        Err(LabError::Spec { faults: vec![fault] })
    }
}

impl TryFrom<String> for LabName {
    type Error = LabError;
    fn try_from(text: String) -> Result<Self, LabError> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The lab's address range, such as `10.77.0.0/24`. The machine itself takes the first address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The machine's own address on the bridge, which is the servers' gateway.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits().saturating_add(1))
    }

    /// How many leading bits are the network's.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether a server may have the address: in the range, and neither network, gateway nor broadcast.
    pub fn is_for_servers(self, address: Ipv4Addr) -> bool {
        let host = address.to_bits() & !mask(self.prefix);
        self.contains(address) && host > 1 && host != !mask(self.prefix)
    }
}

/// Network mask of a prefix of 16 to 29 bits.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(u32::from(32_u8.saturating_sub(prefix))).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let parsed = text.split_once('/').and_then(|(network, prefix)| {
            let network: Ipv4Addr = network.parse().ok()?;
            let prefix: u8 = prefix.parse().ok().filter(|bits| (16..=29).contains(bits))?;
            (network.is_private() && network.to_bits() & !mask(prefix) == 0)
                .then_some(Self { network, prefix })
        });
        parsed.ok_or_else(|| LabError::Spec {
            faults: vec![format!(
                "the subnet {text:?} is not a private network of /16 to /29, such as 10.77.0.0/24"
            )],
        })
    }
}

impl TryFrom<String> for Subnet {
    type Error = LabError;
    fn try_from(text: String) -> Result<Self, LabError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// One server of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// Its host name.
    pub name: String,
    /// Its role in the rack; the lab only shows it.
    pub role: String,
    /// Its address in the lab's subnet.
    pub address: Ipv4Addr,
    /// Its control group's memory limit.
    pub memory: Bytes,
    /// Its control group's CPU limit.
    pub cpus: MilliCpu,
    /// Size of its data disk, which is mounted at /data.
    pub disk: Bytes,
}

/// The wanted lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabSpec {
    /// Its name, which everything made carries.
    pub name: LabName,
    /// Its address range.
    pub subnet: Subnet,
    /// Its servers.
    pub servers: Vec<ServerSpec>,
}

impl LabSpec {
    /// The least memory with which systemd, sshd and a kubelet start.
    pub const MEMORY_MIN: Bytes = Bytes::mib(256);
    /// The least disk that takes an ext4 journal.
    pub const DISK_MIN: Bytes = Bytes::mib(64);

    /// Finds everything that is wrong with the values themselves.
    ///
    /// # Errors
    /// [`LabError::Spec`] with every fault.
    pub fn check(&self) -> Result<(), LabError> {
        let mut faults = Vec::new();
        if self.servers.is_empty() {
            faults.push("the lab has no servers".to_owned());
        }
        let mut names = BTreeSet::new();
        let mut addresses = BTreeMap::new();
        for server in &self.servers {
            faults.extend(self.server_faults(server));
            if !names.insert(&server.name) {
                faults.push(format!("the name {} is given twice", server.name));
            }
            if let Some(other) = addresses.insert(server.address, &server.name) {
                faults.push(format!("{other} and {} have the same address {}", server.name, server.address));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(LabError::Spec { faults }) }
    }

    /// The server of that name.
    ///
    /// # Errors
    /// [`LabError::NoServer`] with the names that exist.
    pub fn server(&self, name: &str) -> Result<&ServerSpec, LabError> {
        self.servers.iter().find(|server| server.name == name).ok_or_else(|| LabError::NoServer {
            lab: self.name.to_string(),
            server: name.to_owned(),
            has: self.servers.iter().map(|server| server.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    fn server_faults(&self, server: &ServerSpec) -> Vec<String> {
        let name = &server.name;
        let mut faults = Vec::new();
        if !is_host_name(name) {
            faults.push(format!("{name:?} is not a host name of small letters, digits and inner hyphens"));
        }
        if !self.subnet.is_for_servers(server.address) {
            faults.push(format!(
                "{name}'s address {} is not one for a server in {}",
                server.address, self.subnet
            ));
        }
        if server.memory < Self::MEMORY_MIN {
            faults.push(format!("{name}'s memory {} is under {}", server.memory, Self::MEMORY_MIN));
        }
        if server.disk < Self::DISK_MIN {
            faults.push(format!("{name}'s disk {} is under {}", server.disk, Self::DISK_MIN));
        }
        if server.cpus.get() < 10 {
            faults.push(format!("{name}'s CPU limit {} is under 0.01", server.cpus));
        }
        faults
    }
}

fn is_host_name(name: &str) -> bool {
    let inner = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let edges = name.starts_with(|first: char| first.is_ascii_lowercase()) && !name.ends_with('-');
    inner && edges && name.len() <= SERVER_NAME_MAX
}

/// A link's rate in bits a second. Text: `500kbit`, `100mbit`, `1gbit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(u64);

impl Rate {
    /// A rate that the kernel tells in bytes a second.
    pub(crate) fn of_bytes_per_s(bytes: u64) -> Self {
        Self(bytes.saturating_mul(8))
    }

    /// Bits a second.
    pub fn bits_per_s(self) -> u64 {
        self.0
    }

    /// Bucket of the shaper in bytes: what passes in 10 ms, and never under 256 KiB, so that the
    /// kernel's timer (4 ms at 250 Hz) keeps the link full and one segmentation offload fits.
    pub fn burst_bytes(self) -> u64 {
        (self.0 / 8 / 100).max(256 * 1024)
    }
}

impl FromStr for Rate {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)]
            .into_iter()
            .find_map(|(suffix, factor)| text.strip_suffix(suffix)?.parse::<u64>().ok()?.checked_mul(factor))
            .filter(|bits| *bits >= 8_000)
            .map(Self)
            .ok_or_else(|| LabError::Spec {
                faults: vec![format!("{text:?} is not a rate of at least 8kbit, such as 100mbit")],
            })
    }
}

impl TryFrom<String> for Rate {
    type Error = LabError;
    fn try_from(text: String) -> Result<Self, LabError> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, suffix) = match self.0 {
            bits if bits.is_multiple_of(1_000_000_000) => (bits / 1_000_000_000, "gbit"),
            bits if bits.is_multiple_of(1_000_000) => (bits / 1_000_000, "mbit"),
            bits => (bits / 1_000, "kbit"),
        };
        write!(f, "{count}{suffix}")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn server(name: &str, last: u8) -> ServerSpec {
        ServerSpec {
            name: name.to_owned(),
            role: "ml".to_owned(),
            address: Ipv4Addr::new(10, 77, 0, last),
            memory: Bytes::mib(4096),
            cpus: MilliCpu::new(2000).unwrap(),
            disk: Bytes::mib(8192),
        }
    }

    pub(crate) fn lab(servers: Vec<ServerSpec>) -> LabSpec {
        LabSpec { name: "dev".parse().unwrap(), subnet: "10.77.0.0/24".parse().unwrap(), servers }
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let mut small = server("ml1", 255);
        small.memory = Bytes::mib(1);
        let faults = match lab(vec![server("Ml_1", 11), server("ml2", 11), small]).check() {
            Err(LabError::Spec { faults }) => faults,
            other => panic!("accepted: {other:?}"),
        };
        assert_eq!(
            faults,
            [
                "\"Ml_1\" is not a host name of small letters, digits and inner hyphens",
                "Ml_1 and ml2 have the same address 10.77.0.11",
                "ml1's address 10.77.0.255 is not one for a server in 10.77.0.0/24",
                "ml1's memory 1 MiB is under 256 MiB",
            ]
        );
    }

    #[test]
    fn a_sound_lab_has_no_faults() {
        lab(vec![server("control1", 11), server("ml-2", 254)]).check().unwrap();
    }

    #[test]
    fn lab_names_leave_room_for_an_interface_prefix_and_have_no_separator() {
        for bad in ["", "a-b", "A", "1a", "abcdefghijklm", "a b"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!("abcdefghijkl".parse::<LabName>().unwrap().as_str(), "abcdefghijkl");
    }

    #[test]
    fn the_gateway_is_the_first_address_and_no_servers() {
        let subnet: Subnet = "10.77.0.0/24".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 77, 0, 1));
        assert!(!subnet.is_for_servers(subnet.gateway()));
        assert!("10.77.0.1/24".parse::<Subnet>().is_err());
        assert!("8.8.8.0/24".parse::<Subnet>().is_err());
        assert!("10.0.0.0/8".parse::<Subnet>().is_err());
    }

    #[test]
    fn rates_read_as_they_print() {
        for text in ["8kbit", "100mbit", "1gbit", "1500kbit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert!("100".parse::<Rate>().is_err());
        assert!("1kbit".parse::<Rate>().is_err());
    }
}
