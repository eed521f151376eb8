//! The controller as a service: HTTP interface, scheduler loop, Kubernetes executor, data publisher.
//!
//! Modules in the order in which a job flows through them: what serve is told ([`config`]), who calls
//! and what goes wrong ([`auth`], [`problem`], [`limit`]), the table of routes and its handlers
//! ([`routes`], [`http`]), the loop that owns the scheduler ([`recover`], [`clock`], [`brain`], [`world`]), the workers that
//! carry out what it decides ([`hands`], [`pod`], [`cluster`], [`kubernetes`], [`log_text`], [`seen`]), and what is kept
//! ([`history`]). [`server`] puts them together.
//!
//! What must never happen here: an action that leaves before the event that decided it is durable, a
//! reply before what it promises is durable, a pod deleted before its history row is durable.

mod app;
mod brain;
mod clock;
mod cluster;
mod counters;
mod data_source;
mod first_token;
mod hands;
mod health;
mod history;
mod http;
mod kubernetes;
mod limit;
mod listener;
mod log_text;
mod pod;
mod quantity;
mod recover;
mod routes;
mod seen;
mod server;
mod tls;
mod world;

pub mod api;
pub mod auth;
pub mod config;
pub mod data;
pub mod etcd;
pub mod problem;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod scenarios;

pub use config::{Config, ConfigError};
pub use first_token::FirstTokenError;
pub use recover::RecoverError;
pub use server::{ServeError, Server};
pub use tls::TlsError;
