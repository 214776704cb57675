//! Family `GroupState`: when the set of live chunks of a placement group last changed, and how
//! many there are. Written by [`super::objects`] only.

use atoll_proto::PgId;
use atoll_proto::ids::PG_COUNT;
use serde::{Deserialize, Serialize};

use super::{Family, Order, POOL, Read, StoreError, Transaction, decode};

/// What is known of a group's chunks as a whole. A group that never had one has the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupState {
    /// Log index of the last change of the set of live chunks.
    pub(crate) index: u64,
    /// How many there are.
    pub(crate) chunks: u64,
}

fn key(pg: PgId) -> Vec<u8> {
    Family::GroupState.key(&[&[POOL], &pg.0.to_be_bytes()])
}

pub(crate) fn get(read: &impl Read, pg: PgId) -> Result<GroupState, StoreError> {
    Ok(read.get_value(&key(pg))?.unwrap_or_default())
}

/// One chunk more (or fewer).
pub(super) fn changed(
    tx: &mut Transaction<'_>,
    pg: PgId,
    index: u64,
    more: i64,
) -> Result<(), StoreError> {
    let chunks = get(tx, pg)?.chunks.checked_add_signed(more);
    let negative = || StoreError::malformed(&key(pg), &"a group lost a chunk it did not have");
    let chunks = chunks.ok_or_else(negative)?;
    tx.put_value(key(pg), &GroupState { index, chunks });
    Ok(())
}

/// All groups, by number.
pub(crate) fn all(read: &impl Read) -> Result<Vec<GroupState>, StoreError> {
    let mut all = vec![GroupState::default(); usize::from(PG_COUNT)];
    let (from, to) = Family::GroupState.prefix(&[&[POOL]]);
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let pg = match key {
            [_, _, high, low] => u16::from_be_bytes([*high, *low]),
            _ => PG_COUNT,
        };
        let slot = all.get_mut(usize::from(pg));
        *slot.ok_or_else(|| StoreError::malformed(key, &"not a placement group"))? =
            decode(key, value)?;
        Ok(true)
    })?;
    Ok(all)
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
        fn group_states_round_trip(pg in 0..PG_COUNT, index: u64, more in 0i64..1000) {
            let store = TestStore::new();
            let mut tx = Transaction::new(&store.rocks);
            changed(&mut tx, PgId(pg), index / 2, more).unwrap();
            changed(&mut tx, PgId(pg), index, 1).unwrap();
            prop_assert!(changed(&mut tx, PgId(pg), index, -more - 2).is_err());
            tx.commit().unwrap();
            let state = GroupState { index, chunks: u64::try_from(more).unwrap() + 1 };
            prop_assert_eq!(get(&store.rocks, PgId(pg)).unwrap(), state);
            let all = all(&store.rocks).unwrap();
            prop_assert_eq!(all[usize::from(pg)], state);
            prop_assert_eq!(all.len(), usize::from(PG_COUNT));
        }
    }
}
