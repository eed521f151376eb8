//! The loop: the one owner of the scheduler's state.
//!
//! Everything that happens arrives here through bounded queues, is told to the scheduler, and leaves as
//! a batch for the store and then, once that is durable, as tasks for the workers. When the store
//! cannot write, nothing leaves until it can; submits are refused meanwhile.

mod errands;

use crate::clock::Clock;
use crate::cluster::Change;
use crate::counters::Counters;
use crate::data_source::Checkpoint;
use crate::hands::{Done, Hands, Task};
use crate::health::Health;
use crate::history;
use crate::problem::Chain;
use crate::seen::{PodSeen, PodState};
use crate::world::World;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use rackwright_core::job::{Event, JobRecord, What};
use rackwright_core::sched::Sched;
use rackwright_store::{AuditRow, Batch, JobUpdate, Seq, SqliteStore, Store as _, StoreError};
use rackwright_wire::id::{JobId, Owner, PodKey};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{RwLock, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Inputs taken into one batch: bounds how long a commit and its replies can take.
const BATCH: usize = 512;
/// Between two tries to write while the store cannot.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// After a list that failed, the next one comes this soon.
const RELIST: Duration = Duration::from_secs(2);
/// Between two looks for checkpoints of running tasks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The scheduler is asked at least this often, whatever it says it waits for.
const LONGEST_SLEEP: Duration = Duration::from_mins(1);
/// Events after which the log is shortened by a snapshot.
const SNAPSHOT_EVERY: usize = 20_000;

/// A question about the current state, answered in the loop once that state is durable.
pub(crate) type Question = Box<dyn FnOnce(&Sched, &World) + Send>;

/// What the HTTP interface tells the loop.
pub(crate) enum Input {
    /// The store has accepted a job.
    Accepted(Box<JobRecord>, Seq),
    /// A person wants a job to end; answered once that is durable.
    Cancel { job: Box<JobRecord>, by: Owner, audit: Box<AuditRow>, done: oneshot::Sender<()> },
    /// A question.
    Ask(Question),
}

/// Everything that the loop owns.
pub(crate) struct Brain {
    /// The store.
    pub(crate) store: SqliteStore,
    /// The state machine.
    pub(crate) sched: Sched,
    /// What time it is for the state machine.
    pub(crate) clock: Clock,
    /// The last sight of the cluster.
    pub(crate) world: World,
    /// The workers.
    pub(crate) hands: Hands,
    /// From the HTTP interface.
    pub(crate) inputs: mpsc::Receiver<Input>,
    /// From the workers.
    pub(crate) done: mpsc::Receiver<Done>,
    /// From the watches.
    pub(crate) changes: BoxStream<'static, Change>,
    /// What others may know without asking.
    pub(crate) health: Arc<Health>,
    /// Counts what was done.
    pub(crate) counters: Arc<Counters>,
    /// Held by submits between the store's answer and the loop's input: a snapshot must not fall between.
    pub(crate) gate: Arc<RwLock<()>>,
    /// Time between two full passes.
    pub(crate) full_pass: Duration,
    /// Whether a data plane answers about checkpoints.
    pub(crate) has_data: bool,
    /// Records of jobs with pods, shared with the workers.
    pub(crate) records: HashMap<JobId, Arc<JobRecord>>,
    /// The last position of the log that the state contains.
    pub(crate) last: Seq,
    /// The last list failed: the next one comes sooner.
    pub(crate) unlisted: bool,
    /// The last list succeeded.
    pub(crate) seen: bool,
    /// Pods about which the workers had no room for more.
    pub(crate) refused: HashSet<PodKey>,
    /// Events in the log since its last snapshot.
    pub(crate) since_snapshot: usize,
}

/// What one round collected.
#[derive(Default)]
struct Round {
    batch: Batch,
    replies: Vec<oneshot::Sender<()>>,
    questions: Vec<Question>,
    tasks: Vec<Task>,
}

/// Held while the loop runs: however it ends, others hear of it, and nothing else goes on without it.
struct Running {
    health: Arc<Health>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.health.stopped();
        self.stop.cancel();
    }
}

impl Brain {
    /// Runs until stopped, or until the store is gone for good; then `stop` is cancelled from here.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let _running = Running { health: Arc::clone(&self.health), stop: stop.clone() };
        let mut pass = tokio::time::interval(self.full_pass);
        pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let mut round = Round::default();
            let wake = self.next_wake();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(input) = self.inputs.recv() => self.input(input, &mut round),
                Some(done) = self.done.recv() => self.done(done, &mut round),
                Some(change) = self.changes.next() => self.change(change, &mut round),
                _ = pass.tick() => self.full_pass(&mut round),
                _ = look.tick() => self.look(&mut round),
                () = tokio::time::sleep_until(wake) => {}
            }
            self.drain(&mut round);
            if !self.finish(round, &stop).await {
                break;
            }
            self.ask_again();
            if std::mem::take(&mut self.unlisted) {
                pass.reset_after(RELIST.min(self.full_pass));
            }
            if self.since_snapshot >= SNAPSHOT_EVERY {
                self.snapshot(&stop).await;
            }
        }
    }

    /// Decides, makes all of it durable, and only then lets it out; false when the store is gone.
    async fn finish(&mut self, mut round: Round, stop: &CancellationToken) -> bool {
        self.decide(&mut round);
        let durable = self.persist(&round.batch, stop).await;
        if durable {
            self.since_snapshot += round.batch.events.len();
            self.act(round);
        }
        durable
    }

    /// The time that the scheduler goes by.
    fn now_ms(&mut self) -> u64 {
        self.clock.now_ms(self.sched.clock_ms(), now_ms(), Instant::now().into_std())
    }

    /// When the scheduler wants to be asked again.
    fn next_wake(&mut self) -> Instant {
        let now = self.now_ms();
        let wait = self.sched.next_wake_ms().map_or(LONGEST_SLEEP, |at| {
            Duration::from_millis(at.saturating_sub(now)).clamp(Duration::from_millis(1), LONGEST_SLEEP)
        });
        Instant::now() + wait
    }

    /// Takes what else is waiting, so that it shares one commit.
    fn drain(&mut self, round: &mut Round) {
        for _ in 0..BATCH {
            let mut idle = true;
            if let Ok(input) = self.inputs.try_recv() {
                self.input(input, round);
                idle = false;
            }
            if let Ok(done) = self.done.try_recv() {
                self.done(done, round);
                idle = false;
            }
            if let Some(Some(change)) = self.changes.next().now_or_never() {
                self.change(change, round);
                idle = false;
            }
            if idle {
                return;
            }
        }
    }

    fn input(&mut self, input: Input, round: &mut Round) {
        match input {
            Input::Accepted(job, seq) => {
                self.last = self.last.max(seq);
                self.since_snapshot += 1;
                // Its event is in the log already: the store wrote it with the job's row.
                let event = Event::new(job.submitted_at_ms, What::Submitted { job });
                self.sched.apply(&event);
            }
            Input::Cancel { job, by, audit, done } => {
                let id = job.id;
                // The caller may know of the job before its own input has arrived here.
                self.sched.apply(&Event::new(job.submitted_at_ms, What::Submitted { job }));
                self.learn(What::CancelRequested { job: id, by }, round);
                round.batch.audit.push(*audit);
                round.replies.push(done);
            }
            Input::Ask(question) => round.questions.push(question),
        }
    }

    fn change(&mut self, change: Change, round: &mut Round) {
        self.counters.add("watch_events");
        if let Change::Pod(pod) = &change
            && self.must_settle(pod)
        {
            self.world.note(pod);
            self.settle(pod, round);
            return;
        }
        for what in self.world.change(change, &self.sched) {
            self.learn(what, round);
        }
    }

    fn done(&mut self, done: Done, round: &mut Round) {
        match done {
            Done::Event(what) => self.learn(what, round),
            Done::Tail { pod, log_tail } => {
                if let Some(row) = history::row(&self.sched, pod, log_tail) {
                    round.batch.attempts.push(row);
                    self.learn(What::Archived { pod }, round);
                }
            }
            Done::Settled { seen, checkpoint } => {
                if let (Some(found), Some(key)) = (checkpoint, seen.ours) {
                    self.checkpoint(found, key, round);
                }
                for what in self.world.change(Change::Pod(seen), &self.sched) {
                    self.learn(what, round);
                }
            }
            Done::Found(all) => {
                for (found, key) in all {
                    self.checkpoint(found, key, round);
                }
            }
            Done::Listed(snapshot) => {
                self.health.synced(now_ms());
                if !std::mem::replace(&mut self.seen, true) {
                    let now = self.now_ms();
                    self.sched.sight(Some(now));
                }
                let pods = snapshot.pods.iter().filter(|pod| self.must_settle(pod));
                let held: HashSet<String> = pods.map(|pod| pod.uid.clone()).collect();
                for pod in snapshot.pods.iter().filter(|pod| held.contains(&pod.uid)) {
                    self.settle(pod, round);
                }
                for what in self.world.snapshot(*snapshot, &held, &self.sched) {
                    self.learn(what, round);
                }
                // The cluster answers: what it was asked and did not answer is asked again.
                for action in self.sched.outstanding() {
                    round.tasks.extend(self.task(action));
                }
            }
            Done::Unlisted => {
                self.world.unlisted();
                self.unlisted = true;
                self.seen = false;
                self.sched.sight(None);
            }
            Done::Nothing => {}
        }
    }

    /// A pod that failed and writes checkpoints: its last one may still be on its way off the node, and
    /// the scheduler decides about the retry as soon as it hears of the end.
    fn must_settle(&self, pod: &PodSeen) -> bool {
        let Some(key) = pod.ours else { return false };
        let failed = matches!(pod.state, PodState::Failed(_));
        let checkpoints = self.sched.job(key.job).is_some_and(|job| job.spec.checkpoint.is_some());
        let open = self.sched.attempt(key).is_some_and(|attempt| attempt.outcome.is_none());
        self.has_data && failed && checkpoints && open
    }

    fn settle(&mut self, pod: &PodSeen, round: &mut Round) {
        if let Some(job) = pod.ours.and_then(|key| self.record(key.job)) {
            round.tasks.push(Task::Settle { job, seen: Box::new(pod.clone()) });
        }
    }

    fn checkpoint(&mut self, found: Checkpoint, key: PodKey, round: &mut Round) {
        let pod = PodKey { attempt: rackwright_wire::id::AttemptNo(found.attempt), ..key };
        self.learn(What::CheckpointSealed { pod, step: found.set.step, set: found.set.set }, round);
    }

    fn full_pass(&mut self, round: &mut Round) {
        if self.world.request(&self.sched) {
            round.tasks.push(Task::List);
        }
    }

    fn look(&mut self, round: &mut Round) {
        if !self.has_data {
            return;
        }
        let running = self.world.ours().filter(|pod| matches!(pod.state, PodState::Running { .. }));
        let mut jobs: BTreeMap<JobId, Vec<PodKey>> = BTreeMap::new();
        for pod in running.filter_map(|pod| pod.ours) {
            jobs.entry(pod.job).or_default().push(pod);
        }
        for (id, pods) in jobs {
            if let Some(job) = self.record(id).filter(|job| job.spec.checkpoint.is_some()) {
                round.tasks.push(Task::Look { job, pods });
            }
        }
    }

    /// Tells the scheduler, and the log when it is news.
    fn learn(&mut self, what: What, round: &mut Round) {
        let event = Event::new(self.now_ms(), what);
        if self.sched.is_news(&event) {
            self.sched.apply(&event);
            round.batch.events.push(event);
        }
    }

    /// Nothing is decided before the cluster was seen once: what the log says of it may be old.
    fn decide(&mut self, round: &mut Round) {
        if self.health.is_synced() {
            let now = self.now_ms();
            for action in self.sched.decide(now) {
                round.batch.events.push(Event::decided(now, action.clone()));
                round.tasks.extend(self.task(action));
            }
        }
        for view in self.sched.take_changed() {
            if self.sched.job(view.id).is_none() {
                self.records.remove(&view.id);
            }
            round.batch.jobs.push(JobUpdate {
                id: view.id,
                phase: view.phase,
                counts: view.counts,
                outcome: view.outcome,
                started_at_ms: view.started_at_ms,
                finished_at_ms: view.finished_at_ms,
            });
        }
    }

    /// Makes the round durable, however long that takes; false when it never will be.
    async fn persist(&mut self, batch: &Batch, stop: &CancellationToken) -> bool {
        if batch.is_empty() {
            return true;
        }
        loop {
            match self.store.append(batch.clone()).await {
                Ok(seq) => {
                    self.last = self.last.max(seq);
                    self.health.store(true);
                    return true;
                }
                Err(StoreError::Closed) => {
                    tracing::error!("the job store is gone; nothing goes on without it");
                    return false;
                }
                Err(cause) => {
                    self.health.store(false);
                    self.counters.add("store_retries");
                    tracing::error!(error = %Chain(&cause), "failed to write; nothing leaves until it works");
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(STORE_PAUSE)).await.is_none() {
                return false;
            }
        }
    }

    /// Shortens the log. Submits wait for the moment that it takes to copy the state: one whose event is
    /// in the log but not in the state would be lost with the events before the snapshot.
    async fn snapshot(&mut self, stop: &CancellationToken) {
        let gate = Arc::clone(&self.gate);
        let closed = gate.write().await;
        while !self.inputs.is_empty() {
            let mut round = Round::default();
            self.drain(&mut round);
            if !self.finish(round, stop).await {
                return;
            }
        }
        let (at, snapshot) = (self.last, self.sched.snapshot());
        self.since_snapshot = 0;
        drop(closed);
        let text = match tokio::task::spawn_blocking(move || serde_json::to_string(&snapshot)).await {
            Ok(Ok(text)) => text,
            Ok(Err(cause)) => return tracing::error!(error = %cause, "failed to write a snapshot"),
            Err(cause) => return tracing::error!(error = %cause, "failed to write a snapshot"),
        };
        if let Err(cause) = self.store.save_snapshot(at, text).await {
            tracing::warn!(error = %Chain(&cause), "failed to keep a snapshot; the log stays long");
        }
    }
}

/// Milliseconds since the epoch by the wall clock, which may be put back; the scheduler goes by [`Clock`].
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_ends_by_itself_takes_the_server_with_it() {
        let (health, stop) = (Arc::new(Health::default()), CancellationToken::new());
        drop(Running { health: Arc::clone(&health), stop: stop.clone() });
        assert!(health.trouble().is_some() && stop.is_cancelled());
    }
}
