//! Durable puts: `cargo run --release -p atoll-chunkserver --example put_bench [DIR
//! [KIB …]]`.
//!
//! 16 writers put chunks of one length; each put returns when it is synced. In turn, round by
//! round on the same disk: a plain file to which the same batches are appended and synced with
//! `fdatasync`; the store with everything in the database, large chunks in its blob files; the
//! store with large chunks in segment files; a whole chunkserver with the same store, asked by QUIC
//! from this process. Medians of the rounds; the ratio is to the plain file of the same round.

mod server;

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_chunkserver::store::rocks::RocksStore;
use atoll_chunkserver::store::writer::Writer;
use atoll_chunkserver::store::{ChunkStore, NewChunk, StoreError};
use atoll_proto::{ChunkId, Epoch};
use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::{mpsc, oneshot};

const WRITERS: usize = 16;
const ROUNDS: usize = 5;
/// Bytes put in one round.
const BYTES: usize = 256 << 20;
/// The same for lengths of a few KiB.
const BYTES_SMALL: usize = 32 << 20;
/// A batch of the plain file takes no further chunk once it is so long, as in the store's writer.
const BATCH_BYTES: usize = 16 << 20;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    PlainFile,
    BlobFiles,
    Segments,
    Server,
}

/// One round of one target.
#[derive(Clone)]
struct Run {
    mb_per_s: f64,
    ratio: f64,
    p99: Duration,
    written: f64,
    cpu_s_per_gb: f64,
    /// Not known of a whole server.
    syncs_per_put: Option<f64>,
}

fn main() -> Outcome<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/put_bench".to_owned());
    // Lengths of chunks in KiB.
    let lens: Vec<usize> =
        std::env::args().skip(2).map(|len| len.parse()).collect::<Result<_, _>>()?;
    let lens = if lens.is_empty() { vec![4, 64, 256, 1024] } else { lens };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{WRITERS} writers, {ROUNDS} rounds of {} MiB ({} MiB below 64 KiB), every put synced",
        BYTES >> 20,
        BYTES_SMALL >> 20
    )?;
    writeln!(
        out,
        "| chunk | target | MB/s | of plain | p99 ms | written per byte | CPU-s/GB | syncs/put |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|")?;
    for len in lens.into_iter().map(|len| len << 10) {
        let bytes = if len < 64 << 10 { BYTES_SMALL } else { BYTES };
        let chunks: Vec<NewChunk> = (0..bytes / len).map(|n| chunk(n as u64, len)).collect();
        let mut runs: Vec<(Target, Vec<Run>)> =
            [Target::PlainFile, Target::BlobFiles, Target::Segments, Target::Server]
                .map(|it| (it, vec![]))
                .into();
        for number in 0..ROUNDS {
            for turn in 0..runs.len() {
                // Each target comes after each other one.
                let at = (number + turn) % runs.len();
                let (target, runs) = &mut runs[at];
                let dir = Path::new(&dir).join("round");
                std::fs::create_dir_all(&dir)?;
                runs.push(runtime.block_on(round(&dir, *target, &chunks))?);
                std::fs::remove_dir_all(&dir)?;
                settle();
            }
        }
        let plain: Vec<f64> = runs[0].1.iter().map(|run| run.mb_per_s).collect();
        for (_, runs) in &mut runs {
            runs.iter_mut().zip(&plain).for_each(|(run, plain)| run.ratio = run.mb_per_s / plain);
        }
        for (target, runs) in &runs {
            writeln!(out, "{}", row(len, *target, runs))?;
        }
    }
    Ok(())
}

/// Waits until the disk has nothing left to do from the last round: deleting files may go on for
/// a while after they are gone.
fn settle() {
    for _ in 0..2 {
        nix::unistd::sync();
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn row(len: usize, target: Target, runs: &[Run]) -> String {
    let median = |of: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let name = match target {
        Target::PlainFile => "plain file",
        Target::BlobFiles => "blob files",
        Target::Segments => "segments",
        Target::Server => "a chunkserver over QUIC",
    };
    let known = runs.iter().all(|run| run.syncs_per_put.is_some());
    let syncs = median(|run| run.syncs_per_put.unwrap_or_default());
    let syncs = if known { format!("{syncs:.3}") } else { "-".to_owned() };
    format!(
        "| {} KiB | {name} | {:.0} | {:.2} | {:.1} | {:.2} | {:.2} | {syncs} |",
        len >> 10,
        median(|run| run.mb_per_s),
        median(|run| run.ratio),
        median(|run| run.p99.as_secs_f64() * 1e3),
        median(|run| run.written),
        median(|run| run.cpu_s_per_gb),
    )
}

async fn round(dir: &Path, target: Target, chunks: &[NewChunk]) -> Outcome<Run> {
    match target {
        Target::PlainFile => {
            let file = PlainFile::start(dir)?;
            let syncs = file.clone();
            let put = move |chunk| {
                let file = file.clone();
                async move { file.put(chunk).await }
            };
            measure(chunks, put, || Some(syncs.syncs()), || {}).await
        }
        Target::Server => {
            let server = server::Server::start(dir).await?;
            let client = server.client();
            let put = move |chunk: NewChunk| {
                let client = client.clone();
                async move {
                    let failed = |error: atoll_net::CallError| StoreError::Disk {
                        verb: "put",
                        reason: error.to_string(),
                    };
                    client.put(chunk.id, chunk.bytes).await.map_err(failed)
                }
            };
            let run = measure(chunks, put, || None, || {}).await?;
            server.stop().await?;
            Ok(run)
        }
        Target::BlobFiles | Target::Segments => {
            let from = if target == Target::Segments { 64 << 10 } else { usize::MAX };
            let store = Arc::new(RocksStore::create(dir, Some(0))?.with_segments_from(from));
            let writer = Arc::new(Writer::start(Arc::clone(&store) as Arc<dyn ChunkStore>)?);
            let before = store.syncs();
            let stop = (Arc::clone(&writer), Arc::clone(&store));
            let put = move |chunk| {
                let writer = Arc::clone(&writer);
                async move { writer.put(vec![chunk]).await }
            };
            let syncs = || Some(store.syncs() - before);
            let close = || {
                stop.0.stop();
                stop.1.close();
            };
            measure(chunks, put, syncs, close).await
        }
    }
}

/// Has the writers put all chunks, each its share.
async fn measure<F>(
    chunks: &[NewChunk],
    put: impl Fn(NewChunk) -> F + Clone + Send + 'static,
    syncs: impl Fn() -> Option<u64>,
    close: impl FnOnce(),
) -> Outcome<Run>
where
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
    let (written, cpu) = (written_bytes()?, cpu_s()?);
    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for first in 0..WRITERS {
        let mine: Vec<NewChunk> = chunks.iter().skip(first).step_by(WRITERS).cloned().collect();
        let put = put.clone();
        writers.spawn(async move {
            let mut took = Vec::with_capacity(mine.len());
            for chunk in mine {
                let started = Instant::now();
                put(chunk).await?;
                took.push(started.elapsed());
            }
            Ok::<_, StoreError>(took)
        });
    }
    let mut took: Vec<Duration> = Vec::new();
    while let Some(times) = writers.join_next().await {
        took.extend(times??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    let syncs = syncs();
    tokio::task::block_in_place(close);
    took.sort();
    Ok(Run {
        mb_per_s: bytes as f64 / 1e6 / elapsed,
        ratio: 1.0,
        p99: took[took.len() * 99 / 100],
        written: (written_bytes()? - written) as f64 / bytes as f64,
        cpu_s_per_gb: (cpu_s()? - cpu) * 1e9 / bytes as f64,
        syncs_per_put: syncs.map(|syncs| syncs as f64 / took.len() as f64),
    })
}

/// One file, and a thread that appends what everybody wants appended, and syncs.
#[derive(Clone)]
struct PlainFile {
    queue: mpsc::Sender<(NewChunk, oneshot::Sender<std::io::Result<()>>)>,
    syncs: Arc<std::sync::atomic::AtomicU64>,
}

impl PlainFile {
    fn start(dir: &Path) -> Outcome<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(dir.join("plain"))?;
        File::open(dir)?.sync_all()?;
        let (queue, mut jobs) = mpsc::channel::<(NewChunk, oneshot::Sender<_>)>(4096);
        let syncs = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = Arc::clone(&syncs);
        std::thread::spawn(move || {
            while let Some(first) = jobs.blocking_recv() {
                let mut bytes = first.0.bytes.len();
                let mut batch = vec![first];
                while bytes < BATCH_BYTES {
                    let Ok(job) = jobs.try_recv() else { break };
                    bytes += job.0.bytes.len();
                    batch.push(job);
                }
                let mut write = || {
                    for (chunk, _) in &batch {
                        file.write_all(&chunk.bytes)?;
                    }
                    file.sync_data()
                };
                let outcome = write();
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                for (_, done) in batch {
                    let failed = outcome.as_ref().err().map(std::io::Error::kind);
                    let answer = failed.map_or(Ok(()), |kind| Err(kind.into()));
                    drop(done.send(answer));
                }
            }
        });
        Ok(Self { queue, syncs })
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(std::sync::atomic::Ordering::Relaxed)
    }

    async fn put(&self, chunk: NewChunk) -> Result<(), StoreError> {
        let (done, wait) = oneshot::channel();
        self.queue.send((chunk, done)).await.map_err(|_closed| StoreError::Closed)?;
        let outcome = wait.await.map_err(|_closed| StoreError::Closed)?;
        let failed = |error: std::io::Error| error.to_string();
        outcome.map_err(|error| StoreError::Disk { verb: "append", reason: failed(error) })
    }
}

/// Bytes no compression shrinks, and no two numbers share.
fn chunk(number: u64, len: usize) -> NewChunk {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    let bytes = Bytes::from(bytes);
    NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 0 }
}

/// What this process made the disk write so far.
fn written_bytes() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.ok_or("no write_bytes in /proc/self/io")?.parse()?)
}

/// CPU seconds this process used so far.
fn cpu_s() -> Outcome<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
