//! Offline bundles: one tar with artifacts and their records, for machines without any network.
//!
//! Format: `index.toml` first, in the format of the cache's index, then one `sha256/<hex>` an artifact. Whatever is
//! taken out is hashed against its name, and against the lock where that pins the hash.

use crate::cache::{Cache, INDEX_VERSION, Index, parse_index};
use crate::error::{Doing as _, Error, SourceError};
use crate::hash;
use crate::layer::header;
use crate::resolved::Record;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use tar::{Archive, Builder, EntryType};

/// An opened bundle.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    records: Vec<Record>,
}

impl Bundle {
    /// Opens a bundle and reads its index.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let wrong = |problem: &str| Error::Bundle { path: path.clone(), problem: problem.to_owned() };
        let mut archive = Archive::new(File::open(&path).doing("open the bundle", &path)?);
        let first = archive.entries().doing("read the bundle", &path)?.next();
        let mut first = first.and_then(Result::ok).ok_or_else(|| wrong("it is no tar file"))?;
        if first.path().map_or(true, |name| name != Path::new("index.toml")) {
            return Err(wrong(
                "it does not start with index.toml; `rackwright artifacts bundle` makes bundles",
            ));
        }
        let mut text = String::new();
        first.read_to_string(&mut text).doing("read the bundle", &path)?;
        let index = parse_index(&text, &path)?;
        Ok(Self { path, records: index.resolved })
    }

    /// Names of what is in it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.records.iter().map(|record| record.name.as_str())
    }

    pub(crate) fn record(&self, name: &str, inputs: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.name == name && record.inputs == inputs)
    }

    /// Takes one file out, hashing it. Blocks.
    pub(crate) fn extract(&self, sha256: &str, file: &Path) -> Result<(), SourceError> {
        let container = || self.path.display().to_string();
        let input = File::open(&self.path).source_doing("open the bundle", &self.path)?;
        let mut archive = Archive::new(input);
        let wanted = format!("sha256/{sha256}");
        for entry in archive.entries_with_seek().source_doing("read the bundle", &self.path)? {
            let mut entry = entry.source_doing("read the bundle", &self.path)?;
            if entry.path().map_or(true, |name| name != Path::new(&wanted)) {
                continue;
            }
            let out = File::create(file).source_doing("write", file)?;
            let (got, _) = hash::copy_hashed(&mut entry, out).source_doing("write", file)?;
            if got == sha256 {
                return Ok(());
            }
            let what = format!("{wanted} of {}", container());
            return Err(SourceError::WrongHash { what, expected: sha256.to_owned(), got });
        }
        Err(SourceError::NoMember { member: wanted, container: container() })
    }
}

/// Writes a bundle of cached artifacts; `wanted` are names with their inputs. Blocks.
pub(crate) fn write(cache: &Cache, wanted: &[(String, String)], path: &Path) -> Result<u64, Error> {
    let mut index = Index { version: INDEX_VERSION, resolved: Vec::new() };
    for (name, inputs) in wanted {
        index.resolved.extend(cache.record(name, inputs)?);
    }
    let text = toml::to_string(&index)
        .map_err(|cause| std::io::Error::other(cause.to_string()))
        .doing("write", path)?;
    let partial = path.with_extension("partial");
    let written = || -> std::io::Result<u64> {
        let mut tar = Builder::new(BufWriter::with_capacity(1 << 20, File::create(&partial)?));
        tar.append_data(
            &mut header(EntryType::Regular, 0o644, text.len() as u64),
            "index.toml",
            text.as_bytes(),
        )?;
        let mut done = std::collections::BTreeSet::new();
        for record in index.resolved.iter().filter(|record| done.insert(record.sha256.clone())) {
            let mut header = header(EntryType::Regular, 0o444, record.size_bytes);
            let file = File::open(cache.path(&record.sha256))?;
            tar.append_data(&mut header, format!("sha256/{}", record.sha256), file)?;
        }
        let mut out = tar.into_inner()?;
        out.flush()?;
        out.get_ref().sync_all()?;
        std::fs::rename(&partial, path)?;
        Ok(std::fs::metadata(path)?.len())
    };
    written().doing("write the bundle", path)
}
