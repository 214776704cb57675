//! Sweeping: what nobody needs here goes to quarantine, and what has been there long enough is
//! deleted.
//!
//! A chunk that was put and never became live may belong to an upload that is not committed yet;
//! one older than any receipt for it is asked about at the master, and only what the master does
//! not have is moved, as far as [`crate::reconcile::breaker`] allows. Groups that this node is
//! neither a member of nor leaving are released whole. Nothing is moved or deleted while frozen.

use std::sync::Arc;
use std::time::Duration;

use atoll_net::Shutdown;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{ChunkId, PgId, WireError, limits};

use super::clock;
use crate::node::Node;
use crate::reconcile::breaker::{Dropping, Leave};
use crate::reconcile::pause::Point;
use crate::store::{Body, ChunkStore, StoreError};

/// How long a master may take to say what it has.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(10);
/// Records looked at in one step.
const STEP_RECORDS: usize = 1024;
/// Chunks deleted in one step.
const PURGE_MAX: usize = 256;
/// How long until a sweep that failed is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// Runs until shutdown.
pub(crate) async fn sweep(node: Arc<Node>, shutdown: Shutdown) {
    let every = node.upkeep.settings.sweep_every;
    let work = async {
        // What is allowed is not known before a master has answered, which starts the first sweep.
        node.upkeep.sweep_now.notified().await;
        loop {
            let wait = match sweep_once(&node).await {
                Ok(()) => every,
                Err(reason) => {
                    tracing::debug!(reason, "cannot sweep now");
                    RETRY.min(every)
                }
            };
            // Both mean the same: it is time.
            drop(tokio::time::timeout(wait, node.upkeep.sweep_now.notified()).await);
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.wait() => {}
    }
}

async fn sweep_once(node: &Node) -> Result<(), String> {
    let (mut moved, mut purged) = (0, 0);
    for pg in flat(node.at_the_disk("sweep", known_groups).await)? {
        if is_held(node) {
            return Ok(());
        }
        moved += if is_reader(node, pg)? {
            sweep_pending(node, pg).await?
        } else {
            release(node, pg).await?
        };
    }
    let lifetime_ms = node.upkeep.settings.quarantine_lifetime_ms;
    loop {
        if is_held(node) {
            return Ok(());
        }
        let before_ms = clock::now_ms().saturating_sub(lifetime_ms);
        let purge = node.at_the_disk("purge", move |store| store.purge(before_ms, PURGE_MAX));
        let step = flat(purge.await)?;
        purged += step.chunks;
        metrics::counter!("atoll_chunk_purged_total").increment(step.chunks);
        metrics::counter!("atoll_chunk_purged_bytes_total").increment(step.bytes);
        if step.chunks == 0 {
            break;
        }
    }
    if moved + purged > 0 {
        tracing::info!(moved, purged, "moved to quarantine, and deleted from there");
    }
    Ok(())
}

/// Groups of which anything is known here: asking about each of them would wake a thread for every
/// one that is empty. Blocks.
fn known_groups(store: &dyn ChunkStore) -> Result<Vec<PgId>, StoreError> {
    let mut known = Vec::new();
    for pg in (0..PG_COUNT).map(PgId) {
        if !store.list_group(pg, None, 1)?.is_empty() {
            known.push(pg);
        }
    }
    Ok(known)
}

/// Whether nothing may be moved or deleted now. What an alarm has halted stays as it is until
/// somebody has looked at it, what is in quarantine too.
fn is_held(node: &Node) -> bool {
    node.upkeep.breaker().is_held()
}

/// Whether chunks of a group are read from this node, by the newest table there is.
fn is_reader(node: &Node, pg: PgId) -> Result<bool, String> {
    let view = node.placement.view().ok_or("no placement table is known yet")?;
    if node.placement.is_behind() || view.table.epoch.0 == 0 {
        return Err("the placement table is old".to_owned());
    }
    Ok(view.table.readers(pg).any(|reader| reader == node.id))
}

/// This node has left the group: all of its chunks go.
async fn release(node: &Node, pg: PgId) -> Result<u64, String> {
    let look = move |store: &dyn ChunkStore| holds_any(store, pg);
    if !flat(node.at_the_disk("sweep", look).await)? {
        return Ok(0);
    }
    // Held so that no walk marks what is let go, by an older table.
    let feed = node.upkeep.feed.lock().await;
    if is_held(node) || is_reader(node, pg)? {
        return Ok(0);
    }
    let now_ms = clock::now_ms();
    let release = node.at_the_disk("release", move |store| store.release_group(pg, now_ms));
    let released = flat(release.await)?;
    drop(feed);
    tracing::info!(group = pg.0, released, "this node is no member any more: let its chunks go");
    Ok(released)
}

/// Whether a group has chunks that are live or present. Blocks.
fn holds_any(store: &dyn ChunkStore, pg: PgId) -> Result<bool, StoreError> {
    let mut after = None;
    loop {
        let records = store.list_group(pg, after.as_ref(), STEP_RECORDS)?;
        if records.iter().any(|(_, record)| record.live || record.body == Body::Present) {
            return Ok(true);
        }
        match records.last().filter(|_| records.len() == STEP_RECORDS) {
            Some((last, _)) => after = Some(*last),
            None => return Ok(false),
        }
    }
}

/// Chunks of a group that never became live and are old.
#[derive(Debug, Default)]
struct Pending {
    ids: Vec<ChunkId>,
    /// Present chunks of the group.
    of: u64,
}

async fn sweep_pending(node: &Node, pg: PgId) -> Result<u64, String> {
    let lifetime_ms = node.upkeep.settings.pending_lifetime_ms;
    let before_ms = clock::now_ms().saturating_sub(lifetime_ms);
    let look = move |store: &dyn ChunkStore| pending(store, pg, before_ms);
    let Pending { ids, of } = flat(node.at_the_disk("sweep", look).await)?;
    if ids.is_empty() {
        return Ok(0);
    }
    let mut unneeded = Vec::new();
    for some in ids.chunks(limits::PUT_CHUNKS_MAX) {
        unneeded.append(&mut unknown_to_master(node, some).await?);
    }
    if unneeded.is_empty() {
        return Ok(0);
    }
    node.upkeep.pause(Point::SweepConfirmed).await;
    let dropping = Dropping { pg, chunks: unneeded.len() as u64, of };
    let cause = "put, and never referred to";
    let leave = node.upkeep.breaker().ask(dropping, cause);
    if leave != Leave::Granted {
        let chunks = unneeded.len();
        tracing::warn!(group = pg.0, chunks, ?leave, "chunks are kept: {cause}");
        return Ok(0);
    }
    let now_ms = clock::now_ms();
    // Those that were put again in between are young again: the store sees that as it moves them.
    let still_old =
        move |store: &dyn ChunkStore| store.quarantine_older(&unneeded, before_ms, now_ms);
    let moved = flat(node.at_the_disk("quarantine", still_old).await)?;
    metrics::counter!("atoll_chunk_pending_swept_total").increment(moved);
    Ok(moved)
}

/// Blocks.
fn pending(store: &dyn ChunkStore, pg: PgId, before_ms: u64) -> Result<Pending, StoreError> {
    let (mut pending, mut after) = (Pending::default(), None);
    loop {
        let records = store.list_group(pg, after.as_ref(), STEP_RECORDS)?;
        for (id, record) in &records {
            if record.body == Body::Present {
                pending.of += 1;
                if !record.live && record.at_ms < before_ms {
                    pending.ids.push(*id);
                }
            }
        }
        match records.last().filter(|_| records.len() == STEP_RECORDS) {
            Some((last, _)) => after = Some(*last),
            None => return Ok(pending),
        }
    }
}

/// Those of the chunks that the master says it does not have.
async fn unknown_to_master(node: &Node, ids: &[ChunkId]) -> Result<Vec<ChunkId>, String> {
    let request = MasterRequest::Objects { ids: ids.to_vec() };
    let answer = node.masters.ask(&request, CONFIRM_DEADLINE).await;
    match answer.map_err(|error| error.to_string())? {
        MasterResponse::Objects(views) if views.len() == ids.len() => {
            let unknown = ids.iter().zip(views).filter(|(_, view)| view.is_none());
            Ok(unknown.map(|(id, _)| *id).collect())
        }
        _ => Err("the master answered with the wrong kind of message".to_owned()),
    }
}

fn flat<T>(done: Result<Result<T, StoreError>, WireError>) -> Result<T, String> {
    done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::Epoch;
    use bytes::Bytes;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Mark, NewChunk};

    #[test]
    fn only_what_is_old_present_and_not_live_is_asked_about() {
        let store = MemoryStore::default();
        let bytes = Bytes::from_static(b"x");
        let id = |last: u8| ChunkId([&[0u8; 31][..], &[last]].concat().try_into().unwrap());
        // The store does not look at the bytes.
        let put = |last, at_ms| {
            let chunk = NewChunk { id: id(last), bytes: bytes.clone(), epoch: Epoch(1), at_ms };
            store.put_batch(&[chunk]).unwrap();
        };
        put(1, 10);
        put(2, 20);
        put(3, 10);
        put(4, 10);
        store.mark(&[(id(3), Mark::Live), (id(5), Mark::Live)], 0, None).unwrap();
        store.quarantine(&[id(4)], 10).unwrap();
        let found = pending(&store, PgId(0), 20).unwrap();
        assert_eq!((found.ids, found.of), (vec![id(1)], 3));
        assert!(holds_any(&store, PgId(0)).unwrap());
        store.release_group(PgId(0), 30).unwrap();
        assert!(!holds_any(&store, PgId(0)).unwrap());
    }
}
