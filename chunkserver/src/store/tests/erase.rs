//! Erasing: no file has the bytes any more, and everything else is as it was.

use std::path::Path;

use atoll_proto::{ChunkId, Epoch};
use bytes::Bytes;

use super::{EPOCH, NOW, assert_consistent, chunk, listing, numbered};
use crate::store::rocks::RocksStore;
use crate::store::{Body, ChunkStore, Mark, Meta, NewChunk, StoreError};

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
    let erased = store.erase(&ids, EPOCH, 9).unwrap();
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
    assert_eq!(store.erase(&ids, EPOCH, 9).unwrap().chunks, 0);
    store.close();
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    assert_eq!(store.erase(&ids, EPOCH, 9).unwrap().chunks, 0);
    assert_consistent(&store);
    for secret in secrets.iter().chain([&deleted]) {
        assert_gone(dir.path(), secret);
    }
}

/// Segment files, by number.
fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "segment");
    listing(dir).into_keys().filter(is_segment).collect()
}

#[test]
fn bytes_in_segments_that_no_record_names_go_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    let [punched, torn, other, kept] = [1, 2, 3, 4].map(|seed| secret(seed, 200_000));
    store.put_batch(&[kept.clone(), punched.clone()]).unwrap();
    // Deleted, but the file system did not take the blocks back.
    store.leave_hole(&punched.id);
    // Written, and never made valid: behind the end of a file, and in one that nobody knows.
    let append = |path: &Path, bytes: &[u8]| {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        std::io::Write::write_all(&mut &file, bytes).unwrap();
    };
    let first = segments(dir.path()).remove(0);
    append(&first, &torn.bytes);
    append(&first.with_file_name("0000abcd.segment"), &other.bytes);
    let ids = [punched.id, torn.id, other.id];
    assert_eq!(store.erase(&ids, EPOCH, 3).unwrap().chunks, 0, "no record has them");
    for secret in [&punched, &torn, &other] {
        assert_gone(dir.path(), secret);
    }
    assert_eq!(store.get(&kept.id).unwrap().as_ref(), Some(&kept.bytes));
    // The file goes on behind what was valid.
    store.put_batch(std::slice::from_ref(&torn)).unwrap();
    assert_eq!(store.get(&torn.id).unwrap().as_ref(), Some(&torn.bytes));
    assert_consistent(&store);
    store.close();
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    assert_eq!(store.get(&kept.id).unwrap().as_ref(), Some(&kept.bytes));
    assert_consistent(&store);
}

#[test]
fn an_erasure_that_was_cut_off_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    let (late, kept) = (secret(1, 10_000), numbered(2, 9_000));
    store.put_batch(std::slice::from_ref(&kept)).unwrap();
    // All up to 9 is erased; this one came in all the same.
    store.erase(&[late.id], EPOCH, 9).unwrap();
    store.put_batch(std::slice::from_ref(&late)).unwrap();
    store.close();
    // There is no room to write the others anew.
    let store = RocksStore::open(dir.path(), Some(u64::MAX / 2)).unwrap();
    let error = store.erase(&[late.id], EPOCH, 9).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(store.record(&late.id).unwrap(), None);
    assert!(holds(dir.path(), &late));
    store.close();
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    assert_eq!(store.erase(&[late.id], EPOCH, 9).unwrap().chunks, 0);
    assert_gone(dir.path(), &late);
    assert_eq!(store.get(&kept.id).unwrap().as_ref(), Some(&kept.bytes));
}

#[test]
fn a_write_that_fails_meanwhile_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    let (gone, kept) = (secret(1, 10_000), numbered(2, 9_000));
    store.put_batch(&[gone.clone(), kept.clone()]).unwrap();
    // Who writes everything anew does not let go of the database: then it cannot be opened again, which
    // is an error and no more.
    store.fail_while_rewriting(&numbered(3, 9_000)).unwrap_err();
    assert_eq!(store.get(&kept.id).unwrap().as_ref(), Some(&kept.bytes), "reads go on");
    let started = std::time::Instant::now();
    while store.put_batch(&[numbered(4, 9_000)]).is_err() {
        assert!(started.elapsed() < std::time::Duration::from_secs(60));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // And the erasure is still to be done.
    store.erase(&[gone.id], EPOCH, 1).unwrap();
    assert_gone(dir.path(), &gone);
    assert_consistent(&store);
}

#[test]
fn closing_ends_an_erasure_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(RocksStore::create(dir.path(), Some(0)).unwrap());
    let chunks: Vec<NewChunk> = (0..2000).map(|n| secret(n, 20_000)).collect();
    for some in chunks.chunks(200) {
        store.put_batch(some).unwrap();
    }
    let erasing = {
        let (store, id) = (store.clone(), chunks[7].id);
        std::thread::spawn(move || store.erase(&[id], EPOCH, 1))
    };
    while store.record(&chunks[7].id).is_ok_and(|record| record.is_some()) {
        std::thread::yield_now();
    }
    store.close();
    drop(erasing.join().unwrap());
    drop(store);
    let store = RocksStore::open(dir.path(), Some(0)).unwrap();
    store.erase(&[chunks[7].id], EPOCH, 1).unwrap();
    assert_gone(dir.path(), &chunks[7]);
    assert_eq!(store.get(&chunks[8].id).unwrap().as_ref(), Some(&chunks[8].bytes));
}

#[test]
fn lifts_are_not_taken_for_erasures_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::create(dir.path(), Some(0)).unwrap();
    let noted = || store.load(Meta::Erased).unwrap();
    store.erase(&[secret(1, 500).id], EPOCH, 3).unwrap();
    assert_eq!(noted(), Some(3u64.to_be_bytes().to_vec()));
    store.erase(&[], EPOCH, 9).unwrap();
    assert_eq!(noted(), Some(9u64.to_be_bytes().to_vec()));
    store.erase(&[], EPOCH, 0).unwrap();
    assert_eq!(noted(), Some(9u64.to_be_bytes().to_vec()), "it never goes back");
    // What is left to be asked about is not done.
    let kept = secret(2, 500);
    store.put_batch(&[NewChunk { epoch: Epoch(EPOCH.0 + 1), ..kept.clone() }]).unwrap();
    assert_eq!(store.erase(&[kept.id], EPOCH, 12).unwrap().newer, 1);
    assert_eq!(noted(), Some(9u64.to_be_bytes().to_vec()));
}
