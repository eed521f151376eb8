//! Sealed sets over the wire: objects first, the manifest last and once.

use crate::rig::{Rig, answer, describe};
use rackwright_wire::sealed::{SEALED_VERSION, SealedSet, SetKind};

fn checkpoint(step: u64, content: &[u8]) -> SealedSet {
    SealedSet {
        version: SEALED_VERSION,
        kind: SetKind::Checkpoint,
        team: "vision".to_owned(),
        project: "default".to_owned(),
        job: "j0000000001".to_owned(),
        task: 0,
        attempt: 1,
        step,
        node: "ml1".to_owned(),
        files: vec![describe("model.npy", content)],
        refused: None,
        left_out: 0,
    }
}

#[tokio::test]
async fn a_set_exists_only_after_its_objects_and_only_once() {
    let rig = Rig::new();
    let data1 = rig.start("data1");
    let client = rig.client("ml1", &[&data1]);
    let set = checkpoint(20, b"weights");
    let set_url = data1.url(&format!("/v1/sets/{}", set.id()));
    let object_url = data1.url(&format!("/v1/objects/{}", set.files[0].blake3));
    assert!(answer(client.put(&set_url).json(&set)).await.unwrap_err().starts_with("424"));
    assert!(answer(client.put(&object_url).body("other")).await.unwrap_err().starts_with("422"));
    assert!(answer(client.get(&object_url)).await.unwrap_err().starts_with("404"));
    answer(client.put(&object_url).body("weights")).await.unwrap();
    answer(client.put(&object_url).body("weights")).await.unwrap();
    assert_eq!(answer(client.get(&object_url)).await.unwrap(), "weights");
    answer(client.put(&set_url).json(&set)).await.unwrap();
    answer(client.put(&set_url).json(&set)).await.unwrap();
    let mut other = set.clone();
    other.node = "ml2".to_owned();
    assert!(answer(client.put(&set_url).json(&other)).await.unwrap_err().starts_with("409"));

    let got: SealedSet = serde_json::from_str(&answer(client.get(&set_url)).await.unwrap()).unwrap();
    assert_eq!(got, set);
    let list = answer(client.get(data1.url("/v1/sets?prefix=checkpoint-j0000000001-0-"))).await.unwrap();
    assert!(list.starts_with("{\"version\":1,\"sets\":[{") && list.contains("\"step\":20"), "{list}");
    assert_eq!(
        answer(client.get(data1.url("/v1/sets?prefix=checkpoint-j2-"))).await.unwrap(),
        "{\"version\":1,\"sets\":[],\"outcomes\":{}}"
    );
}
