//! Nodes that somebody deleted. A kubelet registers its node only when it starts: one that runs on never does so again,
//! and no step of its server differs. It is restarted, once, and its pods run on meanwhile.

use crate::cluster::{Cluster, ClusterError};
use crate::connect::Rack;
use crate::progress::{News, Teller};
use crate::runs::Runs;
use crate::survey::chain;
use rackwright_wire::plan::ServerPlan;
use rackwright_wire::step::{Step, StepKind};
use std::collections::BTreeSet;

const UNIT: &str = "kubelet.service";

/// Restarts the kubelets that run without a node and that their servers' plans leave as they are.
///
/// # Errors
/// When the API does not say which nodes there are. A restart that fails is told and no error: whoever waits for the
/// node says what is missing.
pub(crate) async fn wake(
    cluster: &Cluster,
    rack: &Rack,
    plans: &[ServerPlan],
    runs: &Runs,
    teller: &Teller,
) -> Result<(), ClusterError> {
    let nodes: BTreeSet<String> = cluster.nodes().await?.into_iter().map(|node| node.name).collect();
    let asleep = plans.iter().filter(|plan| {
        !nodes.contains(&plan.server) && !runs.is_given_up(&plan.server) && leaves_kubelet_running(plan)
    });
    let woken = asleep.map(|plan| async move {
        let what = match restart(rack, &plan.server).await {
            Ok(()) => format!("it had no node: {UNIT} restarted, which registers one"),
            Err(why) => format!("it has no node, and {UNIT} could not be restarted: {why}"),
        };
        teller.tell(&plan.server, News::Cluster { what });
    });
    futures::future::join_all(woken).await;
    Ok(())
}

/// Whether a kubelet runs on a server before its plan and is not touched by it.
fn leaves_kubelet_running(plan: &ServerPlan) -> bool {
    let kubelet =
        |step: &&Step| matches!(&step.kind, StepKind::Unit { name, active: true, .. } if name == UNIT);
    let unit = plan.steps.iter().find(kubelet);
    unit.is_some_and(|unit| plan.differences.iter().all(|difference| difference.step != unit.id))
}

async fn restart(rack: &Rack, server: &str) -> Result<(), String> {
    let session = rack.session(server).await.map_err(|error| chain(&error))?;
    let is_root = rack.target(server).is_none_or(|target| target.user == "root");
    let sudo = if is_root { "" } else { "sudo -n " };
    let done = session.exec(&format!("{sudo}systemctl restart {UNIT}"), b"").await;
    let done = done.map_err(|error| chain(&error))?;
    if done.status == 0 { Ok(()) } else { Err(done.stderr.trim().to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::plan::PLAN_VERSION;
    use rackwright_wire::step::Difference;
    use serde_json::json;

    fn plan(unit: &str, differs: Option<&str>) -> ServerPlan {
        let step = json!({ "id": "60-node/kubelet", "kind": { "kind": "unit", "name": unit } });
        let difference =
            |step: &str| Difference { step: step.to_owned(), summary: "x".to_owned(), detail: String::new() };
        ServerPlan {
            version: PLAN_VERSION,
            id: String::new(),
            server: "ml1".to_owned(),
            machine_id: String::new(),
            generation: 1,
            facts_digest: String::new(),
            steps: vec![serde_json::from_value(step).unwrap()],
            differences: differs.map(difference).into_iter().collect(),
        }
    }

    #[test]
    fn only_a_kubelet_that_runs_and_stays_as_it_is_is_restarted() {
        assert!(leaves_kubelet_running(&plan(UNIT, None)));
        assert!(leaves_kubelet_running(&plan(UNIT, Some("00-base/x"))), "other steps do not start it anew");
        assert!(!leaves_kubelet_running(&plan(UNIT, Some("60-node/kubelet"))), "the agent starts it");
        assert!(!leaves_kubelet_running(&plan("etcd.service", None)), "there is none");
    }
}
