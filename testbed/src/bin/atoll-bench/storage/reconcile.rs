//! What comparing replicas costs: on a quiet cluster of many small chunks, and with differences.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use atoll_proto::limits::HEARTBEAT_QUIET;
use atoll_testbed::metrics::Scrape;
use atoll_testbed::{Fault, Node, checks, wait};

use super::{Bench, seconds, within};
use crate::Scale;
use crate::table::{Table, figure};

/// Bytes of one small chunk.
const CHUNK_BYTES: usize = 64;
/// Chunks of one file.
const FILE_CHUNKS: usize = 8_000;
/// How many chunks there are, in turn.
const SIZES: [usize; 3] = [10_000, 100_000, 1_000_000];
/// Chunks that one server loses.
const DIFFERENCES: usize = 100;
/// Until the differences must be gone, and until everything is in all its places at first.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Until two looks at the counters find the same: what came before has been compared.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// More and more chunks; each time a quiet minute, then a hundred differences.
pub(super) fn measure(atoll: &Path, scale: Scale, table: &mut Table) -> Result<()> {
    let bench = Bench::start(atoll, |builder| builder)?;
    let (mut chunks, mut number) = (0, 0);
    for size in SIZES {
        let size = scale.of(size);
        let (began, had) = (Instant::now(), chunks);
        while chunks < size {
            let some = FILE_CHUNKS.min(size - chunks);
            put_small(&bench, number, some)?;
            chunks += some;
            number += 1;
        }
        let rate = (chunks - had) as f64 / began.elapsed().as_secs_f64();
        let name = format!("reconcile: {} chunks", figure(chunks as f64));
        table.row([format!("{name}, put"), figure(rate), "chunks/s".into()]);
        quiet(&bench, scale, &name, table)?;
        differ(&bench, size as u64, &name, table)?;
    }
    bench.finish()
}

/// What a cluster that nobody uses compares.
fn quiet(bench: &Bench, scale: Scale, name: &str, table: &mut Table) -> Result<()> {
    checks::replication(&bench.cluster, TIMEOUT)?;
    settle(bench)?;
    let servers = bench.cluster.ready().chunkservers.len() as f64;
    let period = Duration::from_secs(scale.of(60).max(10) as u64);
    let before = Counters::of(bench)?;
    sleep(period);
    let spent = Counters::of(bench)?.since(&before);
    let beats = period.as_secs_f64() / HEARTBEAT_QUIET.as_secs_f64();
    let per_beat = spent.compared_bytes as f64 / servers / beats;
    let unit = "B per server and heartbeat".to_owned();
    table.row([format!("{name}, quiet: compared"), figure(per_beat), unit]);
    Ok(())
}

/// Makes a server lose chunks of which no feed tells, and waits until they are there again.
fn differ(bench: &Bench, seed: u64, name: &str, table: &mut Table) -> Result<()> {
    let node = Node::chunkserver(3);
    Fault::Stop(node).apply(&bench.cluster)?;
    Fault::LoseChunks { node, count: DIFFERENCES, seed }.apply(&bench.cluster)?;
    // Those of the one that is down begin anew with it.
    let before = Counters::of_all_but(bench, Some(node))?;
    Fault::Start(node).apply(&bench.cluster)?;
    let again = until_mended(bench, DIFFERENCES as u64)?;
    checks::replication(&bench.cluster, TIMEOUT)?;
    settle(bench)?;
    let spent = Counters::of(bench)?.since(&before);
    let name = format!("{name}, {DIFFERENCES} lost");
    table.row([format!("{name}: until mended"), seconds(&again), "s after its start".into()]);
    for (what, bytes) in [("compared", spent.compared_bytes), ("by walks, of these", spent.walked)]
    {
        let kib = bytes as f64 / 1024.0;
        table.row([format!("{name}: {what}"), figure(kib), "KiB, all servers".into()]);
    }
    table.row([format!("{name}: mended"), spent.repaired.to_string(), "chunks".into()]);
    Ok(())
}

/// How long until so many chunks have been repaired; the server has just started.
fn until_mended(bench: &Bench, chunks: u64) -> Result<Result<Duration, String>> {
    let admin = bench.cluster.ready().chunkservers[2].admin.context("its admin address")?;
    Ok(within(TIMEOUT, || {
        Scrape::of(admin).is_ok_and(|it| it.sum("atoll_chunk_repaired_total") >= chunks as f64)
    }))
}

/// Waits until comparing has come to rest.
fn settle(bench: &Bench) -> Result<()> {
    let mut last = Counters::of(bench)?;
    let pause = HEARTBEAT_QUIET * 3;
    wait::until("comparing to come to rest", SETTLED_WITHIN, || {
        sleep(pause);
        let now = Counters::of(bench)?;
        let spent = now.since(&last);
        last = now;
        let at_rest = spent.mismatches == 0 && spent.compared_bytes < 64 * 4 * 3;
        Ok(at_rest.then_some(()))
    })
}

/// A file of so many chunks that no other file has.
fn put_small(bench: &Bench, number: usize, chunks: usize) -> Result<()> {
    let parts = (0..chunks).map(|index| {
        let key = blake3::hash(format!("{number} {index}").as_bytes());
        key.as_bytes().repeat(CHUNK_BYTES / 32).into()
    });
    let place = format!("/small/{number}");
    bench.runtime.block_on(bench.volume.put_parts(&place, parts.collect())).context("put")
}

/// What comparing has cost so far.
struct Counters {
    compared_bytes: u64,
    walked: u64,
    mismatches: u64,
    repaired: u64,
}

impl Counters {
    fn of(bench: &Bench) -> Result<Self> {
        Self::of_all_but(bench, None)
    }

    fn of_all_but(bench: &Bench, away: Option<Node>) -> Result<Self> {
        let mut all = Self { compared_bytes: 0, walked: 0, mismatches: 0, repaired: 0 };
        for (at, server) in bench.cluster.ready().chunkservers.iter().enumerate() {
            if away == Some(Node::chunkserver(at as u64 + 1)) {
                continue;
            }
            let scrape = Scrape::of(server.admin.context("an admin address")?)?;
            all.compared_bytes += scrape.sum("atoll_chunk_compared_bytes_total") as u64;
            let walked = scrape.sum_where("atoll_chunk_compared_bytes_total", "by=\"walk\"");
            all.walked += walked as u64;
            all.mismatches += scrape.sum("atoll_chunk_mismatches_total") as u64;
            all.repaired += scrape.sum("atoll_chunk_repaired_total") as u64;
        }
        Ok(all)
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            compared_bytes: self.compared_bytes.saturating_sub(before.compared_bytes),
            walked: self.walked.saturating_sub(before.walked),
            mismatches: self.mismatches.saturating_sub(before.mismatches),
            repaired: self.repaired.saturating_sub(before.repaired),
        }
    }
}
