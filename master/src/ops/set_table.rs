//! SetTable: groups are dealt out, proposed by the placement task only.
//!
//! Only while no client has ever written may groups be dealt out anew; later a group may get more
//! members while it has fewer than it should. A group that is to lose a member moves, see
//! [`super::move_groups`].

use atoll_proto::ids::PG_COUNT;
use atoll_proto::{Code, Epoch, NodeId, PgId, WireError, limits};

use crate::operation::{Apply, Now, Outcome};
use crate::store::counters::{self, Counter};
use crate::store::{Read, StoreError, Transaction, groups, nodes, objects};

/// Whether no data can be anywhere yet: no chunk is known, and no session was ever opened under
/// which one could be on its way (its receipts would be for the old members).
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn may_deal_anew(read: &impl Read) -> Result<bool, StoreError> {
    Ok(objects::is_empty(read)? && counters::get(read, Counter::LastSession)? == 0)
}

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
    let empty = may_deal_anew(tx)?;
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
