//! What the processes of a cluster use when nobody asks for anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use atoll_testbed::{DevCluster, process};

use crate::Scale;
use crate::table::{Table, figure};

/// Until what a start begins has settled.
const SETTLE: Duration = Duration::from_secs(10);

/// CPU seconds per minute of every process, by role, and their memory.
pub(super) fn measure(atoll: &Path, scale: Scale, table: &mut Table) -> Result<()> {
    let cluster = DevCluster::builder().binary(atoll).start()?;
    cluster.wait_healthy()?;
    sleep(SETTLE);
    let period = Duration::from_secs(scale.of(60).max(10) as u64);
    let before = cpu(&cluster)?;
    sleep(period);
    let after = cpu(&cluster)?;
    let (mut all, mut resident) = (0.0, 0);
    for (role, (used, bytes)) in &after {
        let used = used.saturating_sub(before.get(role).copied().unwrap_or_default().0);
        let per_minute = used.as_secs_f64() * 60.0 / period.as_secs_f64();
        all += per_minute;
        resident += bytes;
        table.row([format!("idle: {role}"), figure(per_minute), "CPU-s per minute".to_owned()]);
    }
    table.row(["idle: all".to_owned(), figure(all), "CPU-s per minute".to_owned()]);
    let mib = resident as f64 / (1 << 20) as f64;
    table.row(["idle: memory of all".to_owned(), figure(mib), "MiB resident".to_owned()]);
    cluster.finish()
}

/// CPU time and resident bytes of all processes of each role.
fn cpu(cluster: &DevCluster) -> Result<BTreeMap<String, (Duration, u64)>> {
    let mut by_role: BTreeMap<String, (Duration, u64)> = BTreeMap::new();
    for found in cluster.processes() {
        let role = found.arguments.get(1).cloned().unwrap_or_default();
        let used = process::cpu_time(found.pid)?;
        let sum = by_role.entry(role).or_default();
        sum.0 += used;
        sum.1 += resident(found.pid)?;
    }
    Ok(by_role)
}

fn resident(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}
