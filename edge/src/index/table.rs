//! Sites and aliases as of one entry of the publish log: pure.
//!
//! [`super::follow`] applies entries to a copy and puts it in force; [`crate::http`] reads it;
//! [`super::snapshot`] stores it. A table is never changed while somebody may read it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use atoll_proto::publish::{Alias, PublishEntry, PublishEvent, PublishSnapshot, Site, SiteDeploys};
use atoll_proto::{AliasName, ClusterId, DeployId, Seq, SiteName, limits};

/// The state of all sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    cluster: ClusterId,
    seq: Seq,
    /// Whether the table ever came from the masters.
    known: bool,
    sites: BTreeMap<SiteName, Arc<SiteState>>,
    domains: HashMap<String, SiteName>,
}

/// One site and its aliases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteState {
    /// Its configuration.
    pub site: Site,
    /// Its aliases.
    pub aliases: BTreeMap<AliasName, Alias>,
    /// The deploys that have host names of their own, the latest last. At most
    /// `limits::NAMED_DEPLOYS_MAX`.
    pub deploys: Vec<DeployId>,
}

/// What the first digits of a deploy's id stand for within a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByDigits {
    /// No deploy begins with them.
    None,
    /// The only one that does.
    One(DeployId),
    /// Several do.
    Several,
}

impl SiteState {
    /// The deploy whose id begins with these lower-case hex digits.
    pub fn by_digits(&self, digits: &str) -> ByDigits {
        let mut fitting = self.deploys.iter().filter(|id| begins_with(id, digits.as_bytes()));
        match (fitting.next(), fitting.next()) {
            (None, _) => ByDigits::None,
            (Some(id), None) => ByDigits::One(*id),
            (Some(_), Some(_)) => ByDigits::Several,
        }
    }

    /// The deploys whose files still answer where the alias' current one has none, latest first.
    /// The site's limits count as they are now, whatever they were when the alias moved. A site that
    /// follows a directory has what is in the directory: who deletes a file there wants it gone.
    pub fn earlier<'a>(
        &'a self,
        alias: &AliasName,
        now_ms: u64,
    ) -> impl Iterator<Item = DeployId> + 'a {
        let bound = self.site.settings.earlier;
        let follows = self.site.settings.live.is_some();
        let count = if follows { 0 } else { usize::try_from(bound.count).unwrap_or(usize::MAX) };
        let oldest_ms = now_ms.saturating_sub(u64::from(bound.age_secs) * 1000);
        let earlier = self.aliases.get(alias).map(|alias| alias.earlier.as_slice());
        let earlier =
            earlier.unwrap_or_default().iter().take(count.min(limits::EARLIER_DEPLOYS_MAX));
        let young = earlier.filter(move |earlier| earlier.replaced_ms >= oldest_ms);
        young.map(|earlier| earlier.deploy)
    }

    /// Notes a deploy that was published.
    fn note(&mut self, deploy: DeployId) {
        if !self.deploys.contains(&deploy) {
            self.deploys.push(deploy);
            let surplus = self.deploys.len().saturating_sub(limits::NAMED_DEPLOYS_MAX);
            self.deploys.drain(..surplus);
        }
    }
}

/// Whether an id, written as hex, begins with these digits.
fn begins_with(id: &DeployId, digits: &[u8]) -> bool {
    let digit = |at: usize| {
        let byte = id.as_bytes().get(at / 2)?;
        char::from_digit(u32::from(if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }), 16)
    };
    digits.iter().enumerate().all(|(at, typed)| digit(at) == Some(char::from(*typed)))
}

impl Table {
    /// A table that knows nothing yet.
    pub fn empty(cluster: ClusterId) -> Table {
        Table {
            cluster,
            seq: Seq(0),
            known: false,
            sites: BTreeMap::new(),
            domains: HashMap::new(),
        }
    }

    /// The table a snapshot describes. Aliases of sites it does not have are left out.
    pub fn of_snapshot(cluster: ClusterId, snapshot: PublishSnapshot) -> Table {
        let mut table = Table { seq: snapshot.seq, known: true, ..Table::empty(cluster) };
        for site in snapshot.sites {
            table.set_site(site);
        }
        for alias in snapshot.aliases {
            table.set_alias(alias);
        }
        // After the aliases, because what the masters say of deploys is all there is to say.
        for SiteDeploys { site, deploys } in snapshot.deploys {
            if let Some(state) = table.sites.get_mut(&site) {
                Arc::make_mut(state).deploys = deploys;
            }
        }
        table
    }

    /// What [`Table::of_snapshot`] reads.
    pub fn to_snapshot(&self) -> PublishSnapshot {
        PublishSnapshot {
            seq: self.seq,
            sites: self.sites.values().map(|state| state.site.clone()).collect(),
            aliases: (self.sites.values())
                .flat_map(|state| state.aliases.values().cloned())
                .collect(),
            deploys: (self.sites.iter())
                .map(|(site, state)| SiteDeploys {
                    site: site.clone(),
                    deploys: state.deploys.clone(),
                })
                .collect(),
        }
    }

    /// Makes the change of one entry. One that is older than the table changes nothing.
    pub fn apply(&mut self, entry: &PublishEntry) {
        if self.known && entry.seq <= self.seq {
            return;
        }
        match &entry.event {
            PublishEvent::SiteSet(site) => self.set_site(site.clone()),
            PublishEvent::SiteRemoved(site) => self.remove_site(site),
            PublishEvent::AliasSet(alias) => self.set_alias(alias.clone()),
            PublishEvent::AliasRemoved { site, alias } => {
                if let Some(state) = self.sites.get_mut(site) {
                    Arc::make_mut(state).aliases.remove(alias);
                }
            }
            PublishEvent::DeployRemoved { site, deploy } => {
                if let Some(state) = self.sites.get_mut(site) {
                    Arc::make_mut(state).deploys.retain(|known| known != deploy);
                }
            }
            PublishEvent::Invalidate { .. } | PublishEvent::Erased { .. } => {}
        }
        self.advance(entry.seq);
    }

    /// Notes that there is nothing else up to `seq`.
    pub fn advance(&mut self, seq: Seq) {
        self.known = true;
        self.seq = self.seq.max(seq);
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The last entry that is applied.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Whether it ever came from the masters; an empty table that did not is no answer.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// A site.
    pub fn site(&self, name: &SiteName) -> Option<&Arc<SiteState>> {
        self.sites.get(name)
    }

    /// All sites.
    pub fn sites(&self) -> impl Iterator<Item = &SiteState> {
        self.sites.values().map(Arc::as_ref)
    }

    /// The site that has this domain as its own.
    pub fn domain(&self, host: &str) -> Option<&SiteName> {
        self.domains.get(host)
    }

    /// All domains that belong to sites.
    pub fn domains(&self) -> impl Iterator<Item = (&String, &SiteName)> {
        self.domains.iter()
    }

    fn set_site(&mut self, site: Site) {
        self.domains.retain(|_, owner| *owner != site.name);
        for domain in &site.domains {
            self.domains.insert(domain.clone(), site.name.clone());
        }
        match self.sites.get_mut(&site.name) {
            Some(state) => Arc::make_mut(state).site = site,
            None => {
                let (aliases, deploys) = (BTreeMap::new(), Vec::new());
                let state = SiteState { site: site.clone(), aliases, deploys };
                self.sites.insert(site.name, Arc::new(state));
            }
        }
    }

    fn remove_site(&mut self, site: &SiteName) {
        self.domains.retain(|_, owner| owner != site);
        self.sites.remove(site);
    }

    fn set_alias(&mut self, alias: Alias) {
        if let Some(state) = self.sites.get_mut(&alias.site) {
            let state = Arc::make_mut(state);
            state.note(alias.deploy);
            state.aliases.insert(alias.alias.clone(), alias);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ChunkId;
    use atoll_proto::publish::Earlier;
    use proptest::prelude::*;

    use super::*;

    fn site(name: &str, domains: &[&str]) -> PublishEvent {
        PublishEvent::SiteSet(Site {
            name: name.parse().unwrap(),
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            created_ms: 1,
            settings: Default::default(),
        })
    }

    fn alias(site: &str, alias: &str, deploy: &str) -> PublishEvent {
        PublishEvent::AliasSet(Alias {
            site: site.parse().unwrap(),
            alias: alias.parse().unwrap(),
            deploy: ChunkId::of(deploy.as_bytes()),
            seq: Seq(0),
            at_ms: 0,
            earlier: vec![],
            expires_ms: None,
        })
    }

    fn table(events: Vec<PublishEvent>) -> Table {
        let mut table = Table::empty(ClusterId([7; 16]));
        for (index, event) in events.into_iter().enumerate() {
            table.apply(&PublishEntry { seq: Seq(index as u64 + 1), at_ms: 0, event });
        }
        table
    }

    fn current(table: &Table, site: &str, alias: &str) -> Option<ChunkId> {
        let state = table.site(&site.parse().unwrap())?;
        state.aliases.get(&alias.parse().unwrap()).map(|alias| alias.deploy)
    }

    #[test]
    fn entries_change_sites_and_aliases() {
        let mut now = table(vec![
            site("a", &["a.example"]),
            alias("a", "production", "1"),
            alias("a", "preview", "2"),
            alias("a", "production", "3"),
        ]);
        assert_eq!(current(&now, "a", "production"), Some(ChunkId::of(b"3")));
        assert_eq!(now.seq(), Seq(4));
        let old = PublishEntry { seq: Seq(2), at_ms: 0, event: alias("a", "production", "old") };
        now.apply(&old);
        assert_eq!(current(&now, "a", "production"), Some(ChunkId::of(b"3")));
        let event = PublishEvent::AliasRemoved {
            site: "a".parse().unwrap(),
            alias: "preview".parse().unwrap(),
        };
        now.apply(&PublishEntry { seq: Seq(9), at_ms: 0, event });
        assert_eq!(current(&now, "a", "preview"), None);
        now.apply(&PublishEntry { seq: Seq(10), at_ms: 0, event: site("a", &["b.example"]) });
        assert!(now.domain("a.example").is_none() && now.domain("b.example").is_some());
        assert!(current(&now, "a", "production").is_some());
        let event = PublishEvent::SiteRemoved("a".parse().unwrap());
        now.apply(&PublishEntry { seq: Seq(11), at_ms: 0, event });
        assert!(now.sites().next().is_none() && now.domains().next().is_none());
    }

    #[test]
    fn a_snapshot_is_the_whole_state() {
        let now = table(vec![
            site("a", &["a.example"]),
            site("b", &[]),
            alias("a", "production", "1"),
            alias("b", "preview", "2"),
        ]);
        assert_eq!(Table::of_snapshot(now.cluster(), now.to_snapshot()), now);
    }

    #[test]
    fn a_copy_does_not_change_with_its_original() {
        let before = table(vec![site("a", &[]), alias("a", "production", "1")]);
        let mut after = before.clone();
        after.apply(&PublishEntry { seq: Seq(5), at_ms: 0, event: alias("a", "production", "2") });
        assert_eq!(current(&before, "a", "production"), Some(ChunkId::of(b"1")));
        assert_eq!(current(&after, "a", "production"), Some(ChunkId::of(b"2")));
    }

    #[test]
    fn digits_name_the_only_deploy_that_begins_with_them() {
        let id = |first: [u8; 5]| {
            let mut id = [0; 32];
            id[..5].copy_from_slice(&first);
            ChunkId(id)
        };
        let (one, two) = (id([0xab, 0xcd, 0xef, 0x01, 0x23]), id([0xab, 0xcd, 0xef, 0x01, 0x24]));
        let mut now = table(vec![site("a", &[]), alias("a", "production", "1")]);
        let state = Arc::make_mut(now.sites.get_mut(&"a".parse().unwrap()).unwrap());
        state.deploys = vec![one, two];
        assert_eq!(state.by_digits("abcdef01"), ByDigits::Several);
        assert_eq!(state.by_digits("abcdef012"), ByDigits::Several);
        assert_eq!(state.by_digits("abcdef0123"), ByDigits::One(one));
        assert_eq!(state.by_digits(&two.to_string()), ByDigits::One(two));
        assert_eq!(state.by_digits(&format!("{two}0")), ByDigits::None);
        assert_eq!(state.by_digits("abcdef02"), ByDigits::None);
    }

    #[test]
    fn the_latest_deploys_have_names() {
        let name: SiteName = "a".parse().unwrap();
        let mut now = table(vec![site("a", &[])]);
        for number in 0..limits::NAMED_DEPLOYS_MAX + 3 {
            let event = alias("a", "production", &number.to_string());
            now.apply(&PublishEntry { seq: Seq(number as u64 + 2), at_ms: 0, event });
        }
        let known = &now.site(&name).unwrap().deploys;
        assert_eq!(known.len(), limits::NAMED_DEPLOYS_MAX);
        assert_eq!(known[0], ChunkId::of(b"3"));
        assert_eq!(Table::of_snapshot(now.cluster(), now.to_snapshot()), now);
    }

    fn some_event() -> impl Strategy<Value = PublishEvent> {
        let site_name = || prop_oneof![Just("a"), Just("b")];
        let alias_name = || prop_oneof![Just("production"), Just("preview")];
        let deploy = || (0u8..6).prop_map(|number| ChunkId::of(&[number]));
        let earlier = proptest::collection::vec((deploy(), 0u64..9), 0..4);
        let set = (site_name(), alias_name(), deploy(), earlier, proptest::option::of(0u64..9));
        let set = set.prop_map(|(site, alias, deploy, earlier, expires_ms)| {
            let earlier = earlier.into_iter();
            PublishEvent::AliasSet(Alias {
                site: site.parse().unwrap(),
                alias: alias.parse().unwrap(),
                deploy,
                seq: Seq(0),
                at_ms: 0,
                earlier: earlier
                    .map(|(deploy, replaced_ms)| Earlier { deploy, replaced_ms })
                    .collect(),
                expires_ms,
            })
        });
        let removed = (site_name(), deploy()).prop_map(|(site, deploy)| {
            PublishEvent::DeployRemoved { site: site.parse().unwrap(), deploy }
        });
        let alias_removed = (site_name(), alias_name()).prop_map(|(site, alias)| {
            let (site, alias) = (site.parse().unwrap(), alias.parse().unwrap());
            PublishEvent::AliasRemoved { site, alias }
        });
        prop_oneof![
            2 => site_name().prop_map(|name| site(name, &[])),
            6 => set,
            2 => removed,
            1 => alias_removed,
            1 => site_name().prop_map(|name| PublishEvent::SiteRemoved(name.parse().unwrap())),
        ]
    }

    #[test]
    fn a_site_that_follows_a_directory_serves_nothing_earlier() {
        let mut moved = alias("blog", "production", "now");
        let PublishEvent::AliasSet(set) = &mut moved else { unreachable!() };
        set.earlier = vec![Earlier { deploy: ChunkId::of(b"before"), replaced_ms: 1000 }];
        let mut follows = site("blog", &[]);
        let plain = table(vec![site("blog", &[]), moved.clone()]);
        if let PublishEvent::SiteSet(site) = &mut follows {
            site.settings.live = Some("/sites/blog".to_owned());
        }
        let live = table(vec![follows, moved]);
        let earlier = |table: &Table| {
            let state = table.site(&"blog".parse().unwrap()).unwrap().clone();
            state.earlier(&AliasName::production(), 2000).count()
        };
        assert_eq!((earlier(&plain), earlier(&live)), (1, 0));
    }

    proptest! {
        /// However an edge comes to an entry: from the beginning, from a snapshot on the way, with
        /// entries told twice.
        #[test]
        fn every_way_to_an_entry_gives_the_same_table(
            events in proptest::collection::vec(some_event(), 1..40), at in 0usize..40, back in 0usize..40,
        ) {
            let entries: Vec<PublishEntry> = (1u64..)
                .zip(events)
                .map(|(seq, event)| PublishEntry { seq: Seq(seq * 2), at_ms: seq, event })
                .collect();
            let cluster = ClusterId([7; 16]);
            let mut straight = Table::empty(cluster);
            let mut resumed = Table::empty(cluster);
            let at = at.min(entries.len());
            for (number, entry) in entries.iter().enumerate() {
                straight.apply(entry);
                if number < at {
                    resumed.apply(entry);
                }
            }
            let mut resumed = Table::of_snapshot(cluster, resumed.to_snapshot());
            for entry in &entries[at.saturating_sub(back)..] {
                resumed.apply(entry);
                resumed.apply(entry);
            }
            prop_assert_eq!(&resumed, &straight);
            prop_assert_eq!(Table::of_snapshot(cluster, straight.to_snapshot()), straight);
        }
    }
}
