//! Asking the masters: finds the one that leads, remembers it, and bounds how long that takes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_net::{CallError, CallOptions, Endpoint, KnownMasters, Role};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{Code, Retry};
use bytes::Bytes;

/// How long the question which masters there are may take.
const LEARN_DEADLINE: Duration = Duration::from_secs(1);

/// The masters as the configuration names them, and as they name themselves.
pub(crate) struct Masters {
    endpoint: Endpoint,
    known: Arc<KnownMasters>,
    /// The one that answered last.
    preferred: Mutex<Option<SocketAddr>>,
}

impl Masters {
    /// Those of the configuration and, if it was written for them, of this file.
    pub(crate) fn new(endpoint: Endpoint, addrs: Vec<SocketAddr>, file: Option<PathBuf>) -> Self {
        let known = KnownMasters::new(endpoint.identity_peer().cluster, addrs, file);
        Self { endpoint, known: Arc::new(known), preferred: Mutex::new(None) }
    }

    /// Asks each master at most once, the one that answered last first, for at most `each`. All
    /// requests of a chunkserver may be repeated, so that a lost answer is no harm.
    pub(crate) async fn ask(
        &self,
        request: &MasterRequest,
        each: Duration,
    ) -> Result<MasterResponse, CallError> {
        let all = self.known.all();
        let preferred = *self.preferred();
        let first = all.iter().position(|addr| Some(*addr) == preferred).unwrap_or(0);
        let mut outcome = None;
        for step in 0..all.len() {
            let addr = all[(first + step) % all.len()];
            let answer: Result<(MasterResponse, Bytes), CallError> = self
                .endpoint
                .call(addr, Role::Master, request, Vec::new(), CallOptions::within(each))
                .await;
            match answer {
                Ok((response, _)) => {
                    *self.preferred() = Some(addr);
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

    /// Masters come and go: asks for all of them, if it is time.
    pub(crate) async fn learn_now_and_then(&self) {
        if !self.known.is_due() {
            return;
        }
        match self.ask(&MasterRequest::Masters, LEARN_DEADLINE).await {
            Ok(MasterResponse::Masters(masters)) => {
                self.known.learn(&masters).await;
            }
            Ok(_) => tracing::debug!("a master answered with the wrong kind of message"),
            Err(error) => tracing::debug!(%error, "cannot learn which masters there are"),
        }
    }

    /// The master that answered last is not to be believed: the next question goes to another.
    pub(crate) fn distrust(&self) {
        let all = self.known.all();
        let mut preferred = self.preferred();
        let at = all.iter().position(|addr| Some(*addr) == *preferred).unwrap_or(0);
        *preferred = all.get((at + 1) % all.len().max(1)).copied();
    }

    fn preferred(&self) -> std::sync::MutexGuard<'_, Option<SocketAddr>> {
        self.preferred.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_not_leader(error: &CallError) -> bool {
    matches!(error, CallError::Refused(refusal) if refusal.code == Code::NotLeader)
}
