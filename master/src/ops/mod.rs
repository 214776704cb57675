//! The operations: one request, one file. Each file has what the leader does with the request
//! (check, read other nodes, propose, answer) and, for changes, what the state machine does when
//! the operation is applied.
//!
//! Applying ([`apply`]) is deterministic: no clock, no randomness, no other node. All of that
//! happens on the leader, before an operation is proposed.

pub(crate) mod admit;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod change;
pub(crate) mod cluster;
pub(crate) mod collect;
pub(crate) mod deltas;
pub(crate) mod deploys;
pub(crate) mod enrol;
pub(crate) mod erased;
pub(crate) mod farewell;
pub(crate) mod greet;
pub(crate) mod heartbeat;
pub(crate) mod known;
pub(crate) mod masters;
#[cfg(test)]
mod membership_tests;
pub(crate) mod move_groups;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod numbered;
pub(crate) mod objects;
pub(crate) mod open_session;
pub(crate) mod query;
pub(crate) mod register;
pub(crate) mod relay;
pub(crate) mod renew;
pub(crate) mod seal;
pub(crate) mod set_table;
pub(crate) mod site;
pub(crate) mod sites;
pub(crate) mod status;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tokens;
pub(crate) mod upkeep;
pub(crate) mod wait_applied;
pub(crate) mod walk;
pub(crate) mod watch;

use atoll_proto::master::{Grant, Verb};
use bytes::Bytes;

use crate::operation::{Apply, Failure, Now, OpReply, Operation, Outcome};
use crate::store::counters::{self, Counter};
use crate::store::meta::ClusterRecord;
use crate::store::{FORMAT_VERSION, StoreError, Transaction, meta};

/// Applies one encoded operation. A refused operation changes nothing but what it must remember
/// to answer a repeat.
///
/// # Errors
/// Only when the disk fails or the log holds something this build does not understand: the master
/// must stop, because going on would let the masters' states drift apart.
pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    now: Now,
    operation: &Bytes,
) -> Result<OpReply, StoreError> {
    let operation = atoll_proto::decode(operation).map_err(|error| {
        let reason = format!("{error}; was it written by a newer version?");
        StoreError::Io { verb: "apply an operation of the log", reason }
    })?;
    tx.savepoint();
    match carry_out(tx, now, operation) {
        Ok(outcome) => Ok(Ok(outcome)),
        Err(Failure::Store(error)) => Err(error),
        Err(Failure::Refused(error)) => {
            tx.rollback();
            Ok(Err(error))
        }
        Err(Failure::Missing(ids)) => {
            tx.rollback();
            let reply = atoll_proto::master::Changed::Missing { ids };
            Ok(Ok(Outcome::Changed { index: now.index, reply }))
        }
    }
}

fn carry_out(tx: &mut Transaction<'_>, now: Now, operation: Operation) -> Apply<Outcome> {
    match operation {
        Operation::Init { cluster, receipt_key, chunk_bytes, bootstrap_token } => {
            if meta::cluster(tx)?.is_some() {
                return Ok(Outcome::Done);
            }
            let record =
                ClusterRecord { cluster, format: FORMAT_VERSION, receipt_key, chunk_bytes };
            meta::set_cluster(tx, &record);
            namespace::init(tx, now)?;
            if let Some(hash) = bootstrap_token {
                let verbs = vec![Verb::Read, Verb::Write, Verb::Deploy, Verb::Admin];
                let name = "bootstrap".to_owned();
                let grant = Grant { name, verbs, site: None, expires_ms: None };
                tokens::create(tx, now, &hash, grant)?;
            }
            counters::set(tx, Counter::ViewChanged, now.index);
            Ok(Outcome::Done)
        }
        Operation::OpenSession { name, owner } => open_session::apply(tx, now, name, owner),
        Operation::ExpireSessions => {
            numbered::expire(tx, now)?;
            Ok(Outcome::Done)
        }
        Operation::Numbered { session, number, acked_below, change } => {
            numbered::apply(tx, now, session, number, acked_below, change)
        }
        Operation::AdmitPart(admission) => {
            admit::apply(tx, now, &admission)?;
            Ok(Outcome::Done)
        }
        Operation::RegisterNode(info) => register::apply(tx, now, info),
        Operation::SetTable { base, changes } => set_table::apply(tx, now, base, changes),
        Operation::Collect { objects } => collect::apply(tx, now, &objects),
        Operation::FixRefs { index, fixes, complete } => {
            audit::apply(tx, now, index, &fixes, complete)
        }
        Operation::ExpireDeltas => {
            deltas::expire(tx)?;
            Ok(Outcome::Done)
        }
        Operation::MoveGroups { base, finished, moved } => {
            move_groups::apply(tx, now, base, finished, moved)
        }
        Operation::SetDuty { node, from, to } => node::set_duty(tx, now, node, from, to),
        Operation::ExpireAliases => {
            site::expire(tx, now)?;
            Ok(Outcome::Done)
        }
        Operation::AdmitMasters { masters } => masters::admit(tx, &masters),
        Operation::RetireMaster { id } => masters::retire_now(tx, now, id),
    }
}
