//! Official releases: downloaded only when the lock pins their sha256, and used only when it matches.
//!
//! A machine without a way to the internet must find out fast: connecting has three seconds, and a host that did
//! not answer is not asked again in the same run.

use crate::error::{Doing as _, SourceError};
use crate::hash;
use crate::lock::Official;
use crate::progress::{Event, Progress};
use crate::tool::{self, Watch};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::process::Command;

/// How long connecting may take; a reachable release server answers within a tenth of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a download may stand still.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Downloads releases, and remembers which hosts do not answer.
#[derive(Debug)]
pub(crate) struct Releases {
    client: reqwest::Client,
    silent: Mutex<BTreeSet<String>>,
}

impl Releases {
    /// Trusts the machine's certificate authorities.
    pub(crate) fn new() -> Result<Self, SourceError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let download = |source| SourceError::Download { url: "anything".to_owned(), source };
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT);
        let client = match rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
        {
            Ok(tls) => {
                builder.use_preconfigured_tls(tls.with_root_certificates(roots).with_no_client_auth()).build()
            }
            Err(_) => builder.build(),
        };
        Ok(Self { client: client.map_err(download)?, silent: Mutex::new(BTreeSet::new()) })
    }

    /// Downloads a release into `file` and checks its sha256.
    pub(crate) async fn download(
        &self,
        official: &Official,
        file: &Path,
        watch: Watch<'_>,
    ) -> Result<(), SourceError> {
        let url = &official.url;
        let host = url.split('/').nth(2).unwrap_or_default().to_owned();
        if self.silent.lock().unwrap_or_else(PoisonError::into_inner).contains(&host) {
            return Err(SourceError::Unreachable { host });
        }
        let failed = |source: reqwest::Error| {
            if source.is_connect() || source.is_timeout() {
                self.silent.lock().unwrap_or_else(PoisonError::into_inner).insert(host.clone());
            }
            SourceError::Download { url: url.clone(), source: source.without_url() }
        };
        let mut response = self.client.get(url).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(SourceError::Status { url: url.clone(), status: response.status().as_u16() });
        }
        let total = response.content_length();
        let out = std::fs::File::create(file).source_doing("write", file)?;
        let mut out = hash::HashingWriter::new(out);
        let mut done = 0_u64;
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            out.write_all(&chunk).source_doing("write", file)?;
            done += chunk.len() as u64;
            tell(watch.progress, watch.name, done, total);
        }
        let (_, got, _) = out.finish();
        if got == official.sha256 {
            Ok(())
        } else {
            Err(SourceError::WrongHash { what: url.clone(), expected: official.sha256.clone(), got })
        }
    }
}

/// Takes one file out of a gzipped tar whose hash was checked.
pub(crate) async fn extract(
    archive: &Path,
    member: &str,
    file: &Path,
    watch: Watch<'_>,
) -> Result<(), SourceError> {
    let folder = file.with_extension("extracted");
    std::fs::create_dir_all(&folder).source_doing("make the folder", &folder)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--gzip", "--no-same-owner", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(&folder);
    tar.arg("--").arg(member);
    tool::run(tar, "install the package tar", watch).await?;
    let extracted = folder.join(member);
    std::fs::rename(&extracted, file).source_doing("take", extracted)
}

fn tell(progress: &dyn Progress, name: &str, done: u64, total: Option<u64>) {
    const MIB: u64 = 1 << 20;
    let text = match total {
        Some(total) => format!("{} of {} MiB", done / MIB, total / MIB),
        None => format!("{} MiB", done / MIB),
    };
    progress.event(&Event::Detail { name, text: &text });
}
