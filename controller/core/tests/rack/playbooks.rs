//! The playbooks, rendered for every role and both cgroup versions, and playbooks with slips.

use super::{container_v1, context, lab, metal_v2, print, steps};
use rackwright_core::inventory::Inventory;
use rackwright_core::playbook::{Playbook, render};
use rackwright_wire::facts::Facts;
use rackwright_wire::step::{Step, StepKind};
use serde_json::Value;
use std::fmt::Write as _;

/// Steps as text: one paragraph each, contents as they will stand in the file.
fn show(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        let mut fields = serde_json::to_value(&step.kind).unwrap();
        let fields = fields.as_object_mut().unwrap();
        let kind = fields.remove("kind").unwrap();
        writeln!(text, "== {} ({})", step.id, kind.as_str().unwrap()).unwrap();
        if !step.needs.is_empty() {
            writeln!(text, "needs: {}", step.needs.join(" ")).unwrap();
        }
        for (name, value) in fields {
            match value {
                Value::String(lines) if lines.contains('\n') => {
                    writeln!(text, "{name}:").unwrap();
                    lines.lines().for_each(|line| writeln!(text, "  | {line}").unwrap());
                }
                Value::String(plain) => writeln!(text, "{name}: {plain}").unwrap(),
                other => writeln!(text, "{name}: {other}").unwrap(),
            }
        }
        text.push('\n');
    }
    text
}

#[test]
fn a_container_with_cgroup_v1_is_rendered_as_recorded() {
    for server in ["control1", "data1", "ml1", "results1"] {
        insta::assert_snapshot!(format!("v1_{server}"), show(&steps(server, &container_v1())));
    }
}

#[test]
fn a_rented_server_with_cgroup_v2_differs_in_exactly_this() {
    for server in ["control1", "data1", "ml1", "results1"] {
        let (v1, v2) = (show(&steps(server, &container_v1())), show(&steps(server, &metal_v2())));
        let diff = similar::TextDiff::from_lines(&v1, &v2);
        let diff = diff
            .unified_diff()
            .context_radius(2)
            .header("container, cgroup v1", "metal, cgroup v2")
            .to_string();
        insta::assert_snapshot!(format!("v2_{server}"), diff);
    }
}

#[test]
fn an_object_store_that_is_there_already_takes_the_place_of_minio() {
    let mut inventory = lab();
    inventory.data.s3_endpoint = Some("https://s3.example.org".to_owned());
    let facts = container_v1();
    let steps = render(&Playbook::builtin().unwrap(), &context(&inventory, "data1", &facts)).unwrap();
    let text = show(&steps);
    assert!(steps.iter().all(|step| !step.id.starts_with("70-data/minio")), "{text}");
    assert!(text.contains("endpoint = \"https://s3.example.org\""), "{text}");
}

#[test]
fn every_step_comes_after_what_it_needs() {
    for server in lab().servers {
        let steps = steps(&server.name, &container_v1());
        for (place, step) in steps.iter().enumerate() {
            for need in &step.needs {
                assert!(
                    steps[..place].iter().any(|earlier| earlier.id == *need),
                    "{} before {need}",
                    step.id
                );
            }
        }
    }
}

#[test]
fn a_unit_needs_every_step_that_writes_what_restarts_it() {
    for server in lab().servers {
        let steps = steps(&server.name, &container_v1());
        for step in &steps {
            let StepKind::Unit { restart_on, .. } = &step.kind else {
                continue;
            };
            for path in restart_on {
                let writer = steps.iter().find(|of| writes(of, path));
                let present = writer.is_some() || optional(path, &server.name);
                assert!(present, "{}: nobody writes {path} on {}", step.id, server.name);
                let reached = writer.is_none_or(|writer| reaches(&steps, step, &writer.id));
                assert!(reached, "{} does not need the step that writes {path}", step.id);
            }
        }
    }
}

/// Secrets that only some roles have.
fn optional(path: &str, server: &str) -> bool {
    path.starts_with("/etc/rackwright/secrets/") && server != "data1"
}

fn writes(step: &Step, wanted: &str) -> bool {
    match &step.kind {
        StepKind::File { path, .. } | StepKind::Artifact { path, .. } => path == wanted,
        StepKind::Certificate(of) => [&of.cert, &of.key, &of.ca_cert].into_iter().any(|path| path == wanted),
        StepKind::KeyPair { key, public, .. } => key == wanted || public == wanted,
        _ => false,
    }
}

fn reaches(steps: &[Step], from: &Step, to: &str) -> bool {
    from.needs.iter().any(|need| {
        need == to || steps.iter().find(|step| step.id == *need).is_some_and(|step| reaches(steps, step, to))
    })
}

#[test]
fn every_named_owner_has_a_step_that_makes_it() {
    for server in lab().servers {
        let steps = steps(&server.name, &container_v1());
        for step in &steps {
            let owner = match &step.kind {
                StepKind::File { owner, .. }
                | StepKind::Directory { owner, .. }
                | StepKind::KeyPair { owner, .. } => owner,
                StepKind::Certificate(of) => &of.owner,
                _ => continue,
            };
            let user = owner.split(':').next().unwrap();
            let made = steps.iter().find(|of| match &of.kind {
                StepKind::User { name, .. } => name == user,
                StepKind::Package { names } => {
                    user == "clickhouse" && names.iter().any(|name| name == "clickhouse-server")
                }
                _ => false,
            });
            let reached = user == "root" || made.is_some_and(|made| reaches(&steps, step, &made.id));
            assert!(reached, "{} on {} does not need the step that makes {user}", step.id, server.name);
        }
    }
}

#[test]
fn a_dev_server_gets_images_but_no_taint_and_no_databases() {
    let text = super::LAB.replace(
        "name = \"ml2\"\naddress = \"10.77.0.14\"\nrole = \"ml\"",
        "name = \"ml2\"\naddress = \"10.77.0.14\"\nrole = \"dev\"",
    );
    let text = text.replace("target_nodes = 2", "target_nodes = 1");
    let inventory = Inventory::parse("dev", &text).unwrap_or_else(|found| panic!("{}", print(&found)));
    let steps = render(&Playbook::builtin().unwrap(), &context(&inventory, "ml2", &container_v1())).unwrap();
    let has = |id: &str| steps.iter().any(|step| step.id == id);
    assert!(has("30-containerd/image-python") && !has("70-data/minio") && !has("40-etcd/unit"));
    assert!(!show(&steps).contains("registerWithTaints"));
}

#[test]
fn rendering_is_the_same_every_time() {
    assert_eq!(steps("control1", &container_v1()), steps("control1", &container_v1()));
}

#[test]
fn all_playbooks_together_run_at_most_eight_commands() {
    let commands: usize = Playbook::builtin().unwrap().iter().map(Playbook::commands).sum();
    assert!(commands <= 8, "{commands} commands");
}

#[test]
fn secrets_are_escaped_where_they_stand() {
    let steps = steps("data1", &container_v1());
    let content = |id: &str| {
        steps.iter().find(|step| step.id == id).and_then(|step| match &step.kind {
            StepKind::File { content, secret: true, .. } => content.clone(),
            _ => None,
        })
    };
    assert!(
        content("70-data/clickhouse-users")
            .unwrap()
            .contains("<password>click&lt;house&gt;&amp;1</password>")
    );
    assert!(
        content("70-data/minio-environment")
            .unwrap()
            .contains(r#"MINIO_ROOT_PASSWORD="minio \"quoted\" $key""#)
    );
}

/// Playbooks with one slip each.
const SLIPS: &[(&str, &str)] = &[
    (
        "undefined name",
        "[[step]]\nid = \"a\"\nkind = \"file\"\npath = \"/a\"\ncontent = '''\none\ntwo {{ server.nmae }}\n'''\n",
    ),
    ("undefined name alone", "[[step]]\nid = \"a\"\nkind = \"file\"\npath = \"{{ facts.os.flavour }}\"\n"),
    (
        "open expression",
        "[[step]]\nid = \"a\"\nkind = \"file\"\npath = \"/a\"\ncontent = '''\none\n{% if %}\n'''\n",
    ),
    ("unknown kind", "[[step]]\nid = \"a\"\nkind = \"fiel\"\npath = \"/a\"\n"),
    ("unknown parameter", "[[step]]\nid = \"a\"\nkind = \"file\"\npaht = \"/a\"\n"),
    ("missing parameter", "[[step]]\nid = \"a\"\nkind = \"slice\"\nname = \"a.slice\"\n"),
    (
        "wrong type",
        "[[step]]\nid = \"a\"\nkind = \"slice\"\nname = \"a.slice\"\nmemory_bytes = \"much\"\ncpu_weight = 1\n",
    ),
    (
        "unknown need",
        "[[step]]\nid = \"alpha\"\nkind = \"module\"\nnames = []\n[[step]]\nid = \"b\"\nkind = \"module\"\nneeds = [\"alhpa\"]\nnames = []\n",
    ),
    (
        "circle",
        "[[step]]\nid = \"a\"\nkind = \"module\"\nneeds = [\"b\"]\nnames = []\n[[step]]\nid = \"b\"\nkind = \"module\"\nneeds = [\"a\"]\nnames = []\n",
    ),
    (
        "two of one name",
        "[[step]]\nid = \"a\"\nkind = \"module\"\nnames = []\n[[step]]\nid = \"a\"\nkind = \"module\"\nnames = []\n",
    ),
    (
        "artifact that is not locked",
        "[[step]]\nid = \"a\"\nkind = \"artifact\"\nname = \"kublet\"\npath = \"/a\"\n",
    ),
    (
        "unknown CA",
        "[[step]]\nid = \"a\"\nkind = \"certificate\"\nca = \"kubernets\"\ncommon_name = \"a\"\ncert = \"/c\"\nkey = \"/k\"\nca_cert = \"/ca\"\nlife_hours = 2\nrenew_hours = 1\n",
    ),
    ("unknown role", "[[step]]\nid = \"a\"\nkind = \"module\"\nroles = [\"mll\"]\nnames = []\n"),
    ("bad condition", "[[step]]\nid = \"a\"\nkind = \"module\"\nwhen = \"facts.os.\"\nnames = []\n"),
    (
        "undefined condition",
        "[[step]]\nid = \"a\"\nkind = \"module\"\nwhen = \"facts.os.windows\"\nnames = []\n",
    ),
    ("no id", "[[step]]\nkind = \"module\"\nnames = []\n"),
    ("not a step", "[stpe]\nid = \"a\"\n"),
];

fn result(text: &str, facts: &Facts) -> String {
    let rendered = Playbook::parse("playbooks/99-slip.toml", text)
        .and_then(|playbook| render(&[playbook], &context(&lab(), "ml1", facts)));
    rendered.map_or_else(|found| print(&found), |steps| format!("(accepted)\n{}", show(&steps)))
}

#[test]
fn every_slip_in_a_playbook_is_named_with_its_line() {
    let mut golden = String::new();
    for (name, text) in SLIPS {
        let found = result(text, &container_v1());
        assert!(!found.starts_with("(accepted)"), "{name}: {found}");
        writeln!(golden, "# {name}\n{found}").unwrap();
    }
    insta::assert_snapshot!(golden);
}

#[test]
fn a_single_expression_keeps_its_type_and_a_false_condition_drops_needs() {
    let text = r#"
[[step]]
id = "other"
kind = "module"
when = "facts.os.cgroup_version == 2"
names = ["overlay"]

[[step]]
id = "list"
kind = "module"
needs = ["other"]
names = "{{ [server.name, 'x' ~ facts.cpu.logical] }}"

[[step]]
id = "number"
kind = "slice"
needs = ["99-slip/*"]
name = "a.slice"
memory_bytes = "{{ facts.memory.allowed_bytes // 2 }}"
cpu_weight = 50
"#;
    // A layer does not need itself: `number` is named by its own pattern.
    let text = text.replace("99-slip/*", "99-slip/list");
    insta::assert_snapshot!(result(&text, &container_v1()), @r#"
    (accepted)
    == 99-slip/list (module)
    names: ["ml1","x2"]

    == 99-slip/number (slice)
    needs: 99-slip/list
    cpu_weight: 50
    memory_bytes: 1610612736
    name: a.slice
    "#);
}
