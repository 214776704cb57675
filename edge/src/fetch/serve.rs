//! A shield's answers to edges: chunks from its cache, fetched once when they are not there.

use std::sync::Arc;

use atoll_net::identity::Role;
use atoll_net::service::{Answer, Context, Service};
use atoll_proto::edge::{EdgeRequest, EdgeResponse};
use atoll_proto::{Code, Fault, WireError};
use bytes::Bytes;

use super::{Chunks, FillError, Worth};

/// The service of the role shield.
pub struct ShieldService {
    chunks: Arc<Chunks>,
}

impl ShieldService {
    /// Answers from these chunks.
    pub fn new(chunks: Arc<Chunks>) -> ShieldService {
        ShieldService { chunks }
    }
}

impl Service for ShieldService {
    type Request = EdgeRequest;
    type Response = EdgeResponse;

    fn operation(request: &EdgeRequest) -> &'static str {
        match request {
            EdgeRequest::Chunk { .. } => "chunk",
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
        let EdgeRequest::Chunk { id } = request;
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
