//! What a role writes to answer requests: one [`Service`] per role.
//!
//! [`crate::Endpoint::serve`] reads the frame, checks the limits, starts the clock and calls the
//! service; the service knows nothing of streams, and nothing of TLS beyond the [`Peer`].

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_proto::{WireError, limits};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::identity::Peer;
use crate::telemetry::TraceContext;

/// A role's answers to its requests.
///
/// The future of [`Service::call`] is dropped when the deadline passes, when the caller gives up
/// and when the connection is lost. Work that must not stop half-way belongs in
/// [`crate::task::spawn`]. A panic is answered as [`atoll_proto::Code::Internal`] and ends that
/// request only.
pub trait Service: Send + Sync + 'static {
    /// The role's request message.
    type Request: DeserializeOwned + Send;
    /// The role's response message.
    type Response: Serialize + Send;

    /// The name of the operation, for metrics and spans: the same verb as in the message.
    fn operation(request: &Self::Request) -> &'static str;

    /// Answers one request. `body` is the whole body of the request.
    fn call(
        &self,
        context: Context,
        request: Self::Request,
        body: Bytes,
    ) -> impl Future<Output = Result<Answer<Self::Response>, WireError>> + Send;
}

/// What is known about a request beside the request itself.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who asks, proved by its certificate.
    pub peer: Peer,
    /// From where.
    pub remote: SocketAddr,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The token of the user behind the request, unchecked.
    pub token: Option<Arc<str>>,
    /// The request's place in its trace; give `trace.child()` to calls made on its behalf.
    pub trace: TraceContext,
}

impl Context {
    /// How long the caller still waits; zero once it no longer does.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// A successful reply.
#[derive(Clone, Debug)]
pub struct Answer<R> {
    /// The response message.
    pub head: R,
    /// Raw bytes after it, sent one after the other without copying.
    pub body: Vec<Bytes>,
}

impl<R> Answer<R> {
    /// A reply without a body.
    pub fn head(head: R) -> Answer<R> {
        Answer { head, body: Vec::new() }
    }

    /// A reply with a body.
    pub fn with_body(head: R, body: Vec<Bytes>) -> Answer<R> {
        Answer { head, body }
    }
}

/// The bounds of one server loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Most connections at once; further ones are refused.
    pub connections: usize,
    /// Most requests at once on one connection; further ones wait at the caller.
    pub streams_per_connection: u32,
    /// Most requests being answered at once, over all connections; further ones wait a moment
    /// and are then refused as `Unavailable`.
    pub requests: usize,
    /// Longest body of one request in bytes; longer ones are refused as `Limit`.
    pub body_bytes_max: usize,
    /// Most bytes of request bodies in memory at once, over all connections.
    pub in_flight_bytes: usize,
    /// How long running requests may take to finish once shutdown is triggered.
    pub drain: Duration,
}

impl Default for ServeLimits {
    fn default() -> ServeLimits {
        ServeLimits {
            connections: 4096,
            streams_per_connection: 1024,
            requests: 16_384,
            body_bytes_max: limits::BODY_BYTES_MAX,
            in_flight_bytes: 256 << 20,
            drain: Duration::from_secs(10),
        }
    }
}
