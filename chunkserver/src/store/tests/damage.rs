//! Bytes that change behind the store's back are found and contained: a store opens or says that
//! it is damaged, never gives wrong bytes for good without the hash telling, and never counts a
//! chunk that cannot be read once that was noticed.
//!
//! `ATOLL_DAMAGE_SEED=n` tries other damage, `ATOLL_DAMAGE_CASES=n` more of it.

use std::fs;
use std::path::{Path, PathBuf};

use atoll_proto::ids::PG_COUNT;
use atoll_proto::{ChunkId, PgId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{NOW, assert_consistent, copy, listing, numbered};
use crate::store::rocks::RocksStore;
use crate::store::{Body, ChunkStore, Mark, Meta, NewChunk, StoreError};

const SEED: u64 = 20_261_125;
const CASES: u64 = 40;

/// Chunks of all kinds, enough that every file of the store has some.
fn chunks() -> Vec<NewChunk> {
    let lens = [300, 3_000, 10_000, 70_000];
    (0..120).map(|n| numbered(n, lens[n as usize % lens.len()])).collect()
}

/// A store with live, lacking, quarantined and pending chunks, partly in tables, partly only in
/// the log, as a killed process leaves it.
fn template(dir: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let store = RocksStore::create(scratch.path(), Some(0)).unwrap();
    store.save(&[(Meta::Cluster, vec![1; 16]), (Meta::Node, vec![0; 8])]).unwrap();
    let chunks = chunks();
    for (at, batch) in chunks.chunks(20).enumerate() {
        store.put_batch(&batch[..16]).unwrap();
        let ids: Vec<ChunkId> = batch.iter().map(|chunk| chunk.id).collect();
        let live: Vec<_> = ids[4..].iter().map(|id| (*id, Mark::Live)).collect();
        store.mark(&live, NOW, Some(at as u64)).unwrap();
        store.quarantine(&ids[..2], NOW).unwrap();
        store.set_scrubbed(PgId(at as u16), NOW).unwrap();
        if at % 2 == 0 {
            store.flush();
        }
    }
    copy(scratch.path(), dir);
}

/// What a file of a store is for.
fn kind(path: &Path) -> &'static str {
    let name = path.file_name().unwrap().to_str().unwrap();
    match name.rsplit_once('.') {
        Some((_, "sst")) => "table",
        Some((_, "blob")) => "blob file",
        Some((_, "log")) => "log",
        Some((_, "segment")) => "segment",
        _ if name.starts_with("MANIFEST") => "manifest",
        _ => "other",
    }
}

/// Changes one file, in a way that disks and file systems do. Says what it did.
fn damage(dir: &Path, rng: &mut StdRng) -> String {
    let files: Vec<PathBuf> = listing(dir).into_keys().collect();
    // Each kind as often as the others, however many files it has.
    let kinds = ["table", "blob file", "log", "segment", "manifest", "other"];
    let wanted = kinds[rng.random_range(0..kinds.len())];
    let mut of_kind: Vec<&PathBuf> = files.iter().filter(|path| kind(path) == wanted).collect();
    of_kind.sort();
    let path = of_kind[rng.random_range(0..of_kind.len())];
    let mut bytes = fs::read(path).unwrap();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let at = if bytes.is_empty() { 0 } else { rng.random_range(0..bytes.len()) };
    match rng.random_range(0..5) {
        0 => {
            fs::remove_file(path).unwrap();
            return format!("{name} removed");
        }
        1 => bytes.truncate(at),
        2 => {
            let page = at / 4096 * 4096;
            let end = (page + 4096).min(bytes.len());
            bytes[page..end].fill(0);
        }
        _ if bytes.is_empty() => bytes = vec![1],
        _ => bytes[at] ^= 1 << rng.random_range(0..8),
    }
    fs::write(path, bytes).unwrap();
    format!("{name} at {at}")
}

/// Reads everything as the rest of the role does, and takes out what is wrong.
fn read_all(store: &RocksStore) -> Result<(), StoreError> {
    for (id, record) in store.list(None, usize::MAX)? {
        let good = match store.get(&id) {
            Ok(None) => {
                assert_ne!(record.body, Body::Present);
                continue;
            }
            Ok(Some(bytes)) => ChunkId::of(&bytes) == id,
            Err(StoreError::Corrupt { .. }) => false,
            Err(error) => return Err(error),
        };
        assert_eq!(store.spoil(&id, NOW)?, !good);
    }
    for pg in (0..PG_COUNT).map(PgId) {
        store.buckets(pg)?;
        store.list_group(pg, None, usize::MAX)?;
    }
    store.lacking(None, usize::MAX)?;
    store.purge(0, 1)?;
    store.scrubbed()?;
    store.applied()?;
    Ok(())
}

/// Until nothing says that the index is damaged.
fn settle(store: &RocksStore) {
    for _ in 0..3 {
        match read_all(store) {
            Ok(()) => return,
            Err(StoreError::Damaged { .. }) => assert!(store.refilling()),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("a store that began anew is damaged");
}

fn assert_what_counts_can_be_read(store: &RocksStore) {
    for (id, _) in store.list(None, usize::MAX).unwrap().iter().filter(|(_, it)| it.counts()) {
        assert_eq!(ChunkId::of(&store.get(id).unwrap().unwrap()), *id);
    }
}

fn survives(dir: &Path) {
    let owner = [(Meta::Cluster, vec![1; 16]), (Meta::Node, vec![0; 8])];
    // As the marker has it opened: one that does not say whose it is counts as damaged, too.
    let opened = RocksStore::open(dir, Some(0)).and_then(|store| {
        let owners: Vec<_> = owner.iter().map(|(key, _)| store.load(*key)).collect();
        let missing = owners.into_iter().collect::<Result<Vec<_>, _>>()?.contains(&None);
        let reason = "no owner".to_owned();
        if missing { Err(StoreError::Damaged { reason }) } else { Ok(store) }
    });
    let store = match opened {
        Err(StoreError::Damaged { .. }) => {
            let store = RocksStore::replace(dir, Some(0), &owner).unwrap();
            assert!(store.refilling());
            store
        }
        store => store.unwrap(),
    };
    settle(&store);
    assert_consistent(&store);
    assert_what_counts_can_be_read(&store);
    while !store.salvage(NOW, 1 << 20).unwrap().complete {}
    settle(&store);
    assert_what_counts_can_be_read(&store);

    // It is a store like any other, and can be filled again.
    let chunks = chunks();
    let marks: Vec<_> = chunks.iter().map(|chunk| (chunk.id, Mark::Live)).collect();
    store.mark(&marks, NOW, Some(100)).unwrap();
    store.put_batch(&chunks).unwrap();
    for (id, body) in store.lacking(None, usize::MAX).unwrap() {
        assert_eq!(body, Body::Quarantined);
        store.restore(&id, NOW).unwrap();
    }
    while !store.finish_refill().unwrap() {
        store.salvage(NOW, 1 << 20).unwrap();
    }
    drop(store);
    let store = RocksStore::open(dir, Some(0)).unwrap();
    assert!(!store.refilling());
    for (key, value) in owner {
        assert_eq!(store.load(key).unwrap(), Some(value));
    }
    assert_eq!(store.totals().lacking, 0);
    for chunk in &chunks {
        assert_eq!(store.get(&chunk.id).unwrap().as_ref(), Some(&chunk.bytes));
    }
    assert_consistent(&store);
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn any_damage_is_found_and_contained() {
    let dir = tempfile::tempdir().unwrap();
    template(&dir.path().join("template"));
    let seed = setting("ATOLL_DAMAGE_SEED", SEED);
    for case in 0..setting("ATOLL_DAMAGE_CASES", CASES) {
        let mut rng = StdRng::seed_from_u64(seed + case);
        let parent = tempfile::tempdir().unwrap();
        let store = parent.path().join("chunks");
        copy(&dir.path().join("template"), &store);
        let what = damage(&store, &mut rng);
        let again = format!("ATOLL_DAMAGE_SEED={} ATOLL_DAMAGE_CASES=1", seed + case);
        let outcome = std::panic::catch_unwind(|| survives(&store));
        assert!(outcome.is_ok(), "{what} was not survived; again with {again}");
    }
}

#[test]
fn an_index_that_goes_bad_in_use_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chunks");
    template(&path);
    let store = RocksStore::open(&path, Some(0)).unwrap();
    store.flush();
    store.save(&[(Meta::Fence, vec![9; 16])]).unwrap();
    let before = store.totals();
    assert!(before.chunks > 0);
    for table in listing(&path).into_keys().filter(|path| kind(path) == "table") {
        // One that the flush made superfluous may be gone already.
        let Ok(mut bytes) = fs::read(&table) else { continue };
        let len = bytes.len();
        bytes[..len / 2].fill(0x55);
        fs::write(&table, bytes).unwrap();
    }
    store.changed_groups();
    // What is in the cache may still be read for a while.
    let found = read_all(&store);
    assert!(matches!(found, Err(StoreError::Damaged { .. })), "{found:?}");
    assert!(store.refilling());
    assert_eq!(store.changed_groups().len(), usize::from(PG_COUNT));
    assert_eq!((store.totals().chunks, store.totals().lacking), (0, 0));
    assert_eq!(store.totals().repaired, before.repaired);
    assert_eq!(store.load(Meta::Fence).unwrap(), Some(vec![9; 16]));
    assert_eq!(store.applied().unwrap(), 0);

    // The large chunks come back without the index.
    let mut salvaged = 0;
    loop {
        let some = store.salvage(NOW, 200_000).unwrap();
        salvaged += some.chunks;
        if some.complete {
            break;
        }
    }
    let large: Vec<NewChunk> =
        chunks().into_iter().filter(|chunk| chunk.bytes.len() > 65_536).collect();
    let back = large.iter().filter(|chunk| store.has(&chunk.id).unwrap()).count();
    assert!(back as u64 == salvaged && back > 20, "{back} of {}, {salvaged}", large.len());
    assert_consistent(&store);
    assert!(store.finish_refill().unwrap());
    assert!(!store.refilling());
    assert_eq!(listing(dir.path()).keys().filter(|file| !file.starts_with(&path)).count(), 0);
}

#[test]
fn what_follows_from_the_records_is_made_to_follow_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chunks");
    template(&path);
    let store = RocksStore::open(&path, Some(0)).unwrap();
    let before = (store.list(None, usize::MAX).unwrap(), store.totals());
    let (counted, _) = before.0.iter().find(|(_, record)| record.counts()).unwrap();
    store.forget_what_follows(counted);
    let left = dir.path().join("left");
    copy(&path, &left);
    let store = RocksStore::open(&left, Some(0)).unwrap();
    assert_consistent(&store);
    assert_eq!((store.list(None, usize::MAX).unwrap(), store.totals()), before);
    // Nothing that is used was deleted, and nothing is overwritten.
    store.put_batch(&[numbered(1000, 70_000)]).unwrap();
    assert_eq!(read_all(&store), Ok(()));
    assert_eq!(store.totals().corrupt_found, 0);
    assert_eq!(store.purge(NOW + 1, usize::MAX).unwrap().chunks, before.1.quarantined);
    assert_consistent(&store);
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
    assert!(store.spoil(&chunks[7].id, 1).unwrap());
    assert_eq!(store.totals().corrupt_found, 1);
    for (at, chunk) in chunks.iter().enumerate().filter(|(at, _)| *at != 7) {
        assert_eq!(store.get(&chunk.id).unwrap().unwrap(), chunk.bytes, "chunk {at}");
    }
}

/// Flips one byte in the middle of these bytes, in whichever blob file has them.
fn flip(dir: &Path, wanted: &[u8]) {
    for path in listing(dir).into_keys().filter(|path| kind(path) == "blob file") {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(64).position(|window| window == &wanted[..64]) {
            bytes[at + wanted.len() / 2] ^= 1;
            fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("no blob file has the chunk");
}
