//! The server loop: the other half of an [`Endpoint`].
//!
//! It admits connections and requests within [`ServeLimits`], reads each request whole, runs the
//! [`Service`] under the caller's deadline and drains at shutdown. Whatever a peer sends, the
//! damage is that stream's, or at most that connection's.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use atoll_proto::frame::{self, Kind, Prefix, RequestHead};
use atoll_proto::{Code, WireError};
use bytes::Bytes;
use futures_util::FutureExt;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;

use super::{Counted, Endpoint, close, peer_of};
use crate::identity::Peer;
use crate::service::{Answer, Context, ServeLimits, Service};
use crate::shutdown::Shutdown;
use crate::task::Tasks;
use crate::telemetry::TraceContext;
use crate::wire::{self, FrameError, Pieces};

/// Longest deadline a caller may ask for.
pub(super) const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// How long a new connection may take to prove who it is.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a head may take to arrive once its stream is open: its own deadline is inside.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a request waits for its turn before it is refused.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long sending an error may take after the deadline has passed.
const REPLY_GRACE: Duration = Duration::from_secs(1);
/// At a drain, a caller that has not acknowledged its reply and is silent for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// With this many handshakes going on, new peers must first prove that they own their address.
const HANDSHAKES_UNPROVEN_MAX: usize = 256;
/// Request bodies are counted in units of this many bytes.
const BODY_UNIT_BYTES: usize = 1024;

struct Server<S> {
    endpoint: Endpoint,
    service: Arc<S>,
    limits: ServeLimits,
    shutdown: Shutdown,
    connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    body_units: Arc<Semaphore>,
}

impl Endpoint {
    /// Answers requests with `service` until `shutdown` is triggered, then drains: refuses new
    /// connections and requests, lets running ones finish for at most [`ServeLimits::drain`], and
    /// closes the connections it accepted. Calls made from this endpoint go on working.
    ///
    /// Must be called at most once, on an endpoint made by [`Endpoint::bind`].
    pub async fn serve<S: Service>(
        &self,
        service: Arc<S>,
        limits: ServeLimits,
        shutdown: Shutdown,
    ) {
        let units = limits.in_flight_bytes.div_ceil(BODY_UNIT_BYTES);
        let server = Arc::new(Server {
            endpoint: self.clone(),
            service,
            limits,
            shutdown: shutdown.clone(),
            connections: Arc::new(Semaphore::new(permits(limits.connections))),
            requests: Arc::new(Semaphore::new(permits(limits.requests))),
            body_units: Arc::new(Semaphore::new(permits(units))),
        });
        let connections = Tasks::new();
        let mut stopping = pin!(shutdown.wait());
        loop {
            tokio::select! {
                biased;
                () = &mut stopping => break,
                incoming = self.0.quinn.accept() => match incoming {
                    Some(incoming) => server.clone().admit(incoming, &connections),
                    None => break,
                },
            }
        }
        // Each connection bounds its own drain; the second more is for its last packets.
        let drained = connections.drain(limits.drain + Duration::from_secs(1));
        let refuse = async {
            while let Some(incoming) = self.0.quinn.accept().await {
                incoming.refuse();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            cut = drained => tracing::debug!(cut, "drained"),
            () = refuse => {}
        }
        self.0.quinn.set_server_config(None);
    }
}

/// Tokio's semaphores hold at most 2^61 permits and are asked for at most 2^32 at once.
fn permits(wanted: usize) -> usize {
    wanted.min(u32::MAX as usize)
}

impl<S: Service> Server<S> {
    fn admit(self: Arc<Self>, incoming: Incoming, connections: &Tasks) {
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            metrics::counter!("atoll_net_connections_refused_total").increment(1);
            incoming.refuse();
            return;
        };
        if connections.len() > HANDSHAKES_UNPROVEN_MAX
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            if incoming.retry().is_err() {
                tracing::debug!("cannot ask a peer to prove its address");
            }
            return;
        }
        connections.spawn("connection", self.connection(incoming, permit));
    }

    async fn connection(self: Arc<Self>, incoming: Incoming, _permit: OwnedSemaphorePermit) {
        let remote = canonical(incoming.remote_address());
        let (connection, peer) = match timeout(HANDSHAKE_DEADLINE, self.handshake(incoming)).await {
            Ok(Ok(established)) => established,
            Ok(Err(reason)) => {
                tracing::debug!(%remote, reason, "connection refused");
                return;
            }
            Err(_) => {
                tracing::debug!(%remote, "handshake too slow");
                return;
            }
        };
        let _counted = Counted::new(metrics::gauge!("atoll_net_connections", "side" => "server"));
        let client = Arc::new(Client { peer, remote });
        self.streams(&connection, &client).await;
    }

    async fn handshake(&self, incoming: Incoming) -> Result<(Connection, Peer), String> {
        let config = self.endpoint.0.settings.server(incoming.remote_address().ip());
        let connection = incoming
            .accept_with(config)
            .map_err(|error| error.to_string())?
            .await
            .map_err(|error| error.to_string())?;
        let own = self.endpoint.identity_peer();
        let refusal = match peer_of(&connection) {
            Ok(peer) if peer.cluster == own.cluster => {
                let streams = VarInt::from_u32(self.limits.streams_per_connection);
                connection.set_max_concurrent_bi_streams(streams);
                return Ok((connection, peer));
            }
            Ok(peer) => format!("{peer} belongs to another cluster"),
            Err(error) => error.to_string(),
        };
        connection.close(close::IDENTITY, refusal.as_bytes());
        Err(refusal)
    }

    /// Takes the streams of one connection until it ends or the drain is over.
    async fn streams(self: Arc<Self>, connection: &Connection, client: &Arc<Client>) {
        // Every running stream holds a clone of `running`; `idle` ends when none is left.
        let (running, mut idle) = mpsc::channel::<()>(1);
        let mut stopping = pin!(self.shutdown.wait());
        loop {
            tokio::select! {
                biased;
                () = &mut stopping => break,
                accepted = connection.accept_bi() => match accepted {
                    Ok((send, recv)) => {
                        self.clone().stream(connection, client, send, recv, running.clone());
                    }
                    Err(_) => return,
                },
            }
        }
        let late = running.downgrade();
        drop(running);
        let mut drain_ends = pin!(tokio::time::sleep(self.limits.drain));
        loop {
            tokio::select! {
                accepted = connection.accept_bi() => match (accepted, late.upgrade()) {
                    // It is answered as unavailable.
                    (Ok((send, recv)), Some(running)) => {
                        self.clone().stream(connection, client, send, recv, running);
                    }
                    (Ok(_), None) => break,
                    (Err(_), _) => return,
                },
                _ = idle.recv() => break,
                () = &mut drain_ends => {
                    connection.close(close::STOPPED, b"stopped before the answer was ready");
                    return;
                }
            }
        }
        connection.close(close::DRAINED, b"the node is stopping");
    }

    fn stream(
        self: Arc<Self>,
        connection: &Connection,
        client: &Arc<Client>,
        send: SendStream,
        recv: RecvStream,
        running: mpsc::Sender<()>,
    ) {
        let request = Request {
            server: self,
            connection: connection.clone(),
            client: client.clone(),
            arrived: Instant::now(),
        };
        crate::task::spawn("request", async move {
            request.serve(send, recv).await;
            drop(running);
        });
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The other end of a connection.
struct Client {
    peer: Peer,
    remote: SocketAddr,
}

/// One stream, from its first byte to its reply.
struct Request<S> {
    server: Arc<Server<S>>,
    connection: Connection,
    client: Arc<Client>,
    arrived: Instant,
}

/// A head that made sense.
struct Head<Q> {
    version: u8,
    message: Q,
    body_len: usize,
    deadline: Instant,
    token: Option<Arc<str>>,
    trace: TraceContext,
}

/// What became of a request.
enum Outcome {
    /// This goes back, at the latest at this time.
    Reply(Pieces, Instant),
    /// The stream is broken; nobody listens.
    Gone,
}

impl<S: Service> Request<S> {
    async fn serve(self, mut send: SendStream, mut recv: RecvStream) {
        // Resolves when the caller gives up or the connection is lost: then the work is dropped.
        let mut stopped = pin!(send.stopped());
        let outcome = tokio::select! {
            outcome = self.answer(&mut recv) => outcome,
            _ = &mut stopped => Outcome::Gone,
        };
        // The caller learns that we read no further before it gets the rest of the reply.
        drop(recv);
        let sent = match outcome {
            Outcome::Reply(pieces, deadline) => tokio::select! {
                sent = self.reply(&mut send, pieces, deadline) => sent,
                _ = &mut stopped => false,
            },
            Outcome::Gone => false,
        };
        if sent {
            // A drain must not close the connection before the caller has the whole reply; one that
            // ended without a goodbye will never say so.
            tokio::select! {
                _ = &mut stopped => {}
                () = self.gone() => {}
            }
        } else {
            send.reset(close::CANCELLED).ok();
        }
    }

    /// Ends once the server drains and nothing more comes from the caller.
    async fn gone(&self) {
        self.server.shutdown.wait().await;
        loop {
            let heard = self.connection.stats().udp_rx.datagrams;
            tokio::time::sleep(SILENCE_MAX).await;
            if self.connection.stats().udp_rx.datagrams == heard {
                return;
            }
        }
    }

    async fn reply(&self, send: &mut SendStream, mut pieces: Pieces, deadline: Instant) -> bool {
        let bytes = wire::len(&pieces);
        match timeout_at(deadline, send.write_all_chunks(&mut pieces)).await {
            Ok(Ok(())) => {
                self.server.endpoint.0.meters.bytes_out.increment(bytes);
                send.finish().is_ok()
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    async fn answer(&self, recv: &mut RecvStream) -> Outcome {
        match timeout_at(self.arrived + HEAD_DEADLINE, self.read_head(recv)).await {
            Ok(Ok(head)) => self.run(head, recv).await,
            Ok(Err((version, FrameError::Bad(error)))) => self.refuse(version, &error),
            Ok(Err((_, FrameError::Read(_)))) => Outcome::Gone,
            Err(_) => self.refuse(
                frame::VERSION,
                &WireError::new(
                    Code::Deadline,
                    format!("no whole request came within {HEAD_DEADLINE:?}"),
                ),
            ),
        }
    }

    /// The reply to something that never became an operation.
    fn refuse(&self, version: u8, error: &WireError) -> Outcome {
        tracing::debug!(peer = %self.client.peer, remote = %self.client.remote, %error, "refused");
        count("none", &format!("{:?}", error.code));
        Outcome::Reply(wire::error(version, error), Instant::now() + REPLY_GRACE)
    }

    async fn read_head(&self, recv: &mut RecvStream) -> Result<Head<S::Request>, (u8, FrameError)> {
        let prefix = wire::read_prefix(recv).await.map_err(|error| (frame::VERSION, error))?;
        let in_version = |error| (prefix.version, error);
        let body_len = self.check(&prefix).map_err(FrameError::Bad).map_err(in_version)?;
        let bytes = wire::read_bytes(recv, prefix.head_len as usize).await.map_err(in_version)?;
        self.server.endpoint.0.meters.bytes_in.increment(bytes.len() as u64);
        self.parse(prefix.version, body_len, &bytes).map_err(FrameError::Bad).map_err(in_version)
    }

    fn check(&self, prefix: &Prefix) -> Result<usize, WireError> {
        if prefix.kind != Kind::Request {
            return Err(WireError::invalid("a reply where a request belongs"));
        }
        let max = self.server.limits.body_bytes_max.min(self.server.limits.in_flight_bytes);
        usize::try_from(prefix.body_len).ok().filter(|len| *len <= max).ok_or_else(|| {
            WireError::new(
                Code::Limit,
                format!("body of {} bytes; at most {max} are taken here", prefix.body_len),
            )
        })
    }

    fn parse(
        &self,
        version: u8,
        body_len: usize,
        bytes: &[u8],
    ) -> Result<Head<S::Request>, WireError> {
        if self.server.shutdown.is_triggered() {
            return Err(WireError::unavailable("this node is stopping; ask another"));
        }
        let invalid = |error: String| WireError::invalid(format!("the head is malformed: {error}"));
        let (head, rest) = postcard::take_from_bytes::<RequestHead>(bytes)
            .map_err(|error| invalid(error.to_string()))?;
        let message = atoll_proto::decode(rest).map_err(|error| invalid(error.reason))?;
        let allowed = Duration::from_millis(head.deadline_ms.into()).min(DEADLINE_MAX);
        Ok(Head {
            version,
            message,
            body_len,
            deadline: self.arrived + allowed,
            token: head.token.map(Arc::from),
            trace: head
                .trace
                .as_deref()
                .and_then(TraceContext::parse)
                .map_or_else(TraceContext::root, |trace| trace.child()),
        })
    }

    /// Runs one operation: its turn, its body, its handler, its metrics.
    async fn run(&self, head: Head<S::Request>, recv: &mut RecvStream) -> Outcome {
        let operation = S::operation(&head.message);
        let in_flight =
            Counted::new(metrics::gauge!("atoll_net_requests_in_flight", "operation" => operation));
        let span = tracing::info_span!(
            "request",
            operation,
            peer = %self.client.peer.name,
            trace = %head.trace.trace_id(),
        );
        let (version, deadline) = (head.version, head.deadline);
        let mut cancelled = CountCancelled(Some(operation));
        let result = self.execute(head, recv).instrument(span.clone()).await;
        cancelled.0 = None;
        drop(in_flight);
        let encoded = match result {
            Ok(Ok(answer)) => wire::answer(version, &answer.head, &answer.body),
            Ok(Err(error)) => Err(error),
            Err(Broken) => {
                count(operation, "cancelled");
                return Outcome::Gone;
            }
        };
        metrics::histogram!("atoll_net_request_seconds", "operation" => operation)
            .record(self.arrived.elapsed().as_secs_f64());
        match encoded {
            Ok(pieces) => {
                count(operation, "ok");
                Outcome::Reply(pieces, deadline)
            }
            Err(error) => {
                span.in_scope(|| log(&error));
                count(operation, &format!("{:?}", error.code));
                let pieces = wire::error(version, &error);
                Outcome::Reply(pieces, deadline.max(Instant::now() + REPLY_GRACE))
            }
        }
    }

    async fn execute(
        &self,
        head: Head<S::Request>,
        recv: &mut RecvStream,
    ) -> Result<Result<Answer<S::Response>, WireError>, Broken> {
        let turn = (self.arrived + QUEUE_WAIT_MAX).min(head.deadline);
        let (request_permit, body_permit) = match self.admit(head.body_len, turn).await {
            Ok(permits) => permits,
            Err(error) => return Ok(Err(error)),
        };
        let body = match timeout_at(head.deadline, self.read_body(head.body_len, recv)).await {
            Ok(Ok(body)) => body,
            Ok(Err(FrameError::Bad(error))) => return Ok(Err(error)),
            Ok(Err(FrameError::Read(_))) => return Err(Broken),
            Err(_) => return Ok(Err(late("the body did not arrive before the deadline"))),
        };
        let context = Context {
            peer: self.client.peer.clone(),
            remote: self.client.remote,
            deadline: head.deadline,
            token: head.token,
            trace: head.trace,
        };
        let handler = async { self.server.service.call(context, head.message, body).await };
        let caught = timeout_at(head.deadline, AssertUnwindSafe(handler).catch_unwind()).await;
        drop((request_permit, body_permit));
        Ok(match caught {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                tracing::error!(panic = panic_text(&*panic), "a handler panicked");
                Err(WireError::internal("the handler of this request failed: a bug, see the log"))
            }
            Err(_) => Err(late("the deadline passed before the operation was done")),
        })
    }

    async fn admit(
        &self,
        body_len: usize,
        until: Instant,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), WireError> {
        let units = u32::try_from(body_len.div_ceil(BODY_UNIT_BYTES))
            .map_err(|_| WireError::new(Code::Limit, "body too large"))?;
        let permits = async {
            let request = self.server.requests.clone().acquire_owned().await?;
            let body = self.server.body_units.clone().acquire_many_owned(units).await?;
            Ok::<_, tokio::sync::AcquireError>((request, body))
        };
        match timeout_at(until, permits).await {
            Ok(Ok(permits)) => Ok(permits),
            Ok(Err(_)) | Err(_) => {
                Err(WireError::unavailable("this node is overloaded; try another or later"))
            }
        }
    }

    async fn read_body(&self, len: usize, recv: &mut RecvStream) -> Result<Bytes, FrameError> {
        let body = wire::read_bytes(recv, len).await?;
        wire::read_end(recv).await?;
        self.server.endpoint.0.meters.bytes_in.increment(len as u64);
        Ok(body)
    }
}

/// The stream broke while the request was read.
struct Broken;

/// Counts an operation that was dropped half-way, because nobody waited for it any more.
struct CountCancelled(Option<&'static str>);

impl Drop for CountCancelled {
    fn drop(&mut self) {
        if let Some(operation) = self.0 {
            count(operation, "cancelled");
        }
    }
}

fn count(operation: &'static str, outcome: &str) {
    metrics::counter!("atoll_net_requests_total",
        "operation" => operation, "outcome" => outcome.to_owned())
    .increment(1);
}

fn late(message: &str) -> WireError {
    WireError::new(Code::Deadline, message)
}

fn log(error: &WireError) {
    match error.code {
        Code::Internal | Code::Corrupt | Code::Full => tracing::warn!(%error, "failed"),
        _ => tracing::debug!(code = ?error.code, %error, "refused"),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
