//! Families `Site` and `Domain`: sites and the host names they own.

use atoll_proto::SiteName;
use atoll_proto::publish::Site;

use super::{Family, Order, Read, StoreError, Transaction, decode};

fn key(site: &SiteName) -> Vec<u8> {
    Family::Site.key(&[site.as_str().as_bytes()])
}

fn domain_key(domain: &str) -> Vec<u8> {
    Family::Domain.key(&[domain.as_bytes()])
}

pub(crate) fn get(read: &impl Read, site: &SiteName) -> Result<Option<Site>, StoreError> {
    read.get_value(&key(site))
}

/// Which site owns a host name.
pub(crate) fn owner(read: &impl Read, domain: &str) -> Result<Option<SiteName>, StoreError> {
    read.get_value(&domain_key(domain))
}

/// Sets a site, and the host names it owns from now on. The caller has checked that no other
/// site owns them.
pub(crate) fn put(tx: &mut Transaction<'_>, site: &Site) -> Result<(), StoreError> {
    if let Some(before) = get(tx, &site.name)? {
        for domain in &before.domains {
            tx.delete(domain_key(domain));
        }
    }
    for domain in &site.domains {
        tx.put_value(domain_key(domain), &site.name);
    }
    tx.put_value(key(&site.name), site);
    Ok(())
}

pub(crate) fn remove(tx: &mut Transaction<'_>, site: &Site) {
    for domain in &site.domains {
        tx.delete(domain_key(domain));
    }
    tx.delete(key(&site.name));
}

/// All sites by name.
pub(crate) fn all(read: &impl Read) -> Result<Vec<Site>, StoreError> {
    let (from, to) = Family::Site.prefix(&[]);
    let mut found = Vec::new();
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        found.push(decode(key, value)?);
        Ok(true)
    })?;
    Ok(found)
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
        fn sites_round_trip(
            name in "[a-z][a-z0-9]{0,20}", created_ms: u64,
            domains in proptest::collection::btree_set("[a-z]{1,8}\\.[a-z]{2}", 0..4),
        ) {
            let store = TestStore::new();
            let domains: Vec<String> = domains.into_iter().collect();
            let (name, settings) = (name.parse().unwrap(), Default::default());
            let site = Site { name, domains: domains.clone(), created_ms, settings };
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, &site).unwrap();
            tx.commit().unwrap();
            prop_assert_eq!(get(&store.rocks, &site.name).unwrap(), Some(site.clone()));
            prop_assert_eq!(all(&store.rocks).unwrap(), vec![site.clone()]);
            for domain in &domains {
                prop_assert_eq!(owner(&store.rocks, domain).unwrap(), Some(site.name.clone()));
            }
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, &Site { domains: vec![], ..site.clone() }).unwrap();
            for domain in &domains {
                prop_assert_eq!(owner(&tx, domain).unwrap(), None);
            }
            remove(&mut tx, &site);
            prop_assert_eq!(get(&tx, &site.name).unwrap(), None);
        }
    }
}
