//! Storage under faults: stalls while a server is frozen or killed, a turned bit, a lost replica,
//! what comparing replicas costs, and what a cluster does when nobody asks it for anything.
//!
//! Everything that waits has a deadline; what did not happen by then stands in the table as such.

mod drain;
mod flip;
mod idle;
mod rebuild;
mod reconcile;
mod stalls;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use atoll_testbed::volume::Volume;
use atoll_testbed::{DevBuilder, DevCluster, Node, checks, wait};
use tokio::runtime::Runtime;

use crate::Scale;
use crate::table::{Report, Table};

const MIB: usize = 1 << 20;

/// The measurements, by name.
pub(crate) const NAMES: [&str; 7] =
    ["idle", "freeze", "kill-write", "flip", "reconcile", "rebuild", "drain"];

/// Takes those that are wanted. Not for asynchronous code.
pub(crate) fn measure(
    atoll: &Path,
    wanted: impl Fn(&str) -> bool,
    scale: Scale,
    report: &mut Report,
) -> Result<()> {
    let mut table = Table::new("Storage under faults", &["workload", "figure", "unit"]);
    type Measurement = fn(&Path, Scale, &mut Table) -> Result<()>;
    let all: [(&str, Measurement); 7] = [
        ("idle", idle::measure),
        ("freeze", stalls::freeze),
        ("kill-write", stalls::kill_write),
        ("flip", flip::measure),
        ("reconcile", reconcile::measure),
        ("rebuild", rebuild::measure),
        ("drain", drain::measure),
    ];
    for (name, take) in all.into_iter().filter(|(name, _)| wanted(name)) {
        crate::note(name);
        take(atoll, scale, &mut table)?;
    }
    report.add(table);
    Ok(())
}

/// A cluster and what looks at it.
struct Bench {
    cluster: Arc<DevCluster>,
    volume: Volume,
    runtime: Runtime,
}

impl Bench {
    fn start(atoll: &Path, build: impl FnOnce(DevBuilder) -> DevBuilder) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let builder = DevCluster::builder().binary(atoll).edges(0).shields(0);
        let cluster = Arc::new(build(builder).start()?);
        let volume = runtime.block_on(Volume::connect(&cluster))?;
        Ok(Self { cluster, volume, runtime })
    }

    fn finish(self) -> Result<()> {
        drop(self.volume);
        let cluster = Arc::into_inner(self.cluster);
        cluster.ok_or_else(|| anyhow::anyhow!("somebody holds the cluster"))?.finish()
    }
}

/// How long until every chunk is in all its places; why it is not known otherwise.
fn until_full(cluster: &DevCluster, deadline: Duration) -> Result<Result<Duration, String>> {
    if !checks::counts_copies(cluster)? {
        return Ok(Err("this build does not count copies".to_owned()));
    }
    let start = Instant::now();
    match checks::replication(cluster, deadline) {
        Ok(_) => Ok(Ok(start.elapsed())),
        Err(_) => Ok(Err(format!("not within {deadline:?}"))),
    }
}

/// Seconds as a cell, or why there are none.
fn seconds(measured: &Result<Duration, String>) -> String {
    match measured {
        Ok(time) => crate::table::figure(time.as_secs_f64()),
        Err(why) => why.clone(),
    }
}

/// A wait that may end without what was waited for.
fn within(deadline: Duration, look: impl FnMut() -> bool) -> Result<Duration, String> {
    let start = Instant::now();
    match wait::holds("it", deadline, look) {
        Ok(()) => Ok(start.elapsed()),
        Err(_) => Err(format!("not within {deadline:?}")),
    }
}

/// Bytes of chunks at one server, as the cluster says.
fn stored_bytes(bench: &Bench, node: Node) -> Result<u64> {
    let status = checks::status(&bench.cluster)?;
    let servers = status["chunkservers"].as_array().context("chunkservers")?;
    let found = servers.iter().find(|server| server["id"] == node.id);
    found.and_then(|server| server["bytes"].as_u64()).context("its bytes")
}
