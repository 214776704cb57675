//! Has: which of these chunks are here. By the index; the bytes are verified when they are read.

use atoll_net::Answer;
use atoll_proto::chunk::ChunkResponse;
use atoll_proto::{ChunkId, WireResult, limits};

use super::check_count;
use crate::node::{Node, to_wire};

pub(super) async fn has(node: &Node, ids: Vec<ChunkId>) -> WireResult<Answer<ChunkResponse>> {
    check_count("ids", ids.len(), limits::IDS_MAX)?;
    let look = node.at_the_disk("has", move |store| {
        ids.iter().map(|id| store.has(id)).collect::<Result<Vec<bool>, _>>()
    });
    let present = look.await?.map_err(to_wire)?;
    Ok(Answer::head(ChunkResponse::Present(present)))
}
