//! What an edge answers other nodes and users: as a shield, chunks from its cache, fetched once when
//! they are not there, and the publish log through [`crate::relay::hub`]; as a name server, why it
//! answers what it answers.

use std::sync::Arc;
use std::time::Duration;

use atoll_net::identity::Role;
use atoll_net::service::{Answer, Context, Service};
use atoll_proto::edge::{EdgeRequest, EdgeResponse};
use atoll_proto::{ChunkId, Code, Fault, WireError};
use bytes::Bytes;

use super::{Chunks, FillError, Worth};
use crate::dns::explain::Explainer;
use crate::relay::hub::Hub;

/// What a shield answers from.
pub struct ShieldParts {
    chunks: Arc<Chunks>,
    hub: Arc<Hub>,
}

impl ShieldParts {
    /// These chunks, and this relay of the log.
    pub fn new(chunks: Arc<Chunks>, hub: Arc<Hub>) -> ShieldParts {
        ShieldParts { chunks, hub }
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

/// The service of the roles shield and dns.
pub struct EdgeService {
    shield: Option<ShieldParts>,
    dns: Option<Explainer>,
}

impl EdgeService {
    /// Answers from these parts, if it is a shield, and about these names, if it answers DNS.
    pub fn new(shield: Option<ShieldParts>, dns: Option<Explainer>) -> EdgeService {
        EdgeService { shield, dns }
    }

    /// What edges are answered from, and nobody else.
    fn shield(&self, context: &Context) -> Result<&ShieldParts, WireError> {
        if context.peer.role != Role::Edge {
            let message = format!("{} is no edge; shields answer edges only", context.peer);
            return Err(WireError::new(Code::Denied, message));
        }
        self.shield.as_ref().ok_or_else(|| WireError::invalid("this edge is no shield"))
    }

    fn dns(&self) -> Result<&Explainer, WireError> {
        self.dns.as_ref().ok_or_else(|| WireError::invalid("this edge answers no DNS"))
    }
}

impl Service for EdgeService {
    type Request = EdgeRequest;
    type Response = EdgeResponse;

    fn operation(request: &EdgeRequest) -> &'static str {
        match request {
            EdgeRequest::Chunk { .. } => "chunk",
            EdgeRequest::Follow { .. } => "follow",
            EdgeRequest::Renew { .. } => "renew",
            EdgeRequest::ExplainDns { .. } => "explain_dns",
            EdgeRequest::DnsServer => "dns_server",
        }
    }

    async fn call(
        &self,
        context: Context,
        request: EdgeRequest,
        _body: Bytes,
    ) -> Result<Answer<EdgeResponse>, WireError> {
        match request {
            EdgeRequest::Chunk { id } => self.shield(&context)?.chunk(id).await,
            EdgeRequest::Follow { after, ack, wait_ms } => {
                let wait = Duration::from_millis(wait_ms.into());
                let hub = &self.shield(&context)?.hub;
                hub.follow(after, ack, wait, context.deadline).await.map(Answer::head)
            }
            EdgeRequest::Renew { renewal } => {
                self.shield(&context)?.hub.renew(renewal).await.map(Answer::head)
            }
            // What every member of the cluster may see of its nodes, and what DNS tells everyone.
            EdgeRequest::ExplainDns { name, client, told_prefix } => {
                let explained = self.dns()?.explain(&name, client, told_prefix)?;
                Ok(Answer::head(EdgeResponse::DnsExplained(explained)))
            }
            EdgeRequest::DnsServer => {
                Ok(Answer::head(EdgeResponse::DnsServer(self.dns()?.server())))
            }
        }
    }
}
