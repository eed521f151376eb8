//! The agent's data plane: a content store on every server, filled through a chain of peers.
//!
//! Modules in the order in which data flows: the data server reads a [`table`] or a [`bucket`] once
//! and hashes it ([`export`]); the controller signs what came of it and says what each node should
//! hold ([`wanted`]); a node ([`node`]) fetches the bytes from its predecessor ([`fetch`], [`peer`])
//! into the store ([`partial`], [`store`]), makes the version visible ([`version`]), serves it to the
//! next ([`api`], [`listen`]), keeps what jobs sealed ([`sets`]), loads results into ClickHouse ([`load`]) and rereads it all now and then
//! ([`scrub`]).
//!
//! What must never happen: a version that is visible with a byte that was not hashed; bytes of a
//! dataset that were not signed for; a delete that follows from a failure.

mod api;
mod board;
mod bucket;
pub mod config;
mod durable;
mod error;
pub mod export;
pub mod fetch;
pub mod hashing;
pub mod layout;
pub mod listen;
mod load;
pub mod node;
pub mod partial;
pub mod peer;
pub mod scrub;
pub mod sets;
pub mod store;
mod table;
pub mod tls;
pub mod version;
pub mod wanted;

pub use api::Reporter;
pub use error::Error;
pub use listen::run;
