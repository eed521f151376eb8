//! Handshakes in small groups, with patience for sshd's own limit.
//!
//! sshd drops connections at random once ten of them are not yet authenticated (`MaxStartups 10:30:100`).
//! So at most ten handshakes run at once through one gate (a bastion, or all direct servers), and a
//! connection that is dropped before authentication is tried again a few times, after a pause that grows
//! and varies. What a server said clearly (wrong host key, rejected login) is never tried again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Handshakes at once through one gate: sshd's `MaxStartups` begins to drop at ten.
pub const HANDSHAKES_PER_GATE: usize = 10;

/// How often and how patiently a dropped handshake is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Tries in all, at least one.
    pub tries: u32,
    /// Pause before the second try; doubles with each further one.
    pub first_pause: Duration,
    /// No pause is longer.
    pub longest_pause: Duration,
}

impl Default for Patience {
    /// Four tries within about two seconds.
    fn default() -> Self {
        Self { tries: 4, first_pause: Duration::from_millis(200), longest_pause: Duration::from_secs(2) }
    }
}

impl Patience {
    /// The pause after the `failed`-th failure (from 1), or `None` when no try is left. `jitter` in 0..=255
    /// spreads it between half and the whole, so that dropped clients do not come back together.
    pub fn pause(&self, failed: u32, jitter: u8) -> Option<Duration> {
        if failed >= self.tries {
            return None;
        }
        let doubled = self.first_pause.saturating_mul(1 << failed.saturating_sub(1).min(16));
        let whole = doubled.min(self.longest_pause);
        Some(whole / 2 + whole / 2 * u32::from(jitter) / 255)
    }
}

/// The gates, one per bastion and one for all servers that are reached directly.
#[derive(Debug, Default)]
pub struct Ramp {
    gates: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Ramp {
    /// The gate of a bastion; the empty name is the gate of direct connections.
    pub fn gate(&self, bastion: &str) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate =
            gates.entry(bastion.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(HANDSHAKES_PER_GATE)));
        Arc::clone(gate)
    }
}

/// One random byte for [`Patience::pause`].
pub(crate) fn jitter() -> u8 {
    let mut byte = [128];
    // Without entropy the pause is merely regular.
    let _regular = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    byte.first().copied().unwrap_or(128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_stay_bounded_and_end() {
        let patience = Patience { tries: 5, ..Patience::default() };
        let longest: Vec<u128> =
            (1..5).map(|failed| patience.pause(failed, 255).unwrap().as_millis()).collect();
        assert_eq!(longest, [200, 400, 800, 1600]);
        assert_eq!(patience.pause(1, 0).unwrap(), Duration::from_millis(100));
        assert_eq!(patience.pause(5, 0), None);
        let patient = Patience { tries: 60, ..Patience::default() };
        assert_eq!(patient.pause(59, 255).unwrap(), patient.longest_pause);
    }

    #[test]
    fn a_gate_admits_ten_and_gates_do_not_share() {
        let ramp = Ramp::default();
        let inside: Vec<_> =
            (0..HANDSHAKES_PER_GATE).map(|_| ramp.gate("").try_acquire_owned().unwrap()).collect();
        assert!(ramp.gate("").try_acquire_owned().is_err());
        assert!(ramp.gate("bastion").try_acquire_owned().is_ok());
        drop(inside);
        assert!(ramp.gate("").try_acquire_owned().is_ok());
    }
}
