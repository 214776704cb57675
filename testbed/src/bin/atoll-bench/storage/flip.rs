//! One bit turned in one server's copy: is it ever served, and when is the copy whole again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use atoll_testbed::faults::files;
use atoll_testbed::tree::random;
use atoll_testbed::{Fault, Node, checks, seed};

use super::{Bench, MIB, seconds, within};
use crate::Scale;
use crate::table::Table;

/// Reads of the file after the bit was turned.
const READS: usize = 8;
/// Bytes that find the copy on the disk.
const MARK: usize = 64;
/// Where in the file they are.
const MARK_AT: usize = 5 * MIB + 4096;

/// A file for each server; one bad copy at a time. A copy that no read touched is found by the
/// scrubber, which is told to look at everything.
pub(super) fn measure(atoll: &Path, scale: Scale, table: &mut Table) -> Result<()> {
    let bench = Bench::start(atoll, |builder| builder)?;
    let mut known = 0;
    let deadline = Duration::from_secs(scale.of(300) as u64);
    for id in 1..=3 {
        let node = Node::chunkserver(id);
        let place = format!("/flip-{id}");
        let content = random(&mut seed::rng(id), 16 * MIB);
        bench.runtime.block_on(bench.volume.put(&place, content.clone()))?;
        let mark = &content[MARK_AT..MARK_AT + MARK];
        let data = bench.cluster.ready().data(node).context("a data directory")?.to_owned();
        Fault::Stop(node).apply(&bench.cluster)?;
        let copies = files::find(&data, mark)?;
        for (path, at) in &copies {
            files::turn_bit(path, *at)?;
        }
        Fault::Start(node).apply(&bench.cluster)?;
        let name = format!("flip on {node}");
        if copies.is_empty() {
            table.row([name, "the copy was not found on its disk".to_owned(), String::new()]);
            continue;
        }
        let (mut right, mut wrong, mut failed) = (0, 0, 0);
        for _ in 0..READS {
            match bench.runtime.block_on(bench.volume.get(&place)) {
                Ok(Some(found)) if found == content => right += 1,
                Ok(_) => wrong += 1,
                Err(_) => failed += 1,
            }
        }
        let reads = format!("{right} right, {wrong} WRONG, {failed} failed");
        table.row([format!("{name}: reads"), reads, String::new()]);
        let status = checks::status(&bench.cluster)?;
        let found = status["chunks"]["corrupt_found"].as_u64().unwrap_or_default();
        let by_reads = found > known;
        known = found.max(known + 1);
        let found_by = if by_reads { "the reads" } else { "the scrubber" };
        table.row([format!("{name}: found by"), found_by.to_owned(), String::new()]);
        let asked = Instant::now();
        if !by_reads {
            let seconds = deadline.as_secs().to_string();
            bench.cluster.atoll(&["scrub", "--wait", "--timeout", &seconds])?.ok()?;
        }
        let mended = within(deadline, || files::find(&data, mark).is_ok_and(|at| !at.is_empty()));
        let took = mended.map(|_after| asked.elapsed());
        table.row([format!("{name}: mended"), seconds(&took), "s".to_owned()]);
    }
    bench.finish()
}
