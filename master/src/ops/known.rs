//! Known: which chunks are in the object table, so that a client uploads only the others.

use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::{ChunkId, Code, WireError, limits};

use super::change::store_failed;
use crate::server::Master;
use crate::store::{StoreError, erased, objects};

pub(crate) async fn known(master: &Master, ids: Vec<ChunkId>) -> WireResult<MasterResponse> {
    if ids.len() > limits::IDS_MAX {
        let message = format!("{} ids in one question; ask at most {}", ids.len(), limits::IDS_MAX);
        return Err(WireError::new(Code::Limit, message));
    }
    master.consensus.read().await?;
    let state = master.consensus.state();
    // One that was erased and may come back has to be uploaded.
    let look = move || {
        let known = |id| Ok(objects::has(&*state, id)? && !erased::is_absent(&*state, id)?);
        ids.iter().map(known).collect()
    };
    let found: Result<Vec<bool>, StoreError> = atoll_net::task::spawn_blocking("known", look)
        .await
        .map_err(|error| WireError::internal(error.to_string()))?;
    found.map(MasterResponse::Known).map_err(store_failed)
}
