//! Which master leads: asked, remembered, and looked for again when it says nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
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
/// While one is silent, one request of a process looks so often whether another leads by now.
const LOOK: Duration = Duration::from_millis(50);
/// How long one look may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// How many requests may look at once; all others hear of what it finds.
pub(super) const LOOKING_MAX: usize = 1;
/// How often one that asks nothing looks whether it is time to learn which masters there are.
const IDLE_LOOK: Duration = Duration::from_secs(1);
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
            max: Duration::from_millis(200),
            factor: 2.0,
        };
        let mut attempt = 0;
        loop {
            let turn = *self.inner.leader.borrow();
            let error = match Box::pin(self.ask_around(turn, request, until, open)).await {
                Ok(answer) => {
                    self.learn_now_and_then();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if is_final(&error) {
                return Err(ClientError::from_call("the master", error));
            }
            let stay =
                matches!(&error, CallError::Refused(refusal) if refusal.retry == Retry::Same);
            if !stay {
                // Others may have turned to the next one meanwhile: it is not passed over.
                self.turn_to(turn, turn.wrapping_add(1));
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
        let masters = self.inner.masters.all();
        let count = masters.len();
        if count < 2 || waits(request) {
            let answer = self.ask_one_master(&masters, turn, request, until).await;
            *open |= answer.as_ref().is_err_and(may_be_done);
            return answer;
        }
        let all = &*masters;
        let ask =
            |at: usize| async move { (at, self.ask_one_master(all, at, request, until).await) };
        let look = |at: usize| async move { (at, self.leads(all, at).await) };
        let (mut asked, mut looks) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut silent: BTreeSet<usize> = BTreeSet::from([turn % count]);
        let mut looked_at: BTreeSet<usize> = BTreeSet::new();
        asked.push(ask(turn));
        let (mut last, mut last_look) = (turn, turn);
        let mut next_ask = Instant::now() + SILENCE;
        let mut next_look = next_ask;
        let mut looking = None;
        let mut found = self.inner.leader.subscribe();
        loop {
            let others = silent.len() < count;
            let event = tokio::select! {
                biased;
                Some((at, answer)) = asked.next() => Event::Answered(at, answer),
                Some((at, leads)) = looks.next() => Event::Looked(at, leads),
                Ok(()) = found.changed() => Event::Leads(*found.borrow_and_update()),
                () = tokio::time::sleep_until(next_ask), if others => Event::Silence,
                () = tokio::time::sleep_until(next_look), if others && looking.is_some() => {
                    Event::Look
                }
            };
            let (at, answer) = match event {
                Event::Answered(at, answer) => (at, answer),
                Event::Looked(at, leads) => {
                    looked_at.remove(&(at % count));
                    if leads {
                        self.turn_to(turn, at);
                    }
                    continue;
                }
                Event::Leads(at) => {
                    if silent.insert(at % count) {
                        asked.push(ask(at));
                    }
                    continue;
                }
                Event::Silence => {
                    next_ask = Instant::now() + SILENCE;
                    looking = looking.or_else(|| self.inner.looking.try_acquire().ok());
                    // In turn: who said that others lead is not asked again before those are.
                    last = next_but(last, count, &silent);
                    silent.insert(last % count);
                    asked.push(ask(last));
                    continue;
                }
                Event::Look => {
                    next_look = Instant::now() + LOOK;
                    let busy = silent.union(&looked_at).copied().collect::<BTreeSet<usize>>();
                    if busy.len() < count {
                        last_look = next_but(last_look, count, &busy);
                        looked_at.insert(last_look % count);
                        looks.push(look(last_look));
                    }
                    continue;
                }
            };
            silent.remove(&(at % count));
            // Whoever is still silent may be doing it.
            *open |= answer.as_ref().is_err_and(may_be_done) || !asked.is_empty();
            match answer {
                Ok(answer) => {
                    self.turn_to(turn, at);
                    return Ok(answer);
                }
                Err(error) if is_final(&error) || asked.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Whether this master says that it leads.
    async fn leads(&self, masters: &[SocketAddr], turn: usize) -> bool {
        let until = Instant::now() + LOOK_PATIENCE;
        self.ask_one_master(masters, turn, &MasterRequest::Masters, until).await.is_ok()
    }

    async fn ask_one_master(
        &self,
        masters: &[SocketAddr],
        turn: usize,
        request: &MasterRequest,
        until: Instant,
    ) -> Result<(MasterResponse, Bytes), CallError> {
        let turn = turn % masters.len().max(1);
        let Some(addr) = masters.get(turn).copied() else {
            return Err(CallError::Unreachable {
                addr: SocketAddr::from(([0, 0, 0, 0], 0)),
                reason: "no master is configured".to_owned(),
            });
        };
        let left = until.saturating_duration_since(Instant::now());
        // Long polls wait at one master; short questions leave time to try another.
        let patience = match request {
            _ if waits(request) || masters.len() == 1 => left,
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

    /// The master in turn is asked first from now on, unless that was settled otherwise meanwhile.
    fn turn_to(&self, before: usize, next: usize) {
        self.inner.leader.send_if_modified(|turn| {
            let settled = *turn != before || before == next;
            if !settled {
                *turn = next;
            }
            !settled
        });
    }

    /// Masters come and go: whoever leads is asked for all of them, beside what is asked anyway.
    fn learn_now_and_then(&self) {
        if !self.inner.masters.is_due() {
            return;
        }
        let cluster = self.clone();
        drop(atoll_net::task::spawn("client-masters", async move {
            if let Err(error) = cluster.learn_masters().await {
                tracing::debug!(%error, "cannot learn which masters there are");
            }
        }));
    }

    /// The same for one that may ask nothing for long, as a mount that nobody uses; ends with the last
    /// handle.
    pub(super) fn learn_when_idle(&self) {
        let inner = Arc::downgrade(&self.inner);
        drop(atoll_net::task::spawn("client-masters-idle", async move {
            loop {
                tokio::time::sleep(IDLE_LOOK).await;
                let Some(inner) = inner.upgrade() else { return };
                Cluster { inner }.learn_now_and_then();
            }
        }));
    }

    /// Asks which masters there are and turns to those from now on.
    pub(super) async fn learn_masters(&self) -> Result<(), ClientError> {
        let named = self.masters().await?;
        let before = self.inner.masters.all();
        if self.inner.masters.learn(&named).await {
            let turn = *self.inner.leader.borrow();
            let first = before.get(turn % before.len().max(1));
            let all = self.inner.masters.all();
            if let Some(at) = all.iter().position(|addr| Some(addr) == first) {
                self.turn_to(turn, at);
            }
        }
        Ok(())
    }
}

/// What [`Cluster::ask_around`] goes by.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one at a time, and it is taken apart at once"
)]
enum Event {
    /// One of those asked says something.
    Answered(usize, Result<(MasterResponse, Bytes), CallError>),
    /// Whether this one leads.
    Looked(usize, bool),
    /// Another request was answered by this one, or has seen that it leads.
    Leads(usize),
    /// Nobody has said anything for a while.
    Silence,
    /// It is time to look for the leader.
    Look,
}

/// The next in turn that is not among these, of which there are fewer than masters.
fn next_but(last: usize, count: usize, but: &BTreeSet<usize>) -> usize {
    let mut next = last.wrapping_add(1);
    while but.contains(&(next % count)) {
        next = next.wrapping_add(1);
    }
    next
}

/// Whether a request may wait at one master for as long as it takes.
fn waits(request: &MasterRequest) -> bool {
    matches!(
        request,
        MasterRequest::Watch { .. }
            | MasterRequest::WaitApplied { .. }
            | MasterRequest::WaitPublished { .. }
            | MasterRequest::Deltas { .. }
            | MasterRequest::Erased { wait_ms: 1.., .. }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use atoll_net::identity::ClusterCa;
    use atoll_net::{Answer, Context, Endpoint, ServeLimits, Service, ShutdownTrigger};
    use atoll_proto::error::WireResult;
    use atoll_proto::{ClusterId, WireError};
    use tokio::sync::Notify;

    use super::*;

    /// A master that leads, and answers once this was told; or one that says that it does not, and
    /// tells that it was asked.
    struct Fake {
        leads: bool,
        told: Arc<Notify>,
        asked: AtomicUsize,
    }

    impl Service for Fake {
        type Request = MasterRequest;
        type Response = MasterResponse;

        fn operation(_: &MasterRequest) -> &'static str {
            "any"
        }

        async fn call(
            &self,
            _: Context,
            request: MasterRequest,
            _: Bytes,
        ) -> WireResult<Answer<MasterResponse>> {
            if request == MasterRequest::Masters {
                if !self.leads {
                    return Err(WireError::new(Code::NotLeader, "another leads"));
                }
                return Ok(Answer::head(MasterResponse::Masters(Vec::new())));
            }
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.leads {
                self.told.notified().await;
                Ok(Answer::head(MasterResponse::Known(vec![true])))
            } else {
                self.told.notify_one();
                Err(WireError::new(Code::NotLeader, "another leads"))
            }
        }
    }

    fn serve(
        ca: &ClusterCa,
        name: &str,
        leads: bool,
        told: &Arc<Notify>,
    ) -> (Arc<Fake>, SocketAddr, ShutdownTrigger) {
        let identity = ca.issue(Role::Master, name).unwrap();
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), &identity).unwrap();
        let addr = endpoint.local_addr();
        let fake = Arc::new(Fake { leads, told: told.clone(), asked: AtomicUsize::new(0) });
        let (stop, shutdown) = atoll_net::shutdown::pair();
        let service = fake.clone();
        atoll_net::task::spawn("fake-master", async move {
            endpoint.serve(service, ServeLimits::default(), shutdown).await;
        });
        (fake, addr, stop)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn others_are_asked_while_one_is_silent_and_it_is_not_given_up() {
        let ca = ClusterCa::create(ClusterId([1; 16])).unwrap();
        let told = Arc::new(Notify::new());
        let (leads, first, _stop) = serve(&ca, "master-1", true, &told);
        let (follows, second, _stop_too) = serve(&ca, "master-2", false, &told);
        let endpoint = Endpoint::client(&ca.issue(Role::Client, "test").unwrap()).unwrap();
        let cluster = Cluster::new(endpoint, vec![first, second], None, None);
        let request = MasterRequest::Known { ids: Vec::new() };
        let answer = cluster.master(&request, Duration::from_secs(60)).await.unwrap();
        assert_eq!(answer, MasterResponse::Known(vec![true]));
        assert_eq!(leads.asked.load(Ordering::SeqCst), 1, "its first answer counted");
        assert!(follows.asked.load(Ordering::SeqCst) > 0);
        // It is remembered, so that nobody else is asked next time.
        told.notify_one();
        cluster.master(&request, Duration::from_secs(60)).await.unwrap();
        assert_eq!(leads.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_other_is_asked_in_turn_while_one_is_silent() {
        let ca = ClusterCa::create(ClusterId([1; 16])).unwrap();
        let (never, told) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (_dead, first, _stop) = serve(&ca, "master-1", true, &never);
        let (_follows, second, _stop_too) = serve(&ca, "master-2", false, &Arc::default());
        let (leads, third, _stop_as_well) = serve(&ca, "master-3", true, &told);
        let endpoint = Endpoint::client(&ca.issue(Role::Client, "test").unwrap()).unwrap();
        let cluster = Cluster::new(endpoint, vec![first, second, third], None, None);
        let asking = atoll_net::task::spawn("ask", async move {
            let request = MasterRequest::Known { ids: Vec::new() };
            cluster.master(&request, Duration::from_secs(60)).await
        });
        while leads.asked.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        told.notify_one();
        assert!(asking.await.unwrap().is_ok());
    }

    #[test]
    fn what_waits_by_design_stays_with_one() {
        assert!(waits(&MasterRequest::Erased { after: 0, node: None, wait_ms: 5 }));
        assert!(!waits(&MasterRequest::Erased { after: 0, node: None, wait_ms: 0 }));
        assert!(!waits(&MasterRequest::Status));
    }

    #[test]
    fn only_a_refusal_by_who_does_not_lead_is_known_to_have_changed_nothing() {
        let refused = |code| CallError::Refused(WireError::new(code, "no"));
        assert!(!may_be_done(&refused(Code::NotLeader)));
        assert!(!may_be_done(&refused(Code::Exists)));
        assert!(may_be_done(&refused(Code::Unavailable)));
        assert!(is_final(&refused(Code::Exists)) && !is_final(&refused(Code::NotLeader)));
    }
}
