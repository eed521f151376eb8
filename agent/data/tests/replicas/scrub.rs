//! The scrub: one flipped byte, everything that shares it.

use crate::faults::damage;
use crate::rig::{Agent, Controller, Rig, content, manifest, store_object, wanted};
use rackwright_wire::manifest::{CHUNK_BYTES, Manifest, SignedManifest};
use std::collections::BTreeMap;
use std::fs;

/// data1, ml1 that has these versions of `indexes` from it, their controller, and the signed versions.
async fn replicated(rig: &Rig, versions: &[&Manifest]) -> (Agent, Agent, Controller, Vec<SignedManifest>) {
    let (data1, ml1) = (rig.start("data1"), rig.start("ml1"));
    let controller = rig.controller(&[&data1, &ml1]);
    controller.trust(&ml1).await;
    let signed: Vec<_> = versions.iter().map(|version| rig.sign(version)).collect();
    controller.want(&ml1, &wanted(1, &signed, "indexes", &[data1.peer()])).await.unwrap();
    for version in versions {
        controller.complete(&ml1, version).await;
    }
    (data1, ml1, controller, signed)
}

#[tokio::test]
async fn one_flipped_byte_is_repaired_in_every_version_that_shares_it() {
    let rig = Rig::new();
    let data_dir = rig.config("data1").data_dir;
    let bytes = content(12, 2);
    let shared = store_object(&data_dir, "shared", &bytes);
    let mut renamed = shared.clone();
    renamed.path = "again/shared".to_owned();
    let first = manifest("indexes", 1, vec![shared.clone()]);
    let second = manifest("indexes", 2, vec![renamed, store_object(&data_dir, "more", b"more")]);
    let (_data1, ml1, controller, _) = replicated(&rig, &[&first, &second]).await;
    assert_eq!(controller.scrub(&ml1).await.found(), 0);
    let pins = ml1.data_dir.join("pins/indexes").join(first.digest());
    fs::create_dir_all(&pins).unwrap();
    fs::write(pins.join("pod-7"), "").unwrap();

    let at = usize::try_from(CHUNK_BYTES).unwrap() + 12345;
    damage(&ml1.object(&shared), |rotten| rotten[at] ^= 0x40);
    assert_ne!(fs::read(ml1.version(&first).join("shared")).unwrap(), bytes, "hard links share the damage");
    let report = controller.scrub(&ml1).await;
    assert_eq!((report.found(), report.repaired()), (1, 1), "{report:?}");
    let damaged = &report.damaged[0];
    assert_eq!(
        (damaged.chunks.as_slice(), damaged.holders.as_slice()),
        (&[1][..], &["pod-7".to_owned()][..])
    );
    assert_eq!(damaged.shared_by.len(), 2);
    assert_eq!(damaged.fetched, BTreeMap::from([("data1".to_owned(), CHUNK_BYTES)]), "one chunk is enough");
    for path in
        [ml1.version(&first).join("shared"), ml1.version(&second).join("again/shared"), ml1.object(&shared)]
    {
        assert_eq!(fs::read(&path).unwrap(), bytes, "{}", path.display());
    }
    assert_eq!(fs::read_dir(ml1.data_dir.join("quarantine")).unwrap().count(), 1);
    assert!(controller.complete(&ml1, &first).await.complete);
    let held = controller.held(&ml1).await;
    assert_eq!((held.scrub_found, held.scrub_repaired), (1, 1));
    assert_eq!(controller.scrub(&ml1).await.found(), 0);
}

#[tokio::test]
async fn damage_that_no_peer_can_repair_takes_the_version_out_until_one_can() {
    let rig = Rig::new();
    let bytes = content(13, 0);
    let file = store_object(&rig.config("data1").data_dir, "only", &bytes);
    let version = manifest("indexes", 1, vec![file.clone()]);
    let (data1, ml1, controller, signed) = replicated(&rig, &[&version]).await;
    controller.want(&ml1, &wanted(2, &signed, "indexes", &[])).await.unwrap();
    damage(&ml1.object(&file), |rotten| rotten.truncate(3));
    let report = controller.scrub(&ml1).await;
    assert_eq!((report.found(), report.repaired()), (1, 0));
    let held = controller.until(&ml1, &version, |held| held.blocked.is_some()).await;
    assert!(!held.complete);
    controller.want(&ml1, &wanted(3, &signed, "indexes", &[data1.peer()])).await.unwrap();
    controller.complete(&ml1, &version).await;
    assert_eq!(fs::read(ml1.version(&version).join("only")).unwrap(), bytes);
}

#[tokio::test]
async fn what_is_missing_or_is_no_manifest_is_found_and_put_back() {
    let rig = Rig::new();
    let data_dir = rig.config("data1").data_dir;
    let bytes = content(14, 1);
    let one = store_object(&data_dir, "one", &bytes);
    let two = store_object(&data_dir, "deep/two", b"two");
    let version = manifest("indexes", 1, vec![one.clone(), two.clone()]);
    let (data1, ml1, controller, signed) = replicated(&rig, &[&version]).await;
    let folder = ml1.version(&version);
    let text = fs::read(folder.join("manifest.json")).unwrap();

    let garble = || fs::write(folder.join("manifest.json"), "garbage").unwrap();
    let unlink = || fs::remove_file(folder.join("one")).unwrap();
    let remove = || fs::remove_dir_all(&folder).unwrap();
    let lose = || {
        fs::remove_file(ml1.object(&two)).unwrap();
        fs::remove_dir_all(folder.join("deep")).unwrap();
    };
    let wrecks: [(&str, &dyn Fn()); 4] = [
        ("the manifest that pods read", &garble),
        ("a link", &unlink),
        ("a whole version", &remove),
        ("an object with all its links", &lose),
    ];
    for (what, wreck) in wrecks {
        wreck();
        let held = controller.held(&ml1).await;
        assert!(held.datasets["indexes"].iter().all(|version| !version.complete), "{what} is complete");
        let report = controller.scrub(&ml1).await;
        assert_eq!((report.found(), report.repaired()), (1, 1), "{what}: {report:?}");
        assert_eq!(fs::read(folder.join("one")).unwrap(), bytes, "{what}");
        assert_eq!(fs::read(folder.join("deep/two")).unwrap(), b"two", "{what}");
        assert_eq!(fs::read(folder.join("manifest.json")).unwrap(), text, "{what}");
        assert!(controller.complete(&ml1, &version).await.complete, "{what}");
        assert_eq!(controller.scrub(&ml1).await.found(), 0, "{what}");
    }

    // Without a scrub too: the next push has the node look again.
    remove();
    controller.want(&ml1, &wanted(1, &signed, "indexes", &[data1.peer()])).await.unwrap();
    controller.complete(&ml1, &version).await;
}
