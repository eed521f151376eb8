//! What interrupts an apply: wrong keys, absent servers, killed controllers and agents, power cuts, full disks.
//!
//! One rack for all of it, hurt in one sequence: each fault ends with the rack as it would have been without.

use crate::story_rack;
use rackwright_tests::rack::StoryRack;
use rackwright_tests::shell;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// An event of an apply that goes on comes within this, also on a machine that builds something beside it.
const SOON: Duration = Duration::from_mins(2);

#[test]
fn an_apply_that_was_hurt_says_how_and_the_next_one_ends_as_if_it_had_not_been() {
    let Some(rack) = story_rack("fault", "10.79.2") else { return };
    let up = rack.run(&["lab", "up"]).unwrap();
    assert_eq!(up.code, 0, "{}", up.stderr);

    a_wrong_ssh_key_is_said_server_by_server_and_touches_nothing(&rack);
    a_changed_host_key_stops_that_server_before_login_and_no_other(&rack);
    a_killed_controller_a_power_cut_and_a_killed_agent_resume_to_the_same_tree(&rack);
    a_full_disk_is_named_leaves_nothing_half_written_and_goes_on_when_there_is_room(&rack);
    an_unreachable_server_decides_the_exit_code_by_its_roles_rule(&rack);

    let down = rack.run(&["lab", "down"]).unwrap();
    assert_eq!(down.code, 0, "{}", down.stderr);
}

fn a_wrong_ssh_key_is_said_server_by_server_and_touches_nothing(rack: &StoryRack) {
    let right = std::fs::read_to_string(rack.inventory()).unwrap();
    let key = rack.inventory().with_file_name("wrong-key");
    let key = key.to_str().unwrap();
    shell::capture("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key]).unwrap();
    let wrong = right.replace("[ssh]\n", &format!("[ssh]\nkey = \"file:{key}\"\n"));
    std::fs::write(rack.inventory(), wrong).unwrap();

    for args in [["check"].as_slice(), &["plan"], &["apply", "--yes"]] {
        let refused = rack.run(args).unwrap();
        assert_eq!(refused.code, 1, "{args:?}: {}", refused.stderr);
        for server in ["control1", "data1", "ml1", "ml2", "results1"] {
            let said = format!("error: {server}: failed to connect to {server}: log in as root");
            let help = format!("help: add the public key to root's authorized_keys on {server}");
            assert!(refused.stderr.contains(&said), "{args:?} says {said:?}:\n{}", refused.stderr);
            assert!(refused.stderr.contains(&help), "{args:?} says {help:?}:\n{}", refused.stderr);
        }
    }
    for server in ["control1", "ml1"] {
        assert_untouched(&rack.on(server, OURS).unwrap(), server);
    }
    let plans = rack.state().join("rackwright/fault/plans");
    assert_eq!(std::fs::read_dir(plans).unwrap().count(), 0, "no plan that the next apply would take up");
    std::fs::write(rack.inventory(), right).unwrap();
}

/// Lists what of ours is on a server.
const OURS: &str = "ls -d /run/rackwright /var/lib/rackwright /etc/rackwright 2>/dev/null; true";

fn assert_untouched(ours: &str, server: &str) {
    assert_eq!(ours, "", "nothing was touched on {server}");
}

fn a_changed_host_key_stops_that_server_before_login_and_no_other(rack: &StoryRack) {
    const LOGINS: &str = "journalctl --unit ssh --output cat | grep -c '^Accepted publickey'";
    let change = "cd /etc/ssh && mkdir /root/first && mv ssh_host_ed25519_key* /root/first/ && \
                  ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key && systemctl restart ssh";
    let before: u32 = rack.on("results1", &format!("{LOGINS}; {change}")).unwrap().trim().parse().unwrap();

    let args = ["apply", "--yes", "--only", "control1,ml2,results1"];
    let stopped = rack.run(&args).unwrap();
    assert_eq!(stopped.code, 5, "{}", stopped.stderr);
    let error = "error: results1: failed to connect to results1: trust the server: its host key is SHA256:";
    for said in [error, "help: nothing was sent to it", "control1: ", "ml2: "] {
        assert!(stopped.stderr.contains(said), "{said:?} is said:\n{}", stopped.stderr);
    }
    let (code, others) = rack.json(&["apply", "--yes", "--only", "control1,ml2"]).unwrap();
    assert_eq!((code, changes(&others)), (0, Some(0)), "law 5, the others went on to their end: {others}");

    let logins: u32 = unpinned(rack, "results1", LOGINS).trim().parse().unwrap();
    assert_eq!(logins, before + 1, "law 5: since the change nobody but this story has logged in");
    assert_untouched(&unpinned(rack, "results1", OURS), "results1");
    unpinned(rack, "results1", "mv -f /root/first/* /etc/ssh/ && systemctl restart ssh");
    let trusted = rack.run(&["check", "--only", "results1"]).unwrap();
    assert_eq!(trusted.code, 0, "the key that the lab made is trusted again: {}", trusted.stderr);
}

/// Logs in whatever the host key is: `lab ssh` would stop as well.
fn unpinned(rack: &StoryRack, server: &str, script: &str) -> String {
    let (_, status) = rack.json(&["lab", "status"]).unwrap();
    let key = status.get("key").and_then(Value::as_str).unwrap();
    let servers = status.get("servers").and_then(Value::as_array).unwrap();
    let found = servers.iter().find(|one| one.get("name").and_then(Value::as_str) == Some(server)).unwrap();
    let login = format!("root@{}", found.get("address").and_then(Value::as_str).unwrap());
    let options = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"];
    shell::capture("ssh", &[["-i", key].as_slice(), &options, &[&login, script]].concat()).unwrap()
}

fn a_killed_controller_a_power_cut_and_a_killed_agent_resume_to_the_same_tree(rack: &StoryRack) {
    let applying = |step: &'static str| {
        move |news: &Value| {
            let is = |key: &str, text: &str| news.get(key).and_then(Value::as_str) == Some(text);
            is("server", "ml1") && is("news", "applying") && is("step", step)
        }
    };
    let mut first = rack.start(&["apply", "--yes", "--only", "ml1"]).unwrap();
    first.until("the first binary", SOON, applying("30-containerd/shim")).unwrap();
    first.kill();
    let interrupted = journal(rack, "ml1");
    assert!(
        !interrupted.iter().any(|event| event.what == "finished"),
        "killed in the middle: {interrupted:?}"
    );

    let mut second = rack.start(&["apply", "--yes"]).unwrap();
    second.until("a unit that starts", SOON, applying("30-containerd/unit")).unwrap();
    assert_eq!(rack.run(&["lab", "kill", "ml1"]).unwrap().code, 0);
    assert_eq!(rack.run(&["lab", "start", "ml1"]).unwrap().code, 0);
    let lost = |news: &Value| news.get("news").and_then(Value::as_str) == Some("lost");
    second.until("a lost connection", SOON, lost).unwrap();
    second.until("the big image on its way in", SOON, applying("30-containerd/image-python")).unwrap();
    let kill = "kill -9 $(systemctl show --property MainPID --value 'rackwright-apply-*')";
    rack.on("ml1", kill).unwrap();
    let ended = second.end().unwrap();
    assert_eq!(ended.code, 0, "the same apply went on over both: {}{}", ended.stdout, ended.stderr);

    let journal = journal(rack, "ml1");
    let starts = journal.iter().filter(|event| event.what == "started").count();
    assert_eq!(starts, 3, "once, after the power cut, after the kill: {journal:?}");
    let after = |what: &str, step: &str| {
        let at = journal.iter().position(|event| event.what == what && event.step == step).unwrap();
        journal.iter().skip(at + 1).find(|event| event.what == "started" || event.step == step).unwrap()
    };
    let cut_off = &after("applying", "30-containerd/image-python").what;
    assert_eq!(cut_off, "started", "the agent died in the middle of the step: {journal:?}");

    let (code, again) = rack.json(&["apply", "--yes", "--only", "control1,ml1,ml2"]).unwrap();
    assert_eq!((code, changes(&again)), (0, Some(0)), "laws 1 and 2: {again}");
    let (hurt, unhurt) = (tree(rack, "ml1"), tree(rack, "ml2"));
    assert!(unhurt.len() > 100, "{unhurt:?}");
    let differing: Vec<_> = hurt.symmetric_difference(&unhurt).collect();
    assert!(differing.is_empty(), "law 2, the same tree on ml1 and ml2: {differing:#?}");
}

/// Path, mode, owner and hash of everything that playbooks may write on a server, and of what they stage; the states
/// of our units; whatever is left over. Keys and certificates have no hash here, and what a server has as itself is
/// left out. What texts say of ml1 and ml2 is exchanged in those of ml1: what is the same for both is then the same
/// text, but for the order of lists that name both.
fn tree(rack: &StoryRack, server: &str) -> BTreeSet<String> {
    let pairs = [("ml1", "ml2"), ("10.79.2.13", "10.79.2.14"), ("10.42.2.0", "10.42.3.0")];
    let swap =
        |(one, other)| format!("s/\\b{one}\\b/%swap%/g; s/\\b{other}\\b/{one}/g; s/%swap%/{other}/g; ");
    let exchanged: String = if server == "ml1" { pairs.map(swap).concat() } else { String::new() };
    let script = format!(
        "cd / && find etc usr/local opt var/lib/rackwright/artifacts -type f \
           ! -path 'etc/ssh/*' ! -path etc/hosts ! -path etc/hostname ! -path etc/machine-id -printf '%p %m %u:%g ' \
           -exec sh -c 'case $1 in *.key | *.crt) echo;; etc/*) sed \"{exchanged}\" \"$1\" | sort | sha256sum;; \
                        *) sha256sum < \"$1\";; esac' sh {{}} ';' && \
         find etc usr/local opt var/lib/rackwright ! -type f ! -path '*/journal/*' -printf '%p %y %m %u:%g %l\\n' && \
         systemctl list-units --all --plain --no-legend 'rackwright*' 'kube*' containerd.service && \
         ctr -n k8s.io images ls -q && id rackwright && \
         find etc usr/local usr/sbin opt var/lib/rackwright '(' -name '*.rackwright-new' -o -name '*.part' \
           -o -name policy-rc.d -o -name '*.lock' ')' ! -name .pwd.lock ! -name apply.lock"
    );
    rack.on(server, &script).unwrap().lines().map(str::to_owned).collect()
}

const STATE: &str = "/var/lib/rackwright";
/// Takes all room that is left there.
const FILL: &str = "dd if=/dev/zero of=/var/lib/rackwright/filler bs=4k 2>/dev/null || true";
const APPLY: [&str; 4] = ["apply", "--yes", "--only", "results1"];
const FREE: &str = "help: results1: free space there (`df -h`) and run `rackwright apply` again";

fn a_full_disk_is_named_leaves_nothing_half_written_and_goes_on_when_there_is_room(rack: &StoryRack) {
    // A small disk of its own for what is staged, and one for some of what is installed.
    let disks = format!(
        "set -e; mkdir -p {STATE} /opt/cni/bin; mount -t tmpfs -o size=64m,mode=0755 state {STATE}; \
         mount -t tmpfs -o size=5m,mode=0755 cni /opt/cni/bin; {FILL}"
    );
    rack.on("results1", &disks).unwrap();
    let no_plan = rack.run(&APPLY).unwrap();
    assert_eq!(no_plan.code, 1, "{}", no_plan.stderr);
    for said in ["results1: the plan failed [disk-full]", "No space left on device", FREE] {
        assert!(no_plan.stderr.contains(said), "{said:?} is said:\n{}", no_plan.stderr);
    }
    let touched =
        rack.on("results1", &format!("ls -A /etc/rackwright {STATE}/plans 2>/dev/null; true")).unwrap();
    assert_eq!(touched.replace(&format!("{STATE}/plans:\n"), ""), "", "without its plan nothing is begun");

    a_journal_without_room_stops_the_plan_and_it_stays_the_first_to_be_finished(rack);

    rack.on("results1", &format!("rm {STATE}/filler")).unwrap();
    let no_room = rack.run(&APPLY).unwrap();
    assert_eq!(no_room.code, 1, "{}", no_room.stderr);
    let staged = "results1: 60-node/kubelet-binary failed [disk-full]";
    for said in [staged, "results1: 30-containerd/cni-", "No space left on device", FREE] {
        assert!(no_room.stderr.contains(said), "{said:?} is said:\n{}", no_room.stderr);
    }
    let (whole, here) = (binaries(rack, "ml2"), binaries(rack, "results1"));
    let half: Vec<_> = here.iter().filter(|(path, hash)| whole.get(*path) != Some(*hash)).collect();
    assert!(half.is_empty(), "what is there is whole: {half:?}");
    assert!(!here.is_empty() && here.len() < whole.len(), "some fitted, some did not: {here:?}");
    let left = format!(
        "cd {STATE}/artifacts && for f in $(ls -A); do echo \"$f  $f\"; done | sha256sum --check --quiet && \
         find /etc /usr/local /opt {STATE} -name '.*.rackwright-new' -o -name '.*.part'"
    );
    assert_eq!(rack.on("results1", &left).unwrap(), "", "no half file, under whatever name");

    let room = format!("mount -o remount,size=1g {STATE} && mount -o remount,size=64m /opt/cni/bin");
    rack.on("results1", &room).unwrap();
    let (code, mended) = rack.json(&APPLY).unwrap();
    assert!(code == 0 && changes(&mended) > Some(0), "with room it goes on: {mended}");
    let (code, again) = rack.json(&APPLY).unwrap();
    assert_eq!((code, changes(&again)), (0, Some(0)), "law 1: {again}");
    let here = binaries(rack, "results1");
    assert_eq!(here, whole, "the same as on a server that had room all the time");
}

/// Enough room for the plan, not for all that it does: nothing may be done that the journal does not say.
fn a_journal_without_room_stops_the_plan_and_it_stays_the_first_to_be_finished(rack: &StoryRack) {
    let journal = format!("{STATE}/journal");
    let small = format!(
        "rm {STATE}/filler && mkdir -p {journal} && mount -t tmpfs -o size=16k,mode=0700 journal {journal}"
    );
    rack.on("results1", &small).unwrap();
    let stopped = rack.run(&APPLY).unwrap();
    assert_eq!(stopped.code, 1, "{}", stopped.stderr);
    for said in ["results1: the plan failed [disk-full]", "write the journal", FREE] {
        assert!(stopped.stderr.contains(said), "{said:?} is said:\n{}", stopped.stderr);
    }
    rack.on("results1", FILL).unwrap();
    let again = rack.run(&APPLY).unwrap();
    assert_eq!(again.code, 1, "{}", again.stderr);
    for said in ["finishing its plan", "results1: the plan failed [disk-full]", FREE] {
        assert!(again.stderr.contains(said), "{said:?} is said:\n{}", again.stderr);
    }
    rack.on("results1", &format!("mount -o remount,size=1m {journal}")).unwrap();
}

/// Path to hash of every binary that was installed.
fn binaries(rack: &StoryRack, server: &str) -> BTreeMap<String, String> {
    let listing =
        rack.on(server, "find /usr/local/bin /usr/local/sbin /opt -type f -exec sha256sum {} +").unwrap();
    let pair = |line: &str| line.split_once("  ").map(|(hash, path)| (path.to_owned(), hash.to_owned()));
    listing.lines().filter_map(pair).collect()
}

fn an_unreachable_server_decides_the_exit_code_by_its_roles_rule(rack: &StoryRack) {
    const APPLY: [&str; 4] = ["apply", "--yes", "--only", "control1,ml1,ml2"];
    let strict = std::fs::read_to_string(rack.inventory()).unwrap();
    rack.on("ml1", "rm /etc/cni/net.d/10-rackwright.conflist").unwrap();
    assert_eq!(rack.run(&["lab", "cut", "ml2"]).unwrap().code, 0);
    let (code, report) = rack.json(&APPLY).unwrap();
    assert_eq!(code, 1, "all of a role without a rule are needed: {report}");
    let outcome =
        |server: &str| report.pointer(&format!("/outcomes/{server}/outcome")).and_then(Value::as_str);
    assert_eq!((outcome("ml1"), outcome("ml2")), (Some("done"), Some("absent")), "{report}");
    let reason = report.pointer("/outcomes/ml2/reason").and_then(Value::as_str).unwrap();
    assert!(reason.contains("10.79.2.14:22"), "{reason}");

    std::fs::write(rack.inventory(), format!("{strict}\n[cluster.success]\nml = 1\n")).unwrap();
    let (code, report) = rack.json(&APPLY).unwrap();
    assert_eq!(code, 3, "one of two is enough by the rule, and it is said: {report}");
    std::fs::write(rack.inventory(), strict).unwrap();
    assert_eq!(rack.run(&["lab", "heal", "ml2"]).unwrap().code, 0);
    let (code, healed) = rack.json(&APPLY).unwrap();
    assert_eq!((code, changes(&healed)), (0, Some(0)), "{healed}");
}

fn changes(report: &Value) -> Option<u64> {
    report.get("changes").and_then(Value::as_u64)
}

/// One line of a server's journal.
#[derive(Debug)]
struct Event {
    what: String,
    step: String,
}

/// The journal of the plan that a server accepted last.
fn journal(rack: &StoryRack, server: &str) -> Vec<Event> {
    let script = "cd /var/lib/rackwright && \
                  cat journal/$(grep -o '\"plan\":\"[0-9a-f]*' plans/accepted.json | cut -d'\"' -f4).jsonl";
    let lines = rack.on(server, script).unwrap();
    let event = |line: &str| {
        let whole: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| whole.pointer(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Event { what: text("/what/what"), step: text("/what/step") }
    };
    lines.lines().map(event).collect()
}
