//! One artifact and its sources, tried in order.

use crate::bundle::Bundle;
use crate::cache::Guard;
use crate::ensure::Artifacts;
use crate::error::{Error, SourceError, chain};
use crate::hash;
use crate::lock::{Artifact, Image, Module, Official};
use crate::progress::{Event, Progress};
use crate::release::{self, Releases};
use crate::resolved::{Record, Source};
use crate::tool::Watch;
use crate::{debian, image, module};
use std::path::Path;
use std::time::Duration;

/// A file in the making that a source has finished.
pub(crate) struct Made {
    pub(crate) source: Source,
    pub(crate) bundled: bool,
}

/// One artifact that is being had.
pub(crate) struct Attempt<'a> {
    pub(crate) artifacts: &'a Artifacts,
    pub(crate) artifact: &'a Artifact,
    pub(crate) inputs: &'a str,
    pub(crate) guard: &'a Guard,
    pub(crate) progress: &'a dyn Progress,
    /// Where the finished file goes.
    pub(crate) file: &'a Path,
}

impl<'a> Attempt<'a> {
    /// The sources in their order; the first that gives the file wins.
    pub(crate) async fn first_source(&self, releases: Option<&Releases>) -> Result<Made, Error> {
        let mut tried = Vec::new();
        if let Some(bundle) = &self.artifacts.bundle {
            match self.try_bundle(bundle) {
                Ok(made) => return Ok(made),
                Err(error) => self.failed("bundle", &error, &mut tried),
            }
        }
        if let (Some(official), Some(releases), true) =
            (&self.artifact.official, releases, self.artifacts.official)
        {
            match self.try_release(official, releases).await {
                Ok(source) => {
                    return Ok(Made { source, bundled: false });
                }
                Err(error) => self.failed("official release", &error, &mut tried),
            }
        }
        let made = match (&self.artifact.module, &self.artifact.debian, &self.artifact.image) {
            (Some(module), _, _) => ("module build", self.try_module(module).await),
            (None, Some(wanted), _) => {
                let folder = self.file.with_extension("deb");
                ("Debian package", debian::unpack(wanted, &folder, self.file, self.start("unpack")).await)
            }
            (None, None, Some(image)) => ("image", self.try_image(image).await),
            (None, None, None) => return Err(self.no_source(tried)),
        };
        match made {
            (_, Ok(source)) => Ok(Made { source, bundled: false }),
            (name, Err(error)) => {
                tried.push((name, chain(&error)));
                Err(self.no_source(tried))
            }
        }
    }

    fn no_source(&self, tried: Vec<(&'static str, String)>) -> Error {
        Error::NoSource { name: self.artifact.name.clone(), version: self.artifact.version.clone(), tried }
    }

    fn failed(&self, source: &'static str, error: &SourceError, tried: &mut Vec<(&'static str, String)>) {
        let reason = chain(error);
        self.progress.event(&Event::Fallback { name: &self.artifact.name, source, reason: &reason });
        tried.push((source, reason));
    }

    fn start(&self, how: &'static str) -> Watch<'a> {
        let usually = if how == "download" { Duration::from_secs(10) } else { self.artifact.usually };
        self.progress.event(&Event::Start { name: &self.artifact.name, how, usually });
        Watch { name: &self.artifact.name, usually, progress: self.progress }
    }

    fn try_bundle(&self, bundle: &Bundle) -> Result<Made, SourceError> {
        let Some(record) = bundle.record(&self.artifact.name, self.inputs) else {
            let member = format!("{} {} of this lock", self.artifact.name, self.artifact.version);
            return Err(SourceError::NoMember { member, container: "the bundle".to_owned() });
        };
        self.check_pin(record)?;
        bundle.extract(&record.sha256, self.file)?;
        Ok(Made { source: record.source.clone(), bundled: true })
    }

    /// A bundle cannot bring other bytes than the lock pins.
    fn check_pin(&self, record: &Record) -> Result<(), SourceError> {
        let pin = match (&record.source, &self.artifact.module, &self.artifact.official) {
            (Source::Module { go, .. }, Some(module), _) => module.sha256.get(go),
            (Source::Official { .. }, _, Some(official)) if official.member.is_none() => {
                Some(&official.sha256)
            }
            _ => None,
        };
        match pin {
            Some(expected) if *expected != record.sha256 => Err(SourceError::WrongHash {
                what: format!("{} of the bundle", record.name),
                expected: expected.clone(),
                got: record.sha256.clone(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    async fn try_release(&self, official: &Official, releases: &Releases) -> Result<Source, SourceError> {
        let watch = self.start("download");
        let Some(member) = &official.member else {
            releases.download(official, self.file, watch).await?;
            return Ok(Source::Official { url: official.url.clone(), sha256: official.sha256.clone() });
        };
        // Several artifacts come out of one archive: it is downloaded once a run.
        let archive = self.artifacts.cache.tmp(self.guard, &format!("{}.download", official.sha256));
        let there = hash::hex_of_file(&archive).is_ok_and(|(got, _)| got == official.sha256);
        if !there {
            releases.download(official, &archive, watch).await?;
        }
        release::extract(&archive, member, self.file, watch).await?;
        Ok(Source::Official { url: official.url.clone(), sha256: official.sha256.clone() })
    }

    async fn try_module(&self, module: &Module) -> Result<Source, SourceError> {
        let lock = &self.artifacts.lock;
        let Some(set) = lock.modules.get(&module.set) else {
            return Err(SourceError::NoMember {
                member: module.set.clone(),
                container: "the lock's module sets".to_owned(),
            });
        };
        let work = self.artifacts.cache.work(&module.set);
        let (root, toolchain) = (self.artifacts.root.as_path(), lock.toolchain.as_str());
        let build = module::Build { module, set, root, toolchain, work: &work };
        module::build(&build, self.file, self.start("build")).await
    }

    async fn try_image(&self, wanted: &Image) -> Result<Source, SourceError> {
        let watch = self.start("make");
        let inner = wanted.busybox.as_deref().and_then(|name| self.artifacts.lock.artifact(name));
        let inner = match inner {
            None => None,
            Some(artifact) => Some(self.artifacts.hit(artifact).map_err(|_not_there| {
                SourceError::NoMember { member: artifact.name.clone(), container: "the cache".to_owned() }
            })?),
        };
        image::make(wanted, inner.as_ref(), &self.file.with_extension("image"), self.file, watch).await
    }
}
