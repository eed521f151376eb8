//! `wait`: a named state is true. Ports and paths are probed here; states of the cluster are the
//! controller's to know and are asked for, only inside an apply: a wait for one is never a difference.

use super::Found;
use crate::controller::Controller;
use crate::error::{Code, StepError};
use crate::host::Host;
use rackwright_wire::event::{Ask, Reply};
use rackwright_wire::step::WaitState;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const PROBE_LIMIT: Duration = Duration::from_millis(500);
const PROBE_PAUSE: Duration = Duration::from_millis(100);

pub(super) fn check(host: &Host, state: &WaitState) -> Result<Option<Found>, StepError> {
    Ok(if is_true(host, state)? { None } else { Some(Found::new(format!("wait for {}", name(state)))) })
}

pub(super) fn apply(
    host: &Host,
    step: &str,
    state: &WaitState,
    timeout_s: u32,
    controller: &dyn Controller,
) -> Result<(), StepError> {
    let limit = Duration::from_secs(timeout_s.into());
    if let WaitState::Cluster(state) = state {
        return ask(step, state, limit, controller);
    }
    let deadline = Instant::now() + limit;
    while !is_true(host, state)? {
        if Instant::now() >= deadline {
            return Err(timed_out(&name(state), limit));
        }
        thread::sleep(PROBE_PAUSE);
    }
    Ok(())
}

/// Asks the controller until it says that `state` is true.
pub(crate) fn ask(
    step: &str,
    state: &str,
    limit: Duration,
    controller: &dyn Controller,
) -> Result<(), StepError> {
    match controller.ask(step, Ask::State { state: state.to_owned() }, limit) {
        Ok(Reply::Reached) => Ok(()),
        Ok(Reply::Refused { reason, code }) => {
            let code = Code::of_io_name(&code).unwrap_or(Code::WaitRefused);
            Err(StepError::new(code, format!("wait for {state}: {reason}")))
        }
        Ok(Reply::Certificate { .. }) => {
            Err(StepError::new(Code::WaitRefused, format!("wait for {state}: the answer is a certificate")))
        }
        Err(error) if error.code == Code::ControllerAbsent => Err(timed_out(state, limit).because(error)),
        Err(error) => Err(error),
    }
}

fn timed_out(state: &str, limit: Duration) -> StepError {
    StepError::new(Code::WaitTimeout, format!("see {state} within {} s", limit.as_secs()))
}

fn is_true(host: &Host, state: &WaitState) -> Result<bool, StepError> {
    match state {
        WaitState::Port(address) => Ok(TcpStream::connect_timeout(&socket(address)?, PROBE_LIMIT).is_ok()),
        WaitState::Path(path) => Ok(host.path(path).exists()),
        WaitState::Cluster(_) => Ok(true),
    }
}

/// Addresses only: the static agent resolves no names, but everybody writes `localhost`.
fn socket(address: &str) -> Result<SocketAddr, StepError> {
    let numeric = address.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(address).parse().map_err(|error| {
        StepError::new(Code::BadStep, format!("read {address:?} as address:port")).because(error)
    })
}

fn name(state: &WaitState) -> String {
    match state {
        WaitState::Port(address) => format!("port {address}"),
        WaitState::Path(path) => format!("path {path}"),
        WaitState::Cluster(state) => state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::Silent;

    #[test]
    fn a_port_is_there_or_the_wait_ends() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = Host::new("/nowhere", 0);
        let open = WaitState::Port(listener.local_addr().unwrap().to_string());
        assert_eq!(check(&host, &open).unwrap(), None);
        drop(listener);
        let error = apply(&host, "x/y", &open, 0, &Silent).unwrap_err();
        assert_eq!(error.code, Code::WaitTimeout);
    }

    #[test]
    fn a_cluster_state_that_nobody_answers_times_out_as_such() {
        let host = Host::new("/nowhere", 0);
        let state = WaitState::Cluster("api:ready".to_owned());
        assert_eq!(check(&host, &state).unwrap(), None, "never a difference of a plan");
        let error = apply(&host, "x/y", &state, 1, &Silent).unwrap_err();
        assert_eq!(error.code, Code::WaitTimeout, "{}", error.chain());
    }
}
