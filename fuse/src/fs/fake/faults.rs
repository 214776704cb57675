//! Changes that are refused, or whose answers do not come.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use atoll_client::{ClientError, Undecided, Unsure, Verdict};
use atoll_proto::namespace::{NamespaceOp, NamespaceReply};
use atoll_proto::{Code, SessionId};

use super::{Fake, Store, refused};

/// What is lost of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It is not made.
    Request,
    /// It is made.
    Reply,
}

/// Faults on request.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// New contents are refused with this.
    pub(crate) writes: Mutex<Option<Code>>,
    /// What is lost of the next changes that must not be made twice.
    pub(crate) lose: Mutex<VecDeque<Lost>>,
    /// Nobody says what became of a change.
    pub(crate) silent: AtomicBool,
    /// Nobody remembers what became of a change.
    pub(crate) forgetful: AtomicBool,
    /// The next name that is looked up is removed before.
    pub(crate) vanishes: AtomicBool,
    number: AtomicU64,
    made: Mutex<HashMap<u64, NamespaceReply>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_answer() -> ClientError {
    ClientError::Deadline { what: "the fake".to_owned(), after: Duration::ZERO }
}

impl Faults {
    pub(super) fn refuse_write(&self) -> Result<(), ClientError> {
        lock(&self.writes).map_or(Ok(()), |code| Err(refused(code)))
    }

    pub(super) fn settle(&self, undecided: &Undecided) -> Result<Verdict, ClientError> {
        if self.silent.load(Ordering::Relaxed) {
            return Err(no_answer());
        }
        if self.forgetful.load(Ordering::Relaxed) {
            return Ok(Verdict::Unknown);
        }
        let made = lock(&self.made).get(&undecided.number()).cloned();
        Ok(made.map_or(Verdict::NotMade, Verdict::Made))
    }
}

impl Fake {
    pub(super) async fn numbered(
        self: &std::sync::Arc<Self>,
        op: NamespaceOp,
    ) -> Result<NamespaceReply, Unsure> {
        let number = self.faults.number.fetch_add(1, Ordering::Relaxed);
        let undecided = || Some(Undecided::detached(SessionId(1), number));
        let lost = lock(&self.faults.lose).pop_front();
        if lost == Some(Lost::Request) {
            return Err(Unsure { error: no_answer(), undecided: undecided() });
        }
        match self.change(op).await {
            Ok(reply) => {
                lock(&self.faults.made).insert(number, reply.clone());
                match lost {
                    Some(_) => Err(Unsure { error: no_answer(), undecided: undecided() }),
                    None => Ok(reply),
                }
            }
            Err(error) => Err(Unsure { error, undecided: None }),
        }
    }
}
