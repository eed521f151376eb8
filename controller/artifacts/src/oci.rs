//! OCI image archives: a tar with layout, index, manifest, config and one layer, made without any registry.
//!
//! Format: OCI image-spec 1.0 (image-layout, manifest, config). The reference stands in the annotation that
//! containerd's importer reads.

use crate::error::{Doing as _, SourceError};
use crate::hash;
use crate::layer::{Layer, header};
use crate::lock::Image;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use tar::{Builder, EntryType};

/// Writes the archive of an image with one uncompressed layer.
pub(crate) fn write(
    image: &Image,
    layer: &Layer,
    layer_file: &Path,
    archive: &Path,
) -> Result<(), SourceError> {
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config(image),
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.sha256)] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &hash::hex_of(config.as_bytes()), config.len() as u64),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer.sha256, layer.size_bytes)],
    })
    .to_string();
    let manifest_sha256 = hash::hex_of(manifest.as_bytes());
    let mut top =
        descriptor("application/vnd.oci.image.manifest.v1+json", &manifest_sha256, manifest.len() as u64);
    if let Some(top) = top.as_object_mut() {
        let tag = image.reference.rsplit(':').next().unwrap_or("latest");
        let names =
            json!({ "io.containerd.image.name": image.reference, "org.opencontainers.image.ref.name": tag });
        top.insert("annotations".to_owned(), names);
        top.insert("platform".to_owned(), json!({ "architecture": "amd64", "os": "linux" }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [top] });
    let blob = |sha256: &str| format!("blobs/sha256/{sha256}");
    let small = [
        ("oci-layout".to_owned(), r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()),
        ("index.json".to_owned(), index.to_string()),
        (blob(&manifest_sha256), manifest),
        (blob(&hash::hex_of(config.as_bytes())), config),
    ];
    let written = || -> io::Result<()> {
        let mut tar = Builder::new(BufWriter::with_capacity(1 << 20, File::create(archive)?));
        for (name, text) in &small {
            tar.append_data(
                &mut header(EntryType::Regular, 0o644, text.len() as u64),
                name,
                text.as_bytes(),
            )?;
        }
        let mut header = header(EntryType::Regular, 0o644, layer.size_bytes);
        tar.append_data(&mut header, blob(&layer.sha256), File::open(layer_file)?)?;
        tar.into_inner()?.flush()
    };
    written().source_doing("write", archive)
}

fn config(image: &Image) -> Value {
    let mut config = json!({ "Env": image.env, "User": image.user, "WorkingDir": "/" });
    if let Some(config) = config.as_object_mut() {
        for (key, words) in [("Entrypoint", &image.entrypoint), ("Cmd", &image.cmd)] {
            if !words.is_empty() {
                config.insert(key.to_owned(), json!(words));
            }
        }
    }
    config
}

fn descriptor(media_type: &str, sha256: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{sha256}"), "size": size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read as _;

    #[test]
    fn every_blob_has_the_digest_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let layer_file = dir.path().join("layer.tar");
        std::fs::write(&layer_file, b"layer").unwrap();
        let layer = Layer { sha256: hash::hex_of(b"layer"), size_bytes: 5, contents: Vec::new() };
        let image = Image {
            reference: "docker.io/rackwright/x:1".to_owned(),
            entrypoint: vec!["/bin/sh".to_owned()],
            cmd: Vec::new(),
            env: vec!["A=b".to_owned()],
            user: "65534:65534".to_owned(),
            busybox: None,
            debian: None,
        };
        let archive = dir.path().join("image.tar");
        write(&image, &layer, &layer_file, &archive).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut body = Vec::new();
            entry.read_to_end(&mut body).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), body);
        }
        for (name, body) in &files {
            if let Some(sha256) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(hash::hex_of(body), sha256);
            }
        }
        let small = files.iter().filter(|(_, body)| body.starts_with(b"{"));
        let text = small.map(|(name, body)| format!("{name}\n{}\n", String::from_utf8_lossy(body)));
        insta::assert_snapshot!(text.collect::<String>());
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let manifest: Value = serde_json::from_slice(&files[&manifest]).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let config: Value = serde_json::from_slice(&files[&config]).unwrap();
        assert_eq!(config["config"]["User"], "65534:65534");
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "docker.io/rackwright/x:1"
        );
    }
}
