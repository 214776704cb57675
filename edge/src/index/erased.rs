//! Chunks that were taken down: following the masters' list of them.
//!
//! In two steps. [`catch_up`] takes the list over, from when on nobody gets what is erased: called by
//! [`super::follow`] before the first answer of the publish log counts, so that nothing is served that
//! was erased meanwhile; and for every entry that says that the list has changed, before it is
//! acknowledged. That is quick, as the log waits. [`run`] overwrites the bytes on the disk, however long
//! that takes, and tells the masters when it is done, by asking for what comes next.

use std::sync::Arc;
use std::time::Duration;

use atoll_client::{ClientError, Cluster};
use atoll_net::retry::{Backoff, Pace};
use atoll_net::shutdown::Shutdown;
use atoll_proto::erase::{Erased, ErasedPart};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{NodeId, limits};

use super::Index;

/// Time for an answer beyond what the master waits.
const MARGIN: Duration = Duration::from_secs(3);

/// How far the list is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Log index at which it began.
    began: u64,
    /// Log index up to which it is known.
    upto: u64,
}

/// Why the list is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// It cannot be had.
    #[error("the list of erased chunks cannot be read: {0}")]
    Master(#[from] ClientError),
    /// A master said something else.
    #[error("the master answered with the wrong kind of message")]
    Unexpected,
    /// The cache still has some.
    #[error("erased chunks cannot be removed from the cache: {0}")]
    Disk(#[from] std::io::Error),
}

/// Takes over what is new of the list.
///
/// # Errors
/// See [`EraseError`]; then what was known before still holds.
pub(super) async fn catch_up(index: &Index, cluster: &Cluster) -> Result<(), EraseError> {
    let _alone = index.erased_turn.lock().await;
    let mut known = index.erased_known();
    let (mut changes, mut anew): (Vec<Erased>, bool) = (Vec::new(), known.is_none());
    loop {
        let after = known.map_or(0, |known| known.upto);
        let ErasedPart { began, erased, upto, more, .. } =
            ask(cluster, after, None, Duration::ZERO).await?;
        if known.is_some_and(|known| known.began != began) {
            // The masters were restored: it is another list.
            (known, changes, anew) = (None, Vec::new(), true);
            continue;
        }
        changes.extend(erased);
        known = Some(Known { began, upto: upto.max(after) });
        if !more {
            break;
        }
    }
    let in_memory = index.chunks.take_down(&changes, anew);
    if !changes.is_empty() {
        tracing::info!(changes = changes.len(), in_memory, "chunks were taken down");
    }
    index.set_erased_known(known);
    Ok(())
}

/// Keeps the disk clean until shutdown.
pub async fn run(index: Arc<Index>, cluster: Cluster, node: NodeId, shutdown: Shutdown) {
    let work = async {
        let backoff =
            Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5), factor: 2.0 };
        let mut known = index.erased_changes();
        let (mut failures, mut done) = (0, None);
        let mut pace = Pace::new(limits::WATCH_WAIT_MAX);
        loop {
            let now = *known.borrow_and_update();
            let Some(now) = now else {
                // Nobody has asked for it yet.
                if known.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let wait = pace.pause(rand::random());
            match step(&index, &cluster, node, now, &mut done, wait).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    // A node that starts is not registered yet.
                    if failures % 16 == 4 {
                        tracing::warn!(%error, "cannot carry out the list of erased chunks");
                    }
                    tokio::time::sleep(backoff.delay(failures, rand::random::<f64>())).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    };
    tokio::select! {
        () = shutdown.wait() => {}
        () = work => {}
    }
}

/// Carries out what is known on the disk, says so, and waits for news.
async fn step(
    index: &Index,
    cluster: &Cluster,
    node: NodeId,
    known: Known,
    done: &mut Option<Known>,
    wait: Duration,
) -> Result<(), EraseError> {
    if *done != Some(known) {
        let erased = index.chunks.cache().erase_from_disk().await?;
        metrics::counter!("atoll_edge_erased_chunks_total").increment(erased);
        if erased > 0 {
            tracing::info!(erased, upto = known.upto, "chunks that were taken down left the disk");
        }
        *done = Some(known);
    }
    let part = ask(cluster, known.upto, Some(node), wait).await?;
    if part.began != known.began || part.upto > known.upto {
        catch_up(index, cluster).await?;
    }
    Ok(())
}

async fn ask(
    cluster: &Cluster,
    after: u64,
    node: Option<NodeId>,
    wait: Duration,
) -> Result<ErasedPart, EraseError> {
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    let request = MasterRequest::Erased { after, node, wait_ms };
    match cluster.master(&request, wait + limits::METADATA_DEADLINE.max(MARGIN)).await? {
        MasterResponse::Erased(part) => Ok(part),
        _ => Err(EraseError::Unexpected),
    }
}
