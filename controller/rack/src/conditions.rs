//! States of several servers together, evaluated here because no single server can know them.
//!
//! Each state is watched by at most one poll, however many servers wait for it, and stays true once it
//! was. A state that never becomes true is ended by the steps that wait for it, not here.

use crate::connect::Rack;
use crate::probe::Asker;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often a state that is not true yet is asked for.
const POLL: Duration = Duration::from_millis(200);
const ETCD_PORT: u16 = 2379;
const API_PORT: u16 = 6443;

/// A control server.
#[derive(Debug, Clone)]
pub struct Control {
    /// Its name.
    pub server: String,
    /// Its address on the node network.
    pub address: Ipv4Addr,
}

type Reached = Shared<BoxFuture<'static, Result<(), String>>>;

/// All states of one rack.
#[derive(Clone)]
pub struct Conditions {
    rack: Arc<Rack>,
    controls: Arc<[Control]>,
    etcd: Asker,
    api: Asker,
    watched: Arc<Mutex<BTreeMap<String, Reached>>>,
    /// True once no control server can bring any of them about.
    hopeless: tokio::sync::watch::Sender<bool>,
}

impl Conditions {
    /// Nothing is asked before somebody waits.
    pub fn new(rack: Arc<Rack>, controls: Vec<Control>, etcd: Asker, api: Asker) -> Self {
        let hopeless = tokio::sync::watch::Sender::new(false);
        Self { rack, controls: controls.into(), etcd, api, watched: Arc::default(), hopeless }
    }

    /// No control server can bring a state about any more: whoever waits is told now.
    pub fn give_up(&self) {
        self.hopeless.send_replace(true);
    }

    /// Waits until a state is true: `etcd:quorum` or `api:ready`.
    ///
    /// # Errors
    /// Says why when no such state exists, or none can be reached any more.
    pub async fn reached(&self, state: &str) -> Result<(), String> {
        let watch = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            let start = || Self::watch(self.clone(), state.to_owned()).boxed().shared();
            watched.entry(state.to_owned()).or_insert_with(start).clone()
        };
        let mut hopeless = self.hopeless.subscribe();
        tokio::select! {
            reached = watch => reached,
            Ok(_) = hopeless.wait_for(|hopeless| *hopeless) => {
                Err(format!("{state} cannot come true: every control server has failed or is away"))
            }
        }
    }

    /// Whether the API answers now, and through which control server.
    pub async fn api_ready(&self) -> Option<&Control> {
        for control in &*self.controls {
            if self.answers(control, &self.api, API_PORT, "/readyz", |body| body.trim() == "ok").await {
                return Some(control);
            }
        }
        None
    }

    /// etcd's metrics in Prometheus' text format, from the first member that answers.
    pub async fn etcd_metrics(&self) -> Option<String> {
        for control in &*self.controls {
            let Ok(session) = self.rack.session(&control.server).await else { continue };
            let answer = self.etcd.get(&session, control.address, ETCD_PORT, "/metrics").await;
            if let Ok(answer) = answer
                && answer.status == 200
            {
                return Some(answer.body);
            }
        }
        None
    }

    /// A member answers this only after a linearizable read: then a quorum exists.
    async fn etcd_quorum(&self) -> bool {
        for control in &*self.controls {
            let healthy = |body: &str| body.contains("\"health\":\"true\"");
            if self.answers(control, &self.etcd, ETCD_PORT, "/health", healthy).await {
                return true;
            }
        }
        false
    }

    async fn watch(self, state: String) -> Result<(), String> {
        loop {
            let reached = match state.as_str() {
                "etcd:quorum" => self.etcd_quorum().await,
                "api:ready" => self.api_ready().await.is_some(),
                _ => {
                    return Err(format!("there is no state {state:?}; known are etcd:quorum and api:ready"));
                }
            };
            if reached {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn answers(
        &self,
        control: &Control,
        asker: &Asker,
        port: u16,
        path: &str,
        good: impl Fn(&str) -> bool,
    ) -> bool {
        let Ok(session) = self.rack.session(&control.server).await else {
            return false;
        };
        match asker.get(&session, control.address, port, path).await {
            Ok(answer) => answer.status == 200 && good(&answer.body),
            Err(error) => {
                tracing::trace!(server = control.server, port, path, %error, "not yet");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::FirstUse;
    use crate::ledger::HostLedger;
    use crate::pki::Authorities;
    use crate::ramp::Patience;
    use crate::state::StateDir;

    #[tokio::test]
    async fn whoever_waits_is_told_when_no_control_server_is_left() {
        let _first_wins = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path()).unwrap();
        let now = 1_790_000_000;
        let authorities = Authorities::open(&state, "lab", now).unwrap();
        let asker = || Asker::new(&authorities.client("etcd", "probe", "", 60, now).unwrap()).unwrap();
        let ledger = HostLedger::open(&state).unwrap();
        let rack = Rack::new(Vec::new(), ledger, FirstUse::Refuse, Patience::default());
        let conditions = Conditions::new(Arc::new(rack), Vec::new(), asker(), asker());
        let first = conditions.clone();
        let waiting = tokio::spawn(async move { first.reached("api:ready").await });
        tokio::task::yield_now().await;
        conditions.give_up();
        for told in [waiting.await.unwrap(), conditions.reached("etcd:quorum").await] {
            assert!(told.unwrap_err().contains("every control server has failed"), "early or late");
        }
    }
}
