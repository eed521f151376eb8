//! What the loop hands to the workers: decisions as tasks, and what found no room once more.

use super::{Brain, Round};
use crate::hands::{Taken, Task};
use crate::pod;
use rackwright_core::job::{Action, JobRecord, Outcome};
use rackwright_wire::id::{JobId, PodKey};
use std::sync::Arc;

impl Brain {
    /// Answers whoever waits, now that what they asked for is durable, and hands over what is to be done.
    pub(super) fn act(&mut self, round: Round) {
        for reply in round.replies {
            let _caller_left = reply.send(());
        }
        // Whoever asks hears of nothing that a crash could still undo.
        for question in round.questions {
            question(&self.sched, &self.world);
        }
        for task in round.tasks {
            self.hand(task);
        }
    }

    /// Hands a task over, and remembers what was not taken.
    fn hand(&mut self, task: Task) {
        let (pod, is_list) = (task.action_on(), matches!(task, Task::List));
        let taken = self.hands.take(task);
        if taken == Taken::NoRoom {
            self.refused.extend(pod);
        }
        if is_list && taken != Taken::Queued {
            self.world.unlisted();
        }
    }

    /// What found no room is asked for again once there is room, not only by the next full pass: as it
    /// stands now, for what was decided about a pod meanwhile must not be overtaken by what was before.
    pub(super) fn ask_again(&mut self) {
        if self.refused.is_empty() || !self.seen || !self.hands.has_room() {
            return;
        }
        let refused = std::mem::take(&mut self.refused);
        for action in self.sched.outstanding() {
            if let Some(task) = self.task(action)
                && task.action_on().is_some_and(|pod| refused.contains(&pod))
            {
                self.hand(task);
            }
        }
    }

    /// What the workers need to carry an action out; `None` when there is nothing to carry out.
    pub(super) fn task(&mut self, action: Action) -> Option<Task> {
        Some(match action {
            Action::CreatePod { pod, node, resume } => {
                Task::Create { job: self.record(pod.job)?, pod, node, resume }
            }
            Action::StopPod { pod, uid, .. } => Task::Stop { namespace: self.namespace(pod)?, pod, uid },
            Action::Archive { pod, uid } => Task::Archive {
                readable: uid.is_some() && self.has_log(pod),
                namespace: self.namespace(pod).unwrap_or_default(),
                pod,
            },
            Action::Prune { pod, uid, force } => {
                let away = if force { Some(self.sched.attempt(pod)?.node) } else { None };
                Task::Prune { namespace: self.namespace(pod)?, pod, uid, away }
            }
            Action::DeclareLost { .. } | Action::FinishJob { .. } | Action::StopJob { .. } => return None,
        })
    }

    /// What was lost with its node left no log that anybody hands out, and asking takes its time. What ended
    /// by itself did, also where the node is not ready: after an absence of the apiserver no node is at first.
    fn has_log(&self, pod: PodKey) -> bool {
        let Some(attempt) = self.sched.attempt(pod) else { return false };
        let ready = self.world.nodes().get(&attempt.node).is_some_and(|node| node.ready);
        (ready || attempt.outcome != Some(Outcome::Lost)) && self.world.pod_of(pod).is_some()
    }

    fn namespace(&mut self, pod: PodKey) -> Option<String> {
        let there = self.world.pod_of(pod).map(|seen| seen.namespace.clone());
        there.or_else(|| Some(pod::namespace(&self.record(pod.job)?.team)))
    }

    /// The job's record, shared with all tasks of its pods.
    pub(super) fn record(&mut self, job: JobId) -> Option<Arc<JobRecord>> {
        if let Some(record) = self.records.get(&job) {
            return Some(Arc::clone(record));
        }
        let record = Arc::new(self.sched.job(job)?.clone());
        self.records.insert(job, Arc::clone(&record));
        Some(record)
    }
}
