//! Relay: what edges say through a shield, many in one message. Only what an edge has sealed itself
//! counts; see `atoll_proto::relay`.

use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::relay::{RelayedAck, RelayedRenewal};
use atoll_proto::{Code, NodeId, WireError, limits};
use tokio::time::Instant;

use super::change::store_failed;
use crate::auth::Principal;
use crate::clock::boot_ns;
use crate::server::Master;
use crate::store::publish_log;

pub(crate) async fn relay(
    master: &Master,
    principal: &Principal,
    shield: NodeId,
    acks: &[RelayedAck],
    renewals: &[RelayedRenewal],
) -> WireResult<MasterResponse> {
    if acks.len() + renewals.len() > limits::RELAY_ITEMS_MAX {
        let message = format!("a relay sends at most {} items at once", limits::RELAY_ITEMS_MAX);
        return Err(WireError::new(Code::Limit, message));
    }
    let leadership = master.consensus.leadership();
    master.consensus.read().await?;
    let roster = master.roster()?;
    check(principal, shield, roster.get(shield))?;
    let mut liveness = master.liveness();
    // What was confirmed under one leadership is no reason for a grant under another.
    if leadership.is_none() || liveness.leadership() != leadership {
        return Err(WireError::unavailable("the leader has just changed: ask again"));
    }
    let last = publish_log::last(&*master.consensus.state()).map_err(store_failed)?;
    let (now, now_ns) = (Instant::now(), boot_ns());
    let mut news = false;
    let taken = acks.iter().map(|ack| {
        // One that was forgotten may still have a key.
        let known = roster.get(ack.edge);
        let taken = known.and_then(|_| liveness.relayed_ack(ack, last, now));
        news |= taken == Some(true);
        taken.is_some()
    });
    let taken: Vec<bool> = taken.collect();
    let granted = renewals.iter().map(|renewal| {
        roster.get(renewal.edge)?;
        let (grant, more) = liveness.relayed_renewal(renewal, last, now, now_ns)?;
        news |= more;
        Some(grant)
    });
    let granted = granted.collect();
    drop(liveness);
    if news {
        master.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
    }
    metrics::counter!("atoll_master_relayed_acks_total").increment(taken.len() as u64);
    metrics::counter!("atoll_master_relayed_renewals_total").increment(renewals.len() as u64);
    Ok(MasterResponse::Relayed { acks: taken, renewals: granted })
}

/// Only shields speak for others, each for itself.
fn check(
    principal: &Principal,
    shield: NodeId,
    info: Option<&atoll_proto::cluster::NodeInfo>,
) -> WireResult<()> {
    let Some(info) = info else {
        let message = format!("node {shield} is not registered: register first");
        return Err(WireError::not_found(message));
    };
    if !principal.is_node(info) {
        let message = format!("node {shield} is {:?}, which only it may speak for", info.name);
        return Err(WireError::new(Code::Denied, message));
    }
    if !info.edge.as_ref().is_some_and(|edge| edge.shield) {
        let message = format!("{:?} is no shield: only shields speak for other edges", info.name);
        return Err(WireError::new(Code::Denied, message));
    }
    Ok(())
}
