//! When a move is finished: every member has everything, and nothing relies on the old members.
//!
//! Called by [`super::placement`] only. A group that every member has as of its last change is
//! about to finish ([`crate::finishing`]); it does once the changes that began before are applied
//! and every member still has everything, what they added included.

use std::collections::HashMap;

use atoll_proto::cluster::PgTable;
use atoll_proto::error::WireResult;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::{NodeId, PgId};
use tokio::time::Instant;

use crate::operation::Operation;
use crate::ops::change::store_failed;
use crate::placement::{Candidate, ranked};
use crate::raft::TASK_DEADLINE;
use crate::server::Master;
use crate::store::{group_states, leaving};

/// Groups whose old members may leave now, with their members in order of preference. To be called
/// when the state is known to be up to date.
pub(super) async fn finished(
    master: &Master,
    table: &PgTable,
    candidates: &[Candidate],
) -> WireResult<Vec<(PgId, Vec<NodeId>)>> {
    if table.leaving.is_empty() {
        master.finishing.begin(&[]);
        return Ok(Vec::new());
    }
    let complete = complete(master, table)?;
    master.finishing.begin(&complete);
    let settled = master.finishing.settled();
    if settled.is_empty() {
        return Ok(Vec::new());
    }
    // A change whose caller gave up waiting may still be on its way through the log. It was proposed
    // before this, so it is applied before this.
    let barrier =
        Operation::MoveGroups { base: table.epoch, finished: Vec::new(), moved: Vec::new() };
    master.consensus.propose(&barrier, Instant::now() + TASK_DEADLINE).await?;
    let still = self::complete(master, table)?;
    let finished = settled.into_iter().filter(|pg| still.binary_search(pg).is_ok());
    Ok(finished.map(|pg| (pg, ranked(pg, table.of(pg), candidates))).collect())
}

/// Groups on the move that every member has as of now, in order.
fn complete(master: &Master, table: &PgTable) -> WireResult<Vec<PgId>> {
    let state = master.consensus.state();
    let view = state.view();
    let since: HashMap<PgId, u64> = leaving::all(&view)
        .map_err(store_failed)?
        .into_iter()
        .map(|(pg, leaving)| (pg, leaving.since))
        .collect();
    let mut changed: HashMap<PgId, u64> = HashMap::new();
    for (pg, _) in &table.leaving {
        changed.insert(*pg, group_states::get(&view, *pg).map_err(store_failed)?.index);
    }
    let liveness = master.liveness();
    let has_all = |pg: &PgId| {
        let began = since.get(pg).copied().unwrap_or(u64::MAX);
        let changed = changed.get(pg).copied().unwrap_or(u64::MAX);
        let settled = table.settled(*pg).iter().map(|member| (member, changed));
        let filling = table.filling(*pg).iter().map(|member| (member, changed.max(began)));
        settled.chain(filling).all(|(member, index)| liveness.synced(*member, *pg, index))
    };
    Ok(table.leaving.iter().map(|(pg, _)| *pg).filter(has_all).collect())
}

/// Who was a member or an old member by one table, and is neither by the next.
pub(super) fn left(before: &PgTable, after: &PgTable) -> Vec<(PgId, Vec<NodeId>)> {
    let gone = |pg: PgId| {
        let stays = |node: &NodeId| after.readers(pg).any(|reader| reader == *node);
        let gone = before.readers(pg).filter(|node| !stays(node)).collect();
        (pg, gone)
    };
    (0..PG_COUNT)
        .map(PgId)
        .map(gone)
        .filter(|(_, nodes): &(_, Vec<NodeId>)| !nodes.is_empty())
        .collect()
}
