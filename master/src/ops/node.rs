//! Node: what operators want of chunkservers (drain, undrain, lose, remove) and edges (drain,
//! undrain, remove), and what the leader finds about those that are silent.
//!
//! A duty moves no data by itself: placement ([`crate::tasks::placement`]) sees it and moves the
//! groups.

use atoll_proto::cluster::{Duty, NodeInfo, NodeKind};
use atoll_proto::error::WireResult;
use atoll_proto::master::{Changed, NodeOp};
use atoll_proto::site::Policy;
use atoll_proto::{Code, NodeId, WireError};

use super::change::store_failed;
use crate::clock::boot_ns;
use crate::operation::{Apply, Now, Outcome};
use crate::policies;
use crate::server::Master;
use crate::store::counters::{self, Counter};
use crate::store::duties::{self, DutyRecord};
use crate::store::leaving::{self, Leaving};
use crate::store::{Transaction, groups, nodes};

pub(crate) fn apply(tx: &mut Transaction<'_>, now: Now, op: NodeOp) -> Apply<Changed> {
    let info = known(tx, op.node())?;
    if info.kind == NodeKind::Edge && removes(&op) {
        nodes::remove(tx, &info);
        duties::put(tx, info.id, DutyRecord::Removed { at_ms: now.at_ms() });
        counters::set(tx, Counter::ViewChanged, now.index);
        return Ok(Changed::Node);
    }
    if info.kind == NodeKind::Edge && drains(&op) {
        // Name servers see it: they send no visitors to an edge that is draining.
        let drain = matches!(op, NodeOp::Drain { .. });
        let duty = if drain { Duty::Draining } else { Duty::Active };
        set(tx, now, info.id, duty, None);
        counters::set(tx, Counter::ViewChanged, now.index);
        return Ok(Changed::Node);
    }
    let info = chunkserver(info)?;
    let duty = duties::duty(tx, info.id)?;
    match op {
        NodeOp::Drain { .. } => match duty {
            Duty::Gone => {
                let message = format!(
                    "{} was declared lost, so its groups move already: `atoll node undrain {}` \
                     first if it is back to stay",
                    info.name, info.name
                );
                return Err(WireError::new(Code::Conflict, message).into());
            }
            Duty::Active | Duty::Draining => set(tx, now, info.id, Duty::Draining, None),
        },
        NodeOp::Undrain { .. } => set(tx, now, info.id, Duty::Active, None),
        NodeOp::Lose { .. } => set(tx, now, info.id, Duty::Gone, None),
        NodeOp::Remove { .. } => remove(tx, now, &info, duty, false)?,
        NodeOp::RemoveGone { .. } => remove(tx, now, &info, duty, true)?,
    }
    counters::set(tx, Counter::ViewChanged, now.index);
    Ok(Changed::Node)
}

/// The leader found that a node is silent for long, or is back.
pub(crate) fn set_duty(
    tx: &mut Transaction<'_>,
    now: Now,
    node: NodeId,
    from: Duty,
    to: Duty,
) -> Apply<Outcome> {
    chunkserver(known(tx, node)?)?;
    let found = duties::duty(tx, node)?;
    if found != from {
        let message = format!("node {node} is {found:?} meanwhile, not {from:?}");
        return Err(WireError::new(Code::Conflict, message).into());
    }
    let returns_to = (to == Duty::Gone).then_some(from);
    set(tx, now, node, to, returns_to);
    counters::set(tx, Counter::ViewChanged, now.index);
    Ok(Outcome::Done)
}

/// What the leader alone knows: an edge is forgotten only once its lease has surely ended, and from
/// then on it gets none, since no publish will wait for it.
pub(crate) fn check(master: &Master, op: &NodeOp) -> WireResult<()> {
    let info = nodes::get(&*master.consensus.state(), op.node()).map_err(store_failed)?;
    let Some(info) = info.filter(|info| info.kind == NodeKind::Edge && removes(op)) else {
        return Ok(());
    };
    let policy = match op {
        // The operator says that it is off.
        NodeOp::RemoveGone { .. } => Policy::Strict,
        _ => {
            let acked = master.liveness().acked(info.id);
            policies::loosest_of_all(master, acked).map_err(store_failed)?
        }
    };
    let left = master.liveness().retire(info.id, policy, boot_ns());
    left.map_err(|left| {
        let name = &info.name;
        let message = match left {
            Some(left) => format!(
                "{name} may still answer visitors: stop it, and try again in {} seconds",
                left.as_secs() + 1
            ),
            None => format!(
                "{name} may still answer visitors of sites whose policy is `available`: see to it \
                 that it is off, then `atoll node rm {name} --force`"
            ),
        };
        WireError::new(Code::Conflict, message)
    })
}

fn removes(op: &NodeOp) -> bool {
    matches!(op, NodeOp::Remove { .. } | NodeOp::RemoveGone { .. })
}

fn drains(op: &NodeOp) -> bool {
    matches!(op, NodeOp::Drain { .. } | NodeOp::Undrain { .. })
}

fn known(tx: &Transaction<'_>, node: NodeId) -> Apply<NodeInfo> {
    let Some(info) = nodes::get(tx, node)? else {
        let message = match duties::is_removed(tx, node)? {
            true => format!("node {node} was removed before"),
            false => format!("there is no node {node}: `atoll node ls` shows those there are"),
        };
        return Err(WireError::not_found(message).into());
    };
    Ok(info)
}

fn chunkserver(info: NodeInfo) -> Apply<NodeInfo> {
    if info.kind != NodeKind::Chunkserver {
        let message = format!(
            "{} is an edge: it keeps no chunks that could move; only chunkservers are replaced",
            info.name
        );
        return Err(WireError::invalid(message).into());
    }
    Ok(info)
}

fn set(tx: &mut Transaction<'_>, now: Now, node: NodeId, duty: Duty, returns_to: Option<Duty>) {
    if duty == Duty::Active {
        duties::clear(tx, node);
    } else {
        let record = DutyRecord::Serving { duty, since_ms: now.at_ms(), returns_to };
        duties::put(tx, node, record);
    }
}

/// Forgets a node. `abandon`: also while groups on the move may still be read from it.
fn remove(
    tx: &mut Transaction<'_>,
    now: Now,
    info: &NodeInfo,
    duty: Duty,
    abandon: bool,
) -> Apply<()> {
    let table = groups::table(tx)?;
    let (member, leaving) = table.groups_of(info.id);
    let name = &info.name;
    let refused = |message: String| Err(WireError::new(Code::Conflict, message).into());
    if member > 0 {
        let what = match duty {
            Duty::Active => format!("`atoll node drain {name} --wait` first"),
            Duty::Draining | Duty::Gone => {
                "wait until they have moved; `atoll status` says what keeps them".to_owned()
            }
        };
        return refused(format!("{name} keeps {member} placement groups: {what}"));
    }
    if leaving > 0 && !(abandon && duty == Duty::Gone) {
        return refused(format!(
            "{leaving} placement groups are still being filled and may need what {name} has: wait \
             until they have everything"
        ));
    }
    for (pg, nodes) in table.leaving.into_iter().filter(|(_, nodes)| nodes.contains(&info.id)) {
        let since = leaving::get(tx, pg)?.map_or(now.index, |before| before.since);
        let nodes = nodes.into_iter().filter(|node| *node != info.id).collect();
        leaving::put(tx, pg, &Leaving { nodes, since });
    }
    if leaving > 0 {
        counters::set(tx, Counter::Epoch, table.epoch.0 + 1);
    }
    nodes::remove(tx, info);
    duties::put(tx, info.id, DutyRecord::Removed { at_ms: now.at_ms() });
    Ok(())
}
