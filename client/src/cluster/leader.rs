//! Which master leads: asked, remembered, and looked for again when it says nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_net::call::CallError;
use atoll_net::identity::Role;
use atoll_net::retry::Backoff;
use atoll_proto::master::{Change, MasterRequest, MasterResponse};
use atoll_proto::{Code, Retry};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::Cluster;
use crate::ClientError;

/// How long one attempt at one master may take when there are others to try.
const ATTEMPT: Duration = Duration::from_secs(4);
/// A master that says nothing for so long is not given up, but others are asked as well.
const SILENCE: Duration = Duration::from_millis(300);
/// How long an attempt at the renewal of a lease may take.
const RENEW_ATTEMPT: Duration = Duration::from_secs(1);

impl Cluster {
    /// Asks until one answers. `open` becomes true when, beside what is returned, some master may have
    /// carried the request out, or may yet.
    pub(super) async fn ask_masters(
        &self,
        request: &MasterRequest,
        deadline: Duration,
        open: &mut bool,
    ) -> Result<(MasterResponse, Bytes), ClientError> {
        let until = Instant::now() + deadline;
        let backoff = Backoff {
            base: Duration::from_millis(10),
            max: Duration::from_millis(400),
            factor: 2.0,
        };
        let mut attempt = 0;
        loop {
            let turn = self.inner.leader.load(Ordering::Relaxed);
            let error = match Box::pin(self.ask_around(turn, request, until, open)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if is_final(&error) {
                return Err(ClientError::from_call("the master", error));
            }
            let stay =
                matches!(&error, CallError::Refused(refusal) if refusal.retry == Retry::Same);
            if !stay {
                // Others may have turned to the next one meanwhile: it is not passed over.
                let (now, next) = (Ordering::Relaxed, turn.wrapping_add(1));
                self.inner.leader.compare_exchange(turn, next, now, now).ok();
            }
            let pause = backoff.delay(attempt, rand::random::<f64>());
            attempt += 1;
            if Instant::now() + pause >= until {
                return Err(match error {
                    CallError::Deadline { .. } => {
                        ClientError::Deadline { what: "the master".to_owned(), after: deadline }
                    }
                    other => ClientError::from_call("the master", other),
                });
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks the master in turn and, while it says nothing, the others one after the other as well:
    /// one that was killed, frozen or cut off says nothing at all, and meanwhile another may lead.
    /// No change is made twice by this, since changes are numbered.
    async fn ask_around(
        &self,
        turn: usize,
        request: &MasterRequest,
        until: Instant,
        open: &mut bool,
    ) -> Result<(MasterResponse, Bytes), CallError> {
        let count = self.inner.masters.len();
        if count < 2 || waits(request) {
            let answer = self.ask_one_master(turn, request, until).await;
            *open |= answer.as_ref().is_err_and(may_be_done);
            return answer;
        }
        let ask = |at: usize| async move { (at, self.ask_one_master(at, request, until).await) };
        let mut asked = FuturesUnordered::new();
        let mut silent: BTreeSet<usize> = BTreeSet::from([turn % count]);
        asked.push(ask(turn));
        let mut last = turn;
        loop {
            let more = silent.len() < count;
            let answered = tokio::select! {
                biased;
                Some(answered) = asked.next() => Some(answered),
                () = tokio::time::sleep(SILENCE), if more => None,
            };
            let Some((at, answer)) = answered else {
                while silent.contains(&(last % count)) {
                    last = last.wrapping_add(1);
                }
                silent.insert(last % count);
                asked.push(ask(last));
                continue;
            };
            silent.remove(&(at % count));
            // Whoever is still silent may be doing it.
            *open |= answer.as_ref().is_err_and(may_be_done) || !asked.is_empty();
            match answer {
                Ok(answer) => {
                    let now = Ordering::Relaxed;
                    self.inner.leader.compare_exchange(turn, at, now, now).ok();
                    return Ok(answer);
                }
                Err(error) if is_final(&error) || asked.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
    }

    async fn ask_one_master(
        &self,
        turn: usize,
        request: &MasterRequest,
        until: Instant,
    ) -> Result<(MasterResponse, Bytes), CallError> {
        let turn = turn % self.inner.masters.len().max(1);
        let Some(addr) = self.inner.masters.get(turn).copied() else {
            return Err(CallError::Unreachable {
                addr: SocketAddr::from(([0, 0, 0, 0], 0)),
                reason: "no master is configured".to_owned(),
            });
        };
        let left = until.saturating_duration_since(Instant::now());
        // Long polls wait at one master; short questions leave time to try another.
        let patience = match request {
            _ if waits(request) || self.inner.masters.len() == 1 => left,
            // The master reads pages first; whether it is still there, others are asked meanwhile.
            MasterRequest::Change { change: Change::Admit { .. }, .. }
            | MasterRequest::ChangeMasters(_) => left,
            // Its whole deadline is short: a lease must outlast a master that does not answer.
            MasterRequest::Renew { .. } => left.min(RENEW_ATTEMPT),
            _ => left.min(ATTEMPT),
        };
        self.inner
            .endpoint
            .call(addr, Role::Master, request, Vec::new(), self.options(patience))
            .await
    }
}

/// Whether a request may wait at one master for as long as it takes.
fn waits(request: &MasterRequest) -> bool {
    matches!(
        request,
        MasterRequest::Watch { .. }
            | MasterRequest::WaitApplied { .. }
            | MasterRequest::WaitPublished { .. }
            | MasterRequest::Deltas { .. }
            | MasterRequest::Backup(_)
    )
}

/// Whether a master that failed so may have carried the request out, or may still do it.
fn may_be_done(error: &CallError) -> bool {
    match error {
        CallError::Refused(refusal) => {
            refusal.retry != Retry::Never && refusal.code != Code::NotLeader
        }
        CallError::Unreachable { .. } => false,
        CallError::Lost { .. } | CallError::Deadline { .. } | CallError::Malformed { .. } => true,
    }
}

/// Whether asking again, here or elsewhere, would give the same.
fn is_final(error: &CallError) -> bool {
    match error {
        CallError::Refused(refusal) => refusal.retry == Retry::Never,
        CallError::Malformed { .. } => true,
        CallError::Unreachable { .. } | CallError::Lost { .. } | CallError::Deadline { .. } => {
            false
        }
    }
}
