//! `replication`: after a fault every chunk is back in all its places.

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Verdict, status};
use crate::cluster::DevCluster;
use crate::wait;

/// Whether this build counts the copies of chunks at all.
///
/// # Errors
/// When no master answers.
pub fn counts_copies(cluster: &DevCluster) -> Result<bool> {
    Ok(status(cluster)?["chunks"]["under_replicated"].is_u64())
}

/// Waits until `status --json` says that every placement group is clean and no chunk has fewer
/// copies than it should.
///
/// # Errors
/// When it does not in time, with what it says instead.
pub fn replication(cluster: &DevCluster, deadline: Duration) -> Result<Verdict> {
    let counted = counts_copies(cluster)?;
    let seen = wait::until("every chunk in all its places", deadline, || {
        let status = status(cluster)?;
        let (groups, chunks) = (&status["placement_groups"], &status["chunks"]);
        let clean = groups["clean"] == groups["total"] && groups["total"].as_u64() > Some(0);
        let copied = !counted || chunks["under_replicated"] == 0;
        if clean && copied && groups["degraded"] == 0 && groups["lost"] == 0 {
            return Ok(Some(format!(
                "{} groups clean, {} chunks",
                groups["clean"], chunks["live"]
            )));
        }
        bail!("{groups} {chunks} {}", status["reasons"])
    })?;
    if counted {
        return Ok(Verdict::Holds(seen));
    }
    Ok(Verdict::CannotTell(format!("{seen}; chunks.under_replicated is null")))
}
