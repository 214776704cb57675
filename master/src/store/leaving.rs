//! Family `Leaving`: groups on the move, with the members they had before.

use atoll_proto::ids::PG_COUNT;
use atoll_proto::{NodeId, PgId};
use serde::{Deserialize, Serialize};

use super::groups::POOL;
use super::{Family, Order, Read, StoreError, Transaction, decode};

/// A group on the move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaving {
    /// Who had the chunks before and is no member any more, longest ago first.
    pub(crate) nodes: Vec<NodeId>,
    /// Log index of the last step of the move: a member that has everything as of a later index
    /// has what it must have.
    pub(crate) since: u64,
}

fn key(pg: PgId) -> Vec<u8> {
    Family::Leaving.key(&[&[POOL], &pg.0.to_be_bytes()])
}

/// The move of a group; `None` while it does not move.
pub(crate) fn get(read: &impl Read, pg: PgId) -> Result<Option<Leaving>, StoreError> {
    read.get_value(&key(pg))
}

/// Keeps the move of a group; one that nobody is leaving is none.
pub(crate) fn put(tx: &mut Transaction<'_>, pg: PgId, leaving: &Leaving) {
    if leaving.nodes.is_empty() {
        tx.delete(key(pg));
    } else {
        tx.put_value(key(pg), leaving);
    }
}

/// All groups on the move, in order.
pub(crate) fn all(read: &impl Read) -> Result<Vec<(PgId, Leaving)>, StoreError> {
    let (from, to) = Family::Leaving.prefix(&[&[POOL]]);
    let mut found = Vec::new();
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let pg = match key {
            [_, _, high, low] => u16::from_be_bytes([*high, *low]),
            _ => PG_COUNT,
        };
        if pg >= PG_COUNT {
            return Err(StoreError::malformed(key, &"not a placement group"));
        }
        found.push((PgId(pg), decode(key, value)?));
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
        fn moves_round_trip(
            pg in 0..PG_COUNT, nodes in proptest::collection::vec(any::<u64>(), 0..4), since: u64,
        ) {
            let store = TestStore::new();
            let leaving = Leaving { nodes: nodes.into_iter().map(NodeId).collect(), since };
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, PgId(pg), &leaving);
            tx.commit().unwrap();
            let kept = (!leaving.nodes.is_empty()).then_some(leaving);
            prop_assert_eq!(&get(&store.rocks, PgId(pg)).unwrap(), &kept);
            let all = all(&store.rocks).unwrap();
            prop_assert_eq!(all, kept.map(|kept| (PgId(pg), kept)).into_iter().collect::<Vec<_>>());
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, PgId(pg), &Leaving { nodes: vec![], since });
            tx.commit().unwrap();
            prop_assert_eq!(get(&store.rocks, PgId(pg)).unwrap(), None);
        }
    }
}
