//! When a put is durable enough: pure.

use atoll_proto::ChunkId;
use atoll_proto::cluster::PgTable;

/// How many members of each chunk's placement group have it on disk, and how many still may.
#[derive(Debug)]
pub(super) struct Quorum(Vec<Need>);

#[derive(Debug)]
struct Need {
    needed: usize,
    durable: usize,
    open: usize,
}

impl Quorum {
    /// For these chunks, with every member still to be heard from.
    pub(super) fn new<'a>(table: &PgTable, ids: impl IntoIterator<Item = &'a ChunkId>) -> Self {
        let need = |id: &ChunkId| Need {
            needed: table.durable_quorum(id.pg()),
            durable: 0,
            open: table.of(id.pg()).len(),
        };
        Self(ids.into_iter().map(need).collect())
    }

    /// A member has these chunks on disk, or failed to.
    pub(super) fn heard(&mut self, chunks: &[usize], durable: bool) {
        for at in chunks {
            if let Some(need) = self.0.get_mut(*at) {
                need.open = need.open.saturating_sub(1);
                need.durable += usize::from(durable);
            }
        }
    }

    /// Enough members have every chunk.
    pub(super) fn met(&self) -> bool {
        self.0.iter().all(|need| need.durable >= need.needed)
    }

    /// Some chunk cannot reach its quorum any more.
    pub(super) fn hopeless(&self) -> bool {
        self.0.iter().any(|need| need.durable + need.open < need.needed)
    }
}

#[cfg(test)]
mod tests {
    use atoll_proto::{Epoch, NodeId};

    use super::*;

    fn table(members: u64) -> PgTable {
        let mut table = PgTable::empty();
        table.epoch = Epoch(1);
        table.members.iter_mut().for_each(|group| group.extend((1..=members).map(NodeId)));
        table
    }

    #[test]
    fn two_of_three_are_enough_and_one_is_not() {
        let ids = [ChunkId([1; 32]), ChunkId([2; 32])];
        let mut quorum = Quorum::new(&table(3), &ids);
        quorum.heard(&[0, 1], true);
        assert!(!quorum.met() && !quorum.hopeless());
        quorum.heard(&[0], true);
        assert!(!quorum.met());
        quorum.heard(&[1], false);
        assert!(!quorum.met() && !quorum.hopeless());
        quorum.heard(&[1], true);
        assert!(quorum.met());
    }

    #[test]
    fn two_failures_of_three_are_hopeless() {
        let mut quorum = Quorum::new(&table(3), &[ChunkId([1; 32])]);
        quorum.heard(&[0], false);
        assert!(!quorum.hopeless());
        quorum.heard(&[0], false);
        assert!(quorum.hopeless() && !quorum.met());
    }

    #[test]
    fn a_single_server_is_its_own_quorum() {
        let mut quorum = Quorum::new(&table(1), &[ChunkId([1; 32])]);
        assert!(!quorum.met());
        quorum.heard(&[0], true);
        assert!(quorum.met());
    }
}
