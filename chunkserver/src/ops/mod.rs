//! The operations of a chunkserver, one file each, and the way from a request to its file.
//!
//! [`atoll_net::Endpoint::serve`] calls [`ChunkService`]; operations use the store and, for
//! relaying, the peers. What clients ask is counted ([`traffic`]), so that upkeep makes way. Who may do what is checked here and in [`put`].

pub(crate) mod get;
mod get_many;
mod has;
mod lacking;
pub(crate) mod peers;
mod put;
mod quorum;
mod relay;
mod stat;
#[cfg(test)]
mod tests;
pub(crate) mod traffic;
mod walk;

use std::sync::Arc;

use atoll_net::{Answer, Context, Peer, Role, Service};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse};
use atoll_proto::{ClusterId, Code, WireError, WireResult, limits};
use bytes::Bytes;
use tokio::time::Instant;

use crate::node::Node;

/// A chunkserver as a service.
pub(crate) struct ChunkService {
    node: Arc<Node>,
}

impl ChunkService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl Service for ChunkService {
    type Request = ChunkRequest;
    type Response = ChunkResponse;

    fn operation(request: &ChunkRequest) -> &'static str {
        match request {
            ChunkRequest::Put(put) if put.relay => "put",
            ChunkRequest::Put(_) => "put_relayed",
            ChunkRequest::Get(_) => "get",
            ChunkRequest::GetMany(_) => "get_many",
            ChunkRequest::Has { .. } => "has",
            ChunkRequest::Stat => "stat",
            ChunkRequest::Walk { .. } => "walk",
            ChunkRequest::Lacking { .. } => "lacking",
        }
    }

    async fn call(
        &self,
        context: Context,
        request: ChunkRequest,
        body: Bytes,
    ) -> WireResult<Answer<ChunkResponse>> {
        let node = &self.node;
        check_cluster(node.endpoint.identity_peer().cluster, &context.peer)?;
        let (role, sent) = (context.peer.role, body.len());
        let answer = match request {
            ChunkRequest::Put(put) => Box::pin(put::put(node, &context, put, body)).await,
            ChunkRequest::Get(get) => get::get(node, get).await,
            ChunkRequest::GetMany(many) => get_many::get_many(node, many).await,
            ChunkRequest::Has { ids } => has::has(node, ids).await,
            ChunkRequest::Stat => stat::stat(node).await,
            ChunkRequest::Walk { epoch, asks } => walk::walk(node, &context, epoch, asks).await,
            ChunkRequest::Lacking { after, limit } => lacking::lacking(node, after, limit).await,
        };
        if role != Role::Chunkserver {
            let body = answer.as_ref().map_or(&[][..], |answer| &answer.body[..]);
            let bytes = body.iter().map(Bytes::len).sum::<usize>() + sent;
            node.traffic.note(bytes as u64, Instant::now());
        }
        answer
    }
}

/// TLS lets no other cluster in; this holds even if two clusters were given one authority.
fn check_cluster(ours: ClusterId, peer: &Peer) -> WireResult<()> {
    if peer.cluster == ours {
        return Ok(());
    }
    Err(WireError::new(
        Code::ForeignCluster,
        format!("{peer} belongs to another cluster; this chunkserver belongs to {ours}"),
    ))
}

fn check_count(what: &str, count: usize, most: usize) -> WireResult<()> {
    if count <= most {
        return Ok(());
    }
    Err(WireError::new(Code::Limit, format!("{count} {what} in one request: at most {most}")))
}

/// Most chunks in one request that carries whole ones.
const MANY_MAX: usize = limits::PUT_CHUNKS_MAX;
