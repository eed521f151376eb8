//! The rack as the bill sees it: what each server costs, has, and leaves to jobs.
//!
//! A server's own contract wins over the price of its shape. What it has is the lab's limit, else its shape's size,
//! else what is left to pods plus what the inventory reserves; what jobs may use is what the cluster says, and nothing
//! on servers of roles that run none.

use super::prices::Prices;
use super::usage::{RackServer, Rent, Room};
use crate::inventory::{Inventory, Role, Server};
use jiff::civil::Date;
use rackwright_wire::id::NodeName;
use rackwright_wire::units::MilliGpu;
use std::collections::BTreeMap;

/// Servers without a price; reads after "failed to".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("price the rack: {}", .0.join("; "))]
pub struct Unpriced(pub Vec<String>);

/// What the cluster and the operator say beside the inventory.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// What pods may use of each node; a node that is missing is not there.
    pub allocatable: BTreeMap<NodeName, Room>,
    /// Shapes of servers, for those without a contract or without known size.
    pub shapes: BTreeMap<String, String>,
}

/// Every server of the inventory with its rent and room, at the prices of a day.
///
/// # Errors
/// All servers whose price is not known, and all shapes that have none.
pub fn servers(
    inventory: &Inventory,
    prices: &Prices,
    beside: &Beside,
    on: Date,
) -> Result<Vec<RackServer>, Unpriced> {
    let mut faults = Vec::new();
    for name in beside.shapes.keys().filter(|name| inventory.server(name).is_none()) {
        faults.push(format!("the inventory has no server {name}"));
    }
    let mut rack = Vec::new();
    for server in &inventory.servers {
        match one(inventory, server, prices, beside, on) {
            Ok(server) => rack.push(server),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(rack) } else { Err(Unpriced(faults)) }
}

fn one(
    inventory: &Inventory,
    server: &Server,
    prices: &Prices,
    beside: &Beside,
    on: Date,
) -> Result<RackServer, String> {
    let name: NodeName = server.name.parse().map_err(|error| format!("{error}"))?;
    let shape = match beside.shapes.get(&server.name) {
        None => None,
        Some(shape) => {
            let known = prices.server(shape, on);
            Some(known.ok_or_else(|| format!("no price of {shape} is known on {on}"))?)
        }
    };
    let contract = server.contract.as_ref().map(|contract| Rent {
        monthly: contract.monthly,
        setup: contract.setup,
        term_months: contract.term_months,
        since: Some(contract.since),
        source: format!("contract of {} in the inventory", contract.since),
    });
    let rent = contract.or_else(|| shape.as_ref().map(|(rent, _)| rent.clone()));
    let rent = rent.ok_or_else(|| format!("{} has neither a contract nor a shape", server.name))?;
    let allocatable = beside.allocatable.get(&name).copied().unwrap_or_default();
    let for_jobs = match server.role {
        Role::Ml | Role::Dev => allocatable,
        Role::Control | Role::Data | Role::Results => Room::default(),
    };
    let room = size(inventory, server, shape.map(|(_, room)| room), allocatable);
    Ok(RackServer { name, rent, room, for_jobs })
}

fn size(inventory: &Inventory, server: &Server, shape: Option<Room>, allocatable: Room) -> Room {
    if let Some(lab) = &server.lab {
        let gpu = MilliGpu::new(u64::from(server.gpus_expected) * 1000).unwrap_or_default();
        return Room { cpu: lab.cpu, memory: lab.memory, gpu };
    }
    shape.unwrap_or_else(|| {
        let kept = &inventory.cluster.reservations;
        let cpu = [kept.system_cpu, kept.kube_cpu, kept.data_cpu].into_iter().flatten().sum();
        let memory = [kept.system_memory, kept.kube_memory, kept.data_memory].into_iter().flatten().sum();
        Room { cpu: allocatable.cpu + cpu, memory: allocatable.memory + memory, gpu: allocatable.gpu }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices() -> Prices {
        Prices::parse(include_str!("../../../../inventory/prices.toml")).unwrap()
    }

    fn lab() -> Inventory {
        Inventory::parse("lab.toml", include_str!("../../../../inventory/lab.toml")).unwrap()
    }

    const ON: Date = Date::constant(2026, 11, 1);

    #[test]
    fn the_lab_is_priced_by_its_contracts_and_sized_by_its_limits() {
        let room = Room { cpu: "1".parse().unwrap(), memory: "2GiB".parse().unwrap(), gpu: MilliGpu::ZERO };
        let names = ["ml1", "control1"].map(|name| (name.parse().unwrap(), room));
        let beside = Beside { allocatable: names.into(), shapes: BTreeMap::new() };
        let rack = servers(&lab(), &prices(), &beside, ON).unwrap();
        let by_name = |name: &str| rack.iter().find(|server| server.name.as_str() == name).unwrap();
        assert_eq!(by_name("ml1").for_jobs, room);
        assert!(by_name("ml1").room.memory > room.memory);
        assert_eq!(by_name("control1").for_jobs, Room::default(), "a control server runs no jobs");
        assert_eq!(by_name("ml2").for_jobs, Room::default(), "a node that is not there runs none");
    }

    #[test]
    fn a_server_without_a_contract_needs_a_shape_with_a_price() {
        let mut inventory = lab();
        for server in &mut inventory.servers {
            server.contract = None;
        }
        let shapes = |pairs: &[(&str, &str)]| Beside {
            allocatable: BTreeMap::new(),
            shapes: pairs.iter().map(|(name, shape)| ((*name).to_owned(), (*shape).to_owned())).collect(),
        };
        let beside = shapes(&[("ml1", "hetzner/gex44"), ("ml2", "none/such"), ("ml9", "hetzner/gex44")]);
        let error = servers(&inventory, &prices(), &beside, ON).unwrap_err().to_string();
        for part in ["no server ml9", "no price of none/such", "control1 has neither"] {
            assert!(error.contains(part), "{error}");
        }
        let all: Vec<(&str, &str)> =
            inventory.servers.iter().map(|server| (server.name.as_str(), "hetzner/gex44")).collect();
        let rack = servers(&inventory, &prices(), &shapes(&all), ON).unwrap();
        assert!(rack.iter().all(|server| server.rent.monthly.to_string() == "184.00 EUR"));
        assert!(rack.iter().all(|server| server.rent.source.contains("2026-01-11")));
    }
}
