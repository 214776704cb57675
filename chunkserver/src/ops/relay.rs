//! The head's part of a client's put: store here and at the other members at once, and answer
//! when each chunk is durable on enough of them.
//!
//! Whoever is slower goes on after the answer, bounded in bytes per peer. A peer that failed a
//! moment ago is tried, but no put waits for it. What a member misses is for repair to find.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::{Answer, CallError, CallOptions, Context, Role, TraceContext, task};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, Put};
use atoll_proto::cluster::{ClusterView, NodeState};
use atoll_proto::receipt::Receipt;
use atoll_proto::{Code, Fault, NodeId, Retry, WireError, WireResult};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::put::{Write, commit, manifest};
use super::quorum::Quorum;
use crate::node::Node;
use crate::store::NewChunk;
use crate::tasks::clock;

/// No put waits longer than this for its members.
const MEMBERS_WAIT_MAX: Duration = Duration::from_secs(8);
/// Time left to answer the client.
const ANSWER_MARGIN: Duration = Duration::from_millis(300);
/// How long a put waits for room on the way to a peer that is behind and still answers, once: then
/// it counts as failed for a while.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// How long a peer that failed a moment ago may take.
const SUSPECT_WAIT_MAX: Duration = Duration::from_secs(1);

/// What one member did with its chunks.
struct Outcome {
    member: NodeId,
    result: WireResult<Receipt>,
}

/// Which chunks of a put go to which member, by their place in the put.
type Shares = BTreeMap<NodeId, Vec<usize>>;

pub(super) async fn relay(
    node: &Arc<Node>,
    context: &Context,
    write: Write,
) -> WireResult<Answer<ChunkResponse>> {
    let shares = shares(&write);
    let until = until(context);
    let (results, heard) = mpsc::channel(shares.len().max(1));
    start_here(node, &write, results.clone());
    let others = shares.iter().filter(|(member, _)| **member != node.id);
    let starting = join_all(others.map(|(member, share)| {
        start_there(node, &write, *member, share, context.trace, until, results.clone())
    }));
    drop(results);
    let quorum = Quorum::new(&write.view.table, write.chunks.iter().map(|chunk| &chunk.id));
    let collecting = collect(heard, quorum, &shares, until);
    let (_started, collected) = tokio::join!(starting, collecting);
    answer(node, &shares, collected)
}

fn until(context: &Context) -> Instant {
    let remaining = context.remaining();
    let wait = remaining.saturating_sub(ANSWER_MARGIN).max(remaining / 2);
    Instant::now() + wait.min(MEMBERS_WAIT_MAX)
}

fn shares(write: &Write) -> Shares {
    let mut shares = Shares::new();
    for (at, chunk) in write.chunks.iter().enumerate() {
        for member in write.view.table.of(chunk.id.pg()) {
            shares.entry(*member).or_default().push(at);
        }
    }
    shares
}

fn start_here(node: &Arc<Node>, write: &Write, results: mpsc::Sender<Outcome>) {
    let (node, write) = (Arc::clone(node), write.clone());
    drop(task::spawn("commit", async move {
        let result = commit(&node, &write).await;
        tell(&results, Outcome { member: node.id, result });
    }));
}

/// Starts sending a member its share; returns once it is on its way or was given up.
async fn start_there(
    node: &Arc<Node>,
    write: &Write,
    member: NodeId,
    share: &[usize],
    trace: TraceContext,
    until: Instant,
    results: mpsc::Sender<Outcome>,
) {
    let Some((addr, down)) = find(&write.view, member) else {
        let result = Err(WireError::unavailable("its address is not known"));
        return tell(&results, Outcome { member, result });
    };
    let peer = node.peers.of(member);
    let suspect = down || peer.is_suspect(Instant::now());
    let chunks: Vec<NewChunk> = share.iter().map(|at| write.chunks[*at].clone()).collect();
    let bytes = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
    let wait = if suspect { Duration::ZERO } else { ROOM_WAIT };
    let Some(room) = peer.room(bytes, wait).await else {
        peer.note(false, Instant::now());
        metrics::counter!("atoll_chunk_relay_skipped_total").increment(1);
        let result = Err(WireError::unavailable("it is behind with what was sent before"));
        return tell(&results, Outcome { member, result });
    };
    let patience = if suspect { SUSPECT_WAIT_MAX } else { MEMBERS_WAIT_MAX };
    let deadline = patience.min(until.saturating_duration_since(Instant::now()));
    let (node, write) = (Arc::clone(node), write.clone());
    drop(task::spawn("relay", async move {
        let options = CallOptions::within(deadline).trace(trace.child());
        let asked = peer.asked(Instant::now());
        let result = send(&node, &write, member, addr, chunks, options).await;
        drop((room, asked));
        note(&node, &peer, &result);
        tell(&results, Outcome { member, result });
    }));
}

/// The channel has room for one outcome of each member, and nobody may be listening any more.
fn tell(results: &mpsc::Sender<Outcome>, outcome: Outcome) {
    if let Err(mpsc::error::TrySendError::Closed(late)) = results.try_send(outcome)
        && let Err(error) = late.result
    {
        tracing::debug!(member = %late.member, %error, "a member failed after the answer");
    }
}

fn find(view: &ClusterView, member: NodeId) -> Option<(SocketAddr, bool)> {
    view.node(member).map(|node| (node.info.addr, node.state == NodeState::Down))
}

fn note(node: &Node, peer: &super::peers::Peer, result: &WireResult<Receipt>) {
    let outcome = match result {
        Ok(_) => "stored",
        // It answered: it is alive.
        Err(error) if error.fault != Fault::Upstream => "refused",
        Err(_) => "failed",
    };
    metrics::counter!("atoll_chunk_relays_total", "outcome" => outcome).increment(1);
    if outcome != "failed" {
        peer.answered(Instant::now());
    }
    peer.note(outcome != "failed", Instant::now());
    let stale = result.as_ref().is_err_and(|error| error.code == Code::StaleEpoch);
    if outcome == "failed" || stale {
        node.look_again.notify_one();
    }
}

async fn send(
    node: &Node,
    write: &Write,
    member: NodeId,
    addr: SocketAddr,
    chunks: Vec<NewChunk>,
    options: CallOptions,
) -> WireResult<Receipt> {
    let named = manifest(&chunks);
    let body: Vec<Bytes> = chunks.into_iter().map(|chunk| chunk.bytes).collect();
    let request = ChunkRequest::Put(Put {
        session: write.session,
        epoch: write.epoch,
        chunks: named.clone(),
        relay: false,
    });
    let answer: Result<(ChunkResponse, Bytes), CallError> =
        node.endpoint.call(addr, Role::Chunkserver, &request, body, options).await;
    let receipts = match answer {
        Ok((ChunkResponse::Stored { receipts, .. }, _)) => receipts,
        Ok(_) => return Err(upstream("it answered with the wrong kind of message".to_owned())),
        Err(CallError::Refused(error)) => return Err(error),
        Err(error) => return Err(upstream(error.to_string())),
    };
    // Another server may have taken over the address; then this is not what was asked for.
    let good = |receipt: &Receipt| {
        receipt.node == member
            && receipt.chunks == named
            && receipt.verify(&write.key, write.session, clock::now_ms())
    };
    receipts
        .into_iter()
        .find(good)
        .ok_or_else(|| upstream("its receipt is not what was asked for".to_owned()))
}

/// The member could not be asked, or made no sense: it is not known to be alive.
fn upstream(message: String) -> WireError {
    WireError { code: Code::Unavailable, fault: Fault::Upstream, retry: Retry::Same, message }
}

/// What was heard until the quorum was met, or could not be met any more.
struct Collected {
    met: bool,
    receipts: Vec<Receipt>,
    failed: Vec<(NodeId, WireError)>,
}

async fn collect(
    mut heard: mpsc::Receiver<Outcome>,
    mut quorum: Quorum,
    shares: &Shares,
    until: Instant,
) -> Collected {
    let mut collected = Collected { met: false, receipts: Vec::new(), failed: Vec::new() };
    while !quorum.met() && !quorum.hopeless() {
        let Ok(Some(outcome)) = tokio::time::timeout_at(until, heard.recv()).await else { break };
        collected.take(outcome, &mut quorum, shares);
    }
    while let Ok(outcome) = heard.try_recv() {
        collected.take(outcome, &mut quorum, shares);
    }
    collected.met = quorum.met();
    collected
}

impl Collected {
    fn take(&mut self, outcome: Outcome, quorum: &mut Quorum, shares: &Shares) {
        let share = shares.get(&outcome.member).map_or(&[][..], Vec::as_slice);
        quorum.heard(share, outcome.result.is_ok());
        match outcome.result {
            Ok(receipt) => self.receipts.push(receipt),
            Err(error) => self.failed.push((outcome.member, error)),
        }
    }
}

fn answer(node: &Node, shares: &Shares, collected: Collected) -> WireResult<Answer<ChunkResponse>> {
    let Collected { met, receipts, failed } = collected;
    if met {
        for (member, error) in &failed {
            tracing::debug!(%member, %error, "a member did not store its chunks");
        }
        let failed = failed.into_iter().map(|(member, _)| member).collect();
        return Ok(Answer::head(ChunkResponse::Stored { receipts, failed }));
    }
    let stale = failed.iter().find(|(_, error)| error.code == Code::StaleEpoch);
    if let Some((_, error)) = stale {
        node.look_again.notify_one();
        return Err(error.clone());
    }
    metrics::counter!("atoll_chunk_too_few_replicas_total").increment(1);
    let silent = shares.keys().filter(|member| {
        receipts.iter().all(|receipt| receipt.node != **member)
            && failed.iter().all(|(failed, _)| failed != *member)
    });
    let mut missing: Vec<String> =
        failed.iter().map(|(member, error)| format!("node {member}: {error}")).collect();
    missing.extend(silent.map(|member| format!("node {member}: no answer in time")));
    let full = failed.iter().any(|(_, error)| error.code == Code::Full);
    let code = if full { Code::Full } else { Code::TooFewReplicas };
    let message = format!(
        "too few members have the chunks on disk ({} of those needed): {}",
        receipts.len(),
        missing.join("; ")
    );
    Err(WireError::new(code, message))
}
