//! Checkers, named after the promises they try to catch broken.
//!
//! [`acked_is_durable`] and [`no_wrong_bytes`] judge what a running cluster gives back against a
//! [`History`](crate::history::History); [`replication`] and [`no_orphans`] believe what it says
//! about itself; [`never_stale_after_ack`] and [`log_order`] judge what visitors saw of publishes
//! and need no cluster. A checker that this build gives no means to check says so: [`Verdict::CannotTell`]
//! is for the reader of the report, never a silent success.

mod durable;
mod orphans;
mod replicas;
mod stale;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::runtime::Handle;

pub use durable::{Extent, acked_is_durable, no_wrong_bytes};
pub use orphans::{no_orphans, nothing_unreferenced_is_kept};
pub use replicas::{counts_copies, replication};
pub use stale::{
    Acknowledged, Entry, Publishes, Racer, Request, Seen, Stale, log_order, never_stale_after_ack,
};

use crate::cluster::DevCluster;
use crate::volume::Volume;

/// What a checker found, when it found nothing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The promise holds; what was looked at.
    Holds(String),
    /// This build has no means to tell; which are missing.
    CannotTell(String),
}

/// How checkers look at a cluster.
pub struct Eyes {
    /// Which.
    pub cluster: Arc<DevCluster>,
    /// Its file system.
    pub volume: Volume,
    /// Runs what is asynchronous; its runtime has threads of its own.
    pub handle: Handle,
    /// Whether it is mounted.
    pub mounted: bool,
}

impl Eyes {
    /// Connects to a running cluster.
    ///
    /// # Errors
    /// When no master answers.
    pub fn open(cluster: &Arc<DevCluster>, handle: &Handle) -> Result<Self> {
        let volume = handle.block_on(Volume::connect(cluster)).context("a checker connects")?;
        let mounted = cluster.ready().mount.is_some();
        Ok(Self { cluster: Arc::clone(cluster), volume, handle: handle.clone(), mounted })
    }
}

/// The object of `atoll status --json`, healthy or not.
///
/// # Errors
/// When no master answers.
pub fn status(cluster: &DevCluster) -> Result<Value> {
    cluster.atoll(&["status", "--json"])?.last()
}
