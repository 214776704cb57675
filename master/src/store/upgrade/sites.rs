//! Format 2 to 3: sites have settings, aliases remember what they pointed at.
//!
//! The publish log is emptied, so that every edge takes a snapshot, which has both.

use atoll_proto::publish::{Alias, Site};
use atoll_proto::{AliasName, DeployId, Seq, SiteName};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::aliases::{self, AliasRecord};
use super::super::{Family, Order, Read, StoreError, Transaction, decode, publish_log};

/// A site as format 2 has it.
#[derive(Deserialize)]
struct SiteV2 {
    name: SiteName,
    domains: Vec<String>,
    created_ms: u64,
}

/// An alias as format 2 has it.
#[derive(Deserialize)]
struct AliasV2 {
    site: SiteName,
    alias: AliasName,
    deploy: DeployId,
    seq: Seq,
    at_ms: u64,
}

#[derive(Deserialize)]
struct AliasRecordV2 {
    alias: AliasV2,
    history: Vec<DeployId>,
}

/// Rewrites sites and aliases, and empties the publish log. There are few of either.
pub(super) fn upgrade(tx: &mut Transaction<'_>) -> Result<(), StoreError> {
    for (key, site) in all::<SiteV2>(tx, Family::Site)? {
        let SiteV2 { name, domains, created_ms } = site;
        let settings = Default::default();
        tx.put_value(key, &Site { name, domains, created_ms, settings });
    }
    for (_, record) in all::<AliasRecordV2>(tx, Family::Alias)? {
        let AliasV2 { site, alias, deploy, seq, at_ms } = record.alias;
        let (earlier, expires_ms) = (Vec::new(), None);
        let alias = Alias { site, alias, deploy, seq, at_ms, earlier, expires_ms };
        aliases::put(tx, &AliasRecord { alias, history: record.history });
    }
    let last = publish_log::last(tx)?;
    publish_log::begin_at(tx, last)
}

fn all<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    family: Family,
) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
    let (from, to) = family.prefix(&[]);
    let mut found = Vec::new();
    tx.scan(&from, &to, Order::Ascending, &mut |key, value| {
        found.push((key.to_vec(), decode(key, value)?));
        Ok(true)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ChunkId;
    use serde::Serialize;

    use super::super::super::testing::TestStore;
    use super::super::super::{publish_log, sites};
    use super::*;

    #[derive(Serialize)]
    struct OldSite {
        name: SiteName,
        domains: Vec<String>,
        created_ms: u64,
    }

    #[test]
    fn sites_and_aliases_of_format_2_keep_what_they_have() {
        let store = TestStore::new();
        let name: SiteName = "blog".parse().unwrap();
        let production = AliasName::production();
        let deploy = ChunkId::of(b"a deploy");
        let mut tx = Transaction::new(&store.rocks);
        let domains = vec!["blog.example".to_owned()];
        let site = OldSite { name: name.clone(), domains: domains.clone(), created_ms: 5 };
        tx.put_value(Family::Site.key(&[b"blog"]), &site);
        let old = ((&name, &production, deploy, Seq(9), 7u64), vec![ChunkId::of(b"before")]);
        tx.put_value(Family::Alias.key(&[b"blog", &[0], b"production"]), &old);
        tx.commit().unwrap();

        let mut tx = Transaction::new(&store.rocks);
        publish_log::begin_at(&mut tx, Seq(9)).unwrap();
        upgrade(&mut tx).unwrap();
        tx.commit().unwrap();
        let site = sites::get(&store.rocks, &name).unwrap().unwrap();
        assert_eq!((site.domains, site.created_ms), (domains, 5));
        assert_eq!(site.settings, Default::default());
        let record = aliases::get(&store.rocks, &name, &production).unwrap().unwrap();
        assert_eq!((record.alias.deploy, record.alias.seq), (deploy, Seq(9)));
        assert_eq!(record.history, [ChunkId::of(b"before")]);
        assert_eq!(publish_log::floor(&store.rocks).unwrap(), Seq(9));
    }
}
