//! Acts on racks: SSH with pinned host keys, PKI, plan execution, cluster objects.
//!
//! In the order in which an apply flows: the operator's folder ([`state`]), who a server is
//! ([`ledger`]) and what we log in with ([`credential`]), how fast ([`ramp`]), the connection
//! ([`connect`], [`session`], [`process`], [`forward`]), the agent on the other end ([`agent`]), the
//! authorities that certify its keys ([`pki`], [`csr`]) and the state machine that follows a run
//! ([`follow`]).

pub mod state;

pub mod ledger;

pub mod credential;

pub mod ramp;

pub mod session;

pub mod process;

pub mod connect;

pub mod forward;

pub mod agent;

pub mod csr;

pub mod pki;

pub mod follow;
