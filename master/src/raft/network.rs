//! Raft messages between masters, carried by `MasterRequest::Raft`.
//!
//! The leader's side implements openraft's network traits; the other side is [`answer`]. Large
//! messages travel as the body of the frame, because heads are bounded more tightly.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_net::{CallError, CallOptions, Endpoint, Role};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{Code, WireError, limits};
use bytes::Bytes;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::entry::{Raft, TypeConfig, Vote};
use super::stand::Spoken;

/// Messages up to this length travel in the head.
const HEAD_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// A master that answered nothing for so long, while it was asked ten times a second, is silent.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// One that was not asked for so long is given time again. Longer than any call takes.
const ASKED_ANEW: Duration = Duration::from_secs(10);
/// So long a master that does not know messages with an address gets such as have none. Then it is tried
/// again: it may have been upgraded.
const PLAIN_FOR: Duration = Duration::from_secs(30);

/// What one master asks of another. Variant numbers are stable: only append. Those that say whom they
/// are for are refused by everybody else: Raft itself takes whoever answers for the one it asked.
#[derive(Serialize, Deserialize)]
pub(super) enum RaftMessage {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
    AppendTo(u64, AppendEntriesRequest<TypeConfig>),
    VoteTo(u64, VoteRequest<u64>),
    SnapshotTo(u64, InstallSnapshotRequest<TypeConfig>),
}

impl RaftMessage {
    /// The same for this master only.
    fn addressed(self, id: u64) -> RaftMessage {
        match self {
            RaftMessage::Append(request) | RaftMessage::AppendTo(_, request) => {
                RaftMessage::AppendTo(id, request)
            }
            RaftMessage::Vote(request) | RaftMessage::VoteTo(_, request) => {
                RaftMessage::VoteTo(id, request)
            }
            RaftMessage::Snapshot(request) | RaftMessage::SnapshotTo(_, request) => {
                RaftMessage::SnapshotTo(id, request)
            }
        }
    }

    /// As earlier versions know it.
    fn plain(self) -> RaftMessage {
        match self {
            RaftMessage::AppendTo(_, request) => RaftMessage::Append(request),
            RaftMessage::VoteTo(_, request) => RaftMessage::Vote(request),
            RaftMessage::SnapshotTo(_, request) => RaftMessage::Snapshot(request),
            plain => plain,
        }
    }

    /// The vote of a leader that sends entries.
    pub(super) fn leader(&self) -> Option<Vote> {
        match self {
            RaftMessage::Append(request) | RaftMessage::AppendTo(_, request) => Some(request.vote),
            _ => None,
        }
    }

    /// Whom it is for, if it says so.
    fn target(&self) -> Option<u64> {
        match self {
            RaftMessage::AppendTo(id, _)
            | RaftMessage::VoteTo(id, _)
            | RaftMessage::SnapshotTo(id, _) => Some(*id),
            RaftMessage::Append(_) | RaftMessage::Vote(_) | RaftMessage::Snapshot(_) => None,
        }
    }
}

type Failure<E> = RPCError<u64, BasicNode, RaftError<u64, E>>;

/// The message in a request.
///
/// # Errors
/// When it does not decode.
pub(super) fn read(message: &Bytes, body: &Bytes) -> Result<RaftMessage, WireError> {
    let bytes = if message.is_empty() { body } else { message };
    atoll_proto::decode(bytes).map_err(|error| WireError::invalid(format!("Raft message: {error}")))
}

/// Answers a message of another master.
///
/// # Errors
/// When it is for another master.
pub(super) async fn answer(
    id: u64,
    raft: &Raft,
    spoken: &Spoken,
    message: RaftMessage,
) -> Result<Bytes, WireError> {
    if let Some(target) = message.target().filter(|target| *target != id) {
        let message = format!("this is master {id}, not master {target}");
        return Err(WireError::new(Code::Conflict, message));
    }
    let answer = match message {
        RaftMessage::Append(request) | RaftMessage::AppendTo(_, request) => {
            let answer = raft.append_entries(request).await;
            // A leader of an earlier term is none.
            if !matches!(&answer, Ok(AppendEntriesResponse::HigherVote(_)) | Err(_)) {
                spoken.now();
            }
            atoll_proto::encode(&answer)
        }
        RaftMessage::Vote(request) | RaftMessage::VoteTo(_, request) => {
            let asked = spoken.asked();
            let answer = raft.vote(request).await;
            if answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
                spoken.gave_vote();
            }
            drop(asked);
            atoll_proto::encode(&answer)
        }
        RaftMessage::Snapshot(request) | RaftMessage::SnapshotTo(_, request) => {
            let vote = request.vote;
            let answer = raft.install_snapshot(request).await;
            if answer.as_ref().is_ok_and(|answer| answer.vote == vote) {
                spoken.now();
            }
            atoll_proto::encode(&answer)
        }
    };
    Ok(answer.into())
}

/// Knows how to reach the other masters.
#[derive(Clone)]
pub(crate) struct Network {
    endpoint: Endpoint,
    /// Addresses of the configuration; they win over those in the log, so that a master may move.
    peers: Arc<BTreeMap<u64, SocketAddr>>,
    heard: Heard,
    plain: Plain,
}

/// Which masters do not know messages that say whom they are for, and since when. Clones share it.
#[derive(Debug, Clone, Default)]
struct Plain(Arc<Mutex<BTreeMap<u64, Instant>>>);

impl Plain {
    fn note(&self, id: u64, now: Instant) {
        let mut masters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        masters.insert(id, now);
    }

    fn has(&self, id: u64, now: Instant) -> bool {
        let masters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = masters.get(&id);
        noted.is_some_and(|noted| now.saturating_duration_since(*noted) < PLAIN_FOR)
    }
}

/// When the other masters were last asked and heard of. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<u64, Times>>>);

#[derive(Debug, Clone, Copy)]
struct Times {
    asked: Instant,
    /// When it answered, or was asked after a pause.
    heard: Instant,
}

impl Heard {
    fn asks(&self, id: u64, now: Instant) {
        let mut masters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let times = masters.entry(id).or_insert(Times { asked: now, heard: now });
        if now.saturating_duration_since(times.asked) > ASKED_ANEW {
            times.heard = now;
        }
        times.asked = now;
    }

    fn answered(&self, id: u64, now: Instant) {
        let mut masters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        masters.insert(id, Times { asked: now, heard: now });
    }

    /// Whether a master answers nothing, as far as the leader knows. Others do not ask.
    pub(crate) fn is_silent(&self, id: u64, now: Instant) -> bool {
        let masters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        masters
            .get(&id)
            .is_some_and(|times| now.saturating_duration_since(times.heard) > SILENT_AFTER)
    }
}

impl Network {
    /// A network over this endpoint.
    pub(crate) fn new(endpoint: Endpoint, peers: BTreeMap<u64, SocketAddr>) -> Network {
        let (heard, plain) = (Heard::default(), Plain::default());
        Network { endpoint, peers: Arc::new(peers), heard, plain }
    }

    /// When the others were last heard of.
    pub(crate) fn heard(&self) -> Heard {
        self.heard.clone()
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        let addr = self.peers.get(&target).copied().or_else(|| node.addr.parse().ok());
        let (heard, plain) = (self.heard.clone(), self.plain.clone());
        Link { endpoint: self.endpoint.clone(), target, addr, heard, plain }
    }
}

/// The way to one other master.
pub(crate) struct Link {
    endpoint: Endpoint,
    target: u64,
    addr: Option<SocketAddr>,
    heard: Heard,
    plain: Plain,
}

impl Link {
    /// Sends a message to the master that it is for, and to nobody else.
    async fn send<R, E>(&self, message: RaftMessage, ttl: Duration) -> Result<R, Failure<E>>
    where
        R: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let unreachable = |reason: String| Unreachable::from(AnyError::error(reason));
        let Some(addr) = self.addr else {
            let reason = format!("master {} has no address in `peers`", self.target);
            return Err(unreachable(reason).into());
        };
        self.heard.asks(self.target, Instant::now());
        let plain = self.plain.has(self.target, Instant::now());
        let message = if plain { message } else { message.addressed(self.target) };
        let mut called = self.call(addr, &message, ttl).await;
        let senseless = |error: &WireError| error.code == Code::Invalid && !plain;
        if matches!(&called, Err(CallError::Refused(error)) if senseless(error)) {
            self.plain.note(self.target, Instant::now());
            called = self.call(addr, &message.plain(), ttl).await;
        }
        let answer = match called {
            Ok(message) => {
                self.heard.answered(self.target, Instant::now());
                message
            }
            // One that refuses is left alone for a moment, as one that is not there: openraft sends the
            // next message at once after any other error.
            Err(error @ (CallError::Unreachable { .. } | CallError::Refused(_))) => {
                return Err(unreachable(error.to_string()).into());
            }
            Err(error) => return Err(network(&error).into()),
        };
        let answer: Result<R, RaftError<u64, E>> =
            atoll_proto::decode(&answer).map_err(|error| network(&error))?;
        answer.map_err(|error| RemoteError::new(self.target, error).into())
    }

    async fn call(
        &self,
        addr: SocketAddr,
        message: &RaftMessage,
        ttl: Duration,
    ) -> Result<Bytes, CallError> {
        let message = Bytes::from(atoll_proto::encode(message));
        if message.len() > limits::BODY_BYTES_MAX {
            let reason = format!("a log entry of {} bytes cannot be sent", message.len());
            return Err(CallError::Refused(WireError::new(Code::Limit, reason)));
        }
        let (head, body) = if message.len() <= HEAD_MESSAGE_BYTES_MAX {
            (MasterRequest::Raft { message }, Vec::new())
        } else {
            (MasterRequest::Raft { message: Bytes::new() }, vec![message])
        };
        let options = CallOptions::within(ttl);
        match self.endpoint.call(addr, Role::Master, &head, body, options).await {
            Ok((MasterResponse::Raft { message }, _)) => Ok(message),
            Ok(_) => {
                let reason = "an answer of another kind".to_owned();
                Err(CallError::Malformed { addr, reason })
            }
            Err(error) => Err(error),
        }
    }
}

fn network(reason: &impl ToString) -> NetworkError {
    NetworkError::from(AnyError::error(reason.to_string()))
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failure<openraft::error::Infallible>> {
        self.send(RaftMessage::Append(request), option.hard_ttl()).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failure<InstallSnapshotError>> {
        self.send(RaftMessage::Snapshot(request), option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failure<openraft::error::Infallible>> {
        self.send(RaftMessage::Vote(request), option.hard_ttl()).await
    }

    fn backoff(&self) -> openraft::network::Backoff {
        openraft::network::Backoff::new(std::iter::repeat(Duration::from_millis(100)))
    }
}

/// A request for a vote that is for this master, as it travels.
#[cfg(test)]
pub(super) fn vote_to(id: u64) -> Bytes {
    let request = VoteRequest { vote: openraft::Vote::new(1, 9), last_log_id: None };
    atoll_proto::encode(&RaftMessage::VoteTo(id, request)).into()
}

/// Whether a message says whom it is for.
#[cfg(test)]
pub(super) fn is_addressed(message: &Bytes, body: &Bytes) -> bool {
    read(message, body).is_ok_and(|message| message.target().is_some())
}

/// What a leader with this vote sends when it has nothing to send, as it travels.
#[cfg(test)]
pub(super) fn append_under(vote: Vote) -> Bytes {
    let request =
        AppendEntriesRequest { vote, prev_log_id: None, entries: vec![], leader_commit: None };
    atoll_proto::encode(&RaftMessage::Append(request)).into()
}

/// Whether an answer tells a leader that it is none any more.
#[cfg(test)]
pub(super) fn unseats(answer: &Bytes) -> bool {
    let answer: Result<AppendEntriesResponse<u64>, RaftError<u64>> =
        atoll_proto::decode(answer).expect("an answer");
    matches!(answer, Ok(AppendEntriesResponse::HigherVote(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// The messages of versions before those that say whom they are for.
    #[derive(Serialize, Deserialize)]
    enum Earlier {
        Append(AppendEntriesRequest<TypeConfig>),
        Vote(VoteRequest<u64>),
        Snapshot(InstallSnapshotRequest<TypeConfig>),
    }

    #[test]
    fn earlier_versions_are_understood_and_understand_what_is_plain() {
        let request = VoteRequest { vote: openraft::Vote::new(3, 2), last_log_id: None };
        let said = atoll_proto::encode(&Earlier::Vote(request.clone()));
        let heard: RaftMessage = atoll_proto::decode(&said).unwrap();
        assert!(matches!(&heard, RaftMessage::Vote(it) if *it == request));
        assert_eq!(heard.target(), None);
        let addressed = heard.addressed(7);
        assert_eq!(addressed.target(), Some(7));
        assert!(atoll_proto::decode::<Earlier>(&atoll_proto::encode(&addressed)).is_err());
        let heard: Earlier = atoll_proto::decode(&atoll_proto::encode(&addressed.plain())).unwrap();
        assert!(matches!(heard, Earlier::Vote(it) if it == request));
    }

    #[test]
    fn an_earlier_version_is_tried_again_after_a_while() {
        let (plain, now) = (Plain::default(), Instant::now());
        assert!(!plain.has(2, now));
        plain.note(2, now);
        assert!(plain.has(2, now) && !plain.has(3, now));
        assert!(!plain.has(2, now + PLAIN_FOR));
    }

    #[test]
    fn who_is_asked_and_never_answers_is_silent() {
        let heard = Heard::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!heard.is_silent(2, at(60_000)), "it was never asked");
        (0..=40).for_each(|tick| heard.asks(2, at(tick * 100)));
        assert!(!heard.is_silent(2, at(3000)));
        assert!(heard.is_silent(2, at(4000)));
        heard.answered(2, at(4000));
        assert!(!heard.is_silent(2, at(4500)));
        // Led by another meanwhile: it is given time again.
        heard.asks(2, at(60_000));
        assert!(!heard.is_silent(2, at(60_000)));
        (0..=5).for_each(|second| heard.asks(2, at(60_000 + second * 1000)));
        assert!(heard.is_silent(2, at(65_000)));
    }
}
