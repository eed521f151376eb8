//! Dated prices with their sources, from `inventory/prices.toml`.
//!
//! A shape may stand there more than once, with different dates: the newest row that is not younger than the bill
//! counts. Nothing is hard-coded; what is not in the file has no price, and that is said.

use super::usage::{Rent, Room};
use jiff::civil::Date;
use rackwright_wire::format::Other;
use rackwright_wire::units::{Bytes, Currency, MilliCpu, MilliGpu, Money, UnitError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of `prices.toml` that this build reads.
pub const PRICES_VERSION: u32 = 1;

/// Everything in `prices.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prices {
    /// How the price of one server is divided between its resources.
    pub split: Rates,
    /// Exchange rates.
    pub fx: Vec<Fx>,
    /// Dedicated servers by shape.
    pub server: Vec<ServerPrice>,
    /// EC2 on demand by shape.
    pub ec2: Vec<Ec2Price>,
}

/// Relative prices of resources: only their proportions count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// An hour of one CPU.
    pub cpu_hour: Money,
    /// An hour of one GiB of memory.
    pub gib_hour: Money,
    /// An hour of one GPU.
    pub gpu_hour: Money,
    /// Day of the rates.
    pub date: Date,
    /// Where they are from.
    pub source: String,
}

/// An exchange rate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fx {
    /// One unit of what.
    pub from: String,
    /// What it is worth, such as `1.1133 USD`.
    pub worth: Money,
    /// Day of the rate.
    pub date: Date,
    /// Where it is from.
    pub source: String,
}

/// A dedicated server's price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerPrice {
    /// Such as `hetzner/gex44`.
    pub shape: String,
    /// Hardware threads.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
    /// GPUs.
    #[serde(default)]
    pub gpu: MilliGpu,
    /// Model of the GPUs.
    #[serde(default)]
    pub gpu_type: Option<String>,
    /// Price of a month.
    pub monthly: Money,
    /// Paid once.
    pub setup: Money,
    /// Day of the price.
    pub date: Date,
    /// Where it is from.
    pub source: String,
}

/// An on-demand price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ec2Price {
    /// Instance type, such as `m6a.large`.
    pub shape: String,
    /// vCPUs.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
    /// GPUs.
    #[serde(default)]
    pub gpu: MilliGpu,
    /// Model of the GPUs.
    #[serde(default)]
    pub gpu_type: Option<String>,
    /// Price of an hour.
    pub hourly: Money,
    /// Day of the price.
    pub date: Date,
    /// Where it is from.
    pub source: String,
}

/// A price file that cannot be used; reads after "failed to".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read prices, line {line}: {problem}")]
pub struct PriceError {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(rename = "version")]
    _looked_at_before: u32,
    split: toml::Spanned<Rates>,
    #[serde(default)]
    fx: Vec<toml::Spanned<Fx>>,
    #[serde(default)]
    server: Vec<toml::Spanned<ServerPrice>>,
    #[serde(default)]
    ec2: Vec<toml::Spanned<Ec2Price>>,
}

impl Prices {
    /// Parses the file's text.
    pub fn parse(text: &str) -> Result<Self, PriceError> {
        /// All that is common to every version: tables have no order, so it is looked at before the rest.
        #[derive(Deserialize)]
        struct Head {
            version: toml::Spanned<u32>,
        }
        let grammar = |error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            PriceError { line: line_at(text, offset), problem: error.message().to_owned() }
        };
        let Head { version } = toml::from_str(text).map_err(grammar)?;
        if *version.get_ref() != PRICES_VERSION {
            let other = Other { found: *version.get_ref(), reads: PRICES_VERSION };
            return Err(PriceError { line: line_at(text, version.span().start), problem: other.to_string() });
        }
        let raw: Raw = toml::from_str(text).map_err(grammar)?;
        let wrong =
            |offset, problem: &str| PriceError { line: line_at(text, offset), problem: problem.to_owned() };
        let rates = raw.split.get_ref();
        if ![rates.cpu_hour, rates.gib_hour, rates.gpu_hour].iter().all(|rate| rate.micros() > 0) {
            return Err(wrong(raw.split.span().start, "every rate of the split must be above zero"));
        }
        for row in &raw.server {
            if row.get_ref().monthly.micros() < 0 || row.get_ref().setup.micros() < 0 {
                return Err(wrong(row.span().start, "a price below zero"));
            }
        }
        for row in &raw.ec2 {
            if row.get_ref().hourly.micros() <= 0 {
                return Err(wrong(row.span().start, "an hour that costs nothing"));
            }
        }
        for row in &raw.fx {
            let from: Result<Currency, UnitError> = row.get_ref().from.parse();
            if from.is_err() || row.get_ref().worth.micros() <= 0 {
                return Err(wrong(
                    row.span().start,
                    "an exchange rate is written from = \"EUR\", worth = \"1.1133 USD\"",
                ));
            }
        }
        let inner = |rows: Vec<toml::Spanned<Fx>>| rows.into_iter().map(toml::Spanned::into_inner).collect();
        Ok(Self {
            split: raw.split.into_inner(),
            fx: inner(raw.fx),
            server: raw.server.into_iter().map(toml::Spanned::into_inner).collect(),
            ec2: raw.ec2.into_iter().map(toml::Spanned::into_inner).collect(),
        })
    }

    /// The price and size of a dedicated server's shape on a day.
    pub fn server(&self, shape: &str, on: Date) -> Option<(Rent, Room)> {
        let rows = self.server.iter().filter(|row| row.shape == shape && row.date <= on);
        let row = rows.max_by_key(|row| row.date)?;
        let source = format!("{} of {}, {}", row.shape, row.date, row.source);
        let rent = Rent { monthly: row.monthly, setup: row.setup, term_months: 12, since: None, source };
        Some((rent, Room { cpu: row.cpu, memory: row.memory, gpu: row.gpu }))
    }

    /// EC2 shapes with the price that counts on a day: the newest row of each that is not younger.
    pub fn ec2_on(&self, on: Date) -> Vec<&Ec2Price> {
        let known = self.ec2.iter().filter(|row| row.date <= on);
        let mut newest: Vec<&Ec2Price> = Vec::new();
        for row in known {
            match newest.iter_mut().find(|other| other.shape == row.shape) {
                Some(other) if other.date < row.date => *other = row,
                Some(_) => {}
                None => newest.push(row),
            }
        }
        newest
    }

    /// An amount in another currency, at the newest rate of a day; `None` without a rate.
    pub fn convert(&self, amount: Money, to: Currency, on: Date) -> Option<Money> {
        let from = amount.currency();
        if from == to {
            return Some(amount);
        }
        let is =
            |code: &str, currency: Currency| code.parse::<Currency>().is_ok_and(|parsed| parsed == currency);
        let fits = |fx: &&Fx| {
            let forth = is(&fx.from, from) && fx.worth.currency() == to;
            let back = is(&fx.from, to) && fx.worth.currency() == from;
            fx.date <= on && (forth || back)
        };
        let fx = self.fx.iter().filter(fits).max_by_key(|fx| fx.date)?;
        let (amount, rate) = (i128::from(amount.micros()), i128::from(fx.worth.micros()));
        let micros = if fx.worth.currency() == to {
            rounded(amount * rate, 1_000_000)
        } else {
            rounded(amount * 1_000_000, rate)
        };
        Some(Money::new(i64::try_from(micros).ok()?, to))
    }
}

impl fmt::Display for Ec2Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} an hour ({})", self.shape, self.hourly, self.date)
    }
}

/// Division rounded half away from zero.
fn rounded(amount: i128, by: i128) -> i128 {
    let half = if amount < 0 { -by / 2 } else { by / 2 };
    (amount + half) / by
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    const FILE: &str = include_str!("../../../../inventory/prices.toml");

    #[test]
    fn every_committed_price_has_a_date_and_a_source() {
        let prices = Prices::parse(FILE).unwrap();
        assert!(prices.server.len() >= 5 && prices.ec2.len() >= 10);
        assert!(prices.server.iter().all(|row| !row.source.is_empty()));
        assert!(
            prices.ec2.iter().all(|row| !row.source.is_empty() && row.hourly.currency().to_string() == "USD")
        );
    }

    #[test]
    fn the_newest_price_that_is_not_younger_than_the_bill_counts() {
        let old = "[[ec2]]\nshape = \"a\"\ncpu = \"1\"\nmemory = \"1GiB\"\nhourly = \"2 USD\"\ndate = \"2026-01-01\"\nsource = \"s\"\n";
        let head = FILE.split("[[fx]]").next().unwrap();
        let new = old.replace("2 USD", "1 USD").replace("2026-01-01", "2026-06-01");
        let prices = Prices::parse(&format!("{head}{old}{new}")).unwrap();
        let price = |on| prices.ec2_on(on).first().map(|row| row.hourly.to_string());
        assert_eq!(price(date(2025, 12, 31)), None);
        assert_eq!(price(date(2026, 5, 31)).as_deref(), Some("2.00 USD"));
        assert_eq!(price(date(2026, 6, 1)).as_deref(), Some("1.00 USD"));
    }

    #[test]
    fn money_is_converted_in_both_directions_and_not_without_a_rate() {
        let prices = Prices::parse(FILE).unwrap();
        let on = date(2026, 11, 1);
        let money = |text: &str| text.parse::<Money>().unwrap();
        let eur = prices.convert(money("1.1133 USD"), "EUR".parse().unwrap(), on);
        assert_eq!(eur, Some(money("1 EUR")));
        assert_eq!(prices.convert(money("2 EUR"), "USD".parse().unwrap(), on), Some(money("2.2266 USD")));
        assert_eq!(prices.convert(money("2 EUR"), "CHF".parse().unwrap(), on), None);
    }

    #[test]
    fn a_wrong_price_is_reported_with_its_line() {
        let error = Prices::parse(&FILE.replace("184.00 EUR", "184.00")).unwrap_err();
        let line = 1 + FILE.lines().position(|line| line.contains("184.00 EUR")).unwrap();
        assert_eq!(error.line, line, "{error}");
        let newer = Prices::parse(&FILE.replace("version = 1", "version = 2\nadded = 1")).unwrap_err();
        assert_eq!(newer.problem, "version 2, this build reads 1");
        assert!(Prices::parse(&format!("{FILE}\nextra = 1\n")).is_err());
    }
}
