//! Register: a node introduces itself at its start.

use atoll_net::{Context, Role};
use atoll_proto::cluster::{NodeInfo, NodeKind};
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::{Code, WireError};
use tokio::time::Instant;

use super::change::store_failed;
use crate::operation::{Apply, Now, Operation, Outcome};
use crate::server::Master;
use crate::store::counters::{self, Counter};
use crate::store::{Transaction, duties, groups, nodes, publish_log};

/// Longest name, zone or region in bytes.
const TEXT_BYTES_MAX: usize = 64;
/// Most public addresses of an edge.
const ADDRESSES_MAX: usize = 64;

pub(crate) async fn register(
    master: &Master,
    context: &Context,
    info: NodeInfo,
) -> WireResult<MasterResponse> {
    check(context, &info)?;
    master.consensus.read().await?;
    let state = master.consensus.state();
    let before = nodes::get(&*state, info.id).map_err(store_failed)?;
    if before.as_ref() != Some(&info) {
        // One that is known may change its address: its data is needed, whatever the disk.
        if before.is_none() {
            master.disk.check_room()?;
        }
        let operation = Operation::RegisterNode(info.clone());
        master.consensus.propose(&operation, context.deadline).await?;
        tracing::info!(node = %info.id, name = info.name, addr = %info.addr, "registered");
    }
    // Whatever an earlier run of it acknowledged is not after this.
    let last = publish_log::last(&*master.consensus.state()).map_err(store_failed)?;
    master.liveness().registered(info.id, last, Instant::now());
    let receipt_key = match info.kind {
        NodeKind::Chunkserver => Some(master.receipt_key()?),
        NodeKind::Edge => None,
    };
    Ok(MasterResponse::Registered {
        cluster: master.settings.cluster,
        receipt_key,
        epoch: groups::epoch(&*master.consensus.state()).map_err(store_failed)?,
        term: master.consensus.term(),
    })
}

fn check(context: &Context, info: &NodeInfo) -> WireResult<()> {
    let fits = match info.kind {
        NodeKind::Chunkserver => context.peer.role == Role::Chunkserver && info.edge.is_none(),
        NodeKind::Edge => context.peer.role == Role::Edge && info.edge.is_some(),
    };
    if !fits || context.peer.name != info.name {
        let message = format!(
            "node {:?} cannot register: its certificate says it is {} {:?}; give it the \
             certificate of its role and name",
            info.name, context.peer.role, context.peer.name
        );
        return Err(WireError::new(Code::Denied, message));
    }
    let long = |text: &str| text.len() > TEXT_BYTES_MAX;
    if info.name.is_empty() || long(&info.name) || long(&info.zone) || long(&info.region) {
        let message = format!(
            "node {:?}: name, zone and region may have at most {TEXT_BYTES_MAX} bytes",
            info.name
        );
        return Err(WireError::invalid(message));
    }
    if info.id.0 == 0 {
        return Err(WireError::invalid(format!("node {:?} has id 0: ids start at 1", info.name)));
    }
    if info.edge.as_ref().is_some_and(|edge| edge.public.len() > ADDRESSES_MAX) {
        let message = format!("an edge may have at most {ADDRESSES_MAX} public addresses");
        return Err(WireError::invalid(message));
    }
    if info.addr.port() == 0 || info.addr.ip().is_unspecified() {
        let message = format!(
            "node {:?} registers with {}, which nobody can reach: set `advertise`",
            info.name, info.addr
        );
        return Err(WireError::invalid(message));
    }
    Ok(())
}

pub(crate) fn apply(tx: &mut Transaction<'_>, now: Now, info: NodeInfo) -> Apply<Outcome> {
    if duties::is_removed(tx, info.id)? {
        let message = format!(
            "node {} was removed from the cluster, and ids are never used again: give {:?} a new \
             id and an empty data directory",
            info.id, info.name
        );
        return Err(WireError::new(Code::Exists, message).into());
    }
    if let Some(before) = nodes::get(tx, info.id)?
        && (before.name != info.name || before.kind != info.kind)
    {
        let message = format!(
            "node id {} belongs to {:?} already: give {:?} another id; ids are never used again",
            info.id, before.name, info.name
        );
        return Err(WireError::new(Code::Exists, message).into());
    }
    if let Some(other) = nodes::by_name(tx, &info.name)?
        && other != info.id
    {
        let message = format!(
            "the name {:?} belongs to node {other} already: give node {} another name",
            info.name, info.id
        );
        return Err(WireError::new(Code::Exists, message).into());
    }
    nodes::put(tx, &info);
    counters::set(tx, Counter::ViewChanged, now.index);
    Ok(Outcome::Done)
}
