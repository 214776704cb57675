//! Authoritative DNS that sends each visitor to a near and healthy edge.
//!
//! The edge's `dns` role calls [`listener::bind`] and [`listener::DnsListener::serve`], and
//! publishes what the master's node feed says as a [`zone::DnsView`]. The middle is a pure
//! function from a packet to a packet: [`query`] reads the question, [`zone`] says what the name
//! is, [`route`] picks edges for a client subnet, [`answer`] composes the reply. [`listener`] is
//! the only part with sockets and a clock.
//!
//! It does not resolve for anyone, does not transfer zones, and has no health checks of its own:
//! an edge is up when the feed says that it is ready. DNSSEC, response rate limiting and
//! geographic databases are not part of it.

pub mod answer;
pub mod config;
pub mod listener;
pub mod query;
pub mod route;
pub mod subnet;
pub mod zone;

pub use config::{DnsConfig, RegionCidr};
pub use listener::{DnsListener, bind, run};
pub use route::EdgeView;
pub use zone::DnsView;
