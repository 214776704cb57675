//! Family `Object`: the object table, the authority on which chunks the cluster keeps.
//!
//! Counts change in the log entry that changes what refers to the chunk. An object without
//! references remembers since when, and stays until it is collected. Whatever follows from the
//! table is kept up to date here, so that no caller can forget: the deltas that chunkservers tail,
//! the digests they are compared by, the state of the group, and the list of what may be collected.

use atoll_proto::erase::Erasure;
use atoll_proto::master::ObjectKind;
use atoll_proto::{ChunkId, Epoch, Seq};
use serde::{Deserialize, Serialize};

use super::counters::{self, Counter};
use super::{
    Family, Order, POOL, Read, StoreError, Transaction, below, buckets, decode, deltas, erased,
    group_states, unreferenced,
};
use crate::operation::Now;

/// A chunk the cluster keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Object {
    /// How many files, pages, lists and deploys refer to it.
    pub(crate) refs: u64,
    /// Its length in bytes.
    pub(crate) len: u32,
    /// What it holds. A page or list counts its children.
    pub(crate) kind: ObjectKind,
    /// Since when nothing refers to it; `None` while something does.
    pub(crate) zero_since: Option<Since>,
}

/// The moment at which an object lost its last reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Since {
    /// Log index.
    pub(crate) index: u64,
    /// The state's clock, milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
}

impl Since {
    fn now(now: Now) -> Since {
        Since { index: now.index, at_ms: now.at_ms() }
    }
}

pub(super) fn key(id: &ChunkId) -> Vec<u8> {
    Family::Object.key(&[&[POOL], &id.pg().0.to_be_bytes(), id.as_bytes()])
}

/// The chunk id in a key of this family.
pub(super) fn id_of(key: &[u8]) -> Result<ChunkId, StoreError> {
    let id = key.get(4..).and_then(|id| <[u8; 32]>::try_from(id).ok());
    id.map(ChunkId).ok_or_else(|| StoreError::malformed(key, &"not a chunk id"))
}

pub(crate) fn get(read: &impl Read, id: &ChunkId) -> Result<Option<Object>, StoreError> {
    read.get_value(&key(id))
}

pub(crate) fn has(read: &impl Read, id: &ChunkId) -> Result<bool, StoreError> {
    read.has(&key(id))
}

/// Whether the cluster keeps no chunk at all.
pub(crate) fn is_empty(read: &impl Read) -> Result<bool, StoreError> {
    let (from, to) = Family::Object.prefix(&[]);
    Ok(!read.any(&from, &to)?)
}

/// Visits the objects with ids from `first` on, in order of their ids; `false` ends it.
pub(crate) fn from(
    read: &impl Read,
    first: &ChunkId,
    visit: &mut dyn FnMut(ChunkId, Object) -> bool,
) -> Result<(), StoreError> {
    let (_, to) = Family::Object.prefix(&[&[POOL]]);
    read.scan(&key(first), &to, Order::Ascending, &mut |key, value| {
        Ok(visit(id_of(key)?, decode(key, value)?))
    })
}

/// The ids of one bucket of a group, sorted; without those that are hidden.
pub(crate) fn bucket_ids(
    read: &impl Read,
    pg: atoll_proto::PgId,
    bucket: u8,
) -> Result<Vec<ChunkId>, StoreError> {
    // The bucket is the 8 bits after the group's 12: the id starts with these 20 bits.
    let start = (u32::from(pg.0) << 20) | (u32::from(bucket) << 12);
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    low[..4].copy_from_slice(&start.to_be_bytes());
    high[..4].copy_from_slice(&(start | 0xfff).to_be_bytes());
    let mut to = key(&ChunkId(high));
    to.push(0);
    let hidden = erased::hidden_between(read, &ChunkId(low), &ChunkId(high))?;
    let mut ids = Vec::new();
    read.scan(&key(&ChunkId(low)), &to, Order::Ascending, &mut |key, _| {
        let id = id_of(key)?;
        if hidden.binary_search(&id).is_err() {
            ids.push(id);
        }
        Ok(true)
    })?;
    Ok(ids)
}

/// Sets what a chunk holds; one that is new has no references. One that has none is taken to be
/// wanted: its time begins anew.
pub(crate) fn set_kind(
    tx: &mut Transaction<'_>,
    now: Now,
    id: &ChunkId,
    len: u32,
    kind: ObjectKind,
) -> Result<(), StoreError> {
    let before = get(tx, id)?;
    let zero_since = match &before {
        Some(object) if object.refs > 0 => None,
        _ => Some(Since::now(now)),
    };
    let object = match before.clone() {
        // A deploy does not know how long its root is.
        Some(object) => {
            let len = if object.len == 0 { len } else { object.len };
            Object { kind, zero_since, len, ..object }
        }
        None => Object { refs: 0, len, kind, zero_since },
    };
    put(tx, now, id, before.as_ref(), &object)
}

/// One more thing refers to the chunk; a chunk that is new gets this length and kind.
pub(crate) fn add_ref(
    tx: &mut Transaction<'_>,
    now: Now,
    id: &ChunkId,
    len: u32,
    kind: ObjectKind,
) -> Result<(), StoreError> {
    let before = get(tx, id)?;
    let mut object = before.clone().unwrap_or(Object { refs: 0, len, kind, zero_since: None });
    let overflow = || StoreError::malformed(&key(id), &"a chunk has too many references");
    object.refs = object.refs.checked_add(1).ok_or_else(overflow)?;
    object.zero_since = None;
    put(tx, now, id, before.as_ref(), &object)?;
    // Who refers to a chunk that was lifted has uploaded it.
    if before.is_some() && erased::is_absent(tx, id)? { show(tx, now, id) } else { Ok(()) }
}

/// A chunk is to be nowhere any more: chunkservers are told that it was collected. What refers to
/// it still counts. A list is withheld, and kept.
pub(crate) fn erase(
    tx: &mut Transaction<'_>,
    now: Now,
    seq: Seq,
    id: &ChunkId,
    what: Erasure,
) -> Result<(), StoreError> {
    let before = erased::get(tx, id)?;
    // What is so already is told to nobody again.
    if before.is_some_and(|before| before.what == what || before.what == Erasure::Erased) {
        return Ok(());
    }
    let (absent, epoch) = (what == Erasure::Erased, Epoch(0));
    let record = erased::Record { index: seq.0, what, absent, epoch };
    let was_hidden = before.is_some_and(|before| before.is_hidden());
    erased::put(tx, id, &record)?;
    if record.is_hidden() && !was_hidden && has(tx, id)? { leave(tx, now, id) } else { Ok(()) }
}

/// A chunk that was erased may be uploaded again: receipts from this epoch on say that it was.
pub(crate) fn lift(
    tx: &mut Transaction<'_>,
    seq: Seq,
    id: &ChunkId,
    epoch: Epoch,
) -> Result<(), StoreError> {
    let Some(before) = erased::get(tx, id)? else { return Ok(()) };
    if before.what == Erasure::Lifted {
        return Ok(());
    }
    let (what, absent) = (Erasure::Lifted, before.absent);
    erased::put(tx, id, &erased::Record { index: seq.0, what, absent, epoch })
}

/// A chunk that was lifted was uploaded: the cluster keeps it again.
pub(crate) fn show(tx: &mut Transaction<'_>, now: Now, id: &ChunkId) -> Result<(), StoreError> {
    if let Some(before) = erased::get(tx, id)? {
        // The same index: nobody who follows the list has to do anything.
        erased::put(tx, id, &erased::Record { absent: false, ..before })?;
    }
    enter(tx, now, id)
}

/// One thing fewer refers to the chunk. A reference that was never counted is noted, for the
/// auditor to find out; it must not stop the masters, as they would stop at this entry for ever.
pub(crate) fn drop_ref(tx: &mut Transaction<'_>, now: Now, id: &ChunkId) -> Result<(), StoreError> {
    let before = get(tx, id)?;
    let Some((mut object, refs)) =
        before.clone().and_then(|object| Some((object.clone(), object.refs.checked_sub(1)?)))
    else {
        tracing::error!(chunk = %id, "a chunk lost a reference it did not have; recount them");
        return counters::add(tx, Counter::Miscounts, 1).map(drop);
    };
    object.refs = refs;
    object.zero_since = (refs == 0).then(|| Since::now(now));
    put(tx, now, id, before.as_ref(), &object)
}

/// Sets how many things refer to a chunk, as a recount found it; one that is new gets this length
/// and kind.
pub(crate) fn set_refs(
    tx: &mut Transaction<'_>,
    now: Now,
    id: &ChunkId,
    refs: u64,
    len: u32,
    kind: ObjectKind,
) -> Result<(), StoreError> {
    let before = get(tx, id)?;
    let (len, kind) = before.as_ref().map_or((len, kind), |object| (object.len, object.kind));
    let zero_since = (refs == 0).then(|| Since::now(now));
    put(tx, now, id, before.as_ref(), &Object { refs, len, kind, zero_since })
}

/// The cluster need not keep the chunk any longer.
pub(crate) fn collect(tx: &mut Transaction<'_>, now: Now, id: &ChunkId) -> Result<(), StoreError> {
    let Some(object) = get(tx, id)? else { return Ok(()) };
    if object.refs > 0 {
        counters::add(tx, Counter::ChunksLive, -1)?;
    }
    if let Some(since) = object.zero_since {
        unreferenced::remove(tx, since.at_ms, id)?;
    }
    tx.delete(key(id));
    below::remove(tx, id)?;
    if erased::is_hidden(tx, id)? { Ok(()) } else { leave(tx, now, id) }
}

/// The chunkservers are to keep the chunk from now on.
fn enter(tx: &mut Transaction<'_>, now: Now, id: &ChunkId) -> Result<(), StoreError> {
    deltas::append(tx, now.index, id, true)?;
    buckets::insert(tx, id)?;
    group_states::changed(tx, id.pg(), now.index, 1)
}

/// The chunkservers are not to keep the chunk any more.
fn leave(tx: &mut Transaction<'_>, now: Now, id: &ChunkId) -> Result<(), StoreError> {
    deltas::append(tx, now.index, id, false)?;
    buckets::remove(tx, id)?;
    group_states::changed(tx, id.pg(), now.index, -1)
}

/// Writes an object and what follows from the change.
fn put(
    tx: &mut Transaction<'_>,
    now: Now,
    id: &ChunkId,
    before: Option<&Object>,
    object: &Object,
) -> Result<(), StoreError> {
    if before.is_none() {
        // One that was lifted was uploaded; one that is erased only comes in through a recount.
        if erased::is_absent(tx, id)? {
            show(tx, now, id)?;
        } else if !erased::is_hidden(tx, id)? {
            enter(tx, now, id)?;
        }
    }
    let refs = before.map_or(0, |object| object.refs);
    match (refs > 0, object.refs > 0) {
        (false, true) => drop(counters::add(tx, Counter::ChunksLive, 1)?),
        (true, false) => drop(counters::add(tx, Counter::ChunksLive, -1)?),
        _ => {}
    }
    let since = before.and_then(|object| object.zero_since);
    if since != object.zero_since {
        if let Some(since) = since {
            unreferenced::remove(tx, since.at_ms, id)?;
        }
        if let Some(since) = object.zero_since {
            unreferenced::insert(tx, since.at_ms, id)?;
        }
    }
    tx.put_value(key(id), object);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::{BTreeMap, BTreeSet};

    use atoll_proto::PgId;
    use atoll_proto::ids::PG_COUNT;
    use atoll_proto::tree::{SetHash, bucket_of};
    use proptest::prelude::*;

    use super::super::testing::TestStore;
    use super::*;

    fn at(index: u64) -> Now {
        Now { index, at_ns: index * 1_000_000_000 }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn objects_round_trip(id: [u8; 32], len: u32, adds in 1u64..5) {
            let store = TestStore::new();
            let id = ChunkId(id);
            let mut tx = Transaction::new(&store.rocks);
            for _ in 0..adds {
                add_ref(&mut tx, at(1), &id, len, ObjectKind::Data).unwrap();
            }
            tx.commit().unwrap();
            let object = Object { refs: adds, len, kind: ObjectKind::Data, zero_since: None };
            prop_assert_eq!(get(&store.rocks, &id).unwrap(), Some(object));
            prop_assert_eq!(counters::get(&store.rocks, Counter::ChunksLive).unwrap(), 1);
            prop_assert_eq!(bucket_ids(&store.rocks, id.pg(), bucket_of(&id)).unwrap(), [id]);
            let mut tx = Transaction::new(&store.rocks);
            for _ in 0..adds {
                drop_ref(&mut tx, at(99), &id).unwrap();
            }
            let since = Since { index: 99, at_ms: 99_000 };
            prop_assert_eq!(get(&tx, &id).unwrap().unwrap().zero_since, Some(since));
            prop_assert_eq!(counters::get(&tx, Counter::ChunksLive).unwrap(), 0);
            // One reference too many is noted and changes nothing else.
            drop_ref(&mut tx, at(100), &id).unwrap();
            prop_assert_eq!(get(&tx, &id).unwrap().unwrap().zero_since, Some(since));
            prop_assert_eq!(counters::get(&tx, Counter::Miscounts).unwrap(), 1);
            prop_assert!(!is_empty(&tx).unwrap());
            collect(&mut tx, at(101), &id).unwrap();
            prop_assert!(is_empty(&tx).unwrap());
            prop_assert_eq!(unreferenced::count(&tx).unwrap(), 0);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Kind(u8, bool),
        Add(u8),
        Drop(u8),
        SetRefs(u8, u64),
        Collect(u8),
        /// The entry ends.
        Commit,
    }

    fn step() -> impl Strategy<Value = Step> {
        let id = 0u8..20;
        prop_oneof![
            2 => (id.clone(), any::<bool>()).prop_map(|(id, page)| Step::Kind(id, page)),
            6 => id.clone().prop_map(Step::Add),
            5 => id.clone().prop_map(Step::Drop),
            1 => (id.clone(), 0u64..3).prop_map(|(id, refs)| Step::SetRefs(id, refs)),
            4 => id.prop_map(Step::Collect),
            3 => Just(Step::Commit),
        ]
    }

    /// Few groups and buckets, so that they fill.
    fn chunk(n: u8) -> ChunkId {
        let mut bytes = [n; 32];
        bytes[0] = n % 2;
        bytes[1] = 0x10;
        bytes[2] = n % 3;
        ChunkId(bytes)
    }

    /// What follows from an object table, worked out from scratch.
    fn check(store: &TestStore) {
        let mut table = BTreeMap::new();
        from(&store.rocks, &ChunkId([0; 32]), &mut |id, object| {
            table.insert(id, object);
            true
        })
        .unwrap();
        let mut hashes: BTreeMap<(PgId, u8), SetHash> = BTreeMap::new();
        for id in table.keys() {
            hashes.entry((id.pg(), bucket_of(id))).or_default().insert(id);
        }
        let states = group_states::all(&store.rocks).unwrap();
        for pg in (0..4).chain([PG_COUNT - 1]) {
            let leaves = buckets::leaves(&store.rocks, PgId(pg)).unwrap();
            for bucket in 0..=255u8 {
                let hash = hashes.get(&(PgId(pg), bucket)).copied().unwrap_or_default();
                assert_eq!(leaves[usize::from(bucket)], hash.to_bytes());
                let ids: Vec<ChunkId> = table
                    .keys()
                    .filter(|id| id.pg().0 == pg && bucket_of(id) == bucket)
                    .copied()
                    .collect();
                assert_eq!(bucket_ids(&store.rocks, PgId(pg), bucket).unwrap(), ids);
            }
            let chunks = table.keys().filter(|id| id.pg().0 == pg).count() as u64;
            assert_eq!(states[usize::from(pg)].chunks, chunks);
        }
        // Replayed over nothing, the deltas give the table.
        let mut replayed = BTreeSet::new();
        let mut changed: BTreeMap<PgId, u64> = BTreeMap::new();
        deltas::after(&store.rocks, 0, &mut |delta| {
            let news =
                if delta.live { replayed.insert(delta.id) } else { replayed.remove(&delta.id) };
            assert!(news, "every delta changes something");
            changed.insert(delta.id.pg(), delta.index);
            true
        })
        .unwrap();
        assert_eq!(replayed, table.keys().copied().collect());
        for (pg, index) in changed {
            assert_eq!(states[usize::from(pg.0)].index, index);
        }
        let mut idle: Vec<(u64, ChunkId)> =
            table.iter().filter_map(|(id, object)| Some((object.zero_since?.at_ms, *id))).collect();
        idle.sort_unstable();
        assert_eq!(unreferenced::older(&store.rocks, u64::MAX, None, 999).unwrap(), idle);
        assert_eq!(unreferenced::count(&store.rocks).unwrap(), idle.len() as u64);
        let live = table.values().filter(|object| object.refs > 0).count() as u64;
        assert_eq!(counters::get(&store.rocks, Counter::ChunksLive).unwrap(), live);
        assert!(table.values().all(|object| (object.refs == 0) == object.zero_since.is_some()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_follows_from_the_table_always_agrees_with_it(
            steps in proptest::collection::vec(step(), 0..150),
        ) {
            let store = TestStore::new();
            let mut index = 1;
            let mut tx = Transaction::new(&store.rocks);
            for step in steps {
                let now = at(index);
                match step {
                    Step::Kind(n, page) => {
                        let kind = if page { ObjectKind::Page } else { ObjectKind::Data };
                        set_kind(&mut tx, now, &chunk(n), 5, kind).unwrap();
                    }
                    Step::Add(n) => {
                        add_ref(&mut tx, now, &chunk(n), 5, ObjectKind::Data).unwrap();
                    }
                    Step::Drop(n) => drop_ref(&mut tx, now, &chunk(n)).unwrap(),
                    Step::SetRefs(n, refs) => {
                        set_refs(&mut tx, now, &chunk(n), refs, 5, ObjectKind::Data).unwrap();
                    }
                    Step::Collect(n) => collect(&mut tx, now, &chunk(n)).unwrap(),
                    Step::Commit => {
                        tx.commit().unwrap();
                        index += 1;
                        tx = Transaction::new(&store.rocks);
                    }
                }
            }
            tx.commit().unwrap();
            check(&store);
        }
    }
}
