//! Agents in this process, each with its own runtime, disk folder and certificate, talking real
//! mutual TLS over loopback: the chain, its faults, the scrub, and the sources.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    reason = "a test that panics has failed, and a skipped one says so"
)]

mod chain;
mod faults;
mod rig;
mod scrub;
mod sealed;
mod sources;
