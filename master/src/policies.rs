//! Which policy an edge that is silent may go by: the one it heard of last, or any that was set
//! since. Read from the publish log, each entry once, and kept in memory.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use atoll_proto::lease::looser;
use atoll_proto::publish::{PublishEvent, Site};
use atoll_proto::site::Policy;
use atoll_proto::{Seq, SiteName};

use crate::server::Master;
use crate::store::{Read, StoreError, publish_log, sites};

/// Entries read at a time.
const PAGE: usize = 1000;

/// The policies that sites had, as far as the publish log reaches back.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    upto: Seq,
    /// The log did not reach back further when it was first read.
    floor: Option<Seq>,
    changes: BTreeMap<SiteName, Vec<(Seq, Policy)>>,
}

impl Policies {
    /// Reads what is new in the log.
    pub(crate) fn read(&mut self, read: &impl Read) -> Result<(), StoreError> {
        let floor = publish_log::floor(read)?;
        // What was dropped before it was read here is not known.
        if self.floor.is_none() || floor > self.upto {
            *self = Policies { floor: Some(floor), ..Policies::default() };
        }
        loop {
            let (entries, end) = publish_log::after(read, self.upto, PAGE)?;
            for entry in entries {
                self.upto = entry.seq;
                if let PublishEvent::SiteSet(site) = entry.event {
                    let changes = self.changes.entry(site.name).or_default();
                    let policy = site.settings.policy;
                    if changes.last().is_none_or(|(_, last)| *last != policy) {
                        changes.push((entry.seq, policy));
                    }
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    /// The loosest policy of a site that an edge may go by which has applied the log up to `acked`,
    /// or further without saying so.
    pub(crate) fn loosest(&self, current: Policy, site: &SiteName, acked: Seq) -> Policy {
        let Some(changes) = self.changes.get(site) else { return current };
        let heard = changes.partition_point(|(seq, _)| *seq <= acked);
        // It knew the site before the log as it is kept: under which policy is not known.
        if heard == 0 && self.floor.is_some_and(|floor| floor > Seq(0)) {
            return Policy::Available;
        }
        let since = changes.get(heard.saturating_sub(1)..).unwrap_or_default();
        since.iter().fold(current, |loosest, (_, policy)| looser(loosest, *policy))
    }
}

/// The loosest policy of any site that an edge may go by which has applied the log up to `acked`.
pub(crate) fn loosest_of_all(master: &Master, acked: Seq) -> Result<Policy, StoreError> {
    let state = master.consensus.state();
    let sites = sites::all(&*state)?;
    let mut policies = master.policies.lock().unwrap_or_else(PoisonError::into_inner);
    policies.read(&*state)?;
    let each = |site: Site| policies.loosest(site.settings.policy, &site.name, acked);
    Ok(sites.into_iter().map(each).fold(Policy::Strict, looser))
}

/// The sites that an entry of the publish log is about, with their policies now: one, or all when
/// the log does not say.
pub(crate) fn sites_of(read: &impl Read, seq: Seq) -> Result<Vec<(SiteName, Policy)>, StoreError> {
    let before = Seq(seq.0.saturating_sub(1));
    let (entries, _) = publish_log::after(read, before, 1)?;
    let Some(entry) = entries.into_iter().find(|entry| entry.seq == seq) else {
        let all = sites::all(read)?.into_iter();
        return Ok(all.map(|site| (site.name, site.settings.policy)).collect());
    };
    let site = entry.event.site().clone();
    let current = sites::get(read, &site)?.map_or(Policy::Strict, |it| it.settings.policy);
    Ok(vec![(site, current)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_edge_may_go_by_what_it_heard_last_and_by_all_since() {
        let site: SiteName = "blog".parse().unwrap();
        let bounded = Policy::Bounded { secs: 9 };
        let changes =
            vec![(Seq(3), bounded), (Seq(5), Policy::Available), (Seq(8), Policy::Strict)];
        let changes = BTreeMap::from([(site.clone(), changes)]);
        let mut policies = Policies { upto: Seq(9), floor: Some(Seq(0)), changes };
        let loosest =
            |policies: &Policies, acked| policies.loosest(Policy::Strict, &site, Seq(acked));
        assert_eq!(loosest(&policies, 9), Policy::Strict);
        assert_eq!(loosest(&policies, 8), Policy::Strict);
        assert_eq!(loosest(&policies, 7), Policy::Available);
        assert_eq!(loosest(&policies, 3), Policy::Available);
        assert_eq!(loosest(&policies, 0), Policy::Available);
        policies.changes.get_mut(&site).unwrap().remove(1);
        assert_eq!(loosest(&policies, 4), bounded);
        policies.floor = Some(Seq(2));
        assert_eq!(loosest(&policies, 2), Policy::Available, "nobody knows any more");
        let other = "shop".parse().unwrap();
        assert_eq!(policies.loosest(bounded, &other, Seq(0)), bounded);
    }
}
