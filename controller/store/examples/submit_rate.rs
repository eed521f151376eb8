//! How many submits a second are accepted durably, and how long each waits.
//!
//! `cargo run --release -p rackwright-store --example submit_rate -- FOLDER [CLIENTS] [SUBMITS] [RATE]`:
//! the folder should be on the disk that the store will use, since its `fsync` is what is measured. With
//! a RATE (submits a second, all clients together) each submit has its moment, and a wait counts from
//! that moment even when the client is late; without one, clients go as fast as they are answered. The
//! second line is one `fsync` alone on that disk, the floor for any store.

#![expect(clippy::print_stdout, reason = "a benchmark's output is its purpose")]

use rackwright_core::job::{JobSpec, Limits};
use rackwright_store::{SqliteOptions, SqliteStore, Store as _, Submit};
use rackwright_wire::id::{Owner, Team};
use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: submit_rate FOLDER [CLIENTS] [SUBMITS]")?);
    let clients: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let submits: usize = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let rate: u32 = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let clients = clients.max(1);
    let pace = (rate > 0).then(|| Duration::from_secs(1) * u32::try_from(clients).unwrap_or(1) / rate);
    let path = folder.join(format!("submit-rate-{}.db", std::process::id()));
    let store = SqliteStore::open(SqliteOptions::at(&path))?;
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|index| {
            let offset = pace.unwrap_or_default() * u32::try_from(index).unwrap_or(0)
                / u32::try_from(clients).unwrap_or(1);
            tokio::spawn(client(store.clone(), submits / clients, start + offset, pace))
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    let took = start.elapsed();
    waits.sort();
    let rate = waits.len() as u128 * 1_000 / took.as_millis().max(1);
    let at = |permille: usize| waits.get(waits.len() * permille / 1000).copied().unwrap_or_default();
    println!(
        "{} submits by {clients} clients: {rate}/s, p50 {:?}, p99 {:?}, max {:?}",
        waits.len(),
        at(500),
        at(990),
        waits.last().copied().unwrap_or_default()
    );
    println!("one fsync of 4 KiB alone: {:?} (median of 200)", fsync(&folder)?);
    for suffix in ["", "-wal", "-shm"] {
        let _left_by_choice = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    Ok(())
}

async fn client(
    store: SqliteStore,
    count: usize,
    first: Instant,
    pace: Option<Duration>,
) -> Outcome<Vec<Duration>> {
    let body = br#"{"name": "fit", "image": "docker.io/rackwright/python:1", "array": {"count": 20},
        "command": ["python3", "/job/fit.py"], "args": ["--alpha", "0.1"], "results": true,
        "resources": {"cpu": "500m", "memory": "256MiB"}}"#;
    let mut waits = Vec::with_capacity(count);
    let mut moment = first;
    for _ in 0..count {
        if let Some(pace) = pace {
            moment += pace;
            tokio::time::sleep_until(moment.into()).await;
        } else {
            moment = Instant::now();
        }
        let submit = Submit {
            owner: Owner::new("ada")?,
            team: Team::new("vision")?,
            spec: JobSpec::from_json(body, &Limits::default()).map_err(|findings| format!("{findings:?}"))?,
            datasets: Vec::new(),
            at_ms: now_ms()?,
            idempotency: None,
        };
        store.submit(submit).await?;
        waits.push(moment.elapsed());
    }
    Ok(waits)
}

fn now_ms() -> Outcome<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?)
}

fn fsync(folder: &Path) -> Outcome<Duration> {
    let path = folder.join(format!("fsync-{}", std::process::id()));
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    std::fs::remove_file(path)?;
    times.sort();
    Ok(times.get(100).copied().unwrap_or_default())
}
