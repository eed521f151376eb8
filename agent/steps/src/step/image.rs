//! `image`: an image of the lockfile is in containerd's `k8s.io` namespace.
//!
//! The archive's SHA-256 is kept as a label on the image at import, so that one listing says for all
//! images at once whether they are what the lockfile names.

use super::Found;
use crate::error::{Code, StepError};
use crate::exec;
use crate::host::Host;
use crate::receive;
use std::collections::BTreeMap;
use std::time::Duration;

/// Label that names the archive an image was imported from.
pub const ARCHIVE_LABEL: &str = "rackwright.dev/archive";
const LIST_LIMIT: Duration = Duration::from_secs(15);
/// 300 MB unpacked on a slow disk.
const IMPORT_LIMIT: Duration = Duration::from_mins(10);

pub(super) fn check(host: &Host, reference: &str, sha256: &str) -> Result<Option<Found>, StepError> {
    let images = host.images(|| Ok(list()))?;
    let found = match images.get(reference) {
        None => Some(Found::new(format!("import {reference}"))),
        Some(labels) if !is_from(labels, sha256) => Some(Found::new(format!("replace {reference}"))),
        Some(_) => None,
    };
    Ok(found.map(|found| found.with_detail(format!("archive sha256 {sha256}"))))
}

pub(super) fn apply(host: &Host, reference: &str, sha256: &str) -> Result<(), StepError> {
    let Some(archive) = receive::staged(host, sha256)
        .map_err(|error| StepError::io("look for", &host.state("artifacts"), error))?
    else {
        return Err(StepError::new(
            Code::ArtifactRefused,
            format!("find {sha256} among the staged artifacts"),
        ));
    };
    let label = format!("{ARCHIVE_LABEL}={sha256}");
    let archive = archive.to_string_lossy();
    // The first label makes the kubelet see the image through the CRI.
    let args = [
        "-n",
        "k8s.io",
        "images",
        "import",
        "--label",
        "io.cri-containerd.image=managed",
        "--label",
        &label,
        &archive,
    ];
    let _one_at_a_time = host.imports();
    let done = exec::run("ctr", &args, IMPORT_LIMIT)
        .map_err(|error| StepError::new(Code::ImageFailed, format!("import {reference}")).because(error))?;
    host.forget_images();
    if done.success() {
        return Ok(());
    }
    let output = done.output();
    let code = if output.contains("no space left on device") { Code::DiskFull } else { Code::ImageFailed };
    Err(StepError::new(code, format!("import {reference}")).with_evidence(&output))
}

/// References and labels of all images; none while containerd is not there yet.
fn list() -> BTreeMap<String, String> {
    match exec::run("ctr", &["-n", "k8s.io", "images", "ls"], LIST_LIMIT) {
        Ok(done) if done.success() => parse(&done.stdout),
        Ok(_) | Err(_) => BTreeMap::new(),
    }
}

/// Lines of `REF TYPE DIGEST SIZE PLATFORMS LABELS`; sizes have a blank inside, labels have none.
fn parse(listing: &str) -> BTreeMap<String, String> {
    listing
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            Some((fields.next()?.to_owned(), fields.next_back()?.to_owned()))
        })
        .collect()
}

fn is_from(labels: &str, sha256: &str) -> bool {
    labels.split(',').filter_map(|label| label.split_once('=')).any(|pair| pair == (ARCHIVE_LABEL, sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_names_each_archive() {
        let sha256 = "ab".repeat(32);
        let listing = format!(
            "REF TYPE DIGEST SIZE PLATFORMS LABELS\n\
             docker.io/rackwright/pause:1 application/vnd.oci.image.manifest.v1+json sha256:12 1.9 MiB linux/amd64 \
             io.cri-containerd.image=managed,{ARCHIVE_LABEL}={sha256} \n\
             docker.io/other:1 application/x sha256:34 1.9 MiB linux/amd64 - \n"
        );
        let images = parse(&listing);
        assert!(is_from(&images["docker.io/rackwright/pause:1"], &sha256));
        assert!(!is_from(&images["docker.io/rackwright/pause:1"], "cd"));
        assert!(!is_from(&images["docker.io/other:1"], &sha256));
    }
}
