//! Chunks that were taken down: following the masters' list of them.
//!
//! Called by [`super::follow`]: before the first answer of the publish log counts, so that nothing
//! is served before what was erased meanwhile is gone from the cache; and for every entry that says
//! that the list has changed, before it is acknowledged. When the list or the disk fails, so does
//! that: an erasure is never acknowledged by halves.

use atoll_client::{ClientError, Cluster};
use atoll_proto::erase::Erased;
use atoll_proto::limits;
use atoll_proto::master::{MasterRequest, MasterResponse};

use super::Index;

/// Why the list is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// It cannot be had.
    #[error("the list of erased chunks cannot be read: {0}")]
    Master(#[from] ClientError),
    /// A master said something else.
    #[error("the master answered with the wrong kind of message")]
    Unexpected,
    /// The cache still has some.
    #[error("erased chunks cannot be removed from the cache: {0}")]
    Disk(#[from] std::io::Error),
}

/// Carries out what is new of the list.
///
/// # Errors
/// See [`EraseError`]; the next call goes on where this one stopped.
pub(super) async fn catch_up(index: &Index, cluster: &Cluster) -> Result<(), EraseError> {
    loop {
        let after = index.erased_upto().unwrap_or(0);
        let request = MasterRequest::Erased { after, node: None, wait_ms: 0 };
        match cluster.master(&request, limits::METADATA_DEADLINE).await? {
            MasterResponse::Erased { erased, upto, more } => {
                carry_out(index, &erased, upto).await?;
                if !more {
                    return Ok(());
                }
            }
            _ => return Err(EraseError::Unexpected),
        }
    }
}

/// Carries out some changes of the list.
async fn carry_out(index: &Index, changes: &[Erased], upto: u64) -> Result<(), EraseError> {
    let erased = index.chunks.erase(changes).await?;
    metrics::counter!("atoll_edge_erased_chunks_total").increment(erased);
    if !changes.is_empty() {
        tracing::info!(changes = changes.len(), erased, upto, "chunks were taken down");
    }
    index.set_erased_upto(upto);
    Ok(())
}
