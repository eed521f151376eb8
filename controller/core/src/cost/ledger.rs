//! The ledger: every server's invoice, split over jobs, idle room and the system.
//!
//! One server, one window: the rent is divided between CPU, memory and GPUs in proportion to what the server has of
//! each and what each is worth (`OpenCost`'s specification, appendix A: component price = k * base rate, with k such that the
//! components sum to the server's price), then each component between its holders by amount times time. Where they
//! differ from `OpenCost`: what the system keeps is a line of its own and not part of idle, and rounding never loses a
//! micro-unit.

use super::prices::Rates;
use super::split::{share, split};
use super::usage::{RackServer, Room, UsageRow, Window};
use jiff::ToSpan as _;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rackwright_wire::id::NodeName;
use rackwright_wire::units::{Currency, Money};
use serde::Serialize;

/// Milliseconds of a billing month: a twelfth of 8760 hours.
pub const MONTH_MS: u64 = 730 * 3600 * 1000;

/// What one server cost in the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Invoice {
    /// The server.
    pub server: NodeName,
    /// Rent and the setup fee's share.
    pub amount: Money,
    /// The setup fee's share alone.
    pub setup: Money,
    /// Milliseconds that were paid for.
    pub paid_ms: u64,
    /// Where the price is from.
    pub source: String,
}

/// Who held room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "holder", rename_all = "snake_case")]
pub enum Holder {
    /// An attempt: the row of this index in [`Ledger::usage`].
    Attempt {
        /// Index.
        row: usize,
    },
    /// Nobody, though jobs could have.
    Idle,
    /// Operating system, Kubernetes, data plane, databases, and servers that run no jobs.
    System,
}

/// One line: what a holder's room on a server cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The server.
    pub server: NodeName,
    /// Who held the room.
    #[serde(flatten)]
    pub holder: Holder,
    /// Sum of the three below.
    pub amount: Money,
    /// For CPU.
    pub cpu: Money,
    /// For memory.
    pub memory: Money,
    /// For GPUs.
    pub gpu: Money,
}

/// A rack's money in one window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// What was billed.
    pub window: Window,
    /// One an server, in the order in which they were given.
    pub invoices: Vec<Invoice>,
    /// Server by server: attempts in the order of the usage, then idle, then system.
    pub entries: Vec<Entry>,
    /// The attempts that entries point at.
    #[serde(skip)]
    pub usage: Vec<UsageRow>,
    #[serde(skip)]
    currency: Currency,
}

/// A ledger that cannot be made; reads after "failed to".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// There is nothing to bill.
    #[error("bill a rack without servers")]
    NoServers,
    /// The window is empty.
    #[error("bill a window that ends before it starts")]
    EmptyWindow,
    /// Amounts of different currencies cannot be summed.
    #[error("bill {server} in {other}, because the rack's other servers are paid in {currency}")]
    Currency {
        /// The server.
        server: NodeName,
        /// Its currency.
        other: Currency,
        /// The first server's currency.
        currency: Currency,
    },
    /// Somebody used servers whose price nobody knows.
    #[error("price what ran on {}, which the inventory does not have", .0.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", "))]
    UnknownServers(Vec<NodeName>),
}

impl Ledger {
    /// Splits the rent of every server over what held its room.
    ///
    /// # Errors
    /// No servers, an empty window, several currencies, usage on servers that are not given.
    pub fn build(
        window: Window,
        servers: &[RackServer],
        usage: Vec<UsageRow>,
        rates: &Rates,
    ) -> Result<Self, LedgerError> {
        let first = servers.first().ok_or(LedgerError::NoServers)?;
        if window.length_ms() == 0 {
            return Err(LedgerError::EmptyWindow);
        }
        let currency = first.rent.monthly.currency();
        for server in servers {
            let other = [server.rent.monthly.currency(), server.rent.setup.currency()];
            if let Some(other) = other.into_iter().find(|other| *other != currency) {
                return Err(LedgerError::Currency { server: server.name.clone(), other, currency });
            }
        }
        let mut unknown: Vec<NodeName> = usage.iter().map(|row| row.node.clone()).collect();
        unknown.retain(|node| servers.iter().all(|server| server.name != *node));
        unknown.sort();
        unknown.dedup();
        if !unknown.is_empty() {
            return Err(LedgerError::UnknownServers(unknown));
        }
        let mut ledger = Self { window, invoices: Vec::new(), entries: Vec::new(), usage, currency };
        for server in servers {
            let invoice = invoice(window, server);
            ledger.split_server(server, &invoice, rates);
            ledger.invoices.push(invoice);
        }
        Ok(ledger)
    }

    /// The currency of every amount.
    pub const fn currency(&self) -> Currency {
        self.currency
    }

    /// What the rack cost.
    pub fn invoiced(&self) -> Money {
        self.money(self.invoices.iter().map(|invoice| micros(invoice.amount)).sum())
    }

    /// What the entries sum to; law 14 says that it is [`Self::invoiced`].
    pub fn sum(&self) -> Money {
        self.money(self.entries.iter().map(|entry| micros(entry.amount)).sum())
    }

    pub(super) fn money(&self, micros: u64) -> Money {
        Money::new(i64::try_from(micros).unwrap_or(i64::MAX), self.currency)
    }

    fn split_server(&mut self, server: &RackServer, invoice: &Invoice, rates: &Rates) {
        let mut holders = Vec::new();
        let mut held = Vec::new();
        for (row, usage) in self.usage.iter().enumerate() {
            let held_ms = usage.held().overlap(self.window).length_ms();
            if usage.node == server.name && held_ms > 0 {
                holders.push(Holder::Attempt { row });
                held.push((usage.room(), held_ms));
            }
        }
        holders.extend([Holder::Idle, Holder::System]);
        let window_ms = self.window.length_ms();
        let components = components(micros(invoice.amount), server.room, rates);
        let by_component: Vec<Vec<u64>> = AMOUNTS
            .iter()
            .zip(components)
            .map(|(amount, money)| {
                let of = |room: Room| u128::from(amount(room));
                let all = of(server.room) * u128::from(window_ms);
                let for_jobs = all.min(of(server.for_jobs) * u128::from(window_ms));
                let mut weights: Vec<u128> =
                    held.iter().map(|(room, ms)| of(*room) * u128::from(*ms)).collect();
                let used: u128 = weights.iter().sum();
                // More can have been held than there is, for moments, when a server shrank: then nothing was idle.
                weights.extend([for_jobs.saturating_sub(used), all - for_jobs]);
                split(money, &weights).unwrap_or_else(|| only_system(money, weights.len()))
            })
            .collect();
        for (index, holder) in holders.into_iter().enumerate() {
            let part =
                |component: usize| by_component.get(component).and_then(|parts| parts.get(index)).copied();
            let [cpu, memory, gpu] = [0, 1, 2].map(|component| part(component).unwrap_or_default());
            self.entries.push(Entry {
                server: server.name.clone(),
                holder,
                amount: self.money(cpu + memory + gpu),
                cpu: self.money(cpu),
                memory: self.money(memory),
                gpu: self.money(gpu),
            });
        }
    }
}

/// CPU, memory and GPUs of a room, in their smallest steps.
const AMOUNTS: [fn(Room) -> u64; 3] =
    [|room| room.cpu.get(), |room| room.memory.get(), |room| room.gpu.get()];

/// A server of unknown size: its rent is nobody's work.
fn only_system(money: u64, holders: usize) -> Vec<u64> {
    let mut parts = vec![0; holders];
    if let Some(system) = parts.last_mut() {
        *system = money;
    }
    parts
}

/// The rent's part for CPU, memory and GPUs.
fn components(amount: u64, room: Room, rates: &Rates) -> [u64; 3] {
    const GIB: u128 = 1 << 30;
    let rate = |money: Money| u128::from(micros(money));
    let [cpu, memory, gpu] = AMOUNTS.map(|amount| u128::from(amount(room)));
    // Everything over a common denominator of a thousandth of a GiB-hour.
    let weights = [
        rate(rates.cpu_hour) * cpu * GIB,
        rate(rates.gib_hour) * memory * 1000,
        rate(rates.gpu_hour) * gpu * GIB,
    ];
    match split(amount, &weights).as_deref() {
        Some([cpu, memory, gpu]) => [*cpu, *memory, *gpu],
        _ => [amount, 0, 0],
    }
}

/// What a server cost in a window: the month's price by the hour of 730, and the setup fee over the minimum term.
fn invoice(window: Window, server: &RackServer) -> Invoice {
    let rent = &server.rent;
    let since_ms = rent.since.map_or(0, day_ms);
    let paid = window.overlap(Window { from_ms: since_ms, until_ms: u64::MAX });
    let monthly = share(micros(rent.monthly), paid.length_ms(), MONTH_MS);
    let setup = rent.since.map_or(0, |since| {
        let months = i64::from(rent.term_months.max(1));
        let end_ms = since.checked_add(months.months()).map_or(u64::MAX, day_ms);
        let term = Window { from_ms: since_ms, until_ms: end_ms };
        share(micros(rent.setup), window.overlap(term).length_ms(), term.length_ms())
    });
    let money = |micros| Money::new(i64::try_from(micros).unwrap_or(i64::MAX), rent.monthly.currency());
    Invoice {
        server: server.name.clone(),
        amount: money(monthly + setup),
        setup: money(setup),
        paid_ms: paid.length_ms(),
        source: rent.source.clone(),
    }
}

/// Midnight (UTC) at the start of a day.
fn day_ms(day: Date) -> u64 {
    let midnight = day.to_zoned(TimeZone::UTC).map_or(0, |zoned| zoned.timestamp().as_millisecond());
    u64::try_from(midnight).unwrap_or_default()
}

/// Micro-units; rents are never negative.
fn micros(money: Money) -> u64 {
    u64::try_from(money.micros()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
