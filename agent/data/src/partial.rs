//! One object on its way: its bytes, and a journal of the chunks that were verified.
//!
//! The journal is text, a line a chunk (`<index> <peer>`), appended only after the chunk's bytes were
//! synced; so whatever is killed, a verified chunk is never fetched again, and a torn line only costs
//! one chunk. Nothing here is trusted in the end: [`Partial::finish`] reads every byte once more
//! before the object gets its name.

use crate::durable;
use crate::error::Error;
use crate::layout::{Layout, hash_of};
use rackwright_wire::manifest::{self, CHUNK_BYTES};
use rustix::fs::FallocateFlags;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The "peer" of chunks that were not fetched but copied from a damaged object on this server.
pub(crate) const LOCAL: &str = "-";

/// An object that is being received. All calls block: run them on the blocking pool.
#[derive(Debug)]
pub struct Partial {
    layout: Layout,
    hash: blake3::Hash,
    bytes: u64,
    chunks: Vec<blake3::Hash>,
    data: Arc<File>,
    state: Mutex<State>,
    finishing: AtomicBool,
}

#[derive(Debug)]
struct State {
    journal: File,
    /// Who sent each verified chunk; `None` while it is missing.
    verified: Vec<Option<String>>,
}

impl Partial {
    /// Opens what is there of `file`, or begins it. All space is taken at once, so a full disk shows
    /// before the first byte moves.
    ///
    /// # Errors
    /// No space, or another file system failure; a new object then leaves nothing behind.
    pub fn open(layout: &Layout, file: &manifest::File) -> Result<Self, Error> {
        let hash = hash_of(&file.blake3)?;
        let chunks = file.chunks.iter().map(|chunk| hash_of(chunk)).collect::<Result<Vec<_>, _>>()?;
        if !layout.partial(hash).exists() {
            // A journal without its data is from an object that was finished: it proves nothing now.
            durable::remove(&layout.journal(hash))?;
        }
        let data = open_data(layout, hash, file.bytes)?;
        let (journal, verified) = open_journal(layout, hash, file.bytes, chunks.len())?;
        let state = Mutex::new(State { journal, verified });
        Ok(Self {
            layout: layout.clone(),
            hash,
            bytes: file.bytes,
            chunks,
            data: Arc::new(data),
            state,
            finishing: AtomicBool::new(false),
        })
    }

    /// The object's hash.
    pub fn hash(&self) -> blake3::Hash {
        self.hash
    }

    /// Length of a chunk in bytes; 0 past the end.
    pub fn chunk_len(&self, index: u64) -> u64 {
        chunk_len(self.bytes, index)
    }

    /// The hash that a chunk must have.
    pub fn chunk_hash(&self, index: u64) -> Option<blake3::Hash> {
        self.chunks.get(usize::try_from(index).ok()?).copied()
    }

    /// Whether a chunk is here and verified.
    pub fn has(&self, index: u64) -> bool {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.state().verified.get(index).is_some_and(Option::is_some)
    }

    /// Chunks that are still to be fetched, in order.
    pub fn missing(&self) -> Vec<u64> {
        let state = self.state();
        (0u64..).zip(&state.verified).filter(|(_, from)| from.is_none()).map(|(index, _)| index).collect()
    }

    /// True for exactly one caller once every chunk is verified: that one finishes the object.
    pub fn claim_finish(&self) -> bool {
        self.state().verified.iter().all(Option::is_some) && !self.finishing.swap(true, Ordering::AcqRel)
    }

    /// Bytes of verified chunks.
    pub fn verified_bytes(&self) -> u64 {
        let state = self.state();
        let verified = (0u64..).zip(&state.verified).filter(|(_, from)| from.is_some());
        verified.map(|(index, _)| self.chunk_len(index)).sum()
    }

    /// Bytes of verified chunks by the peer that sent them over the network.
    pub fn verified_by_peer(&self) -> BTreeMap<String, u64> {
        let mut by_peer = BTreeMap::new();
        for (index, peer) in (0u64..).zip(&self.state().verified) {
            if let Some(peer) = peer.as_ref().filter(|peer| *peer != LOCAL) {
                *by_peer.entry(peer.clone()).or_default() += self.chunk_len(index);
            }
        }
        by_peer
    }

    /// The data file, for readers of verified chunks.
    pub fn data(&self) -> Arc<File> {
        Arc::clone(&self.data)
    }

    /// Writes unverified bytes into a chunk. Those of one that somebody else has verified meanwhile are dropped:
    /// soon pods may read it.
    ///
    /// # Errors
    /// The bytes leave the chunk, or the file system refuses.
    pub fn write(&self, index: u64, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let path = self.layout.partial(self.hash);
        if offset.saturating_add(bytes.len() as u64) > self.chunk_len(index) {
            return Err(Error::refused(format!("bytes of chunk {index}"), "more than the chunk holds"));
        }
        // Held while writing: nobody may verify the chunk in between.
        let state = self.state();
        if state.verified.get(usize::try_from(index).unwrap_or(usize::MAX)).is_some_and(Option::is_some) {
            return Ok(());
        }
        self.data
            .write_all_at(bytes, index.saturating_mul(CHUNK_BYTES) + offset)
            .map_err(Error::io("write", path))
    }

    /// Marks a chunk as verified: the caller hashed what it wrote. Data first, then the journal.
    ///
    /// # Errors
    /// The file system refuses; the chunk stays missing.
    pub fn mark(&self, index: u64, peer: &str) -> Result<(), Error> {
        self.data.sync_data().map_err(Error::io("sync", self.layout.partial(self.hash)))?;
        let mut state = self.state();
        let line = format!("{index} {peer}\n");
        state
            .journal
            .write_all(line.as_bytes())
            .map_err(Error::io("write", self.layout.journal(self.hash)))?;
        if let Some(slot) = state.verified.get_mut(usize::try_from(index).unwrap_or(usize::MAX)) {
            *slot = Some(peer.to_owned());
        }
        Ok(())
    }

    /// Reads everything once more and, when every chunk and the whole hash, gives the object its name.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the chunks that did not hash: they are missing again. Empty when all
    /// chunks do and the whole does not: then the manifest contradicts itself.
    pub fn finish(&self) -> Result<(), Error> {
        let finished = self.verify_and_name();
        if finished.is_err() {
            self.finishing.store(false, Ordering::Release);
        }
        finished
    }

    fn verify_and_name(&self) -> Result<(), Error> {
        let bad = self.verify()?;
        let path = self.layout.partial(self.hash);
        if let Some(chunks) = bad {
            self.forget(&chunks)?;
            return Err(Error::Damaged { object: self.hash.to_hex().to_string(), chunks });
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).map_err(Error::io("protect", &path))?;
        self.data.sync_all().map_err(Error::io("sync", &path))?;
        let object = self.layout.object(self.hash);
        durable::make_folder(object.parent().unwrap_or(self.layout.root()))?;
        durable::rename(&path, &object)?;
        durable::remove(&self.layout.journal(self.hash))
    }

    /// `None` when everything hashes, else the chunks that do not.
    fn verify(&self) -> Result<Option<Vec<u64>>, Error> {
        let path = self.layout.partial(self.hash);
        let mut whole = blake3::Hasher::new();
        let mut bad = self.missing();
        let mut buffer = vec![0; 256 * 1024];
        for (index, expected) in (0u64..).zip(&self.chunks) {
            let mut hasher = blake3::Hasher::new();
            let mut at = index * CHUNK_BYTES;
            let end = at + self.chunk_len(index);
            while at < end {
                let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                let part = buffer.get_mut(..want).unwrap_or_default();
                self.data.read_exact_at(part, at).map_err(Error::io("read", &path))?;
                hasher.update(part);
                whole.update(part);
                at += want as u64;
            }
            if hasher.finalize() != *expected && !bad.contains(&index) {
                bad.push(index);
            }
        }
        Ok((!bad.is_empty() || whole.finalize() != self.hash).then_some(bad))
    }

    /// Rewrites the journal without these chunks.
    fn forget(&self, chunks: &[u64]) -> Result<(), Error> {
        let mut state = self.state();
        let path = self.layout.journal(self.hash);
        for index in chunks {
            if let Some(slot) = state.verified.get_mut(usize::try_from(*index).unwrap_or(usize::MAX)) {
                *slot = None;
            }
        }
        let mut text = header(self.hash, self.bytes);
        for (index, peer) in state.verified.iter().enumerate() {
            if let Some(peer) = peer {
                text.extend([&index.to_string(), " ", peer, "\n"]);
            }
        }
        durable::replace(&path, text.as_bytes())?;
        state.journal = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", path))?;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held aborts the process (panic hook), so poison is never seen.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Length in bytes of one chunk of an object; 0 past its end.
pub(crate) fn chunk_len(bytes: u64, index: u64) -> u64 {
    let start = index.saturating_mul(CHUNK_BYTES).min(bytes);
    (bytes - start).min(CHUNK_BYTES)
}

fn open_data(layout: &Layout, hash: blake3::Hash, bytes: u64) -> Result<File, Error> {
    let path = layout.partial(hash);
    let begun = path.exists();
    let data = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let data = data.map_err(Error::io("create", &path))?;
    if let Err(error) = reserve(&data, &path, bytes) {
        if !begun {
            let _best_effort = fs::remove_file(&path);
        }
        return Err(error);
    }
    if !begun {
        durable::sync_folder(path.parent().unwrap_or(layout.root()))?;
    }
    Ok(data)
}

fn reserve(data: &File, path: &std::path::Path, bytes: u64) -> Result<(), Error> {
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(data, FallocateFlags::empty(), 0, bytes) {
        // A file system without fallocate: the admission check has to do.
        Err(rustix::io::Errno::OPNOTSUPP) => data.set_len(bytes).map_err(Error::io("size", path)),
        other => other.map_err(Error::os("reserve the space of", path)),
    }
}

fn header(hash: blake3::Hash, bytes: u64) -> String {
    format!("rackwright-partial 1 {} {bytes}\n", hash.to_hex())
}

/// Opens the journal for appending and reads it up to the first line that is not whole and right.
fn open_journal(
    layout: &Layout,
    hash: blake3::Hash,
    bytes: u64,
    chunks: usize,
) -> Result<(File, Vec<Option<String>>), Error> {
    let path = layout.journal(hash);
    let mut journal = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io("create", &path))?;
    let mut text = Vec::new();
    journal.read_to_end(&mut text).map_err(Error::io("read", &path))?;
    let (good, verified) = parse_journal(&text, &header(hash, bytes), chunks);
    journal.set_len(good as u64).map_err(Error::io("cut", &path))?;
    journal.seek(std::io::SeekFrom::End(0)).map_err(Error::io("seek", &path))?;
    if good == 0 {
        journal.write_all(header(hash, bytes).as_bytes()).map_err(Error::io("write", &path))?;
    }
    Ok((journal, verified))
}

/// How many bytes of a journal are whole lines of this object, and which chunks they verify.
fn parse_journal(text: &[u8], header: &str, chunks: usize) -> (usize, Vec<Option<String>>) {
    let mut verified = vec![None; chunks];
    let Some(body) = text.strip_prefix(header.as_bytes()) else {
        return (0, verified);
    };
    let mut good = header.len();
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let parsed = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n'));
        let entry = parsed.and_then(|line| line.split_once(' '));
        let slot =
            entry.and_then(|(index, peer)| Some((verified.get_mut(index.parse::<usize>().ok()?)?, peer)));
        let Some((slot, peer)) = slot else {
            break;
        };
        *slot = Some(peer.to_owned());
        good += line.len();
    }
    (good, verified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashing::hash_reader;
    use proptest::prelude::*;

    const SIZE: u64 = 2 * CHUNK_BYTES + 3;

    fn content() -> &'static [u8] {
        static CONTENT: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        CONTENT.get_or_init(|| (0..SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect())
    }

    fn begin(root: &std::path::Path) -> (Layout, manifest::File) {
        let layout = Layout::new(root);
        fs::create_dir_all(root.join("partial")).unwrap();
        (layout, hash_reader("rows.bin", content()).unwrap())
    }

    fn give(partial: &Partial, index: u64) {
        let start = usize::try_from(index * CHUNK_BYTES).unwrap();
        let end = start + usize::try_from(partial.chunk_len(index)).unwrap();
        partial.write(index, 0, &content()[start..end]).unwrap();
        partial.mark(index, "ml1").unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// A kill at any write point leaves a prefix of the journal: chunks named by whole lines stay,
        /// the others are fetched again, and the object is right in the end.
        #[test]
        fn a_journal_cut_anywhere_resumes_and_finishes(
            order in Just(vec![0u64, 1, 2]).prop_shuffle(), done in 0usize..=3, cut in 0usize..200,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (layout, file) = begin(folder.path());
            let partial = Partial::open(&layout, &file).unwrap();
            order.iter().take(done).for_each(|index| give(&partial, *index));
            let journal = layout.journal(partial.hash());
            drop(partial);
            let mut text = fs::read(&journal).unwrap();
            text.truncate(cut);
            let lines = text.split(|byte| *byte == b'\n').count() - 1;
            fs::write(&journal, &text).unwrap();

            let partial = Partial::open(&layout, &file).unwrap();
            let kept = order.iter().take(lines.saturating_sub(1)).copied().collect::<Vec<_>>();
            prop_assert!((0..3).all(|index| partial.has(index) == kept.contains(&index)));
            partial.missing().into_iter().for_each(|index| give(&partial, index));
            partial.finish().unwrap();
            prop_assert_eq!(fs::read(layout.object(partial.hash())).unwrap(), content());
            prop_assert!(!journal.exists());
        }
    }

    #[test]
    fn bytes_that_rotted_after_their_chunk_was_verified_never_get_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, file) = begin(folder.path());
        let partial = Partial::open(&layout, &file).unwrap();
        (0..3).for_each(|index| give(&partial, index));
        let rotten = [content()[usize::try_from(CHUNK_BYTES).unwrap() + 77] ^ 1];
        partial.data().write_all_at(&rotten, CHUNK_BYTES + 77).unwrap();
        assert!(partial.claim_finish());
        let error = partial.finish().unwrap_err();
        assert!(matches!(&error, Error::Damaged { chunks, .. } if chunks == &[1]), "{error}");
        assert!(!layout.object(partial.hash()).exists());
        drop(partial);
        let partial = Partial::open(&layout, &file).unwrap();
        assert_eq!(partial.missing(), [1]);
        give(&partial, 1);
        partial.finish().unwrap();
    }

    #[test]
    fn bytes_for_a_chunk_that_was_verified_meanwhile_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, file) = begin(folder.path());
        let partial = Partial::open(&layout, &file).unwrap();
        (0..3).for_each(|index| give(&partial, index));
        partial.write(1, 77, b"of a second stream").unwrap();
        partial.finish().unwrap();
        partial.write(1, 77, b"later still").unwrap();
        assert_eq!(fs::read(layout.object(partial.hash())).unwrap(), content());
    }

    #[test]
    fn what_could_not_be_finished_may_be_finished_later() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, file) = begin(folder.path());
        let partial = Partial::open(&layout, &file).unwrap();
        (0..3).for_each(|index| give(&partial, index));
        // A file where the folder of objects belongs.
        fs::write(folder.path().join("objects"), "").unwrap();
        assert!(partial.claim_finish() && !partial.claim_finish());
        assert!(partial.finish().is_err());
        fs::remove_file(folder.path().join("objects")).unwrap();
        assert!(partial.claim_finish());
        partial.finish().unwrap();
    }

    #[test]
    fn a_journal_reads_like_this_and_a_newer_one_verifies_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, file) = begin(folder.path());
        let partial = Partial::open(&layout, &file).unwrap();
        for index in [0, 2] {
            give(&partial, index);
        }
        let journal = layout.journal(partial.hash());
        let text = fs::read_to_string(&journal).unwrap();
        insta::assert_snapshot!(text);
        drop(partial);
        fs::write(&journal, text.replacen("partial 1", "partial 2", 1)).unwrap();
        let partial = Partial::open(&layout, &file).unwrap();
        assert_eq!(partial.missing(), [0, 1, 2], "every chunk is fetched again");
    }

    #[test]
    fn a_journal_of_another_object_is_not_believed() {
        let header = header(blake3::hash(b"a"), 9);
        assert_eq!(parse_journal(b"rackwright-partial 1 0000 9\n0 ml1\n", &header, 1).1, [None]);
        let torn = format!("{header}0 ml1\n7 ml1\n");
        assert_eq!(parse_journal(torn.as_bytes(), &header, 1).0, header.len() + "0 ml1\n".len());
    }

    #[test]
    fn bytes_outside_their_chunk_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, file) = begin(folder.path());
        let partial = Partial::open(&layout, &file).unwrap();
        assert!(partial.write(2, 2, b"xx").is_err());
        assert!(partial.write(9, 0, b"x").is_err());
    }
}
