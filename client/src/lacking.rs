//! What chunkservers lack: for checks of the whole cluster.

use atoll_net::identity::Role;
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, Lacking};
use atoll_proto::{NodeId, limits};

use crate::{ClientError, Cluster};

impl Cluster {
    /// The live chunks that a chunkserver does not have in good order, sorted by id: at most `most`,
    /// and whether that is all.
    ///
    /// # Errors
    /// `Unreachable` or `Deadline` when it does not answer, `Refused` when it cannot tell.
    pub async fn lacking(
        &self,
        node: NodeId,
        most: usize,
    ) -> Result<(Vec<Lacking>, bool), ClientError> {
        let view = self.view().await?;
        let what = || format!("node {node}");
        let info = view.node(node).map(|node| &node.info).ok_or_else(|| {
            ClientError::Unreachable { what: what(), reason: "it is not registered".to_owned() }
        })?;
        let mut all: Vec<Lacking> = Vec::new();
        let page = u32::try_from(limits::PUT_CHUNKS_MAX).unwrap_or(u32::MAX);
        while all.len() < most {
            let after = all.last().map(|lacking| lacking.id);
            let request = ChunkRequest::Lacking { after, limit: page };
            let options = self.options(limits::CHUNK_DEADLINE);
            let called = self
                .endpoint()
                .call(info.addr, Role::Chunkserver, &request, Vec::new(), options)
                .await;
            match called {
                Ok((ChunkResponse::Lacking(some), _)) => {
                    let ordered = some.iter().all(|it| after.is_none_or(|after| it.id > after));
                    if !ordered {
                        return Err(ClientError::unexpected(&what()));
                    }
                    if some.is_empty() {
                        return Ok((all, true));
                    }
                    all.extend(some);
                }
                Ok(_) => return Err(ClientError::unexpected(&what())),
                Err(error) => return Err(ClientError::from_call(&what(), error)),
            }
        }
        Ok((all, false))
    }
}
