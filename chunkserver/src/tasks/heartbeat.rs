//! Keeping in touch with the masters: registers, tells every second how the node does and what it
//! has, and learns of new placement tables, of where other nodes are, and of orders.
//!
//! A master of another cluster, or one that knows less than was heard before, is not followed:
//! the node then serves reads, takes no puts of newer epochs, and says that it is not ready.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_net::admin::Readiness;
use atoll_net::{Backoff, Shutdown};
use atoll_proto::NodeId;
use atoll_proto::chunk::ChunkStat;
use atoll_proto::cluster::{NodeInfo, PgTable};
use atoll_proto::limits::{HEARTBEAT_EVERY, HEARTBEAT_LOST, HEARTBEAT_QUIET};
use atoll_proto::master::{MasterRequest, MasterResponse, TreeReport};
use tokio::sync::watch;
use tokio::time::Instant;

use super::feed;
use crate::node::Node;
use crate::reconcile::tree::Look;
use crate::store::{ChunkStore, StoreError};

const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(50), max: Duration::from_secs(2), factor: 2.0 };
const REGISTER_DEADLINE: Duration = Duration::from_secs(5);
const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(2);
/// The last words of a node that stops.
const FAREWELL_DEADLINE: Duration = Duration::from_millis(500);
/// Repairs that end shortly after one another are told together.
const MENDED_SPACING: Duration = Duration::from_millis(50);
/// Other nodes may move without a new epoch.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Runs until shutdown; then tells the masters that the node is not ready any more.
pub(crate) async fn keep_in_touch(
    node: Arc<Node>,
    info: NodeInfo,
    readiness: watch::Sender<Readiness>,
    shutdown: Shutdown,
) {
    let work = async {
        loop {
            register(&node, &info, &readiness).await;
            readiness.send_replace(Readiness::ready());
            beat_while_known(&node, &readiness).await;
            tracing::warn!("the master does not know this node: registering again");
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.wait() => {}
    }
    readiness.send_replace(Readiness::not("stopping"));
    let farewell = MasterRequest::Heartbeat { node: node.id, ready: false, stat: None, tree: None };
    if let Err(error) = node.masters.ask(&farewell, FAREWELL_DEADLINE).await {
        tracing::debug!(%error, "no master heard that this node stops");
    }
}

/// Tries until a master that may be followed has answered.
async fn register(node: &Node, info: &NodeInfo, readiness: &watch::Sender<Readiness>) {
    let mut attempt = 0;
    loop {
        match try_register(node, info).await {
            Ok(()) => {
                tracing::info!(id = %node.id, addr = %info.addr, "registered");
                return;
            }
            Err(reason) => {
                if attempt % 8 == 0 {
                    tracing::warn!(reason, "cannot register with a master yet");
                }
                readiness.send_replace(Readiness::not(format!("not registered: {reason}")));
            }
        }
        tokio::time::sleep(BACKOFF.delay(attempt, rand::random::<f64>())).await;
        attempt = attempt.saturating_add(1);
    }
}

async fn try_register(node: &Node, info: &NodeInfo) -> Result<(), String> {
    let request = MasterRequest::Register { info: info.clone() };
    let answer = node.masters.ask(&request, REGISTER_DEADLINE).await;
    let MasterResponse::Registered { cluster, receipt_key, epoch, term } =
        answer.map_err(|error| error.to_string())?
    else {
        return Err("the master answered with the wrong kind of message".to_owned());
    };
    if let Err(error) = node.placement.check_cluster(cluster) {
        node.distrust(&error);
        return Err(error.to_string());
    }
    feed::hear_term(node, epoch, term).await?;
    if let Err(error) = node.placement.hear(cluster, epoch, term).await {
        node.distrust(&error);
        return Err(error.to_string());
    }
    // A master that has just heard of this node knows nothing of what it has.
    node.upkeep.reporter().begin_anew();
    let key = receipt_key.ok_or("the master gave no key for receipts")?;
    node.fetch_view(None).await?;
    node.set_receipt_key(key);
    Ok(())
}

/// Sends heartbeats until a master says that it does not know this node.
async fn beat_while_known(node: &Node, readiness: &watch::Sender<Readiness>) {
    let mut heard = Instant::now();
    let mut looked = Instant::now();
    loop {
        match beat(node).await {
            Ok(true) => {
                heard = Instant::now();
                if !readiness.borrow().ready {
                    readiness.send_replace(Readiness::ready());
                }
                node.masters.learn_now_and_then().await;
            }
            Ok(false) => return,
            Err(reason) => {
                tracing::debug!(reason, "a heartbeat failed");
                if heard.elapsed() > HEARTBEAT_LOST && readiness.borrow().ready {
                    tracing::warn!(reason, "no master answers");
                    readiness.send_replace(Readiness::not(format!("no master answers: {reason}")));
                }
            }
        }
        let behind = node.placement.is_behind();
        if behind || looked.elapsed() >= LOOK_EVERY {
            look(node, behind).await;
            looked = Instant::now();
        }
        let quiet = heard.elapsed() < HEARTBEAT_EVERY && node.upkeep.reporter().is_quiet();
        let pause = if quiet { HEARTBEAT_QUIET } else { HEARTBEAT_EVERY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The master is not left to think for longer that something is lacking.
            () = node.upkeep.mended() => tokio::time::sleep(MENDED_SPACING).await,
            () = node.look_again.notified() => {
                look(node, false).await;
                looked = Instant::now();
                // Failures come in crowds; one look answers all of them.
                tokio::time::sleep(HEARTBEAT_EVERY / 4).await;
            }
        }
    }
}

/// Whether the master knows this node.
async fn beat(node: &Node) -> Result<bool, String> {
    let (stat, report) = look_around(node).await?;
    metrics::gauge!("atoll_chunk_chunks").set(stat.chunks as f64);
    metrics::gauge!("atoll_chunk_bytes").set(stat.bytes as f64);
    metrics::gauge!("atoll_chunk_free_bytes").set(stat.free_bytes as f64);
    metrics::gauge!("atoll_chunk_corrupt_found").set(stat.corrupt_found as f64);
    metrics::gauge!("atoll_chunk_lacking").set(stat.lacking as f64);
    metrics::gauge!("atoll_chunk_dead_letters").set(stat.dead_letters as f64);
    metrics::gauge!("atoll_chunk_quarantined").set(stat.quarantined as f64);
    let ready = node.receipt_key().is_ok();
    let lacking = stat.lacking;
    let tree = report.clone();
    let request = MasterRequest::Heartbeat { node: node.id, ready, stat: Some(stat), tree };
    let answer = node.masters.ask(&request, HEARTBEAT_DEADLINE).await;
    let MasterResponse::Heard { epoch, term, known, orders, in_sync, differ } =
        answer.map_err(|error| error.to_string())?
    else {
        return Err("the master answered with the wrong kind of message".to_owned());
    };
    let cluster = node.endpoint.identity_peer().cluster;
    let before = node.placement.fence();
    feed::hear_term(node, epoch, term).await?;
    if let Err(error) = node.placement.hear(cluster, epoch, term).await {
        tracing::error!(%error, "a master is not followed");
        node.distrust(&error);
        return Err(error.to_string());
    }
    if term != before.term {
        // Another leader: what this node told the one before is forgotten.
        node.upkeep.reporter().begin_anew();
    }
    node.upkeep.order(orders);
    if let Some(report) = report.filter(|_| known) {
        let bytes = atoll_proto::encode(&report).len() + atoll_proto::encode(&differ).len();
        node.upkeep.count_bytes("heartbeat", bytes);
        node.upkeep.heard(&report, in_sync, &differ, lacking);
        let full = in_sync == Some(true) && node.upkeep.reporter().is_of_refill();
        // Deleting may take long: the task that salvages does it.
        node.upkeep.refilled.store(full && may_finish_refill(node), Ordering::Release);
    }
    Ok(known)
}

/// How this node does, and what it has, summed up; no sum before there is a placement table.
async fn look_around(node: &Node) -> Result<(ChunkStat, Option<TreeReport>), String> {
    let (view, id, now) = (node.placement.view(), node.id, Instant::now());
    let (table, trees) = (view.clone(), Arc::clone(&node.upkeep.trees));
    let look = move |store: &dyn ChunkStore| -> Result<Option<Look>, StoreError> {
        match table {
            Some(view) => trees.look(store, &view.table, id, now),
            None => Ok(None),
        }
    };
    let (stat, look) = node.stat_and(look).await.map_err(|error| error.to_string())?;
    let look = look.map_err(|error| format!("cannot sum up the chunks: {error}"))?;
    let Some(view) = view else { return Ok((stat, None)) };
    let mut reporter = node.upkeep.reporter();
    if let Some(look) = look {
        reporter.saw(look);
    }
    let roots = node.upkeep.trees.roots();
    let moving = view.table.leaving.iter().map(|(pg, _)| *pg);
    let report = reporter.compose(&roots, |pg| view.table.of(pg).contains(&id), moving);
    Ok((stat, report))
}

/// Whether being in sync says that what was set aside is not needed: it says so of groups that this
/// node is a member of, and of nothing while clients still read from it what it is leaving.
fn may_finish_refill(node: &Node) -> bool {
    if node.placement.is_behind() || node.upkeep.breaker().is_frozen() {
        return false;
    }
    node.placement.view().is_some_and(|view| !only_leaves(&view.table, node.id))
}

/// Whether a node is on its way out, or nobody has said yet where chunks belong.
fn only_leaves(table: &PgTable, node: NodeId) -> bool {
    let (member, leaving) = table.groups_of(node);
    table.epoch.0 == 0 || (member == 0 && leaving > 0)
}

/// Fetches the view: in any case when the table is old, else if anything changed.
async fn look(node: &Node, behind: bool) {
    let known = node.placement.view().map(|view| view.index).filter(|_| !behind);
    if let Err(reason) = node.fetch_view(known).await {
        tracing::debug!(reason, "cannot fetch the cluster view");
    }
}

#[cfg(test)]
mod tests {
    use atoll_proto::{Epoch, PgId};

    use super::*;

    #[test]
    fn a_node_that_only_leaves_keeps_what_was_set_aside() {
        let (me, other) = (NodeId(1), NodeId(2));
        let mut table = PgTable::empty();
        assert!(only_leaves(&table, me), "nobody has said anything yet");
        table.epoch = Epoch(1);
        assert!(!only_leaves(&table, me));
        table.members[5] = vec![other];
        table.leaving = vec![(PgId(5), vec![me])];
        assert!(only_leaves(&table, me));
        table.members[6] = vec![me];
        assert!(!only_leaves(&table, me));
        assert!(!only_leaves(&table, other));
    }
}
