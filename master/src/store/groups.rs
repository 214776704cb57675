//! Family `Group`: the members of placement groups, and their epoch. The whole table, moves
//! included, is put together here.

use atoll_proto::cluster::PgTable;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::{Epoch, NodeId, PgId};

use super::counters::{self, Counter};
use super::{Family, Order, Read, StoreError, Transaction, decode, leaving};

/// The only pool there is: replicated chunks.
pub(crate) const POOL: u8 = 0;

fn key(pg: PgId) -> Vec<u8> {
    Family::Group.key(&[&[POOL], &pg.0.to_be_bytes()])
}

/// The members of one group; none when it was never set.
pub(crate) fn get(read: &impl Read, pg: PgId) -> Result<Vec<NodeId>, StoreError> {
    Ok(read.get_value(&key(pg))?.unwrap_or_default())
}

pub(crate) fn put(tx: &mut Transaction<'_>, pg: PgId, members: &Vec<NodeId>) {
    tx.put_value(key(pg), members);
}

pub(crate) fn epoch(read: &impl Read) -> Result<Epoch, StoreError> {
    counters::get(read, Counter::Epoch).map(Epoch)
}

/// The whole table.
pub(crate) fn table(read: &impl Read) -> Result<PgTable, StoreError> {
    let mut table = PgTable { epoch: epoch(read)?, ..PgTable::empty() };
    let (from, to) = Family::Group.prefix(&[&[POOL]]);
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let pg = match key {
            [_, _, high, low] => u16::from_be_bytes([*high, *low]),
            _ => PG_COUNT,
        };
        let slot = table
            .members
            .get_mut(usize::from(pg))
            .ok_or_else(|| StoreError::malformed(key, &"not a placement group"))?;
        *slot = decode(key, value)?;
        Ok(true)
    })?;
    let moves = leaving::all(read)?;
    table.leaving = moves.into_iter().map(|(pg, leaving)| (pg, leaving.nodes)).collect();
    Ok(table)
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
        fn groups_round_trip(pg in 0..PG_COUNT, members in proptest::collection::vec(any::<u64>(), 0..5)) {
            let store = TestStore::new();
            let members: Vec<NodeId> = members.into_iter().map(NodeId).collect();
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, PgId(pg), &members);
            let old = vec![NodeId(77)];
            leaving::put(&mut tx, PgId(9), &leaving::Leaving { nodes: old.clone(), since: 3 });
            counters::set(&mut tx, Counter::Epoch, 5);
            tx.commit().unwrap();
            prop_assert_eq!(&get(&store.rocks, PgId(pg)).unwrap(), &members);
            let table = table(&store.rocks).unwrap();
            prop_assert_eq!(table.epoch, Epoch(5));
            prop_assert_eq!(table.of(PgId(pg)), members.as_slice());
            prop_assert_eq!(table.members.len(), usize::from(PG_COUNT));
            prop_assert_eq!(table.leaving, vec![(PgId(9), old)]);
        }
    }
}
