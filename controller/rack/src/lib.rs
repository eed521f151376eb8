//! Acts on racks: SSH with pinned host keys, PKI, plan execution, cluster objects.
//!
//! In the order in which an apply flows: the operator's folder ([`state`]), who a server is
//! ([`ledger`]) and what we log in with ([`credential`]), how fast ([`ramp`]), the connection
//! ([`connect`], [`session`], [`process`], [`forward`]) and the agent on the other end ([`agent`]).
//! Then what differs ([`survey`], [`preflight`], [`saved`]), whether it may run ([`resume`]), the run
//! itself ([`apply`], [`follow`], [`uploads`], [`progress`]) with what it asks for: certificates ([`pki`],
//! [`csr`]) and states of several servers ([`conditions`], [`probe`]). Last the cluster's own objects
//! ([`objects`], [`cluster`]). [`setup`] reads the inventory's references, [`drive`] puts all
//! together, [`status`] looks at it.

pub mod state;

pub mod credential;
pub mod ledger;

pub mod ramp;

pub mod connect;
pub mod forward;
pub mod process;
pub mod session;

pub mod agent;

pub mod preflight;
pub mod survey;

pub mod resume;
pub mod saved;

pub mod apply;
mod converse;
pub mod follow;
pub mod head_start;
pub mod progress;
pub mod runs;
pub mod uploads;
pub mod urgency;

pub mod csr;
pub mod pki;

pub mod conditions;
pub mod probe;

pub mod cluster;
mod kubelet;
pub mod objects;

pub mod drive;
pub mod setup;
pub mod status;
