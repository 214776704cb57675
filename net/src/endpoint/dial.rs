//! Calls: the client's half of an [`Endpoint`].
//!
//! The server starts a request only once it has all of it and the end of the stream. So whatever
//! breaks before the end was sent surely was not executed ([`CallError::Unreachable`]), and is
//! tried once more if it broke on a connection from an earlier time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_proto::frame::{Kind, RequestHead};
use atoll_proto::{Code, WireError};
use bytes::Bytes;
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::pool::{Dialed, Lease};
use super::{Counted, Endpoint, close, peer_of};
use crate::call::{CallError, CallOptions};
use crate::identity::{Peer, Role, SERVER_NAME};
use crate::task::Boxed;
use crate::telemetry::TraceContext;
use crate::wire::{self, FrameError};

/// How long opening a connection may take, handshake included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// One call, encoded: what is the same in every attempt.
struct Outgoing {
    addr: SocketAddr,
    request: Vec<u8>,
    body: Vec<Bytes>,
    started: Instant,
    options: CallOptions,
    trace: TraceContext,
}

/// Why an attempt gave no answer.
enum Failure {
    /// The connection broke before the request was whole: another connection may do.
    NotSent(String),
    Final(CallError),
}

impl Endpoint {
    /// Asks the node at `to`, which must have the role `role`, and waits for its answer until
    /// `options.deadline` has passed. Returns the response and the body of the answer.
    ///
    /// Dropping the future resets the stream, upon which the server drops the handler. A request
    /// that surely was not sent is tried a second time if it failed on an old connection;
    /// nothing else is repeated.
    ///
    /// # Errors
    /// [`CallError`] tells apart what surely was not executed, what may have been, and what was
    /// refused.
    pub async fn call<Q, R>(
        &self,
        to: SocketAddr,
        role: Role,
        head: &Q,
        body: Vec<Bytes>,
        options: CallOptions,
    ) -> Result<(R, Bytes), CallError>
    where
        Q: Serialize + Sync,
        R: DeserializeOwned,
    {
        let started = Instant::now();
        let label = role.as_str();
        let _in_flight = Counted::new(metrics::gauge!("atoll_net_calls_in_flight", "to" => label));
        let request = wire::encode(head).map_err(CallError::Refused)?;
        let trace = options.trace.map_or_else(TraceContext::root, |trace| trace.child());
        let call = Outgoing { addr: to, request, body, started, options, trace };
        let result = self.attempts(role, &call).await;
        let outcome = result.as_ref().map_or_else(CallError::label, |_| "ok");
        metrics::counter!("atoll_net_calls_total", "to" => label, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("atoll_net_call_seconds", "to" => label)
            .record(started.elapsed().as_secs_f64());
        let (head, body) = result?;
        let head = atoll_proto::decode(&head)
            .map_err(|error| CallError::Malformed { addr: to, reason: error.reason })?;
        Ok((head, body))
    }

    fn attempts<'a>(
        &'a self,
        role: Role,
        call: &'a Outgoing,
    ) -> Boxed<'a, Result<(Bytes, Bytes), CallError>> {
        Box::pin(self.attempt_twice(role, call))
    }

    async fn attempt_twice(
        &self,
        role: Role,
        call: &Outgoing,
    ) -> Result<(Bytes, Bytes), CallError> {
        let unreachable = |reason: String| CallError::Unreachable { addr: call.addr, reason };
        loop {
            let lease = self
                .0
                .pool
                .lease((call.addr, role), call.deadline(), || dial(self.clone(), call.addr, role))
                .await
                .map_err(|reason| unreachable(reason.to_string()))?;
            match self.attempt(&lease, call).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::NotSent(reason)) if lease.fresh => return Err(unreachable(reason)),
                Err(Failure::NotSent(reason)) => {
                    tracing::debug!(addr = %call.addr, reason, "opening a new connection");
                    lease.discard();
                    // A lease of another dead connection would be as old as the first: the slot
                    // is idle now, so the next lease is fresh and the loop ends.
                }
            }
        }
    }

    async fn attempt(&self, lease: &Lease, call: &Outgoing) -> Result<(Bytes, Bytes), Failure> {
        let deadline = call.deadline();
        let (send, recv) = match timeout_at(deadline, lease.connection.open_bi()).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => return Err(Failure::NotSent(explain(&error))),
            Err(_) => return Err(call.late("no stream was free")),
        };
        let mut stream = CallStream { send, recv, finished: false };
        self.send(&mut stream, call).await?;
        match timeout_at(deadline, self.receive(&mut stream, call)).await {
            Ok(received) => received,
            Err(_) if stream.finished => Err(Failure::Final(CallError::Deadline {
                addr: call.addr,
                after: call.options.deadline,
            })),
            Err(_) => Err(call.late("the request was not whole")),
        }
    }

    /// Sends the request. Comes back early, with the stream unfinished, when the server stopped
    /// reading because it has answered already.
    async fn send(&self, stream: &mut CallStream, call: &Outgoing) -> Result<(), Failure> {
        let mut pieces = wire::request(&call.head(), &call.request, &call.body)
            .map_err(|error| Failure::Final(CallError::Refused(error)))?;
        let bytes = wire::len(&pieces);
        match timeout_at(call.deadline(), stream.send.write_all_chunks(&mut pieces)).await {
            Ok(Ok(())) => {}
            Ok(Err(WriteError::Stopped(_))) => return Ok(()),
            Ok(Err(WriteError::ConnectionLost(error))) => {
                return Err(Failure::NotSent(explain(&error)));
            }
            Ok(Err(error)) => return Err(Failure::NotSent(error.to_string())),
            Err(_) => return Err(call.late("the request was not whole")),
        }
        self.0.meters.bytes_out.increment(bytes);
        // It fails only when the server has stopped the stream, and then its answer is on the way.
        stream.finished = stream.send.finish().is_ok();
        Ok(())
    }

    async fn receive(
        &self,
        stream: &mut CallStream,
        call: &Outgoing,
    ) -> Result<(Bytes, Bytes), Failure> {
        let (kind, head, body) = match read_reply(&mut stream.recv).await {
            Ok(reply) => reply,
            Err(FrameError::Bad(error)) if error.code == Code::UnsupportedVersion => {
                return Err(Failure::Final(CallError::Refused(error)));
            }
            Err(FrameError::Bad(error)) => return Err(call.malformed(error.message)),
            Err(FrameError::Read(error)) => return Err(call.broken(&error, stream.finished)),
        };
        stream.finished = true;
        self.0.meters.bytes_in.increment((head.len() + body.len()) as u64);
        match kind {
            Kind::Answer => Ok((head, body)),
            Kind::Error => match atoll_proto::decode::<WireError>(&head) {
                Ok(error) => Err(Failure::Final(CallError::Refused(error))),
                Err(error) => Err(call.malformed(error.reason)),
            },
            Kind::Request => Err(call.malformed("a request where a reply belongs".into())),
        }
    }
}

async fn read_reply(recv: &mut RecvStream) -> Result<(Kind, Bytes, Bytes), FrameError> {
    let prefix = wire::read_prefix(recv).await?;
    // `Prefix::decode` has checked both lengths against the limits of proto.
    let head = wire::read_bytes(recv, prefix.head_len as usize).await?;
    let body_len = usize::try_from(prefix.body_len)
        .map_err(|_| FrameError::Bad(WireError::invalid("body longer than memory")))?;
    let body = wire::read_bytes(recv, body_len).await?;
    wire::read_end(recv).await?;
    Ok((prefix.kind, head, body))
}

impl Outgoing {
    fn deadline(&self) -> Instant {
        // An absurdly long deadline means "as long as we allow", not an overflow.
        self.started + self.options.deadline.min(super::serve::DEADLINE_MAX)
    }

    fn head(&self) -> RequestHead {
        let left = self.deadline().saturating_duration_since(Instant::now());
        RequestHead {
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            token: self.options.token.as_deref().map(str::to_owned),
            trace: Some(self.trace.to_string()),
        }
    }

    /// The deadline passed before the server had the whole request.
    fn late(&self, what: &str) -> Failure {
        let after = self.options.deadline;
        Failure::Final(CallError::Unreachable {
            addr: self.addr,
            reason: format!("{what} within {after:?}: the node or the network is overloaded"),
        })
    }

    fn malformed(&self, reason: String) -> Failure {
        Failure::Final(CallError::Malformed { addr: self.addr, reason })
    }

    fn broken(&self, error: &ReadError, sent_whole: bool) -> Failure {
        let reason = match error {
            ReadError::ConnectionLost(error) if never_started(error) => {
                return Failure::NotSent(explain(error));
            }
            ReadError::ConnectionLost(error) => explain(error),
            ReadError::Reset(_) => "the node gave the request up".into(),
            other => other.to_string(),
        };
        if sent_whole {
            Failure::Final(CallError::Lost { addr: self.addr, reason })
        } else {
            Failure::NotSent(reason)
        }
    }
}

/// Whether requests without an answer on this connection surely were not executed.
fn never_started(error: &ConnectionError) -> bool {
    match error {
        // TLS alerts: the server never accepted our certificate, and so took no request.
        ConnectionError::ConnectionClosed(frame) => is_alert(frame.error_code),
        ConnectionError::ApplicationClosed(frame) => {
            frame.error_code == close::DRAINED || frame.error_code == close::IDENTITY
        }
        _ => false,
    }
}

fn is_alert(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// What a connection error means, and what to do about it.
fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionClosed(frame) if is_alert(frame.error_code) => format!(
            "the node does not accept our certificate ({frame}); was it issued by this cluster?"
        ),
        ConnectionError::TransportError(error) if is_alert(error.code) => {
            format!("the node's certificate is not of our cluster ({error}); is the address right?")
        }
        ConnectionError::ApplicationClosed(frame) => {
            String::from_utf8_lossy(&frame.reason).into_owned()
        }
        ConnectionError::ConnectionClosed(frame) => {
            format!("the node refuses connections ({frame}); it may be stopping or overloaded")
        }
        ConnectionError::TimedOut => "the node went silent".into(),
        ConnectionError::Reset => "the node has restarted".into(),
        other => other.to_string(),
    }
}

/// Opens a connection and checks who answers. Runs in its own task.
async fn dial(endpoint: Endpoint, to: SocketAddr, role: Role) -> Dialed {
    let dialed = timeout(CONNECT_DEADLINE, connect(&endpoint, to, role)).await;
    let dialed = dialed.unwrap_or_else(|_| {
        Err(format!(
            "no node answers within {CONNECT_DEADLINE:?}; is it running, is the address right?"
        ))
    });
    let outcome = if dialed.is_ok() { "ok" } else { "failed" };
    metrics::counter!("atoll_net_connects_total", "to" => role.as_str(), "outcome" => outcome)
        .increment(1);
    dialed.map_err(Arc::from)
}

async fn connect(
    endpoint: &Endpoint,
    to: SocketAddr,
    role: Role,
) -> Result<quinn::Connection, String> {
    let inner = &endpoint.0;
    let connection = inner
        .quinn
        .connect_with(inner.settings.client(to.ip()), to, SERVER_NAME)
        .map_err(|error| error.to_string())?
        .await
        .map_err(|error| explain(&error))?;
    let peer = match peer_of(&connection) {
        Ok(peer) => peer,
        Err(error) => {
            connection.close(close::IDENTITY, b"your certificate names no node");
            return Err(error.to_string());
        }
    };
    if let Err(reason) = check_peer(&inner.peer, &peer, role) {
        connection.close(close::IDENTITY, b"not the node that was called");
        return Err(reason);
    }
    let gauge = Counted::new(metrics::gauge!("atoll_net_connections", "side" => "client"));
    let watched = connection.clone();
    crate::task::spawn("watch-connection", async move {
        let _gauge = gauge;
        watched.closed().await
    });
    Ok(connection)
}

fn check_peer(own: &Peer, peer: &Peer, role: Role) -> Result<(), String> {
    if peer.cluster != own.cluster {
        return Err(format!("{peer} belongs to another cluster"));
    }
    if peer.role != role {
        return Err(format!(
            "the node there is the {} {:?}, not a {role}; is the address right?",
            peer.role, peer.name
        ));
    }
    Ok(())
}

/// The stream of one call. Dropped before its end it tells the server to give the request up.
struct CallStream {
    send: SendStream,
    recv: RecvStream,
    /// The request was sent whole. Nothing is left to cancel once the reply is there.
    finished: bool,
}

impl Drop for CallStream {
    fn drop(&mut self) {
        // Without this, dropping would end the stream in order, as if the request were whole.
        // The receiving half sends STOP_SENDING by itself when it is dropped before its end.
        if !self.finished {
            self.send.reset(close::CANCELLED).ok();
        }
    }
}
