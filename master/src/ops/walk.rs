//! Walk: steps down the tree of what a chunkserver's groups should have.
//!
//! Everything in an answer is of one moment, and only about groups that did not change after the
//! index the asker has applied: so what it compares is the same point of the log on both sides.

use atoll_proto::cluster::PgTable;
use atoll_proto::error::WireResult;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::MasterResponse;
use atoll_proto::tree::{Ask, Found, MIDS, TOPS};
use atoll_proto::{Code, Epoch, NodeId, PgId, WireError, limits};

use super::change::store_failed;
use super::deltas::check_own;
use crate::auth::Principal;
use crate::server::Master;
use crate::store::{Read, StoreError, groups, meta, objects};
use crate::trees::{Trees, newest};

pub(crate) async fn walk(
    master: &Master,
    principal: &Principal,
    node: NodeId,
    epoch: Epoch,
    index: u64,
    asks: Vec<Ask>,
) -> WireResult<MasterResponse> {
    check_own(master, principal, node)?;
    check(&asks)?;
    // A leader that was deposed must not tell what its old state has at an index it never reached.
    master.consensus.read().await?;
    let table = master.table()?;
    if table.epoch != epoch {
        let message = format!(
            "the placement table is at epoch {}, not {epoch}: fetch it and walk again",
            table.epoch
        );
        return Err(WireError::new(Code::StaleEpoch, message));
    }
    let (state, trees) = (master.consensus.state(), master.trees.clone());
    let work = move || {
        let view = state.view();
        let walk = Walk { read: &view, trees: &trees, table: &table, node, index };
        walk.answers(&asks)
    };
    let found = atoll_net::task::spawn_blocking("walk", work)
        .await
        .map_err(|error| WireError::internal(error.to_string()))?;
    found.map(MasterResponse::Walked).map_err(store_failed)
}

fn check(asks: &[Ask]) -> WireResult<()> {
    if asks.len() > limits::WALK_ASKS_MAX {
        let most = limits::WALK_ASKS_MAX;
        let message = format!("{} questions in one step of a walk; ask at most {most}", asks.len());
        return Err(WireError::new(Code::Limit, message));
    }
    let fits = |ask: &Ask| match ask {
        Ask::Tops => true,
        Ask::Groups { top } => usize::from(*top) < TOPS,
        Ask::Mids { pg } | Ask::Ids { pg, .. } => pg.0 < PG_COUNT,
        Ask::Buckets { pg, mid } => pg.0 < PG_COUNT && usize::from(*mid) < MIDS,
    };
    match asks.iter().find(|ask| !fits(ask)) {
        Some(ask) => Err(WireError::invalid(format!("there is no such place in a tree: {ask:?}"))),
        None => Ok(()),
    }
}

/// A step of a walk over one moment of the state.
struct Walk<'a, R> {
    read: &'a R,
    trees: &'a Trees,
    table: &'a PgTable,
    node: NodeId,
    index: u64,
}

impl<R: Read> Walk<'_, R> {
    fn answers(&self, asks: &[Ask]) -> Result<Vec<Found>, StoreError> {
        let applied = meta::applied(self.read)?.map_or(0, |log_id| log_id.index);
        // The table was read a moment before.
        if groups::epoch(self.read)? != self.table.epoch {
            return Ok(all_unavailable(asks, "the placement table is changing"));
        }
        if applied < self.index {
            return Ok(all_unavailable(asks, "this master is behind the asker"));
        }
        let changes = self.trees.changes(self.read)?;
        let mut ids_left = limits::WALK_IDS_MAX;
        asks.iter().map(|ask| self.answer(*ask, &changes, &mut ids_left)).collect()
    }

    fn answer(&self, ask: Ask, changes: &[u64], ids_left: &mut usize) -> Result<Found, StoreError> {
        let changed = match ask {
            Ask::Tops => newest(changes, self.node, self.table),
            Ask::Groups { top } => self.newest_under(changes, top),
            Ask::Mids { pg } | Ask::Buckets { pg, .. } | Ask::Ids { pg, .. } => {
                if !self.table.of(pg).contains(&self.node) {
                    let reason = format!("node {} is no member of group {}", self.node, pg.0);
                    return Ok(Found::Unavailable { reason });
                }
                changes.get(usize::from(pg.0)).copied().unwrap_or(0)
            }
        };
        if changed > self.index {
            return Ok(Found::Moved { index: changed });
        }
        Ok(match ask {
            Ask::Tops => Found::Digests(self.tree()?.tops().to_vec()),
            Ask::Groups { top } => Found::Digests(self.tree()?.groups(top).1.to_vec()),
            Ask::Mids { pg } => Found::Digests(self.trees.group(self.read, pg)?.mids().to_vec()),
            Ask::Buckets { pg, mid } => {
                Found::Digests(self.trees.group(self.read, pg)?.buckets(mid).to_vec())
            }
            Ask::Ids { pg, bucket } => {
                let ids = objects::bucket_ids(self.read, pg, bucket)?;
                match ids_left.checked_sub(ids.len()) {
                    Some(left) => {
                        *ids_left = left;
                        Found::Ids(ids)
                    }
                    None => Found::Unavailable { reason: "too many ids for one answer".to_owned() },
                }
            }
        })
    }

    fn tree(&self) -> Result<std::sync::Arc<atoll_proto::tree::NodeTree>, StoreError> {
        self.trees.node(self.read, self.node, self.table)
    }

    /// The last change of the node's groups under one of the nodes over all groups.
    fn newest_under(&self, changes: &[u64], top: u8) -> u64 {
        let each = usize::from(PG_COUNT) / TOPS;
        let first = usize::from(top) * each;
        let part = (0u16..).zip(changes).skip(first).take(each);
        let kept = part.filter(|(pg, _)| self.table.of(PgId(*pg)).contains(&self.node));
        kept.map(|(_, index)| *index).max().unwrap_or(0)
    }
}

fn all_unavailable(asks: &[Ask], reason: &str) -> Vec<Found> {
    asks.iter().map(|_| Found::Unavailable { reason: reason.to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ChunkId;
    use atoll_proto::master::ObjectKind;
    use atoll_proto::tree::bucket_of;
    use openraft::CommittedLeaderId;

    use super::*;
    use crate::operation::Now;
    use crate::raft::entry::LogId;
    use crate::store::Transaction;
    use crate::store::testing::TestStore;

    /// One chunk at index 5 in a group of node 1, one at index 9 in another.
    fn state() -> (TestStore, PgTable, [ChunkId; 2]) {
        let store = TestStore::new();
        let ids = [ChunkId([0x10; 32]), ChunkId([0xf0; 32])];
        let mut table = PgTable::empty();
        for (id, index) in ids.iter().zip([5, 9]) {
            let mut tx = Transaction::new(&store.rocks);
            let now = Now { index, at_ns: 0 };
            objects::set_kind(&mut tx, now, id, 1, ObjectKind::Data).unwrap();
            meta::set_applied(&mut tx, &LogId::new(CommittedLeaderId::new(1, 1), index));
            tx.commit().unwrap();
            table.members[usize::from(id.pg().0)] = vec![NodeId(1)];
        }
        (store, table, ids)
    }

    fn ask(store: &TestStore, table: &PgTable, node: u64, index: u64, asks: &[Ask]) -> Vec<Found> {
        let trees = Trees::default();
        let read = &store.rocks;
        Walk { read, trees: &trees, table, node: NodeId(node), index }.answers(asks).unwrap()
    }

    #[test]
    fn a_walk_leads_from_the_top_to_the_ids() {
        let (store, table, [one, _]) = state();
        let (pg, bucket) = (one.pg(), bucket_of(&one));
        let top = u8::try_from(pg.0 / 64).unwrap();
        let asks = [
            Ask::Tops,
            Ask::Groups { top },
            Ask::Mids { pg },
            Ask::Buckets { pg, mid: bucket / 16 },
            Ask::Ids { pg, bucket },
        ];
        let found = ask(&store, &table, 1, 9, &asks);
        let lens: Vec<usize> = found
            .iter()
            .map(|found| match found {
                Found::Digests(digests) => digests.len(),
                Found::Ids(ids) => ids.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lens, [64, 64, 16, 16, 1]);
        assert_eq!(found[4], Found::Ids(vec![one]));
        let Found::Digests(buckets) = &found[3] else { panic!() };
        assert_ne!(buckets[usize::from(bucket % 16)], [0; 32]);
        // Groups of others count as empty.
        let none = ask(&store, &table, 2, 9, &[Ask::Tops]);
        assert_eq!(none, ask(&store, &PgTable::empty(), 1, 9, &[Ask::Tops]));
    }

    #[test]
    fn what_changed_after_the_asker_is_not_told() {
        let (store, table, [one, two]) = state();
        let mids = |id: &ChunkId| Ask::Mids { pg: id.pg() };
        let top = Ask::Groups { top: u8::try_from(one.pg().0 / 64).unwrap() };
        let found = ask(&store, &table, 1, 5, &[Ask::Tops, mids(&one), mids(&two), top]);
        assert_eq!(found[0], Found::Moved { index: 9 });
        assert!(matches!(found[1], Found::Digests(_)));
        assert_eq!(found[2], Found::Moved { index: 9 });
        assert!(matches!(found[3], Found::Digests(_)));
        // A master that is behind tells nothing, nor does one whose table moved on.
        let behind = ask(&store, &table, 1, 10, &[Ask::Tops, mids(&one)]);
        assert!(behind.iter().all(|found| matches!(found, Found::Unavailable { .. })));
        let newer = PgTable { epoch: Epoch(3), ..table.clone() };
        let moving = ask(&store, &newer, 1, 9, &[mids(&one)]);
        assert!(matches!(moving[0], Found::Unavailable { .. }));
        let foreign = ask(&store, &table, 2, 9, &[mids(&one)]);
        assert!(matches!(foreign[0], Found::Unavailable { .. }));
    }

    #[test]
    fn places_that_do_not_exist_are_refused() {
        for ask in [
            Ask::Groups { top: 64 },
            Ask::Mids { pg: PgId(PG_COUNT) },
            Ask::Buckets { pg: PgId(0), mid: 16 },
            Ask::Ids { pg: PgId(u16::MAX), bucket: 0 },
        ] {
            assert_eq!(check(&[ask]).unwrap_err().code, Code::Invalid);
        }
        let many = vec![Ask::Tops; limits::WALK_ASKS_MAX + 1];
        assert_eq!(check(&many).unwrap_err().code, Code::Limit);
    }
}
