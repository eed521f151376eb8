//! Everything that decides: inventory, playbooks, plans, scheduling, data, cost. No IO.

pub mod cost;
pub mod data;
pub mod finding;
pub mod inventory;
pub mod job;
pub mod lint;
pub mod plan;
pub mod playbook;
pub mod sched;
