//! Units as types: fixed-point integers with a private field and one door that validates.
//!
//! Every unit reads from the text that people write (`4GiB`, `1500m`, `12.50 EUR`) and prints text that it
//! reads again without loss. In JSON a unit is its raw integer, whose name is that of the type; money is text.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;

/// Why a text is not a quantity of its unit; reads after "failed to".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {text:?} as {what} (write it like {example})")]
pub struct UnitError {
    /// The text as given.
    pub text: String,
    /// What was expected, such as `a size in bytes`.
    pub what: &'static str,
    /// A text that would have been accepted.
    pub example: &'static str,
}

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// None of it.
            pub const ZERO: Self = Self(0);

            /// A quantity from its raw integer.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw integer.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Whether there is none of it.
            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }

            /// The difference, or zero where `other` is more.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// The difference, or nothing where `other` is more.
            pub const fn checked_sub(self, other: Self) -> Option<Self> {
                match self.0.checked_sub(other.0) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl Sub for $name {
            type Output = Self;
            /// Saturates at zero: a quantity is never negative.
            fn sub(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
        }

        impl SubAssign for $name {
            fn sub_assign(&mut self, other: Self) {
                *self = *self - other;
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
                all.fold(Self::ZERO, Add::add)
            }
        }
    };
}

unit! {
    /// Bytes. Text: `512`, `512B`, or with a binary suffix `KiB`, `MiB`, `GiB`, `TiB`.
    Bytes
}
unit! {
    /// Thousandths of a CPU. Text: `1500m` or whole CPUs `2`.
    MilliCpu
}
unit! {
    /// Thousandths of a GPU. Text: `500m` or whole GPUs `2`.
    MilliGpu
}

/// Binary suffixes, largest first, with their size in bytes.
const SUFFIXES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Bytes {
    /// So many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self::new(count.saturating_mul(1 << 20))
    }

    /// So many gibibytes.
    pub const fn gib(count: u64) -> Self {
        Self::new(count.saturating_mul(1 << 30))
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (digits, factor) = SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|digits| (digits, *factor)))
            .unwrap_or((text, 1));
        whole(digits).and_then(|count| count.checked_mul(factor)).map(Self::new).ok_or_else(|| UnitError {
            text: text.to_owned(),
            what: "a size in bytes",
            example: "`512MiB` or `4GiB`",
        })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SUFFIXES
            .iter()
            .find(|(_, factor)| self.get() >= *factor && self.get().is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(f, "{}{}", self.get() / exact.1, exact.0)
    }
}

impl FromStr for MilliCpu {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        thousandths(text).map(Self::new).ok_or_else(|| UnitError {
            text: text.to_owned(),
            what: "an amount of CPU",
            example: "`1500m` or `2`",
        })
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_thousandths(self.get(), f)
    }
}

impl FromStr for MilliGpu {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        thousandths(text).map(Self::new).ok_or_else(|| UnitError {
            text: text.to_owned(),
            what: "an amount of GPU",
            example: "`500m` or `1`",
        })
    }
}

impl fmt::Display for MilliGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print_thousandths(self.get(), f)
    }
}

/// Digits only: no sign, no space, no empty text.
fn whole(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

fn thousandths(text: &str) -> Option<u64> {
    match text.strip_suffix('m') {
        Some(digits) => whole(digits),
        None => whole(text)?.checked_mul(1000),
    }
}

fn print_thousandths(raw: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if raw.is_multiple_of(1000) { write!(f, "{}", raw / 1000) } else { write!(f, "{raw}m") }
}

/// A share of a whole, 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Percent(u8);

impl Percent {
    /// A share, or nothing above 100.
    pub const fn new(raw: u8) -> Option<Self> {
        if raw <= 100 { Some(Self(raw)) } else { None }
    }

    /// The share, 0 to 100.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = u8::deserialize(deserializer)?;
        Self::new(raw).ok_or_else(|| serde::de::Error::custom("a percentage is 0 to 100"))
    }
}

/// Currencies that prices are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Currency {
    /// Euro.
    Eur,
    /// US dollar.
    Usd,
}

impl FromStr for Currency {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text {
            "EUR" => Ok(Self::Eur),
            "USD" => Ok(Self::Usd),
            _ => Err(UnitError { text: text.to_owned(), what: "a currency", example: "`EUR` or `USD`" }),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eur => "EUR",
            Self::Usd => "USD",
        })
    }
}

/// An amount of money in millionths of its currency's unit. Text: `12.50 EUR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Money {
    micros: i64,
    currency: Currency,
}

impl Money {
    /// An amount from millionths.
    pub const fn from_micros(micros: i64, currency: Currency) -> Self {
        Self { micros, currency }
    }

    /// An amount from hundredths.
    pub const fn from_cents(cents: i64, currency: Currency) -> Self {
        Self { micros: cents.saturating_mul(10_000), currency }
    }

    /// Reads `12`, `12.5` or `12.345678`, with a leading `-` for what is owed to us.
    pub fn parse(amount: &str, currency: Currency) -> Result<Self, UnitError> {
        let (sign, digits) = amount.strip_prefix('-').map_or((1, amount), |digits| (-1, digits));
        let (units, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let read = || {
            if units.is_empty() || fraction.is_empty() || fraction.len() > 6 {
                return None;
            }
            let units = i64::try_from(whole(units)?).ok()?;
            let fraction = i64::try_from(whole(&format!("{fraction:0<6}"))?).ok()?;
            units.checked_mul(1_000_000)?.checked_add(fraction)?.checked_mul(sign)
        };
        read().map(|micros| Self { micros, currency }).ok_or_else(|| UnitError {
            text: amount.to_owned(),
            what: "an amount of money",
            example: "`12.50`",
        })
    }

    /// Millionths of the currency's unit.
    pub const fn micros(self) -> i64 {
        self.micros
    }

    /// The currency.
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// The sum, or nothing when the currencies differ or the sum is out of range.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        (self.currency == other.currency)
            .then(|| self.micros.checked_add(other.micros))
            .flatten()
            .map(|micros| Self { micros, currency: self.currency })
    }
}

impl FromStr for Money {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError {
            text: text.to_owned(),
            what: "an amount of money with its currency",
            example: "`12.50 EUR`",
        };
        let (amount, currency) = text.split_once(' ').ok_or_else(wrong)?;
        Self::parse(amount, currency.parse()?)
    }
}

impl fmt::Display for Money {
    /// At least two decimals, and as many more as are needed to lose nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.micros < 0 { "-" } else { "" };
        let micros = self.micros.unsigned_abs();
        let fraction = format!("{:06}", micros % 1_000_000);
        let short = fraction.trim_end_matches('0');
        write!(f, "{sign}{}.{short:0<2} {}", micros / 1_000_000, self.currency)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!("4GiB".parse(), Ok(Bytes::gib(4)));
        assert_eq!("512".parse(), Ok(Bytes::new(512)));
        for wrong in ["4GB", "4 GiB", "-1", "", "GiB", "4.5GiB", "99999999999TiB"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cpus_read_whole_and_in_thousandths() {
        assert_eq!("2".parse(), Ok(MilliCpu::new(2000)));
        assert_eq!("1500m".parse(), Ok(MilliCpu::new(1500)));
        assert!("1.5".parse::<MilliCpu>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(raw in any::<u64>(), micros in any::<i64>()) {
            prop_assert_eq!(Bytes::new(raw).to_string().parse(), Ok(Bytes::new(raw)));
            prop_assert_eq!(MilliCpu::new(raw).to_string().parse(), Ok(MilliCpu::new(raw)));
            let money = Money::from_micros(micros.max(-i64::MAX), Currency::Usd);
            prop_assert_eq!(money.to_string().parse(), Ok(money));
        }
    }
}
