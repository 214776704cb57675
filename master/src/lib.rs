//! The master: keeps the metadata of a cluster in a replicated log and the state it makes.
//!
//! `cli` starts it with [`run()`]. Requests come in through `server` and are answered in `ops`, one
//! file each; changes become operations of the log (`operation`), are committed by `raft` and
//! applied to `store`. It knows every chunk by name, length and count of references, but never
//! touches file bytes; it reads manifest pages only, to admit them, and makes those of live sites.

mod admission;
mod audit;
mod auth;
mod clock;
mod config;
mod cover;
mod disk;
mod fetch;
mod finishing;
mod identity;
mod live;
mod liveness;
mod operation;
mod ops;
mod placement;
mod policies;
mod put;
mod raft;
mod restore;
mod roster;
mod run;
mod server;
mod store;
mod tasks;
#[cfg(test)]
mod tests;
mod trees;

pub use config::{Args, Config, ConfigError, Peer};
pub use identity::DataError;
pub use restore::{Restore, RestoreError, inspect, restore};
pub use run::{RunError, run};
