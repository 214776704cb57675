//! A shield's answers to edges: chunks from its cache, fetched once when they are not there, and
//! the publish log through [`crate::relay::hub`].

use std::sync::Arc;
use std::time::Duration;

use atoll_net::identity::Role;
use atoll_net::service::{Answer, Context, Service};
use atoll_proto::edge::{EdgeRequest, EdgeResponse};
use atoll_proto::{ChunkId, Code, Fault, WireError};
use bytes::Bytes;

use super::{Chunks, FillError, Worth};
use crate::relay::hub::Hub;

/// The service of the role shield.
pub struct ShieldService {
    chunks: Arc<Chunks>,
    hub: Arc<Hub>,
}

impl ShieldService {
    /// Answers from these chunks, and relays the log.
    pub fn new(chunks: Arc<Chunks>, hub: Arc<Hub>) -> ShieldService {
        ShieldService { chunks, hub }
    }

    async fn chunk(&self, id: ChunkId) -> Result<Answer<EdgeResponse>, WireError> {
        match self.chunks.get(id, Worth::Use).await {
            Ok(got) => {
                let head = EdgeResponse::Chunk { hit: got.source.is_hit() };
                Ok(Answer::with_body(head, vec![got.bytes]))
            }
            Err(error @ FillError::Busy) => Err(WireError::unavailable(error.to_string())),
            Err(error @ FillError::Erased { .. }) => {
                let fault = Fault::Upstream;
                Err(WireError { fault, ..WireError::new(Code::Erased, error.to_string()) })
            }
            // Not this shield's fault: its caller must not think less of it.
            Err(error @ FillError::Upstream { .. }) => {
                let fault = Fault::Upstream;
                Err(WireError { fault, ..WireError::unavailable(error.to_string()) })
            }
        }
    }
}

impl Service for ShieldService {
    type Request = EdgeRequest;
    type Response = EdgeResponse;

    fn operation(request: &EdgeRequest) -> &'static str {
        match request {
            EdgeRequest::Chunk { .. } => "chunk",
            EdgeRequest::Follow { .. } => "follow",
            EdgeRequest::Renew { .. } => "renew",
        }
    }

    async fn call(
        &self,
        context: Context,
        request: EdgeRequest,
        _body: Bytes,
    ) -> Result<Answer<EdgeResponse>, WireError> {
        if context.peer.role != Role::Edge {
            let message = format!("{} is no edge; shields answer edges only", context.peer);
            return Err(WireError::new(Code::Denied, message));
        }
        match request {
            EdgeRequest::Chunk { id } => self.chunk(id).await,
            EdgeRequest::Follow { after, ack, wait_ms } => {
                let wait = Duration::from_millis(wait_ms.into());
                self.hub.follow(after, ack, wait, context.deadline).await.map(Answer::head)
            }
            EdgeRequest::Renew { renewal } => self.hub.renew(renewal).await.map(Answer::head),
        }
    }
}
