//! Which chunks do receipts cover? A plain function of receipts, key, time and table.
//!
//! A receipt that is forged, expired, of another session or of a server that neither is a member
//! of the chunk's placement group nor leaves it counts for nothing. While a group moves, an old
//! member's receipt is as good as a member's, since the chunk is read from there until every
//! member has it; but one member at least must have it, so that the move can never take the only
//! copies away. Servers and masters agree on zones elsewhere: the head of a put sees to it that
//! copies stand in two.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use atoll_proto::cluster::PgTable;
use atoll_proto::receipt::{Receipt, ReceiptKey};
use atoll_proto::{ChunkId, Epoch, NodeId, SessionId};

use crate::operation::Covered;

/// Everything a receipt is checked against.
#[derive(Debug, Clone)]
pub(crate) struct Checker {
    /// The cluster's key.
    pub(crate) key: ReceiptKey,
    /// The session that wants to use the receipts.
    pub(crate) session: SessionId,
    /// The leader's clock.
    pub(crate) now_ms: u64,
    /// Who must have the chunks; without old members that are about to go
    /// ([`crate::finishing`]).
    pub(crate) table: Arc<PgTable>,
}

impl Checker {
    /// The chunks among those `wanted` that enough servers have on disk, by id. Whether one is wanted
    /// may depend on the epoch of the receipt.
    ///
    /// # Errors
    /// As those of `wanted`.
    pub(crate) fn covered<E>(
        &self,
        receipts: &[Receipt],
        wanted: impl Fn(&ChunkId, Epoch) -> Result<bool, E>,
    ) -> Result<Vec<Covered>, E> {
        let mut holders: HashMap<(ChunkId, u32), HashSet<NodeId>> = HashMap::new();
        for receipt in receipts {
            if !receipt.verify(&self.key, self.session, self.now_ms) {
                continue;
            }
            for (id, len) in &receipt.chunks {
                let holds = self.table.readers(id.pg()).any(|node| node == receipt.node);
                if holds && wanted(id, receipt.epoch)? {
                    holders.entry((*id, *len)).or_default().insert(receipt.node);
                }
            }
        }
        let enough = |id: &ChunkId, nodes: &HashSet<NodeId>| {
            nodes.len() >= self.table.durable_quorum(id.pg())
                && self.table.of(id.pg()).iter().any(|member| nodes.contains(member))
        };
        let covered: BTreeMap<ChunkId, u32> = holders
            .into_iter()
            .filter(|((id, _), nodes)| enough(id, nodes))
            .map(|((id, len), _)| (id, len))
            .collect();
        Ok(covered.into_iter().map(|(id, len)| Covered { id, len }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ReceiptKey = ReceiptKey([3; 32]);
    const SESSION: SessionId = SessionId(7);

    fn checker(members: &[u64]) -> Checker {
        let mut table = PgTable::empty();
        for group in &mut table.members {
            *group = members.iter().copied().map(NodeId).collect();
        }
        Checker { key: KEY, session: SESSION, now_ms: 100, table: Arc::new(table) }
    }

    fn receipt(node: u64, session: SessionId, expires_ms: u64, key: &ReceiptKey) -> Receipt {
        let chunks = vec![(ChunkId::of(b"a"), 1), (ChunkId::of(b"b"), 1)];
        Receipt::sign(key, NodeId(node), session, Epoch(1), expires_ms, chunks)
    }

    fn count(checker: &Checker, receipts: &[Receipt]) -> usize {
        let wanted = |id: &ChunkId, _| Ok::<_, ()>(*id == ChunkId::of(b"a"));
        checker.covered(receipts, wanted).expect("nothing fails").len()
    }

    #[test]
    fn two_members_of_three_are_enough_and_one_is_not() {
        let three = checker(&[1, 2, 3]);
        let good = |node| receipt(node, SESSION, 200, &KEY);
        assert_eq!(count(&three, &[good(1), good(2)]), 1);
        assert_eq!(count(&three, &[good(1)]), 0);
        assert_eq!(count(&three, &[good(1), good(1)]), 0);
        assert_eq!(count(&three, &[good(1), good(9)]), 0);
        assert_eq!(count(&checker(&[1]), &[good(1)]), 1);
        assert_eq!(count(&checker(&[]), &[good(1)]), 0);
    }

    #[test]
    fn an_old_member_counts_beside_a_member_while_it_is_leaving() {
        let good = |node| receipt(node, SESSION, 200, &KEY);
        let mut moving = checker(&[1, 2, 4]);
        assert_eq!(count(&moving, &[good(1), good(3)]), 0);
        let mut table = PgTable::clone(&moving.table);
        let mut groups = [ChunkId::of(b"a").pg(), ChunkId::of(b"b").pg()];
        groups.sort();
        table.leaving = groups.iter().map(|pg| (*pg, vec![NodeId(3), NodeId(5)])).collect();
        moving.table = Arc::new(table);
        assert_eq!(count(&moving, &[good(1), good(3)]), 1);
        assert_eq!(count(&moving, &[good(4), good(3)]), 1);
        assert_eq!(count(&moving, &[good(3)]), 0);
        // Those that go are not enough among themselves.
        assert_eq!(count(&moving, &[good(3), good(5)]), 0);
    }

    #[test]
    fn what_is_forged_expired_or_foreign_counts_for_nothing() {
        let three = checker(&[1, 2, 3]);
        let good = receipt(1, SESSION, 200, &KEY);
        for bad in [
            receipt(2, SESSION, 100, &KEY),
            receipt(2, SessionId(8), 200, &KEY),
            receipt(2, SESSION, 200, &ReceiptKey([4; 32])),
            Receipt { node: NodeId(2), ..good.clone() },
        ] {
            assert_eq!(count(&three, &[good.clone(), bad]), 0);
        }
    }

    #[test]
    fn a_receipt_may_be_of_too_early_an_epoch() {
        let three = checker(&[1, 2, 3]);
        let chunks = || vec![(ChunkId::of(b"a"), 1)];
        let of = |node, epoch| Receipt::sign(&KEY, NodeId(node), SESSION, epoch, 200, chunks());
        let wanted = |_: &ChunkId, epoch| Ok::<_, ()>(epoch >= Epoch(5));
        for (epochs, count) in [([5, 6], 1), ([4, 6], 0), ([4, 4], 0)] {
            let receipts = [of(1, Epoch(epochs[0])), of(2, Epoch(epochs[1]))];
            assert_eq!(three.covered(&receipts, wanted).map(|it| it.len()), Ok(count));
        }
    }

    #[test]
    fn servers_must_agree_on_the_length() {
        let three = checker(&[1, 2, 3]);
        let chunks = vec![(ChunkId::of(b"a"), 2)];
        let other = Receipt::sign(&KEY, NodeId(2), SESSION, Epoch(1), 200, chunks);
        assert_eq!(count(&three, &[receipt(1, SESSION, 200, &KEY), other]), 0);
    }
}
