//! The chunkserver: keeps chunks, named by their hash, and serves them.
//!
//! `atoll chunkserver` calls [`run()`]. It acknowledges a chunk when it is synced to disk, relays a
//! client's put to the other members of the placement group, verifies every read, and keeps what it
//! has equal to what it should have. It knows chunks and placement; it does not know files, sites
//! or deploys, nor which chunks are still needed: that is the masters' to say.

mod config;
mod erased;
mod error;
mod fence;
mod marker;
mod masters;
mod node;
mod ops;
mod placement;
mod reconcile;
mod run;
pub mod store;
mod tasks;

pub use config::{Args, Config};
pub use error::RunError;
pub use reconcile::pause::{Pauses, Point};
pub use run::{run, run_on};
