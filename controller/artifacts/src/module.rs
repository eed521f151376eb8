//! Builds from published Go modules.
//!
//! Every dependency is checked with the committed `go.sum`. The environment is fixed (no cgo, one CPU level, no
//! flags of the user's), so that with `-trimpath` the bytes depend on sources, toolchain and linker flags only;
//! where the lock pins them for the toolchain at hand, other bytes are refused.

use crate::error::{Doing as _, SourceError};
use crate::hash;
use crate::lock::{Module, ModuleSet};
use crate::progress::Event;
use crate::resolved::Source;
use crate::tool::{self, Watch};
use std::path::Path;
use tokio::process::Command;

const HELP: &str = "install Go from https://go.dev/dl, at least the version that artifacts.lock names";

/// What decides a build beside the module.
pub(crate) struct Build<'a> {
    pub(crate) module: &'a Module,
    pub(crate) set: &'a ModuleSet,
    /// The folder of the lockfile.
    pub(crate) root: &'a Path,
    /// The toolchain that the lock pins.
    pub(crate) toolchain: &'a str,
    /// Where to build; kept between runs.
    pub(crate) work: &'a Path,
}

/// Builds a main package into `file`.
pub(crate) async fn build(build: &Build<'_>, file: &Path, watch: Watch<'_>) -> Result<Source, SourceError> {
    copy_set(build)?;
    let (toolchain, go) = toolchain(build.toolchain, watch).await?;
    let module = build.module;
    let mut command = go_command(&toolchain);
    command.current_dir(build.work).args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-v"]);
    command.arg("-ldflags").arg(&module.ldflags).arg("-o").arg(file).arg(&module.package);
    tool::run(command, HELP, watch).await?;
    let (got, _) = hash::hex_of_file(file).source_doing("read", file)?;
    let pinned = module.sha256.get(&go);
    if let Some(expected) = pinned.filter(|expected| **expected != got) {
        let what = format!("{} built with {go}", module.package);
        return Err(SourceError::WrongHash { what, expected: expected.clone(), got });
    }
    Ok(Source::Module {
        module: module.path.clone(),
        version: module.version.clone(),
        package: module.package.clone(),
        ldflags: module.ldflags.clone(),
        go,
        go_sum_sha256: build.set.go_sum_sha256.clone(),
        reproduced: pinned.is_some(),
    })
}

/// Puts `go.mod` and the checked `go.sum` into the working folder.
fn copy_set(build: &Build<'_>) -> Result<(), SourceError> {
    let go_mod = build.root.join(&build.set.go_mod);
    let go_sum = go_mod.with_file_name("go.sum");
    let sum = std::fs::read(&go_sum).source_doing("read", &go_sum)?;
    let got = hash::hex_of(&sum);
    if got != build.set.go_sum_sha256 {
        return Err(SourceError::GoSum { path: go_sum, expected: build.set.go_sum_sha256.clone(), got });
    }
    std::fs::create_dir_all(build.work).source_doing("make the folder", build.work)?;
    let put = |name: &str, bytes: &[u8]| {
        let path = build.work.join(name);
        std::fs::write(&path, bytes).source_doing("write", path)
    };
    put("go.mod", &std::fs::read(&go_mod).source_doing("read", &go_mod)?)?;
    put("go.sum", &sum)
}

/// The value of `GOTOOLCHAIN` to use, and the version that it gives. Go gets the pinned toolchain itself where
/// another one is installed; where it cannot, the installed one builds, and its bytes are not pinned.
async fn toolchain(pinned: &str, watch: Watch<'_>) -> Result<(String, String), SourceError> {
    match version(pinned, watch).await {
        Ok(version) => Ok((pinned.to_owned(), version)),
        Err(error @ SourceError::NoProgram { .. }) => Err(error),
        Err(_) => {
            let version = version("local", watch).await?;
            let text = format!("{pinned} cannot be had; building with {version}, whose bytes are not pinned");
            watch.progress.event(&Event::Detail { name: watch.name, text: &text });
            Ok(("local".to_owned(), version))
        }
    }
}

async fn version(toolchain: &str, watch: Watch<'_>) -> Result<String, SourceError> {
    let mut command = go_command(toolchain);
    command.args(["env", "GOVERSION"]);
    Ok(tool::run(command, HELP, watch).await?.trim().to_owned())
}

fn go_command(toolchain: &str) -> Command {
    let mut command = Command::new("go");
    command.env("GOTOOLCHAIN", toolchain).env("GOFLAGS", "").env("GOWORK", "off").env("GO111MODULE", "on");
    command.env("CGO_ENABLED", "0").env("GOOS", "linux").env("GOARCH", "amd64").env("GOAMD64", "v1");
    command.env("GOEXPERIMENT", "").env("GOFIPS140", "off");
    command
}
