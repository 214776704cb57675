//! Renew: an edge is alive, and gets another lease if it has applied the whole publish log.
//!
//! The grant is noted in the step that reads the end of the log, and after this master has
//! confirmed that it leads: see `atoll_proto::lease` for why that is enough.

use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::{Code, NodeId, Seq, WireError};
use tokio::time::Instant;

use super::change::store_failed;
use crate::auth::Principal;
use crate::clock::boot_ns;
use crate::server::Master;
use crate::store::{nodes, publish_log};

pub(crate) async fn renew(
    master: &Master,
    principal: &Principal,
    node: NodeId,
    ready: bool,
    applied: Option<Seq>,
) -> WireResult<MasterResponse> {
    let leadership = master.consensus.leadership();
    master.consensus.read().await?;
    let info = nodes::get(&*master.consensus.state(), node).map_err(store_failed)?;
    let Some(info) = info else {
        return Ok(MasterResponse::Renewed { known: false, granted: false });
    };
    if !principal.is_node(&info) {
        let message = format!("node {node} is {:?}, which only it may speak for", info.name);
        return Err(WireError::new(Code::Denied, message));
    }
    let (news, granted) = {
        let mut liveness = master.liveness();
        // What was confirmed under one leadership is no reason for a grant under another.
        if leadership.is_none() || liveness.leadership() != leadership {
            return Err(WireError::unavailable("the leader has just changed: ask again"));
        }
        liveness.heard(node, ready, None, Instant::now());
        let last = publish_log::last(&*master.consensus.state()).map_err(store_failed)?;
        match applied.filter(|applied| *applied <= last) {
            Some(applied) => {
                let news = liveness.acknowledged(node, applied, Instant::now());
                (news, liveness.grant(node, applied, last, boot_ns()))
            }
            None => (false, false),
        }
    };
    if news {
        master.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
    }
    Ok(MasterResponse::Renewed { known: true, granted })
}
