//! The chain: who sends what to whom, and what a dead predecessor costs.

use crate::rig::{Rig, content, describe, manifest, store_object, wanted};
use rackwright_data::partial::Partial;
use rackwright_data::store::Store;
use rackwright_wire::manifest::CHUNK_BYTES;
use std::collections::BTreeMap;
use std::fs;

#[tokio::test]
async fn every_byte_leaves_the_source_once_and_flows_through_the_chain() {
    let rig = Rig::new();
    let (big, small) = (content(1, 3), content(2, 0));
    let data_dir = rig.config("data1").data_dir;
    let files = vec![store_object(&data_dir, "a/big", &big), store_object(&data_dir, "small", &small)];
    let version = manifest("indexes", 1, files);
    let (data1, ml1, ml2) = (rig.start("data1"), rig.start("ml1"), rig.start("ml2"));
    let controller = rig.controller(&[&data1, &ml1, &ml2]);
    let signed = [rig.sign(&version)];
    for agent in [&data1, &ml1, &ml2] {
        controller.trust(agent).await;
    }
    // The second node is told first: it waits for its predecessor instead of going to the source.
    controller.want(&ml2, &wanted(1, &signed, "indexes", &[ml1.peer(), data1.peer()])).await.unwrap();
    controller.want(&ml1, &wanted(1, &signed, "indexes", &[data1.peer()])).await.unwrap();
    controller.want(&data1, &wanted(1, &signed, "indexes", &[ml1.peer()])).await.unwrap();

    let first = controller.complete(&ml1, &version).await;
    let second = controller.complete(&ml2, &version).await;
    let source = controller.complete(&data1, &version).await;
    assert_eq!(first.fetched, BTreeMap::from([("data1".to_owned(), version.bytes())]));
    assert_eq!(second.fetched, BTreeMap::from([("ml1".to_owned(), version.bytes())]));
    assert!(source.fetched.is_empty());
    let folder = ml2.version(&version);
    assert_eq!(fs::read(folder.join("a/big")).unwrap(), big);
    assert_eq!(fs::read(folder.join("small")).unwrap(), small);
    assert_eq!(fs::read_to_string(folder.join("manifest.json")).unwrap(), signed[0].manifest);
    let current = ml2.data_dir.join("versions/indexes/current");
    assert_eq!(fs::read_link(current).unwrap().to_str(), Some(version.digest().as_str()));
}

#[tokio::test]
async fn a_predecessor_that_dies_midway_costs_no_byte_twice() {
    let rig = Rig::new();
    let bytes = content(3, 4);
    let file = store_object(&rig.config("data1").data_dir, "big", &bytes);
    let version = manifest("big", 1, vec![file.clone()]);
    // The first node got two chunks before its own source went away.
    give_chunks(&rig, "ml1", &file, &bytes, &[0, 1]);
    let (data1, ml1, ml2) = (rig.start("data1"), rig.start("ml1"), rig.start("ml2"));
    let controller = rig.controller(&[&data1, &ml1, &ml2]);
    let signed = [rig.sign(&version)];
    for agent in [&ml1, &ml2] {
        controller.trust(agent).await;
    }
    controller.want(&ml1, &wanted(1, &signed, "big", &[])).await.unwrap();
    controller.until(&ml1, &version, |held| held.bytes == 2 * CHUNK_BYTES).await;
    controller.want(&ml2, &wanted(1, &signed, "big", &[ml1.peer()])).await.unwrap();
    controller.until(&ml2, &version, |held| held.bytes == 2 * CHUNK_BYTES).await;
    assert!(!ml2.version(&version).exists(), "visible before every byte hashed");
    ml1.kill();
    controller.want(&ml2, &wanted(2, &signed, "big", &[data1.peer()])).await.unwrap();

    let held = controller.complete(&ml2, &version).await;
    let expected =
        [("data1".to_owned(), version.bytes() - 2 * CHUNK_BYTES), ("ml1".to_owned(), 2 * CHUNK_BYTES)];
    assert_eq!(held.fetched, BTreeMap::from(expected));
    assert_eq!(fs::read(ml2.version(&version).join("big")).unwrap(), bytes);
}

#[tokio::test]
async fn a_predecessor_that_stands_still_is_passed_by() {
    let rig = Rig::new();
    let bytes = content(4, 2);
    let file = store_object(&rig.config("data1").data_dir, "big", &bytes);
    let version = manifest("big", 1, vec![file.clone()]);
    give_chunks(&rig, "ml1", &file, &bytes, &[0]);
    let (data1, ml1, ml2) = (rig.start("data1"), rig.start("ml1"), rig.start("ml2"));
    let controller = rig.controller(&[&data1, &ml1, &ml2]);
    let signed = [rig.sign(&version)];
    for agent in [&ml1, &ml2] {
        controller.trust(agent).await;
    }
    controller.want(&ml1, &wanted(1, &signed, "big", &[])).await.unwrap();
    controller.until(&ml1, &version, |held| held.bytes == CHUNK_BYTES).await;
    controller.want(&ml2, &wanted(1, &signed, "big", &[ml1.peer(), data1.peer()])).await.unwrap();
    let held = controller.complete(&ml2, &version).await;
    assert_eq!(held.fetched.values().sum::<u64>(), version.bytes(), "{:?}", held.fetched);
}

#[tokio::test]
async fn a_node_killed_midway_resumes_with_what_it_verified() {
    let rig = Rig::new();
    let bytes = content(5, 3);
    let file = store_object(&rig.config("data1").data_dir, "big", &bytes);
    let version = manifest("big", 1, vec![file.clone()]);
    give_chunks(&rig, "ml1", &file, &bytes, &[0, 2]);
    let (data1, ml1) = (rig.start("data1"), rig.start("ml1"));
    let controller = rig.controller(&[&data1, &ml1]);
    let signed = [rig.sign(&version)];
    controller.trust(&ml1).await;
    controller.want(&ml1, &wanted(1, &signed, "big", &[])).await.unwrap();
    let blocked = controller.until(&ml1, &version, |held| held.blocked.is_some()).await;
    assert!(blocked.blocked.unwrap().contains("0 peers"));
    ml1.kill();

    // What it wanted, whom it trusts and what it had is all on its disk.
    let ml1 = rig.start("ml1");
    let controller = rig.controller(&[&data1, &ml1]);
    let held = controller.held(&ml1).await;
    assert_eq!(held.generation, 1);
    controller.want(&ml1, &wanted(2, &signed, "big", &[data1.peer()])).await.unwrap();
    let held = controller.complete(&ml1, &version).await;
    assert_eq!(held.fetched["data1"], version.bytes() - 2 * CHUNK_BYTES);
    assert_eq!(fs::read(ml1.version(&version).join("big")).unwrap(), bytes);
}

#[tokio::test]
async fn a_new_version_fetches_only_the_files_that_changed() {
    let rig = Rig::new();
    let data_dir = rig.config("data1").data_dir;
    let same = store_object(&data_dir, "same", &content(6, 1));
    let (old, new) = (store_object(&data_dir, "part", b"old"), store_object(&data_dir, "part", b"new"));
    let first = manifest("indexes", 1, vec![old, same.clone()]);
    let second = manifest("indexes", 2, vec![new, same]);
    let (data1, ml1) = (rig.start("data1"), rig.start("ml1"));
    let controller = rig.controller(&[&data1, &ml1]);
    controller.trust(&ml1).await;
    let peers = [data1.peer()];
    controller.want(&ml1, &wanted(1, &[rig.sign(&first)], "indexes", &peers)).await.unwrap();
    controller.complete(&ml1, &first).await;
    controller.want(&ml1, &wanted(2, &[rig.sign(&second)], "indexes", &peers)).await.unwrap();
    let held = controller.complete(&ml1, &second).await;
    assert_eq!(held.fetched["data1"], 3);
    assert_eq!(fs::read(ml1.version(&second).join("part")).unwrap(), b"new");
    // The old version stays until room is needed: pods may still read it.
    assert_eq!(fs::read(ml1.version(&first).join("part")).unwrap(), b"old");
}

#[tokio::test]
async fn equal_files_are_fetched_once_and_halves_of_what_nobody_wants_any_more_go() {
    let rig = Rig::new();
    let data_dir = rig.config("data1").data_dir;
    let same = store_object(&data_dir, "same", &content(6, 1));
    let twin = rackwright_wire::manifest::File { path: "twin".to_owned(), ..same.clone() };
    let unwanted = describe("unwanted", &content(40, 2));
    give_chunks(&rig, "ml1", &unwanted, &content(40, 2), &[0]);
    let halves = || fs::read_dir(rig.config("ml1").data_dir.join("partial")).unwrap().count();
    assert_eq!(halves(), 2, "bytes and journal");
    let version = manifest("indexes", 1, vec![same, twin]);
    let (data1, ml1) = (rig.start("data1"), rig.start("ml1"));
    let controller = rig.controller(&[&data1, &ml1]);
    controller.trust(&ml1).await;
    controller.want(&ml1, &wanted(1, &[rig.sign(&version)], "indexes", &[data1.peer()])).await.unwrap();
    let held = controller.complete(&ml1, &version).await;
    assert_eq!(held.fetched["data1"], version.bytes() / 2);
    assert_eq!(fs::read(ml1.version(&version).join("twin")).unwrap(), content(6, 1));
    assert_eq!(halves(), 0);
}

/// Puts verified chunks into a store that is not running, as a killed fetch leaves them.
fn give_chunks(rig: &Rig, name: &str, file: &rackwright_wire::manifest::File, bytes: &[u8], chunks: &[u64]) {
    let store = Store::open(rig.config(name).data_dir, Some(0)).unwrap();
    let partial = Partial::open(store.layout(), file).unwrap();
    for index in chunks {
        let start = usize::try_from(index * CHUNK_BYTES).unwrap();
        let end = start + usize::try_from(partial.chunk_len(*index)).unwrap();
        partial.write(*index, 0, &bytes[start..end]).unwrap();
        partial.mark(*index, "gone").unwrap();
    }
    assert_eq!(describe("big", bytes).blake3, file.blake3);
}
