//! Acknowledged means durable: a process that stores chunks is killed with SIGKILL, or its disk
//! loses what was not synced, at any moment; every chunk whose put was acknowledged is there,
//! whole, when the store is opened again, and what is kept twice still agrees.
//!
//! The process is this test binary itself, told by an environment variable to be the victim.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_chunkserver::store::rocks::RocksStore;
use atoll_chunkserver::store::writer::Writer;
use atoll_chunkserver::store::{Body, ChunkStore, Mark, NewChunk};
use atoll_proto::ids::PG_COUNT;
use atoll_proto::tree::{SetHash, bucket_of};
use atoll_proto::{ChunkId, Epoch, PgId};
use bytes::Bytes;

/// Where the victim says what was acknowledged.
const VICTIM: &str = "ATOLL_CRASH_VICTIM_DIR";
/// Where it has its store.
const STORE: &str = "ATOLL_CRASH_VICTIM_STORE";
const WRITERS: u64 = 8;
const ROUNDS: u64 = 3;
const ACKNOWLEDGED_MIN: usize = 300;

fn chunk(number: u64) -> NewChunk {
    // Some small ones that stay in the tree, some for blob files, some for segments.
    let len = [300, 5_000, 70_000][(number % 3) as usize];
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(len, number as u8);
    let bytes = Bytes::from(bytes);
    NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 1 }
}

fn open(dir: &Path) -> RocksStore {
    if RocksStore::exists(dir) {
        RocksStore::open(dir, Some(0)).unwrap()
    } else {
        RocksStore::create(dir, Some(0)).unwrap()
    }
}

/// Puts for ever; names each chunk in the file `acknowledged` once its put has returned. Some are
/// not named: they are deleted again. All others become live.
#[test]
#[ignore = "runs as the child of the other tests"]
fn victim() {
    let (Some(dir), Some(store)) = (std::env::var_os(VICTIM), std::env::var_os(STORE)) else {
        return;
    };
    let dir = Path::new(&dir);
    let store: Arc<dyn ChunkStore> = Arc::new(open(Path::new(&store)));
    let start = store.list(None, usize::MAX).unwrap().len() as u64;
    let writer = Arc::new(Writer::start(Arc::clone(&store)).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut puts = tokio::task::JoinSet::new();
        for first in 0..WRITERS {
            let (writer, store) = (Arc::clone(&writer), Arc::clone(&store));
            let path = dir.join("acknowledged");
            puts.spawn(async move {
                let mut log = OpenOptions::new().create(true).append(true).open(path).unwrap();
                for number in (start * 1000 + first..).step_by(WRITERS as usize) {
                    let chunk = chunk(number);
                    writer.put(vec![chunk.clone()]).await.unwrap();
                    if number % 11 == 0 {
                        store.quarantine(&[chunk.id], number).unwrap();
                        store.purge(u64::MAX, 4).unwrap();
                        continue;
                    }
                    // One write each, so that lines of several writers do not mix.
                    log.write_all(format!("{}\n", chunk.id).as_bytes()).unwrap();
                    store.mark(&[(chunk.id, Mark::Live)], 1, Some(number)).unwrap();
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

/// A victim that has put enough by now.
fn victim_at_work(dir: &Path, store: &Path) -> Child {
    let wanted = acknowledged(dir).len() + ACKNOWLEDGED_MIN;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored"])
        .env(VICTIM, dir)
        .env(STORE, store)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while acknowledged(dir).len() < wanted {
        assert!(started.elapsed() < Duration::from_secs(120), "the victim is too slow");
        assert!(child.try_wait().unwrap().is_none(), "the victim ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn check(acknowledged: &HashSet<ChunkId>, store: &Path) {
    let store = open(store);
    for id in acknowledged {
        let bytes = store.get(id).unwrap().unwrap_or_else(|| panic!("{id} is lost"));
        assert_eq!(ChunkId::of(&bytes), *id);
    }
    let all = store.list(None, usize::MAX).unwrap();
    let present = || all.iter().filter(|(_, record)| record.body == Body::Present);
    assert_eq!(present().count() as u64, store.totals().chunks, "the totals fit the index");
    let bytes: u64 = present().map(|(_, record)| u64::from(record.len)).sum();
    assert_eq!(bytes, store.totals().bytes);
    let mut digests: BTreeMap<(PgId, u8), SetHash> = BTreeMap::new();
    for (id, _) in all.iter().filter(|(_, record)| record.counts()) {
        digests.entry((id.pg(), bucket_of(id))).or_default().insert(id);
    }
    assert!(digests.len() > 100);
    for pg in (0..PG_COUNT).map(PgId) {
        for (number, digest) in (0..=u8::MAX).zip(store.buckets(pg).unwrap().iter()) {
            let expected = digests.get(&(pg, number)).copied().unwrap_or_default();
            assert_eq!(*digest, expected.to_bytes(), "the digests fit the index");
        }
    }
}

#[test]
fn what_was_acknowledged_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    for _ in 0..ROUNDS {
        let mut child = victim_at_work(dir.path(), &store);
        child.kill().unwrap();
        child.wait().unwrap();
        check(&acknowledged(dir.path()), &store);
    }
}

/// A file system that can be made to forget what was not synced; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None` where that is not possible.
    fn new(dir: &Path) -> Option<Self> {
        let image = dir.join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(1 << 30).unwrap();
        let disk = Self(dir.join("disk"));
        std::fs::create_dir(&disk.0).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        (made && run("xfs_io", &["-V"]) && disk.mount()).then_some(disk)
    }

    fn mount(&self) -> bool {
        let image = self.0.with_file_name("image");
        run("mount", &["-o", "loop", image.to_str().unwrap(), self.0.to_str().unwrap()])
    }

    /// Nothing that is not on the disk now will ever get there.
    fn cut(&self) {
        assert!(run("xfs_io", &["-x", "-c", "shutdown", self.0.to_str().unwrap()]));
    }

    fn unmount(&self) {
        let started = Instant::now();
        // A process that was just killed may hold it for a moment.
        while !run("umount", &[self.0.to_str().unwrap()]) {
            assert!(started.elapsed() < Duration::from_secs(30), "cannot unmount");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn what_was_acknowledged_survives_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path()) else {
        eprintln!("SKIPPED: this test needs root, mkfs.ext4 and xfs_io");
        return;
    };
    let store = disk.0.join("store");
    // Chunks acknowledged before some cut began. While the file system shuts down, its kernel may
    // tell a sync that it is done which never will be; without power nobody would hear of it.
    let (mut before, mut after) = (HashSet::new(), HashSet::new());
    for _ in 0..ROUNDS {
        let mut child = victim_at_work(dir.path(), &store);
        before.extend(acknowledged(dir.path()).difference(&after));
        disk.cut();
        child.kill().unwrap();
        child.wait().unwrap();
        disk.unmount();
        assert!(disk.mount());
        // Those of a moment when nobody could have heard of them.
        after = acknowledged(dir.path()).difference(&before).copied().collect();
        check(&before, &store);
    }
}
