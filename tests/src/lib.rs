//! Harness, demo and end-to-end stories.
//!
//! Everything here drives the product from outside, with the commands a user would type; what the demo
//! prints can be repeated by hand. [`apt`] and [`csv`] make real tables, [`shell`] runs commands.
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "the demo talks to a person; the product's own output goes through its printer"
)]

pub mod apt;
pub mod csv;
pub mod demo;
pub mod field;
pub mod http;
pub mod rack;
pub mod running;
pub mod shell;
pub mod site;
pub mod stage;
pub mod table;
