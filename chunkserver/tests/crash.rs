//! Acknowledged means durable: a process that stores chunks is killed with SIGKILL at any moment,
//! and every chunk whose put was acknowledged is there, whole, when the store is opened again.
//!
//! The process is this test binary itself, told by an environment variable to be the victim.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_chunkserver::store::rocks::RocksStore;
use atoll_chunkserver::store::writer::Writer;
use atoll_chunkserver::store::{ChunkStore, NewChunk};
use atoll_proto::{ChunkId, Epoch};
use bytes::Bytes;

const VICTIM: &str = "ATOLL_CRASH_VICTIM_DIR";
const WRITERS: u64 = 8;
const ROUNDS: u64 = 3;
const ACKNOWLEDGED_MIN: usize = 300;

fn chunk(number: u64) -> NewChunk {
    // Some small ones that stay in the tree, some for blob files.
    let len = [300, 5_000, 70_000][(number % 3) as usize];
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(len, number as u8);
    let bytes = Bytes::from(bytes);
    NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 0 }
}

fn open(dir: &Path) -> RocksStore {
    let store = dir.join("store");
    if RocksStore::exists(&store) {
        RocksStore::open(&store, Some(0)).unwrap()
    } else {
        RocksStore::create(&store, Some(0)).unwrap()
    }
}

/// Puts for ever; names each chunk in the file `acknowledged` once its put has returned.
#[test]
#[ignore = "runs as the child of the other test"]
fn victim() {
    let Some(dir) = std::env::var_os(VICTIM) else { return };
    let dir = Path::new(&dir);
    let store: Arc<dyn ChunkStore> = Arc::new(open(dir));
    let start = store.totals().chunks;
    let writer = Arc::new(Writer::start(store).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut puts = tokio::task::JoinSet::new();
        for first in 0..WRITERS {
            let writer = Arc::clone(&writer);
            let path = dir.join("acknowledged");
            puts.spawn(async move {
                let mut log = OpenOptions::new().create(true).append(true).open(path).unwrap();
                for number in (start * 1000 + first..).step_by(WRITERS as usize) {
                    let chunk = chunk(number);
                    writer.put(vec![chunk.clone()]).await.unwrap();
                    // One write each, so that lines of several writers do not mix.
                    log.write_all(format!("{}\n", chunk.id).as_bytes()).unwrap();
                }
            });
        }
        while puts.join_next().await.is_some() {}
    });
}

fn acknowledged(dir: &Path) -> HashSet<ChunkId> {
    let text = std::fs::read_to_string(dir.join("acknowledged")).unwrap_or_default();
    // The last line may have been cut off by the kill.
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
}

#[test]
fn what_was_acknowledged_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=ROUNDS {
        let wanted = acknowledged(dir.path()).len() + ACKNOWLEDGED_MIN;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored"])
            .env(VICTIM, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while acknowledged(dir.path()).len() < wanted {
            assert!(started.elapsed() < Duration::from_secs(60), "the victim is too slow");
            assert!(child.try_wait().unwrap().is_none(), "the victim ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let acknowledged = acknowledged(dir.path());
        let store = open(dir.path());
        for id in &acknowledged {
            let bytes =
                store.get(id).unwrap().unwrap_or_else(|| panic!("round {round}: {id} lost"));
            assert_eq!(ChunkId::of(&bytes), *id);
        }
        let all = store.list(None, usize::MAX).unwrap();
        assert_eq!(all.len() as u64, store.totals().chunks, "the totals fit the index");
        let bytes: u64 = all.iter().map(|(_, record)| u64::from(record.len)).sum();
        assert_eq!(bytes, store.totals().bytes);
    }
}
