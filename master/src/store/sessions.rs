//! Families `Session` and `Reply`: what makes a repeated request harmless.

use atoll_proto::master::Changed;
use atoll_proto::{SessionId, WireError};
use serde::{Deserialize, Serialize};

use super::counters::{self, Counter};
use super::{Family, Order, Read, StoreError, Transaction, decode, u64_at};

/// Requests of a session that may be open at a time.
pub(crate) const WINDOW: u64 = 1024;

/// A client's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// For people: program, host, process.
    pub(crate) name: String,
    /// Who opened it: only the same principal may use it.
    pub(crate) owner: String,
    /// When it was last used, by the state's clock.
    pub(crate) used_ms: u64,
    /// Requests below this number are answered and their replies forgotten.
    pub(crate) acked_below: u64,
}

/// What a request was answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredReply {
    /// Log index of the change.
    pub(crate) index: u64,
    /// The answer.
    pub(crate) reply: Result<Changed, WireError>,
}

fn key(session: SessionId) -> Vec<u8> {
    Family::Session.key(&[&session.0.to_be_bytes()])
}

fn reply_key(session: SessionId, number: u64) -> Vec<u8> {
    Family::Reply.key(&[&session.0.to_be_bytes(), &number.to_be_bytes()])
}

pub(crate) fn get(read: &impl Read, session: SessionId) -> Result<Option<Session>, StoreError> {
    read.get_value(&key(session))
}

pub(crate) fn put(tx: &mut Transaction<'_>, id: SessionId, session: &Session) {
    tx.put_value(key(id), session);
}

/// Gives a new session its id.
pub(crate) fn insert(tx: &mut Transaction<'_>, session: &Session) -> Result<SessionId, StoreError> {
    let id = SessionId(counters::add(tx, Counter::LastSession, 1)?);
    put(tx, id, session);
    Ok(id)
}

pub(crate) fn reply(
    read: &impl Read,
    session: SessionId,
    number: u64,
) -> Result<Option<StoredReply>, StoreError> {
    read.get_value(&reply_key(session, number))
}

pub(crate) fn put_reply(
    tx: &mut Transaction<'_>,
    session: SessionId,
    number: u64,
    reply: &StoredReply,
) {
    tx.put_value(reply_key(session, number), reply);
}

/// Forgets the replies to requests in `from..below`.
pub(crate) fn forget_replies(
    tx: &mut Transaction<'_>,
    session: SessionId,
    from: u64,
    below: u64,
) -> Result<(), StoreError> {
    let mut old = Vec::new();
    let (from, to) = (reply_key(session, from), reply_key(session, below));
    tx.scan(&from, &to, Order::Ascending, &mut |key, _| {
        old.push(key.to_vec());
        Ok(true)
    })?;
    old.into_iter().for_each(|key| tx.delete(key));
    Ok(())
}

/// Up to `limit` sessions that were last used before `used_before_ms`, looking at sessions after
/// `after` only.
pub(crate) fn idle(
    read: &impl Read,
    used_before_ms: u64,
    limit: usize,
) -> Result<Vec<SessionId>, StoreError> {
    let (from, to) = Family::Session.prefix(&[]);
    let mut found = Vec::new();
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let session: Session = decode(key, value)?;
        if session.used_ms < used_before_ms {
            found.push(SessionId(u64_at(key, 1)?));
        }
        Ok(found.len() < limit)
    })?;
    Ok(found)
}

/// Forgets a session with its replies.
pub(crate) fn remove(tx: &mut Transaction<'_>, session: SessionId) -> Result<(), StoreError> {
    forget_replies(tx, session, 0, u64::MAX)?;
    tx.delete(reply_key(session, u64::MAX));
    tx.delete(key(session));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn sessions_and_replies_round_trip(
            name: String, used_ms in 1u64.., acked_below: u64,
            numbers in proptest::collection::btree_set(0u64..100, 1..10), below in 0u64..100,
        ) {
            let store = TestStore::new();
            let session = Session { name, owner: "token 1".into(), used_ms, acked_below };
            let stored = StoredReply { index: 9, reply: Err(WireError::invalid("no")) };
            let mut tx = Transaction::new(&store.rocks);
            let id = insert(&mut tx, &session).unwrap();
            let other = insert(&mut tx, &session).unwrap();
            for number in &numbers {
                put_reply(&mut tx, id, *number, &stored);
                put_reply(&mut tx, other, *number, &stored);
            }
            tx.commit().unwrap();
            prop_assert_eq!(get(&store.rocks, id).unwrap(), Some(session));
            let mut tx = Transaction::new(&store.rocks);
            forget_replies(&mut tx, id, 0, below).unwrap();
            for number in &numbers {
                let kept = (*number >= below).then(|| stored.clone());
                prop_assert_eq!(reply(&tx, id, *number).unwrap(), kept);
                prop_assert_eq!(reply(&tx, other, *number).unwrap(), Some(stored.clone()));
            }
            prop_assert_eq!(idle(&tx, used_ms, 9).unwrap(), vec![]);
            if used_ms < u64::MAX {
                prop_assert_eq!(idle(&tx, used_ms + 1, 9).unwrap(), vec![id, other]);
            }
            remove(&mut tx, id).unwrap();
            prop_assert_eq!(get(&tx, id).unwrap(), None);
        }
    }
}
