//! Authoritative DNS that sends each visitor to a near and healthy edge.
//!
//! The edge's `dns` role calls [`listener::bind`] and [`listener::DnsListener::serve`], and
//! publishes what the master's node feed says as a [`zone::DnsView`]. The middle is a pure
//! function from a packet to a packet: [`query`] reads the question, [`names`] says what the name
//! is, [`atlas`] where the client is, [`route`] which edges are for it, [`answer`] composes the
//! reply by way of the codec, and [`fast`] does all of that for the usual questions without it.
//! [`udp`], [`listener`] and [`follow`] are the only parts with sockets, files and clocks.
//!
//! It does not resolve for anyone, does not transfer zones, and has no health checks of its own:
//! an edge is up when the feed says that it is ready. It does not sign (DNSSEC).

pub mod answer;
pub mod ask;
pub mod atlas;
pub mod config;
mod cookie;
pub mod explain;
mod fast;
mod follow;
pub mod geo;
mod limit;
pub mod listener;
mod mmsg;
mod names;
mod places;
pub mod query;
mod ranges;
mod record;
pub mod route;
pub mod subnet;
pub mod tally;
mod udp;
pub mod zone;

pub use config::{DnsConfig, RegionCidr};
pub use listener::{DnsListener, bind, run};
pub use route::EdgeView;
pub use zone::DnsView;

#[cfg(test)]
mod mmdb_tests;
