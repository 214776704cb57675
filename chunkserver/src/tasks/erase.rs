//! Erasing: follows the masters' list of chunks that were taken down, and deletes them here at
//! once, past quarantine and past every hold on dropping.
//!
//! The list is followed from its beginning at every start, and again when a store that was set aside
//! is gone: whatever disk this node comes with, it is clean when the node says so. It says so by
//! asking for what comes next.

use std::sync::Arc;
use std::time::Duration;

use atoll_net::{Backoff, Shutdown};
use atoll_proto::erase::{Erased, ErasedPart, Erasure};
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
    /// Where the list began that is followed; `None` before the first answer.
    began: Option<u64>,
    /// Everything up to this log index is known.
    upto: u64,
    /// What is known and not carried out: the list is taken over as a whole.
    gathered: Vec<Erased>,
    /// Everything up to there is carried out as well; a question may wait for what comes next.
    done: bool,
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

/// Asks for what comes next, and carries it out. When that fails, the list is followed from its
/// beginning again: nothing is ever taken for done that was not.
async fn step(node: &Node, position: &mut Position) -> Result<(), String> {
    let refilling = node.store.refilling();
    if position.refilling != refilling {
        *position = Position { refilling, ..Position::default() };
    }
    let part = ask(node, position).await?;
    let taken = take_in(node, position, part).await;
    if taken.is_err() {
        *position = Position { refilling, ..Position::default() };
    }
    taken
}

async fn ask(node: &Node, position: &Position) -> Result<ErasedPart, String> {
    let wait = match position {
        Position { done: false, .. } => Duration::ZERO,
        Position { refilling: true, .. } => REFILLING_EVERY,
        _ => WATCH_WAIT_MAX,
    };
    let request = MasterRequest::Erased {
        after: position.upto,
        // A store that was set aside is not clean: then nothing is acknowledged.
        node: (position.done && !position.refilling).then_some(node.id),
        wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
    };
    match node.masters.ask(&request, wait + MARGIN).await {
        Ok(MasterResponse::Erased(part)) => Ok(part),
        Ok(_) => Err("the master answered with the wrong kind of message".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

async fn take_in(node: &Node, position: &mut Position, part: ErasedPart) -> Result<(), String> {
    let ErasedPart { began, erased, upto, more } = part;
    if position.began.is_some_and(|known| known != began) {
        tracing::warn!(began, "the masters were restored: the list of erased chunks is another");
        *position = Position { refilling: position.refilling, ..Position::default() };
        return Ok(());
    }
    if upto < position.upto || erased.iter().any(|erased| erased.index > upto) {
        return Err(format!("changes that do not follow index {}", position.upto));
    }
    let anew = !position.done;
    position.began = Some(began);
    position.upto = upto;
    position.gathered.extend(erased);
    if more {
        return Ok(());
    }
    let changes = std::mem::take(&mut position.gathered);
    node.erased.learn(&changes, anew);
    node.store.refuse(node.erased.all());
    carry_out(node, doomed(&changes), upto).await?;
    if position.refilling {
        carry_out(node, node.erased.all().iter().copied().collect(), 0).await?;
    }
    position.done = true;
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
