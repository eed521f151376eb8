//! The whole: survey a rack, make a plan, apply it, bring the nodes to Ready, judge.

use crate::apply::{Apply, Introduced};
use crate::cluster::{Cluster, ClusterError};
use crate::conditions::{Conditions, Control};
use crate::connect::Rack;
use crate::head_start::HeadStart;
use crate::kubelet;
use crate::objects;
use crate::pki::{Authorities, PkiError};
use crate::probe::{Asker, ProbeError};
use crate::progress::{News, Teller};
use crate::resume::Journal;
use crate::runs::Runs;
use crate::saved::{self, SAVED_VERSION, Saved, SavedError, ServerOutcome};
use crate::state::StateDir;
use crate::survey::{Survey, Wanted, chain};
use crate::uploads::Shelf;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rackwright_core::inventory::Role;
use rackwright_core::plan::{self, Verdict};
use rackwright_wire::step::Difference;
use rackwright_wire::words::counted;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The controller's own client certificates for probing live one hour.
const PROBE_LIFE_S: u64 = 3600;
/// How often a missing API is asked for.
const POLL: Duration = Duration::from_millis(200);

/// A rack that is worked on.
pub struct Driver {
    /// What it must look like.
    pub wanted: Wanted,
    /// The servers.
    pub rack: Arc<Rack>,
    /// What signs.
    pub authorities: Arc<Authorities>,
    /// The operator's folder.
    pub state: StateDir,
    /// Who is told.
    pub teller: Teller,
    conditions: Conditions,
    shelf: Shelf,
}

/// A driver could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// No certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// No TLS.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// What came of an apply.
pub struct Applied {
    /// By server.
    pub outcomes: BTreeMap<String, ServerOutcome>,
    /// Cluster objects that were changed, with the nodes that were registered or marked.
    pub objects_changed: u32,
    /// Why the cluster is not as planned, if it is not.
    pub cluster: Option<ClusterError>,
    /// From the start until every planned node was Ready, if that happened.
    pub ready_after: Option<Duration>,
    /// The rule "N of M" of each role.
    pub verdict: Verdict,
}

impl Applied {
    /// Steps and objects that were changed.
    pub fn changes(&self) -> u64 {
        let steps: u64 = self.outcomes.values().map(|of| u64::from(of.changed())).sum();
        steps + u64::from(self.objects_changed)
    }

    /// Whether a host key stopped us anywhere.
    pub fn is_untrusted(&self) -> bool {
        self.outcomes.values().any(|of| matches!(of, ServerOutcome::Untrusted { .. }))
    }

    /// Whether a server refused the plan because something moved.
    pub fn is_refused(&self) -> bool {
        self.outcomes.values().any(|of| matches!(of, ServerOutcome::Refused { .. }))
    }
}

/// Seconds since the epoch.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Driver {
    /// Puts together what acting on a rack needs. Nothing is connected yet.
    pub fn new(
        wanted: Wanted,
        rack: Rack,
        authorities: Authorities,
        state: StateDir,
        teller: Teller,
    ) -> Result<Self, DriverError> {
        let rack = Arc::new(rack);
        let asker = |ca: &str, group: &str| -> Result<Asker, DriverError> {
            let identity = authorities.client(ca, "rackwright-probe", group, PROBE_LIFE_S, now_s())?;
            Ok(Asker::new(&identity)?)
        };
        let (etcd, api) = (asker("etcd", "")?, asker("kubernetes", "system:monitoring")?);
        let control = |server: &rackwright_core::inventory::Server| Control {
            server: server.name.clone(),
            address: server.address,
        };
        let controls = wanted.inventory.of_role(Role::Control).map(control).collect();
        let conditions = Conditions::new(Arc::clone(&rack), controls, etcd, api);
        let shelf = wanted.artifacts.iter().map(|of| (of.sha256.clone(), of.clone())).collect();
        let shelf = Arc::new(shelf);
        Ok(Self { wanted, rack, authorities: Arc::new(authorities), state, teller, conditions, shelf })
    }

    /// Names of all servers, in inventory order.
    pub fn servers(&self) -> Vec<&str> {
        self.wanted.inventory.servers.iter().map(|server| server.name.as_str()).collect()
    }

    /// Asks and compares servers.
    pub async fn survey(&self, servers: &[&str]) -> Survey {
        self.wanted.survey(&self.rack, servers, &self.teller).await
    }

    /// Asks and compares servers, and the cluster's own objects at the same time.
    pub async fn compare(&self, servers: &[&str]) -> (Survey, Vec<Difference>) {
        let (survey, objects) = tokio::join!(Box::pin(self.survey(servers)), Box::pin(self.objects()));
        // Where no control server answers nobody knows what its API has: that is no reason to make it anew.
        let mut controls = self.wanted.inventory.of_role(Role::Control);
        let unknown = controls.all(|server| survey.failed.contains_key(&server.name));
        let objects = objects
            .or_else(|| (!unknown).then(|| objects::all_missing(&self.wanted.inventory)))
            .unwrap_or_default();
        (survey, objects)
    }

    /// The API, through the first control server whose API is ready.
    pub async fn cluster(&self) -> Option<Result<Cluster, ClusterError>> {
        let control = self.conditions.api_ready().await?;
        Some(Cluster::open(&self.rack, control, &self.authorities, now_s()).await)
    }

    /// etcd's metrics in Prometheus' text format, from the first member that answers.
    pub async fn etcd_metrics(&self) -> Option<String> {
        self.conditions.etcd_metrics().await
    }

    /// What differs in the cluster, when an API answers.
    async fn objects(&self) -> Option<Vec<Difference>> {
        match self.cluster().await {
            Some(Ok(cluster)) => cluster.differences(&self.wanted.inventory).await.ok(),
            Some(Err(_)) | None => None,
        }
    }

    /// Saves a plan. It becomes the pending one.
    pub fn save(&self, saved: &Saved) -> Result<(), SavedError> {
        saved::save(&self.state, saved)
    }

    /// Whether a saved plan was made from the inventory, playbooks, artifacts and secrets of now.
    pub fn is_current(&self, saved: &Saved) -> bool {
        saved.inputs == self.wanted.digest()
    }

    /// Ends a pending plan that a newer look at the whole rack found needless.
    pub fn retire(&self) -> Result<(), SavedError> {
        saved::retire(&self.state)
    }

    /// Makes a plan of what was found, and does not save it. Where nobody answered there is nothing to do.
    pub fn build(&self, survey: &Survey, objects: Vec<Difference>) -> Result<Saved, SavedError> {
        let last = saved::newest_generation(&self.state)?;
        let cluster = &self.wanted.inventory.cluster.name;
        let absent = survey.absent(&self.wanted.inventory);
        // Nodes of servers that did not answer, or were not asked, cannot be mended now.
        let here: BTreeSet<String> =
            survey.answered.iter().map(|of| objects::node_step(&of.server)).collect();
        let mendable = |of: &Difference| {
            !here.is_empty() && (!objects::is_node_step(&of.step) || here.contains(&of.step))
        };
        let objects = objects.into_iter().filter(mendable).collect();
        let plan = plan::build(cluster, last, survey.answered.clone(), absent);
        Ok(Saved { version: SAVED_VERSION, plan, objects, inputs: self.wanted.digest() })
    }

    /// As [`Driver::compare`], after letting servers finish older plans that were interrupted there, by a power cut
    /// for example: a new plan starts only from a server at rest. Says too how many steps that changed.
    pub async fn compare_at_rest(
        &self,
        servers: &[&str],
    ) -> Result<(Survey, Vec<Difference>, u32), SavedError> {
        let (survey, objects) = self.compare(servers).await;
        let mut interrupted = Vec::new();
        for server in &survey.answered {
            let Some(id) = &server.report.unfinished else { continue };
            interrupted.extend(saved::server_plan(&self.state, id)?);
        }
        if interrupted.is_empty() {
            return Ok((survey, objects, 0));
        }
        let apply = self.applier();
        let finished = interrupted.iter().map(|plan| {
            let what = format!("finishing its plan of generation {}", plan.generation);
            self.teller.tell(&plan.server, News::Cluster { what });
            Box::pin(apply.server(plan, None))
        });
        let outcomes = futures::future::join_all(finished).await;
        let changed = outcomes.iter().map(ServerOutcome::changed).sum();
        let (mut survey, objects) = self.compare(servers).await;
        survey.set_aside(interrupted.into_iter().map(|plan| plan.server).zip(outcomes));
        Ok((survey, objects, changed))
    }

    fn applier(&self) -> Apply {
        Apply {
            rack: Arc::clone(&self.rack),
            authorities: Arc::clone(&self.authorities),
            conditions: self.conditions.clone(),
            shelf: Arc::clone(&self.shelf),
            head_start: HeadStart::default(),
            agent: self.wanted.agent.clone(),
            teller: self.teller.clone(),
        }
    }

    /// Applies a plan on all servers at once, settles the cluster's objects, and waits for the nodes.
    pub async fn apply(&self, saved: &Saved, mut survey: Option<Survey>, wait: Duration) -> Applied {
        let started = Instant::now();
        let apply = self.applier();
        let mut outcomes = absent(saved);
        outcomes.extend(survey.as_mut().map(|survey| std::mem::take(&mut survey.stuck)).unwrap_or_default());
        let mut known = survey.map(introduced).unwrap_or_default();
        let mut running: FuturesUnordered<_> = saved
            .plan
            .servers
            .iter()
            .map(|plan| {
                let (apply, known) = (&apply, known.remove(&plan.server));
                async move { (plan.server.clone(), apply.server(plan, known).await) }
            })
            .collect();
        let runs = Runs::new(wait);
        let mut cluster = Box::pin(self.settle(saved, &runs));
        let mut settled = None;
        while settled.is_none() && !(running.is_empty() && self.is_hopeless(&outcomes)) || !running.is_empty()
        {
            if self.is_hopeless(&outcomes) {
                self.conditions.give_up();
            }
            if running.is_empty() {
                runs.all_ended(Instant::now());
            }
            tokio::select! {
                Some((server, outcome)) = running.next() => {
                    if outcome.judged() != plan::Outcome::Done {
                        runs.give_up(&server);
                    }
                    outcomes.insert(server, outcome);
                }
                result = &mut cluster, if settled.is_none() => settled = Some((result, started.elapsed())),
            }
        }
        drop(cluster);
        let verdict = self.judge(&outcomes);
        let (settled, after) = settled.unwrap_or((Ok(0), started.elapsed()));
        let whole = matches!(verdict, Verdict::Complete | Verdict::Enough(_));
        let (objects_changed, cluster) = match settled {
            Ok(changed) => (changed, None),
            Err(error) => (0, Some(error)),
        };
        let ready_after = (whole && cluster.is_none()).then_some(after);
        Applied { outcomes, objects_changed, cluster, ready_after, verdict }
    }

    /// Applies the objects as soon as the API is ready, and waits for the planned nodes; how many of both changed.
    async fn settle(&self, saved: &Saved, runs: &Runs) -> Result<u32, ClusterError> {
        if saved.is_empty() {
            return Ok(0);
        }
        let cluster = loop {
            if let Some(cluster) = self.cluster().await {
                break cluster?;
            }
            if let Some(waited_s) = runs.overdue() {
                return Err(ClusterError::NoApi { waited_s });
            }
            tokio::time::sleep(POLL).await;
        };
        self.teller.cluster("the API is ready");
        let changed = Box::pin(cluster.apply_objects()).await?;
        if changed > 0 {
            self.teller.cluster(format!("{} applied", counted(changed, "object")));
        }
        let servers: Vec<&str> = saved.plan.servers.iter().map(|plan| plan.server.as_str()).collect();
        let ready = |node: &str| self.teller.cluster(format!("node {node} is Ready"));
        let inventory = &self.wanted.inventory;
        // A server that is lost just now must not delay the others' nodes.
        let (woken, waited) = tokio::join!(
            Box::pin(kubelet::wake(&cluster, &self.rack, &saved.plan.servers, runs, &self.teller)),
            Box::pin(cluster.wait_for_nodes(inventory, &servers, runs, ready)),
        );
        waited.and(woken)?;
        let settled: BTreeSet<String> = servers
            .iter()
            .filter(|server| !runs.is_given_up(server))
            .map(|server| objects::node_step(server))
            .collect();
        let nodes = saved.objects.iter().filter(|planned| settled.contains(&planned.step)).count();
        Ok(changed + u32::try_from(nodes).unwrap_or(u32::MAX))
    }

    /// Whether every control server came out badly: then no API will answer.
    fn is_hopeless(&self, outcomes: &BTreeMap<String, ServerOutcome>) -> bool {
        let bad = |name: &str| outcomes.get(name).is_some_and(|of| of.judged() != plan::Outcome::Done);
        self.wanted.inventory.of_role(Role::Control).all(|server| bad(&server.name))
    }

    fn judge(&self, outcomes: &BTreeMap<String, ServerOutcome>) -> Verdict {
        let inventory = &self.wanted.inventory;
        let judged: Vec<_> = inventory
            .servers
            .iter()
            .filter_map(|server| Some((server.role, outcomes.get(&server.name)?.judged())))
            .collect();
        plan::verdict(&inventory.cluster.success, &judged)
    }

    /// Records what came of a plan.
    pub fn conclude(&self, saved: &Saved, applied: &Applied) -> Result<(), SavedError> {
        saved::conclude(&self.state, saved.plan.generation, &applied.outcomes)
    }
}

fn absent(saved: &Saved) -> BTreeMap<String, ServerOutcome> {
    let outcome = |absent: &plan::AbsentServer| ServerOutcome::Absent { reason: absent.reason.clone() };
    saved.plan.absent.iter().map(|absent| (absent.server.clone(), outcome(absent))).collect()
}

fn introduced(survey: Survey) -> BTreeMap<String, Introduced> {
    let Survey { answered, mut agents, .. } = survey;
    answered
        .into_iter()
        .filter_map(|of| {
            let agent = agents.remove(&of.server)?;
            let journal = Journal { generation: of.report.generation, unfinished: of.report.unfinished };
            Some((of.server, Introduced { agent, facts: of.facts, journal }))
        })
        .collect()
}

/// What went wrong with the cluster, in one line.
pub fn cluster_problem(applied: &Applied) -> Option<String> {
    applied.cluster.as_ref().map(|error| chain(error))
}
