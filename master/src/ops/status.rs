//! Status: how the cluster does, as the leader sees it.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use atoll_proto::cluster::{NodeKind, NodeState};
use atoll_proto::error::WireResult;
use atoll_proto::master::{ChunkserverStatus, EdgeStatus, MasterResponse, MasterStatus, Status};
use atoll_proto::{AliasName, NodeId, PgId};
use tokio::time::Instant;

use super::change::store_failed;
use super::upkeep;
use crate::server::Master;
use crate::store::counters::{self, Counter};
use crate::store::{aliases, group_states, publish_log, sites, unreferenced};

pub(crate) async fn status(master: &Master) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let applied = *master.consensus.applied().borrow();
    let nodes = master.node_views()?;
    let table = master.table()?;
    let state = master.consensus.state();
    let view = state.view();
    let now = Instant::now();
    let mut member_of: HashMap<NodeId, u32> = HashMap::new();
    for member in table.members.iter().flatten() {
        *member_of.entry(*member).or_default() += 1;
    }

    let mut chunkservers = Vec::new();
    let mut edges = Vec::new();
    {
        let liveness = master.liveness();
        for node in &nodes {
            let up = node.state == NodeState::Up;
            let info = &node.info;
            match info.kind {
                NodeKind::Chunkserver => chunkservers.push(ChunkserverStatus {
                    id: info.id,
                    name: info.name.clone(),
                    zone: info.zone.clone(),
                    up,
                    stat: liveness.stat(info.id),
                    duty: node.duty,
                    in_sync: liveness.in_sync(info.id),
                    groups: member_of.get(&info.id).copied().unwrap_or(0),
                }),
                NodeKind::Edge => {
                    let serves = info.edge.as_ref().is_some_and(|edge| edge.serves);
                    edges.push(EdgeStatus {
                        id: info.id,
                        name: info.name.clone(),
                        role: if serves { "edge" } else { "shield" }.to_owned(),
                        region: info.region.clone(),
                        seq: liveness.acked(info.id),
                        lease_ms: liveness.edge_left_ms(info.id, crate::clock::boot_ns()),
                        // Grace is no readiness: a new leader must hear of it first.
                        ready: up && node.ready && !liveness.in_grace(info.id, now),
                        up,
                    });
                }
            }
        }
    }
    let up: HashSet<NodeId> =
        chunkservers.iter().filter(|server| server.up).map(|server| server.id).collect();
    let refilling: HashSet<NodeId> =
        chunkservers.iter().filter(|it| it.stat.refilling).map(|server| server.id).collect();
    let states = group_states::all(&view).map_err(store_failed)?;
    let (mut clean, mut degraded, mut lost, mut chunks_degraded) = (0, 0, 0, 0);
    let held = upkeep::held(&view).map_err(store_failed)?;
    let liveness = master.liveness();
    for ((members, state), pg) in table.members.iter().zip(states).zip((0..).map(PgId)) {
        let down = members.iter().any(|member| !up.contains(member));
        if !members.is_empty() && !table.readers(pg).any(|reader| up.contains(&reader)) {
            lost += 1;
        } else if down
            || members.iter().any(|member| liveness.may_lack(*member, pg, held.is_some()))
        {
            degraded += 1;
        } else {
            clean += u32::from(!members.is_empty());
            continue;
        }
        // Servers that are up tell themselves what they lack, once they know.
        if down || members.iter().any(|member| refilling.contains(member)) {
            chunks_degraded += state.chunks;
        }
    }
    drop(liveness);
    let all = sites::all(&view).map_err(store_failed)?;
    let production = AliasName::production();
    let records = aliases::all(&view, None).map_err(store_failed)?;
    let current = records.into_iter().map(|record| record.alias);
    let current = current.filter(|alias| alias.alias == production);
    let mut live = master.live.notes();
    // Whether other masters' disks are full, only they know.
    live.extend(master.disk.check_room().err().map(|full| full.message));
    live.extend(names_nobody(master));
    let status = Status {
        index: applied.index,
        masters: masters(master),
        chunkservers,
        edges,
        groups: u32::try_from(table.members.len()).unwrap_or(u32::MAX),
        groups_clean: clean,
        groups_degraded: degraded,
        groups_lost: lost,
        chunks_live: counters::get(&view, Counter::ChunksLive).map_err(store_failed)?,
        chunks_degraded,
        publish_seq: publish_log::last(&view).map_err(store_failed)?,
        sites: all.len() as u64,
        current: current.map(|alias| (alias.site, alias.deploy)).collect(),
        groups_moving: u32::try_from(table.leaving.len()).unwrap_or(u32::MAX),
        frozen: held,
        chunks_unreferenced: unreferenced::count(&view).map_err(store_failed)?,
        scrub: upkeep::orders(&view).map_err(store_failed)?.scrub,
        live,
        placement: master.placement.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    };
    Ok(MasterResponse::Status(Box::new(status)))
}

/// Says so when this master, without its disk, would ask nobody whether there is a cluster, and form
/// another one.
fn names_nobody(master: &Master) -> Option<String> {
    let (others, named) = master.consensus.other_voters();
    if !master.settings.bootstrap || named || others.is_empty() {
        return None;
    }
    let others: Vec<String> = others.iter().map(u64::to_string).collect();
    Some(format!(
        "master {} would form a cluster of its own if it lost its disk: name those that vote with it \
         ({}) in its `peers`, and restart it",
        master.consensus.id(),
        others.join(", ")
    ))
}

fn masters(master: &Master) -> Vec<MasterStatus> {
    let position = master.consensus.position();
    let role = |id: u64| match position.leader {
        Some(leader) if leader == id => "leader",
        _ if id == master.consensus.id() => position.role,
        _ if master.consensus.is_silent(id) => "silent",
        _ => "follower",
    };
    position
        .log
        .iter()
        .map(|(id, index)| MasterStatus { id: *id, role: role(*id).to_owned(), log_index: *index })
        .collect()
}
