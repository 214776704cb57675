//! Chunkservers that put themselves in order: what is lacking is fetched, what nobody needs goes,
//! and nothing goes by mistake.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cluster;
mod drop;
mod fetch;
mod learn;
mod master;
mod salvage;
