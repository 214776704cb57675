//! Family `Alias`: where aliases point, and where they pointed before.

use atoll_proto::publish::Alias;
use atoll_proto::{AliasName, DeployId, SiteName};
use serde::{Deserialize, Serialize};

use super::{Family, Order, Read, StoreError, Transaction, decode};

/// How far an alias remembers back; a rollback can go no further.
pub(crate) const HISTORY_MAX: usize = 256;

/// An alias and its history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AliasRecord {
    /// Where it points.
    pub(crate) alias: Alias,
    /// The deploys published before the current one and not rolled back, oldest first, without
    /// the current one. At most [`HISTORY_MAX`].
    pub(crate) history: Vec<DeployId>,
}

fn key(site: &SiteName, alias: &AliasName) -> Vec<u8> {
    Family::Alias.key(&[site.as_str().as_bytes(), &[0], alias.as_str().as_bytes()])
}

pub(crate) fn get(
    read: &impl Read,
    site: &SiteName,
    alias: &AliasName,
) -> Result<Option<AliasRecord>, StoreError> {
    read.get_value(&key(site, alias))
}

pub(crate) fn put(tx: &mut Transaction<'_>, record: &AliasRecord) {
    tx.put_value(key(&record.alias.site, &record.alias.alias), record);
}

pub(crate) fn remove(tx: &mut Transaction<'_>, site: &SiteName, alias: &AliasName) {
    tx.delete(key(site, alias));
}

/// The aliases of one site by name, or of all sites.
pub(crate) fn all(
    read: &impl Read,
    site: Option<&SiteName>,
) -> Result<Vec<AliasRecord>, StoreError> {
    let (from, to) = match site {
        Some(site) => Family::Alias.prefix(&[site.as_str().as_bytes(), &[0]]),
        None => Family::Alias.prefix(&[]),
    };
    let mut found = Vec::new();
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        found.push(decode(key, value)?);
        Ok(true)
    })?;
    Ok(found)
}

/// Looks at all aliases of all sites, one after the other.
pub(crate) fn each(read: &impl Read, look: &mut dyn FnMut(AliasRecord)) -> Result<(), StoreError> {
    let (from, to) = Family::Alias.prefix(&[]);
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        look(decode(key, value)?);
        Ok(true)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use atoll_proto::Seq;
    use atoll_proto::publish::Earlier;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn aliases_round_trip(
            site in "[a-z][a-z0-9]{0,10}", name in "[a-z][a-z0-9]{0,10}", id: [u8; 32],
            history in proptest::collection::vec(any::<[u8; 32]>(), 0..5), seq: u64, at_ms: u64,
        ) {
            let store = TestStore::new();
            let site: SiteName = site.parse().unwrap();
            let record = AliasRecord {
                alias: Alias {
                    site: site.clone(),
                    alias: name.parse().unwrap(),
                    deploy: atoll_proto::ChunkId(id),
                    seq: Seq(seq),
                    at_ms,
                    earlier: vec![Earlier { deploy: atoll_proto::ChunkId(id), replaced_ms: at_ms }],
                    expires_ms: Some(at_ms),
                },
                history: history.into_iter().map(atoll_proto::ChunkId).collect(),
            };
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, &record);
            tx.commit().unwrap();
            let alias = &record.alias.alias;
            prop_assert_eq!(get(&store.rocks, &site, alias).unwrap(), Some(record.clone()));
            prop_assert_eq!(all(&store.rocks, Some(&site)).unwrap(), vec![record.clone()]);
            let other = format!("{site}-x").parse().unwrap();
            prop_assert_eq!(all(&store.rocks, Some(&other)).unwrap(), vec![]);
            let mut tx = Transaction::new(&store.rocks);
            remove(&mut tx, &site, alias);
            prop_assert_eq!(all(&tx, None).unwrap(), vec![]);
        }
    }
}
