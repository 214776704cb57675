//! Lacking: chunks that are live and not here in good order, and how their repair goes; for
//! `fsck`.

use atoll_net::Answer;
use atoll_proto::chunk::{ChunkResponse, Lacking};
use atoll_proto::{ChunkId, WireResult};

use super::MANY_MAX;
use crate::node::{Node, to_wire};
use crate::store::Body;

pub(super) async fn lacking(
    node: &Node,
    after: Option<ChunkId>,
    limit: u32,
) -> WireResult<Answer<ChunkResponse>> {
    let limit = usize::try_from(limit).unwrap_or(MANY_MAX).min(MANY_MAX);
    let list = node.at_the_disk("lacking", move |store| store.lacking(after.as_ref(), limit));
    let found = list.await?.map_err(to_wire)?;
    let queue = node.upkeep.queue();
    let one = |(id, body): (ChunkId, Body)| {
        let (attempts, dead) = queue.attempts(&id);
        Lacking { id, corrupt: body == Body::Corrupt, attempts, dead }
    };
    Ok(Answer::head(ChunkResponse::Lacking(found.into_iter().map(one).collect())))
}
