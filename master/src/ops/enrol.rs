//! Enrol: an edge gets the key with which it may speak through shields. Kept in the leader's memory
//! only, for one run of the edge.

use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::relay::RelayKey;
use atoll_proto::{Code, NodeId, WireError};

use super::change::store_failed;
use crate::auth::Principal;
use crate::server::Master;
use crate::store::nodes;

pub(crate) async fn enrol(
    master: &Master,
    principal: &Principal,
    node: NodeId,
) -> WireResult<MasterResponse> {
    let leadership = master.consensus.leadership();
    master.consensus.read().await?;
    let info = nodes::get(&*master.consensus.state(), node).map_err(store_failed)?;
    let Some(info) = info else {
        return Ok(MasterResponse::Enrolled { key: None });
    };
    if !principal.is_node(&info) {
        let message = format!("node {node} is {:?}, which only it may speak for", info.name);
        return Err(WireError::new(Code::Denied, message));
    }
    let key = RelayKey(rand::random());
    let mut liveness = master.liveness();
    if leadership.is_none() || liveness.leadership() != leadership {
        return Err(WireError::unavailable("the leader has just changed: ask again"));
    }
    liveness.enrol(node, key);
    Ok(MasterResponse::Enrolled { key: Some(key) })
}
