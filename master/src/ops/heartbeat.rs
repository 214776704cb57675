//! Heartbeat: a node is alive, and what a chunkserver has is compared with what it should have.
//! Kept in the leader's memory only.

use atoll_net::Context;
use atoll_proto::chunk::ChunkStat;
use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterResponse, TreeReport};
use atoll_proto::{Code, NodeId, PgId, WireError, limits};
use tokio::time::Instant;

use super::change::store_failed;
use super::upkeep;
use crate::liveness::Comparison;
use crate::server::Master;
use crate::store::{Read, StoreError, groups, meta, nodes};
use crate::trees::{Trees, newest};

pub(crate) async fn heartbeat(
    master: &Master,
    context: &Context,
    node: NodeId,
    ready: bool,
    stat: Option<ChunkStat>,
    tree: Option<TreeReport>,
) -> WireResult<MasterResponse> {
    let state = master.consensus.state();
    let info = nodes::get(&*state, node).map_err(store_failed)?;
    let known = info.is_some_and(|info| info.name == context.peer.name);
    let (mut in_sync, mut differ) = (None, Vec::new());
    if known {
        master.liveness().heard(node, ready, stat, Instant::now());
        if let Some(report) = tree {
            (in_sync, differ) = compare(master, node, report).await?;
        }
    }
    Ok(MasterResponse::Heard {
        epoch: groups::epoch(&*state).map_err(store_failed)?,
        term: master.consensus.term(),
        known,
        orders: upkeep::orders(&*state).map_err(store_failed)?,
        in_sync,
        differ,
    })
}

/// Compares a report with the object table at the report's index, and remembers the outcome.
async fn compare(
    master: &Master,
    node: NodeId,
    report: TreeReport,
) -> WireResult<(Option<bool>, Vec<PgId>)> {
    if report.groups.len() > limits::REPORT_GROUPS_MAX {
        let most = limits::REPORT_GROUPS_MAX;
        let message = format!("{} groups in one report; send at most {most}", report.groups.len());
        return Err(WireError::new(Code::Limit, message));
    }
    let (state, trees, table) = (master.consensus.state(), master.trees.clone(), master.table()?);
    if table.epoch != report.epoch {
        return Ok((None, Vec::new()));
    }
    let short = report.groups.is_empty();
    let work = {
        let (state, table) = (state.clone(), table.clone());
        move || outcome(&state.view(), &trees, node, &table, &report)
    };
    // Where nothing changes, another thread would cost more than the work.
    let at_hand = master.trees.is_at_hand(&*state, node, &table).map_err(store_failed)?;
    let outcome = match short && at_hand {
        true => work(),
        false => atoll_net::task::spawn_blocking("compare", work)
            .await
            .map_err(|error| WireError::internal(error.to_string()))?,
    };
    let Some(Outcome { index, whole, groups }) = outcome.map_err(store_failed)? else {
        return Ok((None, Vec::new()));
    };
    let comparison = Comparison { table: &table, index, whole, groups: &groups };
    master.liveness().compared(node, &comparison);
    let differ = groups.iter().filter(|(_, same)| !same).map(|(pg, _)| *pg).collect();
    Ok((whole, differ))
}

/// What came of a comparison.
struct Outcome {
    /// Where the master is. What has not changed since the report's index is as it was there.
    index: u64,
    whole: Option<bool>,
    groups: Vec<(PgId, bool)>,
}

/// `None` when nothing can be compared at the report's index.
fn outcome(
    read: &impl Read,
    trees: &Trees,
    node: NodeId,
    table: &atoll_proto::cluster::PgTable,
    report: &TreeReport,
) -> Result<Option<Outcome>, StoreError> {
    let applied = meta::applied(read)?.map_or(0, |log_id| log_id.index);
    if applied < report.index || groups::epoch(read)? != table.epoch {
        return Ok(None);
    }
    let changes = trees.changes(read)?;
    let mut whole = None;
    if newest(&changes, node, table) <= report.index {
        whole = Some(trees.node(read, node, table)?.root() == report.root);
    }
    let mut groups = Vec::with_capacity(report.groups.len());
    for (pg, root) in &report.groups {
        let changed = changes.get(usize::from(pg.0)).copied();
        if let Some(changed) = changed.filter(|changed| *changed <= report.index)
            && table.of(*pg).contains(&node)
        {
            groups.push((*pg, trees.root(read, *pg, changed)? == *root));
        }
    }
    Ok(Some(Outcome { index: applied, whole, groups }))
}
