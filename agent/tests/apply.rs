//! The agent as the controller meets it: a process that reads a plan, is killed at any moment, refuses what
//! it must not run. On a folder that plays the server, with steps that need no systemd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rackwright_wire::event::{Answer, Ask, EVENT_VERSION, Event, Reply, What};
use rackwright_wire::plan::{CheckReport, PLAN_VERSION, ServerPlan};
use rackwright_wire::step::{Step, StepKind, WaitState};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

const MACHINE: &str = "0123456789abcdef0123456789abcdef";

fn server() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("etc")).unwrap();
    fs::create_dir_all(dir.path().join("var/lib")).unwrap();
    fs::write(dir.path().join("etc/machine-id"), format!("{MACHINE}\n")).unwrap();
    dir
}

fn agent(root: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_rackwright-agent"))
        .arg("--root")
        .arg(root)
        .args(args)
        .env("RACKWRIGHT_LOG", "error")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Sends `input`, waits for the end, gives status, stdout and stderr.
fn call(root: &Path, args: &[&str], input: &str) -> (ExitStatus, String, String) {
    let mut child = agent(root, args);
    // A refusal may come before everything was read.
    let _written = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status, text(output.stdout), text(output.stderr))
}

fn step(id: String, needs: Vec<String>, kind: StepKind) -> Step {
    Step { id, needs, kind }
}

/// Chains of folders and files, a command that takes a moment, and a question to the controller.
fn steps(root: &Path) -> Vec<Step> {
    let me = fs::metadata(root).unwrap();
    let owner = format!("{}:{}", me.uid(), me.gid());
    let mut steps = Vec::new();
    for chain in 0..4 {
        let folder = format!("/srv/{chain}");
        let directory =
            StepKind::Directory { path: folder.clone(), mode: "0750".to_owned(), owner: owner.clone() };
        steps.push(step(format!("{chain}/dir"), vec![], directory));
        for file in 0..4 {
            let kind = StepKind::File {
                path: format!("{folder}/{file}.conf"),
                content: Some(format!("{chain} {file}\n").repeat(2000)),
                mode: "0640".to_owned(),
                owner: owner.clone(),
                absent: false,
                secret: false,
            };
            let needs = if file == 0 { "dir".to_owned() } else { format!("{}", file - 1) };
            steps.push(step(format!("{chain}/{file}"), vec![format!("{chain}/{needs}")], kind));
        }
    }
    let marker = root.join("srv/0/marker");
    let command = StepKind::Command {
        check: format!("test -e {}", marker.display()),
        apply: format!("touch {}", marker.display()),
        undo: String::new(),
    };
    steps.push(step("command".to_owned(), vec!["0/dir".to_owned(), "asked".to_owned()], command));
    let wait = StepKind::Wait { state: WaitState::Cluster("api:ready".to_owned()), timeout_s: 60 };
    steps.push(step("asked".to_owned(), vec!["1/3".to_owned()], wait));
    steps
}

fn plan(generation: u64, machine_id: &str, steps: Vec<Step>) -> ServerPlan {
    let mut plan = ServerPlan {
        version: PLAN_VERSION,
        id: String::new(),
        server: "s1".to_owned(),
        machine_id: machine_id.to_owned(),
        generation,
        facts_digest: String::new(),
        steps,
        differences: vec![],
    };
    plan.id = plan.compute_id();
    plan
}

fn line(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap() + "\n"
}

/// Plays the controller: reads events, answers questions, until the end or until `enough` says so.
fn drive(child: &mut Child, stdin: &mut ChildStdin, mut enough: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    for line_read in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: Event = serde_json::from_str(&line_read.unwrap()).unwrap();
        if let What::Asking { step, ask: Ask::State { .. } } = &event.what {
            let answer = Answer { version: EVENT_VERSION, step: step.clone(), reply: Reply::Reached };
            // The agent may be gone: then nobody needs the answer.
            let _sent = stdin.write_all(line(&answer).as_bytes());
        }
        let stop = enough(&event);
        events.push(event);
        if stop {
            break;
        }
    }
    events
}

/// Path to mode and content of everything that is not our own.
fn tree(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if ["var/lib/rackwright", "run"].contains(&name.as_str()) {
                continue;
            }
            let content = if metadata.is_dir() { vec![] } else { fs::read(&path).unwrap() };
            if metadata.is_dir() {
                folders.push(path);
            }
            found.insert(name, (metadata.permissions().mode() & 0o7777, content));
        }
    }
    found
}

fn run(root: &Path, plan: &ServerPlan) -> Vec<Event> {
    let mut child = agent(root, &["run"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(line(plan).as_bytes()).unwrap();
    let events = drive(&mut child, &mut stdin, |_| false);
    assert!(child.wait().unwrap().success());
    events
}

/// The process that applies the plan, once it holds the lock; killed the hard way.
fn kill_apply(root: &Path) {
    let needle = format!("{}\0apply", root.display());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command_line).contains(&needle) {
            let pid =
                entry.file_name().to_string_lossy().parse().ok().and_then(rustix::process::Pid::from_raw);
            // It may have ended by itself.
            let _gone = rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL);
        }
    }
}

#[test]
fn an_agent_killed_after_any_event_resumes_to_the_same_tree() {
    let undisturbed = server();
    let plan_of = |root: &Path| plan(1, MACHINE, steps(root));
    let events = run(undisturbed.path(), &plan_of(undisturbed.path()));
    assert!(
        matches!(events.last().unwrap().what, What::Finished { changed: 21, failed: 0 }),
        "{:?}",
        events.last()
    );
    let expected = tree(undisturbed.path());
    let mut resumed = 0;
    for kill_after in (1..events.len() as u64).step_by(7) {
        let server = server();
        let plan = plan_of(server.path());
        let mut child = agent(server.path(), &["run"]);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(line(&plan).as_bytes()).unwrap();
        drive(&mut child, &mut stdin, |event| event.seq >= kill_after);
        kill_apply(server.path());
        // The follower dies too: as when the server loses power.
        child.kill().unwrap();
        child.wait().unwrap();
        kill_apply(server.path());
        let events = run(server.path(), &plan);
        assert!(
            matches!(events.last().unwrap().what, What::Finished { changed: 21, failed: 0 }),
            "{kill_after}"
        );
        assert!(events.is_sorted_by(|a, b| a.seq < b.seq), "numbers only rise");
        let starts = events.iter().filter(|event| matches!(event.what, What::Started { .. })).count();
        resumed += usize::from(starts > 1);
        assert_eq!(tree(server.path()), expected, "killed after event {kill_after}");
    }
    assert!(resumed > 0, "no apply was hit while it ran");
}

#[test]
fn a_follower_takes_over_from_one_that_was_killed() {
    let server = server();
    let plan = plan(1, MACHINE, steps(server.path()));
    let mut first = agent(server.path(), &["run"]);
    let mut stdin = first.stdin.take().unwrap();
    stdin.write_all(line(&plan).as_bytes()).unwrap();
    // Reads up to the question and leaves without an answer.
    let lines = BufReader::new(first.stdout.take().unwrap()).lines();
    let asked = lines.map(|line| serde_json::from_str::<Event>(&line.unwrap()).unwrap());
    let asked = asked.into_iter().find(|event| matches!(event.what, What::Asking { .. })).unwrap();
    first.kill().unwrap();
    first.wait().unwrap();

    let from = asked.seq.to_string();
    let mut second = agent(server.path(), &["follow", "--plan", &plan.id, "--from-seq", &from]);
    let mut stdin = second.stdin.take().unwrap();
    let events = drive(&mut second, &mut stdin, |_| false);
    assert!(second.wait().unwrap().success());
    assert_eq!(events.first(), Some(&asked), "nothing before what was asked for");
    let started = events.iter().filter(|event| matches!(event.what, What::Started { .. })).count();
    assert_eq!(started, 0, "the same apply went on");
    assert!(matches!(events.last().unwrap().what, What::Finished { failed: 0, .. }));
}

#[test]
fn the_same_plan_again_is_only_told_again() {
    let server = server();
    let plan = plan(1, MACHINE, steps(server.path()));
    assert_eq!(run(server.path(), &plan), run(server.path(), &plan));
}

#[test]
fn what_must_not_run_is_refused_with_status_3_and_a_code() {
    let server = server();
    run(server.path(), &plan(7, MACHINE, vec![]));
    let before = tree(server.path());
    let altered = ServerPlan { generation: 9, ..plan(8, MACHINE, vec![]) };
    for (input, code) in [
        (line(&plan(6, MACHINE, vec![])), "stale-plan"),
        (line(&plan(8, "another", vec![])), "wrong-machine"),
        (line(&altered), "plan-corrupt"),
        ("{\"version\":1}\n".to_owned(), "bad-input"),
        (newer(&plan(8, MACHINE, vec![])), "plan-version"),
    ] {
        // The apply before has told its end, and may not have let go of its lock yet.
        let mut answers = (0..100).map(|_| call(server.path(), &["run"], &input));
        let (status, stdout, stderr) = answers.find(|(_, _, stderr)| !stderr.contains("\"busy\"")).unwrap();
        assert_eq!((status.code(), stdout.as_str()), (Some(3), ""), "{stderr}");
        let said: serde_json::Value = serde_json::from_str(&stderr).unwrap();
        assert_eq!(said["code"], code);
    }
    let (status, _, _) = call(server.path(), &["follow", "--plan", "nosuch"], "");
    assert_eq!(status.code(), Some(3));
    assert_eq!(tree(server.path()), before);
}

/// As a newer controller would write it.
fn newer(value: &impl serde::Serialize) -> String {
    line(value).replacen("{\"version\":1,", "{\"version\":2,\"added\":1,", 1)
}

#[test]
fn what_a_newer_controller_sends_is_refused_with_the_version() {
    let server = server();
    let request = rackwright_wire::plan::CheckRequest {
        version: PLAN_VERSION,
        steps: steps(server.path()),
        artifacts: vec![],
    };
    let before = tree(server.path());
    for (subcommand, input) in
        [("run", newer(&plan(1, MACHINE, steps(server.path())))), ("check", newer(&request))]
    {
        let (status, stdout, stderr) = call(server.path(), &[subcommand], &input);
        assert_eq!((status.code(), stdout.as_str()), (Some(3), ""), "{stderr}");
        assert!(stderr.contains("version 2, this build reads 1"), "{stderr}");
    }
    assert_eq!(tree(server.path()), before);
}

#[test]
fn a_check_names_an_interrupted_plan() {
    let server = server();
    let plan = plan(4, MACHINE, steps(server.path()));
    let mut child = agent(server.path(), &["run"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(line(&plan).as_bytes()).unwrap();
    drive(&mut child, &mut stdin, |event| matches!(event.what, What::Applying { .. }));
    child.kill().unwrap();
    child.wait().unwrap();
    // Waits for an answer that never comes: it is there to be killed.
    kill_apply(server.path());
    let request = "{\"version\":1,\"steps\":[],\"artifacts\":[]}";
    let (status, stdout, stderr) = call(server.path(), &["check"], request);
    assert!(status.success(), "{stderr}");
    let report: CheckReport = serde_json::from_str(&stdout).unwrap();
    assert_eq!((report.generation, report.unfinished), (4, Some(plan.id)));
}

#[test]
fn bytes_with_another_hash_are_refused_and_leave_nothing() {
    let server = server();
    let wanted = "ab".repeat(32);
    let (status, _, stderr) = call(server.path(), &["receive", "--sha256", &wanted], "other bytes");
    assert_eq!(status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(said["code"], "artifact-refused");
    let artifacts = server.path().join("var/lib/rackwright/artifacts");
    assert_eq!(fs::read_dir(artifacts).unwrap().count(), 0);
}
