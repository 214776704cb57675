//! Family `Live`: what was last sealed of a live site's directory.

use atoll_proto::{DeployId, SiteName};

use super::{Family, Read, StoreError, Transaction};

fn key(site: &SiteName) -> Vec<u8> {
    Family::Live.key(&[site.as_str().as_bytes()])
}

/// The deploy that the directory was last sealed as, wherever the site's aliases point now.
pub(crate) fn sealed(read: &impl Read, site: &SiteName) -> Result<Option<DeployId>, StoreError> {
    read.get_value(&key(site))
}

pub(crate) fn put(tx: &mut Transaction<'_>, site: &SiteName, deploy: &DeployId) {
    tx.put_value(key(site), deploy);
}

pub(crate) fn remove(tx: &mut Transaction<'_>, site: &SiteName) {
    tx.delete(key(site));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn what_was_sealed_round_trips(name in "[a-z]{1,20}", id: [u8; 32]) {
            let store = TestStore::new();
            let (site, deploy) = (name.parse().unwrap(), atoll_proto::ChunkId(id));
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, &site, &deploy);
            tx.commit().unwrap();
            prop_assert_eq!(sealed(&store.rocks, &site).unwrap(), Some(deploy));
            let mut tx = Transaction::new(&store.rocks);
            remove(&mut tx, &site);
            prop_assert_eq!(sealed(&tx, &site).unwrap(), None);
        }
    }
}
