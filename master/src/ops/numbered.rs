//! Exactly once: applying the numbered requests of sessions.
//!
//! The state keeps each reply until the client says that it has it. A repeat, on whichever master
//! and after whatever failover, gets the stored reply and changes nothing.

use atoll_proto::master::Changed;
use atoll_proto::{Code, SessionId, WireError, limits};

use super::{admit, namespace, node, site, tokens, upkeep};
use crate::operation::{Apply, Failure, LoggedChange, Now, Outcome};
use crate::store::sessions::{self, Session, StoredReply, WINDOW};
use crate::store::{Read, StoreError, Transaction};

/// The error for a session that expired or never was.
pub(crate) fn unknown_session() -> WireError {
    WireError::not_found("session unknown: open a new one")
}

/// The reply to a repeated request, when there is one.
///
/// # Errors
/// When the number cannot be used.
pub(crate) fn repeated(
    read: &impl Read,
    id: SessionId,
    session: &Session,
    number: u64,
    acked_below: u64,
) -> Apply<Option<StoredReply>> {
    if number < session.acked_below {
        let message = format!(
            "request {number} of session {id} was acknowledged and its reply is forgotten: it \
             must not be sent again"
        );
        return Err(WireError::invalid(message).into());
    }
    if let Some(stored) = sessions::reply(read, id, number)? {
        return Ok(Some(stored));
    }
    let from = session.acked_below.max(acked_below);
    if number >= from.saturating_add(WINDOW) {
        let message = format!(
            "session {id} has {WINDOW} requests open, which is the most: wait for answers first"
        );
        return Err(WireError::new(Code::Limit, message).into());
    }
    if acked_below > number {
        let message = format!("request {number} acknowledges itself (all below {acked_below})");
        return Err(WireError::invalid(message).into());
    }
    Ok(None)
}

/// Applies a request of a session, or gives the reply it got before.
pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    now: Now,
    id: SessionId,
    number: u64,
    acked_below: u64,
    change: LoggedChange,
) -> Apply<Outcome> {
    let mut session = sessions::get(tx, id)?.ok_or_else(unknown_session)?;
    if let Some(stored) = repeated(tx, id, &session, number, acked_below)? {
        let abandons = matches!(change, LoggedChange::Abandon);
        return outcome(if abandons { abandoned(stored) } else { stored });
    }
    if acked_below > session.acked_below {
        sessions::forget_replies(tx, id, session.acked_below, acked_below)?;
        session.acked_below = acked_below;
    }
    session.used_ms = now.at_ms();
    sessions::put(tx, id, &session);

    // What was done for the session stays even when the change is refused.
    tx.savepoint();
    let reply = match carry_out(tx, now, change) {
        Ok(changed) => Ok(changed),
        Err(Failure::Store(error)) => return Err(error.into()),
        Err(Failure::Missing(ids)) => {
            tx.rollback();
            Ok(Changed::Missing { ids })
        }
        Err(Failure::Refused(error)) => {
            tx.rollback();
            Err(error)
        }
    };
    let stored = StoredReply { index: now.index, reply };
    sessions::put_reply(tx, id, number, &stored);
    tx.savepoint();
    outcome(stored)
}

/// The answer to whoever gives a request up that was answered like this.
pub(crate) fn abandoned(stored: StoredReply) -> StoredReply {
    let StoredReply { index, reply } = stored;
    let reply = match reply {
        // Neither changed anything.
        Ok(Changed::Missing { .. }) | Err(_) => Ok(Changed::Abandoned),
        changed => changed,
    };
    StoredReply { index, reply }
}

fn outcome(stored: StoredReply) -> Apply<Outcome> {
    let StoredReply { index, reply } = stored;
    Ok(Outcome::Changed { index, reply: reply? })
}

fn carry_out(tx: &mut Transaction<'_>, now: Now, change: LoggedChange) -> Apply<Changed> {
    match change {
        LoggedChange::Namespace { op, covered } => {
            namespace::apply(tx, now, op, &covered).map(Changed::Namespace)
        }
        LoggedChange::Site { op, root } => site::apply(tx, now, op, root).map(Changed::Site),
        LoggedChange::Admit(admission) => {
            admit::apply(tx, now, &admission)?;
            Ok(Changed::Admitted)
        }
        LoggedChange::TokenCreate { hash, grant } => tokens::create(tx, now, &hash, grant),
        LoggedChange::TokenRemove { id } => tokens::remove(tx, id),
        LoggedChange::Upkeep(op) => upkeep::apply(tx, &op),
        LoggedChange::Node(op) => node::apply(tx, now, op),
        LoggedChange::Seal(seal) => site::seal(tx, now, seal).map(Changed::Site),
        LoggedChange::Abandon => Ok(Changed::Abandoned),
    }
}

/// Forgets sessions that were not used for long; some of them, if there are very many.
pub(crate) fn expire(tx: &mut Transaction<'_>, now: Now) -> Result<(), StoreError> {
    const AT_ONCE: usize = 256;
    let lifetime = u64::try_from(limits::SESSION_LIFETIME.as_millis()).unwrap_or(u64::MAX);
    let before = now.at_ms().saturating_sub(lifetime);
    for id in sessions::idle(tx, before, AT_ONCE)? {
        sessions::remove(tx, id)?;
    }
    Ok(())
}
