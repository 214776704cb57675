//! Chunks that were taken down: the list of them, and where copies are.

use std::collections::HashMap;

use atoll_net::identity::Role;
use atoll_proto::chunk::{ChunkRequest, ChunkResponse};
use atoll_proto::erase::{ErasedBy, Erasure};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{ChunkId, NodeId, limits};

use crate::{ClientError, Cluster};

/// Ids in one question to a chunkserver.
const ASK_AT_ONCE: usize = 16_384;

impl Cluster {
    /// Every chunk that was ever erased, with what holds for it now.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn erased(&self) -> Result<HashMap<ChunkId, Erasure>, ClientError> {
        let (mut all, mut after) = (HashMap::new(), 0);
        loop {
            let request = MasterRequest::Erased { after, node: None, wait_ms: 0 };
            match self.master(&request, limits::METADATA_DEADLINE).await? {
                MasterResponse::Erased { erased, upto, more } => {
                    all.extend(erased.into_iter().map(|erased| (erased.id, erased.what)));
                    if !more || upto <= after {
                        return Ok(all);
                    }
                    after = upto;
                }
                _ => return Err(ClientError::unexpected("the master")),
            }
        }
    }

    /// Which chunkservers have erased everything up to an entry of the publish log.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn erased_by(&self, index: u64) -> Result<ErasedBy, ClientError> {
        match self.master(&MasterRequest::ErasedBy { index }, limits::METADATA_DEADLINE).await? {
            MasterResponse::ErasedBy(by) => Ok(by),
            _ => Err(ClientError::unexpected("the master")),
        }
    }

    /// How many of these chunks a chunkserver has.
    ///
    /// # Errors
    /// `Unreachable` or `Deadline` when it does not answer.
    pub async fn count_held(&self, node: NodeId, ids: &[ChunkId]) -> Result<u64, ClientError> {
        let view = self.view().await?;
        let what = format!("node {node}");
        let info = view.node(node).map(|node| &node.info).ok_or_else(|| {
            let reason = "it is not registered".to_owned();
            ClientError::Unreachable { what: what.clone(), reason }
        })?;
        let mut held = 0;
        for part in ids.chunks(ASK_AT_ONCE) {
            let request = ChunkRequest::Has { ids: part.to_vec() };
            let options = self.options(limits::CHUNK_DEADLINE);
            let called = self
                .endpoint()
                .call(info.addr, Role::Chunkserver, &request, Vec::new(), options)
                .await;
            match called {
                Ok((ChunkResponse::Present(present), _)) => {
                    held += present.iter().filter(|present| **present).count() as u64;
                }
                Ok(_) => return Err(ClientError::unexpected(&what)),
                Err(error) => return Err(ClientError::from_call(&what, error)),
            }
        }
        Ok(held)
    }
}
