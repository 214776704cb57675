//! HTTP/1.1, HTTP/2 and HTTP/3 to visitors.
//!
//! [`respond`] is the one handler; it knows nothing of connections. [`tcp`] (hyper) and [`h3`]
//! carry its answers; [`plain`] sends visitors from HTTP to HTTPS. What can be decided without
//! input or output is in [`path`], [`conditional`], [`range`] and [`freshness`].
//!
//! Not here yet: rate limits, 0-RTT, compressed variants.

pub mod body;
pub mod conditional;
pub mod freshness;
pub mod h3;
pub mod mint;
pub mod path;
pub mod plain;
pub mod proof;
pub mod range;
pub mod reset;
pub mod respond;
pub mod server;
pub mod socket;
pub mod tcp;
pub mod tls;

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, Uri};

use body::Body;

/// How long a client may take for a handshake or the head of a request.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be without progress.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long answers under way may take at shutdown.
pub(crate) const DRAIN: Duration = Duration::from_secs(4);
/// At shutdown a connection without an answer under way may take this long to end by itself.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// Longest head of a request in bytes; longer ones get 431.
pub(crate) const HEAD_BYTES_MAX: usize = 64 << 10;
/// Requests of one connection that are answered at once.
pub(crate) const STREAMS_MAX: u32 = 128;
/// Connections at once of each kind; further ones are closed or refused.
pub(crate) const CONNECTIONS_MAX: usize = 16_384;

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 or 1.0 over TLS.
    H1,
    /// HTTP/2.
    H2,
    /// HTTP/3.
    H3,
}

impl Protocol {
    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::H1 => "h1",
            Protocol::H2 => "h2",
            Protocol::H3 => "h3",
        }
    }
}

/// The head of a request; its body is never read.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The target.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
    /// How it came.
    pub protocol: Protocol,
}

/// An answer, whatever carries it.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// All headers, `Content-Length` included.
    pub headers: HeaderMap,
    /// The body; empty for HEAD.
    pub body: Body,
}
