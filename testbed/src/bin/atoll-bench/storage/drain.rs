//! One of four servers is drained under load: what moves, how fast, and whether anybody notices.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use atoll_testbed::metrics::Scrape;
use atoll_testbed::tree::random;
use atoll_testbed::{Node, checks, seed};

use super::{Bench, MIB, stored_bytes};
use crate::Scale;
use crate::table::{Table, figure};

/// Of one file of the data set.
const FILE_BYTES: usize = 8 * MIB;
/// Of a file that is written meanwhile.
const SMALL_BYTES: usize = 64 << 10;
/// Between two operations of the load.
const PAUSE: Duration = Duration::from_millis(10);
/// Until every chunk is in all its places.
const TIMEOUT: Duration = Duration::from_secs(900);

/// What the load has done.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
    failed: AtomicU64,
}

/// A gibibyte on four servers; one goes.
pub(super) fn measure(atoll: &Path, scale: Scale, table: &mut Table) -> Result<()> {
    let bench = Bench::start(atoll, |builder| builder.chunkservers(4))?;
    let mib = scale.of(1024);
    let files = mib * MIB / FILE_BYTES;
    bench.runtime.block_on(async {
        for number in 0..files {
            bench.volume.put(&format!("/set/{number}"), content(number)).await?;
        }
        anyhow::Ok(())
    })?;
    checks::replication(&bench.cluster, TIMEOUT).context("before the drain")?;
    let leaving = Node::chunkserver(2);
    let kept = stored_bytes(&bench, leaving)?;
    let moved_before = counted(&bench, None, MOVED)?;
    let taken_before = counted(&bench, Some(leaving), TAKEN)?;
    let load = Load::default();
    let (began, took, written) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&bench, files, &load));
        let writer = scope.spawn(|| write(&bench, &load));
        let began = Instant::now();
        let drain = bench.cluster.start_atoll(&["node", "drain", "chunkserver-2", "--wait"]);
        let drained = drain.and_then(|running| running.finish(TIMEOUT));
        let took = began.elapsed();
        load.stop.store(true, Ordering::Relaxed);
        reader.join().ok();
        writer.join().ok();
        drained?.ok()?;
        anyhow::Ok((began, took, load.writes.load(Ordering::Relaxed)))
    })?;
    checks::replication(&bench.cluster, TIMEOUT).context("after the drain")?;
    let clean = began.elapsed();
    let moved = counted(&bench, None, MOVED)? - moved_before;
    let taken = counted(&bench, Some(leaving), TAKEN)? - taken_before;
    // What it took of the writes until its groups had moved on must move, too.
    let share = moved as f64 / (kept + taken) as f64;
    let mut row = |what: &str, value: String, unit: &str| {
        table.row([format!("drain: {what}"), value, unit.to_owned()]);
    };
    row("bytes of the server that leaves", figure(kept as f64 / MIB as f64), "MiB");
    row("bytes it took of the writes meanwhile", figure(taken as f64 / MIB as f64), "MiB");
    row("bytes moved, of both", figure(100.0 * share), "%");
    row("until it keeps nothing", figure(took.as_secs_f64()), "s");
    row("until all is clean", figure(clean.as_secs_f64()), "s");
    row("reads meanwhile", load.reads.load(Ordering::Relaxed).to_string(), "files of 8 MiB");
    row("writes meanwhile", written.to_string(), "files of 64 KiB");
    row("of them failed or wrong", load.failed.load(Ordering::Relaxed).to_string(), "");
    bench.finish()
}

fn content(number: usize) -> bytes::Bytes {
    random(&mut seed::rng(number as u64), FILE_BYTES)
}

fn read(bench: &Bench, files: usize, load: &Load) {
    for number in (0..files).cycle() {
        if load.stop.load(Ordering::Relaxed) {
            return;
        }
        let found = bench.runtime.block_on(bench.volume.get(&format!("/set/{number}")));
        load.note(&load.reads, found.map(|found| found == Some(content(number))));
    }
}

fn write(bench: &Bench, load: &Load) {
    let mut rng = seed::rng(1 << 40);
    for number in 0_u64.. {
        if load.stop.load(Ordering::Relaxed) {
            return;
        }
        let bytes = random(&mut rng, SMALL_BYTES);
        let put = bench.runtime.block_on(bench.volume.put(&format!("/new/{number}"), bytes));
        load.note(&load.writes, put.map(|()| true));
    }
}

impl Load {
    fn note(&self, done: &AtomicU64, right: Result<bool>) {
        done.fetch_add(1, Ordering::Relaxed);
        if !right.unwrap_or(false) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Bytes of chunks that servers have fetched from each other.
const MOVED: &str = "atoll_chunk_repaired_bytes_total";
/// Bytes of chunks that a server has written.
const TAKEN: &str = "atoll_chunk_stored_bytes_total";

/// A counter of one chunkserver, or the sum of all.
fn counted(bench: &Bench, of: Option<Node>, counter: &str) -> Result<u64> {
    let mut all = 0;
    for (id, server) in (1..).zip(&bench.cluster.ready().chunkservers) {
        if of.is_none_or(|node| node == Node::chunkserver(id)) {
            let scrape = Scrape::of(server.admin.context("an admin address")?)?;
            all += scrape.sum(counter) as u64;
        }
    }
    Ok(all)
}
