//! Durable puts through the store: `cargo run --release -p atoll-chunkserver --example put_bench
//! [DIR]`. For 64 KiB and 1 MiB chunks, 16 writers put until enough bytes are stored; each put
//! returns when it is synced. Says how fast, how often it synced, and how much was written.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_chunkserver::store::rocks::RocksStore;
use atoll_chunkserver::store::writer::Writer;
use atoll_chunkserver::store::{ChunkStore, NewChunk, StoreError};
use atoll_proto::{ChunkId, Epoch};
use bytes::Bytes;

const WRITERS: u64 = 16;
const BYTES: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/put_bench".to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut out = std::io::stdout();
    writeln!(out, "{WRITERS} writers, {} MiB each row, every put synced", BYTES >> 20)?;
    for len in [4 << 10, 64 << 10, 1 << 20] {
        let dir = Path::new(&dir).join(len.to_string());
        std::fs::create_dir_all(&dir)?;
        let bytes = if len < 16 << 10 { BYTES / 16 } else { BYTES };
        let line = runtime.block_on(run(&dir, len, bytes))?;
        writeln!(out, "{line}")?;
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

async fn run(dir: &Path, len: usize, bytes: u64) -> Result<String, Box<dyn Error>> {
    let store = Arc::new(RocksStore::create(dir, Some(0))?);
    let writer = Arc::new(Writer::start(Arc::clone(&store) as Arc<dyn ChunkStore>)?);
    let each = bytes / len as u64 / WRITERS;
    let written = written_bytes()?;
    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for first in 0..WRITERS {
        let writer = Arc::clone(&writer);
        writers.spawn(async move {
            let mut took = Vec::new();
            for number in 0..each {
                let chunk = chunk(number * WRITERS + first, len);
                let started = Instant::now();
                writer.put(vec![chunk]).await?;
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
    let syncs = store.syncs();
    tokio::task::spawn_blocking(move || {
        writer.stop();
        store.close();
    })
    .await?;
    let stored = (took.len() * len) as f64;
    took.sort();
    Ok(format!(
        "{:>7} B: {:>6.0} MB/s, p50 {:?}, p99 {:?}, {:.3} syncs per put, {:.2} bytes written per byte",
        len,
        stored / 1e6 / elapsed,
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        syncs as f64 / took.len() as f64,
        (written_bytes()? - written) as f64 / stored,
    ))
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
fn written_bytes() -> Result<u64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.ok_or("no write_bytes in /proc/self/io")?.parse()?)
}
