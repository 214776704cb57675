//! One battery for every back end of [`ChunkStore`], the codecs of the schema, and what only a
//! disk can do: damage and lack of room.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use atoll_proto::{ChunkId, Epoch};
use bytes::Bytes;
use proptest::prelude::*;

use super::memory::MemoryStore;
use super::rocks::RocksStore;
use super::{
    Batched, ChunkStore, FORMAT, Meta, NewChunk, Record, State, StoreError, Totals, chunk_key,
    key_chunk,
};

fn chunk(bytes: impl Into<Bytes>) -> NewChunk {
    let bytes = bytes.into();
    NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(5) }
}

/// A chunk of `len` bytes that no other number gives.
fn numbered(number: u64, len: usize) -> NewChunk {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(len.max(8), (number % 251) as u8);
    chunk(bytes)
}

type Spoil = dyn Fn(&ChunkId, &'static [u8]);

fn battery(store: &Arc<dyn ChunkStore>, spoil: &Spoil) {
    stores_and_reads(store.as_ref());
    known_chunks_are_not_written_again(store.as_ref());
    lists_in_order(store.as_ref());
    takes_out_what_is_corrupt(store.as_ref(), spoil);
    keeps_values(store.as_ref());
    many_at_once(store);
    closes(store.as_ref());
}

fn stores_and_reads(store: &dyn ChunkStore) {
    let before = store.totals();
    let chunks = [numbered(1, 8), numbered(2, 5000), numbered(3, 1 << 20), chunk(Bytes::new())];
    let bytes: u64 = chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum();
    assert_eq!(store.get(&chunks[0].id).unwrap(), None);
    let done = store.put_batch(&chunks).unwrap();
    assert_eq!(done, Batched { written: 4, bytes, known: 0 });
    for chunk in &chunks {
        assert_eq!(store.get(&chunk.id).unwrap(), Some(chunk.bytes.clone()));
        assert_eq!(store.len(&chunk.id).unwrap(), Some(chunk.bytes.len() as u32));
        assert!(store.has(&chunk.id).unwrap());
        let record = store.record(&chunk.id).unwrap().unwrap();
        assert_eq!((record.state, record.epoch), (State::Present, Epoch(5)));
    }
    assert!(!store.has(&ChunkId([7; 32])).unwrap());
    assert_eq!(store.totals().chunks, before.chunks + 4);
    assert_eq!(store.totals().bytes, before.bytes + bytes);
    let space = store.space().unwrap();
    assert!(space.free > 0 && space.free <= space.total);
}

fn known_chunks_are_not_written_again(store: &dyn ChunkStore) {
    let (old, new) = (numbered(10, 100), numbered(11, 100));
    store.put_batch(std::slice::from_ref(&old)).unwrap();
    let before = store.totals();
    let done = store.put_batch(&[old.clone(), new.clone(), new.clone()]).unwrap();
    assert_eq!(done, Batched { written: 1, bytes: 100, known: 2 });
    assert_eq!(store.totals().chunks, before.chunks + 1);
    let done = store.put_batch(&[old, new]).unwrap();
    assert_eq!(done, Batched { written: 0, bytes: 0, known: 2 });
    assert_eq!(store.put_batch(&[]).unwrap(), Batched::default());
}

fn lists_in_order(store: &dyn ChunkStore) {
    let chunks: Vec<NewChunk> = (100..140).map(|n| numbered(n, 20)).collect();
    store.put_batch(&chunks).unwrap();
    let all = store.list(None, usize::MAX).unwrap();
    assert_eq!(all.len() as u64, store.totals().chunks);
    assert!(all.is_sorted_by_key(|(id, _)| *id));
    let mut paged = Vec::new();
    let mut after = None;
    loop {
        let page = store.list(after.as_ref(), 7).unwrap();
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        paged.extend(page);
    }
    assert_eq!(paged, all);
}

fn takes_out_what_is_corrupt(store: &dyn ChunkStore, spoil: &Spoil) {
    let (good, bad) = (numbered(20, 9000), numbered(21, 9000));
    store.put_batch(&[good.clone(), bad.clone()]).unwrap();
    assert!(!store.quarantine(&good.id).unwrap(), "a good chunk stays");
    assert!(!store.quarantine(&ChunkId([7; 32])).unwrap(), "an unknown one is no error");
    let before = store.totals();
    spoil(&bad.id, b"not what it should be");
    assert!(store.quarantine(&bad.id).unwrap());
    assert!(!store.quarantine(&bad.id).unwrap(), "only once");
    assert_eq!(store.get(&bad.id).unwrap(), None);
    assert!(!store.has(&bad.id).unwrap());
    assert_eq!(store.record(&bad.id).unwrap().unwrap().state, State::Corrupt);
    assert_eq!(store.get(&good.id).unwrap(), Some(good.bytes));
    let after = store.totals();
    assert_eq!(after.chunks, before.chunks - 1);
    assert_eq!(after.bytes, before.bytes - 9000);
    assert_eq!(after.corrupt_found, before.corrupt_found + 1);

    let healed = store.put_batch(std::slice::from_ref(&bad)).unwrap();
    assert_eq!(healed.written, 1, "a good copy replaces a corrupt one");
    assert_eq!(store.get(&bad.id).unwrap(), Some(bad.bytes));
    assert_eq!(store.totals().chunks, before.chunks);
}

fn keeps_values(store: &dyn ChunkStore) {
    assert_eq!(store.load(Meta::View).unwrap(), None);
    let values = [(Meta::View, b"a view".to_vec()), (Meta::Fence, vec![0; 16])];
    store.save(&values).unwrap();
    store.save(&[(Meta::View, b"a newer view".to_vec())]).unwrap();
    assert_eq!(store.load(Meta::View).unwrap().unwrap(), b"a newer view");
    assert_eq!(store.load(Meta::Fence).unwrap().unwrap(), [0; 16]);
}

fn many_at_once(store: &Arc<dyn ChunkStore>) {
    let before = store.totals();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            scope.spawn(move || {
                for n in 0..25 {
                    // Every chunk is put by two threads.
                    let chunk = numbered(1000 + n + 25 * (thread / 2), 3000);
                    store.put_batch(std::slice::from_ref(&chunk)).unwrap();
                    assert_eq!(store.get(&chunk.id).unwrap().unwrap(), chunk.bytes);
                    assert!(!store.quarantine(&chunk.id).unwrap());
                }
            });
        }
    });
    assert_eq!(store.totals().chunks, before.chunks + 50);
    assert_eq!(store.totals().bytes, before.bytes + 50 * 3000);
}

fn closes(store: &dyn ChunkStore) {
    store.close();
    store.close();
    assert_eq!(store.get(&numbered(1, 8).id), Err(StoreError::Closed));
    assert_eq!(store.put_batch(&[numbered(1, 8)]), Err(StoreError::Closed));
    assert_eq!(store.save(&[]), Err(StoreError::Closed));
}

#[test]
fn battery_in_memory() {
    let store = Arc::new(MemoryStore::default());
    let spoiled = store.clone();
    let spoil = move |id: &ChunkId, wrong: &'static [u8]| {
        spoiled.spoil(id, Bytes::from_static(wrong));
    };
    battery(&(store as Arc<dyn ChunkStore>), &spoil);
}

#[test]
fn battery_on_rocks() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RocksStore::create(dir.path(), Some(0)).unwrap());
    let spoiled = store.clone();
    let spoil = move |id: &ChunkId, wrong: &'static [u8]| spoiled.spoil(id, wrong);
    battery(&(store as Arc<dyn ChunkStore>), &spoil);
}

proptest! {
    #[test]
    fn keys_round_trip(id: [u8; 32], bytes: Vec<u8>) {
        let id = ChunkId(id);
        prop_assert_eq!(key_chunk(&chunk_key(&id)), Some(id));
        if let Some(id) = key_chunk(&bytes) {
            prop_assert_eq!(&chunk_key(&id)[..], &bytes[..]);
        }
    }

    #[test]
    fn keys_are_in_the_order_of_placement_groups(a: [u8; 32], b: [u8; 32]) {
        let (a, b) = (ChunkId(a), ChunkId(b));
        if a.pg() < b.pg() {
            prop_assert!(chunk_key(&a) < chunk_key(&b));
        }
    }

    #[test]
    fn records_round_trip(present: bool, len: u32, epoch: u64, bytes: Vec<u8>) {
        let state = if present { State::Present } else { State::Corrupt };
        let record = Record { state, len, epoch: Epoch(epoch) };
        prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        if let Some(record) = Record::decode(&bytes) {
            prop_assert_eq!(&record.encode()[..], &bytes[..]);
        }
    }

    #[test]
    fn totals_round_trip(chunks: u64, bytes: u64, corrupt_found: u64, noise: Vec<u8>) {
        let totals = Totals { chunks, bytes, corrupt_found };
        prop_assert_eq!(Totals::decode(&totals.encode()), Some(totals));
        prop_assert_eq!(Totals::decode(&noise).is_some(), noise.len() == 24);
    }
}

#[test]
fn meta_keys_differ() {
    let keys: std::collections::BTreeSet<&[u8]> = Meta::ALL.iter().map(|m| m.key()).collect();
    assert_eq!(keys.len(), Meta::ALL.len());
}

#[test]
fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<NewChunk> = (0..50).map(|n| numbered(n, 10_000)).collect();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    store.put_batch(&chunks).unwrap();
    let totals = store.totals();
    drop(store);
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    assert_eq!(store.totals(), totals);
    assert_eq!(store.load(Meta::Format).unwrap().unwrap(), FORMAT.to_be_bytes());
    for chunk in &chunks {
        assert_eq!(store.get(&chunk.id).unwrap().unwrap(), chunk.bytes);
    }
}

#[test]
fn a_store_is_not_made_by_opening_it() {
    let dir = tempfile::tempdir().unwrap();
    assert!(RocksStore::open(dir.path(), None).is_err());
    assert!(!RocksStore::exists(dir.path()));
}

#[test]
fn a_flipped_byte_in_a_blob_file_is_found_and_contained() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<NewChunk> = (0..20).map(|n| numbered(n, 50_000)).collect();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    store.put_batch(&chunks).unwrap();
    store.flush();
    drop(store);
    flip(dir.path(), &chunks[7].bytes);

    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    let found = store.get(&chunks[7].id);
    assert!(
        matches!(found, Err(StoreError::Corrupt { id, .. }) if id == chunks[7].id),
        "{found:?}"
    );
    assert!(store.quarantine(&chunks[7].id).unwrap());
    assert_eq!(store.totals().corrupt_found, 1);
    for (at, chunk) in chunks.iter().enumerate().filter(|(at, _)| *at != 7) {
        assert_eq!(store.get(&chunk.id).unwrap().unwrap(), chunk.bytes, "chunk {at}");
    }
}

/// Flips one byte in the middle of these bytes, in whichever blob file has them.
fn flip(dir: &Path, wanted: &[u8]) {
    let blobs = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    for path in blobs.filter(|path| path.extension().is_some_and(|e| e == "blob")) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(64).position(|window| window == &wanted[..64]) {
            bytes[at + wanted.len() / 2] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("no blob file has the chunk");
}

#[test]
fn puts_leave_the_reserve_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(u64::MAX)).unwrap();
    let refused = store.put_batch(&[numbered(1, 10)]);
    assert!(matches!(refused, Err(StoreError::Full { reserve: u64::MAX, .. })), "{refused:?}");
    assert_eq!(store.totals(), Totals::default());
    assert_eq!(store.get(&numbered(1, 10).id).unwrap(), None);
}

/// A small file system of its own, where the test may mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at);
        let mounted = mount.status().is_ok_and(|status| status.success());
        mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "cannot unmount {:?}", self.0);
    }
}

/// A store on a disk of 64 MiB, of which something else has 24; `None` where mounting is not
/// permitted.
fn on_a_small_disk(dir: &Path, reserve: u64) -> Option<(SmallDisk, PathBuf, RocksStore)> {
    let disk = SmallDisk::mount(dir, 64 << 20);
    if disk.is_none() {
        eprintln!("SKIPPED: this test needs to be allowed to mount a tmpfs");
    }
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 24 << 20]).unwrap();
    let store = RocksStore::create(&dir.join("store"), Some(reserve)).unwrap();
    disk.map(|disk| (disk, ballast, store))
}

/// Puts chunks until one is refused; returns the stored ones and the refused one.
fn fill(store: &RocksStore) -> (Vec<NewChunk>, NewChunk) {
    let mut stored = Vec::new();
    for n in 0..2000 {
        let chunk = numbered(n, 256 << 10);
        match store.put_batch(std::slice::from_ref(&chunk)) {
            Ok(_) => stored.push(chunk),
            Err(StoreError::Full { .. }) => return (stored, chunk),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("64 MiB do not hold 500 MiB");
}

fn check_all(store: &RocksStore, stored: &[NewChunk]) {
    assert_eq!(store.totals().chunks, stored.len() as u64);
    for chunk in stored {
        assert_eq!(store.get(&chunk.id).unwrap().unwrap(), chunk.bytes);
    }
}

fn put_until_it_works(store: &RocksStore, chunk: &NewChunk) {
    let started = std::time::Instant::now();
    while let Err(error) = store.put_batch(std::slice::from_ref(chunk)) {
        assert!(started.elapsed().as_secs() < 20, "puts do not work again: {error}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_full_disk_refuses_puts_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, ballast, store)) = on_a_small_disk(dir.path(), 2 << 20) else { return };
    let (mut stored, late) = fill(&store);
    assert!(stored.len() > 100, "only {} of about 140 fit", stored.len());
    check_all(&store, &stored);
    store.put_batch(&stored[..3]).expect("what is here already needs no room");
    drop(store);
    let store = RocksStore::open(&dir.path().join("store"), Some(2 << 20)).unwrap();
    check_all(&store, &stored);

    std::fs::remove_file(&ballast).unwrap();
    store.put_batch(std::slice::from_ref(&late)).unwrap();
    stored.push(late);
    check_all(&store, &stored);
    drop(store);
    drop(disk);
}

#[test]
fn a_disk_that_something_else_fills_loses_nothing_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, ballast, store)) = on_a_small_disk(dir.path(), 0) else { return };
    let mut stored: Vec<NewChunk> = (0..60).map(|n| numbered(n, 256 << 10)).collect();
    store.put_batch(&stored).unwrap();
    // Up to the last byte, so that RocksDB itself fails to write.
    let filled = std::fs::write(dir.path().join("more"), vec![2; 64 << 20]);
    assert!(filled.is_err());
    let late = numbered(1000, 256 << 10);
    let error = store.put_blindly(&late).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    check_all(&store, &stored);
    let error = store.put_batch(std::slice::from_ref(&late)).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    check_all(&store, &stored);

    // Opened on a full disk it serves reads, and takes puts once there is room.
    drop(store);
    let store = RocksStore::open(&dir.path().join("store"), Some(0)).unwrap();
    check_all(&store, &stored);
    let error = store.put_batch(std::slice::from_ref(&late)).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    check_all(&store, &stored);
    std::fs::remove_file(&ballast).unwrap();
    std::fs::remove_file(dir.path().join("more")).unwrap();
    put_until_it_works(&store, &late);
    stored.push(late);
    check_all(&store, &stored);
    drop(store);
    let store = RocksStore::open(&dir.path().join("store"), Some(0)).unwrap();
    check_all(&store, &stored);
    drop(store);
    drop(disk);
}
