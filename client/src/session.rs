//! Sessions: requests have numbers, so that each is carried out once however often it is sent.
//!
//! A request that was never answered may have been carried out. Most callers need not care: what they
//! ask for may be asked for again. Whoever must not do a thing twice keeps the number open
//! ([`Undecided`]) and asks later what became of it ([`Cluster::settle`]).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_proto::master::{Change, Changed, MasterRequest, MasterResponse};
use atoll_proto::namespace::{NamespaceOp, NamespaceReply};
use atoll_proto::{Code, Retry, SessionId, limits};

use crate::{ClientError, Cluster};

/// An open session: hands out request numbers and knows which are answered.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    open: Mutex<Numbers>,
}

struct Numbers {
    next: u64,
    open: BTreeSet<u64>,
}

/// A number that is in use; dropping it frees the master of keeping its reply.
pub(crate) struct Open {
    session: Arc<Session>,
    pub(crate) number: u64,
}

/// A change that may have been made: its answer did not come. What became of it can be asked as long
/// as this lives, which keeps a number of the session (of which there are 1,024) in use.
pub struct Undecided {
    session: SessionId,
    number: u64,
    open: Option<Open>,
}

/// What became of an [`Undecided`] change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was made, with this answer.
    Made(NamespaceReply),
    /// It was not, and never will be.
    NotMade,
    /// The cluster cannot tell any more: the session is over.
    Unknown,
}

/// A change failed, or seems to have.
#[derive(Debug)]
pub struct Unsure {
    /// Why.
    pub error: ClientError,
    /// When it may have been made all the same.
    pub undecided: Option<Undecided>,
}

impl Session {
    pub(crate) fn new(id: SessionId) -> Session {
        Session { id, open: Mutex::new(Numbers { next: 1, open: BTreeSet::new() }) }
    }

    /// The next number, and the lowest one in use.
    pub(crate) fn begin(self: &Arc<Self>) -> (Open, u64) {
        let mut numbers = self.numbers();
        let number = numbers.next;
        numbers.next += 1;
        numbers.open.insert(number);
        let acked_below = numbers.open.first().copied().unwrap_or(number);
        (Open { session: self.clone(), number }, acked_below)
    }

    fn numbers(&self) -> std::sync::MutexGuard<'_, Numbers> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn acked_below(&self) -> u64 {
        self.session.numbers().open.first().copied().unwrap_or(self.number)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.session.numbers().open.remove(&self.number);
    }
}

impl Undecided {
    fn new(open: Open) -> Undecided {
        Undecided { session: open.session.id, number: open.number, open: Some(open) }
    }

    /// A change under this number of something that keeps no session here, as a cluster in memory.
    pub fn detached(session: SessionId, number: u64) -> Undecided {
        Undecided { session, number, open: None }
    }

    /// The number of the request.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl std::fmt::Debug for Undecided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "request {} of session {}", self.number, self.session)
    }
}

impl Cluster {
    /// A change of the namespace that must not be made a second time under another number.
    ///
    /// # Errors
    /// As [`Cluster::namespace`], with what to ask about when it may have been made all the same.
    pub async fn namespace_once(&self, op: NamespaceOp) -> Result<NamespaceReply, Unsure> {
        let sure = |error| Unsure { error, undecided: None };
        let (error, open) = match self.send_change(Change::Namespace(op)).await {
            Ok((_, Changed::Namespace(reply), _)) => return Ok(reply),
            Ok((_, Changed::Missing { ids }, open)) => (ClientError::Missing { ids }, open),
            Ok((.., open)) => (ClientError::unexpected("the master"), open),
            Err((error, Some(open))) => (error, open),
            Err((error, None)) => return Err(sure(error)),
        };
        // Only the log says these, and it says the same for ever.
        if matches!(error.code(), Some(Code::Conflict | Code::NotFound)) {
            return Err(sure(error));
        }
        let undecided = Undecided::new(open);
        // Whoever refuses may know nothing of an earlier attempt, but answers: so it is asked at once.
        let answers = matches!(error, ClientError::Refused(_) | ClientError::Missing { .. });
        match answers {
            true => match self.settle(&undecided).await {
                Ok(Verdict::Made(reply)) => Ok(reply),
                Ok(Verdict::NotMade) => Err(sure(error)),
                Ok(Verdict::Unknown) | Err(_) => Err(Unsure { error, undecided: Some(undecided) }),
            },
            false => Err(Unsure { error, undecided: Some(undecided) }),
        }
    }

    /// What became of a change. If it was not made so far it never will be.
    ///
    /// # Errors
    /// As [`Cluster::master`]: it is still not known.
    pub async fn settle(&self, undecided: &Undecided) -> Result<Verdict, ClientError> {
        let Undecided { session, number, open } = undecided;
        let acked_below = open.as_ref().map_or(*number, Open::acked_below);
        let request = MasterRequest::Change {
            session: *session,
            number: *number,
            acked_below,
            change: Change::Abandon,
        };
        match self.master(&request, limits::METADATA_DEADLINE).await {
            Ok(MasterResponse::Changed { reply, .. }) => match reply {
                Changed::Namespace(reply) => Ok(Verdict::Made(reply)),
                Changed::Abandoned => Ok(Verdict::NotMade),
                _ => Err(ClientError::unexpected("the master")),
            },
            Ok(_) => Err(ClientError::unexpected("the master")),
            Err(ClientError::Refused(error)) if error.retry == Retry::Never => {
                tracing::warn!(%error, ?undecided, "what became of a change cannot be found out");
                Ok(Verdict::Unknown)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_number_is_in_use_until_it_is_dropped() {
        let session = Arc::new(Session::new(SessionId(7)));
        let (one, acked) = session.begin();
        assert_eq!((one.number, acked), (1, 1));
        let undecided = Undecided::new(one);
        let (two, acked) = session.begin();
        assert_eq!((two.number, acked), (2, 1), "the first is still open");
        assert_eq!(undecided.open.as_ref().unwrap().acked_below(), 1);
        drop(undecided);
        assert_eq!(two.acked_below(), 2);
        drop(two);
        assert_eq!(session.begin().1, 3);
    }
}
