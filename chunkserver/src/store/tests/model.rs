//! Random operations on the real store and on the one in memory give the same answers and leave
//! the same records, digests and totals, also when the store is closed and opened, or
//! killed, in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::{NOW, assert_consistent, copy, numbered};
use crate::store::memory::MemoryStore;
use crate::store::rocks::RocksStore;
use crate::store::{ChunkStore, Mark, NewChunk};
use atoll_proto::tree::{BUCKETS, Digest};
use atoll_proto::{ChunkId, PgId};
use bytes::Bytes;

/// Chunks the operations choose from.
const CHUNKS: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<usize>),
    Mark(Vec<(usize, bool)>, Option<u64>),
    ForgetLive(Vec<usize>),
    Quarantine(Vec<usize>),
    ReleaseGroup(usize),
    Damage(usize),
    Spoil(usize),
    Restore(usize),
    Purge(u64, usize),
    Scrubbed(usize),
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let one = || 0..CHUNKS;
    let some = || prop::collection::vec(0..CHUNKS, 0..6);
    prop_oneof![
        4 => some().prop_map(Step::Put),
        4 => (prop::collection::vec((0..CHUNKS, any::<bool>()), 0..8), any::<Option<u64>>())
            .prop_map(|(marks, applied)| Step::Mark(marks, applied)),
        1 => some().prop_map(Step::ForgetLive),
        2 => some().prop_map(Step::Quarantine),
        1 => one().prop_map(Step::ReleaseGroup),
        2 => one().prop_map(Step::Damage),
        3 => one().prop_map(Step::Spoil),
        2 => one().prop_map(Step::Restore),
        2 => (0..80u64, 0..4usize).prop_map(|(age, limit)| Step::Purge(age, limit)),
        1 => one().prop_map(Step::Scrubbed),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

/// Chunks of all the lengths that are stored differently.
fn chunks() -> Vec<NewChunk> {
    let lens = [0, 8, 900, 4096, 10_000, 65_535, 65_536, 70_001];
    (0..CHUNKS).map(|n| numbered(n as u64, lens[n % lens.len()])).collect()
}

/// The answer of one step, in words, so that the stores' can be compared.
fn take(store: &dyn ChunkStore, chunks: &[NewChunk], step: &Step, now: u64) -> String {
    let ids = |which: &[usize]| -> Vec<ChunkId> { which.iter().map(|n| chunks[*n].id).collect() };
    match step {
        Step::Put(which) => {
            let batch: Vec<NewChunk> =
                which.iter().map(|n| NewChunk { at_ms: now, ..chunks[*n].clone() }).collect();
            format!("{:?}", store.put_batch(&batch))
        }
        Step::Mark(marks, applied) => {
            let mark = |live: bool| if live { Mark::Live } else { Mark::Collected };
            let marks: Vec<_> =
                marks.iter().map(|(n, live)| (chunks[*n].id, mark(*live))).collect();
            format!("{:?}", store.mark(&marks, now, *applied))
        }
        Step::ForgetLive(which) => format!("{:?}", store.forget_live(&ids(which), now)),
        Step::Quarantine(which) => format!("{:?}", store.quarantine(&ids(which), now)),
        Step::ReleaseGroup(n) => format!("{:?}", store.release_group(chunks[*n].id.pg(), now)),
        Step::Spoil(n) => format!("{:?}", store.spoil(&chunks[*n].id, now)),
        Step::Restore(n) => format!("{:?}", store.restore(&chunks[*n].id, now)),
        Step::Purge(age, limit) => format!("{:?}", store.purge(now - age, *limit)),
        Step::Scrubbed(n) => format!("{:?}", store.set_scrubbed(chunks[*n].id.pg(), now)),
        Step::Damage(_) | Step::Reopen | Step::Crash => String::new(),
    }
}

fn assert_same(real: &dyn ChunkStore, model: &dyn ChunkStore, chunks: &[NewChunk]) {
    assert_eq!(real.list(None, usize::MAX).unwrap(), model.list(None, usize::MAX).unwrap());
    assert_eq!(real.lacking(None, usize::MAX).unwrap(), model.lacking(None, usize::MAX).unwrap());
    assert_eq!(real.totals(), model.totals());
    assert_eq!(real.applied().unwrap(), model.applied().unwrap());
    for pg in chunks.iter().map(|chunk| chunk.id.pg()) {
        assert_eq!(real.buckets(pg).unwrap(), model.buckets(pg).unwrap());
        assert_eq!(real.group_count(pg).unwrap(), model.group_count(pg).unwrap());
    }
    assert_eq!(real.scrubbed().unwrap(), model.scrubbed().unwrap());
    for chunk in chunks {
        // A damaged chunk may read as damaged in one store and as wrong bytes in the other.
        let good = |store: &dyn ChunkStore| {
            store.get(&chunk.id).ok().flatten().filter(|bytes| ChunkId::of(bytes) == chunk.id)
        };
        assert_eq!(good(real), good(model));
    }
}

fn digests(store: &dyn ChunkStore, chunks: &[NewChunk]) -> BTreeMap<PgId, Box<[Digest; BUCKETS]>> {
    let groups = chunks.iter().map(|chunk| chunk.id.pg());
    groups.map(|pg| (pg, store.buckets(pg).unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_store_does_what_the_model_does(steps in prop::collection::vec(step(), 1..40)) {
        let mut dir = tempfile::tempdir().unwrap();
        let chunks = chunks();
        let model = Arc::new(MemoryStore::default());
        let mut real = RocksStore::create(dir.path(), Some(0)).unwrap();
        prop_assert_eq!(real.changed_groups().len(), 4096);
        let mut known = digests(&real, &chunks);
        for (at, step) in steps.iter().enumerate() {
            let now = NOW + 10 * at as u64;
            match step {
                Step::Damage(n) => {
                    real.damage(&chunks[*n].id, b"wrong");
                    model.damage(&chunks[*n].id, Bytes::from_static(b"wrong"));
                }
                Step::Reopen => {
                    drop(real);
                    real = RocksStore::open(dir.path(), Some(0)).unwrap();
                    prop_assert_eq!(real.changed_groups().len(), 4096);
                    known = digests(&real, &chunks);
                }
                Step::Crash => {
                    // What a killed process leaves behind: its files, not closed.
                    let left = tempfile::tempdir().unwrap();
                    copy(dir.path(), left.path());
                    drop(real);
                    dir = left;
                    real = RocksStore::open(dir.path(), Some(0)).unwrap();
                    prop_assert_eq!(real.changed_groups().len(), 4096);
                    known = digests(&real, &chunks);
                }
                _ => {
                    let (real, model) =
                        (take(&real, &chunks, step, now), take(model.as_ref(), &chunks, step, now));
                    prop_assert_eq!(real, model, "step {}: {:?}", at, step);
                }
            }
            assert_same(&real, model.as_ref(), &chunks);
        }
        let told = real.changed_groups();
        for (pg, digest) in digests(&real, &chunks) {
            prop_assert!(told.contains(&pg) || known[&pg] == digest, "{:?} was not told", pg);
        }
        assert_consistent(&real);
        assert_consistent(model.as_ref());
    }
}
