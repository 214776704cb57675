//! Salvage: when the index of the store was damaged and the store began anew, takes back what is
//! good in the store that was set aside, and deletes that once nothing needs it any more.
//!
//! It reads the own disk at the speed of the disk, and makes way for clients, who are served
//! meanwhile. Repair waits for it ([`super::repair`]), so that what is here is not fetched over the
//! network; but not if it fails again and again, or takes very long. It goes on while the cluster is
//! frozen: what it gives back to the disk was stored again, or was no chunk in good order.
//!
//! The heartbeat hears from the master that all that should be here is here; the deleting is done
//! here, because it may take longer than a heartbeat may.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_net::{Backoff, Shutdown};
use atoll_proto::WireError;
use tokio::time::Instant;

use super::clock;
use crate::node::Node;
use crate::store::{Salvaged, StoreError};

/// Bytes read in one step, about.
const STEP_BYTES: u64 = 8 << 20;
/// While clients ask much, a step is followed by so many times its own duration without one.
const REST: u32 = 3;
/// The longest such rest.
const REST_MAX: Duration = Duration::from_secs(1);
/// Between steps that fail. A full disk is looked at again soon: room may come back any time.
const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(200), max: Duration::from_secs(10), factor: 2.0 };
/// So many failures in a row, and repair waits no longer.
const FAILURES_MAX: u32 = 5;
/// Nor does it wait longer than this.
const REPAIR_WAIT_MAX: Duration = Duration::from_secs(300);
/// How often the store is looked at: whether it has begun anew.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often one that has begun anew is looked at: whether it is full again.
const LOOK_REFILLING: Duration = Duration::from_millis(500);
/// How long until deleting is tried again after it failed.
const RETRY: Duration = Duration::from_secs(60);

/// Runs until shutdown.
pub(crate) async fn salvage(node: Arc<Node>, shutdown: Shutdown) {
    let work = async {
        let mut finish_from = Instant::now();
        loop {
            if node.store.unsalvaged() {
                take_back_all(&node).await;
            } else if is_refilled(&node)
                && Instant::now() >= finish_from
                && let Err(reason) = finish(&node).await
            {
                tracing::warn!(reason, "cannot delete the store that was set aside yet");
                finish_from = Instant::now() + RETRY;
            }
            let refilling = node.store.refilling();
            tokio::time::sleep(if refilling { LOOK_REFILLING } else { LOOK_EVERY }).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.wait() => {}
    }
}

/// Until there is nothing more to take back.
async fn take_back_all(node: &Node) {
    tracing::info!("taking chunks back from the store that was set aside");
    let upkeep = &node.upkeep;
    let (started, mut failures, mut back) = (Instant::now(), 0, Salvaged::default());
    while node.store.unsalvaged() {
        let began = Instant::now();
        let now_ms = clock::now_ms();
        let step = node.at_the_disk("salvage", move |store| store.salvage(now_ms, STEP_BYTES));
        match flat(step.await) {
            Ok(some) => {
                failures = 0;
                count(&mut back, &some);
                rest(node, began).await;
            }
            Err(reason) => {
                if failures % 16 == 0 {
                    tracing::warn!(reason, "cannot take chunks back now");
                }
                tokio::time::sleep(BACKOFF.delay(failures, rand::random::<f64>())).await;
                failures = failures.saturating_add(1);
            }
        }
        let slow = failures >= FAILURES_MAX || started.elapsed() >= REPAIR_WAIT_MAX;
        if slow && !upkeep.salvage_slow.swap(true, Ordering::AcqRel) {
            tracing::warn!("taking chunks back fails or takes long: repair goes on beside it");
            upkeep.wake_repair();
        }
    }
    upkeep.salvage_slow.store(false, Ordering::Release);
    // What the master said until now may be about a store of before.
    upkeep.refilled.store(false, Ordering::Release);
    // What failed before is looked at again: it may be here now.
    upkeep.queue().revive(upkeep.elapsed(), |_| true);
    upkeep.wake_repair();
    let Salvaged { chunks, bytes, .. } = back;
    tracing::info!(chunks, bytes, seconds = started.elapsed().as_secs(), "took chunks back");
}

fn count(back: &mut Salvaged, some: &Salvaged) {
    back.chunks += some.chunks;
    back.bytes += some.bytes;
    metrics::counter!("atoll_chunk_salvaged_total").increment(some.chunks);
    metrics::counter!("atoll_chunk_salvaged_bytes_total").increment(some.bytes);
}

/// Makes way for clients after a step.
async fn rest(node: &Node, began: Instant) {
    let now = Instant::now();
    if node.traffic.is_heavy(now) {
        tokio::time::sleep(((now - began) * REST).min(REST_MAX)).await;
    }
}

/// Whether the store that began anew has all that it should have.
fn is_refilled(node: &Node) -> bool {
    let refilled = node.upkeep.refilled.load(Ordering::Acquire);
    refilled && node.store.refilling() && !node.upkeep.breaker().is_frozen()
}

async fn finish(node: &Node) -> Result<(), String> {
    let finished = node.at_the_disk("finish-refill", |store| store.finish_refill()).await;
    if flat(finished)? {
        tracing::info!("the store that was begun anew is full again");
    }
    Ok(())
}

fn flat<T>(done: Result<Result<T, StoreError>, WireError>) -> Result<T, String> {
    done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
