//! One batch on its way: to its head and, when that answers nothing at all, to other heads beside
//! it. Whoever has a chunk durable first ends the wait for it; the receipts of any will do.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::call::CallError;
use atoll_net::identity::Role;
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, Put};
use atoll_proto::cluster::ClusterView;
use atoll_proto::{Code, NodeId, SessionId, limits};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::{Item, Shared, retry_later};
use crate::locate::{Replica, write_order};
use crate::{ClientError, Cluster};

/// A head that has answered nothing at all for this long is not waited for alone. A busy one
/// answers something meanwhile, so that an upload that fills the disks is not sent twice.
const HEDGE_AFTER: Duration = Duration::from_millis(300);
/// Patience of the first attempts; later ones get `limits::CHUNK_DEADLINE`.
const FIRST_PATIENCE: Duration = Duration::from_secs(4);

/// A request under way: which items of the batch it carries, and to whom.
struct Sent {
    to: Replica,
    part: Vec<usize>,
    answer: Result<ChunkResponse, CallError>,
}

/// What is the same for all requests of a batch.
struct Sending<'a> {
    cluster: &'a Cluster,
    session: SessionId,
    view: &'a ClusterView,
    patience: Duration,
}

/// Sends a batch and ends every item of it: durable, failed, or to be tried again later.
pub(super) async fn send(
    shared: &Arc<Shared>,
    head: Replica,
    batch: Vec<Item>,
    session: SessionId,
    view: &ClusterView,
) {
    let tries = batch.iter().map(|item| item.attempts).max().unwrap_or(0);
    let patience = if tries < 2 { FIRST_PATIENCE } else { limits::CHUNK_DEADLINE };
    let sending = Sending { cluster: &shared.cluster, session, view, patience };
    let mut items: Vec<Option<Item>> = batch.into_iter().map(Some).collect();
    let mut under_way = FuturesUnordered::new();
    under_way.push(sending.put(head, (0..items.len()).collect(), &items));
    let mut silence = pin!(shared.cluster.silence(head.node, HEDGE_AFTER));
    let mut hedged = false;
    let mut reason = String::new();
    while items.iter().any(Option::is_some) {
        let sent = tokio::select! {
            sent = under_way.next() => sent,
            () = &mut silence, if !hedged => {
                hedged = true;
                shared.cluster.suspect(head.node);
                shared.reroute(view, head);
                for (to, part) in others(&sending, head.node, &items) {
                    metrics::counter!("atoll_client_hedged_puts_total")
                        .increment(part.len() as u64);
                    under_way.push(sending.put(to, part, &items));
                }
                continue;
            }
        };
        let Some(Sent { to, part, answer }) = sent else { break };
        let error = match answer {
            Ok(ChunkResponse::Stored { receipts, .. }) => {
                let receipts = Arc::new(receipts);
                for item in part.into_iter().filter_map(|at| items[at].take()) {
                    shared.finish(item, Ok(receipts.clone()));
                }
                continue;
            }
            Ok(_) => {
                for item in part.into_iter().filter_map(|at| items[at].take()) {
                    shared.finish(item, Err(ClientError::unexpected("the chunkserver")));
                }
                continue;
            }
            Err(error) => error,
        };
        match kind(&error) {
            Kind::Fatal => {
                for item in part.into_iter().filter_map(|at| items[at].take()) {
                    let error = ClientError::from_call("the chunkserver", error.clone());
                    shared.finish(item, Err(error));
                }
            }
            Kind::Head => shared.cluster.suspect(to.node),
            Kind::View => {}
        }
        reason = format!("node {}: {error}", to.node);
    }
    let mut left: Vec<Item> = items.into_iter().flatten().collect();
    if left.is_empty() {
        return;
    }
    left.iter_mut().for_each(|item| item.attempts += 1);
    retry_later(shared.clone(), left, reason);
}

/// Other heads for what is not durable yet.
fn others(
    sending: &Sending<'_>,
    head: NodeId,
    items: &[Option<Item>],
) -> Vec<(Replica, Vec<usize>)> {
    let mut parts: HashMap<NodeId, (Replica, Vec<usize>)> = HashMap::new();
    for (at, item) in items.iter().enumerate() {
        let Some(item) = item else { continue };
        let order = write_order(sending.view, item.id.pg(), sending.cluster);
        if let Some(other) = order.into_iter().find(|other| other.node != head) {
            parts.entry(other.node).or_insert_with(|| (other, Vec::new())).1.push(at);
        }
    }
    parts.into_values().collect()
}

impl Sending<'_> {
    /// Sends a part of the batch to one head.
    fn put(
        &self,
        to: Replica,
        part: Vec<usize>,
        items: &[Option<Item>],
    ) -> impl Future<Output = Sent> + use<> {
        let chosen: Vec<&Item> = part.iter().filter_map(|at| items[*at].as_ref()).collect();
        let chunks = chosen
            .iter()
            .map(|item| (item.id, u32::try_from(item.bytes.len()).unwrap_or(u32::MAX)))
            .collect();
        let body: Vec<Bytes> = chosen.iter().map(|item| item.bytes.clone()).collect();
        let (session, epoch) = (self.session, self.view.table.epoch);
        let request = ChunkRequest::Put(Put { session, epoch, chunks, relay: true });
        let (cluster, options) = (self.cluster.clone(), self.cluster.options(self.patience));
        async move {
            let _running = cluster.begin(to.node);
            let called: Result<(ChunkResponse, Bytes), CallError> =
                cluster.endpoint().call(to.addr, Role::Chunkserver, &request, body, options).await;
            if matches!(&called, Ok(_) | Err(CallError::Refused(_))) {
                cluster.heard(to.node);
            }
            Sent { to, part, answer: called.map(|(answer, _)| answer) }
        }
    }
}

enum Kind {
    /// Sending again will not help.
    Fatal,
    /// This head failed: try another.
    Head,
    /// The view was old, or replicas are away: look again.
    View,
}

fn kind(error: &CallError) -> Kind {
    match error {
        CallError::Refused(refusal) => match refusal.code {
            Code::StaleEpoch | Code::TooFewReplicas => Kind::View,
            Code::Unavailable | Code::Deadline | Code::Full | Code::Internal | Code::Corrupt => {
                Kind::Head
            }
            _ => Kind::Fatal,
        },
        _ => Kind::Head,
    }
}
