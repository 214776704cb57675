//! What comparing replicas costs: on a quiet cluster of many small chunks, and with differences.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use atoll_testbed::{Fault, Node, checks};
use serde_json::Value;

use super::{Bench, seconds, until_full};
use crate::Scale;
use crate::table::{Table, figure};

/// Bytes of one small chunk.
const CHUNK_BYTES: usize = 64;
/// Chunks of one file.
const FILE_CHUNKS: usize = 8_000;
/// Chunks that one server misses.
const DIFFERENCES: usize = 100;
/// Until the differences must be gone.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Many chunks, a quiet minute, then a hundred differences.
pub(super) fn measure(atoll: &Path, scale: Scale, table: &mut Table) -> Result<()> {
    let bench = Bench::start(atoll, |builder| builder)?;
    let files = scale.of(100_000).div_ceil(FILE_CHUNKS);
    let began = Instant::now();
    for number in 0..files {
        put_small(&bench, number, FILE_CHUNKS)?;
    }
    let chunks = files * FILE_CHUNKS;
    let rate = chunks as f64 / began.elapsed().as_secs_f64();
    table.row([format!("reconcile: {chunks} chunks put"), figure(rate), "chunks/s".into()]);
    bench.cluster.wait_healthy()?;

    let servers = bench.cluster.ready().chunkservers.len() as f64;
    let period = Duration::from_secs(scale.of(60).max(10) as u64);
    let before = Counters::of(&bench)?;
    sleep(period);
    let spent = Counters::of(&bench)?.since(&before);
    let minutes = period.as_secs_f64() / 60.0;
    let per_server = |count: u64| figure(count as f64 / servers / minutes);
    table.row([
        "reconcile: quiet, bytes compared".into(),
        per_server(spent.bytes_sent),
        "B per server and minute".into(),
    ]);
    table.row([
        "reconcile: quiet, roots compared".into(),
        per_server(spent.roots_compared),
        "per server and minute".into(),
    ]);

    let before = Counters::of(&bench)?;
    plant_differences(&bench)?;
    let again = until_full(&bench.cluster, TIMEOUT)?;
    let spent = Counters::of(&bench)?.since(&before);
    let name = format!("reconcile: {DIFFERENCES} differences");
    table.row([format!("{name}, until in sync"), seconds(&again), "s".into()]);
    table.row([format!("{name}, bytes compared"), spent.bytes_sent.to_string(), "B".into()]);
    table.row([format!("{name}, mismatches"), spent.mismatches.to_string(), String::new()]);
    bench.finish()
}

/// Makes a server differ by a known number of chunks: they are put while it is away. It learns of
/// them as it learns of any change it missed; a difference that no feed tells of has to be planted
/// by other means than the outside gives.
fn plant_differences(bench: &Bench) -> Result<()> {
    let node = Node::chunkserver(3);
    Fault::Kill(node).apply(&bench.cluster)?;
    put_small(bench, usize::MAX, DIFFERENCES)?;
    Fault::Start(node).apply(&bench.cluster)
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
    bytes_sent: u64,
    roots_compared: u64,
    mismatches: u64,
}

impl Counters {
    fn of(bench: &Bench) -> Result<Self> {
        let status = checks::status(&bench.cluster)?;
        let of = |field: &str| {
            let value: &Value = &status["reconcile"][field];
            value.as_u64().with_context(|| format!("reconcile.{field} in {status}"))
        };
        Ok(Self {
            bytes_sent: of("bytes_sent")?,
            roots_compared: of("roots_compared")?,
            mismatches: of("mismatches")?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            bytes_sent: self.bytes_sent.saturating_sub(before.bytes_sent),
            roots_compared: self.roots_compared.saturating_sub(before.roots_compared),
            mismatches: self.mismatches.saturating_sub(before.mismatches),
        }
    }
}
