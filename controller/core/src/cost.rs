//! Money: what a rack's invoices were spent on, and what the same work would have cost elsewhere.
//!
//! [`prices`] and contracts say what each server costs, [`usage`] what held its room, [`ledger`] splits the one over
//! the other: to jobs, to what stood idle, and to what the system keeps for itself. Nothing is lost in rounding:
//! [`split`] hands out whole micro-units by largest remainder, so the entries of a server sum to its invoice and
//! every grouping of a [`bill`] sums to the rack's (law 14). [`cloud`] prices the same attempts on demand.
//! All of it is a plain function of its arguments.

pub mod bill;
pub mod cloud;
pub mod ledger;
pub mod prices;
pub mod rack;
pub mod split;
pub mod usage;

pub use bill::{BillLine, Dimension};
pub use cloud::Cloud;
pub use ledger::{Entry, Holder, Invoice, Ledger, LedgerError};
pub use prices::{PriceError, Prices};
pub use usage::{RackServer, Rent, Room, UsageRow, Window};
