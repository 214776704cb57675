//! Proposes members for placement groups when chunkservers register.
//!
//! Nothing is moved: see [`crate::ops::set_table`]. When a cluster starts, its chunkservers
//! register one after the other; the task waits for a moment of quiet, so that groups are dealt
//! out once and not once per server.

use std::sync::Arc;
use std::time::Duration;

use atoll_proto::cluster::NodeKind;
use atoll_proto::error::WireResult;
use atoll_proto::limits;
use tokio::time::Instant;

use crate::operation::Operation;
use crate::ops::change::store_failed;
use crate::ops::set_table::may_deal_anew;
use crate::placement::{Candidate, changes};
use crate::raft::TASK_DEADLINE;
use crate::server::Master;
use crate::store::nodes;

/// How often the leader looks even when nothing seems to have changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn run(master: Arc<Master>) {
    let mut applied = master.consensus.applied();
    let mut seen: Option<Vec<Candidate>> = None;
    loop {
        let view_changed = applied.borrow_and_update().view_changed;
        if master.consensus.leads() {
            match settle(&master, &mut seen).await {
                Ok(()) => {}
                Err(error) => tracing::warn!(%error, "cannot place groups yet"),
            }
        } else {
            seen = None;
        }
        tokio::select! {
            changed = applied.wait_for(|applied| applied.view_changed != view_changed) => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = master.shutdown.wait() => return,
        }
    }
}

/// Places groups once the set of chunkservers has been the same for the settling time.
async fn settle(master: &Master, seen: &mut Option<Vec<Candidate>>) -> WireResult<()> {
    loop {
        let now = candidates(master)?;
        if now.is_empty() || seen.as_ref() == Some(&now) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(master.settings.placement_settle_ms)).await;
        if candidates(master)? == now {
            place(master, &now).await?;
            *seen = Some(now);
        }
    }
}

fn candidates(master: &Master) -> WireResult<Vec<Candidate>> {
    let nodes = nodes::all(&*master.consensus.state()).map_err(store_failed)?;
    let servers = nodes.into_iter().filter(|node| node.kind == NodeKind::Chunkserver);
    let candidate = |node: atoll_proto::cluster::NodeInfo| Candidate {
        id: node.id,
        zone: node.zone,
        weight: node.weight,
    };
    Ok(servers.map(candidate).collect())
}

async fn place(master: &Master, candidates: &[Candidate]) -> WireResult<()> {
    master.consensus.read().await?;
    let table = master.table()?;
    let holds_chunks = !may_deal_anew(&*master.consensus.state()).map_err(store_failed)?;
    let changes = changes(&table, candidates, limits::REPLICAS, holds_chunks);
    if changes.is_empty() {
        return Ok(());
    }
    let groups = changes.len();
    let operation = Operation::SetTable { base: table.epoch, changes };
    master.consensus.propose(&operation, Instant::now() + TASK_DEADLINE).await?;
    tracing::info!(groups, servers = candidates.len(), "placed groups");
    Ok(())
}
