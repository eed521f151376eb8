//! Files of Debian packages; apt checks the signatures.

use crate::error::{Doing as _, SourceError};
use crate::hash;
use crate::lock::DebianFile;
use crate::progress::Event;
use crate::resolved::Source;
use crate::tool::{self, Watch};
use std::path::{Path, PathBuf};
use tokio::process::Command;

const HELP: &str = "artifacts from Debian packages need apt and dpkg";

/// Downloads a package into `folder` and takes one file of it.
pub(crate) async fn unpack(
    wanted: &DebianFile,
    folder: &Path,
    file: &Path,
    watch: Watch<'_>,
) -> Result<Source, SourceError> {
    std::fs::create_dir_all(folder).source_doing("make the folder", folder)?;
    if let Err(error) = download(&wanted.package, folder, watch).await {
        if !rustix::process::geteuid().is_root() {
            return Err(error);
        }
        // A fresh machine has no package lists yet, and old lists name packages that are gone.
        let text = "refreshing apt's package lists";
        watch.progress.event(&Event::Detail { name: watch.name, text });
        let mut update = Command::new("apt-get");
        update.args(["-q", "update"]);
        tool::run(update, HELP, watch).await?;
        download(&wanted.package, folder, watch).await?;
    }
    let deb = downloaded(folder, &wanted.package)?;
    let (sha256, _) = hash::hex_of_file(&deb).source_doing("read", &deb)?;
    let mut field = Command::new("dpkg-deb");
    field.arg("--field").arg(&deb).arg("Version");
    let version = tool::run(field, HELP, watch).await?.trim().to_owned();
    let root = folder.join("root");
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract").arg(&deb).arg(&root);
    tool::run(extract, HELP, watch).await?;
    let member = root.join(&wanted.member);
    if !member.is_file() {
        return Err(SourceError::NoMember {
            member: wanted.member.clone(),
            container: format!("{} {version}", wanted.package),
        });
    }
    std::fs::rename(&member, file).source_doing("take", member)?;
    Ok(Source::Debian { package: wanted.package.clone(), version, sha256 })
}

async fn download(package: &str, folder: &Path, watch: Watch<'_>) -> Result<(), SourceError> {
    let mut command = Command::new("apt-get");
    // Without a sandbox user: `_apt` could not write below a private cache folder, and warns about it.
    command.current_dir(folder).args(["-q", "-o", "APT::Sandbox::User=root", "download", package]);
    tool::run(command, HELP, watch).await.map(|_| ())
}

fn downloaded(folder: &Path, package: &str) -> Result<PathBuf, SourceError> {
    let entries = std::fs::read_dir(folder).source_doing("read the folder", folder)?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "deb")).ok_or_else(|| {
        SourceError::NoMember {
            member: format!("{package}_*.deb"),
            container: "what apt-get downloaded".to_owned(),
        }
    })
}
