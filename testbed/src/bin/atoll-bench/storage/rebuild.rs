//! A replica lost whole: how fast it is made anew.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use atoll_testbed::tree::random;
use atoll_testbed::{Fault, Node, checks, seed};

use super::{Bench, MIB, stored_bytes, until_full, within};
use crate::Scale;
use crate::table::{Table, figure};

/// Of one file of the data set.
const FILE_BYTES: usize = 8 * MIB;
/// Until it must be made anew.
const TIMEOUT: Duration = Duration::from_secs(900);

/// 2 GiB on three servers, one of them wiped.
pub(super) fn measure(atoll: &Path, scale: Scale, table: &mut Table) -> Result<()> {
    let bench = Bench::start(atoll, |builder| builder)?;
    if !checks::counts_copies(&bench.cluster)? {
        let why = "this build does not count copies".to_owned();
        table.row(["rebuild".to_owned(), why, String::new()]);
        return bench.finish();
    }
    let mib = scale.of(2048);
    bench.runtime.block_on(async {
        for number in 0..mib * MIB / FILE_BYTES {
            let content = random(&mut seed::rng(number as u64), FILE_BYTES);
            bench.volume.put(&format!("/set/{number}"), content).await?;
        }
        anyhow::Ok(())
    })?;
    checks::replication(&bench.cluster, TIMEOUT).context("before the loss")?;
    let node = Node::chunkserver(3);
    let had = stored_bytes(&bench, node)?;
    Fault::Stop(node).apply(&bench.cluster)?;
    Fault::Wipe(node).apply(&bench.cluster)?;
    Fault::Start(node).apply(&bench.cluster)?;
    let began = Instant::now();
    let there = within(TIMEOUT, || stored_bytes(&bench, node).is_ok_and(|bytes| bytes >= had));
    let clean = until_full(&bench.cluster, TIMEOUT)?.map(|_| began.elapsed());
    match there.and(clean) {
        Ok(time) => {
            let rate = figure(mib as f64 / time.as_secs_f64());
            table.row([format!("rebuild of {mib} MiB"), rate, "MiB/s".to_owned()]);
            table.row(["rebuild: until clean".into(), figure(time.as_secs_f64()), "s".into()]);
        }
        Err(why) => table.row([format!("rebuild of {mib} MiB"), why, String::new()]),
    }
    bench.finish()
}
