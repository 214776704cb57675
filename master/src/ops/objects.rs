//! Objects: what the object table says of some chunks, linearizable. Chunkservers ask before they
//! drop anything, `fsck` asks to see whether anything is missing.

use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterResponse, ObjectView};
use atoll_proto::{ChunkId, Code, WireError, limits};

use super::change::store_failed;
use crate::server::Master;
use crate::store::{StoreError, erased, objects};

pub(crate) async fn objects(master: &Master, ids: Vec<ChunkId>) -> WireResult<MasterResponse> {
    if ids.len() > limits::PUT_CHUNKS_MAX {
        let most = limits::PUT_CHUNKS_MAX;
        let message = format!("{} ids in one question; ask at most {most}", ids.len());
        return Err(WireError::new(Code::Limit, message));
    }
    master.consensus.read().await?;
    let state = master.consensus.state();
    let look = move || {
        let view = state.view();
        let one = |id: &ChunkId| {
            let object = objects::get(&view, id)?;
            // Erased once and allowed again, but not uploaded since: nothing that can be counted on.
            let object = if erased::is_absent(&view, id)? { None } else { object };
            Ok(object.map(|it| ObjectView { refs: it.refs, len: it.len, kind: it.kind }))
        };
        ids.iter().map(one).collect::<Result<Vec<_>, StoreError>>()
    };
    let found = atoll_net::task::spawn_blocking("objects", look)
        .await
        .map_err(|error| WireError::internal(error.to_string()))?;
    found.map(MasterResponse::Objects).map_err(store_failed)
}
