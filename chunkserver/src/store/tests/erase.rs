//! Erasing: no file has the bytes any more, and everything else is as it was.

use std::path::Path;

use atoll_proto::ChunkId;
use bytes::Bytes;

use super::{NOW, assert_consistent, chunk, listing, numbered};
use crate::store::rocks::RocksStore;
use crate::store::{Body, ChunkStore, Mark, NewChunk};

/// Bytes of a length that no compression makes shorter and nobody else has.
fn secret(seed: u64, len: usize) -> NewChunk {
    let part = |n: u64| ChunkId::of(&[seed.to_be_bytes(), n.to_be_bytes()].concat()).0;
    let mut bytes: Vec<u8> = (0..len as u64 / 32 + 1).flat_map(part).collect();
    bytes.truncate(len);
    chunk(Bytes::from(bytes))
}

fn holds(dir: &Path, secret: &NewChunk) -> bool {
    let marker = &secret.bytes[secret.bytes.len() - 64..];
    listing(dir).keys().any(|path| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(marker.len()).any(|window| window == marker)
    })
}

/// Obsolete files are deleted a moment after they became so.
fn assert_gone(dir: &Path, secret: &NewChunk) {
    let started = std::time::Instant::now();
    while holds(dir, secret) {
        assert!(started.elapsed() < std::time::Duration::from_secs(30), "its bytes are there");
        std::thread::yield_now();
    }
}

#[test]
fn no_file_has_what_was_erased() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    // In tables, in blob files, in segments.
    let lens = [500, 10_000, 200_000];
    let secrets: Vec<NewChunk> = (0u64..).zip(lens).map(|(n, len)| secret(n, len)).collect();
    let kept: Vec<NewChunk> =
        (0..30).map(|n| numbered(n, [400, 9_000, 150_000][n as usize % 3])).collect();
    store.put_batch(&kept[..15]).unwrap();
    store.put_batch(&secrets).unwrap();
    store.put_batch(&kept[15..]).unwrap();
    let live: Vec<_> = kept.iter().chain(&secrets).map(|it| (it.id, Mark::Live)).collect();
    store.mark(&live, NOW, Some(7)).unwrap();
    // One is deleted before, which leaves its bytes in a file of the database.
    let deleted = secret(99, 10_000);
    store.put_batch(std::slice::from_ref(&deleted)).unwrap();
    store.close();
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    assert_eq!(store.quarantine(&[deleted.id], NOW).unwrap(), 1);
    assert_eq!(store.purge(NOW + 1, 1).unwrap().chunks, 1);
    // And one is in quarantine.
    store.mark(&[(secrets[0].id, Mark::Collected)], NOW, Some(8)).unwrap();
    // Everything goes from the log into the database's own files.
    store.close();
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    for secret in secrets[1..].iter().chain([&deleted]) {
        assert!(holds(dir.path(), secret));
    }

    let ids: Vec<_> = secrets.iter().chain([&deleted]).map(|secret| secret.id).collect();
    let erased = store.erase(&ids, 9).unwrap();
    assert_eq!(erased.chunks, 3, "{erased:?}");
    for secret in secrets.iter().chain([&deleted]) {
        assert_eq!(store.record(&secret.id).unwrap(), None);
        assert_gone(dir.path(), secret);
    }
    for chunk in &kept {
        assert_eq!(store.get(&chunk.id).unwrap().as_ref(), Some(&chunk.bytes));
        assert_eq!(store.record(&chunk.id).unwrap().unwrap().body, Body::Present);
    }
    assert_consistent(&store);
    // Again it has nothing to do, also after a restart.
    assert_eq!(store.erase(&ids, 9).unwrap().chunks, 0);
    store.close();
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    assert_eq!(store.erase(&ids, 9).unwrap().chunks, 0);
    assert_consistent(&store);
    for secret in secrets.iter().chain([&deleted]) {
        assert_gone(dir.path(), secret);
    }
}
