//! `no_orphans`: nothing refers to a chunk that is not there, and no chunk is kept that nothing
//! refers to.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Verdict, status};
use crate::cluster::DevCluster;
use crate::wait;

/// What clap exits with when it knows no such verb.
const USAGE: i32 = 2;

/// `atoll fsck` finds nothing.
///
/// # Errors
/// When it does, with what.
pub fn no_orphans(cluster: &DevCluster) -> Result<Verdict> {
    if cluster.atoll(&["fsck", "--help"])?.code == Some(USAGE) {
        return Ok(Verdict::CannotTell("this build has no `atoll fsck`".to_owned()));
    }
    let found = cluster.atoll(&["fsck"])?.ok().context("no_orphans")?;
    Ok(Verdict::Holds(found.text().lines().last().unwrap_or("fsck is content").to_owned()))
}

/// Waits until no more chunks are live at the master than `live_max`, and no chunkserver holds more
/// than that. For a cluster whose periods of collection and quarantine are short.
///
/// # Errors
/// When more are kept at the deadline.
pub fn nothing_unreferenced_is_kept(
    cluster: &DevCluster,
    live_max: u64,
    deadline: Duration,
) -> Result<Verdict> {
    wait::until("unreferenced chunks are gone", deadline, || {
        let status = status(cluster)?;
        let live = status["chunks"]["live"].as_u64().context("chunks.live")?;
        let servers = status["chunkservers"].as_array().context("chunkservers")?;
        let kept = servers.iter().filter_map(|server| server["chunks"].as_u64()).max();
        let kept = kept.context("chunkservers[].chunks")?;
        if live > live_max || kept > live_max {
            bail!("{live} chunks are live, a server keeps {kept}; {live_max} are referred to");
        }
        Ok(Some(Verdict::Holds(format!("{live} live, at most {kept} on a server"))))
    })
}
