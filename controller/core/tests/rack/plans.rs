//! Plans: shown, saved, refused when facts moved, linted.

use super::{container_v1, metal_v2, secrets, steps};
use rackwright_core::lint::lint;
use rackwright_core::plan::{AbsentServer, Answered, Plan, build, verify_fresh};
use rackwright_wire::plan::{CheckReport, PLAN_VERSION};
use rackwright_wire::step::{Difference, Step, StepKind};
use std::collections::BTreeMap;

fn answered(server: &str, differences: &[(&str, &str, &str)]) -> Answered {
    let differences = differences
        .iter()
        .map(|(step, summary, detail)| Difference {
            step: (*step).to_owned(),
            summary: (*summary).to_owned(),
            detail: (*detail).to_owned(),
        })
        .collect();
    let report = CheckReport {
        version: PLAN_VERSION,
        differences,
        missing_artifacts: Vec::new(),
        generation: 4,
        unfinished: None,
    };
    Answered { server: server.to_owned(), facts: container_v1(), steps: Vec::new(), report }
}

fn plan() -> Plan {
    let changed = answered(
        "ml1",
        &[
            (
                "30-containerd/config",
                "change /etc/containerd/config.toml (1 line)",
                "@@ -1,2 +1,2 @@\n version = 3\n-root = '/tmp'\n+root = '/var/lib/containerd'\n",
            ),
            ("30-containerd/unit", "restart containerd.service", ""),
        ],
    );
    let absent =
        AbsentServer { server: "ml2".to_owned(), reason: "connect to 10.77.0.14:22: timed out".to_owned() };
    build("lab", 2, vec![answered("control1", &[]), changed, answered("data1", &[])], vec![absent])
}

#[test]
fn a_plan_shows_what_changes_where_and_who_is_missing() {
    let plan = plan();
    let text = plan.to_string().replace(plan.id.get(..12).unwrap(), "0123456789ab");
    insta::assert_snapshot!(text, @r"
    plan 0123456789ab of cluster lab, generation 5

    ml1: 2 changes
      30-containerd/config  change /etc/containerd/config.toml (1 line)
          @@ -1,2 +1,2 @@
           version = 3
          -root = '/tmp'
          +root = '/var/lib/containerd'
      30-containerd/unit    restart containerd.service

    ml2: absent: connect to 10.77.0.14:22: timed out

    2 changes on 1 server, 2 unchanged, 1 absent
    ");
}

#[test]
fn a_plan_without_differences_is_empty_and_says_so() {
    let plan = build("lab", 7, vec![answered("control1", &[]), answered("ml1", &[])], Vec::new());
    assert!(plan.is_empty());
    assert!(plan.to_string().ends_with("generation 8\n\nnothing to do on 2 servers\n"), "{plan}");
}

#[test]
fn a_saved_plan_reads_back_equal() {
    let plan = plan();
    let saved = serde_json::to_string_pretty(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&saved).unwrap(), plan);
}

#[test]
fn a_plan_is_refused_when_its_facts_moved_or_it_was_changed() {
    let plan = plan();
    let mut facts: BTreeMap<_, _> =
        ["control1", "data1", "ml1"].map(|name| (name.to_owned(), container_v1())).into();
    facts.get_mut("ml1").unwrap().read_at_s += 60;
    assert_eq!(verify_fresh(&plan, &facts), Ok(()), "the time of reading is no fact");

    facts.get_mut("ml1").unwrap().memory.allowed_bytes += 1;
    facts.insert("data1".to_owned(), metal_v2());
    let mut changed = plan.clone();
    changed.generation = 99;
    let stale: Vec<_> = verify_fresh(&changed, &facts).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        stale,
        [
            "trust the plan: its content does not match its id",
            "apply to ml1: its facts moved since the plan was made",
            "apply to data1: it is another machine than planned (machine-id 0123456789abcdef0123456789abcdef)",
        ]
    );
}

#[test]
fn a_server_that_is_absent_now_does_not_make_a_plan_stale() {
    let facts = [("control1".to_owned(), container_v1())].into();
    assert_eq!(verify_fresh(&plan(), &facts), Ok(()));
}

fn step(id: &str, kind: StepKind) -> Step {
    Step { id: id.to_owned(), needs: Vec::new(), kind }
}

fn file(path: &str, content: &str, mode: &str, secret: bool) -> StepKind {
    StepKind::File {
        path: path.to_owned(),
        content: Some(content.to_owned()),
        mode: mode.to_owned(),
        owner: "root:root".to_owned(),
        absent: false,
        secret,
    }
}

#[test]
fn dangerous_steps_are_found_before_anything_is_touched() {
    let mut bad = answered("ml1", &[]);
    bad.steps = vec![
        step("x/open", file("/a", "token", "0644", true)),
        step("x/unmarked", file("/b", "pw=click<house>&1", "0600", false)),
        step("x/same", file("/b", "", "0600", false)),
        step("x/key", file("/k", "-----BEGIN PRIVATE KEY-----", "0600", true)),
        step(
            "x/command",
            StepKind::Command { check: "true".to_owned(), apply: "rm".to_owned(), undo: String::new() },
        ),
    ];
    let lints: Vec<_> =
        lint(&build("lab", 0, vec![bad], Vec::new()), &secrets()).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lints.join("\n"));
}

#[test]
fn restarting_too_many_etcd_members_at_once_is_found() {
    let member = |name: &str, differences: &[(&str, &str, &str)]| {
        let mut member = answered(name, differences);
        member.steps =
            steps("control1", &container_v1()).into_iter().filter(|step| step.id == "40-etcd/unit").collect();
        member
    };
    let restart: &[(&str, &str, &str)] = &[("40-etcd/unit", "restart etcd.service", "")];
    let codes = |members: Vec<Answered>| -> Vec<&'static str> {
        lint(&build("lab", 0, members, Vec::new()), &BTreeMap::new()).iter().map(|lint| lint.code).collect()
    };
    assert_eq!(codes(vec![member("a", restart), member("b", restart), member("c", &[])]), ["quorum-restart"]);
    assert!(codes(vec![member("a", restart), member("b", &[]), member("c", &[])]).is_empty());
    assert!(codes(vec![member("a", restart)]).is_empty(), "a single member has no quorum to keep");
}

#[test]
fn certificates_that_disagree_about_a_file_are_found() {
    let mut steps = steps("control1", &container_v1());
    let owned = steps.iter_mut().find(|step| step.id == "20-pki/scheduler").unwrap();
    let StepKind::Certificate(certificate) = &mut owned.kind else { panic!("no certificate") };
    certificate.owner = "etcd:etcd".to_owned();
    let mut of = answered("control1", &[]);
    of.steps = steps;
    let lints = lint(&build("lab", 0, vec![of], Vec::new()), &BTreeMap::new());
    assert!(lints.iter().all(|lint| lint.code == "same-path") && !lints.is_empty(), "{lints:?}");
}

#[test]
fn two_control_servers_with_keys_of_their_own_are_found() {
    let signer = |name: &str| {
        let mut of = answered(name, &[]);
        of.steps = steps("control1", &container_v1());
        of
    };
    let lints = lint(&build("lab", 0, vec![signer("a"), signer("b")], Vec::new()), &BTreeMap::new());
    assert!(lints.iter().any(|lint| lint.code == "unshared-key"), "{lints:?}");
}

#[test]
fn our_own_playbooks_have_no_lint() {
    for (server, facts) in [("control1", container_v1()), ("data1", metal_v2()), ("ml1", container_v1())] {
        let mut of = answered(server, &[]);
        of.steps = steps(server, &facts);
        let lints = lint(&build("lab", 0, vec![of], Vec::new()), &secrets());
        assert!(lints.is_empty(), "{lints:?}");
    }
}
