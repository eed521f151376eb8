//! The control planes behind the proxy and which of them are healthy.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Addresses in the file's order, with their last known health.
#[derive(Debug)]
pub(super) struct Upstreams {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Healthy until a dial or a probe says otherwise.
    known: Vec<(SocketAddr, bool)>,
    turn: usize,
}

impl Upstreams {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        let known = addresses.into_iter().map(|address| (address, true)).collect();
        Self { state: Mutex::new(State { known, turn: 0 }) }
    }

    /// All upstreams in the order to try them: healthy ones in turn, then the others (a probe may be wrong,
    /// and a refused dial costs nothing).
    pub(super) fn candidates(&self) -> Vec<SocketAddr> {
        let mut state = self.state();
        state.turn = state.turn.wrapping_add(1);
        let (healthy, ill): (Vec<_>, Vec<_>) = state.known.iter().partition(|(_, healthy)| *healthy);
        let first = state.turn.checked_rem(healthy.len()).unwrap_or(0);
        let turned = healthy.iter().cycle().skip(first).take(healthy.len());
        turned.chain(&ill).map(|(address, _)| *address).collect()
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.state().known.iter().map(|(address, _)| *address).collect()
    }

    /// Notes that an upstream accepted a connection, or did not.
    pub(super) fn note(&self, address: SocketAddr, is_healthy: bool) {
        let mut state = self.state();
        let entry = state.known.iter_mut().find(|(known, _)| *known == address);
        if let Some((_, healthy)) = entry
            && *healthy != is_healthy
        {
            *healthy = is_healthy;
            tracing::info!(%address, is_healthy, "control plane");
        }
    }

    /// Another membership; what stays keeps its health. Open connections go on.
    pub(super) fn replace(&self, addresses: Vec<SocketAddr>) {
        let mut state = self.state();
        let health =
            |address| state.known.iter().find(|(known, _)| *known == address).is_none_or(|(_, is)| *is);
        state.known = addresses.into_iter().map(|address| (address, health(address))).collect();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn healthy_ones_take_turns_and_ill_ones_come_last() {
        let upstreams = Upstreams::new(vec![at(1), at(2), at(3)]);
        upstreams.note(at(2), false);
        let (one, two) = (upstreams.candidates(), upstreams.candidates());
        assert_eq!(one, [at(3), at(1), at(2)]);
        assert_eq!(two, [at(1), at(3), at(2)]);
        for address in [1, 3].map(at) {
            upstreams.note(address, false);
        }
        assert_eq!(upstreams.candidates(), [at(1), at(2), at(3)], "with all ill, all are tried");
    }

    #[test]
    fn a_new_membership_keeps_what_is_known() {
        let upstreams = Upstreams::new(vec![at(1), at(2)]);
        upstreams.note(at(2), false);
        upstreams.replace(vec![at(2), at(3)]);
        assert_eq!(upstreams.candidates(), [at(3), at(2)]);
    }
}
