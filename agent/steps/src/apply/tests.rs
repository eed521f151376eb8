//! Law 2: an interrupted apply plus a resume leaves the same tree as an uninterrupted one. And: a failure
//! skips only what needs it, nothing changes without its journal line.

use super::*;
use crate::controller::{Controller, Silent, deliver};
use crate::hashes::hash_bytes;
use crate::journal::{self, Journal};
use rackwright_wire::event::{Answer, Ask, EVENT_VERSION, Event, Reply};
use rackwright_wire::plan::PLAN_VERSION;
use rackwright_wire::step::{KeyAlgorithm, WaitState};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const ARTIFACT: &[u8] = b"#!/bin/sh\necho artifact\n";

/// A server's root with what the steps of [`steps`] start from.
fn server() -> (tempfile::TempDir, Host) {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["etc/app", "proc/sys/net", "srv", "var/lib"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    fs::write(dir.path().join("proc/sys/net/setting"), "0\n").unwrap();
    fs::write(dir.path().join("etc/app/old.conf"), "to be removed\n").unwrap();
    fs::write(dir.path().join("etc/app/app.conf"), "before\n").unwrap();
    let host = Host::new(dir.path(), 0);
    (dir, host)
}

fn step(id: &str, needs: &[&str], kind: StepKind) -> Step {
    Step { id: id.to_owned(), needs: needs.iter().map(|need| (*need).to_owned()).collect(), kind }
}

fn file(path: &str, content: Option<&str>, owner: &str) -> StepKind {
    StepKind::File {
        path: path.to_owned(),
        content: content.map(str::to_owned),
        mode: "0640".to_owned(),
        owner: owner.to_owned(),
        absent: content.is_none(),
        secret: false,
    }
}

/// One step of each kind that needs no systemd, no apt and no containerd.
fn steps(root: &Path) -> Vec<Step> {
    let me = fs::metadata(root).unwrap();
    let owner = format!("{}:{}", me.uid(), me.gid());
    let directory = StepKind::Directory {
        path: "/srv/data/deep".to_owned(),
        mode: "0750".to_owned(),
        owner: owner.clone(),
    };
    let artifact = StepKind::Artifact {
        name: "tool".to_owned(),
        path: "/usr/local/bin/tool".to_owned(),
        sha256: hash_bytes(ARTIFACT),
        mode: "0755".to_owned(),
    };
    let sysctl = StepKind::Sysctl {
        values: BTreeMap::from([("net.setting".to_owned(), "1".to_owned())]),
        file: "60-x.conf".to_owned(),
    };
    let key = StepKind::KeyPair {
        key: "/etc/app/sa.key".to_owned(),
        public: "/etc/app/sa.pub".to_owned(),
        algorithm: KeyAlgorithm::EcdsaP256,
        owner: owner.clone(),
    };
    let marker = root.join("srv/data/deep/marker");
    let command = StepKind::Command {
        check: format!("test -e {}", marker.display()),
        apply: format!("touch {}", marker.display()),
        undo: String::new(),
    };
    let wait = |state| StepKind::Wait { state, timeout_s: 20 };
    vec![
        step("a/dir", &[], directory),
        step("a/conf", &["a/dir"], file("/etc/app/app.conf", Some("after\n"), &owner)),
        step("a/gone", &[], file("/etc/app/old.conf", None, &owner)),
        step("b/tool", &["a/dir"], artifact),
        step("b/sysctl", &[], sysctl),
        step("b/key", &["a/conf"], key),
        step("c/there", &["b/tool"], wait(WaitState::Path("/usr/local/bin/tool".to_owned()))),
        step("c/state", &["c/there"], wait(WaitState::Cluster("api:ready".to_owned()))),
        step("c/command", &["c/state", "a/dir"], command),
        step(
            "d/last",
            &["c/command", "b/key", "b/sysctl", "a/gone"],
            file("/srv/done", Some("done\n"), &owner),
        ),
    ]
}

fn plan(steps: Vec<Step>) -> ServerPlan {
    ServerPlan {
        version: PLAN_VERSION,
        id: "p".to_owned(),
        server: "s".to_owned(),
        machine_id: String::new(),
        generation: 1,
        facts_digest: String::new(),
        steps,
        differences: vec![],
    }
}

/// Sends the artifact when it is asked for, and says yes to every state.
struct Helpful<'a>(&'a Host);

impl Controller for Helpful<'_> {
    fn ask(&self, _: &str, ask: Ask, _: Duration) -> Result<Reply, StepError> {
        let Ask::State { state } = ask else { panic!("no certificate in these plans") };
        if let Some(sha256) = state.strip_prefix("artifact:") {
            receive::receive(self.0, sha256, 0o755, &mut &ARTIFACT[..]).unwrap();
        }
        Ok(Reply::Reached)
    }
}

/// Path to mode and content of everything, without what is our own and without what is random.
fn tree(root: &Path) -> BTreeMap<String, (u32, String)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if ["var/lib/rackwright", "run"].contains(&name.as_str()) {
                continue;
            }
            let content = if metadata.is_dir() {
                folders.push(path);
                "(folder)".to_owned()
            } else if name.starts_with("etc/app/sa.") {
                "(random)".to_owned()
            } else {
                fs::read_to_string(path).unwrap()
            };
            found.insert(name, (metadata.permissions().mode() & 0o7777, content));
        }
    }
    found
}

fn events(host: &Host) -> Vec<Event> {
    journal::whole_lines(&fs::read_to_string(journal::path(host, "p")).unwrap()).unwrap().0
}

/// A journal that breaks after some lines, as if the agent had been killed there: nothing is started after.
struct Breaks<'a> {
    journal: &'a Journal,
    left: AtomicU64,
}

impl Record for Breaks<'_> {
    fn write(&self, what: What) -> Result<(), JournalError> {
        let taken = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if taken.is_err() {
            return Err(JournalError::new("write", Path::new("p"), std::io::Error::other("killed")));
        }
        self.journal.write(what)
    }
}

fn run(host: &Host, plan: &ServerPlan) -> Outcome {
    let journal = Journal::open(host, "p").unwrap();
    let history = journal.history().clone();
    apply(host, plan, &journal, &history, &Helpful(host)).unwrap()
}

#[test]
fn an_apply_cut_off_after_any_line_and_resumed_leaves_the_same_tree() {
    let (dir, host) = server();
    let whole = plan(steps(dir.path()));
    assert_eq!(run(&host, &whole), Outcome { changed: 8, failed: 0 });
    let expected: BTreeMap<String, (u32, String)> = tree(dir.path());
    let lines = events(&host).len() as u64;
    assert!(lines > 18, "{lines}");
    for cut in 0..lines {
        let (dir, host) = server();
        let plan = plan(steps(dir.path()));
        let journal = Journal::open(&host, "p").unwrap();
        let breaks = Breaks { journal: &journal, left: AtomicU64::new(cut) };
        apply(&host, &plan, &breaks, &History::default(), &Helpful(&host)).unwrap_err();
        drop(journal);
        let outcome = run(&Host::new(dir.path(), 0), &plan);
        assert_eq!(outcome, Outcome { changed: 8, failed: 0 }, "cut after {cut} lines");
        assert_eq!(tree(dir.path()), expected, "cut after {cut} lines");
    }
}

#[test]
fn a_second_apply_changes_nothing() {
    let (dir, host) = server();
    let plan = plan(steps(dir.path()));
    run(&host, &plan);
    let (before, lines) = (tree(dir.path()), events(&host).len());
    let journal = Journal::open(&host, "p").unwrap();
    let again = apply(&host, &plan, &journal, &History::default(), &Helpful(&host)).unwrap();
    assert_eq!(again, Outcome { changed: 0, failed: 0 });
    assert_eq!(tree(dir.path()), before);
    let applying = |event: &&Event| matches!(event.what, What::Applying { .. });
    assert_eq!(events(&host)[lines..].iter().filter(applying).count(), 0);
}

#[test]
fn nothing_changes_before_its_line_is_kept() {
    let (dir, host) = server();
    let before = tree(dir.path());
    let journal = Journal::open(&host, "p").unwrap();
    // `started` and nothing else.
    let breaks = Breaks { journal: &journal, left: AtomicU64::new(1) };
    let plan = plan(steps(dir.path()));
    apply(&host, &plan, &breaks, &History::default(), &Helpful(&host)).unwrap_err();
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn a_failed_step_skips_only_what_needs_it() {
    let (dir, host) = server();
    let owner = "0:0".to_owned();
    fs::create_dir(dir.path().join("etc/taken")).unwrap();
    let boom = StepKind::Command {
        check: "false".to_owned(),
        apply: "echo why; exit 9".to_owned(),
        undo: String::new(),
    };
    let lies = StepKind::Command { check: "false".to_owned(), apply: "true".to_owned(), undo: String::new() };
    let plan = plan(vec![
        step("boom", &[], boom),
        step("child", &["boom"], file("/etc/child", Some("x"), &owner)),
        step("grandchild", &["child"], file("/etc/grandchild", Some("x"), &owner)),
        step("lies", &[], lies),
        step("taken", &[], file("/etc/taken", Some("x"), &owner)),
        step(
            "other",
            &[],
            StepKind::Directory {
                path: "/etc/other".to_owned(),
                mode: "0755".to_owned(),
                owner: "0:0".to_owned(),
            },
        ),
    ]);
    let journal = Journal::open(&host, "p").unwrap();
    let outcome = apply(&host, &plan, &journal, &History::default(), &Silent).unwrap();
    let mut codes = BTreeMap::new();
    for event in events(&host) {
        if let What::Failed { step, code, evidence, .. } = event.what {
            codes.insert(step, (code, evidence));
        }
    }
    let code = |step: &str| codes[step].0.as_str();
    assert_eq!(codes["boom"], ("command-failed".to_owned(), "why".to_owned()));
    assert_eq!((code("child"), code("grandchild")), ("skipped", "skipped"));
    assert_eq!((code("lies"), code("taken")), ("still-differs", "io"));
    assert!(dir.path().join("etc/other").is_dir());
    assert!(outcome.failed >= 5);
}

#[test]
fn an_artifact_is_waited_for_while_other_steps_go_on() {
    let (dir, host) = server();
    let plan = plan(steps(dir.path()));
    let journal = Journal::open(&host, "p").unwrap();
    thread::scope(|scope| {
        let inbox = crate::controller::Inbox::new(&host, "p", &journal);
        let (host, plan, journal) = (&host, &plan, &journal);
        let applying = scope.spawn(move || apply(host, plan, journal, &History::default(), &inbox).unwrap());
        // The key needs the file, the artifact is not there: only its dependants wait.
        await_event(host, |what| matches!(what, What::Applied { step, .. } if step == "b/key"));
        await_event(host, |what| matches!(what, What::Asking { step, .. } if step == "b/tool"));
        receive::receive(host, &hash_bytes(ARTIFACT), 0o755, &mut &ARTIFACT[..]).unwrap();
        let reached =
            |step: &str| Answer { version: EVENT_VERSION, step: step.to_owned(), reply: Reply::Reached };
        deliver(host, "p", &reached("b/tool")).unwrap();
        await_event(host, |what| matches!(what, What::Asking { step, .. } if step == "c/state"));
        deliver(host, "p", &reached("c/state")).unwrap();
        assert_eq!(applying.join().unwrap(), Outcome { changed: 8, failed: 0 });
    });
}

#[test]
fn an_artifact_that_found_no_room_is_a_full_disk_and_one_that_nobody_has_is_refused() {
    struct Refusing(&'static str);
    impl Controller for Refusing {
        fn ask(&self, _: &str, _: Ask, _: Duration) -> Result<Reply, StepError> {
            Ok(Reply::Refused { reason: "x".to_owned(), code: self.0.to_owned() })
        }
    }
    for (named, code) in
        [("disk-full", "disk-full"), ("", "artifact-refused"), ("bad-step", "artifact-refused")]
    {
        let (dir, host) = server();
        let steps =
            steps(dir.path()).into_iter().filter(|step| ["a/dir", "b/tool"].contains(&step.id.as_str()));
        let journal = Journal::open(&host, "p").unwrap();
        apply(&host, &plan(steps.collect()), &journal, &History::default(), &Refusing(named)).unwrap();
        let failed = |event: &Event| matches!(&event.what, What::Failed { code: is, .. } if is == code);
        assert!(events(&host).iter().any(failed), "{named}: {:#?}", events(&host));
    }
}

/// Waits, at most 20 s, until the journal holds such an event.
fn await_event(host: &Host, wanted: impl Fn(&What) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !events(host).iter().any(|event| wanted(&event.what)) {
        assert!(Instant::now() < deadline, "no such event: {:#?}", events(host));
        thread::yield_now();
    }
}
