//! Units as types: fixed-point integers with a private field and one door each that validates.
//!
//! Text forms are exact both ways: what is serialised parses back to the same value. JSON takes the
//! text (`"1.5GiB"`, `"500m"`) or a plain number (bytes, whole CPUs, whole GPUs).

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

/// A quantity that its unit's door refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no {unit}: {hint}")]
pub struct UnitError {
    /// Which unit was expected, such as `amount of memory`.
    pub unit: &'static str,
    /// What was given.
    pub given: String,
    /// What would be accepted.
    pub hint: &'static str,
}

/// Reads `12`, `1.5` or `.25` as an exact multiple of `1 / scale`, rounding nothing.
fn scaled(text: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) || text.len() > 24 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut value = whole.checked_mul(scale)?;
    if !fraction.is_empty() {
        let numerator = fraction.parse::<u128>().ok()?.checked_mul(scale)?;
        let denominator = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        if numerator % denominator != 0 {
            return None;
        }
        value = value.checked_add(numerator / denominator)?;
    }
    Some(value)
}

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $unit:literal, max $max:expr, hint $hint:literal, number $number:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);
            /// The largest value that the door lets through.
            pub const MAX: Self = Self($max);

            /// The door: the value in the unit's smallest step.
            ///
            /// # Errors
            /// The value is above [`Self::MAX`].
            pub fn new(value: u64) -> Result<Self, UnitError> {
                if value > $max {
                    return Err(Self::refuse(value.to_string()));
                }
                Ok(Self(value))
            }

            /// The value in the unit's smallest step.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Whether it is nothing.
            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }

            /// The difference, or nothing when `other` is larger.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            fn refuse(given: String) -> UnitError {
                UnitError { unit: $unit, given, hint: $hint }
            }
        }

        /// A sum stays at [`Self::MAX`]: what is written must pass the door when it is read.
        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0).min(Self::MAX.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
                values.fold(Self::ZERO, Add::add)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.canonical())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Door;
                impl Visitor<'_> for Door {
                    type Value = $name;
                    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(formatter, "{} ({})", $unit, $hint)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<$name, E> {
                        let refuse = || E::custom($name::refuse(value.to_string()));
                        $name::new(value.checked_mul($number).ok_or_else(refuse)?).map_err(E::custom)
                    }
                    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<$name, E> {
                        Err(E::custom($name::refuse(value.to_string())))
                    }
                    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<$name, E> {
                        value.to_string().parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Door)
            }
        }
    };
}

unit! {
    /// An amount of memory or storage in bytes, at most 1 EiB.
    Bytes, "amount of memory", max 1 << 60, hint "write it like 512MiB, 1.5GiB or 4GB", number 1
}
unit! {
    /// Processor time in thousandths of a CPU, at most a million CPUs.
    MilliCpu, "number of CPUs", max 1_000_000_000, hint "write it like 2, 0.5 or 500m", number 1000
}
unit! {
    /// Graphics processors in thousandths of a GPU, at most a million GPUs.
    MilliGpu, "number of GPUs", max 1_000_000_000, hint "write it like 1, 8 or 500m", number 1000
}

/// Suffixes with their factor in bytes, the longest spelling first so that `GiB` is not read as `B`.
const BYTE_SUFFIXES: [(&str, u128); 17] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
    ("B", 1),
];

impl Bytes {
    /// `count` mebibytes.
    pub const fn mib(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// The exact text: the largest binary unit that divides the value.
    pub fn canonical(self) -> String {
        let unit =
            BYTE_SUFFIXES.iter().take(4).find(|(_, factor)| self.0 != 0 && u128::from(self.0) % factor == 0);
        match unit {
            Some((suffix, factor)) => format!("{}{suffix}", u128::from(self.0) / factor),
            None => format!("{}B", self.0),
        }
    }
}

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let trimmed = text.trim();
        let (number, factor) = BYTE_SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| Some((trimmed.strip_suffix(suffix)?.trim_end(), *factor)))
            .unwrap_or((trimmed, 1));
        scaled(number, factor)
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| *value <= Self::MAX.0)
            .map(Self)
            .ok_or_else(|| Self::refuse(text.to_owned()))
    }
}

/// For people: one decimal of the largest binary unit, rounded down so that it never promises more.
impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, shift) in [("TiB", 40_u32), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 >> shift > 0 {
                let tenths = (u128::from(self.0) * 10) >> shift;
                return match tenths % 10 {
                    0 => write!(formatter, "{} {suffix}", tenths / 10),
                    tenth => write!(formatter, "{}.{tenth} {suffix}", tenths / 10),
                };
            }
        }
        write!(formatter, "{} B", self.0)
    }
}

macro_rules! milli {
    ($name:ident) => {
        impl $name {
            /// The exact text: whole numbers bare, everything else in thousandths (`1500m`).
            pub fn canonical(self) -> String {
                if self.0 % 1000 == 0 { (self.0 / 1000).to_string() } else { format!("{}m", self.0) }
            }
        }

        impl FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> {
                let trimmed = text.trim();
                let (number, factor) = match trimmed.strip_suffix('m') {
                    Some(number) => (number, 1),
                    None => (trimmed, 1000),
                };
                scaled(number, factor)
                    .and_then(|value| u64::try_from(value).ok())
                    .filter(|value| *value <= Self::MAX.0)
                    .map(Self)
                    .ok_or_else(|| Self::refuse(text.to_owned()))
            }
        }

        /// For people: a decimal without trailing zeros.
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                let fraction = format!("{:03}", self.0 % 1000);
                match fraction.trim_end_matches('0') {
                    "" => write!(formatter, "{}", self.0 / 1000),
                    fraction => write!(formatter, "{}.{fraction}", self.0 / 1000),
                }
            }
        }
    };
}
milli!(MilliCpu);
milli!(MilliGpu);

/// A share of a whole in hundredths of a percent, 0 to 100 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Percent(u32);

impl Percent {
    /// The door: hundredths of a percent, at most 10 000.
    ///
    /// # Errors
    /// The value is above 100 %.
    pub fn new(hundredths: u32) -> Result<Self, UnitError> {
        if hundredths > 10_000 {
            return Err(Self::refuse(&hundredths.to_string()));
        }
        Ok(Self(hundredths))
    }

    /// Hundredths of a percent.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// This share of an amount, rounded down.
    pub fn of(self, amount: u64) -> u64 {
        let share = u128::from(amount) * u128::from(self.0) / 10_000;
        u64::try_from(share).unwrap_or(amount)
    }

    fn refuse(given: &str) -> UnitError {
        UnitError {
            unit: "percentage",
            given: given.to_owned(),
            hint: "write it like 10% or 12.5%, at most 100%",
        }
    }
}

impl FromStr for Percent {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let number = text.trim().strip_suffix('%').ok_or_else(|| Self::refuse(text))?;
        scaled(number.trim_end(), 100)
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| *value <= 10_000)
            .map(Self)
            .ok_or_else(|| Self::refuse(text))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:02}", self.0 % 100);
        match fraction.trim_end_matches('0') {
            "" => write!(formatter, "{}%", self.0 / 100),
            fraction => write!(formatter, "{}.{fraction}%", self.0 / 100),
        }
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A currency by its ISO 4217 code: three capital letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl FromStr for Currency {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text.as_bytes() {
            [a, b, c] if [a, b, c].iter().all(|letter| letter.is_ascii_uppercase()) => Ok(Self([*a, *b, *c])),
            _ => Err(UnitError {
                unit: "currency",
                given: text.to_owned(),
                hint: "write its ISO code, such as EUR",
            }),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| write!(formatter, "{}", char::from(*letter)))
    }
}

/// An amount of money in millionths of its currency; negative for credits.
///
/// Amounts of different currencies never mix: [`Money::checked_add`] refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Money {
    micros: i64,
    currency: Currency,
}

impl Money {
    /// The door: millionths of the currency's unit.
    pub const fn new(micros: i64, currency: Currency) -> Self {
        Self { micros, currency }
    }

    /// Millionths of the currency's unit.
    pub const fn micros(self) -> i64 {
        self.micros
    }

    /// Its currency.
    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// The sum, unless the currencies differ or it overflows.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        if self.currency != other.currency {
            return None;
        }
        Some(Self { micros: self.micros.checked_add(other.micros)?, currency: self.currency })
    }

    fn refuse(given: &str) -> UnitError {
        UnitError { unit: "amount of money", given: given.to_owned(), hint: "write it like 12.50 EUR" }
    }
}

impl FromStr for Money {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refuse = || Self::refuse(text);
        let (number, currency) = text.trim().split_once(' ').ok_or_else(refuse)?;
        let currency = currency.trim_start().parse()?;
        let (sign, number) = number.strip_prefix('-').map_or((1, number), |rest| (-1, rest));
        let micros =
            scaled(number, 1_000_000).and_then(|value| i64::try_from(value).ok()).ok_or_else(refuse)?;
        Ok(Self { micros: sign * micros, currency })
    }
}

/// At least two decimals, more only when they are needed to be exact.
impl fmt::Display for Money {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.micros < 0 { "-" } else { "" };
        let absolute = self.micros.unsigned_abs();
        let fraction = format!("{:06}", absolute % 1_000_000);
        let needed = fraction.trim_end_matches('0').len().max(2);
        write!(formatter, "{sign}{}.{:.needed$} {}", absolute / 1_000_000, fraction, self.currency)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_write_memory_in_binary_and_decimal_units() {
        let bytes = |text: &str| text.parse::<Bytes>().unwrap().get();
        assert_eq!(bytes("512MiB"), 512 << 20);
        assert_eq!(bytes("512Mi"), 512 << 20);
        assert_eq!(bytes("1.5 GiB"), 3 << 29);
        assert_eq!(bytes("4GB"), 4_000_000_000);
        assert_eq!(bytes("17"), 17);
        assert_eq!(bytes("17B"), 17);
        for wrong in ["", "GiB", "-1", "1.0001B", "1e9", "9999999TiB", "1 2", "1.2.3"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn people_write_cpus_whole_as_a_fraction_or_in_thousandths() {
        let cpu = |text: &str| text.parse::<MilliCpu>().unwrap().get();
        assert_eq!((cpu("2"), cpu("0.5"), cpu("250m")), (2000, 500, 250));
        assert!("0.0005".parse::<MilliCpu>().is_err(), "half a thousandth would be rounded");
        assert_eq!(MilliCpu(1250).to_string(), "1.25");
    }

    #[test]
    fn json_takes_text_and_plain_numbers_and_refuses_the_rest_with_a_hint() {
        assert_eq!(serde_json::from_str::<MilliCpu>("2").unwrap(), MilliCpu(2000));
        assert_eq!(serde_json::from_str::<MilliCpu>("0.5").unwrap(), MilliCpu(500));
        assert_eq!(serde_json::from_str::<Bytes>("1024").unwrap(), Bytes(1024));
        let error = serde_json::from_str::<Bytes>("\"4 apples\"").unwrap_err().to_string();
        assert!(error.contains("512MiB"), "{error}");
        assert!(serde_json::from_str::<MilliGpu>("-1").is_err());
    }

    #[test]
    fn a_shown_amount_never_promises_more_than_there_is() {
        assert_eq!(Bytes((3 << 30) + (300 << 20)).to_string(), "3.2 GiB");
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1 << 30).to_string(), "1 GiB");
    }

    #[test]
    fn a_sum_is_never_more_than_what_can_be_read_back() {
        assert_eq!(Bytes::MAX + Bytes::MAX, Bytes::MAX);
        let sum: MilliCpu = [MilliCpu::MAX, MilliCpu(1)].into_iter().sum();
        assert_eq!(sum.canonical().parse::<MilliCpu>().unwrap(), MilliCpu::MAX);
    }

    #[test]
    fn a_percentage_above_the_whole_is_refused() {
        assert_eq!("12.5%".parse::<Percent>().unwrap().of(800), 100);
        assert_eq!("12.5%".parse::<Percent>().unwrap().to_string(), "12.5%");
        assert!("100.01%".parse::<Percent>().is_err());
        assert!("12".parse::<Percent>().is_err());
    }

    #[test]
    fn money_keeps_its_currency_and_every_millionth() {
        let money = |text: &str| text.parse::<Money>().unwrap();
        assert_eq!(money("12.5 EUR").to_string(), "12.50 EUR");
        assert_eq!(money("-0.000001 USD").micros(), -1);
        assert_eq!(money("-0.000001 USD").to_string(), "-0.000001 USD");
        assert!(money("1 EUR").checked_add(money("1 USD")).is_none());
        assert!("12.5".parse::<Money>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_equal(value in 0_u64..=1 << 60, micros in any::<i32>()) {
            let bytes = Bytes::new(value).unwrap();
            prop_assert_eq!(bytes.canonical().parse::<Bytes>().unwrap(), bytes);
            let cpu = MilliCpu::new(value % 1_000_000_001).unwrap();
            prop_assert_eq!(cpu.canonical().parse::<MilliCpu>().unwrap(), cpu);
            prop_assert_eq!(cpu.to_string().parse::<MilliCpu>().unwrap(), cpu);
            let money = Money::new(i64::from(micros), "EUR".parse().unwrap());
            prop_assert_eq!(money.to_string().parse::<Money>().unwrap(), money);
        }
    }
}
