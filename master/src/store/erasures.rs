//! Family `Erasures`: what each erasure named, so that it can be lifted by the same paths.

use atoll_proto::erase::ErasureRecord;
use atoll_proto::{ChunkId, SiteName};

use super::{Family, Order, Read, StoreError, Transaction};

/// The key of an erasure among those of its site: the same for one that is repeated.
pub(crate) fn name(record: &ErasureRecord) -> ChunkId {
    ChunkId::of(&atoll_proto::encode(&(&record.named, &record.lists)))
}

fn key(site: &SiteName, name: &ChunkId) -> Vec<u8> {
    Family::Erasures.key(&[site.as_str().as_bytes(), &[0], name.as_bytes()])
}

/// Keeps what an erasure was about.
pub(crate) fn put(tx: &mut Transaction<'_>, record: &ErasureRecord) {
    tx.put_value(key(&record.site, &name(record)), record);
}

/// Forgets one.
pub(crate) fn remove(tx: &mut Transaction<'_>, site: &SiteName, name: &ChunkId) {
    tx.delete(key(site, name));
}

/// The first erasure of a site behind the one with a key.
pub(crate) fn after(
    read: &impl Read,
    site: &SiteName,
    after: Option<&ChunkId>,
) -> Result<Option<(ChunkId, ErasureRecord)>, StoreError> {
    let (mut from, to) = Family::Erasures.prefix(&[site.as_str().as_bytes(), &[0]]);
    if let Some(after) = after {
        from = key(site, after);
        from.push(0);
    }
    let mut found = None;
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let record: ErasureRecord = super::decode(key, value)?;
        found = Some((name(&record), record));
        Ok(false)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::erase::Named;
    use proptest::prelude::*;

    use super::super::testing::TestStore;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn erasures_round_trip(paths in proptest::collection::btree_set("[a-z]{1,9}", 1..9)) {
            let store = TestStore::new();
            let site: SiteName = "blog".parse().unwrap();
            let records: Vec<ErasureRecord> = paths
                .iter()
                .map(|path| ErasureRecord {
                    site: site.clone(),
                    at_ms: 3,
                    named: vec![Named {
                        path: path.as_str().into(),
                        chunks: vec![ChunkId::of(path.as_bytes())],
                    }],
                    lists: vec![],
                })
                .collect();
            let mut tx = Transaction::new(&store.rocks);
            for record in &records {
                put(&mut tx, record);
                put(&mut tx, record);
            }
            put(&mut tx, &ErasureRecord { site: "blog-2".parse().unwrap(), ..records[0].clone() });
            tx.commit().unwrap();
            let (mut found, mut at) = (Vec::new(), None);
            while let Some((name, record)) = after(&store.rocks, &site, at.as_ref()).unwrap() {
                at = Some(name);
                found.push(record);
            }
            let order = |record: &ErasureRecord| name(record);
            let mut expected = records;
            expected.sort_by_key(order);
            prop_assert_eq!(&found, &expected);
            let mut tx = Transaction::new(&store.rocks);
            remove(&mut tx, &site, &name(&expected[0]));
            let first = after(&tx, &site, None).unwrap().map(|(_, record)| record);
            prop_assert_eq!(first.as_ref(), expected.get(1));
        }
    }
}
