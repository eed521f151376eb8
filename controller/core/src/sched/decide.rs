//! What is to be done now: first what is due, then launches in order.
//!
//! Jobs of one shape fit or fail together, so the walk goes over shapes, not over jobs: of each shape
//! only the first job in order is looked at, and a shape that found no place is skipped until capacity
//! grows (equivalence classes; anchors: Kueue's). 10,000 jobs that ask for the same cost one look.

use super::Sched;
use super::fit::{Hold, Rack, Shape};
use super::index::{Due, Order};
use super::state::Job;
use crate::job::{Action, Event};
use rackwright_wire::id::{AttemptNo, JobId, NodeName, PodKey};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Sched {
    /// Everything that is to be done at `now_ms`, already applied. The caller makes each durable
    /// ([`Event::decided`]) and then carries it out.
    ///
    /// After a restart the cluster must be listed and told before the first call: a node that the log
    /// last saw unready may be fine by now, and its pods would be declared lost.
    pub fn decide(&mut self, now_ms: u64) -> Vec<Action> {
        self.advance(now_ms);
        let mut actions = Vec::new();
        self.decide_due(&mut actions);
        self.decide_launches(&mut actions);
        actions
    }

    /// The latest time that an event or a decision brought; it never goes back.
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// When the next decision is due if no event comes before; the past means now.
    pub fn next_wake_ms(&self) -> Option<u64> {
        let due = self.index.due.first().map(|(at, _)| *at);
        let backoff = self.index.backoff.first().map(|(at, ..)| *at);
        due.into_iter().chain(backoff).min()
    }

    fn act(&mut self, action: Action, actions: &mut Vec<Action>) {
        self.apply(&Event::decided(self.clock_ms, action.clone()));
        actions.push(action);
    }

    fn decide_due(&mut self, actions: &mut Vec<Action>) {
        while let Some((at, what)) = self.index.due.first().copied()
            && at <= self.clock_ms
        {
            let due = match what {
                Due::Job(job) => self.job_due(&self.index, job),
                // Whether it is kept only moves the time, which the index knows.
                Due::Pod(pod) => self.pod_due(pod, false),
            };
            let Some((_, action)) = due else {
                // Cannot be: the index is computed by these very functions. Dropping the entry keeps a
                // defect from turning into an endless loop.
                self.index.due.pop_first();
                continue;
            };
            self.act(action, actions);
        }
    }

    fn decide_launches(&mut self, actions: &mut Vec<Action>) {
        let mut heads: BTreeSet<(Order, Arc<Shape>)> = self
            .index
            .queue
            .iter()
            .filter_map(|(shape, jobs)| Some((*jobs.first()?, Arc::clone(shape))))
            .collect();
        let mut hold = None;
        while let Some((order, shape)) = heads.pop_first() {
            if self.is_backlogged() || self.is_creating() {
                return;
            }
            let id = order.1;
            match self.find_place(&shape, hold.as_ref()) {
                Some(nodes) => {
                    self.launch(id, &nodes, actions);
                    if let Some(next) = self.index.queue.get(&shape).and_then(BTreeSet::first) {
                        heads.insert((*next, shape));
                    }
                }
                None if hold.is_none() => hold = self.hold_if_starved(id, &shape),
                None => {}
            }
        }
    }

    /// Places for a group of this shape, remembering that there is none.
    fn find_place(&mut self, shape: &Arc<Shape>, hold: Option<&Hold>) -> Option<Vec<NodeName>> {
        if self.no_place.contains(shape) {
            return None;
        }
        let rack = self.rack();
        let places = rack.place(shape, hold);
        if places.is_none() && (hold.is_none() || rack.place(shape, None).is_none()) {
            self.no_place.insert(Arc::clone(shape));
        }
        places
    }

    fn launch(&mut self, id: JobId, nodes: &[NodeName], actions: &mut Vec<Action>) {
        let Some((group, attempt)) = self.state.jobs.get(&id).and_then(|job| self.next_group(job)) else {
            return;
        };
        let Some(job) = self.state.jobs.get(&id) else {
            return;
        };
        let creates: Vec<Action> = job
            .members(group)
            .zip(nodes)
            .map(|(task, node)| Action::CreatePod {
                pod: PodKey { job: id, task, attempt },
                node: node.clone(),
                resume: job.newest_checkpoint(task),
            })
            .collect();
        for create in creates {
            self.act(create, actions);
        }
    }

    /// The job's next group to start, retries first, with its attempt's number.
    fn next_group(&self, job: &Job) -> Option<(u32, AttemptNo)> {
        let retry = self.index.ready.get(&job.record.id).and_then(BTreeSet::first);
        if let Some((group, retry)) = retry.and_then(|group| Some((*group, job.waiting.get(group)?))) {
            return Some((group, AttemptNo(retry.tries.attempts + 1)));
        }
        (job.fresh < job.groups()).then_some((job.fresh, AttemptNo(1)))
    }

    pub(super) fn rack(&self) -> Rack<'_> {
        Rack { config: &self.config, state: &self.state, used: &self.index.used }
    }

    /// Whether launches pause until finished pods are archived and pruned.
    pub(super) fn is_backlogged(&self) -> bool {
        self.index.backlog >= self.config.max_backlog
    }

    /// Whether launches pause until more of the pods that were asked for exist.
    pub(super) fn is_creating(&self) -> bool {
        self.index.reserved >= self.config.max_reserved
    }

    fn is_starved(&self, id: JobId) -> bool {
        let submitted = self.state.jobs.get(&id).map(|job| job.record.submitted_at_ms);
        submitted.is_some_and(|at| self.clock_ms.saturating_sub(at) >= self.config.hold_after_ms)
    }

    /// Nodes held for a job that found no place, if it has waited long and could have one.
    fn hold_if_starved(&self, id: JobId, shape: &Shape) -> Option<Hold> {
        (self.is_starved(id) && self.rack().could_ever_fit(shape)).then(|| self.rack().hold_for(id, shape))
    }

    /// The hold that the next decision would see behind a place in the order: that of the first starved
    /// job which finds no place. Jobs before that place do not see it.
    pub(super) fn first_hold(&self) -> Option<(Order, Hold)> {
        let mut heads: Vec<(Order, &Arc<Shape>)> =
            self.index.queue.iter().filter_map(|(shape, jobs)| Some((*jobs.first()?, shape))).collect();
        // The cheap question first: the other one looks at every node.
        heads.retain(|((_, id), _)| self.is_starved(*id));
        heads.sort();
        let placeless = heads.into_iter().filter(|(_, shape)| self.rack().place(shape, None).is_none());
        let mut holds =
            placeless.filter_map(|(order, shape)| Some((order, self.hold_if_starved(order.1, shape)?)));
        holds.next()
    }
}
