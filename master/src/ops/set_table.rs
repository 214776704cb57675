//! SetTable: new members of placement groups, proposed by the placement task only.
//!
//! Data is never moved here: a group keeps the members it has and may get more while it has fewer
//! than it should. Only while the cluster holds no chunk at all may groups be dealt out anew.
//! Moves (write to new, read from either, drop after comparing) are not built yet.

use atoll_proto::ids::PG_COUNT;
use atoll_proto::{Code, Epoch, NodeId, PgId, WireError, limits};

use crate::operation::{Apply, Now, Outcome};
use crate::store::counters::{self, Counter};
use crate::store::{Transaction, groups, nodes, objects};

pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    now: Now,
    base: Epoch,
    changes: Vec<(PgId, Vec<NodeId>)>,
) -> Apply<Outcome> {
    let epoch = groups::epoch(tx)?;
    if epoch != base {
        let message = format!("the placement table is at epoch {epoch}, not {base}");
        return Err(WireError::new(Code::StaleEpoch, message).into());
    }
    let empty = objects::is_empty(tx)?;
    for (pg, members) in &changes {
        let before = groups::get(tx, *pg)?;
        let grows = before.len() < limits::REPLICAS && members.starts_with(&before);
        if pg.0 >= PG_COUNT || !(empty || grows) {
            let message = format!("placement group {} would lose a member with data", pg.0);
            return Err(WireError::invalid(message).into());
        }
        for member in members {
            if nodes::get(tx, *member)?.is_none() {
                let message = format!("node {member} is not registered");
                return Err(WireError::not_found(message).into());
            }
        }
    }
    for (pg, members) in &changes {
        groups::put(tx, *pg, members);
    }
    if !changes.is_empty() {
        counters::set(tx, Counter::Epoch, epoch.0 + 1);
        counters::set(tx, Counter::ViewChanged, now.index);
    }
    Ok(Outcome::Done)
}
