//! Stat: how the server does.

use atoll_net::Answer;
use atoll_proto::WireResult;
use atoll_proto::chunk::ChunkResponse;

use crate::node::Node;

pub(super) async fn stat(node: &Node) -> WireResult<Answer<ChunkResponse>> {
    Ok(Answer::head(ChunkResponse::Stat(node.stat().await?)))
}
