//! Storing chunks in the chunkservers: the pages of live sites. It never stores file bytes.
//!
//! As a client does it: a chunk goes to a member of its placement group, which relays it to the
//! others and answers when enough of them have it on disk, with their receipts. Pages for the same
//! member travel together. What a member does not take goes to the next one.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use atoll_net::{CallOptions, Role};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, Put};
use atoll_proto::cluster::NodeState;
use atoll_proto::error::WireResult;
use atoll_proto::receipt::Receipt;
use atoll_proto::{ChunkId, Code, Epoch, NodeId, SessionId, WireError, limits};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::server::Master;

/// How long one member may take to have a batch stored.
const TRY: Duration = Duration::from_secs(8);
/// Batches on their way at a time.
const AT_ONCE: usize = 4;
/// Chunks in one batch: the receipts of a batch travel with every admission.
const BATCH_CHUNKS: usize = 128;
/// How often the members of a group are gone through.
const ROUNDS: usize = 2;

/// A chunk to store.
pub(crate) type NewChunk = (ChunkId, Bytes);

impl Master {
    /// Stores chunks durably; returns receipts that cover all of them.
    ///
    /// # Errors
    /// `Unavailable` with the reasons when one of them could not be stored at any member.
    pub(crate) async fn put_chunks(
        &self,
        session: SessionId,
        chunks: &[NewChunk],
        deadline: Instant,
    ) -> WireResult<Vec<Receipt>> {
        let mut receipts = Vec::new();
        let mut reasons = Vec::new();
        let mut left: Vec<NewChunk> = chunks.to_vec();
        for round in 0..ROUNDS * limits::REPLICAS {
            if left.is_empty() || Instant::now() >= deadline {
                break;
            }
            let (batches, epoch) = self.batches(std::mem::take(&mut left), round)?;
            let sends = batches.into_iter().map(|(to, batch)| async move {
                let sent = self.put_batch(to, session, epoch, &batch, deadline).await;
                (batch, sent)
            });
            let mut sends = futures_util::stream::iter(sends).buffer_unordered(AT_ONCE);
            while let Some((batch, sent)) = sends.next().await {
                match sent {
                    Ok(more) => receipts.extend(more),
                    Err(reason) => {
                        reasons.push(reason);
                        left.extend(batch);
                    }
                }
            }
        }
        if left.is_empty() {
            return Ok(receipts);
        }
        reasons.sort();
        reasons.dedup();
        reasons.truncate(4);
        let message = format!("{} pages cannot be stored: {}", left.len(), reasons.join("; "));
        Err(WireError::new(Code::Unavailable, message))
    }

    /// Chunks by the member they go to in this round, those that are up first.
    #[allow(clippy::type_complexity, reason = "one caller, which takes it apart at once")]
    fn batches(
        &self,
        chunks: Vec<NewChunk>,
        round: usize,
    ) -> WireResult<(Vec<((NodeId, SocketAddr), Vec<NewChunk>)>, Epoch)> {
        let table = self.table()?;
        let nodes: HashMap<NodeId, (SocketAddr, bool)> = self
            .node_views()?
            .into_iter()
            .map(|node| (node.info.id, (node.info.addr, node.state == NodeState::Up)))
            .collect();
        let mut by_node: BTreeMap<NodeId, (SocketAddr, Vec<NewChunk>)> = BTreeMap::new();
        for (id, bytes) in chunks {
            let mut members: Vec<(NodeId, SocketAddr, bool)> = table
                .of(id.pg())
                .iter()
                .filter_map(|member| nodes.get(member).map(|(addr, up)| (*member, *addr, *up)))
                .collect();
            members.sort_by_key(|(_, _, up)| !up);
            if members.is_empty() {
                let message = "a placement group has no members: are chunkservers running?";
                return Err(WireError::unavailable(message));
            }
            let (node, addr, _) = members[round % members.len()];
            by_node.entry(node).or_insert((addr, Vec::new())).1.push((id, bytes));
        }
        let mut batches = Vec::new();
        for (node, (addr, chunks)) in by_node {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for chunk in chunks {
                bytes += chunk.1.len();
                batch.push(chunk);
                if batch.len() >= BATCH_CHUNKS || bytes >= limits::PUT_BATCH_BYTES {
                    batches.push(((node, addr), std::mem::take(&mut batch)));
                    bytes = 0;
                }
            }
            if !batch.is_empty() {
                batches.push(((node, addr), batch));
            }
        }
        Ok((batches, table.epoch))
    }

    async fn put_batch(
        &self,
        (node, addr): (NodeId, SocketAddr),
        session: SessionId,
        epoch: Epoch,
        batch: &[NewChunk],
        deadline: Instant,
    ) -> Result<Vec<Receipt>, String> {
        let len = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let chunks = batch.iter().map(|(id, bytes)| (*id, len(bytes))).collect();
        let body: Vec<Bytes> = batch.iter().map(|(_, bytes)| bytes.clone()).collect();
        let head = ChunkRequest::Put(Put { session, epoch, chunks, relay: true });
        let left = deadline.saturating_duration_since(Instant::now());
        let options = CallOptions::within(left.min(TRY));
        match self.endpoint.call(addr, Role::Chunkserver, &head, body, options).await {
            Ok((ChunkResponse::Stored { receipts, .. }, _)) => Ok(receipts),
            Ok(_) => Err(format!("chunkserver {node} gave an answer of another kind")),
            Err(error) => Err(format!("chunkserver {node}: {error}")),
        }
    }
}
