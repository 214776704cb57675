//! A store that was set aside: its large chunks come back, its room comes back as they do, and it
//! stays until it was gone through.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use atoll_proto::ChunkId;

use super::{NOW, assert_consistent, chunk, listing, numbered};
use crate::store::rocks::RocksStore;
use crate::store::{ChunkStore, NewChunk};

const LEN: usize = 300_000;

/// A store with these batches whose index is lost, begun anew; and what was set aside.
fn begun_anew(parent: &Path, batches: &[&[NewChunk]]) -> (RocksStore, PathBuf) {
    let dir = parent.join("chunks");
    let store = RocksStore::create(&dir, Some(0)).unwrap();
    for batch in batches {
        store.put_batch(batch).unwrap();
    }
    drop(store);
    fs::remove_file(dir.join("CURRENT")).unwrap();
    let store = RocksStore::replace(&dir, Some(0), &[]).unwrap();
    (store, parent.join("chunks.damaged-1"))
}

fn salvage_all(store: &RocksStore) -> u64 {
    let mut chunks = 0;
    while store.unsalvaged() {
        chunks += store.salvage(NOW, 1 << 20).unwrap().chunks;
    }
    chunks
}

/// Bytes that the segment files of a store take on the disk.
fn taken(dir: &Path) -> u64 {
    let files = listing(&dir.join("segments"));
    files.keys().map(|file| fs::metadata(file).unwrap().blocks() * 512).sum()
}

#[test]
fn what_was_set_aside_stays_until_it_was_gone_through() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<NewChunk> = (0..30).map(|n| numbered(n, LEN)).collect();
    let batches: Vec<&[NewChunk]> = chunks.chunks(3).collect();
    let (store, aside) = begun_anew(dir.path(), &batches);
    let mut steps = 0;
    while store.unsalvaged() {
        assert!(!store.finish_refill().unwrap());
        assert!(store.refilling() && aside.is_dir());
        let done = store.salvage(NOW, 1).unwrap();
        assert_eq!(done.complete, !store.unsalvaged());
        steps += 1;
    }
    assert!(steps > 10, "{steps} steps");
    // A start in between goes through it again, which is quick.
    drop(store);
    let store = RocksStore::open(&dir.path().join("chunks"), Some(0)).unwrap();
    assert!(store.refilling() && store.unsalvaged() && !store.finish_refill().unwrap());
    assert_eq!(salvage_all(&store), 0);
    for chunk in &chunks {
        assert_eq!(store.get(&chunk.id).unwrap().as_ref(), Some(&chunk.bytes));
    }
    assert!(store.finish_refill().unwrap());
    assert!(!store.refilling() && !aside.exists());
    assert_consistent(&store);
}

#[test]
fn what_is_taken_back_gives_its_room_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<NewChunk> = (0..60).map(|n| numbered(n, LEN)).collect();
    let batches: Vec<&[NewChunk]> = chunks.chunks(2).collect();
    let (store, aside) = begun_anew(dir.path(), &batches);
    let all = taken(&aside);
    assert!(all > (60 * LEN) as u64);
    let mut back = 0;
    while store.unsalvaged() {
        back += store.salvage(NOW, 1).unwrap().bytes;
        assert!(taken(&aside) + back <= all, "{back} bytes are back");
    }
    assert_eq!(back, (60 * LEN) as u64);
    assert_eq!(taken(&aside), 0);
}

#[test]
fn one_bad_chunk_costs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<NewChunk> = (0..12).map(|n| numbered(n, LEN)).collect();
    let batches: Vec<&[NewChunk]> = chunks.chunks(4).collect();
    let (store, aside) = begun_anew(dir.path(), &batches);
    let segment = listing(&aside.join("segments")).into_keys().next().unwrap();
    // The first block is the header; then comes the first chunk.
    let file = OpenOptions::new().write(true).open(segment).unwrap();
    file.write_all_at(b"rot", 5000).unwrap();
    assert_eq!(salvage_all(&store), 11);
    assert!(!store.has(&chunks[0].id).unwrap());
    assert!(chunks[1..].iter().all(|chunk| store.has(&chunk.id).unwrap()));
}

/// A chunk that begins with what looks like a header that names these entries.
fn forged(entries: &[(u32, u32)]) -> NewChunk {
    let mut header = b"atollseg\0\x01\0\0".to_vec();
    header.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    header.extend_from_slice(&1u32.to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    for (block, len) in entries {
        header.extend_from_slice(&[9; 32]);
        header.extend_from_slice(&block.to_be_bytes());
        header.extend_from_slice(&len.to_be_bytes());
    }
    header.resize(4096 - 32, 0);
    let checksum = ChunkId::of(&header);
    header.extend_from_slice(checksum.as_bytes());
    header.resize(LEN, 7);
    chunk(header)
}

#[test]
fn a_chunk_that_looks_like_a_header_hides_no_other() {
    // It lies at block 1, behind the header of its frame, which is damaged.
    let far = forged(&[(u32::MAX, 0)]);
    let long = forged(&[(2, 8 << 20), (2050, 8 << 20)]);
    for bad in [far, long] {
        let dir = tempfile::tempdir().unwrap();
        let others: Vec<NewChunk> = (0..9).map(|n| numbered(n, LEN)).collect();
        let mut batches: Vec<&[NewChunk]> = vec![std::slice::from_ref(&bad)];
        batches.extend(others.chunks(3));
        let (store, aside) = begun_anew(dir.path(), &batches);
        let segment = listing(&aside.join("segments")).into_keys().next().unwrap();
        let file = OpenOptions::new().write(true).open(segment).unwrap();
        file.write_all_at(b"rot", 100).unwrap();
        assert_eq!(salvage_all(&store), 9);
        assert!(others.iter().all(|chunk| store.has(&chunk.id).unwrap()));
    }
}
