//! Bytes that change behind the store's back are found and contained.

use std::path::Path;

use super::numbered;
use crate::store::rocks::RocksStore;
use crate::store::{ChunkStore, NewChunk, StoreError};

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
    assert!(store.spoil(&chunks[7].id, 1).unwrap());
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
