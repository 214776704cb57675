//! Segment files: what is deleted gives its room back, what was not finished is not there, and
//! what is wrong with one chunk is no other chunk's problem.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{NOW, assert_consistent, copy, numbered};
use crate::store::rocks::RocksStore;
use crate::store::{Body, ChunkStore, Mark, NewChunk, StoreError};

const LEN: usize = 1 << 20;

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("segments")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Bytes that the segment files take on the disk.
fn taken(dir: &Path) -> u64 {
    files(dir).iter().map(|file| fs::metadata(file).unwrap().blocks() * 512).sum()
}

fn drop_chunks(store: &RocksStore, chunks: &[NewChunk]) {
    let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
    assert_eq!(store.quarantine(&ids, NOW).unwrap(), ids.len() as u64);
    assert_eq!(store.purge(NOW + 1, usize::MAX).unwrap().chunks, ids.len() as u64);
}

#[test]
fn deleted_chunks_give_their_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    let chunks: Vec<NewChunk> = (0..40).map(|n| numbered(n, LEN)).collect();
    for batch in chunks.chunks(8) {
        store.put_batch(batch).unwrap();
    }
    store.close();
    let all = taken(dir.path());
    assert!(all >= 40 * LEN as u64, "{all}");
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    drop_chunks(&store, &chunks[5..25]);
    assert_consistent(&store);
    store.close();
    let some = taken(dir.path());
    assert!(some + 19 * LEN as u64 <= all, "{some} of {all}");
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    for chunk in chunks[..5].iter().chain(&chunks[25..]) {
        assert_eq!(store.get(&chunk.id).unwrap().as_ref(), Some(&chunk.bytes));
    }
}

#[test]
fn a_segment_without_chunks_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    // More than fits into one file.
    let chunks: Vec<NewChunk> = (0..300).map(|n| numbered(n, LEN)).collect();
    for batch in chunks.chunks(16) {
        store.put_batch(batch).unwrap();
    }
    assert_eq!(files(dir.path()).len(), 2);
    let second = files(dir.path()).pop().unwrap();
    drop_chunks(&store, &chunks[..290]);
    assert_eq!(files(dir.path()), std::slice::from_ref(&second));
    drop_chunks(&store, &chunks[290..]);
    assert_eq!(files(dir.path()), [second], "it is still appended to");
    assert_eq!(store.totals().bytes, 0);
    store.put_batch(&chunks[..2]).unwrap();
    assert_eq!(store.get(&chunks[1].id).unwrap().as_ref(), Some(&chunks[1].bytes));
    store.close();
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    assert_eq!(store.get(&chunks[0].id).unwrap().as_ref(), Some(&chunks[0].bytes));
    assert!(taken(dir.path()) < 4 * LEN as u64);
}

#[test]
fn a_replaced_chunk_gives_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    let chunk = numbered(1, LEN);
    for _ in 0..10 {
        store.put_batch(std::slice::from_ref(&chunk)).unwrap();
        store.mark(&[(chunk.id, Mark::Live)], NOW, None).unwrap();
        store.damage(&chunk.id, b"rot");
        assert!(store.spoil(&chunk.id, NOW).unwrap());
    }
    store.put_batch(std::slice::from_ref(&chunk)).unwrap();
    assert_eq!(store.totals().repaired, 10);
    assert_eq!(store.get(&chunk.id).unwrap(), Some(chunk.bytes));
    store.close();
    let taken = taken(dir.path());
    assert!(taken < 2 * LEN as u64, "{taken}");
}

#[test]
fn what_was_written_but_not_made_valid_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    let chunks: Vec<NewChunk> = (0..6).map(|n| numbered(n, LEN)).collect();
    store.put_batch(&chunks[..2]).unwrap();
    // The index as it was before the second batch, the segment as it was after it.
    let left = tempfile::tempdir().unwrap();
    copy(dir.path(), left.path());
    store.put_batch(&chunks[2..4]).unwrap();
    let file = files(dir.path()).pop().unwrap();
    fs::copy(&file, left.path().join("segments").join(file.file_name().unwrap())).unwrap();
    // And a file that the index does not know.
    fs::copy(&file, left.path().join("segments/00000007.segment")).unwrap();

    let store = RocksStore::open(left.path(), Some(0)).unwrap();
    assert_eq!(files(left.path()).len(), 1);
    assert_eq!(store.get(&chunks[2].id).unwrap(), None);
    store.put_batch(&chunks[4..]).unwrap();
    for chunk in chunks[..2].iter().chain(&chunks[4..]) {
        assert_eq!(store.get(&chunk.id).unwrap().as_ref(), Some(&chunk.bytes));
    }
    assert_consistent(&store);
}

#[test]
fn a_missing_or_cut_file_damages_its_chunks_only() {
    let dir = tempfile::tempdir().unwrap();
    let chunks: Vec<NewChunk> = (0..300).map(|n| numbered(n, LEN)).collect();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    for batch in chunks.chunks(16) {
        store.put_batch(batch).unwrap();
    }
    let marks: Vec<_> = chunks.iter().map(|chunk| (chunk.id, Mark::Live)).collect();
    store.mark(&marks, NOW, None).unwrap();
    store.close();
    let [first, last]: [PathBuf; 2] = files(dir.path()).try_into().unwrap();
    fs::remove_file(&first).unwrap();
    let len = fs::metadata(&last).unwrap().len();
    fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(len / 2).unwrap();

    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    let (mut good, mut bad) = (0, 0);
    for chunk in &chunks {
        match store.get(&chunk.id) {
            Ok(Some(bytes)) if bytes == chunk.bytes => good += 1,
            // A hole where the bytes were: the caller sees that by the hash.
            Ok(Some(_)) | Err(StoreError::Corrupt { .. }) => {
                bad += 1;
                assert!(store.spoil(&chunk.id, NOW).unwrap());
                assert_eq!(store.record(&chunk.id).unwrap().unwrap().body, Body::Corrupt);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(good > 10 && bad > 250, "{good} good, {bad} bad");
    assert_eq!(store.totals().lacking, bad);
    assert_consistent(&store);
    for batch in chunks.chunks(16) {
        store.put_batch(batch).unwrap();
    }
    assert_eq!(store.totals().lacking, 0);
    assert_eq!(store.totals().chunks, 300);
    for chunk in &chunks {
        assert_eq!(store.get(&chunk.id).unwrap().as_ref(), Some(&chunk.bytes));
    }
}
