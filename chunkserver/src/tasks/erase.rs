//! Erasing: follows the masters' list of chunks that were taken down, and deletes them here at
//! once, past quarantine and past every hold on dropping.
//!
//! The list is followed from its beginning at every start, and again when a store that was set aside
//! is gone: whatever disk this node comes with, it is clean when the node says so. It says so by
//! asking for what comes next.

use std::sync::Arc;
use std::time::Duration;

use atoll_net::{Backoff, Shutdown};
use atoll_proto::erase::{Erased, Erasure};
use atoll_proto::limits::WATCH_WAIT_MAX;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{ChunkId, WireError};

use crate::node::Node;
use crate::store::{Purged, StoreError};

/// Time for the answer beyond what the master waits.
const MARGIN: Duration = Duration::from_secs(3);
const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5), factor: 2.0 };
/// How often a store is gone through while it takes back what was set aside.
const REFILLING_EVERY: Duration = Duration::from_secs(5);

/// How far the list was followed.
#[derive(Debug, Default)]
struct Position {
    /// Everything up to this log index is carried out.
    upto: u64,
    /// All there was is known: a question may wait for what comes next.
    caught_up: bool,
    /// What was set aside may hold anything, and be taken back at any time.
    refilling: bool,
}

/// Runs until shutdown.
pub(crate) async fn follow(node: Arc<Node>, shutdown: Shutdown) {
    let mut views = node.view_changes();
    let work = async {
        let (mut position, mut failures) = (Position::default(), 0);
        loop {
            // Before it is registered, no master answers it.
            while node.receipt_key().is_err() {
                if views.changed().await.is_err() {
                    return;
                }
            }
            match step(&node, &mut position).await {
                Ok(()) => failures = 0,
                Err(reason) => {
                    if failures % 16 == 0 {
                        tracing::warn!(reason, "cannot follow the list of erased chunks");
                    }
                    tokio::time::sleep(BACKOFF.delay(failures, rand::random::<f64>())).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.wait() => {}
    }
}

/// Asks for what comes next, and carries it out.
async fn step(node: &Node, position: &mut Position) -> Result<(), String> {
    let refilling = node.store.refilling();
    if position.refilling && !refilling {
        *position = Position::default();
    }
    position.refilling = refilling;
    let wait = match position {
        Position { caught_up: false, .. } => Duration::ZERO,
        Position { refilling: true, .. } => REFILLING_EVERY,
        _ => WATCH_WAIT_MAX,
    };
    let request = MasterRequest::Erased {
        after: position.upto,
        // A store that was set aside is not clean: then nothing is acknowledged.
        node: (!refilling).then_some(node.id),
        wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
    };
    let asked = node.masters.ask(&request, wait + MARGIN).await;
    let MasterResponse::Erased { erased, upto, more } = asked.map_err(|error| error.to_string())?
    else {
        return Err("the master answered with the wrong kind of message".to_owned());
    };
    if upto < position.upto || erased.iter().any(|erased| erased.index > upto) {
        return Err(format!("changes that do not follow index {}", position.upto));
    }
    node.erased.learn(&erased);
    carry_out(node, doomed(&erased), upto).await?;
    if refilling {
        carry_out(node, node.erased.all(), 0).await?;
    }
    (position.upto, position.caught_up) = (upto, !more);
    Ok(())
}

fn doomed(changes: &[Erased]) -> Vec<ChunkId> {
    let erased = changes.iter().filter(|change| change.what == Erasure::Erased);
    erased.map(|change| change.id).collect()
}

async fn carry_out(node: &Node, ids: Vec<ChunkId>, upto: u64) -> Result<(), String> {
    if ids.is_empty() {
        return Ok(());
    }
    let erase = node.at_the_disk("erase", move |store| store.erase(&ids, upto));
    let Purged { chunks, bytes } = flat(erase.await)?;
    metrics::counter!("atoll_chunk_erased_total").increment(chunks);
    metrics::counter!("atoll_chunk_erased_bytes_total").increment(bytes);
    if chunks > 0 {
        tracing::info!(chunks, bytes, upto, "erased chunks that were taken down");
    }
    Ok(())
}

fn flat<T>(answer: Result<Result<T, StoreError>, WireError>) -> Result<T, String> {
    match answer {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
