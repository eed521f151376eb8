//! Data from real masters to jobs and back: replicated, damaged, repaired, read, loaded, billed.

use rackwright_tests::field::{number, text};
use rackwright_tests::http::wait_until;
use rackwright_tests::rack::StoryRack;
use rackwright_tests::shell::{Outcome, ShellError};
use rackwright_tests::site::Site;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LONG: Duration = Duration::from_mins(2);
/// Every task says what it sees of both datasets.
const TASK: &str = "sum() { md5sum $1 | cut -d ' ' -f 1; }
    echo \"{\\\"rows\\\": \\\"$(sum /data/packages/rows.bin)\\\", \\\"note\\\": \\\"$(sum /data/indexes/note)\\\"}\" \
        > /work/results/sums.jsonl";

/// On a rack that is up. Leaves it as it was, but for the data.
pub(crate) fn master_data_reaches_jobs_and_their_results_outlive_the_nodes(rack: &StoryRack) {
    let since_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().to_string();
    let site = rack.site().unwrap();
    site.open_kubernetes().unwrap();
    site.make_operator().unwrap();
    site.make_token("vision", "submitter").unwrap();
    site.open_data(&rack.secrets()).unwrap();
    let [rows, note] = fill_the_masters(&site);

    let sync = ["data", "sync", "packages", "indexes"];
    succeeds(&rack.client(&site, "operator", &sync).unwrap());
    damage_is_found_and_repaired(rack, &site);

    let id = submit(&site);
    for server in ["ml1", "ml2"] {
        succeeds(&rack.run(&["lab", "cut", server]).unwrap());
    }
    let results = site.clickhouse("results1");
    let seen =
        format!("SELECT task, row FROM results.rows WHERE job = '{id}' ORDER BY task FORMAT JSONCompact");
    let loaded = wait_until("every result is loaded", LONG, || {
        let answer: Value =
            serde_json::from_str(&results.run(&seen, b"").unwrap_or_default()).unwrap_or_default();
        Ok::<_, ShellError>((answer["rows"] == 2).then_some(answer))
    });
    let row = |task: u32| json!([task, json!({"rows": rows, "note": note})]);
    let said = loaded.unwrap()["data"].as_array().unwrap().iter().map(parsed).collect::<Vec<_>>();
    assert_eq!(said, [row(0), row(1)], "each task saw what the masters have, each row is loaded once");
    for server in ["ml1", "ml2"] {
        succeeds(&rack.run(&["lab", "heal", server]).unwrap());
    }
    the_bill_sums_to_the_invoice(rack, &site, &since_ms);
}

/// A table and an object; returns the sums of what nodes must see of them.
fn fill_the_masters(site: &Site) -> [String; 2] {
    let data = site.clickhouse("data1");
    data.run("CREATE DATABASE apt", b"").unwrap();
    let table = "CREATE TABLE apt.packages (size UInt64, depends UInt32) ENGINE = MergeTree ORDER BY size";
    data.run(table, b"").unwrap();
    let rows: String = (0..5_000).map(|row| format!("{row}\t{}\n", row * 7 % 31)).collect();
    data.run("INSERT INTO apt.packages FORMAT TabSeparated", rows.as_bytes()).unwrap();
    let native: Vec<u8> = (0..5_000_u64)
        .flat_map(|row| {
            [&row.to_le_bytes()[..], &u32::try_from(row * 7 % 31).unwrap().to_le_bytes()].concat()
        })
        .collect();
    site.put_s3("apt-indexes", None).unwrap();
    let note = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(note.path(), "what the bucket has\n").unwrap();
    site.put_s3("apt-indexes/note", Some(note.path())).unwrap();
    [native, b"what the bucket has\n".to_vec()].map(|bytes| md5(&bytes))
}

fn md5(bytes: &[u8]) -> String {
    let said = rackwright_tests::shell::capture_with("md5sum", &[], bytes).unwrap();
    said.split_whitespace().next().unwrap().to_owned()
}

/// One byte of a node's disk changes behind everybody's back; that server's scrub mends it from a peer.
fn damage_is_found_and_repaired(rack: &StoryRack, site: &Site) {
    let flip = "f=/data/rackwright/versions/packages/current/rows.bin; printf '\\377' | dd of=$f bs=1 seek=4321 conv=notrunc";
    rack.on("ml2", flip).unwrap();
    succeeds(&rack.client(site, "operator", &["data", "scrub", "ml2"]).unwrap());
    let held = site.api("operator").get("/v1/data").unwrap()["nodes"]["ml2"]["held"].clone();
    assert_eq!((number(&held, "scrub_found"), number(&held, "scrub_repaired")), (1, 1), "{held:#}");
}

/// Two tasks that leave what they saw; waits until both have ended well.
fn submit(site: &Site) -> String {
    let job = json!({
        "name": "sums", "project": "stories", "image": "docker.io/rackwright/busybox:1",
        "command": ["/bin/sh", "-c", TASK], "datasets": [{"name": "packages"}, {"name": "indexes"}],
        "resources": {"cpu": "900m", "memory": "32MiB"}, "array": {"count": 2}, "results": true,
    });
    let api = site.api("vision");
    let id = text(&api.expect("POST", "/v1/jobs", Some(&job), &[]).unwrap(), "id");
    let ended = wait_until("the tasks have ended and left their results", LONG, || {
        let job = api.get(&format!("/v1/jobs/{id}"))?;
        let kept = api.get(&format!("/v1/jobs/{id}/results"))?["sets"].as_array().map_or(0, Vec::len);
        Ok::<_, ShellError>((job["job"]["phase"] == "finished" && kept == 2).then_some(job))
    });
    let ended = ended.unwrap();
    assert_eq!(ended["job"]["outcome"], "succeeded", "{ended:#}");
    let nodes: Vec<_> = ended["attempts"].as_array().unwrap().iter().map(|one| text(one, "node")).collect();
    assert!(nodes.contains(&"ml1".to_owned()) && nodes.contains(&"ml2".to_owned()), "{nodes:?}");
    id
}

/// A row comes back as the text that the task wrote.
fn parsed(row: &Value) -> Value {
    let content: Value = serde_json::from_str(row[1].as_str().unwrap()).unwrap();
    json!([row[0], content])
}

fn the_bill_sums_to_the_invoice(rack: &StoryRack, site: &Site, since_ms: &str) {
    let inventory = rack.inventory().to_string_lossy();
    let args = ["cost", "bill", "--inventory", &inventory, "--from", since_ms, "--json"];
    let outcome = rack.client(site, "operator", &args).unwrap();
    succeeds(&outcome);
    let bill: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(text(&bill, "invoice"), text(&bill, "sum"), "law 14: {bill:#}");
    let ours = bill["rows"].as_array().unwrap().iter().any(|row| text(row, "project") == "stories");
    assert!(ours, "the job has its line: {bill:#}");
}

fn succeeds(outcome: &Outcome) {
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
}
