//! The edge as a node of the cluster: registration, its lease, readiness, the ready file.
//!
//! Started by [`crate::run`]. An edge whose masters are away serves on until its lease ends, and
//! from then on as the policy of each site has it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_client::{ClientError, Cluster};
use atoll_net::admin::Readiness;
use atoll_net::retry::{Backoff, Pace};
use atoll_net::shutdown::Shutdown;
use atoll_proto::cluster::NodeInfo;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{ClusterId, NodeId, limits};
use serde::Serialize;
use tokio::sync::watch;

use crate::clock;
use crate::index::Index;
use crate::relay::uplink::{Renewed, Uplink};

/// How often readiness is judged until the edge is ready.
const JUDGE_EVERY: Duration = Duration::from_millis(100);
/// How often once it is: what ends it takes seconds.
const JUDGE_READY_EVERY: Duration = Duration::from_millis(500);
/// How soon an edge that has not applied everything asks for a lease again.
const BEHIND: Duration = Duration::from_millis(250);
/// How long the last heartbeat, which takes the edge out of DNS, may take.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// The addresses an edge really has.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Addresses {
    /// QUIC, for other nodes.
    pub(crate) addr: SocketAddr,
    /// Admin.
    pub(crate) admin: SocketAddr,
    /// Plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<SocketAddr>,
    /// HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) https: Option<SocketAddr>,
    /// DNS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns: Option<SocketAddr>,
}

/// Writes the ready file so that a reader sees all of it or nothing. Blocking.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_ready_file(path: &Path, addresses: &Addresses) -> std::io::Result<()> {
    let json = serde_json::to_vec(addresses)?;
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(&json)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

/// Judges readiness until shutdown: an edge is ready while it holds a lease. The listeners
/// are up and the certificate is loaded before this starts.
pub(crate) async fn judge(
    index: Arc<Index>,
    readiness: watch::Sender<Readiness>,
    shutdown: Shutdown,
) {
    loop {
        metrics::gauge!("atoll_edge_cache_memory_bytes").set(index.cached_bytes() as f64);
        let now = if index.lease().valid(clock::boot_ns()) {
            Readiness::ready()
        } else {
            Readiness::not("it holds no lease; are the masters reachable?")
        };
        let pause = if now.ready { JUDGE_READY_EVERY } else { JUDGE_EVERY };
        readiness.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                tracing::info!(ready = now.ready, reasons = ?now.reasons, "readiness changed");
                *before = now;
            }
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait() => break,
        }
    }
    readiness.send_replace(Readiness::not("stopping"));
}

/// Waits until the edge can answer visitors: it has the log, or a stored index of before.
pub(crate) async fn until_serving(index: &Index) {
    let mut changes = index.changes();
    while !index.table().is_known() {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Registers the node and renews its lease until shutdown; then says that it is not ready.
pub(crate) async fn keep_known(
    cluster: Cluster,
    uplink: Arc<Uplink>,
    index: Arc<Index>,
    info: NodeInfo,
    expected: ClusterId,
    readiness: watch::Receiver<Readiness>,
    shutdown: Shutdown,
) {
    let id = info.id;
    let work = async {
        loop {
            register(&cluster, &info, expected).await;
            uplink.registered();
            renew_while_known(&uplink, &index, &readiness).await;
            tracing::info!("the master does not know this node; registering again");
        }
    };
    tokio::select! {
        () = shutdown.wait() => {}
        () = work => {}
    }
    if let Err(error) = heartbeat(&cluster, id, false, GOODBYE).await {
        tracing::debug!(%error, "the masters were not told that this node stops");
    }
}

/// Says that this node answers nothing any more, so that no publish waits for it. To be called
/// when every listener is closed and every answer has ended, and never sooner. That the masters
/// cannot be told costs a publish some seconds and nothing else.
pub(crate) async fn farewell(cluster: &Cluster, node: NodeId) {
    let said = tokio::time::timeout(FAREWELL, async {
        let MasterResponse::Farewell { number, .. } = say_farewell(cluster, node, None).await?
        else {
            return Ok(false);
        };
        let said = say_farewell(cluster, node, Some(number)).await?;
        Ok::<_, ClientError>(matches!(said, MasterResponse::Farewell { gone: true, .. }))
    });
    match said.await {
        Ok(Ok(true)) => tracing::info!("the masters know that this node is gone"),
        Ok(Ok(false)) => tracing::debug!("the masters did not take the farewell"),
        Ok(Err(error)) => tracing::debug!(%error, "the masters could not be told the farewell"),
        Err(_) => tracing::debug!("the masters did not answer the farewell in time"),
    }
}

async fn say_farewell(
    cluster: &Cluster,
    node: NodeId,
    number: Option<u64>,
) -> Result<MasterResponse, ClientError> {
    cluster.master(&MasterRequest::Farewell { node, number }, FAREWELL).await
}

/// Tries until it worked.
async fn register(cluster: &Cluster, info: &NodeInfo, expected: ClusterId) {
    let backoff =
        Backoff { base: Duration::from_millis(100), max: Duration::from_secs(2), factor: 2.0 };
    let mut attempt = 0;
    loop {
        let request = MasterRequest::Register { info: info.clone() };
        match cluster.master(&request, limits::METADATA_DEADLINE).await {
            Ok(MasterResponse::Registered { cluster, .. }) if cluster == expected => {
                tracing::info!(node = %info.id, addr = %info.addr, "registered");
                return;
            }
            Ok(MasterResponse::Registered { cluster, .. }) => {
                tracing::error!(ours = %expected, theirs = %cluster,
                    "the masters belong to another cluster; check `masters` and `identity`");
            }
            Ok(_) => tracing::error!("the master answered with the wrong kind of message"),
            Err(error) => tracing::warn!(%error, "cannot register with the masters yet"),
        }
        tokio::time::sleep(backoff.delay(attempt, rand::random::<f64>())).await;
        attempt = attempt.saturating_add(1);
    }
}

async fn renew_while_known(uplink: &Uplink, index: &Index, readiness: &watch::Receiver<Readiness>) {
    let mut judged = readiness.clone();
    let mut changes = index.changes();
    let mut pace = Pace::new(limits::LEASE_RENEW_EVERY);
    loop {
        let ready = judged.borrow_and_update().ready;
        changes.borrow_and_update();
        let renewed = uplink.renew(index, ready).await;
        let pause = match &renewed {
            Ok(Renewed::Unknown) => return,
            Ok(Renewed::Granted) => pace.pause(rand::random()),
            Ok(Renewed::Behind) => BEHIND,
            Err(error) => {
                tracing::debug!(%error, "the lease is not renewed");
                limits::HEARTBEAT_EVERY
            }
        };
        let behind = matches!(renewed, Ok(Renewed::Behind));
        // A change of readiness is told at once, and so is that an edge has caught up.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = judged.changed() => {}
            Ok(()) = changes.changed(), if behind => {}
        }
    }
}

/// Whether the master knows the node.
async fn heartbeat(
    cluster: &Cluster,
    node: NodeId,
    ready: bool,
    deadline: Duration,
) -> Result<bool, ClientError> {
    let request = MasterRequest::Heartbeat { node, ready, stat: None, tree: None };
    match cluster.master(&request, deadline).await? {
        MasterResponse::Heard { known, .. } => Ok(known),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_ready_file_names_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        let addr = SocketAddr::from(([127, 0, 0, 1], 7));
        let addresses = Addresses { addr, admin: addr, http: Some(addr), https: None, dns: None };
        write_ready_file(&path, &addresses).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, r#"{"addr":"127.0.0.1:7","admin":"127.0.0.1:7","http":"127.0.0.1:7"}"#);
    }
}
