//! One battery for every back end of [`ChunkStore`], the codecs of the schema, and what only a
//! disk can do: damage and lack of room.
#![allow(clippy::unwrap_used, reason = "tests")]

mod damage;
mod erase;
mod full_disk;
mod model;
mod salvage;
mod segments;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_proto::tree::{SetHash, bucket_of};
use atoll_proto::{ChunkId, Epoch, PgId};
use bytes::Bytes;

use super::memory::MemoryStore;
use super::rocks::RocksStore;
use super::{Batched, Body, ChunkStore, FORMAT, Mark, Meta, NewChunk, Record, StoreError};

/// When the tests take place.
const NOW: u64 = 1_700_000_000_000;
/// Under which epoch.
const EPOCH: Epoch = Epoch(5);

fn chunk(bytes: impl Into<Bytes>) -> NewChunk {
    let bytes = bytes.into();
    NewChunk { id: ChunkId::of(&bytes), bytes, epoch: EPOCH, at_ms: NOW }
}

/// A chunk of `len` bytes that no other number gives.
fn numbered(number: u64, len: usize) -> NewChunk {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(len.max(8), (number % 251) as u8);
    chunk(bytes)
}

/// Copies a directory as it is at one moment: again, if something changed in the meantime.
fn copy(from: &Path, to: &Path) {
    loop {
        let before = listing(from);
        for path in before.keys() {
            let copied = to.join(path.strip_prefix(from).unwrap());
            std::fs::create_dir_all(copied.parent().unwrap()).unwrap();
            match std::fs::copy(path, copied) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
        if listing(from) == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
}

/// All files under a directory, and their lengths.
fn listing(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(listing(&path));
        } else if let Ok(meta) = path.metadata() {
            files.insert(path, meta.len());
        }
    }
    files
}

type Damage = dyn Fn(&ChunkId, &'static [u8]);

fn battery(store: &Arc<dyn ChunkStore>, damage: &Damage) {
    stores_and_reads(store.as_ref());
    known_chunks_are_not_written_again(store.as_ref());
    lists_in_order(store.as_ref());
    takes_out_what_is_corrupt(store.as_ref(), damage);
    follows_the_master(store.as_ref());
    live_and_corrupt_is_lacking(store.as_ref(), damage);
    quarantine_is_a_way_back(store.as_ref(), damage);
    purges_by_age(store.as_ref(), damage);
    erases_whatever_the_state(store.as_ref(), damage);
    erases_nothing_that_was_put_after(store.as_ref());
    young_again_when_put_again(store.as_ref());
    releases_a_group(store.as_ref());
    remembers_what_was_scrubbed(store.as_ref());
    keeps_values(store.as_ref());
    many_at_once(store);
    what_was_put_again_is_not_old(store.as_ref());
    assert_consistent(store.as_ref());
    closes(store.as_ref());
}

/// Everything that is kept twice agrees: the digests, the lists and the totals with the records.
fn assert_consistent(store: &dyn ChunkStore) {
    let all = store.list(None, usize::MAX).unwrap();
    assert!(all.is_sorted_by_key(|(id, _)| *id));
    let mut counted: BTreeMap<(PgId, u8), (SetHash, Vec<ChunkId>)> = BTreeMap::new();
    for (id, _) in all.iter().filter(|(_, record)| record.counts()) {
        let entry = counted.entry((id.pg(), bucket_of(id))).or_default();
        entry.0.insert(id);
        entry.1.push(*id);
    }
    for pg in (0..atoll_proto::ids::PG_COUNT).map(PgId) {
        let digests = store.buckets(pg).unwrap();
        let mut count = 0;
        for (number, digest) in digests.iter().enumerate() {
            let found = counted.get(&(pg, u8::try_from(number).unwrap()));
            let expected = found.map_or([0; 32], |(hash, _)| hash.to_bytes());
            assert_eq!(*digest, expected, "group {pg:?}, bucket {number}");
            count += found.map_or(0, |(_, ids)| ids.len() as u64);
        }
        assert_eq!(store.group_count(pg).unwrap(), count);
    }
    for ((pg, bucket), (_, ids)) in &counted {
        assert_eq!(store.bucket_ids(*pg, *bucket).unwrap(), *ids);
    }
    let lacking: Vec<(ChunkId, Body)> = all
        .iter()
        .filter(|(_, record)| record.is_lacking())
        .map(|(id, record)| (*id, record.body))
        .collect();
    assert_eq!(store.lacking(None, usize::MAX).unwrap(), lacking);
    let present = || all.iter().filter(|(_, record)| record.body == Body::Present);
    let totals = store.totals();
    assert_eq!(totals.chunks, present().count() as u64);
    assert_eq!(totals.bytes, present().map(|(_, record)| u64::from(record.len)).sum::<u64>());
    assert_eq!(totals.lacking, lacking.len() as u64);
    let quarantined = all.iter().filter(|(_, record)| record.body == Body::Quarantined);
    assert_eq!(totals.quarantined, quarantined.count() as u64);
}

fn stores_and_reads(store: &dyn ChunkStore) {
    let before = store.totals();
    let chunks = [numbered(1, 8), numbered(2, 5000), numbered(3, 1 << 20), chunk(Bytes::new())];
    let bytes: u64 = chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum();
    assert_eq!(store.get(&chunks[0].id).unwrap(), None);
    let done = store.put_batch(&chunks).unwrap();
    assert_eq!(done, Batched { written: 4, bytes, known: 0, refused: vec![] });
    for chunk in &chunks {
        assert_eq!(store.get(&chunk.id).unwrap(), Some(chunk.bytes.clone()));
        assert_eq!(store.len(&chunk.id).unwrap(), Some(chunk.bytes.len() as u32));
        assert!(store.has(&chunk.id).unwrap());
        let record = store.record(&chunk.id).unwrap().unwrap();
        let expected = Record {
            live: false,
            body: Body::Present,
            len: chunk.bytes.len() as u32,
            epoch: Epoch(5),
            at_ms: NOW,
        };
        assert_eq!(record, expected);
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
    assert_eq!(done, Batched { written: 1, bytes: 100, known: 2, refused: vec![] });
    assert_eq!(store.totals().chunks, before.chunks + 1);
    let done = store.put_batch(&[old, new]).unwrap();
    assert_eq!(done, Batched { written: 0, bytes: 0, known: 2, refused: vec![] });
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

fn takes_out_what_is_corrupt(store: &dyn ChunkStore, damage: &Damage) {
    let (good, bad) = (numbered(20, 9000), numbered(21, 9000));
    store.put_batch(&[good.clone(), bad.clone()]).unwrap();
    assert!(!store.spoil(&good.id, NOW).unwrap(), "a good chunk stays");
    assert!(!store.spoil(&ChunkId([7; 32]), NOW).unwrap(), "an unknown one is no error");
    let before = store.totals();
    damage(&bad.id, b"not what it should be");
    assert!(store.spoil(&bad.id, NOW + 1).unwrap());
    assert!(!store.spoil(&bad.id, NOW + 2).unwrap(), "only once");
    assert_eq!(store.get(&bad.id).unwrap(), None);
    assert!(!store.has(&bad.id).unwrap());
    let record = store.record(&bad.id).unwrap().unwrap();
    assert_eq!((record.body, record.at_ms), (Body::Corrupt, NOW + 1));
    assert_eq!(store.get(&good.id).unwrap(), Some(good.bytes));
    let after = store.totals();
    assert_eq!(after.chunks, before.chunks - 1);
    assert_eq!(after.bytes, before.bytes - 9000);
    assert_eq!(after.corrupt_found, before.corrupt_found + 1);

    let healed = store.put_batch(std::slice::from_ref(&bad)).unwrap();
    assert_eq!(healed.written, 1, "a good copy replaces a corrupt one");
    assert_eq!(store.get(&bad.id).unwrap(), Some(bad.bytes));
    assert_eq!(store.totals().chunks, before.chunks);
    assert_eq!(store.totals().repaired, before.repaired, "it was never lacking");
}

/// Whether a chunk is in the digest of its bucket.
fn is_counted(store: &dyn ChunkStore, id: &ChunkId) -> bool {
    let ids = store.bucket_ids(id.pg(), bucket_of(id)).unwrap();
    let mut hash = SetHash::default();
    ids.iter().for_each(|id| hash.insert(id));
    let digest = store.buckets(id.pg()).unwrap()[usize::from(bucket_of(id))];
    assert_eq!(digest, hash.to_bytes());
    ids.contains(id)
}

fn is_lacking(store: &dyn ChunkStore, id: &ChunkId) -> bool {
    store.lacking(None, usize::MAX).unwrap().iter().any(|(lacking, _)| lacking == id)
}

fn follows_the_master(store: &dyn ChunkStore) {
    let (here, later, never) = (numbered(30, 100), numbered(31, 70_000), numbered(32, 100));
    store.put_batch(std::slice::from_ref(&here)).unwrap();
    assert_eq!(store.applied().unwrap(), 0);
    store.changed_groups();
    assert_eq!(store.changed_groups(), []);
    let live = |chunk: &NewChunk| (chunk.id, Mark::Live);
    let collected = |chunk: &NewChunk| (chunk.id, Mark::Collected);
    let done = store.mark(&[live(&here), live(&later), live(&never)], NOW, Some(8)).unwrap();
    assert_eq!(done.lacking, [later.id, never.id]);
    assert_eq!(done.quarantined, 0);
    assert_eq!(store.applied().unwrap(), 8);
    assert_eq!(store.changed_groups(), [here.id.pg()], "only its digest changed");
    assert!(is_counted(store, &here.id) && !is_counted(store, &later.id));
    assert!(!is_lacking(store, &here.id) && is_lacking(store, &later.id));
    assert_eq!(store.record(&never.id).unwrap().unwrap().body, Body::Absent);
    assert_eq!(store.get(&never.id).unwrap(), None);
    let again = store.mark(&[live(&later)], NOW, None).unwrap();
    assert_eq!(again.lacking, [], "it is not new");
    assert_eq!(store.applied().unwrap(), 8);

    let before = store.totals();
    store.put_batch(std::slice::from_ref(&later)).unwrap();
    assert_eq!(store.changed_groups(), [later.id.pg()]);
    assert!(is_counted(store, &later.id) && !is_lacking(store, &later.id));
    assert_eq!(store.totals().repaired, before.repaired + 1);
    assert_eq!(store.totals().lacking, before.lacking - 1);

    let done = store.mark(&[collected(&later), collected(&never)], NOW + 5, Some(9)).unwrap();
    assert_eq!((done.lacking.len(), done.quarantined), (0, 1));
    assert_eq!(store.record(&never.id).unwrap(), None);
    let record = store.record(&later.id).unwrap().unwrap();
    assert_eq!((record.live, record.body, record.at_ms), (false, Body::Quarantined, NOW + 5));
    assert!(!is_counted(store, &later.id) && !is_lacking(store, &later.id));
    assert_eq!(store.get(&later.id).unwrap(), None);

    // In one list: the last word counts.
    let marks = [collected(&here), live(&here), live(&never), collected(&never)];
    let done = store.mark(&marks, NOW, Some(10)).unwrap();
    assert_eq!(done.quarantined, 1);
    assert_eq!(store.record(&never.id).unwrap(), None);
    assert!(is_lacking(store, &here.id), "live, but in quarantine");
    assert!(store.restore(&here.id, NOW).unwrap());
    assert!(is_counted(store, &here.id));

    assert_eq!(store.forget_live(&[here.id, never.id], NOW + 7).unwrap(), 1);
    let record = store.record(&here.id).unwrap().unwrap();
    assert_eq!((record.live, record.body, record.at_ms), (false, Body::Present, NOW + 7));
    assert!(!is_counted(store, &here.id));
    assert_eq!(store.get(&here.id).unwrap(), Some(here.bytes));
    assert_eq!(store.forget_live(&[here.id], NOW + 8).unwrap(), 0);
}

fn live_and_corrupt_is_lacking(store: &dyn ChunkStore, damage: &Damage) {
    let bad = numbered(40, 80_000);
    store.put_batch(std::slice::from_ref(&bad)).unwrap();
    store.mark(&[(bad.id, Mark::Live)], NOW, None).unwrap();
    damage(&bad.id, b"no");
    assert!(is_counted(store, &bad.id), "nobody has looked yet");
    assert!(store.spoil(&bad.id, NOW).unwrap());
    assert!(!is_counted(store, &bad.id));
    let lacking = store.lacking(None, usize::MAX).unwrap();
    assert!(lacking.contains(&(bad.id, Body::Corrupt)));
    assert_eq!(store.purge(u64::MAX, usize::MAX).unwrap().chunks, 1, "only what is not live");
    assert!(is_lacking(store, &bad.id));
    store.put_batch(std::slice::from_ref(&bad)).unwrap();
    assert!(is_counted(store, &bad.id) && !is_lacking(store, &bad.id));
    assert_eq!(store.get(&bad.id).unwrap(), Some(bad.bytes));
}

fn quarantine_is_a_way_back(store: &dyn ChunkStore, damage: &Damage) {
    let chunks: Vec<NewChunk> = (50..53).map(|n| numbered(n, 66_000)).collect();
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
    store.put_batch(&chunks).unwrap();
    store.mark(&[(ids[0], Mark::Live)], NOW, None).unwrap();
    let before = store.totals();
    assert_eq!(store.quarantine(&ids, NOW).unwrap(), 2, "not the live one");
    assert_eq!(store.quarantine(&ids, NOW).unwrap(), 0);
    assert_eq!(store.totals().chunks, before.chunks - 2);
    assert_eq!(store.totals().quarantined, before.quarantined + 2);
    assert!(!store.has(&ids[1]).unwrap());
    assert!(store.restore(&ids[1], NOW).unwrap());
    assert!(!store.restore(&ids[1], NOW).unwrap(), "only once");
    assert_eq!(store.get(&ids[1]).unwrap().as_ref(), Some(&chunks[1].bytes));
    damage(&ids[2], b"rotten");
    assert!(!store.restore(&ids[2], NOW).unwrap(), "bad bytes do not come back");
    assert_eq!(store.record(&ids[2]).unwrap().unwrap().body, Body::Corrupt);
    assert_eq!(store.totals().corrupt_found, before.corrupt_found + 1);
    // A put of what is in quarantine makes it present, whatever its bytes are there.
    assert_eq!(store.quarantine(&ids[1..2], NOW).unwrap(), 1);
    assert_eq!(store.put_batch(&chunks[1..]).unwrap().written, 2);
    assert_eq!(store.get(&ids[2]).unwrap().as_ref(), Some(&chunks[2].bytes));
    assert_eq!(store.totals().chunks, before.chunks);
}

fn what_was_put_again_is_not_old(store: &dyn ChunkStore) {
    let later = NOW + 86_400_000;
    let lens = [600, 66_000, 600];
    let chunks: Vec<NewChunk> = (9060..).zip(lens).map(|(n, len)| numbered(n, len)).collect();
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
    store.put_batch(&chunks).unwrap();
    let again: Vec<NewChunk> =
        chunks[..2].iter().map(|it| NewChunk { at_ms: later, ..it.clone() }).collect();
    assert_eq!(store.put_batch(&again).unwrap().known, 2);
    // All three were found to be old before that, and are moved after it.
    assert_eq!(store.quarantine_older(&ids, NOW, later).unwrap(), 0, "none is older");
    assert_eq!(store.quarantine_older(&ids, NOW + 1, later).unwrap(), 1);
    let present = |id: &ChunkId| store.has(id).unwrap();
    assert!(present(&ids[0]) && present(&ids[1]) && !present(&ids[2]));
}

fn erases_whatever_the_state(store: &dyn ChunkStore, damage: &Damage) {
    let chunks: Vec<NewChunk> = (900..905).map(|n| numbered(n, 6000)).collect();
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
    store.put_batch(&chunks).unwrap();
    // Live, not live, in quarantine, corrupt; and one that nobody erases.
    store.mark(&[(ids[0], Mark::Live), (ids[3], Mark::Live)], NOW, None).unwrap();
    store.quarantine(&[ids[2]], NOW).unwrap();
    damage(&ids[3], b"rot");
    store.spoil(&ids[3], NOW).unwrap();
    let erased = store.erase(&ids[..4], EPOCH, 1).unwrap();
    assert_eq!((erased.chunks, erased.bytes), (4, 24_000));
    for id in &ids[..4] {
        assert_eq!(store.record(id).unwrap(), None);
        assert_eq!(store.get(id).unwrap(), None);
    }
    assert_eq!(store.get(&ids[4]).unwrap().as_ref(), Some(&chunks[4].bytes));
    assert_consistent(store);
    // What the master says afterwards changes nothing.
    store.mark(&[(ids[0], Mark::Collected)], NOW, None).unwrap();
    assert_eq!(store.record(&ids[0]).unwrap(), None);
    assert_eq!(store.erase(&ids[..4], EPOCH, 1).unwrap().chunks, 0);
    // What is refused does not get in; what comes with it does.
    store.refuse(Arc::new(HashSet::from([ids[0], ids[1]])));
    let done = store.put_batch(&chunks).unwrap();
    assert_eq!((done.refused, done.written, done.known), (vec![ids[0], ids[1]], 2, 1));
    assert_eq!(store.record(&ids[0]).unwrap(), None);
    assert_eq!(store.get(&ids[2]).unwrap().as_ref(), Some(&chunks[2].bytes));
    store.refuse(Arc::new(HashSet::from([ids[1]])));
    assert_eq!(store.put_batch(&chunks[..2]).unwrap().refused, [ids[1]]);
    store.refuse(Arc::default());
    assert_eq!(store.put_batch(&chunks).unwrap().written, 1);
    assert_consistent(store);
}

/// An erasure that was read before a lift must not take what was put, and acknowledged, after it.
fn erases_nothing_that_was_put_after(store: &dyn ChunkStore) {
    let later = Epoch(EPOCH.0 + 1);
    let at = |number, epoch| NewChunk { epoch, ..numbered(number, 6000) };
    let (before, after, again) = (at(910, EPOCH), at(911, later), at(912, EPOCH));
    let ids = [before.id, after.id, again.id];
    store.put_batch(&[before, after, again.clone()]).unwrap();
    // Also when the bytes were still here.
    let once_more = NewChunk { epoch: later, ..again };
    assert_eq!(store.put_batch(std::slice::from_ref(&once_more)).unwrap().known, 1);
    // Who repeats an older put takes nothing back.
    store.put_batch(&[NewChunk { epoch: EPOCH, ..once_more }]).unwrap();
    let erased = store.erase(&ids, EPOCH, 2).unwrap();
    assert_eq!((erased.chunks, erased.bytes, erased.newer), (1, 6000, 2));
    assert_eq!(store.record(&ids[0]).unwrap(), None);
    for id in &ids[1..] {
        assert!(store.get(id).unwrap().is_some());
        assert_eq!(store.record(id).unwrap().unwrap().epoch, later);
    }
    assert_consistent(store);
    // Two puts of the same, written together: each is acknowledged for its epoch.
    let twice = [at(913, EPOCH), at(913, later), at(913, EPOCH)];
    let done = store.put_batch(&twice).unwrap();
    assert_eq!((done.written, done.known), (1, 2));
    assert_eq!(store.record(&twice[0].id).unwrap().unwrap().epoch, later);
    assert_eq!(store.erase(&[twice[0].id], EPOCH, 2).unwrap().newer, 1);
    // They are erased by what was read since.
    assert_eq!(store.erase(&ids, later, 2).unwrap().chunks, 2);
    assert_consistent(store);
}

fn purges_by_age(store: &dyn ChunkStore, damage: &Damage) {
    store.purge(u64::MAX, usize::MAX).unwrap();
    let chunks: Vec<NewChunk> = (60..66).map(|n| numbered(n, 65_536 + n as usize)).collect();
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
    store.put_batch(&chunks).unwrap();
    for (at, id) in ids[..4].iter().enumerate() {
        assert_eq!(store.quarantine(&[*id], NOW + at as u64).unwrap(), 1);
    }
    damage(&ids[4], b"bad");
    assert!(store.spoil(&ids[4], NOW + 4).unwrap());
    let before = store.totals();
    let purged = store.purge(NOW + 3, 2).unwrap();
    assert_eq!((purged.chunks, purged.bytes), (2, 2 * 65_536 + 60 + 61));
    assert_eq!(store.record(&ids[0]).unwrap(), None);
    assert_eq!(store.record(&ids[2]).unwrap().unwrap().body, Body::Quarantined);
    assert_eq!(store.purge(NOW + 3, 10).unwrap().chunks, 1);
    assert_eq!(store.purge(NOW + 3, 10).unwrap().chunks, 0);
    // One that became live again is not deleted, however long it has been there.
    store.mark(&[(ids[3], Mark::Live)], NOW, None).unwrap();
    assert_eq!(store.purge(NOW + 4, 10).unwrap().chunks, 0);
    assert_eq!(store.purge(u64::MAX, 10).unwrap().chunks, 1, "the corrupt one");
    assert_eq!(store.record(&ids[4]).unwrap(), None);
    assert!(store.restore(&ids[3], NOW).unwrap());
    for at in [3, 5] {
        assert_eq!(store.get(&ids[at]).unwrap().as_ref(), Some(&chunks[at].bytes));
    }
    assert_eq!(store.totals().quarantined, before.quarantined - 4);
}

fn young_again_when_put_again(store: &dyn ChunkStore) {
    let put = |at_ms: u64| {
        let chunk = NewChunk { at_ms, ..numbered(70, 70_000) };
        store.put_batch(std::slice::from_ref(&chunk)).unwrap();
        store.record(&chunk.id).unwrap().unwrap().at_ms
    };
    let hour = 3_600_000;
    assert_eq!(put(NOW), NOW);
    assert_eq!(put(NOW + hour), NOW, "not for every put");
    assert_eq!(put(NOW + hour + 1), NOW + hour + 1);
    assert_eq!(put(NOW), NOW + hour + 1, "never backwards");
}

fn releases_a_group(store: &dyn ChunkStore) {
    let mine = numbered(80, 70_000);
    let pg = mine.id.pg();
    let lacking = ChunkId({
        let mut bytes = mine.id.0;
        bytes[31] ^= 1;
        bytes
    });
    store.put_batch(std::slice::from_ref(&mine)).unwrap();
    store.mark(&[(mine.id, Mark::Live), (lacking, Mark::Live)], NOW, None).unwrap();
    let of_group = store.list_group(pg, None, usize::MAX).unwrap();
    assert!(of_group.iter().all(|(id, _)| id.pg() == pg) && of_group.len() >= 2);
    let outside = store.list(None, usize::MAX).unwrap().len() - of_group.len();
    assert_eq!(store.list_group(pg, Some(&of_group[0].0), 1).unwrap(), of_group[1..2]);
    assert_eq!(store.release_group(pg, NOW + 1).unwrap(), of_group.len() as u64);
    assert_eq!(store.group_count(pg).unwrap(), 0);
    assert_eq!(*store.buckets(pg).unwrap(), [[0; 32]; 256]);
    assert_eq!(store.record(&lacking).unwrap(), None);
    assert_eq!(store.record(&mine.id).unwrap().unwrap().body, Body::Quarantined);
    let all = store.list(None, usize::MAX).unwrap();
    assert_eq!(all.iter().filter(|(id, _)| id.pg() != pg).count(), outside);
    assert_eq!(store.release_group(pg, NOW + 2).unwrap(), 0);
}

fn remembers_what_was_scrubbed(store: &dyn ChunkStore) {
    let none = store.scrubbed().unwrap();
    assert_eq!(none, vec![None; usize::from(atoll_proto::ids::PG_COUNT)]);
    store.set_scrubbed(PgId(0), NOW).unwrap();
    store.set_scrubbed(PgId(4095), NOW).unwrap();
    store.set_scrubbed(PgId(4095), NOW + 1).unwrap();
    let some = store.scrubbed().unwrap();
    assert_eq!((some[0], some[1], some[4095]), (Some(NOW), None, Some(NOW + 1)));
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
                    assert!(!store.spoil(&chunk.id, NOW).unwrap());
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
    let damaged = store.clone();
    let damage = move |id: &ChunkId, wrong: &'static [u8]| {
        damaged.damage(id, Bytes::from_static(wrong));
    };
    battery(&(store as Arc<dyn ChunkStore>), &damage);
}

#[test]
fn battery_on_rocks() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RocksStore::create(dir.path(), Some(0)).unwrap());
    let damaged = store.clone();
    let damage = move |id: &ChunkId, wrong: &'static [u8]| damaged.damage(id, wrong);
    battery(&(store as Arc<dyn ChunkStore>), &damage);
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
