//! How Atoll's messages travel.
//!
//! Every role uses this crate for its [`Endpoint`] (QUIC, mutual TLS, one stream per request), its
//! admin port, its telemetry, its tasks and its shutdown. What is said in the messages is
//! `atoll_proto`'s; which node to ask, and whether to ask again, is the caller's.

pub mod admin;
pub mod call;
pub mod endpoint;
mod error;
pub mod identity;
pub mod masters;
pub mod retry;
pub mod service;
pub mod shutdown;
pub mod task;
pub mod telemetry;
mod tls;
mod wire;

pub use call::{CallError, CallOptions};
pub use endpoint::Endpoint;
pub use error::NetError;
pub use identity::{ClusterCa, Identity, Peer, Role, WebCert};
pub use masters::KnownMasters;
pub use retry::Backoff;
pub use service::{Answer, Context, ServeLimits, Service};
pub use shutdown::{Shutdown, ShutdownTrigger};
pub use telemetry::TraceContext;
