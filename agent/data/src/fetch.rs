//! Fetching files by hash from a list of peers: the receiving half of the chain.
//!
//! A few chunks are in flight at once. A chunk goes to the best peer that is not paused; the
//! predecessor of the chain may answer "not yet" and is waited for while it receives itself, so bytes
//! flow through the chain instead of being copied N times from the source. When a peer dies or stalls
//! in the middle of a chunk, the next one is asked for the rest only: no byte is fetched again unless
//! the chunk turns out not to hash.

use crate::board::{Board, Pick};
use crate::error::Error;
use crate::partial::Partial;
use crate::peer::{ChunkAsk, ChunkReply, Peers};
use crate::store::{Store, blocking};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rackwright_wire::manifest::{File, Peer};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes gathered before they are hashed and written: with four chunks in flight about 4 MiB in all.
const BLOCK_BYTES: usize = 1024 * 1024;
/// A file whose chunks rotted on this disk while it came in is tried so often.
const PASSES: u32 = 3;

/// How patient a fetch is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A peer that expects a chunk may hold the request so long.
    pub wait: Duration,
    /// A stream without a byte for so long is dead.
    pub idle: Duration,
    /// Give up a chunk when nobody gave a byte of it for so long; the caller tries again later.
    pub give_up: Duration,
    /// A stream below this rate over [`Patience::slow_after`] is left when another peer can be asked.
    pub slow_bytes_per_s: u64,
    /// See [`Patience::slow_bytes_per_s`].
    pub slow_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(8),
            idle: Duration::from_secs(5),
            give_up: Duration::from_mins(1),
            slow_bytes_per_s: 64 * 1024,
            slow_after: Duration::from_secs(5),
        }
    }
}

/// Fetches into one store.
#[derive(Debug, Clone)]
pub struct Fetcher {
    store: Arc<Store>,
    peers: Peers,
    in_flight: usize,
    patience: Patience,
}

/// One fetch: whom to ask, and who sent what. The list may change while it runs.
#[derive(Debug, Default)]
pub struct Job {
    sources: Mutex<Vec<Peer>>,
    board: Mutex<Board>,
    tally: Mutex<Tally>,
}

/// Bytes received over the network, by peer, also of chunks that are not whole yet.
pub type Tally = BTreeMap<String, u64>;

impl Job {
    /// A fetch from these peers, best first, that adds to what was received before a restart.
    pub fn new(sources: Vec<Peer>, before: Tally) -> Self {
        Self { sources: Mutex::new(sources), board: Mutex::default(), tally: Mutex::new(before) }
    }

    /// Replaces the list of peers for everything that is still to be fetched.
    pub fn set_sources(&self, sources: Vec<Peer>) {
        *lock(&self.sources) = sources;
    }

    /// Forgets who failed and who lied: for another try after a while.
    pub fn forgive(&self) {
        *lock(&self.board) = Board::default();
    }

    /// Who sent what so far.
    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    fn count(&self, peer: &str, bytes: u64) {
        *lock(&self.tally).entry(peer.to_owned()).or_default() += bytes;
    }

    fn pick(&self, now: Instant) -> (Pick, Vec<Peer>) {
        let sources = lock(&self.sources).clone();
        let names: Vec<&str> = sources.iter().map(|peer| peer.server.as_str()).collect();
        (lock(&self.board).pick(&names, now), sources)
    }
}

/// What is here of one chunk.
struct Receipt {
    hasher: blake3::Hasher,
    got: u64,
    senders: Vec<String>,
    /// What peers said they had received when they had not got the chunk yet.
    heard: BTreeMap<String, u64>,
    last_byte: Instant,
    last_error: String,
}

impl Receipt {
    fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            got: 0,
            senders: Vec::new(),
            heard: BTreeMap::new(),
            last_byte: Instant::now(),
            last_error: "nobody was asked".to_owned(),
        }
    }
}

impl Fetcher {
    /// A fetcher with so many chunks in flight.
    pub fn new(store: Arc<Store>, peers: Peers, in_flight: usize, patience: Patience) -> Self {
        Self { store, peers, in_flight: in_flight.max(1), patience }
    }

    /// Fetches what is missing of `files`; every file is then an object of the store.
    ///
    /// # Errors
    /// No peer has a chunk, or this disk fails. What was verified stays and is not fetched again.
    pub async fn fetch(&self, files: &[File], job: &Job) -> Result<(), Error> {
        let mut pass = 1;
        loop {
            match self.pass(files, job).await {
                Err(Error::Damaged { chunks, .. }) if !chunks.is_empty() && pass < PASSES => pass += 1,
                other => return other,
            }
        }
    }

    async fn pass(&self, files: &[File], job: &Job) -> Result<(), Error> {
        let mut running = FuturesUnordered::new();
        let mut seen = HashSet::new();
        // Equal files are one object.
        for file in files.iter().filter(|file| seen.insert(&file.blake3)) {
            for (partial, index) in self.open(file.clone(), job).await? {
                if running.len() >= self.in_flight {
                    running.next().await.transpose()?;
                }
                running.push(self.task(job, partial, index));
            }
        }
        while running.next().await.transpose()?.is_some() {}
        Ok(())
    }

    async fn task(&self, job: &Job, partial: Arc<Partial>, index: Option<u64>) -> Result<(), Error> {
        if let Some(index) = index {
            self.fetch_chunk(job, &partial, index).await?;
        }
        self.finish(partial).await
    }

    /// The missing chunks of a file; one `None` for a file that only has to be finished.
    async fn open(&self, file: File, job: &Job) -> Result<Vec<(Arc<Partial>, Option<u64>)>, Error> {
        let store = Arc::clone(&self.store);
        let opened = blocking(move || {
            let hash = crate::layout::hash_of(&file.blake3)?;
            if store.has(hash) { Ok(None) } else { store.partial(&file).map(Some) }
        });
        let Some((partial, resumed)) = opened.await? else { return Ok(Vec::new()) };
        if resumed {
            let mut tally = lock(&job.tally);
            for (peer, bytes) in partial.verified_by_peer() {
                *tally.entry(peer).or_default() += bytes;
            }
        }
        let mut indexes: Vec<_> = partial.missing().into_iter().map(Some).collect();
        if indexes.is_empty() {
            indexes.push(None);
        }
        Ok(indexes.into_iter().map(|index| (Arc::clone(&partial), index)).collect())
    }

    async fn finish(&self, partial: Arc<Partial>) -> Result<(), Error> {
        if !partial.claim_finish() {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        blocking(move || store.finish(&partial)).await
    }

    async fn fetch_chunk(&self, job: &Job, partial: &Arc<Partial>, index: u64) -> Result<(), Error> {
        let mut receipt = Receipt::new();
        // Somebody else may fetch the same object for another version.
        while !partial.has(index) {
            let now = Instant::now();
            let (pick, sources) = job.pick(now);
            let (place, until) = match pick {
                Pick::Ask(place) => (place, now),
                Pick::Wait(until) => (usize::MAX, until),
                Pick::Nobody => (usize::MAX, now + self.patience.give_up),
            };
            if let Some(peer) = sources.get(place) {
                if self.ask(job, peer, partial, index, &mut receipt).await? {
                    return Ok(());
                }
            } else if pick == Pick::Nobody || receipt.last_byte.elapsed() > self.patience.give_up {
                let object = partial.hash().to_hex().to_string();
                let last = receipt.last_error;
                return Err(Error::NoPeer { object, chunk: index, peers: sources.len(), last });
            } else {
                tokio::time::sleep_until(until.into()).await;
            }
        }
        Ok(())
    }

    /// Asks one peer for the rest of a chunk. True when the chunk is whole and verified. Only failures
    /// of this disk are errors: those of the peer go to the board.
    async fn ask(
        &self,
        job: &Job,
        peer: &Peer,
        partial: &Arc<Partial>,
        index: u64,
        receipt: &mut Receipt,
    ) -> Result<bool, Error> {
        let ask = ChunkAsk { object: partial.hash(), index, from: receipt.got };
        let failure = match self.peers.chunk(peer, &ask, self.patience.wait).await {
            Ok(ChunkReply::Body(response)) => {
                self.receive(job, peer, partial, index, receipt, response).await?
            }
            Ok(ChunkReply::NotYet(received)) => {
                let before = receipt.heard.insert(peer.server.clone(), received);
                if before.is_none_or(|before| received > before) {
                    receipt.last_byte = Instant::now();
                    return Ok(false);
                }
                Some(format!("{} does not have it and stands still", peer.server))
            }
            Ok(ChunkReply::Unknown) => Some(format!("{} does not have it", peer.server)),
            Err(error) => Some(error.chain()),
        };
        if let Some(failure) = failure {
            tracing::debug!(peer = peer.server, index, "{failure}");
            receipt.last_error = failure;
            lock(&job.board).pause(&peer.server, Instant::now());
        }
        if receipt.got < partial.chunk_len(index) {
            return Ok(false);
        }
        self.verify(job, partial, index, receipt).await
    }

    /// Receives bytes into the chunk. `None` when the peer sent all it should, else what went wrong.
    async fn receive(
        &self,
        job: &Job,
        peer: &Peer,
        partial: &Arc<Partial>,
        index: u64,
        receipt: &mut Receipt,
        mut response: reqwest::Response,
    ) -> Result<Option<String>, Error> {
        let want = partial.chunk_len(index) - receipt.got;
        if receipt.senders.last() != Some(&peer.server) {
            receipt.senders.push(peer.server.clone());
        }
        let mut block = BytesMut::new();
        let (mut taken, mut window) = (0u64, (Instant::now(), 0u64));
        let failure = loop {
            let bytes = match tokio::time::timeout(self.patience.idle, response.chunk()).await {
                Err(_late) => {
                    break Some(format!("{} sent nothing for {:?}", peer.server, self.patience.idle));
                }
                Ok(Err(cause)) => break Some(format!("{}: {}", peer.server, crate::error::chain(&cause))),
                Ok(Ok(None)) if taken == want => break None,
                Ok(Ok(None)) => break Some(format!("{} sent {taken} of {want} bytes", peer.server)),
                Ok(Ok(Some(bytes))) => bytes,
            };
            taken += bytes.len() as u64;
            job.count(&peer.server, bytes.len() as u64);
            self.store.count_received(bytes.len() as u64);
            if taken > want {
                break Some(format!("{} sent more than the chunk holds", peer.server));
            }
            block.extend_from_slice(&bytes);
            if block.len() >= BLOCK_BYTES {
                self.write(partial, index, receipt, block.split().freeze()).await?;
            }
            window.1 += bytes.len() as u64;
            if window.0.elapsed() >= self.patience.slow_after {
                let floor = self.patience.slow_bytes_per_s.saturating_mul(window.0.elapsed().as_secs());
                if window.1 < floor && Self::has_alternative(job, peer) {
                    break Some(format!(
                        "{} is slow: {} bytes in {:?}",
                        peer.server,
                        window.1,
                        window.0.elapsed()
                    ));
                }
                window = (Instant::now(), 0);
            }
        };
        self.write(partial, index, receipt, block.freeze()).await?;
        Ok(failure)
    }

    async fn write(
        &self,
        partial: &Arc<Partial>,
        index: u64,
        receipt: &mut Receipt,
        block: Bytes,
    ) -> Result<(), Error> {
        if block.is_empty() {
            return Ok(());
        }
        let (partial, offset, len) = (Arc::clone(partial), receipt.got, block.len() as u64);
        let mut hasher = std::mem::take(&mut receipt.hasher);
        receipt.hasher = blocking(move || {
            hasher.update(&block);
            partial.write(index, offset, &block)?;
            Ok(hasher)
        })
        .await?;
        receipt.got += len;
        receipt.last_byte = Instant::now();
        Ok(())
    }

    async fn verify(
        &self,
        job: &Job,
        partial: &Arc<Partial>,
        index: u64,
        receipt: &mut Receipt,
    ) -> Result<bool, Error> {
        let sender = receipt.senders.last().cloned().unwrap_or_default();
        if Some(receipt.hasher.finalize()) == partial.chunk_hash(index) {
            lock(&job.board).good(&sender);
            let partial = Arc::clone(partial);
            blocking(move || partial.mark(index, &sender)).await?;
            self.store.notify();
            return Ok(true);
        }
        tracing::warn!(object = %partial.hash(), index, senders = ?receipt.senders, "a chunk does not hash");
        let mut board = lock(&job.board);
        match receipt.senders.as_slice() {
            [only] => board.lied(only),
            // Of several senders nobody knows who lied: the whole chunk again, from one.
            several => several.iter().for_each(|peer| board.pause(peer, Instant::now())),
        }
        drop(board);
        let last_error = format!("{} sent bytes that do not hash", receipt.senders.join(" and "));
        *receipt = Receipt { last_error, ..Receipt::new() };
        Ok(false)
    }

    fn has_alternative(job: &Job, peer: &Peer) -> bool {
        let sources = lock(&job.sources).clone();
        let others: Vec<&str> =
            sources.iter().map(|other| other.server.as_str()).filter(|other| *other != peer.server).collect();
        matches!(lock(&job.board).pick(&others, Instant::now()), Pick::Ask(_))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
