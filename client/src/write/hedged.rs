//! One batch on its way: to its head and, when that answers nothing at all, to other heads beside
//! it. Whoever has a chunk durable first ends the wait for it; the receipts of any will do. When
//! those others all refuse, nobody waits for the silent head either: what is left is tried anew.

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
use tokio::time::Instant;

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
    /// Whether a head that is still silent when all others have refused is given up. Later attempts
    /// wait for it: it may be the only one left, and starting up.
    impatient: bool,
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
    let (patience, impatient) =
        if tries < 2 { (FIRST_PATIENCE, true) } else { (limits::CHUNK_DEADLINE, false) };
    let sending = Sending { cluster: &shared.cluster, session, view, patience, impatient };
    let (mut left, reason) = send_once(shared, head, batch, &sending).await;
    if left.is_empty() {
        return;
    }
    left.iter_mut().for_each(|item| item.attempts += 1);
    retry_later(shared.clone(), left, reason);
}

/// Ends what it can of a batch; returns what is to be tried again, and why.
async fn send_once(
    shared: &Arc<Shared>,
    head: Replica,
    batch: Vec<Item>,
    sending: &Sending<'_>,
) -> (Vec<Item>, String) {
    let mut items: Vec<Option<Item>> = batch.into_iter().map(Some).collect();
    let mut under_way = FuturesUnordered::new();
    under_way.push(sending.put(head, (0..items.len()).collect(), &items));
    let mut silence = pin!(shared.cluster.silence(head.node, HEDGE_AFTER));
    let mut hedged = false;
    // Once others were asked: since when, and how many of them have not answered.
    let mut asked: Option<(Instant, usize)> = None;
    let mut reason = String::new();
    while items.iter().any(Option::is_some) {
        if let Some((since, 0)) = asked
            && sending.impatient
            && shared.cluster.is_silent(head.node, since)
        {
            break;
        }
        let sent = tokio::select! {
            sent = under_way.next() => sent,
            () = &mut silence, if !hedged => {
                hedged = true;
                shared.cluster.suspect(head.node);
                shared.reroute(sending.view, head);
                let others = others(sending, head.node, &items);
                asked = (!others.is_empty()).then(|| (Instant::now(), others.len()));
                for (to, part) in others {
                    metrics::counter!("atoll_client_hedged_puts_total")
                        .increment(part.len() as u64);
                    under_way.push(sending.put(to, part, &items));
                }
                continue;
            }
        };
        let Some(Sent { to, part, answer }) = sent else { break };
        if to.node != head.node
            && let Some((_, open)) = &mut asked
        {
            *open = open.saturating_sub(1);
        }
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
    (items.into_iter().flatten().collect(), reason)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::net::{Ipv4Addr, SocketAddr};

    use atoll_net::{
        Answer, ClusterCa, Context, Endpoint, ServeLimits, Service, ShutdownTrigger, shutdown,
    };
    use atoll_proto::cluster::{Duty, NodeInfo, NodeKind, NodeState, NodeView, PgTable};
    use atoll_proto::{ChunkId, ClusterId, Epoch, WireError, WireResult};
    use tokio::sync::{Notify, Semaphore, oneshot};

    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    /// Far longer than the test may take.
    const NEVER: Duration = Duration::from_secs(3600);

    enum Server {
        /// Answers nothing.
        Silent,
        /// Says that too few have it, and lets another go on.
        Refusing(Arc<Notify>),
        /// Stores it, but not before.
        Storing(Arc<Notify>),
    }

    impl Service for Server {
        type Request = ChunkRequest;
        type Response = ChunkResponse;

        fn operation(_: &ChunkRequest) -> &'static str {
            "test"
        }

        async fn call(
            &self,
            _: Context,
            _: ChunkRequest,
            _: Bytes,
        ) -> WireResult<Answer<ChunkResponse>> {
            match self {
                Server::Silent => std::future::pending().await,
                Server::Refusing(refused) => {
                    refused.notify_one();
                    Err(WireError::new(Code::TooFewReplicas, "one is away"))
                }
                Server::Storing(refused) => {
                    refused.notified().await;
                    // That the refusal comes first shows more; either order must do.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let (receipts, failed) = (Vec::new(), Vec::new());
                    Ok(Answer::head(ChunkResponse::Stored { receipts, failed }))
                }
            }
        }
    }

    fn serve(ca: &ClusterCa, name: &str, server: Server) -> (SocketAddr, ShutdownTrigger) {
        let identity = ca.issue(Role::Chunkserver, name).unwrap();
        let endpoint = Endpoint::bind(ANY, &identity).unwrap();
        let (trigger, shutdown) = shutdown::pair();
        let addr = endpoint.local_addr();
        drop(atoll_net::task::spawn("server", async move {
            endpoint.serve(Arc::new(server), ServeLimits::default(), shutdown).await;
        }));
        (addr, trigger)
    }

    /// Node 1 is in every group, node 3 in that of one chunk, node 2 in all others.
    fn view(servers: [SocketAddr; 3], third: ChunkId) -> ClusterView {
        let mut table = PgTable::empty();
        table.epoch = Epoch(1);
        table.members.iter_mut().for_each(|group| group.extend([NodeId(1), NodeId(2)]));
        table.members[third.pg().0 as usize] = vec![NodeId(1), NodeId(3)];
        let node = |(id, addr)| NodeView {
            info: NodeInfo {
                id: NodeId(id),
                name: format!("chunkserver-{id}"),
                kind: NodeKind::Chunkserver,
                addr,
                zone: "z".to_owned(),
                region: "r".to_owned(),
                weight: 1,
                edge: None,
            },
            state: NodeState::Up,
            ready: true,
            duty: Duty::Active,
        };
        ClusterView {
            cluster: ClusterId([1; 16]),
            index: 1,
            chunk_bytes: 1 << 20,
            nodes: (1..).zip(servers).map(node).collect(),
            table,
            zone: None,
            url_template: None,
        }
    }

    fn item(bytes: &'static [u8], room: &Arc<Semaphore>) -> Item {
        let bytes = Bytes::from_static(bytes);
        let id = ChunkId::of(&bytes);
        let room = room.clone().try_acquire_many_owned(1).unwrap();
        Item { id, bytes, attempts: 0, done: oneshot::channel().0, _room: room }
    }

    #[tokio::test]
    async fn what_the_others_refuse_does_not_wait_for_the_silent_head() {
        let ca = ClusterCa::create(ClusterId([1; 16])).unwrap();
        let refused = Arc::new(Notify::new());
        let (silent, _keep) = serve(&ca, "silent", Server::Silent);
        let (refusing, _keep) = serve(&ca, "refusing", Server::Refusing(refused.clone()));
        let (storing, _keep) = serve(&ca, "storing", Server::Storing(refused));
        let endpoint = Endpoint::client(&ca.issue(Role::Client, "test").unwrap()).unwrap();
        let cluster = Cluster::new(endpoint, Vec::new(), None, None);
        let shared = cluster.writer().shared;
        shared.lock().open = 2;
        let room = Arc::new(Semaphore::new(9));
        let (one, two) = (item(b"a chunk", &room), item(b"another chunk", &room));
        assert_ne!(one.id.pg(), two.id.pg());
        let (left_over, view) = (one.id, view([silent, refusing, storing], two.id));
        let head = Replica { node: NodeId(1), addr: silent };
        let sending = Sending {
            cluster: &cluster,
            session: SessionId(1),
            view: &view,
            patience: NEVER,
            impatient: true,
        };
        let sent = send_once(&shared, head, vec![one, two], &sending);
        let (left, reason) = tokio::time::timeout(NEVER / 60, sent).await.unwrap();
        assert_eq!(left.iter().map(|item| item.id).collect::<Vec<_>>(), [left_over]);
        assert!(reason.starts_with("node 2:"), "{reason}");
    }
}
