//! Put: store chunks, here and, for a client, at the other members of their placement groups.
//!
//! Everything about the request is checked before a byte is kept or sent on; [`super::relay`]
//! does the rest of a client's put.

use std::sync::Arc;

use atoll_net::{Answer, Context, Role, task};
use atoll_proto::chunk::{ChunkResponse, Put};
use atoll_proto::cluster::{ClusterView, NodeKind};
use atoll_proto::receipt::{Receipt, ReceiptKey};
use atoll_proto::{ChunkId, Code, Epoch, Fault, Retry, SessionId, WireError, WireResult, limits};
use bytes::Bytes;

use super::{MANY_MAX, check_count, relay};
use crate::node::Node;
use crate::store::NewChunk;
use crate::tasks::clock;

/// Bodies up to this long are hashed where they are; longer ones where waiting harms nobody.
const HASH_INLINE_BYTES: usize = 256 << 10;

/// A put whose request has been checked.
#[derive(Clone)]
pub(super) struct Write {
    pub(super) session: SessionId,
    pub(super) epoch: Epoch,
    pub(super) view: Arc<ClusterView>,
    pub(super) key: Arc<ReceiptKey>,
    pub(super) chunks: Arc<[NewChunk]>,
}

pub(super) async fn put(
    node: &Arc<Node>,
    context: &Context,
    put: Put,
    body: Bytes,
) -> WireResult<Answer<ChunkResponse>> {
    check_role(context.peer.role, put.relay)?;
    let key = node.receipt_key()?;
    let chunks = cut(&put, &body)?;
    node.erased.check(chunks.iter().map(|chunk| &chunk.id))?;
    let view = node.view_at(put.epoch, context.deadline).await?;
    if !put.relay {
        check_peer(&view, &context.peer.name)?;
    }
    check_membership(node, &view, &chunks)?;
    let chunks: Arc<[NewChunk]> = verify(chunks, body.len()).await?.into();
    let write = Write { session: put.session, epoch: put.epoch, view, key, chunks };
    if put.relay {
        return relay::relay(node, context, write).await;
    }
    let receipt = commit(node, &write).await?;
    Ok(Answer::head(ChunkResponse::Stored { receipts: vec![receipt], failed: Vec::new() }))
}

/// Stores the chunks here; the receipt says that they are durable.
pub(super) async fn commit(node: &Node, write: &Write) -> WireResult<Receipt> {
    node.keep(write.chunks.to_vec()).await?;
    let lifetime = u64::try_from(limits::RECEIPT_LIFETIME.as_millis()).unwrap_or(u64::MAX);
    let expires_ms = clock::now_ms().saturating_add(lifetime);
    let chunks = manifest(write.chunks.iter());
    Ok(Receipt::sign(&write.key, node.id, write.session, write.epoch, expires_ms, chunks))
}

/// Ids and lengths, as requests and receipts name chunks.
pub(super) fn manifest<'a>(chunks: impl IntoIterator<Item = &'a NewChunk>) -> Vec<(ChunkId, u32)> {
    let len = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    chunks.into_iter().map(|chunk| (chunk.id, len(&chunk.bytes))).collect()
}

fn check_role(role: Role, relay: bool) -> WireResult<()> {
    let allowed = match role {
        // A master stores the pages of live sites, like a client.
        Role::Client | Role::Master => relay,
        Role::Chunkserver => !relay,
        Role::Edge => false,
    };
    if allowed {
        return Ok(());
    }
    let kind = if relay { "store chunks" } else { "relay chunks" };
    Err(WireError::new(Code::Denied, format!("a {role} may not {kind}")))
}

/// Between servers: only one that the table's epoch knows.
pub(super) fn check_peer(view: &ClusterView, name: &str) -> WireResult<()> {
    let known = view
        .nodes
        .iter()
        .any(|node| node.info.kind == NodeKind::Chunkserver && node.info.name == name);
    if known {
        return Ok(());
    }
    let message = format!("chunkserver {name:?} is not part of the cluster");
    Err(WireError::new(Code::Denied, message))
}

/// Cuts the body as the request says.
fn cut(put: &Put, body: &Bytes) -> WireResult<Vec<NewChunk>> {
    check_count("chunks", put.chunks.len(), MANY_MAX)?;
    if put.chunks.is_empty() {
        return Err(WireError::invalid("a put must name at least one chunk"));
    }
    if let Some((id, len)) = put.chunks.iter().find(|(_, len)| *len > limits::CHUNK_BYTES_MAX) {
        let most = limits::CHUNK_BYTES_MAX;
        let message = format!("chunk {id} has {len} bytes: at most {most}");
        return Err(WireError::new(Code::Limit, message));
    }
    let sum: u64 = put.chunks.iter().map(|(_, len)| u64::from(*len)).sum();
    if sum != body.len() as u64 {
        let message = format!("the chunks have {sum} bytes, the body has {}", body.len());
        return Err(WireError::invalid(message));
    }
    let mut rest = body.clone();
    let at_ms = clock::now_ms();
    let cut_one = |(id, len): &(ChunkId, u32)| {
        let bytes = rest.split_to(*len as usize);
        NewChunk { id: *id, bytes, epoch: put.epoch, at_ms }
    };
    Ok(put.chunks.iter().map(cut_one).collect())
}

fn check_membership(node: &Node, view: &ClusterView, chunks: &[NewChunk]) -> WireResult<()> {
    let foreign = |chunk: &&NewChunk| !view.table.of(chunk.id.pg()).contains(&node.id);
    let Some(chunk) = chunks.iter().find(foreign) else { return Ok(()) };
    // The caller's table, or its list of addresses, is not what it takes it for.
    Err(WireError::new(
        Code::StaleEpoch,
        format!(
            "chunkserver {} is no member of placement group {} of chunk {} in epoch {}; fetch the \
             table again",
            node.id,
            chunk.id.pg().0,
            chunk.id,
            view.table.epoch
        ),
    ))
}

async fn verify(chunks: Vec<NewChunk>, bytes: usize) -> WireResult<Vec<NewChunk>> {
    if bytes <= HASH_INLINE_BYTES {
        return verify_now(chunks);
    }
    let hashed = task::spawn_blocking("verify", move || verify_now(chunks)).await;
    hashed.map_err(|error| WireError::internal(format!("hashing did not finish: {error}")))?
}

fn verify_now(chunks: Vec<NewChunk>) -> WireResult<Vec<NewChunk>> {
    let wrong = |chunk: &&NewChunk| ChunkId::of(&chunk.bytes) != chunk.id;
    let Some(chunk) = chunks.iter().find(wrong) else { return Ok(chunks) };
    metrics::counter!("atoll_chunk_put_corrupt_total").increment(1);
    Err(WireError {
        code: Code::Corrupt,
        fault: Fault::Caller,
        retry: Retry::Same,
        message: format!("chunk {} did not arrive with the bytes of its hash", chunk.id),
    })
}
