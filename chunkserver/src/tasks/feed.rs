//! Following the master's feed: which chunks of this node's groups became live, and which were
//! collected.
//!
//! The position is stored in the same change as what came before it, so that nothing is followed
//! twice or not at all. Where the feed does not reach back far enough, or another placement table
//! makes this node a member of more groups, the rest is found by comparing
//! ([`super::reconcile`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::{Backoff, Shutdown};
use atoll_proto::limits::WATCH_WAIT_MAX;
use atoll_proto::master::{Delta, MasterRequest, MasterResponse};
use atoll_proto::{ChunkId, Epoch, PgId, limits};
use tokio::sync::watch;

use super::clock;
use crate::node::Node;
use crate::store::{ChunkStore, Mark, Marked, StoreError};

/// Time for the answer beyond what the master waits.
const MARGIN: Duration = Duration::from_secs(3);
const BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(200), max: Duration::from_secs(3), factor: 2.0 };
/// Answers that follow one another are at least this far apart, so that a busy master is asked for
/// many deltas at a time.
const SPACING: Duration = Duration::from_millis(20);
/// The master is asked how far it is at most this often for the sake of others.
const WANTED_SPACING: Duration = Duration::from_millis(200);
/// A chunk that became live a moment ago may be on its way from the head still: it is fetched only
/// if it does not come by then.
const ARRIVAL_GRACE: Duration = Duration::from_millis(500);
/// Terms and epochs of a restored master are raised by this many: see [`hear_term`].
const RESTORE_SHIFT: u32 = 32;

/// One answer of the feed.
#[derive(Debug)]
struct Answer {
    deltas: Vec<Delta>,
    upto: u64,
    gap: bool,
}

/// Runs until shutdown.
pub(crate) async fn follow(node: Arc<Node>, shutdown: Shutdown) {
    let mut views = node.view_changes();
    let work = async {
        let mut failures = 0;
        let (mut epoch, mut at_once) = (None, true);
        loop {
            if let Err(reason) = adopt(&node, &mut epoch, &mut views).await {
                tracing::debug!(reason, "cannot follow the feed of changes yet");
            }
            match step(&node, epoch, &mut views, &mut at_once).await {
                Ok(pause) => {
                    failures = 0;
                    tokio::time::sleep(pause).await;
                }
                Err(reason) => {
                    node.upkeep.feed.lock().await.caught_up = false;
                    if failures % 16 == 0 {
                        tracing::warn!(reason, "cannot follow the feed of changes");
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

/// Waits until there is a placement table, and notes from where on the feed is asked for by it.
async fn adopt(
    node: &Node,
    epoch: &mut Option<Epoch>,
    views: &mut watch::Receiver<u64>,
) -> Result<(), String> {
    let view = loop {
        views.borrow_and_update();
        match node.placement.view() {
            Some(view) if node.receipt_key().is_ok() => break view,
            Some(_) | None => {}
        }
        views.changed().await.map_err(|_closed| "the node is stopping")?;
    };
    if *epoch == Some(view.table.epoch) {
        return Ok(());
    }
    let mut feed = node.upkeep.feed.lock().await;
    feed.since = applied(node).await?;
    *epoch = Some(view.table.epoch);
    drop(feed);
    // This node may be a member of groups whose changes it was never told.
    node.upkeep.upheaval();
    Ok(())
}

/// One answer of the master, followed; returns how long to wait before the next question. Ends
/// early when the placement table changed or somebody wants to know how far this node is: then the
/// next answer is to come `at_once`, with or without changes.
async fn step(
    node: &Node,
    epoch: Option<Epoch>,
    views: &mut watch::Receiver<u64>,
    at_once: &mut bool,
) -> Result<Duration, String> {
    let after = applied(node).await?;
    let wait = if *at_once { Duration::ZERO } else { WATCH_WAIT_MAX };
    let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    let request = MasterRequest::Deltas { node: node.id, after, wait_ms };
    let other_table = async {
        loop {
            let now = node.placement.view().map(|view| view.table.epoch);
            if now != epoch || views.changed().await.is_err() {
                return;
            }
        }
    };
    let asked = tokio::select! {
        asked = node.masters.ask(&request, wait + MARGIN) => asked,
        () = other_table => {
            *at_once = true;
            return Ok(Duration::ZERO);
        }
        () = node.upkeep.feed_wanted.notified(), if !*at_once => {
            *at_once = true;
            return Ok(WANTED_SPACING);
        }
    };
    let answer = match asked.map_err(|error| error.to_string())? {
        MasterResponse::Deltas { deltas, upto, gap } => Answer { deltas, upto, gap },
        _ => return Err("the master answered with the wrong kind of message".to_owned()),
    };
    check(&answer, after)?;
    let many = answer.deltas.len() >= limits::DELTAS_MAX;
    let any = !answer.deltas.is_empty();
    take(node, after, answer).await?;
    // Not before: who wanted to know must not wait out a long poll because one question failed.
    *at_once = false;
    Ok(if any && !many { SPACING } else { Duration::ZERO })
}

/// A feed that goes back, or tells of what it should not, is not followed.
fn check(answer: &Answer, after: u64) -> Result<(), String> {
    let Answer { deltas, upto, gap } = answer;
    if *gap {
        return if deltas.is_empty() { Ok(()) } else { Err("a gap with changes in it".to_owned()) };
    }
    let in_order = deltas.is_sorted_by_key(|delta| delta.index);
    let within = deltas.iter().all(|delta| delta.index > after && delta.index <= *upto);
    if in_order && within && *upto >= after {
        return Ok(());
    }
    Err(format!("changes that do not follow index {after}"))
}

/// Follows an answer to the question for what came after `after`.
async fn take(node: &Node, after: u64, answer: Answer) -> Result<(), String> {
    let mut feed = node.upkeep.feed.lock().await;
    // The store may have begun anew, or the feed been sent back, while the answer was on its way.
    if applied(node).await? != after {
        return Ok(());
    }
    let Answer { deltas, upto, gap } = answer;
    let marks = last_of_each(&deltas);
    let frozen = node.upkeep.breaker().is_held();
    let now_ms = clock::now_ms();
    let groups: Vec<PgId> = deltas.iter().map(|delta| delta.id.pg()).collect();
    if upto != after || !marks.is_empty() {
        let follow =
            move |store: &dyn ChunkStore| follow_marks(store, &marks, frozen, now_ms, upto);
        let marked = node.at_the_disk("mark", follow).await.map_err(|error| error.to_string())?;
        let marked = marked.map_err(|error| error.to_string())?;
        metrics::counter!("atoll_chunk_deltas_total").increment(deltas.len() as u64);
        // What was missed while this node was away is not on its way.
        let grace = if feed.caught_up { ARRIVAL_GRACE } else { Duration::ZERO };
        node.upkeep.lack(marked.lacking, grace);
    }
    if gap {
        tracing::info!(after, upto, "the feed of changes does not reach back: comparing instead");
        feed.begin_at(upto);
    }
    for delta in &deltas {
        feed.note(delta.id.pg(), delta.index);
    }
    feed.caught_up = deltas.len() < limits::DELTAS_MAX;
    drop(feed);
    node.upkeep.reporter().note(groups);
    if gap {
        node.upkeep.upheaval();
    }
    Ok(())
}

/// What holds at the end of an answer.
fn last_of_each(deltas: &[Delta]) -> Vec<(ChunkId, Mark)> {
    let mark = |delta: &Delta| if delta.live { Mark::Live } else { Mark::Collected };
    let last: BTreeMap<ChunkId, Mark> =
        deltas.iter().map(|delta| (delta.id, mark(delta))).collect();
    last.into_iter().collect()
}

/// While nothing may be moved, a collected chunk is only not live any more: the sweep moves it
/// when that is allowed again. Blocks.
fn follow_marks(
    store: &dyn ChunkStore,
    marks: &[(ChunkId, Mark)],
    frozen: bool,
    now_ms: u64,
    upto: u64,
) -> Result<Marked, StoreError> {
    if !frozen {
        return store.mark(marks, now_ms, Some(upto));
    }
    let (live, collected): (Vec<_>, Vec<_>) =
        marks.iter().copied().partition(|(_, mark)| *mark == Mark::Live);
    let collected: Vec<ChunkId> = collected.into_iter().map(|(id, _)| id).collect();
    // Both may be done again; the position comes last.
    store.forget_live(&collected, now_ms)?;
    store.mark(&live, now_ms, Some(upto))
}

async fn applied(node: &Node) -> Result<u64, String> {
    let applied = node.at_the_disk("applied", |store| store.applied()).await;
    applied.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// A master said its term. Masters restored from a backup raise it by 2^32: what they say at an
/// index is not what was said at that index before, so the feed is followed from its beginning.
/// To be called before the term is remembered.
///
/// # Errors
/// When the position cannot be stored.
pub(crate) async fn hear_term(node: &Node, epoch: Epoch, term: u64) -> Result<(), String> {
    let fence = node.placement.fence();
    let known = fence.term;
    let restored = known > 0 && known >> RESTORE_SHIFT < term >> RESTORE_SHIFT;
    if !restored || fence.admit(epoch, term).is_err() {
        return Ok(());
    }
    tracing::warn!(term, known, "the masters were restored: following their feed anew");
    let mut feed = node.upkeep.feed.lock().await;
    let now_ms = clock::now_ms();
    let back = move |store: &dyn ChunkStore| store.mark(&[], now_ms, Some(0));
    let marked = node.at_the_disk("mark", back).await.map_err(|error| error.to_string())?;
    marked.map_err(|error| error.to_string())?;
    feed.begin_at(0);
    drop(feed);
    node.upkeep.reporter().begin_anew();
    node.upkeep.upheaval();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Body, NewChunk};
    use bytes::Bytes;

    fn delta(index: u64, byte: u8, live: bool) -> Delta {
        Delta { index, id: ChunkId::of(&[byte]), live }
    }

    #[test]
    fn a_feed_that_goes_back_or_jumps_is_not_followed() {
        let answer = |indexes: &[u64], upto, gap| Answer {
            deltas: indexes.iter().map(|index| delta(*index, 1, true)).collect(),
            upto,
            gap,
        };
        assert!(check(&answer(&[6, 6, 9], 9, false), 5).is_ok());
        assert!(check(&answer(&[], 5, false), 5).is_ok());
        assert!(check(&answer(&[], 2, true), 5).is_ok());
        for wrong in [
            answer(&[5], 9, false),
            answer(&[7, 6], 9, false),
            answer(&[10], 9, false),
            answer(&[], 4, false),
            answer(&[6], 9, true),
        ] {
            assert!(check(&wrong, 5).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_the_last_word_on_a_chunk_counts() {
        let deltas = [delta(1, 1, true), delta(2, 1, false), delta(2, 2, false), delta(3, 2, true)];
        let marks: BTreeMap<ChunkId, Mark> = last_of_each(&deltas).into_iter().collect();
        assert_eq!(marks[&ChunkId::of(&[1])], Mark::Collected);
        assert_eq!(marks[&ChunkId::of(&[2])], Mark::Live);
    }

    #[test]
    fn while_frozen_a_collected_chunk_stays_where_it_is() {
        for (frozen, body) in [(true, Body::Present), (false, Body::Quarantined)] {
            let store = MemoryStore::default();
            let bytes = Bytes::from_static(&[1]);
            let id = ChunkId::of(&bytes);
            store.put_batch(&[NewChunk { id, bytes, epoch: Epoch(1), at_ms: 0 }]).unwrap();
            let marks = last_of_each(&[delta(1, 1, true)]);
            follow_marks(&store, &marks, frozen, 0, 1).unwrap();
            let marks = last_of_each(&[delta(2, 1, false)]);
            follow_marks(&store, &marks, frozen, 0, 2).unwrap();
            let record = store.record(&id).unwrap().unwrap();
            assert_eq!((record.live, record.body, store.applied().unwrap()), (false, body, 2));
        }
    }
}
