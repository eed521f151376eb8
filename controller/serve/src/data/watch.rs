//! The loop that keeps agents and labels in step with what is published. It works from what agents say
//! now, never from what was once told to them, so a restart on either side needs nothing special.

use super::{DataPlane, Error, Seen, now_ms};
use crate::problem::Chain;
use futures::future::join_all;
use rackwright_core::data::{self, Dataset};
use rackwright_wire::manifest::{Held, Wanted};
use std::time::Duration;

/// While a version is on its way.
const BUSY: Duration = Duration::from_millis(400);
/// When nothing is to be done.
const IDLE: Duration = Duration::from_secs(5);

impl DataPlane {
    /// Never returns.
    pub(super) async fn watch(&self) {
        let mut periodic = None;
        let mut next_sync = tokio::time::Instant::now() + self.sync_period();
        loop {
            let wanted = self.state().wanted.clone();
            let looks = wanted.iter().map(|(server, wanted)| self.look(server, wanted));
            let settled = join_all(looks).await.into_iter().all(|settled| settled);
            if let Err(error) = self.mark_nodes().await {
                tracing::warn!(error = %Chain(&error), "nodes are not marked");
            }
            if tokio::time::Instant::now() >= next_sync {
                // While the last one goes on, another would only replace what has not arrived yet.
                if periodic.is_none_or(|id| !self.is_open(id)) {
                    periodic = Some(self.start_sync(Vec::new(), None));
                }
                next_sync = tokio::time::Instant::now() + self.sync_period();
            }
            let pause = if settled { IDLE } else { BUSY };
            let _changed_or_elapsed = tokio::time::timeout(pause, self.inner.changed.notified()).await;
        }
    }

    fn sync_period(&self) -> Duration {
        match self.inner.sync_every_s {
            0 => Duration::from_hours(24 * 365),
            seconds => Duration::from_secs(seconds),
        }
    }

    /// Looks at one agent and tells it what is wanted when it does not know. True when it is complete.
    async fn look(&self, server: &str, wanted: &Wanted) -> bool {
        let outcome = self.in_step(server, wanted).await;
        let mut state = self.state();
        let before = state.seen.get(server).and_then(|seen| seen.held.clone());
        let (held, error) = match outcome {
            Ok(held) => (Some(held), None),
            Err(error) => {
                state.trusting.remove(server);
                (before, Some(Chain(&error).to_string()))
            }
        };
        let settled = held.as_ref().is_some_and(|held| complete(wanted, held)) || error.is_some();
        state.seen.insert(server.to_owned(), Seen { held, error, asked_at_ms: now_ms() });
        settled
    }

    async fn in_step(&self, server: &str, wanted: &Wanted) -> Result<Held, Error> {
        let held = self.inner.agents.held(server).await?;
        if held.generation == wanted.generation {
            return Ok(held);
        }
        let trusting = self.state().trusting.contains(server);
        if !trusting {
            self.inner.agents.trust(server, &self.inner.public_pem).await?;
            self.state().trusting.insert(server.to_owned());
        }
        self.inner.agents.want(server, wanted).await
    }

    /// Marks nodes with the versions they hold. A server that does not answer keeps its marks: its data
    /// did not go away with its answer.
    async fn mark_nodes(&self) -> Result<(), Error> {
        let nodes = self.inner.nodes.nodes().await?;
        for place in &self.inner.places {
            let Some(has) = nodes.get(&place.server) else { continue };
            let seen = self.state().seen.get(&place.server).cloned();
            let Some(held) = seen.filter(|seen| seen.error.is_none()).and_then(|seen| seen.held) else {
                continue;
            };
            let datasets: Vec<Dataset> =
                self.inner.datasets.iter().filter(|dataset| dataset.role == place.role).cloned().collect();
            let marks = data::marks(&datasets, &held).differing(&has.labels, &has.annotations);
            if !marks.is_empty() {
                self.inner.nodes.mark(&place.server, &marks).await?;
                tracing::info!(node = place.server, labels = ?marks.labels, "marked");
            }
        }
        Ok(())
    }
}

/// Whether everything wanted is complete.
fn complete(wanted: &Wanted, held: &Held) -> bool {
    held.generation == wanted.generation
        && wanted.datasets.keys().all(|dataset| {
            let newest = held.datasets.get(dataset).and_then(|versions| versions.last());
            newest.is_some_and(|version| version.complete)
        })
}
