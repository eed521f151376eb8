//! What the agent can make true on a server: facts, typed steps, journal.
//!
//! The way of a plan: a server says what it is ([`facts`]) and what differs from its steps
//! ([`check`]); artifacts arrive ([`receive`]); a plan is accepted and stored ([`plans`]); then
//! [`apply`] walks its steps in [`order`], each as check, apply, check again ([`step`]), writing the
//! [`journal`] before anything changes and asking the [`controller`] for what only it can give.
//! [`report`] is what a node says about itself later.
//!
//! Invariants: nothing changes before its journal line is on disk; a second check decides whether a
//! step succeeded, never an exit status; an apply that was cut off anywhere can be started again.
//! Everything is plain threads and files: no async runtime, no network but the probes of `wait`.

pub mod error;

mod diff;
mod durable;
mod exec;
mod owner;

pub mod host;

mod dpkg;
mod hashes;
mod pem;
mod systemd;

pub mod facts;

pub mod step;

pub mod check;
pub mod receive;

pub mod plans;

pub mod journal;

pub mod controller;

pub mod order;

pub mod apply;

pub mod report;

pub use systemd::log_tail;
