//! IPv4 ranges: parse, overlap, split. No address of a range is ever an identity.

use serde::{Serialize, Serializer};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range whose host bits are zero, such as `10.42.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: u32,
    prefix: u8,
}

/// Why a text is not a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `a.b.c.d/n`.
    #[error("{0:?} is no IPv4 range: write it like `10.42.0.0/16`")]
    Form(String),
    /// Host bits are set.
    #[error("{text:?} is no IPv4 range: host bits are set, did you mean `{meant}`?")]
    HostBits {
        /// As given.
        text: String,
        /// The range that the address lies in.
        meant: Cidr,
    },
}

impl Cidr {
    /// The range of `prefix` bits that an address lies in.
    fn around(address: u32, prefix: u8) -> Self {
        Self { network: address & mask(prefix), prefix }
    }

    /// Length of the prefix in bits.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The first address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// The last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network | !mask(self.prefix))
    }

    /// The n-th address, if it lies in the range.
    pub fn address(self, n: u32) -> Option<Ipv4Addr> {
        let address = self.network.checked_add(n)?;
        (address & mask(self.prefix) == self.network).then(|| Ipv4Addr::from(address))
    }

    /// Whether an address lies in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    /// Whether two ranges share an address.
    pub fn overlaps(self, other: Self) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        self.network & shorter == other.network & shorter
    }

    /// The n-th part when the range is cut into parts of `prefix` bits.
    pub fn part(self, prefix: u8, n: u32) -> Option<Self> {
        (prefix >= self.prefix && prefix <= 32 && u64::from(n) < self.parts(prefix)).then(|| {
            let size = u32::try_from(1_u64 << (32 - u32::from(prefix))).unwrap_or(u32::MAX);
            Self { network: self.network + n * size, prefix }
        })
    }

    /// How many parts of `prefix` bits the range has; 0 when they are larger than the range.
    pub fn parts(self, prefix: u8) -> u64 {
        if prefix >= self.prefix && prefix <= 32 { 1 << (prefix - self.prefix) } else { 0 }
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let form = || CidrError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().ok().ok_or_else(form)?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32_u8).ok_or_else(form)?;
        let range = Self::around(address.into(), prefix);
        if range.network() == address {
            Ok(range)
        } else {
            Err(CidrError::HostBits { text: text.to_owned(), meant: range })
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn set_host_bits_are_refused_with_the_range_that_was_meant() {
        let error = "10.42.0.1/16".parse::<Cidr>().unwrap_err();
        assert!(error.to_string().contains("10.42.0.0/16"), "{error}");
        assert!("10.42.0.0".parse::<Cidr>().is_err());
        assert!("10.42.0.0/33".parse::<Cidr>().is_err());
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.77.0.0/24")));
        assert!(!cidr("10.42.0.0/16").overlaps(cidr("10.43.0.0/16")));
        assert!(cidr("0.0.0.0/0").overlaps(cidr("10.43.0.0/16")));
    }

    proptest! {
        #[test]
        fn parts_of_a_range_are_disjoint_and_inside(prefix in 8_u8..24, more in 1_u8..8, n in 0_u32..64) {
            let whole = Cidr::around(0x0a2a_0000, prefix);
            let parts = whole.parts(prefix + more);
            let part = whole.part(prefix + more, n);
            prop_assert_eq!(part.is_some(), u64::from(n) < parts);
            if let (Some(part), Some(next)) = (part, whole.part(prefix + more, n + 1)) {
                prop_assert!(whole.contains(part.network()));
                prop_assert!(!part.overlaps(next));
            }
        }
    }
}
