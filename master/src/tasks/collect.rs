//! Collection: proposes to forget chunks that nothing has referred to for long, and to drop deltas
//! beyond the retention.
//!
//! A page or list is read first, because its children lose a reference with it. One that cannot be
//! read stays: a chunk too many does no harm.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_proto::error::WireResult;
use atoll_proto::master::ObjectKind;
use atoll_proto::{ChunkId, WireError, limits};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::operation::{Collected, Operation};
use crate::ops::change::store_failed;
use crate::ops::{admit, collect, deltas, upkeep};
use crate::raft::TASK_DEADLINE;
use crate::server::{Master, now_ms};
use crate::store::{StoreError, objects, unreferenced};

/// Children in one log entry, about: 33 bytes each.
const CHILDREN_PER_ENTRY: usize = 12_000;
/// Pages read at a time, so that memory stays bounded.
const READ_AT_ONCE: usize = 64;
/// Pages read one by one at the same time, when some cannot be read.
const READ_ALONE: usize = 8;
/// Log entries of one pass that drop deltas, so that a pass ends.
const EXPIRIES_MAX: usize = 64;

pub(crate) async fn run(master: Arc<Master>) {
    let every = Duration::from_millis(master.settings.collect_every_ms);
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = master.shutdown.wait() => return,
        }
        if !master.consensus.leads() {
            continue;
        }
        if let Err(error) = pass(&master).await {
            tracing::warn!(%error, "cannot collect yet");
        }
        if let Err(error) = expire_deltas(&master).await {
            tracing::warn!(%error, "cannot drop old deltas yet");
        }
    }
}

/// What the leader saw of an object that nothing refers to.
struct Idle {
    id: ChunkId,
    kind: ObjectKind,
    zero_since: u64,
}

/// Some objects that nothing refers to, and the row of the last that was looked at.
type Looked = (Vec<Idle>, Option<(u64, ChunkId)>);

/// Proposes everything that may be collected now.
async fn pass(master: &Master) -> WireResult<()> {
    master.consensus.read().await?;
    let state = master.consensus.state();
    metrics::gauge!("atoll_master_unreferenced")
        .set(unreferenced::count(&*state).map_err(store_failed)? as f64);
    if upkeep::held(&*state).map_err(store_failed)?.is_some() {
        return Ok(());
    }
    let before_ms = now_ms().saturating_sub(master.settings.collect_after_ms);
    let mut after: Option<(u64, ChunkId)> = None;
    let mut proposed = 0;
    while master.consensus.leads() && !master.shutdown.is_triggered() {
        let state = master.consensus.state();
        let look = move || idle(&state.view(), before_ms, after.as_ref());
        let looked = atoll_net::task::spawn_blocking("collect", look)
            .await
            .map_err(|error| WireError::internal(error.to_string()))?;
        let (idle, last) = looked.map_err(store_failed)?;
        let Some(last) = last else { break };
        after = Some(last);
        proposed += propose(master, idle).await?;
    }
    if proposed > 0 {
        tracing::info!(chunks = proposed, "collected chunks that nothing refers to");
    }
    Ok(())
}

/// Some objects without references since before `before_ms`, after the one named by `after`.
fn idle(
    read: &impl crate::store::Read,
    before_ms: u64,
    after: Option<&(u64, ChunkId)>,
) -> Result<Looked, StoreError> {
    let rows = unreferenced::older(read, before_ms, after, collect::OBJECTS_MAX)?;
    let mut idle = Vec::with_capacity(rows.len());
    for (_, id) in &rows {
        if let Some(object) = objects::get(read, id)?
            && let Some(since) = object.zero_since
            && object.refs == 0
        {
            idle.push(Idle { id: *id, kind: object.kind, zero_since: since.index });
        }
    }
    Ok((idle, rows.last().copied()))
}

/// Proposes to collect these, in entries of bounded size. Returns how many.
async fn propose(master: &Master, idle: Vec<Idle>) -> WireResult<u64> {
    let mut proposed = 0;
    let mut entry: Vec<Collected> = Vec::new();
    let mut children = 0;
    for part in idle.chunks(READ_AT_ONCE) {
        for object in with_children(master, part).await {
            children += object.children.len();
            entry.push(object);
            if children >= CHILDREN_PER_ENTRY {
                children = 0;
                proposed += commit(master, std::mem::take(&mut entry)).await?;
            }
        }
    }
    Ok(proposed + commit(master, entry).await?)
}

async fn commit(master: &Master, objects: Vec<Collected>) -> WireResult<u64> {
    if objects.is_empty() {
        return Ok(0);
    }
    let count = objects.len() as u64;
    let operation = Operation::Collect { objects };
    master.consensus.propose(&operation, Instant::now() + TASK_DEADLINE).await?;
    metrics::counter!("atoll_master_collected_total").increment(count);
    Ok(count)
}

/// The objects with their children; without the pages that cannot be read, unless nobody has them
/// any more: then they will never be read, and would stay for ever.
async fn with_children(master: &Master, part: &[Idle]) -> Vec<Collected> {
    let pages: Vec<ChunkId> =
        part.iter().filter(|it| it.kind != ObjectKind::Data).map(|it| it.id).collect();
    let read = master.read_pages(&pages).await;
    let mut collected = Vec::with_capacity(part.len());
    for Idle { id, kind, zero_since } in part {
        let children = match kind {
            ObjectKind::Data => Vec::new(),
            ObjectKind::Page | ObjectKind::List => {
                let Some(bytes) = read.get(id) else {
                    // What it referred to is found by the next recount.
                    if master.nobody_has(*id).await.unwrap_or(false) {
                        tracing::warn!(chunk = %id, "an unused page is collected: it is lost");
                        master.audit.ask();
                        let (kind, zero_since, children) = (*kind, *zero_since, Vec::new());
                        collected.push(Collected { id: *id, kind, zero_since, children });
                    } else {
                        tracing::warn!(chunk = %id, "an unused page stays: it cannot be read");
                    }
                    continue;
                };
                match admit::children(*id, *kind, bytes) {
                    Ok(children) => children.into_iter().map(|child| child.id).collect(),
                    Err(error) => {
                        tracing::error!(chunk = %id, %error, "an unused page stays");
                        continue;
                    }
                }
            }
        };
        collected.push(Collected { id: *id, kind: *kind, zero_since: *zero_since, children });
    }
    collected
}

impl Master {
    /// What can be read of these pages.
    pub(crate) async fn read_pages(&self, ids: &[ChunkId]) -> HashMap<ChunkId, Bytes> {
        let deadline = || Instant::now() + limits::CHUNK_DEADLINE;
        match self.read_chunks(ids, deadline()).await {
            Ok(found) => return found,
            Err(error) => tracing::debug!(%error, "some pages cannot be read together"),
        }
        let one = |id: ChunkId| async move { self.read_chunks(&[id], deadline()).await };
        let each: Vec<_> = futures_util::stream::iter(ids.iter().copied())
            .map(one)
            .buffer_unordered(READ_ALONE)
            .collect()
            .await;
        each.into_iter().flatten().flatten().collect()
    }
}

async fn expire_deltas(master: &Master) -> WireResult<()> {
    for _ in 0..EXPIRIES_MAX {
        if !deltas::too_many(&*master.consensus.state()).map_err(store_failed)? {
            break;
        }
        let deadline = Instant::now() + TASK_DEADLINE;
        master.consensus.propose(&Operation::ExpireDeltas, deadline).await?;
    }
    Ok(())
}
