//! Everything that decides: inventory, playbooks, plans, scheduling, data, cost. No IO.

pub mod job;
