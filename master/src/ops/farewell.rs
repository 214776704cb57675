//! Farewell: an edge answers nothing any more, and publishes need not wait for it. Kept in the
//! leader's memory only: a new leader waits for the edge as for any that it has not heard of.

use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::{Code, NodeId, WireError};
use tokio::time::Instant;

use super::change::store_failed;
use crate::auth::Principal;
use crate::server::Master;
use crate::store::nodes;

pub(crate) async fn farewell(
    master: &Master,
    principal: &Principal,
    node: NodeId,
    number: Option<u64>,
) -> WireResult<MasterResponse> {
    // Only the leader is asked how publishes get on, and only its memory matters.
    master.consensus.read().await?;
    let info = nodes::get(&*master.consensus.state(), node).map_err(store_failed)?;
    let Some(info) = info else {
        return Err(WireError::not_found(format!("node {node} is not registered")));
    };
    if !principal.is_node(&info) {
        let message = format!("node {node} is {:?}, which only it may speak for", info.name);
        return Err(WireError::new(Code::Denied, message));
    }
    let (number, gone) = match number {
        None => (master.liveness().leaving(node, rand::random(), Instant::now()), false),
        Some(number) => (number, master.liveness().farewell(node, number)),
    };
    if gone {
        tracing::info!(%node, name = info.name, "said farewell");
        // Who waits for it need not any more.
        master.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
    }
    Ok(MasterResponse::Farewell { number, gone })
}
