//! Whether a server's part of a plan may run now: fresh, resumed, or not at all. Pure.

use rackwright_core::plan::Stale;
use rackwright_wire::facts::Facts;
use rackwright_wire::plan::ServerPlan;

/// What the server's own journal says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    /// Generation of the newest plan that it accepted.
    pub generation: u64,
    /// A plan that is running or was interrupted there.
    pub unfinished: Option<String>,
}

/// What to do with the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Nothing differs.
    Nothing,
    /// Hand over the plan.
    Fresh,
    /// The server has this plan already: its journal says how far it came. Facts may have moved, because the
    /// plan itself moved them.
    Resume,
    /// Leave it alone.
    Refuse(Refusal),
}

/// Why a plan may not run; reads after "failed to".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The facts say no.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// Another plan runs there.
    #[error("apply to {server}: plan {other} is still unfinished there")]
    Busy {
        /// The server.
        server: String,
        /// The other plan's id.
        other: String,
    },
    /// A newer plan was accepted there.
    #[error("apply to {server}: it has accepted generation {newest}, this plan is {planned}")]
    Older {
        /// The server.
        server: String,
        /// Generation that it accepted.
        newest: u64,
        /// Generation of the plan.
        planned: u64,
    },
}

/// Decides from what was measured just now.
pub fn start(plan: &ServerPlan, facts: &Facts, journal: &Journal) -> Start {
    let server = || plan.server.clone();
    if facts.identity.machine_id != plan.machine_id {
        let found = facts.identity.machine_id.clone();
        return Start::Refuse(Stale::OtherMachine { server: server(), found }.into());
    }
    match &journal.unfinished {
        Some(running) if *running == plan.id => return Start::Resume,
        Some(other) => {
            return Start::Refuse(Refusal::Busy { server: server(), other: other.clone() });
        }
        None => {}
    }
    if journal.generation > plan.generation {
        let (newest, planned) = (journal.generation, plan.generation);
        return Start::Refuse(Refusal::Older { server: server(), newest, planned });
    }
    if journal.generation == plan.generation {
        // Accepted and finished: the journal is replayed.
        return Start::Resume;
    }
    if plan.is_empty() {
        return Start::Nothing;
    }
    if facts.digest() == plan.facts_digest {
        Start::Fresh
    } else {
        Start::Refuse(Stale::Moved { server: server() }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rackwright_wire::facts::{Cpu, FACTS_VERSION, Identity, Memory, Os};
    use rackwright_wire::step::Difference;
    use std::collections::BTreeMap;

    fn facts() -> Facts {
        Facts {
            version: FACTS_VERSION,
            identity: Identity {
                machine_id: "m1".to_owned(),
                hostname: "ml1".to_owned(),
                host_key: String::new(),
            },
            os: Os {
                id: "debian".to_owned(),
                codename: "bookworm".to_owned(),
                kernel: "6.1".to_owned(),
                arch: "x86_64".to_owned(),
                cgroup_version: 2,
                systemd: true,
                container: false,
                modules: Vec::new(),
                swap: false,
            },
            cpu: Cpu { logical: 4, allowed_milli: 4000, model: String::new(), numa_nodes: 1 },
            memory: Memory { total_bytes: 1 << 33, allowed_bytes: 1 << 33 },
            disks: Vec::new(),
            nics: Vec::new(),
            gpus: Vec::new(),
            software: BTreeMap::new(),
            read_at_s: 7,
        }
    }

    fn plan() -> ServerPlan {
        let difference =
            Difference { step: "a".to_owned(), summary: "write a".to_owned(), detail: String::new() };
        ServerPlan {
            version: 1,
            id: "p5".to_owned(),
            server: "ml1".to_owned(),
            machine_id: "m1".to_owned(),
            generation: 5,
            facts_digest: facts().digest(),
            steps: Vec::new(),
            differences: vec![difference],
        }
    }

    fn journal(generation: u64, unfinished: Option<&str>) -> Journal {
        Journal { generation, unfinished: unfinished.map(str::to_owned) }
    }

    #[test]
    fn a_plan_whose_facts_stand_still_runs() {
        let later = Facts { read_at_s: 99, ..facts() };
        assert_eq!(start(&plan(), &later, &journal(4, None)), Start::Fresh);
    }

    #[test]
    fn a_plan_whose_facts_moved_is_refused_before_anything_is_touched() {
        let moved = Facts { memory: Memory { total_bytes: 1, allowed_bytes: 1 }, ..facts() };
        let refused = start(&plan(), &moved, &journal(4, None));
        assert!(matches!(refused, Start::Refuse(Refusal::Stale(Stale::Moved { .. }))));
    }

    #[test]
    fn an_interrupted_plan_resumes_although_it_moved_the_facts_itself() {
        let moved = Facts { software: BTreeMap::from([("runc".to_owned(), "1".to_owned())]), ..facts() };
        assert_eq!(start(&plan(), &moved, &journal(5, Some("p5"))), Start::Resume);
        assert_eq!(start(&plan(), &moved, &journal(5, None)), Start::Resume, "finished: replayed");
    }

    #[test]
    fn another_machine_a_newer_plan_and_a_running_one_are_refused() {
        let mut other = facts();
        other.identity.machine_id = "m2".to_owned();
        let cases = [
            (start(&plan(), &other, &journal(5, Some("p5"))), "machine"),
            (start(&plan(), &facts(), &journal(6, None)), "generation 6"),
            (start(&plan(), &facts(), &journal(4, Some("p4"))), "p4"),
        ];
        for (start, word) in cases {
            let Start::Refuse(why) = start else { panic!("{start:?}") };
            assert!(why.to_string().contains(word), "{why}");
        }
    }

    #[test]
    fn an_empty_plan_needs_no_run_even_when_facts_moved() {
        let empty = ServerPlan { differences: Vec::new(), ..plan() };
        let moved = Facts { memory: Memory { total_bytes: 1, allowed_bytes: 1 }, ..facts() };
        assert_eq!(start(&empty, &moved, &journal(4, None)), Start::Nothing);
    }
}
