//! What an edge answers other nodes and users: as a shield, chunks from its cache, fetched once
//! when they are not there; as a name server, why it answers what it answers.

use std::sync::Arc;

use atoll_net::identity::Role;
use atoll_net::service::{Answer, Context, Service};
use atoll_proto::edge::{EdgeRequest, EdgeResponse};
use atoll_proto::{ChunkId, Code, Fault, WireError};
use bytes::Bytes;

use super::{Chunks, FillError, Worth};
use crate::dns::explain::Explainer;

/// The service of the roles shield and dns.
pub struct EdgeService {
    shield: Option<Arc<Chunks>>,
    dns: Option<Explainer>,
}

impl EdgeService {
    /// Answers from these chunks, if it is a shield, and about these names, if it answers DNS.
    pub fn new(shield: Option<Arc<Chunks>>, dns: Option<Explainer>) -> EdgeService {
        EdgeService { shield, dns }
    }

    async fn chunk(
        &self,
        context: &Context,
        id: ChunkId,
    ) -> Result<Answer<EdgeResponse>, WireError> {
        let Some(chunks) = &self.shield else {
            return Err(WireError::invalid("this edge is no shield"));
        };
        if context.peer.role != Role::Edge {
            let message = format!("{} is no edge; shields answer edges only", context.peer);
            return Err(WireError::new(Code::Denied, message));
        }
        match chunks.get(id, Worth::Use).await {
            Ok(got) => {
                let head = EdgeResponse::Chunk { hit: got.source.is_hit() };
                Ok(Answer::with_body(head, vec![got.bytes]))
            }
            Err(error @ FillError::Busy) => Err(WireError::unavailable(error.to_string())),
            // Not this shield's fault: its caller must not think less of it.
            Err(error @ FillError::Upstream { .. }) => {
                let fault = Fault::Upstream;
                Err(WireError { fault, ..WireError::unavailable(error.to_string()) })
            }
        }
    }
}

impl Service for EdgeService {
    type Request = EdgeRequest;
    type Response = EdgeResponse;

    fn operation(request: &EdgeRequest) -> &'static str {
        match request {
            EdgeRequest::Chunk { .. } => "chunk",
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
        let dns =
            || self.dns.as_ref().ok_or_else(|| WireError::invalid("this edge answers no DNS"));
        match request {
            EdgeRequest::Chunk { id } => self.chunk(&context, id).await,
            // What every member of the cluster may see of its nodes, and what DNS tells everyone.
            EdgeRequest::ExplainDns { name, client, told_prefix } => {
                let explained = dns()?.explain(&name, client, told_prefix)?;
                Ok(Answer::head(EdgeResponse::DnsExplained(explained)))
            }
            EdgeRequest::DnsServer => Ok(Answer::head(EdgeResponse::DnsServer(dns()?.server()))),
        }
    }
}
