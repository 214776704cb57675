//! Asking the masters: finds the one that leads, remembers it, and bounds how long that takes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use atoll_net::{CallError, CallOptions, Endpoint, Role};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{Code, Retry};
use bytes::Bytes;

/// The masters as the configuration names them.
pub(crate) struct Masters {
    endpoint: Endpoint,
    addrs: Vec<SocketAddr>,
    /// Index of the one that answered last.
    preferred: AtomicUsize,
}

impl Masters {
    pub(crate) fn new(endpoint: Endpoint, addrs: Vec<SocketAddr>) -> Self {
        Self { endpoint, addrs, preferred: AtomicUsize::new(0) }
    }

    /// Asks each master at most once, the one that answered last first, for at most `each`. All
    /// requests of a chunkserver may be repeated, so that a lost answer is no harm.
    pub(crate) async fn ask(
        &self,
        request: &MasterRequest,
        each: Duration,
    ) -> Result<MasterResponse, CallError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut outcome = None;
        for step in 0..self.addrs.len() {
            let at = (first + step) % self.addrs.len();
            let answer: Result<(MasterResponse, Bytes), CallError> = self
                .endpoint
                .call(self.addrs[at], Role::Master, request, Vec::new(), CallOptions::within(each))
                .await;
            match answer {
                Ok((response, _)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(error) if error.retry() == Retry::Never => return Err(error),
                // The first failure that says more than "not me" is the one to report.
                Err(error) if outcome.is_none() || !is_not_leader(&error) => outcome = Some(error),
                Err(_) => {}
            }
        }
        Err(outcome.expect("the configuration names at least one master"))
    }

    /// The master that answered last is not to be believed: the next question goes to another.
    pub(crate) fn distrust(&self) {
        let next = (self.preferred.load(Ordering::Relaxed) + 1) % self.addrs.len();
        self.preferred.store(next, Ordering::Relaxed);
    }
}

fn is_not_leader(error: &CallError) -> bool {
    matches!(error, CallError::Refused(refusal) if refusal.code == Code::NotLeader)
}
