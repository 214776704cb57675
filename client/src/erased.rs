//! Chunks that were taken down: the list of them, what named them, and where copies are.

use std::collections::HashMap;

use atoll_net::identity::Role;
use atoll_proto::chunk::{ChunkRequest, ChunkResponse};
use atoll_proto::erase::{ErasedBy, ErasedPart, Erasure, ErasureRecord};
use atoll_proto::master::{MasterRequest, MasterResponse, ObjectKind};
use atoll_proto::{ChunkId, NodeId, SiteName, limits};

use crate::{ClientError, Cluster};

/// Ids in one question to a chunkserver.
const ASK_AT_ONCE: usize = 16_384;

impl Cluster {
    /// Every chunk that was ever erased, with what holds for it now.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn erased(&self) -> Result<HashMap<ChunkId, Erasure>, ClientError> {
        let (mut all, mut after, mut begun) = (HashMap::new(), 0, None);
        loop {
            let request = MasterRequest::Erased { after, node: None, wait_ms: 0 };
            match self.master(&request, limits::METADATA_DEADLINE).await? {
                MasterResponse::Erased(ErasedPart { began, erased, upto, more, .. }) => {
                    if begun.is_some_and(|begun| begun != began) {
                        // Restored meanwhile.
                        (all, after, begun) = (HashMap::new(), 0, None);
                        continue;
                    }
                    begun = Some(began);
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

    /// What the erasures for a site were about that still hold, at least in part.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn erasures(&self, site: &SiteName) -> Result<Vec<ErasureRecord>, ClientError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let request = MasterRequest::Erasures { site: site.clone(), after };
            match self.master(&request, limits::METADATA_DEADLINE).await? {
                MasterResponse::Erasure(None) => return Ok(all),
                MasterResponse::Erasure(Some(found)) => {
                    let (name, record) = *found;
                    if after.is_some_and(|after| name <= after) {
                        return Err(ClientError::unexpected("the master"));
                    }
                    after = Some(name);
                    all.push(record);
                }
                _ => return Err(ClientError::unexpected("the master")),
            }
        }
    }

    /// Pages and lists that nothing refers to, and that were not collected yet.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn unreferenced(&self) -> Result<Vec<(ChunkId, ObjectKind)>, ClientError> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let request = MasterRequest::Unreferenced { after };
            match self.master(&request, limits::METADATA_DEADLINE).await? {
                MasterResponse::Unreferenced { pages, next } => {
                    all.extend(pages);
                    if next.is_none() || next <= after {
                        return Ok(all);
                    }
                    after = next;
                }
                _ => return Err(ClientError::unexpected("the master")),
            }
        }
    }

    /// Whether the cluster still counts a chunk among those it keeps.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn is_kept(&self, id: ChunkId) -> Result<bool, ClientError> {
        let request = MasterRequest::Objects { ids: vec![id] };
        match self.master(&request, limits::METADATA_DEADLINE).await? {
            MasterResponse::Objects(objects) => Ok(objects.first().is_some_and(Option::is_some)),
            _ => Err(ClientError::unexpected("the master")),
        }
    }

    /// Which chunkservers and edges have erased everything up to an entry of the publish log.
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
