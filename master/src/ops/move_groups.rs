//! MoveGroups: groups get other members, and old members leave once the new ones have everything.
//! Proposed by the placement task only.
//!
//! What keeps data safe is checked here, whatever the leader worked out: a group never loses all
//! the members it had in one step (unless an operator gave up every one of them), who is no member any more stays to be read from until the move
//! is finished, and a move that was worked out from another table is void.

use std::collections::HashSet;

use atoll_proto::cluster::{Duty, NodeKind};
use atoll_proto::ids::PG_COUNT;
use atoll_proto::{Code, Epoch, NodeId, PgId, WireError, limits};

use crate::operation::{Apply, Now, Outcome};
use crate::store::counters::{self, Counter};
use crate::store::leaving::{self, Leaving};
use crate::store::{Transaction, duties, groups, nodes};

/// Most old members one group waits for. Only a chain of losses gets near it.
pub(crate) const LEAVING_MAX: usize = 8;

pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    now: Now,
    base: Epoch,
    finished: Vec<(PgId, Vec<NodeId>)>,
    moved: Vec<(PgId, Vec<NodeId>)>,
) -> Apply<Outcome> {
    let epoch = groups::epoch(tx)?;
    if epoch != base {
        let message = format!("the placement table is at epoch {epoch}, not {base}");
        return Err(WireError::new(Code::StaleEpoch, message).into());
    }
    let mut seen = HashSet::new();
    for (pg, members) in finished.iter().chain(&moved) {
        if pg.0 >= PG_COUNT || !seen.insert(*pg) {
            return refused(*pg, "is none, or is named twice");
        }
        let distinct: HashSet<&NodeId> = members.iter().collect();
        if distinct.len() != members.len() {
            return refused(*pg, "would have a member twice");
        }
    }
    for (pg, members) in &finished {
        finish(tx, *pg, members)?;
    }
    for (pg, members) in &moved {
        start(tx, now, *pg, members)?;
    }
    if !seen.is_empty() {
        counters::set(tx, Counter::Epoch, epoch.0 + 1);
        counters::set(tx, Counter::ViewChanged, now.index);
    }
    Ok(Outcome::Done)
}

fn refused<T>(pg: PgId, why: &str) -> Apply<T> {
    Err(WireError::invalid(format!("placement group {} {why}", pg.0)).into())
}

/// The old members leave; the others may change their order.
fn finish(tx: &mut Transaction<'_>, pg: PgId, members: &Vec<NodeId>) -> Apply<()> {
    let before = groups::get(tx, pg)?;
    if leaving::get(tx, pg)?.is_none() {
        return refused(pg, "does not move");
    }
    if before.len() != members.len() || !members.iter().all(|member| before.contains(member)) {
        return refused(pg, "has other members than those that were waited for");
    }
    groups::put(tx, pg, members);
    leaving::put(tx, pg, &Leaving { nodes: Vec::new(), since: 0 });
    Ok(())
}

/// Whether an operator gave up all of these: then what they had is lost to the cluster, and
/// others take over, so that it can be written again.
fn all_given_up(tx: &Transaction<'_>, members: &[NodeId]) -> Apply<bool> {
    for member in members {
        let record = duties::get(tx, *member)?;
        let gone = record.as_ref().is_some_and(|record| record.duty() == Duty::Gone);
        if !gone || record.is_some_and(|record| record.returns_to().is_some()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn start(tx: &mut Transaction<'_>, now: Now, pg: PgId, members: &Vec<NodeId>) -> Apply<()> {
    let before = groups::get(tx, pg)?;
    let kept: Vec<NodeId> =
        before.iter().copied().filter(|member| members.contains(member)).collect();
    if members.is_empty() || members.len() > limits::REPLICAS.max(before.len()) {
        return refused(pg, "would have too few members or too many");
    }
    if members.len() < before.len() {
        return refused(pg, "would have fewer members than before");
    }
    if kept.is_empty() && !before.is_empty() && !all_given_up(tx, &before)? {
        return refused(pg, "would lose all the members it has at once");
    }
    if !members.starts_with(&kept) {
        return refused(pg, "would be read first where its chunks are not yet");
    }
    for member in members.iter().filter(|member| !before.contains(member)) {
        let Some(info) = nodes::get(tx, *member)? else {
            let message = format!("node {member} is not registered");
            return Err(WireError::not_found(message).into());
        };
        if info.kind != NodeKind::Chunkserver || duties::duty(tx, *member)? != Duty::Active {
            return refused(pg, &format!("cannot go to {}, which takes none", info.name));
        }
    }
    let moving = leaving::get(tx, pg)?;
    let mut old = moving.map(|moving| moving.nodes).unwrap_or_default();
    let was_moving = !old.is_empty();
    for member in before.iter().filter(|member| !members.contains(member)) {
        // One move at a time; only what is gone for good cannot wait for the end of another.
        if was_moving && duties::duty(tx, *member)? != Duty::Gone {
            return refused(pg, "moves already");
        }
        old.push(*member);
    }
    old.retain(|node| !members.contains(node));
    if old.len() > LEAVING_MAX {
        return refused(pg, "waits for too many old members");
    }
    groups::put(tx, pg, members);
    leaving::put(tx, pg, &Leaving { nodes: old, since: now.index });
    Ok(())
}
