//! Whole clusters under test.
//!
//! The end-to-end tests (`tests/e2e`, one promise per file) and the bench drive the real `atoll`
//! binary as its users do: [`DevCluster`] starts it, [`Fault`] hurts it, [`http`] and [`dns`] ask
//! it, [`Tree`] is what it must serve. Only what the outside contract promises is used, so that
//! these tests survive any change within. [`InProcess`] runs the same roles from the same files
//! within the test's process, for tests through the client library. Nothing may depend on this
//! crate.

pub mod checks;
pub mod cluster;
pub mod disk;
pub mod dns;
pub mod failover;
pub mod faults;
pub mod history;
pub mod http;
pub mod in_process;
pub mod linear;
pub mod many_edges;
pub mod metrics;
pub mod payload;
pub mod process;
pub mod proxy;
pub mod publishes;
pub mod ready;
pub mod scenario;
pub mod seed;
pub mod shim;
pub mod tree;
pub mod visitors;
pub mod volume;
pub mod wait;
pub mod workload;

pub use cluster::{DevBuilder, DevCluster};
pub use disk::{DiskKind, LossyDisk};
pub use faults::{Fault, packets_cut};
pub use in_process::{InProcess, InProcessBuilder};
pub use process::Outcome;
pub use proxy::Proxy;
pub use ready::{Node, NodeRole, Ready};
pub use tree::Tree;
