//! Everything that decides: inventory, playbooks, plans, scheduling, data, cost. No IO.

pub mod finding;
pub mod inventory;
pub mod playbook;
pub mod plan;
pub mod lint;
pub mod job;
pub mod sched;
pub mod data;
pub mod cost;
