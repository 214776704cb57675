//! Which deploys an alias pointed at before still answer for files that the current one lacks:
//! pure.
//!
//! The list is worked out when an alias moves, from what the alias and the log say alone, and
//! travels with the alias. Time passes without entries of the log, so edges look at the age again.

use std::collections::HashSet;

use atoll_proto::publish::Earlier;
use atoll_proto::site::EarlierLimits;
use atoll_proto::{DeployId, limits};

use crate::store::aliases::AliasRecord;

/// The earlier deploys of an alias that points at `deploy` from now on, latest first. `before` is
/// what it was until now.
pub(super) fn after_move(
    before: Option<&AliasRecord>,
    deploy: DeployId,
    limits: EarlierLimits,
    now_ms: u64,
) -> Vec<Earlier> {
    let Some(alias) = before.map(|record| &record.alias) else { return Vec::new() };
    let replaced = Earlier { deploy: alias.deploy, replaced_ms: now_ms };
    let oldest_ms = now_ms.saturating_sub(u64::from(limits.age_secs) * 1000);
    let count = usize::try_from(limits.count).unwrap_or(usize::MAX);
    let mut seen = HashSet::from([deploy]);
    std::iter::once(&replaced)
        .chain(&alias.earlier)
        .filter(|earlier| earlier.replaced_ms >= oldest_ms && seen.insert(earlier.deploy))
        .take(count.min(limits::EARLIER_DEPLOYS_MAX))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::publish::Alias;
    use atoll_proto::{AliasName, ChunkId, Seq};
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> DeployId {
        ChunkId::of(&[number])
    }

    fn record(deploy: DeployId, earlier: Vec<Earlier>) -> AliasRecord {
        let alias = Alias {
            site: "blog".parse().unwrap(),
            alias: AliasName::production(),
            deploy,
            seq: Seq(1),
            at_ms: 0,
            earlier,
            expires_ms: None,
        };
        AliasRecord { alias, history: Vec::new() }
    }

    /// Moves through these deploys, a second apart.
    fn walk(deploys: &[u8], limits: EarlierLimits) -> AliasRecord {
        let mut now: Option<AliasRecord> = None;
        for (second, deploy) in (1u64..).zip(deploys) {
            let earlier = after_move(now.as_ref(), id(*deploy), limits, second * 1000);
            now = Some(record(id(*deploy), earlier));
        }
        now.unwrap()
    }

    fn names(record: &AliasRecord) -> Vec<DeployId> {
        record.alias.earlier.iter().map(|earlier| earlier.deploy).collect()
    }

    #[test]
    fn what_was_rolled_away_from_is_earlier_too_and_the_current_one_never_is() {
        let limits = EarlierLimits::default();
        assert_eq!(names(&walk(&[1, 2, 3], limits)), [id(2), id(1)]);
        assert_eq!(names(&walk(&[1, 2, 3, 2], limits)), [id(3), id(1)]);
        assert_eq!(names(&walk(&[1, 2, 2, 2], limits)), [id(1)]);
        assert_eq!(names(&walk(&[1, 2, 1, 3], limits)), [id(1), id(2)]);
    }

    #[test]
    fn count_and_age_bound_the_list() {
        let limits = |count, age_secs| EarlierLimits { count, age_secs };
        assert_eq!(names(&walk(&[1, 2, 3, 4], limits(2, 100))), [id(3), id(2)]);
        assert_eq!(names(&walk(&[1, 2, 3, 4], limits(9, 1))), [id(3), id(2)]);
        assert_eq!(names(&walk(&[1, 2, 3, 4], limits(0, 100))), []);
    }

    proptest! {
        #[test]
        fn the_list_is_bounded_sorted_and_names_each_once(
            deploys in proptest::collection::vec(0u8..60, 1..120), count in 0u32..100,
        ) {
            let limits = EarlierLimits { count, age_secs: 50 };
            let record = walk(&deploys, limits);
            let earlier = &record.alias.earlier;
            prop_assert!(earlier.len() <= (count as usize).min(limits::EARLIER_DEPLOYS_MAX));
            prop_assert!(earlier.is_sorted_by(|a, b| a.replaced_ms > b.replaced_ms));
            let distinct: HashSet<DeployId> = names(&record).into_iter().collect();
            prop_assert_eq!(distinct.len(), earlier.len());
            prop_assert!(!distinct.contains(&record.alias.deploy));
        }
    }
}
