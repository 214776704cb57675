//! Heartbeat: a node is alive. Kept in the leader's memory only.

use atoll_net::Context;
use atoll_proto::NodeId;
use atoll_proto::chunk::ChunkStat;
use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterResponse, Orders};
use tokio::time::Instant;

use super::change::store_failed;
use crate::server::Master;
use crate::store::{groups, nodes};

pub(crate) fn heartbeat(
    master: &Master,
    context: &Context,
    node: NodeId,
    ready: bool,
    stat: Option<ChunkStat>,
) -> WireResult<MasterResponse> {
    let state = master.consensus.state();
    let info = nodes::get(&*state, node).map_err(store_failed)?;
    let known = info.is_some_and(|info| info.name == context.peer.name);
    if known {
        master.liveness().heard(node, ready, stat, Instant::now());
    }
    let epoch = groups::epoch(&*state).map_err(store_failed)?;
    Ok(MasterResponse::Heard {
        epoch,
        term: master.consensus.term(),
        known,
        orders: Orders::default(),
        in_sync: None,
        differ: Vec::new(),
    })
}
