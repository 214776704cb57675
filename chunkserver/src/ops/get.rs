//! Get: part of one chunk. The whole is read and verified each time: hashing costs far less than
//! the network does, and wrong bytes are never served. A chunk that turns out corrupt is taken out
//! of service and put down for repair at once.

use std::time::Duration;

use atoll_net::Answer;
use atoll_proto::chunk::{ChunkResponse, Get};
use atoll_proto::{ChunkId, Code, Retry, WireError, WireResult};
use bytes::Bytes;

use crate::node::{Node, to_wire};
use crate::store::{Body, ChunkStore, StoreError};
use crate::tasks::clock;

pub(super) async fn get(node: &Node, get: Get) -> WireResult<Answer<ChunkResponse>> {
    let id = get.id;
    if node.erased.before_serving().await.contains(&id) {
        return Err(not_here(node, &id));
    }
    let found = node.at_the_disk("get", move |store| read_verified(store, &id)).await?;
    if let Err(StoreError::Corrupt { .. }) = &found {
        node.upkeep.lack(vec![id], Duration::ZERO);
    }
    let Some(bytes) = found.map_err(to_wire)? else { return Err(not_here(node, &id)) };
    let chunk_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let start = get.offset.min(chunk_len) as usize;
    let end = get.offset.saturating_add(get.len).min(chunk_len) as usize;
    let part = bytes.slice(start..end);
    Ok(Answer::with_body(ChunkResponse::Bytes { chunk_len }, vec![part]))
}

fn not_here(node: &Node, id: &ChunkId) -> WireError {
    let message = format!("chunk {id} is not on chunkserver {}", node.id);
    // Another replica may have it.
    WireError { retry: Retry::Elsewhere, ..WireError::new(Code::NotFound, message) }
}

/// As [`examine`], for a reader. Blocks.
pub(super) fn read_verified(
    store: &dyn ChunkStore,
    id: &ChunkId,
) -> Result<Option<Bytes>, StoreError> {
    let found = examine(store, id)?;
    if let Some(bytes) = &found {
        metrics::counter!("atoll_chunk_reads_total").increment(1);
        metrics::counter!("atoll_chunk_read_bytes_total").increment(bytes.len() as u64);
    }
    Ok(found)
}

/// Reads a chunk and checks its hash; one whose bytes are wrong is taken out of service. Blocks.
pub(crate) fn examine(store: &dyn ChunkStore, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
    let damaged = |reason: &str| StoreError::Corrupt { id: *id, reason: reason.to_owned() };
    let reason = match store.get(id) {
        Ok(Some(bytes)) if ChunkId::of(&bytes) == *id => return Ok(Some(bytes)),
        Ok(Some(_)) => "its bytes do not have its hash".to_owned(),
        Ok(None) => {
            return match store.record(id)? {
                Some(record) if record.body == Body::Corrupt => {
                    Err(damaged("it was found corrupt before"))
                }
                _ => Ok(None),
            };
        }
        Err(StoreError::Corrupt { reason, .. }) => reason,
        Err(error) => return Err(error),
    };
    metrics::counter!("atoll_chunk_verify_failures_total").increment(1);
    match store.spoil(id, clock::now_ms()) {
        Ok(true) => {
            tracing::error!(chunk = %id, reason, "a chunk is corrupt: taken out of service")
        }
        // It was replaced by a good copy in between; the caller may ask again.
        Ok(false) => {
            tracing::warn!(chunk = %id, reason, "a read went wrong, but the chunk is good")
        }
        Err(error) => {
            tracing::error!(chunk = %id, reason, %error, "cannot take out a corrupt chunk")
        }
    }
    Err(damaged(&reason))
}
