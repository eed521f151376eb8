//! The embedded rack: real servers with systemd and sshd on one machine, with shaped links and faults.
//!
//! A server is `systemd-nspawn` over an overlay of one cached Debian base, in control groups of its own,
//! with a disk of its own, on one bridge. Modules in the order in which `lab up` passes through them:
//! what is wanted ([`spec`]), what it will be called ([`names`]), what that changes on the machine
//! ([`changes`]), the record that is written before anything is made ([`record`]), and then the things
//! themselves: [`packages`], kernel [`settings`], the [`base`] image, the [`network`], control [`group`]s,
//! the [`server`]s and their start ([`launch`]), and [`ready`]. [`undo`] takes everything back from the record alone,
//! and [`lab`] is the door to all of it.
//!
//! Nothing here ever kills by a name's pattern: only recorded processes (id with start time) and members of
//! the lab's own control groups. Everything made carries the lab's name.

pub mod error;
pub mod spec;

pub mod names;

pub mod changes;
pub mod paths;

pub mod record;

mod lock;
mod mount;
mod process;
mod tool;

pub mod packages;
pub mod settings;

pub mod base;
pub mod group;
pub mod launch;
pub mod network;
pub mod ready;
pub mod server;
mod site;
pub mod status;
pub mod undo;

pub mod raise;

pub mod lab;

pub use changes::Changes;
pub use error::LabError;
pub use lab::Lab;
pub use paths::Paths;
pub use raise::{Event, Raised, Up};
pub use spec::{LabName, LabSpec, Rate, ServerSpec, Subnet};
pub use status::{LabStatus, ServerState, ServerStatus};
