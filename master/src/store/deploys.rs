//! Families `Deploy` and `DeployBySeq`: the deploys of sites, by id and in order.

use atoll_proto::publish::Deploy;
use atoll_proto::{DeployId, Seq, SiteName};

use super::{Family, Order, Read, StoreError, Transaction, decode};

fn key(site: &SiteName, id: &DeployId) -> Vec<u8> {
    Family::Deploy.key(&[site.as_str().as_bytes(), &[0], id.as_bytes()])
}

fn seq_key(site: &SiteName, seq: Seq) -> Vec<u8> {
    Family::DeployBySeq.key(&[site.as_str().as_bytes(), &[0], &seq.0.to_be_bytes()])
}

pub(crate) fn get(
    read: &impl Read,
    site: &SiteName,
    id: &DeployId,
) -> Result<Option<Deploy>, StoreError> {
    read.get_value(&key(site, id))
}

/// Sets a deploy, and its place in the order.
pub(crate) fn put(tx: &mut Transaction<'_>, deploy: &Deploy) -> Result<(), StoreError> {
    if let Some(before) = get(tx, &deploy.site, &deploy.id)? {
        tx.delete(seq_key(&deploy.site, before.seq));
    }
    tx.put_value(seq_key(&deploy.site, deploy.seq), &deploy.id);
    tx.put_value(key(&deploy.site, &deploy.id), deploy);
    Ok(())
}

pub(crate) fn remove(tx: &mut Transaction<'_>, deploy: &Deploy) {
    tx.delete(seq_key(&deploy.site, deploy.seq));
    tx.delete(key(&deploy.site, &deploy.id));
}

/// The ids of up to `limit` deploys of a site, latest first, with a seq smaller than `before`.
pub(crate) fn ids(
    read: &impl Read,
    site: &SiteName,
    before: Option<Seq>,
    limit: usize,
) -> Result<Vec<DeployId>, StoreError> {
    let (from, mut to) = Family::DeployBySeq.prefix(&[site.as_str().as_bytes(), &[0]]);
    if let Some(before) = before {
        to = seq_key(site, before);
    }
    let mut ids: Vec<DeployId> = Vec::new();
    if limit > 0 {
        read.scan(&from, &to, Order::Descending, &mut |key, value| {
            ids.push(decode(key, value)?);
            Ok(ids.len() < limit)
        })?;
    }
    Ok(ids)
}

/// Up to `limit` deploys of a site, latest first, with a seq smaller than `before`.
pub(crate) fn list(
    read: &impl Read,
    site: &SiteName,
    before: Option<Seq>,
    limit: usize,
) -> Result<Vec<Deploy>, StoreError> {
    let ids = ids(read, site, before, limit)?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        let missing = || StoreError::malformed(&key(site, &id), &"a listed deploy is missing");
        found.push(get(read, site, &id)?.ok_or_else(missing)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use atoll_proto::ChunkId;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn deploys_round_trip_latest_first(
            seqs in proptest::collection::btree_set(1u64..1000, 1..10), limit in 1usize..12,
        ) {
            let store = TestStore::new();
            let site: SiteName = "blog".parse().unwrap();
            let mut tx = Transaction::new(&store.rocks);
            for seq in &seqs {
                let deploy = Deploy {
                    id: ChunkId::of(&seq.to_be_bytes()),
                    site: site.clone(),
                    created_ms: *seq,
                    message: format!("number {seq}"),
                    files: *seq,
                    bytes: *seq,
                    seq: Seq(*seq),
                };
                put(&mut tx, &deploy).unwrap();
            }
            // Publishing the first again makes it the latest.
            let first = *seqs.first().unwrap();
            let id = ChunkId::of(&first.to_be_bytes());
            let mut again = get(&tx, &site, &id).unwrap().unwrap();
            again.seq = Seq(2000);
            put(&mut tx, &again).unwrap();
            tx.commit().unwrap();

            let mut expected: Vec<u64> = seqs.iter().copied().skip(1).collect();
            expected.push(2000);
            expected.reverse();
            let found = list(&store.rocks, &site, None, limit).unwrap();
            let found: Vec<u64> = found.iter().map(|deploy| deploy.seq.0).collect();
            prop_assert_eq!(&found[..], &expected[..limit.min(expected.len())]);
            let older = list(&store.rocks, &site, Some(Seq(2000)), 100).unwrap();
            prop_assert_eq!(older.len(), seqs.len() - 1);
            let mut tx = Transaction::new(&store.rocks);
            remove(&mut tx, &again);
            prop_assert_eq!(get(&tx, &site, &id).unwrap(), None);
        }
    }
}
