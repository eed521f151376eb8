//! The scheduler: a deterministic state machine. Events go in, actions come out; nothing here does IO,
//! reads a clock or draws a random number.
//!
//! - [`Sched::apply`] is the only thing that changes state. [`Sched::decide`] applies what it decides
//!   as [`Decided`](crate::job::What::Decided) events, so replaying the log gives the same state
//!   (law 16), wherever pods were placed and whatever fits now. How a bad end is answered is not logged:
//!   [`Config::lost_limit`], the backoff and [`Config::remembered_outcomes`] are read again, so a log is
//!   replayed with the values that it was written with.
//! - [`Sched::explain`] asks the same predicates ([`fit`]) as `decide` (law 10).
//! - What can be derived from the state lives in [`index`], can be rebuilt from scratch, and
//!   [`Sched::sanity_check`] compares.
//!
//! Policy: priority, then order of submission; best fit; gangs all or nothing; data locality as a
//! filter; pods of others counted. What does not fit blocks nobody behind it, until it has waited
//! [`Config::hold_after_ms`]: then nodes are held for it.
//!
//! Modules in the order in which data flows: [`config`], [`state`], [`index`], [`news`], [`apply`], [`attempt`],
//! [`due`] (what
//! time brings: stops, losses, archiving, pruning), [`fit`], [`decide`], [`explain`], [`view`].

mod apply;
mod attempt;
mod config;
mod decide;
mod due;
mod explain;
mod fit;
mod index;
mod news;
mod state;
mod view;

pub use config::Config;
pub use explain::{Explanation, NodeAnswer, Verdict};
pub use view::{AttemptView, JobView, NodeView};

use fit::Shape;
use index::Index;
use rackwright_wire::id::{JobId, PodKey};
use serde::{Deserialize, Serialize};
use state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The version of [`Snapshot`] that this build writes.
pub const SNAPSHOT_VERSION: u32 = 1;

/// The scheduler.
#[derive(Debug)]
pub struct Sched {
    config: Config,
    state: State,
    index: Index,
    /// The latest time that an event or a decision brought; never goes back.
    clock_ms: u64,
    /// From when on the cluster has been seen without a gap; see [`Sched::sight`].
    sight_ms: Option<u64>,
    /// Shapes that found no place since capacity last grew; only saves work, decides nothing.
    no_place: BTreeSet<Arc<Shape>>,
    /// Jobs whose view changed since [`Sched::take_changed`]; the view itself when the job was dropped.
    changed: BTreeMap<JobId, Option<JobView>>,
}

/// The whole state, so that a restart replays only the log's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`] of the writer.
    #[serde(deserialize_with = "rackwright_wire::format::version::<_, SNAPSHOT_VERSION>")]
    pub version: u32,
    /// The latest time that it knows.
    pub clock_ms: u64,
    state: State,
}

impl Sched {
    /// A scheduler that knows nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            state: State::default(),
            index: Index::default(),
            clock_ms: 0,
            sight_ms: Some(0),
            no_place: BTreeSet::new(),
            changed: BTreeMap::new(),
        }
    }

    /// The whole state.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { version: SNAPSHOT_VERSION, clock_ms: self.clock_ms, state: self.state.clone() }
    }

    /// A scheduler with a snapshot's state. All of its jobs count as changed.
    pub fn restore(config: Config, snapshot: Snapshot) -> Self {
        let changed = snapshot.state.jobs.keys().map(|job| (*job, None)).collect();
        let mut sched = Self {
            config,
            state: snapshot.state,
            index: Index::default(),
            clock_ms: snapshot.clock_ms,
            sight_ms: Some(0),
            no_place: BTreeSet::new(),
            changed,
        };
        sched.index = sched.rebuilt_index();
        sched
    }

    /// Says from when on the cluster has been seen without a gap, `None` while it is not. A node that was
    /// last seen unready may have come back unseen, and a pod may have started, so leases and the time to
    /// start count from here: nothing is declared lost or late while nobody looks. No part of the state:
    /// what it leads to is recorded as decisions.
    pub fn sight(&mut self, since_ms: Option<u64>) {
        self.sight_ms = since_ms;
        let live = self.state.pods.iter().filter(|(_, pod)| pod.is_live());
        let live: Vec<PodKey> = live.map(|(key, _)| *key).collect();
        for key in live {
            self.touch_pod(key);
        }
    }

    /// Rebuilds every index from the state and compares, and checks what must hold in every state.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn sanity_check(&self) -> Result<(), String> {
        let rebuilt = self.rebuilt_index();
        rebuilt.compare(&self.index)?;
        self.check_jobs()
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod world;
