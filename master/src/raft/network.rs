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
use atoll_proto::{WireError, limits};
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

use super::entry::{Raft, TypeConfig};
use super::stand::Spoken;

/// Messages up to this length travel in the head.
const HEAD_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// A master that answered nothing for so long, while it was asked ten times a second, is silent.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// One that was not asked for so long is given time again. Longer than any call takes.
const ASKED_ANEW: Duration = Duration::from_secs(10);

/// What one master asks of another. Variant numbers are stable: only append.
#[derive(Serialize, Deserialize)]
enum RaftMessage {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
}

type Failure<E> = RPCError<u64, BasicNode, RaftError<u64, E>>;

/// Answers a message of another master.
///
/// # Errors
/// When it does not decode.
pub(super) async fn answer(
    raft: &Raft,
    spoken: &Spoken,
    message: &Bytes,
    body: &Bytes,
) -> Result<Bytes, WireError> {
    let bytes = if message.is_empty() { body } else { message };
    let message = atoll_proto::decode(bytes)
        .map_err(|error| WireError::invalid(format!("Raft message: {error}")))?;
    let answer = match message {
        RaftMessage::Append(request) => {
            let answer = raft.append_entries(request).await;
            // A leader of an earlier term is none.
            if !matches!(&answer, Ok(AppendEntriesResponse::HigherVote(_)) | Err(_)) {
                spoken.now();
            }
            atoll_proto::encode(&answer)
        }
        RaftMessage::Vote(request) => atoll_proto::encode(&raft.vote(request).await),
        RaftMessage::Snapshot(request) => {
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
        Network { endpoint, peers: Arc::new(peers), heard: Heard::default() }
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
        Link { endpoint: self.endpoint.clone(), target, addr, heard: self.heard.clone() }
    }
}

/// The way to one other master.
pub(crate) struct Link {
    endpoint: Endpoint,
    target: u64,
    addr: Option<SocketAddr>,
    heard: Heard,
}

impl Link {
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
        let message = Bytes::from(atoll_proto::encode(&message));
        if message.len() > limits::BODY_BYTES_MAX {
            let reason = format!("a log entry of {} bytes cannot be sent", message.len());
            return Err(unreachable(reason).into());
        }
        let (head, body) = if message.len() <= HEAD_MESSAGE_BYTES_MAX {
            (MasterRequest::Raft { message }, Vec::new())
        } else {
            (MasterRequest::Raft { message: Bytes::new() }, vec![message])
        };
        let options = CallOptions::within(ttl);
        self.heard.asks(self.target, Instant::now());
        let called = self.endpoint.call(addr, Role::Master, &head, body, options).await;
        let answer = match called {
            Ok((MasterResponse::Raft { message }, _)) => {
                self.heard.answered(self.target, Instant::now());
                message
            }
            Ok(_) => return Err(network(&"an answer of another kind").into()),
            Err(error @ CallError::Unreachable { .. }) => {
                return Err(unreachable(error.to_string()).into());
            }
            Err(error) => return Err(network(&error).into()),
        };
        let answer: Result<R, RaftError<u64, E>> =
            atoll_proto::decode(&answer).map_err(|error| network(&error))?;
        answer.map_err(|error| RemoteError::new(self.target, error).into())
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

#[cfg(test)]
mod tests {
    use super::*;

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
