//! Bills: the ledger's entries grouped by whatever somebody is asked to pay by.
//!
//! Idle room and the system are lines of their own, never smeared over the teams: whoever pays sees what utilisation
//! costs. A grouping has every entry exactly once, so each sums to the invoice.

use super::cloud::Cloud;
use super::ledger::{Holder, Ledger};
use super::usage::UsageRow;
use rackwright_wire::units::Money;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The key of room that nobody held.
pub const IDLE: &str = "(idle)";
/// The key of what the system keeps.
pub const SYSTEM: &str = "(system)";
/// The key of attempts that name none.
pub const NONE: &str = "(none)";

/// What a bill can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// Who submitted.
    Owner,
    /// For which team.
    Team,
    /// For which project.
    Project,
    /// For which model.
    Model,
    /// On which dataset; an attempt on several counts for the set of them.
    Dataset,
    /// Fixed or flexible.
    Class,
}

impl Dimension {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Owner, Self::Team, Self::Project, Self::Model, Self::Dataset, Self::Class];

    /// Its name in JSON and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Team => "team",
            Self::Project => "project",
            Self::Model => "model",
            Self::Dataset => "dataset",
            Self::Class => "class",
        }
    }

    /// The key of an attempt. Keys in parentheses cannot clash with names, which have none.
    pub fn key(self, row: &UsageRow) -> String {
        match self {
            Self::Owner => row.owner.to_string(),
            Self::Team => row.team.to_string(),
            Self::Project => row.project.to_string(),
            Self::Model => row.model.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string),
            Self::Dataset if row.datasets.is_empty() => NONE.to_owned(),
            Self::Dataset => {
                let mut names: Vec<&str> = row.datasets.iter().map(AsRef::as_ref).collect();
                names.sort_unstable();
                names.dedup();
                names.join("+")
            }
            Self::Class => match row.class {
                crate::job::Class::Fixed => "fixed".to_owned(),
                crate::job::Class::Flexible => "flexible".to_owned(),
            },
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Dimension {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|dimension| dimension.as_str() == text);
        found.ok_or_else(|| format!("'{text}' is none of owner, team, project, model, dataset, class"))
    }
}

/// One line of a bill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BillLine {
    /// One key a dimension, in their order; [`IDLE`] or [`SYSTEM`] in all of them for what no job held.
    pub key: Vec<String>,
    /// What it cost, to the micro-unit.
    pub amount: Money,
    /// Attempts that the line sums up.
    pub attempts: u64,
}

impl Ledger {
    /// The bill by some dimensions: jobs by key, then idle, then system. It sums to the invoice.
    pub fn bill(&self, by: &[Dimension]) -> Vec<BillLine> {
        let mut lines: BTreeMap<(u8, Vec<String>), (u64, u64)> = BTreeMap::new();
        for entry in &self.entries {
            let all = |key: &str| vec![key.to_owned(); by.len().max(1)];
            let (order, key) = match entry.holder {
                Holder::Idle => (1, all(IDLE)),
                Holder::System => (2, all(SYSTEM)),
                Holder::Attempt { row } => match self.usage.get(row) {
                    Some(usage) if !by.is_empty() => {
                        (0, by.iter().map(|dimension| dimension.key(usage)).collect())
                    }
                    _ => (0, all("jobs")),
                },
            };
            let line = lines.entry((order, key)).or_default();
            line.0 += u64::try_from(entry.amount.micros()).unwrap_or_default();
            line.1 += u64::from(order == 0);
        }
        let lines = lines.into_iter();
        lines
            .map(|((_, key), (micros, attempts))| BillLine { key, amount: self.money(micros), attempts })
            .collect()
    }
}

/// What the attempts of each key would have cost in the cloud, in the cloud's currency. `None` where no shape fits
/// one of them.
pub fn cloud_by(by: &[Dimension], usage: &[UsageRow], cloud: &Cloud) -> BTreeMap<Vec<String>, Option<Money>> {
    let mut keys: BTreeMap<Vec<String>, Option<Money>> = BTreeMap::new();
    for (row, price) in usage.iter().zip(&cloud.attempts) {
        let key = by.iter().map(|dimension| dimension.key(row)).collect();
        let sum = keys.entry(key).or_insert_with(|| Some(Money::new(0, cloud.total.currency())));
        *sum = match (*sum, price) {
            (Some(sum), Some(price)) => sum.checked_add(*price),
            (_, None) | (None, _) => None,
        };
    }
    keys
}

/// Micro-units of one cent.
const CENT: u64 = 10_000;

/// Amounts in whole cents that sum to their sum's cents: rounded down, the largest remainders up.
pub fn to_cents(amounts: &[Money]) -> Vec<Money> {
    let micros: Vec<u64> =
        amounts.iter().map(|amount| u64::try_from(amount.micros()).unwrap_or_default()).collect();
    let total: u64 = micros.iter().sum();
    let mut cents: Vec<u64> = micros.iter().map(|micros| micros / CENT).collect();
    let given: u64 = cents.iter().sum();
    let mut order: Vec<usize> = (0..micros.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(micros.get(*index).map_or(0, |micros| micros % CENT)));
    let left = ((total + CENT / 2) / CENT).saturating_sub(given);
    for index in order.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        if let Some(cents) = cents.get_mut(index) {
            *cents += 1;
        }
    }
    let money = |(amount, cents): (&Money, u64)| {
        Money::new(i64::try_from(cents * CENT).unwrap_or(i64::MAX), amount.currency())
    };
    amounts.iter().zip(cents).map(money).collect()
}
