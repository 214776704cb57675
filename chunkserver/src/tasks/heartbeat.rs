//! Keeping in touch with the masters: registers, tells every second how the node does, and learns
//! of new placement tables and of where other nodes are.
//!
//! A master of another cluster, or one that knows less than was heard before, is not followed:
//! the node then serves reads, takes no puts of newer epochs, and says that it is not ready.

use std::sync::Arc;
use std::time::Duration;

use atoll_net::admin::Readiness;
use atoll_net::{Backoff, Shutdown};
use atoll_proto::cluster::NodeInfo;
use atoll_proto::limits::{HEARTBEAT_EVERY, HEARTBEAT_LOST};
use atoll_proto::master::{MasterRequest, MasterResponse};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::node::Node;

const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(50), max: Duration::from_secs(2), factor: 2.0 };
const REGISTER_DEADLINE: Duration = Duration::from_secs(5);
const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(2);
/// The last words of a node that stops.
const FAREWELL_DEADLINE: Duration = Duration::from_millis(500);
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
    if let Err(error) = node.placement.hear(cluster, epoch, term).await {
        node.distrust(&error);
        return Err(error.to_string());
    }
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
        let again = tokio::time::timeout(HEARTBEAT_EVERY, node.look_again.notified()).await;
        if again.is_ok() {
            look(node, false).await;
            looked = Instant::now();
            // Failures come in crowds; one look answers all of them.
            tokio::time::sleep(HEARTBEAT_EVERY / 4).await;
        }
    }
}

/// Whether the master knows this node.
async fn beat(node: &Node) -> Result<bool, String> {
    let stat = node.stat().await.map_err(|error| error.to_string())?;
    metrics::gauge!("atoll_chunk_chunks").set(stat.chunks as f64);
    metrics::gauge!("atoll_chunk_bytes").set(stat.bytes as f64);
    metrics::gauge!("atoll_chunk_free_bytes").set(stat.free_bytes as f64);
    metrics::gauge!("atoll_chunk_corrupt_found").set(stat.corrupt_found as f64);
    let ready = node.receipt_key().is_ok();
    let request = MasterRequest::Heartbeat { node: node.id, ready, stat: Some(stat), tree: None };
    let answer = node.masters.ask(&request, HEARTBEAT_DEADLINE).await;
    let MasterResponse::Heard { epoch, term, known, .. } =
        answer.map_err(|error| error.to_string())?
    else {
        return Err("the master answered with the wrong kind of message".to_owned());
    };
    let cluster = node.endpoint.identity_peer().cluster;
    if let Err(error) = node.placement.hear(cluster, epoch, term).await {
        tracing::error!(%error, "a master is not followed");
        node.distrust(&error);
        return Err(error.to_string());
    }
    Ok(known)
}

/// Fetches the view: in any case when the table is old, else if anything changed.
async fn look(node: &Node, behind: bool) {
    let known = node.placement.view().map(|view| view.index).filter(|_| !behind);
    if let Err(reason) = node.fetch_view(known).await {
        tracing::debug!(reason, "cannot fetch the cluster view");
    }
}
