//! Bare servers become a cluster; what is there is left alone; what drifted is named.

use crate::{data, repository, story_rack};
use rackwright_tests::rack::StoryRack;
use rackwright_tests::shell;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

fn differences(plan: &Value) -> Vec<String> {
    let servers = plan.pointer("/plan/servers").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut named = Vec::new();
    for server in &servers {
        let name = server.get("server").and_then(Value::as_str).unwrap();
        for found in server.get("differences").and_then(Value::as_array).unwrap() {
            named.push(format!("{name} {}", found.get("step").and_then(Value::as_str).unwrap()));
        }
    }
    named
}

#[test]
fn bare_servers_become_a_cluster_that_a_second_apply_leaves_alone_and_drift_names_what_was_touched() {
    let Some(rack) = story_rack("story", "10.79.0") else { return };
    a_killed_lab_up_leaves_nothing_that_the_next_one_minds(&rack);
    let up = rack.run(&["lab", "up"]).unwrap();
    assert_eq!(up.code, 0, "{}", up.stderr);

    let (code, applied) = rack.json(&["apply", "--yes"]).unwrap();
    assert_eq!(code, 0, "{applied}");
    assert!(applied.get("ready_s").is_some_and(Value::is_number), "five nodes Ready: {applied}");

    let (code, again) = rack.json(&["apply", "--yes"]).unwrap();
    assert_eq!((code, again.get("changes").and_then(Value::as_u64)), (0, Some(0)), "law 1: {again}");

    data::master_data_reaches_jobs_and_their_results_outlive_the_nodes(&rack);

    let touch = "echo '# by hand' >> /etc/containerd/config.toml; systemctl stop rackwright-proxy; \
                 mkdir /etc/systemd/system/kubelet.service.d; \
                 printf '[Service]\\nNice=5\\n' > /etc/systemd/system/kubelet.service.d/by-hand.conf";
    assert_eq!(rack.run(&["lab", "ssh", "ml2", "--", touch]).unwrap().code, 0);
    let (_, drift) = rack.json(&["drift"]).unwrap();
    let named = differences(&drift);
    let touched = ["ml2 10-agent/proxy", "ml2 30-containerd/config", "ml2 60-node/kubelet"];
    assert_eq!(named, touched, "exactly what was touched");

    // Law 4: a dead server is a state; the others finish, and the exit code says so.
    assert_eq!(rack.run(&["lab", "kill", "ml1"]).unwrap().code, 0);
    let partial = rack.run(&["apply", "--yes", "--wait-s", "5"]).unwrap();
    assert_ne!(partial.code, 0, "an absent server is said: {}", partial.stderr);
    assert!(partial.stderr.contains("ml1") || partial.stdout.contains("ml1"), "{}", partial.stderr);
    let (_, left) = rack.json(&["drift"]).unwrap();
    assert!(differences(&left).is_empty(), "ml2 was mended although ml1 is dead: {left}");

    let down = rack.run(&["lab", "down"]).unwrap();
    assert_eq!(down.code, 0, "{}", down.stderr);
    assert_eq!(left_on_this_machine(), "", "nothing of the lab is left");
}

fn a_killed_lab_up_leaves_nothing_that_the_next_one_minds(rack: &StoryRack) {
    let bridge = Path::new("/sys/class/net/rw-story");
    let mut first = rack.start(&["lab", "up"]).unwrap();
    let begun = Instant::now();
    while !bridge.exists() {
        assert!(begun.elapsed() < Duration::from_mins(5), "the bridge is made");
        std::thread::sleep(Duration::from_millis(20));
    }
    first.kill();
    assert!(left_on_this_machine().contains("rw-story"), "it was killed midway");
}

/// Links, tables, mounts, loop devices, control groups and processes that carry the lab's name.
fn left_on_this_machine() -> String {
    let look = "ls /sys/class/net | grep story; nft list tables | grep story; grep story /proc/self/mounts; \
                losetup --list --noheadings --output BACK-FILE | grep story; \
                find /sys/fs/cgroup -maxdepth 3 -type d -name '*story*'; \
                ps -eo args | grep -e '--machine=story' -e 'vb-story' | grep -v grep; true";
    shell::capture("sh", &["-c", look]).unwrap().trim().to_owned()
}

#[test]
fn a_bad_inventory_is_refused_with_every_finding_and_nothing_is_touched() {
    let rack = StoryRack::prepare(&repository(), "bad", "10.79.1").unwrap();
    let path = rack.inventory();
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace("10.79.1.14", "10.79.1.13").replace("memory = \"4GiB\"", "memory = \"4 gigs\"");
    std::fs::write(path, text.replace("switch = \"s1\"", "swich = \"s1\"")).unwrap();
    let refused = rack.run(&["check"]).unwrap();
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    for word in ["swich", "10.79.1.13", "4 gigs", "inventory.toml:"] {
        assert!(refused.stderr.contains(word), "{word} is not in:\n{}", refused.stderr);
    }
}
