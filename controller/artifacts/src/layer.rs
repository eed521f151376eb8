//! The one layer of an image: a tar whose bytes depend on its contents only.

use crate::error::{Doing as _, SourceError};
use crate::hash::HashingWriter;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use tar::{Archive, Builder, EntryType, Header};

/// A finished layer file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
    /// What is in it, for the record.
    pub(crate) contents: Vec<String>,
}

/// Accounts that programs look up; nobody is who pods under the restricted profile run as.
const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// What a job image does without: device nodes that the runtime makes itself (and that nobody but a real root may
/// make), package lists, caches, manuals and translations.
const LEFT_OUT: [&str; 8] = [
    "dev/",
    "var/lib/apt/lists/",
    "var/cache/",
    "var/log/",
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
];

/// A static busybox with a link for each of its applets.
pub(crate) fn busybox(binary: &Path, applets: &str, layer: &Path) -> Result<Layer, SourceError> {
    let read = std::fs::read(binary).source_doing("read", binary)?;
    let out = HashingWriter::new(BufWriter::new(File::create(layer).source_doing("write", layer)?));
    let mut tar = Builder::new(out);
    let written = write_busybox(&mut tar, &read, applets).and_then(|()| finish(tar));
    let (sha256, size_bytes) = written.source_doing("write", layer)?;
    Ok(Layer { sha256, size_bytes, contents: Vec::new() })
}

fn write_busybox<W: Write>(tar: &mut Builder<W>, binary: &[u8], applets: &str) -> io::Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "usr"] {
        let mut header = header(EntryType::Directory, if folder == "tmp" { 0o1777 } else { 0o755 }, 0);
        tar.append_data(&mut header, format!("{folder}/"), io::empty())?;
    }
    for (path, mode, bytes) in [
        ("bin/busybox", 0o755, binary),
        ("etc/group", 0o644, GROUP.as_bytes()),
        ("etc/passwd", 0o644, PASSWD.as_bytes()),
    ] {
        let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
        tar.append_data(&mut header, path, bytes)?;
    }
    for applet in applets.lines().filter(|applet| *applet != "busybox" && !applet.contains('/')) {
        tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), format!("bin/{applet}"), "busybox")?;
    }
    // Scripts that start with /usr/bin/env find it.
    for folder in ["sbin", "usr/bin", "usr/sbin"] {
        let target = if folder == "sbin" { "bin" } else { "../bin" };
        tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), folder, target)?;
    }
    Ok(())
}

/// Copies mmdebstrap's tar without what a job image does not need, and lists its packages.
pub(crate) fn debian(tarball: &Path, layer: &Path) -> Result<Layer, SourceError> {
    let input = BufReader::with_capacity(1 << 20, File::open(tarball).source_doing("read", tarball)?);
    let out = BufWriter::with_capacity(1 << 20, File::create(layer).source_doing("write", layer)?);
    let mut tar = Builder::new(HashingWriter::new(out));
    let mut contents = Vec::new();
    let copied = copy(&mut Archive::new(input), &mut tar, &mut contents).and_then(|()| finish(tar));
    let (sha256, size_bytes) = copied.source_doing("write", layer)?;
    Ok(Layer { sha256, size_bytes, contents })
}

fn copy<R: Read, W: Write>(
    from: &mut Archive<R>,
    to: &mut Builder<W>,
    contents: &mut Vec<String>,
) -> io::Result<()> {
    for entry in from.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path.to_string_lossy().trim_start_matches("./").to_owned();
        let left_out = LEFT_OUT.iter().any(|folder| name.starts_with(folder) && name.len() > folder.len());
        let device =
            matches!(entry.header().entry_type(), EntryType::Char | EntryType::Block | EntryType::Fifo);
        if name.is_empty() || left_out || device {
            continue;
        }
        let mut header = entry.header().clone();
        match entry.link_name()? {
            Some(target) => {
                let target = target.into_owned();
                // Hard links name their target from the archive's root, symbolic ones as they are.
                let hard = header.entry_type() == EntryType::Link;
                let target =
                    if hard { target.strip_prefix("./").unwrap_or(&target).to_owned() } else { target };
                to.append_link(&mut header, name, target)?;
            }
            None if name == "var/lib/dpkg/status" => {
                let mut status = String::new();
                entry.read_to_string(&mut status)?;
                *contents = packages(&status);
                to.append_data(&mut header, name, status.as_bytes())?;
            }
            None => to.append_data(&mut header, name, &mut entry)?,
        }
    }
    Ok(())
}

/// `name version` of every installed package in dpkg's status file.
fn packages(status: &str) -> Vec<String> {
    let mut packages = Vec::new();
    for paragraph in status.split("\n\n") {
        let fields: BTreeMap<&str, &str> =
            paragraph.lines().filter_map(|line| line.split_once(": ")).collect();
        if let (Some(name), Some(version)) = (fields.get("Package"), fields.get("Version")) {
            packages.push(format!("{name} {version}"));
        }
    }
    packages.sort();
    packages
}

fn finish<W: Write>(tar: Builder<HashingWriter<W>>) -> io::Result<(String, u64)> {
    let mut out = tar.into_inner()?;
    out.flush()?;
    let (_, sha256, size_bytes) = out.finish();
    Ok((sha256, size_bytes))
}

/// A header without owner and time: the same contents give the same bytes.
pub(crate) fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(layer: &Path) -> Vec<String> {
        let mut archive = Archive::new(File::open(layer).unwrap());
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_busybox_layer_has_every_applet_and_the_same_bytes_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("busybox");
        std::fs::write(&binary, b"not really").unwrap();
        let make = |name: &str| busybox(&binary, "ash\nbusybox\nsleep\n", &dir.path().join(name)).unwrap();
        assert_eq!(make("a"), make("b"));
        let names = names(&dir.path().join("a"));
        for wanted in ["bin/busybox", "bin/ash", "bin/sleep", "etc/passwd", "tmp/", "usr/bin"] {
            assert!(names.iter().any(|name| name == wanted), "{wanted} of {names:?}");
        }
        assert_eq!(names.iter().filter(|name| *name == "bin/busybox").count(), 1);
    }

    #[test]
    fn a_debian_layer_leaves_devices_and_caches_out_and_names_its_packages() {
        let dir = tempfile::tempdir().unwrap();
        let tarball = dir.path().join("in.tar");
        let mut tar = Builder::new(File::create(&tarball).unwrap());
        let mut put = |name: &str, body: &str| {
            tar.append_data(&mut header(EntryType::Regular, 0o644, body.len() as u64), name, body.as_bytes())
                .unwrap();
        };
        put("./usr/bin/python3", "x");
        put("./var/lib/apt/lists/big", "x");
        put(
            "./var/lib/dpkg/status",
            "Package: a\nVersion: 1\n\nPackage: b\nDescription: b\n more\nVersion: 2-1\n",
        );
        tar.append_data(&mut header(EntryType::Char, 0o666, 0), "./dev/null", io::empty()).unwrap();
        tar.append_link(&mut header(EntryType::Link, 0o644, 0), "./usr/bin/py", "./usr/bin/python3").unwrap();
        tar.finish().unwrap();
        let layer = debian(&tarball, &dir.path().join("out.tar")).unwrap();
        assert_eq!(layer.contents, ["a 1", "b 2-1"]);
        assert_eq!(
            names(&dir.path().join("out.tar")),
            ["usr/bin/python3", "var/lib/dpkg/status", "usr/bin/py"]
        );
    }
}
