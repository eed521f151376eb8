//! Every wire and disk format against its golden file: a changed byte is a changed format.
//!
//! Regenerate with `make golden`, then raise the format's version if an old reader would misread it.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use rackwright_wire::complaint::{COMPLAINT_VERSION, Complaint};
use rackwright_wire::event::{Answer, Ask, EVENT_VERSION, Event, Reply, What};
use rackwright_wire::facts::{Cpu, Disk, FACTS_VERSION, Facts, Gpu, Identity, Memory, Nic, Os};
use rackwright_wire::manifest::{
    Column, File, Held, HeldVersion, MANIFEST_VERSION, Manifest, Peer, SIGNED_VERSION, SignedManifest,
    Source, Wanted,
};
use rackwright_wire::plan::{CheckReport, CheckRequest, PLAN_VERSION, ServerPlan};
use rackwright_wire::report::{DiskReport, NodeReport, REPORT_VERSION};
use rackwright_wire::sealed::{SEALED_VERSION, SealedSet, SetKind, SetList};
use rackwright_wire::step::{CertificateStep, Difference, KeyAlgorithm, Step, StepKind, WaitState};
use rackwright_wire::volume::VolumeRequest;
use std::collections::BTreeMap;

#[path = "support/recorded.rs"]
mod recorded;
use recorded::golden;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Texts that go one a line.
fn golden_lines<T: Serialize + DeserializeOwned + PartialEq + Debug + Clone>(name: &str, values: &[T]) {
    recorded::same(name, &values.to_vec());
    for value in values {
        recorded::refused_when_newer(name, value);
    }
}

fn s(text: &str) -> String {
    text.to_owned()
}

fn facts() -> Facts {
    Facts {
        version: FACTS_VERSION,
        identity: Identity {
            machine_id: s("0123456789abcdef0123456789abcdef"),
            hostname: s("ml1"),
            host_key: s("SHA256:abc"),
        },
        os: Os {
            id: s("debian"),
            codename: s("bookworm"),
            kernel: s("6.1.0-1"),
            arch: s("x86_64"),
            cgroup_version: 2,
            systemd: true,
            container: false,
            modules: vec![s("br_netfilter"), s("overlay")],
            swap: false,
        },
        cpu: Cpu { logical: 64, allowed_milli: 64_000, model: s("EPYC"), numa_nodes: 2 },
        memory: Memory { total_bytes: 1 << 38, allowed_bytes: 1 << 38 },
        disks: vec![Disk {
            device: s("nvme0n1"),
            wwn: Some(s("eui.0025")),
            mount: Some(s("/data")),
            fs: Some(s("ext4")),
            size_bytes: 1 << 41,
        }],
        nics: vec![Nic { name: s("eno1"), addresses: vec![s("10.77.0.13/24")], mtu: 1500 }],
        gpus: vec![Gpu { pci: s("0000:17:00.0"), id: s("10de:2335") }],
        software: BTreeMap::from([(s("runc"), s("1.1.5"))]),
        read_at_s: 1_795_000_000,
    }
}

fn certificate() -> CertificateStep {
    CertificateStep {
        ca: s("etcd"),
        common_name: s("control1"),
        organization: String::new(),
        sans: vec![s("10.77.0.11"), s("localhost")],
        server: true,
        client: true,
        cert: s("/etc/kubernetes/pki/etcd/server.crt"),
        key: s("/etc/kubernetes/pki/etcd/server.key"),
        ca_cert: s("/etc/kubernetes/pki/etcd/ca.crt"),
        ca_sha256: s("ab"),
        owner: s("root:root"),
        life_hours: 8760,
        renew_hours: 2190,
    }
}

/// One step of every kind, so that a new kind cannot be added without a golden line.
fn steps() -> Vec<Step> {
    let file = StepKind::File {
        path: s("/etc/x"),
        content: Some(s("a\n")),
        mode: s("0600"),
        owner: s("root:root"),
        absent: false,
        secret: true,
    };
    let unit = StepKind::Unit {
        name: s("etcd.service"),
        content: Some(s("[Service]\n")),
        drop_in: None,
        enabled: true,
        active: true,
        restart_on: vec![s("/etc/x")],
        no_block: true,
    };
    let kinds = vec![
        StepKind::Package { names: vec![s("conntrack"), s("clickhouse-server=18.16.1+ds-7.3")] },
        file,
        StepKind::Directory { path: s("/etc/y"), mode: s("0755"), owner: s("root:root") },
        unit,
        StepKind::Sysctl {
            values: BTreeMap::from([(s("kernel.panic"), s("10"))]),
            file: s("/etc/sysctl.d/90.conf"),
        },
        StepKind::Module { names: vec![s("overlay")] },
        StepKind::Mount { source: s("UUID=1"), target: s("/data"), fs: s("ext4"), options: s("noatime") },
        StepKind::Artifact {
            name: s("etcd"),
            path: s("/usr/local/bin/etcd"),
            sha256: s("cd"),
            mode: s("0755"),
        },
        StepKind::Image { name: s("pause"), reference: s("docker.io/rackwright/pause:1"), sha256: s("ef") },
        StepKind::Certificate(certificate()),
        StepKind::KeyPair {
            key: s("/k"),
            public: s("/p"),
            algorithm: KeyAlgorithm::EcdsaP256,
            owner: s("root:root"),
        },
        StepKind::User { name: s("etcd"), home: s("/var/lib/etcd") },
        StepKind::Slice { name: s("system.slice"), memory_bytes: 1 << 30, cpu_weight: 100 },
        StepKind::Wait { state: WaitState::Cluster(s("etcd:quorum")), timeout_s: 60 },
        StepKind::Command { check: s("true"), apply: s("true"), undo: String::new() },
    ];
    kinds
        .into_iter()
        .enumerate()
        .map(|(n, kind)| Step { id: format!("10-x/{n}"), needs: vec![], kind })
        .collect()
}

fn difference() -> Difference {
    Difference { step: s("10-x/1"), summary: s("change /etc/x (1 line)"), detail: s("-a\n+b\n") }
}

fn manifest() -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        dataset: s("apt"),
        generation: 3,
        source: Source { kind: s("clickhouse"), name: s("default.apt"), fingerprint: s("f0") },
        files: vec![File { path: s("rows.bin"), bytes: 12, blake3: s("aa"), chunks: vec![s("aa")] }],
        columns: vec![Column { name: s("id"), clickhouse_type: s("UInt32"), dtype: s("<u4"), width: 4 }],
        rows: Some(3),
    }
}

#[test]
fn rack_formats_are_as_recorded() {
    golden("facts-v1", &facts());
    let plan = ServerPlan {
        version: PLAN_VERSION,
        id: s("id"),
        server: s("ml1"),
        machine_id: s("0123456789abcdef0123456789abcdef"),
        generation: 7,
        facts_digest: s("fd"),
        steps: steps(),
        differences: vec![difference()],
    };
    golden("plan-v1", &plan);
    golden(
        "check-request-v1",
        &CheckRequest { version: PLAN_VERSION, steps: vec![], artifacts: vec![s("cd")] },
    );
    let report = CheckReport {
        version: PLAN_VERSION,
        differences: vec![difference()],
        missing_artifacts: vec![s("cd")],
        generation: 6,
        unfinished: Some(s("id")),
    };
    golden("check-report-v1", &report);
}

#[test]
fn event_formats_are_as_recorded() {
    let whats = vec![
        What::Started { plan: s("id") },
        What::Applying {
            step: s("a"),
            summary: s("install runc"),
            before: Some(serde_json::json!("absent")),
        },
        What::Applied { step: s("a"), took_ms: 12 },
        What::Unchanged { step: s("a") },
        What::Asking { step: s("a"), ask: Ask::Certificate { ca: s("etcd"), csr: s("PEM") } },
        What::Asking { step: s("a"), ask: Ask::State { state: s("etcd:quorum") } },
        What::Failed { step: s("a"), code: s("disk-full"), error: s("e"), evidence: s("log") },
        What::Finished { changed: 1, failed: 1 },
    ];
    let lines = whats.into_iter().zip(1..);
    let events: Vec<_> = lines
        .map(|(what, seq)| Event { version: EVENT_VERSION, seq, at_ms: 1_795_000_000_000, what })
        .collect();
    golden_lines("events-v1", &events);
    let replies = [
        Reply::Certificate { cert: s("C"), ca: s("CA") },
        Reply::Reached,
        Reply::Refused { reason: s("r"), code: s("") },
        Reply::Refused { reason: s("r"), code: s("disk-full") },
    ];
    let answers: Vec<_> =
        replies.into_iter().map(|reply| Answer { version: EVENT_VERSION, step: s("a"), reply }).collect();
    golden_lines("answers-v1", &answers);
    let complaint = Complaint {
        version: COMPLAINT_VERSION,
        code: s("disk-full"),
        error: s("write /etc/x: no space left on device"),
        evidence: s("log"),
    };
    golden("complaint-v1", &complaint);
}

#[test]
fn data_formats_are_as_recorded() {
    golden("manifest-v1", &manifest());
    let peer = Peer { server: s("data1"), address: s("10.77.0.12:7446") };
    let signed = SignedManifest { version: SIGNED_VERSION, manifest: s("{}"), signature: s("c2ln") };
    golden("signed-manifest-v1", &signed);
    let datasets = BTreeMap::from([(s("apt"), vec![signed])]);
    golden("wanted-v1", &Wanted { version: MANIFEST_VERSION, generation: 9, datasets, peers: vec![peer] });
    let version = HeldVersion {
        digest: s("dd"),
        generation: 3,
        complete: false,
        bytes: 4,
        total_bytes: 12,
        fetched: BTreeMap::from([(s("data1"), 4)]),
        pins: vec![s("uid")],
        blocked: Some(s("disk full")),
    };
    let held = Held {
        version: MANIFEST_VERSION,
        server: s("ml1"),
        generation: 9,
        datasets: BTreeMap::from([(s("apt"), vec![version])]),
        scrub_found: 1,
        scrub_repaired: 1,
    };
    golden("held-v1", &held);
    let set = SealedSet {
        version: SEALED_VERSION,
        kind: SetKind::Checkpoint,
        team: s("vision"),
        project: s("apt-size"),
        job: s("j1"),
        task: 0,
        attempt: 1,
        step: 40,
        node: s("ml1"),
        files: manifest().files,
        refused: None,
        left_out: 2,
    };
    golden("sealed-v1", &set);
    golden(
        "sets-v1",
        &SetList { version: SEALED_VERSION, outcomes: [(set.id(), s("20 rows"))].into(), sets: vec![set] },
    );
}

#[test]
fn node_formats_are_as_recorded() {
    let disk = DiskReport {
        mount: s("/data"),
        device: s("nvme0n1"),
        free_bytes: 1,
        size_bytes: 2,
        latency_ms: Some(0.5),
    };
    let report = NodeReport {
        version: REPORT_VERSION,
        server: s("ml1"),
        at_s: 1_795_000_000,
        load_1m: 0.5,
        memory_used_bytes: 1,
        memory_allowed_bytes: 2,
        steal_percent: 0.0,
        disks: vec![disk],
    };
    golden("report-v1", &report);
    let work = VolumeRequest::Work {
        team: s("vision"),
        project: s("apt-size"),
        job: s("j1"),
        task: s("0"),
        attempt: s("2"),
        resume: s("checkpoint-j1-0-1-40"),
    };
    let dataset = VolumeRequest::Dataset { dataset: s("apt"), version: s("dd") };
    for (name, request) in [("volume-work-v1", work), ("volume-dataset-v1", dataset)] {
        let attributes = request.to_attributes();
        recorded::same(name, &attributes);
        assert_eq!(VolumeRequest::from_attributes(&attributes).unwrap(), request);
    }
}

#[test]
fn volume_attributes_survive_the_kubelets_additions() {
    let asked = VolumeRequest::Dataset { dataset: s("apt"), version: s("dd") };
    let mut attributes = asked.to_attributes();
    attributes.insert(s("csi.storage.k8s.io/pod.name"), s("p"));
    assert_eq!(VolumeRequest::from_attributes(&attributes).unwrap(), asked);
    let newer = attributes.clone().into_iter().chain([(s("format"), s("2")), (s("new"), s("1"))]);
    let error = VolumeRequest::from_attributes(&newer.collect::<BTreeMap<_, _>>()).unwrap_err().to_string();
    assert_eq!(error, "attributes have version \"2\", this build reads 1");
    attributes.insert(s("path"), s("/etc"));
    assert!(VolumeRequest::from_attributes(&attributes).is_err());
}

#[test]
fn equal_bytes_are_one_version_whatever_the_generation() {
    let later = Manifest { generation: 4, ..manifest() };
    assert_eq!(later.digest(), manifest().digest());
    let mut other = manifest();
    other.files.first_mut().unwrap().blake3 = s("bb");
    assert_ne!(other.digest(), manifest().digest());
}
