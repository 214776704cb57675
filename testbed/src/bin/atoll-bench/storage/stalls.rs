//! A chunkserver freezes or dies while a file is read or written: the longest stall, and errors.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use atoll_testbed::tree::random;
use atoll_testbed::{Fault, Node, seed};

use super::{Bench, MIB, seconds, until_full};
use crate::Scale;
use crate::table::{Table, figure};

/// A frozen server stays frozen at most this long.
const FROZEN: Duration = Duration::from_secs(60);
/// Until a killed server that is back must have everything again.
const FULL_TIMEOUT: Duration = Duration::from_secs(300);
/// Between two pieces, so that the fault strikes in the middle.
const PIECE_PAUSE: Duration = Duration::from_millis(2);
const MIB_BYTES: u64 = 1 << 20;

/// What came of one file.
struct Stalls {
    longest: Duration,
    sync: Duration,
    error: Option<String>,
}

/// How far it is.
#[derive(Default)]
struct Progress {
    pieces: AtomicUsize,
    ended: AtomicBool,
}

/// SIGSTOP of one server: longest stall of a read and of a write, for each server once.
pub(super) fn freeze(atoll: &Path, scale: Scale, table: &mut Table) -> Result<()> {
    let bench = Bench::start(atoll, |builder| builder.mounted())?;
    let pieces = scale.of(64).max(16);
    for id in 1..=3 {
        let fault = Fault::Freeze(Node::chunkserver(id));
        let write = bench.hurt(pieces, &fault, FROZEN, |bench, progress| {
            let path = bench.cluster.mount().join(format!("frozen-{id}"));
            write(&path, id, pieces, progress)
        })?;
        fault.undo(&bench.cluster)?;
        bench.cluster.wait_healthy()?;
        row(table, &format!("freeze of chunkserver-{id}: write of {pieces} MiB"), &write);
        let read = bench.hurt(pieces, &fault, FROZEN, |bench, progress| {
            bench.read(&format!("/frozen-{id}"), id, pieces, progress)
        })?;
        fault.undo(&bench.cluster)?;
        bench.cluster.wait_healthy()?;
        row(table, &format!("freeze of chunkserver-{id}: read of {pieces} MiB"), &read);
    }
    bench.finish()
}

/// kill -9 of one server in the middle of a write; started again, until it has everything.
pub(super) fn kill_write(atoll: &Path, scale: Scale, table: &mut Table) -> Result<()> {
    let bench = Bench::start(atoll, |builder| builder.mounted())?;
    let pieces = scale.of(64).max(16);
    let fault = Fault::Kill(Node::chunkserver(3));
    let killed = bench.hurt(pieces, &fault, Duration::from_secs(120), |bench, progress| {
        write(&bench.cluster.mount().join("killed"), 9, pieces, progress)
    })?;
    row(table, &format!("kill-write: write of {pieces} MiB"), &killed);
    let read = bench.read("/killed", 9, pieces, &Progress::default());
    row(table, "kill-write: read while it is away", &read);
    fault.undo(&bench.cluster)?;
    let full = until_full(&bench.cluster, FULL_TIMEOUT)?;
    table.row([
        "kill-write: full again after its start".to_owned(),
        seconds(&full),
        "s".to_owned(),
    ]);
    bench.finish()
}

fn row(table: &mut Table, name: &str, stalls: &Stalls) {
    table.row([format!("{name}, longest stall"), figure(stalls.longest.as_secs_f64()), "s".into()]);
    if stalls.sync > Duration::ZERO {
        table.row([format!("{name}, fsync"), figure(stalls.sync.as_secs_f64()), "s".into()]);
    }
    let error = stalls.error.clone().unwrap_or_else(|| "none".to_owned());
    table.row([format!("{name}, error"), error, String::new()]);
}

impl Bench {
    /// Does the work on another thread, and lets the fault strike when a quarter is done. After
    /// `bound` the fault is undone, so that a stall without end ends.
    fn hurt(
        &self,
        pieces: usize,
        fault: &Fault,
        bound: Duration,
        work: impl FnOnce(&Self, &Progress) -> Stalls + Send,
    ) -> Result<Stalls> {
        let progress = Arc::new(Progress::default());
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let stalls = work(self, &progress);
                progress.ended.store(true, Ordering::Relaxed);
                stalls
            });
            while progress.pieces.load(Ordering::Relaxed) < pieces / 4
                && !progress.ended.load(Ordering::Relaxed)
            {
                sleep(Duration::from_millis(1));
            }
            ensure!(!progress.ended.load(Ordering::Relaxed), "it ended before the fault");
            fault.apply(&self.cluster)?;
            let struck = Instant::now();
            while !worker.is_finished() {
                if struck.elapsed() > bound && matches!(fault, Fault::Freeze(_)) {
                    fault.undo(&self.cluster)?;
                }
                sleep(Duration::from_millis(5));
            }
            worker.join().map_err(|_| anyhow!("the worker panicked"))
        })
    }

    fn read(&self, place: &str, seed: u64, pieces: usize, progress: &Progress) -> Stalls {
        let mut longest = Duration::ZERO;
        let result = self.runtime.block_on(async {
            let whole = self.volume.open(place).await?;
            for number in 0..pieces {
                let start = Instant::now();
                let at = number as u64 * MIB_BYTES;
                let found = whole.read_at(at, MIB).await;
                longest = longest.max(start.elapsed());
                let right = piece(seed, number);
                ensure!(found? == right, "piece {number}: WRONG BYTES");
                progress.pieces.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PIECE_PAUSE).await;
            }
            Ok(())
        });
        let error = result.err().map(|error: anyhow::Error| format!("{error:#}"));
        Stalls { longest, sync: Duration::ZERO, error }
    }
}

fn piece(seed: u64, number: usize) -> bytes::Bytes {
    random(&mut seed::rng(seed * 1_000_003 + number as u64), MIB)
}

fn write(path: &PathBuf, seed: u64, pieces: usize, progress: &Progress) -> Stalls {
    let (mut longest, mut sync) = (Duration::ZERO, Duration::ZERO);
    let mut run = || -> Result<()> {
        let mut file = File::create(path)?;
        for number in 0..pieces {
            let bytes = piece(seed, number);
            let start = Instant::now();
            let written = file.write_all(&bytes);
            longest = longest.max(start.elapsed());
            written.with_context(|| format!("after {number} MiB"))?;
            progress.pieces.fetch_add(1, Ordering::Relaxed);
            sleep(PIECE_PAUSE);
        }
        let start = Instant::now();
        let synced = file.sync_all();
        sync = start.elapsed();
        synced.context("fsync")
    };
    let error = run().err().map(|error| format!("{error:#}"));
    Stalls { longest, sync, error }
}
