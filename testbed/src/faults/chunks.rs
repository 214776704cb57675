//! Chunks that a stopped chunkserver's store loses without a trace. Done with the store's own code:
//! its index, digests and totals agree afterwards, so nothing but a comparison can tell.

use std::path::Path;

use anyhow::{Result, ensure};
use atoll_chunkserver::store::rocks::RocksStore;
use atoll_chunkserver::store::{Body, ChunkStore as _, Mark};
use atoll_proto::ChunkId;
use rand::seq::IteratorRandom as _;

use crate::seed;

/// The store in a chunkserver's data directory.
const STORE: &str = "chunks";
/// Records looked at in one go.
const PAGE: usize = 4096;

/// Takes so many live chunks, chosen at random, out of the store.
///
/// # Errors
/// When the node runs, has fewer chunks, or of the disk.
pub(super) fn lose(data: &Path, count: usize, seed: u64) -> Result<()> {
    let store = RocksStore::open(&data.join(STORE), None)?;
    let mut live = Vec::new();
    let mut after: Option<ChunkId> = None;
    loop {
        let page = store.list(after.as_ref(), PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        let here = page.iter().filter(|(_, it)| it.live && it.body == Body::Present);
        live.extend(here.map(|(id, _)| *id));
    }
    let lost = live.into_iter().choose_multiple(&mut seed::rng(seed), count);
    ensure!(lost.len() == count, "only {} live chunks in {}", lost.len(), data.display());
    let marks: Vec<_> = lost.iter().map(|id| (*id, Mark::Collected)).collect();
    // Long ago, so that only these are deleted.
    store.mark(&marks, 1, None)?;
    let mut left = count as u64;
    while left > 0 {
        let purged = store.purge(2, PAGE)?;
        ensure!(purged.chunks > 0, "{left} chunks are still there");
        left = left.saturating_sub(purged.chunks);
    }
    store.close();
    Ok(())
}
