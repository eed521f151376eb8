//! Job images, made here: a static busybox, or a minimal Debian with packages.

use crate::error::{Doing as _, SourceError};
use crate::layer::{self, Layer};
use crate::lock::{DebianLayer, Image};
use crate::oci;
use crate::resolved::{Resolved, Source};
use crate::tool::{self, Watch};
use std::path::{Path, PathBuf};
use tokio::process::Command;

const HELP: &str = "install the Debian package mmdebstrap";

/// Makes an image's OCI archive at `file`. `folder` is for files in the making.
pub(crate) async fn make(
    image: &Image,
    busybox: Option<&Resolved>,
    folder: &Path,
    file: &Path,
    watch: Watch<'_>,
) -> Result<Source, SourceError> {
    std::fs::create_dir_all(folder).source_doing("make the folder", folder)?;
    let layer_file = folder.join("layer.tar");
    let layer = match (busybox, &image.debian) {
        (Some(busybox), _) => busybox_layer(busybox, layer_file.clone(), watch).await?,
        (None, Some(debian)) => debian_layer(debian, folder, layer_file.clone(), watch).await?,
        (None, None) => {
            let member = "a layer".to_owned();
            return Err(SourceError::NoMember {
                member,
                container: format!("the lock entry of {}", image.reference),
            });
        }
    };
    let source = Source::Image { layer_sha256: layer.sha256.clone(), contents: layer.contents.clone() };
    let (image, archive) = (image.clone(), file.to_owned());
    blocking(move || oci::write(&image, &layer, &layer_file, &archive)).await?;
    Ok(source)
}

async fn busybox_layer(busybox: &Resolved, layer: PathBuf, watch: Watch<'_>) -> Result<Layer, SourceError> {
    let mut list = Command::new(&busybox.path);
    // The file is called by its hash, and busybox goes by its name.
    list.arg0("busybox").arg("--list");
    let applets = tool::run(list, "fetch the artifact busybox-static again", watch).await?;
    let binary = busybox.path.clone();
    let mut layer = blocking(move || layer::busybox(&binary, &applets, &layer)).await?;
    layer.contents = vec![format!("{} {} sha256:{}", busybox.name, busybox.version, busybox.sha256)];
    Ok(layer)
}

async fn debian_layer(
    debian: &DebianLayer,
    folder: &Path,
    layer: PathBuf,
    watch: Watch<'_>,
) -> Result<Layer, SourceError> {
    let tarball = folder.join("debian.tar");
    let mut command = Command::new("mmdebstrap");
    command.env("SOURCE_DATE_EPOCH", debian.source_date_epoch.to_string());
    command.arg("--variant=minbase").arg(format!("--include={}", debian.packages.join(",")));
    command.arg("--aptopt=Acquire::Languages \"none\"").arg(&debian.suite).arg(&tarball);
    tool::run(command, HELP, watch).await?;
    blocking(move || layer::debian(&tarball, &layer)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(SourceError::Cancelled))
}
