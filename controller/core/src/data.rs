//! Decides about datasets: whether a source must be exported, what a new version is, who fetches from
//! whom, what each server should hold, what its node's labels say, and how fast it could possibly be.
//!
//! Pure: facts, exports and held states come in, decisions go out. Who acts on them is `serve`.

use rackwright_wire::manifest::{
    CHUNK_BYTES, Held, MANIFEST_VERSION, Manifest, Peer, SignedManifest, Wanted,
};
use rackwright_wire::source::{Exported, SourceFacts, SourceSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Prefix of node labels and annotations that name dataset versions.
pub const LABEL_PREFIX: &str = "data.rackwright.dev/";
/// Digits of a digest that a label holds; the annotation has all of them.
const LABEL_DIGITS: usize = 32;

/// A dataset as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Name: a DNS label.
    pub name: String,
    /// What it is made from.
    pub spec: SourceSpec,
    /// Servers of this role hold it.
    pub role: String,
    /// A version is published when so many of them have it.
    pub min_nodes: u32,
    /// So many of them hold it; all of them when not given.
    pub target_nodes: Option<u32>,
}

impl Dataset {
    /// Servers that hold it, in the inventory's order, without the source, which holds everything. Where not all of
    /// the role are to, each dataset ranks them by a hash of both names: datasets spread over the servers, and one
    /// server more or less moves few replicas.
    pub fn holders<'p>(&self, places: &'p [Place], source: &Place) -> Vec<&'p Place> {
        let of_role = |place: &&Place| place.role == self.role && place.server != source.server;
        let mut ranked: Vec<&Place> = places.iter().filter(of_role).collect();
        if let Some(target) = self.target_nodes {
            let rank = |place: &&Place| {
                let names = format!("{}\n{}", self.name, place.server);
                *blake3::hash(names.as_bytes()).as_bytes()
            };
            ranked.sort_by_key(rank);
            ranked.truncate(usize::try_from(target).unwrap_or(usize::MAX));
        }
        places.iter().filter(|place| ranked.iter().any(|held| held.server == place.server)).collect()
    }
}

/// A server on the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Inventory name.
    pub server: String,
    /// `address:port` of its data port.
    pub address: String,
    /// Rack name.
    pub rack: String,
    /// Role.
    pub role: String,
}

impl Place {
    fn peer(&self) -> Peer {
        Peer { server: self.server.clone(), address: self.address.clone() }
    }
}

/// Whether a source is to be exported, and why or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "decision")]
pub enum Decision {
    /// The published version is of this very state.
    Unchanged {
        /// Its generation.
        generation: u64,
    },
    /// It has to be exported.
    Export {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged { generation } => write!(f, "unchanged since generation {generation}"),
            Self::Export { why } => write!(f, "export: {why}"),
        }
    }
}

/// Equal fingerprints need no export; anything else does. Never one export per node.
pub fn decide(published: Option<&Manifest>, facts: &SourceFacts) -> Decision {
    let why = match published {
        None => "nothing is published yet".to_owned(),
        Some(manifest) if manifest.source == facts.source => {
            return Decision::Unchanged { generation: manifest.generation };
        }
        Some(manifest) if manifest.source.name != facts.source.name => {
            format!("the source was {} and is {}", manifest.source.name, facts.source.name)
        }
        Some(manifest) => match (manifest.rows, facts.rows) {
            (Some(before), Some(now)) if before != now => {
                format!("the table had {before} rows and has {now}")
            }
            _ => "the source changed".to_owned(),
        },
    };
    Decision::Export { why }
}

/// The manifest that follows the published one. Also when the bytes came out equal (parts were merged,
/// an object was written again): the new generation remembers the new fingerprint, and since the digest
/// is the same, no node fetches anything.
pub fn next_manifest(published: Option<&Manifest>, exported: Exported) -> Manifest {
    let mut files = exported.files;
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Manifest {
        version: MANIFEST_VERSION,
        dataset: exported.dataset,
        generation: published.map_or(0, |manifest| manifest.generation) + 1,
        source: exported.source,
        files,
        columns: exported.columns,
        rows: exported.rows,
    }
}

/// The order in which servers receive: racks are visited one after the other, the source's first, so
/// every uplink carries the bytes once (anchors: a random swarm over R racks pushes (1-1/R) of all
/// bytes through the core). Within a rack the inventory's order stands.
pub fn chain<'p>(source: &Place, holders: &[&'p Place]) -> Vec<&'p Place> {
    let mut racks: Vec<&str> = vec![&source.rack];
    for place in holders {
        if !racks.contains(&place.rack.as_str()) {
            racks.push(&place.rack);
        }
    }
    let of_rack = |rack: &str| -> Vec<&'p Place> {
        holders.iter().copied().filter(|place| place.rack == rack && place.server != source.server).collect()
    };
    racks.into_iter().flat_map(of_rack).collect()
}

/// Whom the server at `place` of a chain asks, best first: its predecessor, those before that one, the
/// source, and last those behind it, which have what it needs only when it repairs itself.
pub fn peers(source: &Place, chain: &[&Place], place: usize) -> Vec<Peer> {
    let (before, behind) = chain.split_at(place.min(chain.len()));
    let before = before.iter().rev().map(|place| place.peer());
    before.chain([source.peer()]).chain(behind.iter().skip(1).map(|place| place.peer())).collect()
}

/// What every server should hold, by server. The source holds everything, so that it can serve and
/// repair it; its peers are the whole chain.
pub fn wanted(
    generation: u64,
    datasets: &[Dataset],
    published: &BTreeMap<String, Vec<SignedManifest>>,
    places: &[Place],
    source: &Place,
) -> BTreeMap<String, Wanted> {
    let held: Vec<(&Dataset, Vec<&Place>)> =
        datasets.iter().map(|dataset| (dataset, dataset.holders(places, source))).collect();
    let is_held_by = |place: &Place, holders: &[&Place]| {
        place.server == source.server || holders.iter().any(|holder| holder.server == place.server)
    };
    let holders: Vec<&Place> =
        places.iter().filter(|place| held.iter().any(|(_, holders)| is_held_by(place, holders))).collect();
    let chain = chain(source, &holders);
    let mut all = BTreeMap::new();
    // Who held something before must hear that it does not any more.
    let told = places.iter().filter(|place| {
        place.server == source.server || datasets.iter().any(|dataset| dataset.role == place.role)
    });
    for place in told {
        let of_place = held.iter().filter(|(_, holders)| is_held_by(place, holders)).map(|(of, _)| of);
        let manifests = of_place.filter_map(|dataset| {
            let signed = published.get(&dataset.name).filter(|signed| !signed.is_empty())?;
            Some((dataset.name.clone(), signed.clone()))
        });
        let peers = match chain.iter().position(|link| link.server == place.server) {
            Some(position) => peers(source, &chain, position),
            None => chain.iter().map(|link| link.peer()).collect(),
        };
        let wanted = Wanted { version: MANIFEST_VERSION, generation, datasets: manifests.collect(), peers };
        all.insert(place.server.clone(), wanted);
    }
    all
}

/// What a node's labels and annotations must say about the datasets, by label key: `None` means absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeMarks {
    /// Newest complete version: the first 32 digits of its digest.
    pub labels: BTreeMap<String, Option<String>>,
    /// All complete versions, newest first: `<digest>@<generation>`, separated by commas.
    pub annotations: BTreeMap<String, Option<String>>,
}

impl NodeMarks {
    /// Only what differs from what the node has.
    #[must_use]
    pub fn differing(
        &self,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) -> Self {
        let differ = |wanted: &BTreeMap<String, Option<String>>, has: &BTreeMap<String, String>| {
            let differing = wanted.iter().filter(|(key, value)| has.get(*key) != value.as_ref());
            differing.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        Self { labels: differ(&self.labels, labels), annotations: differ(&self.annotations, annotations) }
    }

    /// Nothing to say.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// The marks that follow from what a server holds. A version counts only when it is complete: every
/// byte hashed, and no scrub has found damage that is not repaired.
pub fn marks(datasets: &[Dataset], held: &Held) -> NodeMarks {
    let mut marks = NodeMarks::default();
    for dataset in datasets {
        let mut complete: Vec<_> = held.datasets.get(&dataset.name).into_iter().flatten().collect();
        complete.retain(|version| version.complete);
        complete.sort_by_key(|version| std::cmp::Reverse(version.generation));
        let key = format!("{LABEL_PREFIX}{}", dataset.name);
        let label = complete.first().map(|version| version.digest.chars().take(LABEL_DIGITS).collect());
        let all: Vec<_> =
            complete.iter().map(|version| format!("{}@{}", version.digest, version.generation)).collect();
        marks.labels.insert(key.clone(), label);
        marks.annotations.insert(key, (!all.is_empty()).then(|| all.join(",")));
    }
    marks
}

/// The least time in which `bytes` can reach every node, and what a chain can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Bytes of the version.
    pub bytes: u64,
    /// Nodes that receive it.
    pub nodes: u64,
    /// Upload rate of the source and of every node, bits a second.
    pub uplink_bits_per_s: u64,
    /// Nobody can be faster, milliseconds.
    pub least_ms: u64,
    /// A chain that loses nothing, milliseconds: every hop adds one chunk.
    pub chain_ms: u64,
}

impl Bound {
    /// The fluid bound of Kumar and Ross (`HotWeb` 2006) with equal rates `u`: the larger of `F/u` (the
    /// source's uplink) and `N*F/((N+1)*u)` (all uplinks together), which is always the former; and
    /// for a pipelined chain `F/u + (N-1)*c/u`.
    pub fn new(bytes: u64, nodes: u64, uplink_bits_per_s: u64) -> Option<Self> {
        if bytes == 0 || nodes == 0 || uplink_bits_per_s == 0 {
            return None;
        }
        let ms =
            |bytes: u128| u64::try_from(bytes * 8000 / u128::from(uplink_bits_per_s)).unwrap_or(u64::MAX);
        let behind = u128::from(nodes - 1) * u128::from(bytes.min(CHUNK_BYTES));
        let least_ms = ms(u128::from(bytes));
        Some(Self { bytes, nodes, uplink_bits_per_s, least_ms, chain_ms: ms(u128::from(bytes) + behind) })
    }

    /// Bound / achieved in percent: 100 is the best that anybody could do.
    pub fn reached_percent(&self, took: Duration) -> u64 {
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        self.least_ms.saturating_mul(100) / took
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes to {} nodes at {} Mbit/s: at least {}.{:03} s (the source's uplink), as a chain {}.{:03} s",
            self.bytes,
            self.nodes,
            self.uplink_bits_per_s / 1_000_000,
            self.least_ms / 1000,
            self.least_ms % 1000,
            self.chain_ms / 1000,
            self.chain_ms % 1000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rackwright_wire::manifest::{HeldVersion, Source};
    use rackwright_wire::source::SOURCE_VERSION;

    fn place(server: &str, rack: &str, role: &str) -> Place {
        Place { server: server.into(), address: format!("{server}:1"), rack: rack.into(), role: role.into() }
    }

    fn facts(fingerprint: &str, rows: u64) -> SourceFacts {
        SourceFacts {
            version: SOURCE_VERSION,
            dataset: "packages".into(),
            source: Source {
                kind: "clickhouse".into(),
                name: "apt.packages".into(),
                fingerprint: fingerprint.into(),
            },
            rows: Some(rows),
            bytes: rows * 8,
            parts: 1,
            software: "ClickHouse 18.16.1".into(),
            left_out: Vec::new(),
        }
    }

    fn exported(fingerprint: &str) -> Exported {
        Exported {
            version: SOURCE_VERSION,
            dataset: "packages".into(),
            source: facts(fingerprint, 5).source,
            files: Vec::new(),
            columns: Vec::new(),
            rows: Some(5),
            read_bytes: 40,
            left_out: Vec::new(),
        }
    }

    fn names(peers: &[Peer]) -> Vec<&str> {
        peers.iter().map(|peer| peer.server.as_str()).collect()
    }

    #[test]
    fn an_equal_fingerprint_is_never_exported_again() {
        assert!(matches!(decide(None, &facts("a", 5)), Decision::Export { .. }));
        let first = next_manifest(None, exported("a"));
        assert_eq!(decide(Some(&first), &facts("a", 5)), Decision::Unchanged { generation: 1 });
        let changed = decide(Some(&first), &facts("b", 7));
        assert_eq!(changed.to_string(), "export: the table had 5 rows and has 7");
        let second = next_manifest(Some(&first), exported("b"));
        assert_eq!((second.generation, second.digest()), (2, first.digest()), "equal bytes are one version");
    }

    #[test]
    fn racks_are_visited_one_after_the_other_and_every_node_can_fall_back_to_the_source() {
        let places = [
            place("data1", "r2", "data"),
            place("ml1", "r1", "ml"),
            place("ml2", "r2", "ml"),
            place("ml3", "r1", "ml"),
            place("ml4", "r2", "ml"),
        ];
        let dataset = Dataset {
            name: "p".into(),
            spec: SourceSpec::S3 { bucket: "b".into(), prefix: String::new() },
            role: "ml".into(),
            min_nodes: 1,
            target_nodes: None,
        };
        let signed = SignedManifest { version: 1, manifest: "{}".into(), signature: String::new() };
        let published = BTreeMap::from([("p".to_owned(), vec![signed])]);
        let all = wanted(7, &[dataset], &published, &places, &places[0]);
        assert_eq!(names(&all["ml2"].peers), ["data1", "ml4", "ml1", "ml3"]);
        assert_eq!(names(&all["ml4"].peers), ["ml2", "data1", "ml1", "ml3"]);
        assert_eq!(names(&all["ml1"].peers), ["ml4", "ml2", "data1", "ml3"]);
        assert_eq!(names(&all["ml3"].peers), ["ml1", "ml4", "ml2", "data1"]);
        assert_eq!(names(&all["data1"].peers), ["ml2", "ml4", "ml1", "ml3"]);
        assert!(all.values().all(|wanted| wanted.generation == 7 && wanted.datasets.len() == 1));
    }

    #[test]
    fn servers_hold_only_the_datasets_of_their_role() {
        let spec = SourceSpec::S3 { bucket: "b".into(), prefix: String::new() };
        let datasets = [
            Dataset {
                name: "a".into(),
                spec: spec.clone(),
                role: "ml".into(),
                min_nodes: 1,
                target_nodes: None,
            },
            Dataset { name: "b".into(), spec, role: "dev".into(), min_nodes: 1, target_nodes: None },
        ];
        let places =
            [place("data1", "r", "data"), place("ml1", "r", "ml"), place("results1", "r", "results")];
        let signed = SignedManifest { version: 1, manifest: "{}".into(), signature: String::new() };
        let published =
            BTreeMap::from([("a".to_owned(), vec![signed.clone()]), ("b".to_owned(), vec![signed])]);
        let all = wanted(1, &datasets, &published, &places, &places[0]);
        assert_eq!(all["data1"].datasets.len(), 2);
        assert_eq!(all["ml1"].datasets.keys().collect::<Vec<_>>(), ["a"]);
        assert!(!all.contains_key("results1"));
    }

    #[test]
    fn so_many_servers_hold_a_dataset_as_it_wants_and_the_others_hear_that_they_do_not() {
        let spec = SourceSpec::S3 { bucket: "b".into(), prefix: String::new() };
        let dataset = |name: &str, target_nodes| Dataset {
            name: name.into(),
            spec: spec.clone(),
            role: "ml".into(),
            min_nodes: 1,
            target_nodes,
        };
        let mut places = vec![place("data1", "r", "data")];
        places.extend((1..=8).map(|number| place(&format!("ml{number}"), "r", "ml")));
        let source = places[0].clone();
        let of = |name: &str, places: &[Place]| {
            let holders = dataset(name, Some(3)).holders(places, &source);
            holders.iter().map(|place| place.server.clone()).collect::<Vec<_>>()
        };
        let names: Vec<String> = (0..20).map(|number| format!("d{number}")).collect();
        let all: std::collections::BTreeSet<String> =
            names.iter().flat_map(|name| of(name, &places)).collect();
        assert!(names.iter().all(|name| of(name, &places).len() == 3) && all.len() == 8, "{all:?}");
        let moved = |name: &&String| of(name, &places[..8]) != of(name, &places);
        assert!(names.iter().filter(moved).all(|name| of(name, &places).contains(&"ml8".to_owned())));
        let signed = SignedManifest { version: 1, manifest: "{}".into(), signature: String::new() };
        let published = BTreeMap::from([("d0".to_owned(), vec![signed])]);
        let wanted = wanted(1, &[dataset("d0", Some(3))], &published, &places, &source);
        let holding = wanted.values().filter(|wanted| !wanted.datasets.is_empty()).count();
        assert_eq!((wanted.len(), holding), (9, 4), "the source and three; the others hold nothing");
    }

    #[test]
    fn only_complete_versions_are_marked_and_a_lost_one_is_unmarked() {
        let version = |digit: &str, generation, complete| HeldVersion {
            digest: digit.repeat(64),
            generation,
            complete,
            bytes: 0,
            total_bytes: 0,
            fetched: BTreeMap::new(),
            pins: Vec::new(),
            blocked: None,
        };
        let spec = SourceSpec::S3 { bucket: "b".into(), prefix: String::new() };
        let datasets =
            [Dataset { name: "p".into(), spec, role: "ml".into(), min_nodes: 1, target_nodes: None }];
        let mut held = Held {
            version: MANIFEST_VERSION,
            server: "ml1".into(),
            generation: 1,
            datasets: BTreeMap::from([(
                "p".to_owned(),
                vec![version("a", 1, true), version("b", 2, true), version("c", 3, false)],
            )]),
            scrub_found: 0,
            scrub_repaired: 0,
        };
        let marked = marks(&datasets, &held);
        let key = "data.rackwright.dev/p".to_owned();
        assert_eq!(marked.labels[&key], Some("b".repeat(32)));
        assert_eq!(marked.annotations[&key], Some(format!("{}@2,{}@1", "b".repeat(64), "a".repeat(64))));
        held.datasets.clear();
        let gone = marks(&datasets, &held);
        let has = BTreeMap::from([(key.clone(), "b".repeat(32))]);
        assert_eq!(gone.differing(&has, &BTreeMap::new()).labels, BTreeMap::from([(key, None)]));
        assert!(gone.differing(&BTreeMap::new(), &BTreeMap::new()).is_empty());
    }

    #[test]
    fn the_bound_is_the_sources_uplink_once() {
        let bound = Bound::new(1_000_000_000, 2, 200_000_000).unwrap();
        assert_eq!((bound.least_ms, bound.chain_ms), (40_000, 40_671));
        assert_eq!(bound.reached_percent(Duration::from_secs(50)), 80);
        assert!(Bound::new(1, 0, 1).is_none());
    }

    proptest! {
        /// Everybody asks everybody else exactly once and never itself, and each rack is one stretch of
        /// the chain.
        #[test]
        fn every_chain_is_complete_and_contiguous(racks in proptest::collection::vec(0u8..4, 1..12), at in 0usize..12) {
            let places: Vec<Place> = racks
                .iter()
                .enumerate()
                .map(|(n, rack)| place(&format!("s{n}"), &format!("r{rack}"), "ml"))
                .collect();
            let source = &places[at % places.len()];
            let holders: Vec<&Place> = places.iter().collect();
            let order = chain(source, &holders);
            prop_assert_eq!(order.len(), places.len() - 1);
            let mut stretches: Vec<&str> = order.iter().map(|place| place.rack.as_str()).collect();
            stretches.dedup();
            let distinct: std::collections::BTreeSet<_> = stretches.iter().collect();
            prop_assert_eq!(distinct.len(), stretches.len());
            for (position, place) in order.iter().enumerate() {
                let asked = peers(source, &order, position);
                let mut asked_names: Vec<_> = asked.iter().map(|peer| peer.server.clone()).collect();
                prop_assert!(!asked_names.contains(&place.server));
                let first = if position == 0 { &source.server } else { &order[position - 1].server };
                prop_assert_eq!(&asked_names[0], first);
                asked_names.sort_unstable();
                asked_names.dedup();
                prop_assert_eq!(asked_names.len(), places.len() - 1);
            }
        }
    }
}
