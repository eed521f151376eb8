//! Carries out what was decided: bounded workers, each action until it is done or refused for good.
//!
//! Every action is idempotent and recorded before it comes here, so losing one is no harm: the periodic
//! pass asks for what is still unanswered again.

use crate::cluster::{self, Cluster, ClusterError, Created};
use crate::counters::Counters;
use crate::data_source::{Checkpoint, DataSource};
use crate::pod::{self, PodStyle};
use crate::problem::Chain;
use crate::seen::PodSeen;
use rackwright_core::job::{CheckpointRef, JobRecord, What};
use rackwright_wire::id::{NodeName, PodKey, PodUid};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Actions carried out at once; the apiserver's own limit for one client is far above.
const WORKERS: usize = 16;
/// Actions that wait for a worker; more are refused, and asked for again once half of this is free.
const WAITING: usize = 4096;
/// Looks for checkpoints at once: each has the server that keeps sealed sets read a job's checkpoints.
const LOOKERS: usize = 4;
/// Pauses between tries while the apiserver is away.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// A log that could not be read so often, a full pass apart, is archived without: a kubelet remembers for
/// 30 s what the apiserver told it about who may read, and a full pass comes every 30 s.
const LOG_TRIES: u32 = 3;
/// A checkpoint that is still being sealed when its pod ends shows up within this time.
const SETTLE: Duration = Duration::from_secs(3);
/// Pauses between looks whether a creation was answered; every try of one ends by itself.
const CREATION_STEP: Duration = Duration::from_millis(20);
/// Pauses between looks for it.
const SETTLE_STEP: Duration = Duration::from_millis(500);

/// One thing to do, with all that is needed for it.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    /// Make a pod.
    Create { job: Arc<JobRecord>, pod: PodKey, node: NodeName, resume: Option<CheckpointRef> },
    /// Have the kubelet end a pod; its record stays until it is archived.
    Stop { namespace: String, pod: PodKey, uid: Option<PodUid> },
    /// Fetch the end of its log.
    Archive { namespace: String, pod: PodKey, readable: bool },
    /// Delete a finished pod; with the node that is away and cannot confirm it.
    Prune { namespace: String, pod: PodKey, uid: PodUid, away: Option<NodeName> },
    /// Wait for the last checkpoint of a pod that has ended.
    Settle { job: Arc<JobRecord>, seen: Box<PodSeen> },
    /// Look for new checkpoints of a job's running tasks.
    Look { job: Arc<JobRecord>, pods: Vec<PodKey> },
    /// List everything.
    List,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    /// An event for the scheduler.
    Event(What),
    /// The log's end, for the history row.
    Tail { pod: PodKey, log_tail: String },
    /// A pod has ended and its last checkpoint is known.
    Settled { seen: Box<PodSeen>, checkpoint: Option<Checkpoint> },
    /// The newest checkpoints of running tasks.
    Found(Vec<(Checkpoint, PodKey)>),
    /// Everything that is there.
    Listed(Box<crate::cluster::Snapshot>),
    /// The cluster could not be listed.
    Unlisted,
    /// Nothing to tell.
    Nothing,
}

/// What became of a task that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It waits for a worker.
    Queued,
    /// The same work is under way.
    UnderWay,
    /// Too much waits.
    NoRoom,
}

/// The bounded queues into the workers: what only waits, or only looks, takes no action's place.
#[derive(Debug, Clone)]
pub(crate) struct Hands {
    actions: mpsc::Sender<Task>,
    looks: mpsc::Sender<Task>,
    waits: mpsc::Sender<Task>,
    busy: Arc<Mutex<HashSet<String>>>,
    counters: Arc<Counters>,
}

/// What the workers work with.
pub(crate) struct Tools {
    /// The cluster.
    pub(crate) cluster: Arc<dyn Cluster>,
    /// The data plane, when there is one.
    pub(crate) data: Option<Arc<dyn DataSource>>,
    /// What pods have in common.
    pub(crate) style: PodStyle,
    /// A node that did not renew its lease for this long has stopped its job pods.
    pub(crate) silence: Duration,
    /// Counts what was done.
    pub(crate) counters: Arc<Counters>,
}

impl Hands {
    /// Starts the workers; what they did goes to `done`.
    pub(crate) fn start(
        tools: Tools,
        done: &mpsc::Sender<Done>,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let busy = Arc::new(Mutex::new(HashSet::new()));
        let counters = Arc::clone(&tools.counters);
        let shared = Arc::new(Shared {
            tools,
            busy: Arc::clone(&busy),
            namespaces: Mutex::default(),
            vain: Mutex::default(),
        });
        let queue = |workers: usize| {
            let (queue, waiting) = mpsc::channel(WAITING);
            tasks.spawn(dispatch(Arc::clone(&shared), waiting, workers, done.clone(), stop.clone()));
            queue
        };
        Self { actions: queue(WORKERS), looks: queue(LOOKERS), waits: queue(WAITING), busy, counters }
    }

    /// Queues a task, unless the same one is under way.
    pub(crate) fn take(&self, task: Task) -> Taken {
        let name = task.name();
        if !lock(&self.busy).insert(name.clone()) {
            return Taken::UnderWay;
        }
        let queue = match &task {
            Task::Create { .. } | Task::Stop { .. } | Task::Archive { .. } | Task::Prune { .. } => {
                &self.actions
            }
            Task::Look { .. } => &self.looks,
            Task::Settle { .. } | Task::List => &self.waits,
        };
        if queue.try_send(task).is_err() {
            self.counters.add("actions_dropped");
            lock(&self.busy).remove(&name);
            return Taken::NoRoom;
        }
        Taken::Queued
    }

    /// Whether many more actions may be queued.
    pub(crate) fn has_room(&self) -> bool {
        self.actions.capacity() >= WAITING / 2
    }
}

struct Shared {
    tools: Tools,
    busy: Arc<Mutex<HashSet<String>>>,
    namespaces: Mutex<HashSet<String>>,
    /// How often a pod's log was asked for in vain.
    vain: Mutex<HashMap<PodKey, u32>>,
}

async fn dispatch(
    shared: Arc<Shared>,
    mut waiting: mpsc::Receiver<Task>,
    workers: usize,
    done: mpsc::Sender<Done>,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(workers));
    let tasks = TaskTracker::new();
    while let Some(Some(task)) = stop.run_until_cancelled(waiting.recv()).await {
        let permit = Arc::clone(&room).acquire_owned().await.ok();
        let (shared, done, stop) = (Arc::clone(&shared), done.clone(), stop.clone());
        tasks.spawn(async move {
            let name = task.name();
            let outcome = stop.run_until_cancelled(shared.work(task)).await;
            drop(permit);
            if let Some(outcome) = outcome {
                let _loop_is_gone = done.send(outcome).await;
            }
            // After the answer, so that nothing about the same pod overtakes it.
            lock(&shared.busy).remove(&name);
        });
    }
    tasks.close();
    tasks.wait().await;
}

impl Shared {
    async fn work(&self, task: Task) -> Done {
        match task {
            Task::Create { job, pod, node, resume } => self.create(&job, pod, &node, resume.as_ref()).await,
            Task::Stop { namespace, pod, uid } => self.stop(&namespace, pod, uid).await,
            Task::Archive { namespace, pod, readable } => {
                let log_tail = if readable { self.tail(&namespace, pod).await } else { Some(String::new()) };
                if log_tail.is_some() {
                    lock(&self.vain).remove(&pod);
                }
                log_tail.map_or(Done::Nothing, |log_tail| Done::Tail { pod, log_tail })
            }
            Task::Prune { namespace, pod, uid, away } => self.prune(&namespace, pod, uid, away).await,
            Task::Settle { job, seen } => self.settle(&job, seen).await,
            Task::Look { job, pods } => match &self.tools.data {
                Some(data) => {
                    let newest = data.checkpoints(&job).await;
                    let of = |pod: PodKey| newest.get(&pod.task).map(|found| (found.clone(), pod));
                    Done::Found(pods.into_iter().filter_map(of).collect())
                }
                None => Done::Nothing,
            },
            Task::List => match self.tools.cluster.snapshot().await {
                Ok(snapshot) => Done::Listed(Box::new(snapshot)),
                Err(cause) => {
                    tracing::warn!(error = %Chain(&cause), "cannot list the cluster");
                    Done::Unlisted
                }
            },
        }
    }

    async fn create(
        &self,
        job: &JobRecord,
        pod: PodKey,
        node: &NodeName,
        resume: Option<&CheckpointRef>,
    ) -> Done {
        let rendered = match pod::render(job, pod, node, resume, &self.tools.style) {
            Ok(rendered) => rendered,
            Err(cause) => return Done::Event(What::PodNotCreated { pod, reason: cause.to_string() }),
        };
        let namespace = pod::namespace(&job.team);
        let outcome = self
            .until_answered(|| async {
                self.namespace(&namespace).await?;
                self.tools.cluster.create(&rendered).await
            })
            .await;
        match outcome {
            Ok(Created::Here(uid)) => match PodUid::new(&uid) {
                Ok(uid) => {
                    self.tools.counters.add("pods_created");
                    Done::Event(What::PodCreated { pod, uid })
                }
                Err(_no_uid) => Done::Nothing,
            },
            // An older pod of this very name is on its way out: the periodic pass tries again.
            Ok(Created::Taken(why)) => {
                tracing::info!(%pod, why, "pod name is taken");
                Done::Nothing
            }
            Err(ClusterError::Refused { message, .. }) => {
                Done::Event(What::PodNotCreated { pod, reason: message })
            }
            Err(cause) => {
                lock(&self.namespaces).remove(&namespace);
                self.gave_up(&cause)
            }
        }
    }

    async fn namespace(&self, name: &str) -> Result<(), ClusterError> {
        if lock(&self.namespaces).contains(name) {
            return Ok(());
        }
        self.tools.cluster.ensure_namespace(name).await?;
        lock(&self.namespaces).insert(name.to_owned());
        Ok(())
    }

    async fn stop(&self, namespace: &str, pod: PodKey, uid: Option<PodUid>) -> Done {
        let name = pod.to_string();
        self.creation_settled(pod).await;
        let known = match uid.clone() {
            Some(uid) => uid,
            None => match self.uid_of(namespace, pod).await {
                Ok(Some(uid)) => uid,
                Ok(None) => return Done::Event(What::PodGone { pod, uid: None }),
                Err(cause) => return self.gave_up(&cause),
            },
        };
        match self.until_answered(|| self.tools.cluster.end(namespace, &name, known.as_str())).await {
            // The watch tells how it ended.
            Ok(()) => Done::Nothing,
            Err(ClusterError::NotFound { .. }) => Done::Event(What::PodGone { pod, uid }),
            Err(cause) => self.gave_up(&cause),
        }
    }

    /// A creation under way must be answered first, or the pod could appear after it was found absent.
    async fn creation_settled(&self, pod: PodKey) {
        let creation = format!("create {pod}");
        while lock(&self.busy).contains(&creation) {
            tokio::time::sleep(CREATION_STEP).await;
        }
    }

    async fn prune(&self, namespace: &str, pod: PodKey, uid: PodUid, away: Option<NodeName>) -> Done {
        match self.delete(namespace, pod, &uid, away).await {
            Ok(()) => {
                self.tools.counters.add("pods_pruned");
                self.gone(namespace, pod, uid).await
            }
            Err(cause) => self.gave_up(&cause),
        }
    }

    /// With grace first: from then on no kubelet starts it, and one that is there removes it. A finished
    /// pod has nothing left to stop, so the grace is short. Only a node that is silent until now has its
    /// record taken away: one that is back may still have to stop something.
    async fn delete(
        &self,
        namespace: &str,
        pod: PodKey,
        uid: &PodUid,
        away: Option<NodeName>,
    ) -> Result<(), ClusterError> {
        let (name, cluster) = (pod.to_string(), &self.tools.cluster);
        self.until_answered(|| cluster.delete(namespace, &name, uid.as_str(), 1)).await?;
        let Some(node) = away else { return Ok(()) };
        if self.until_answered(|| cluster.is_alive(&node, self.tools.silence)).await? {
            return Ok(());
        }
        self.until_answered(|| cluster.delete(namespace, &name, uid.as_str(), 0)).await
    }

    /// A deleted pod that is still shown is being stopped by its kubelet: the watch tells the rest.
    async fn gone(&self, namespace: &str, pod: PodKey, uid: PodUid) -> Done {
        match self.uid_of(namespace, pod).await {
            Ok(found) if found.as_ref() != Some(&uid) => Done::Event(What::PodGone { pod, uid: Some(uid) }),
            Ok(_) => Done::Nothing,
            Err(cause) => self.gave_up(&cause),
        }
    }

    async fn uid_of(&self, namespace: &str, pod: PodKey) -> Result<Option<PodUid>, ClusterError> {
        let name = pod.to_string();
        let found = self.until_answered(|| self.tools.cluster.pod(namespace, &name)).await?;
        Ok(found.and_then(|seen| PodUid::new(&seen.uid).ok()))
    }

    /// The end of the log; `None` while nobody can say: the next full pass asks again. A log that cannot
    /// be had does not hold up the history.
    async fn tail(&self, namespace: &str, pod: PodKey) -> Option<String> {
        let name = pod.to_string();
        let read = || cluster::tail(self.tools.cluster.as_ref(), namespace, &name);
        let log = match self.until_answered(read).await {
            Ok(text) => text,
            Err(cause) => {
                if self.asks_again(pod, &cause) {
                    self.gave_up(&cause);
                    return None;
                }
                tracing::info!(%pod, error = %Chain(&cause), "no log to archive");
                String::new()
            }
        };
        Some(log)
    }

    /// Whether a log that could not be read may be there later.
    fn asks_again(&self, pod: PodKey, cause: &ClusterError) -> bool {
        match cause {
            ClusterError::Away { .. } => true,
            ClusterError::Failing { .. } => {
                let mut vain = lock(&self.vain);
                let tries = vain.entry(pod).or_insert(0);
                *tries += 1;
                *tries < LOG_TRIES
            }
            ClusterError::Refused { .. } | ClusterError::NotFound { .. } => false,
        }
    }

    async fn settle(&self, job: &JobRecord, seen: Box<PodSeen>) -> Done {
        let (Some(data), Some(key)) = (&self.tools.data, seen.ours) else {
            return Done::Settled { seen, checkpoint: None };
        };
        let mut newest = None;
        let deadline = tokio::time::Instant::now() + SETTLE;
        while tokio::time::Instant::now() < deadline {
            newest = data.checkpoint(job, key.task).await.or(newest);
            tokio::time::sleep(SETTLE_STEP).await;
        }
        Done::Settled { seen, checkpoint: newest }
    }

    async fn until_answered<T, F>(&self, call: impl Fn() -> F) -> Result<T, ClusterError>
    where
        F: Future<Output = Result<T, ClusterError>>,
    {
        for pause in PAUSES {
            match call().await {
                Err(cause @ (ClusterError::Away { .. } | ClusterError::Failing { .. })) => {
                    self.tools.counters.add("actions_retried");
                    tracing::debug!(error = %Chain(&cause), "not done yet");
                    tokio::time::sleep(pause).await;
                }
                outcome => return outcome,
            }
        }
        call().await
    }

    fn gave_up(&self, cause: &ClusterError) -> Done {
        self.tools.counters.add("actions_given_up");
        tracing::warn!(error = %Chain(cause), "gave up for now; the periodic pass tries again");
        Done::Nothing
    }
}

impl Task {
    /// Equal names mean the same work.
    fn name(&self) -> String {
        match self {
            Self::Create { pod, .. } => format!("create {pod}"),
            Self::Stop { pod, .. } => format!("stop {pod}"),
            Self::Archive { pod, .. } => format!("archive {pod}"),
            Self::Prune { pod, .. } => format!("prune {pod}"),
            Self::Settle { seen, .. } => format!("settle {}", seen.uid),
            Self::Look { job, .. } => format!("look {}", job.id),
            Self::List => "list".to_owned(),
        }
    }

    /// The pod that something is to be done about; `None` for what only looks.
    pub(crate) fn action_on(&self) -> Option<PodKey> {
        match self {
            Self::Create { pod, .. }
            | Self::Stop { pod, .. }
            | Self::Archive { pod, .. }
            | Self::Prune { pod, .. } => Some(*pod),
            Self::Settle { .. } | Self::Look { .. } | Self::List => None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
