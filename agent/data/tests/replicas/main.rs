//! Agents in this process, each with its own runtime, disk folder and certificate, talking real
//! mutual TLS over loopback: the chain, its faults, the scrub, and the sources.

mod chain;
mod faults;
mod rig;
mod scrub;
mod sealed;
mod sources;
