//! Which events are worth keeping: an event about something unknown, or one that says what is known
//! already, changes nothing and need not be logged.

use super::Sched;
use super::state::{KEPT_CHECKPOINTS, Pod};
use crate::job::{Event, PodPhase, PodState, What};
use rackwright_wire::id::PodKey;

impl Sched {
    /// Whether an event would change anything beyond the clock; what would not need not be logged.
    pub fn is_news(&self, event: &Event) -> bool {
        let pod_if = |key: &PodKey, check: &dyn Fn(&Pod) -> bool| self.state.pods.get(key).is_some_and(check);
        match &event.what {
            What::Submitted { job } => {
                !self.state.jobs.contains_key(&job.id) && !self.state.outcomes.contains_key(&job.id)
            }
            What::CancelRequested { job, .. } => {
                self.state.jobs.get(job).is_some_and(|job| job.stop.is_none() && job.outcome.is_none())
            }
            What::NodeSeen { node } => {
                self.state.nodes.get(&node.name).is_none_or(|known| known.gone || known.facts != **node)
            }
            What::NodeGone { node } => self.state.nodes.get(node).is_some_and(|known| !known.gone),
            What::ForeignPodSeen { pod } => self.state.foreign.get(&pod.uid) != Some(pod),
            What::ForeignPodGone { uid } => self.state.foreign.contains_key(uid),
            What::PodCreated { pod, .. } => pod_if(pod, &|pod| pod.is_live() && pod.uid.is_none()),
            What::PodNotCreated { pod, .. } => pod_if(pod, &|pod| pod.is_live() && pod.uid.is_none()),
            What::PodObserved { pod, uid, phase, .. } => pod_if(pod, &|pod| {
                let starts = *phase == PodPhase::Running && pod.state != PodState::Running;
                pod.is_live() && pod.is_uid(uid) && (pod.uid.is_none() || starts)
            }),
            What::OrphanSeen { pod, .. } => !self.knows(pod),
            What::PodRefused { pod, uid, .. }
            | What::AttemptFinished { pod, uid, .. }
            | What::AttemptLost { pod, uid, .. } => {
                pod_if(pod, &|pod| pod.is_uid(uid) && (pod.is_live() || pod.lost))
            }
            What::PodGone { pod, uid: Some(uid) } => {
                pod_if(pod, &|pod| !pod.gone && pod.uid.as_ref() == Some(uid))
            }
            What::PodGone { pod, uid: None } => pod_if(pod, &|pod| !pod.gone && pod.uid.is_none()),
            What::CheckpointSealed { pod, step, set } => self.is_new_checkpoint(*pod, *step, set),
            What::CheckpointRejected { pod, step } => self.state.jobs.get(&pod.job).is_some_and(|job| {
                let sealed = job.checkpoints.get(&pod.task.0).map(Vec::as_slice).unwrap_or_default();
                sealed.iter().any(|sealed| sealed.attempt == pod.attempt && sealed.step == *step)
            }),
            What::Archived { pod } => pod_if(pod, &|pod| pod.state == PodState::Finished),
            What::Decided { .. } => true,
            What::Tick => false,
        }
    }

    fn is_new_checkpoint(&self, key: PodKey, step: u64, set: &str) -> bool {
        let fenced = self.state.pods.get(&key).is_some_and(|pod| pod.lost);
        let job = self.state.jobs.get(&key.job).filter(|job| {
            let group = job.group_of(key.task);
            job.live.contains_key(&group) || job.waiting.contains_key(&group)
        });
        job.is_some_and(|job| {
            let known = job.checkpoints.get(&key.task.0).map(Vec::as_slice).unwrap_or_default();
            let older =
                known.len() >= KEPT_CHECKPOINTS && known.first().is_some_and(|oldest| step < oldest.step);
            !fenced && !older && !known.iter().any(|sealed| sealed.set == set)
        })
    }
}
