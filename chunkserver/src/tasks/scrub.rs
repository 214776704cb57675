//! Scrubbing: a tree proves the index, not the bytes; so every chunk is read and hashed again
//! within the scrub period, group by group, the one verified longest ago first.
//!
//! It goes slowly, at a trickle while clients ask much. An operator's order is carried out at full
//! speed: everything that was last verified before the order. When each group was verified is on
//! disk, and so is the order; a restart costs at most the group it was in.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_net::Shutdown;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::{ChunkId, PgId};
use tokio::time::Instant;

use super::clock;
use crate::node::Node;
use crate::ops;
use crate::reconcile::pace::Pace;
use crate::store::{Body, ChunkStore, Meta, Record, StoreError};

/// Never slower than this many bytes per second.
const TRICKLE: u64 = 1 << 20;
/// Records looked at in one step.
const STEP_RECORDS: usize = 256;
/// A step reads no further chunk once it has read this many bytes.
const STEP_BYTES: u64 = 8 << 20;
/// How long it waits when the disk fails.
const REST: Duration = Duration::from_secs(2);
/// How long it sleeps at most when nothing is due.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// How long after the others groups are tried again that could not be verified.
const FAILED_AGAIN_MS: u64 = 60_000;

/// What is known of the groups: when each was verified, in milliseconds since 1970.
#[derive(Debug)]
struct Scrubber {
    verified: Vec<u64>,
    order: Order,
    period_ms: u64,
    /// Groups that could not be verified: the others come first.
    failed: BTreeSet<PgId>,
}

/// The last order, on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Order {
    /// The order that is carried out or was last.
    number: u64,
    /// When it was heard of.
    heard_ms: u64,
    /// The last one carried out completely.
    done: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Verify a group; at full speed or not.
    Group(PgId, bool),
    /// The order is carried out.
    OrderDone,
    /// Nothing is due before this time.
    Sleep(u64),
}

/// Runs until shutdown.
pub(crate) async fn scrub(node: Arc<Node>, shutdown: Shutdown) {
    let work = async {
        loop {
            match run(&node).await {
                Ok(never) => match never {},
                Err(reason) => tracing::warn!(reason, "scrubbing was interrupted"),
            }
            tokio::time::sleep(REST).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.wait() => {}
    }
}

async fn run(node: &Arc<Node>) -> Result<std::convert::Infallible, String> {
    let period_ms = u64::try_from(node.upkeep.settings.scrub_period.as_millis());
    let period_ms = period_ms.unwrap_or(u64::MAX).max(1);
    let now_ms = clock::now_ms();
    let loaded = node.at_the_disk("scrub", move |store| Scrubber::load(store, period_ms, now_ms));
    let mut scrubber = flat(loaded.await)?;
    let mut orders = node.upkeep.orders.subscribe();
    let mut pace = Pace::new(TRICKLE, Instant::now());
    loop {
        let number = orders.borrow_and_update().map_or(0, |orders| orders.scrub);
        if number > scrubber.order.number {
            scrubber.order = Order { number, heard_ms: clock::now_ms(), ..scrubber.order };
            scrubber.save(node).await?;
        }
        scrubber.tell(node).await?;
        let next = scrubber.next(clock::now_ms());
        if matches!(next, Next::Sleep(_)) {
            // Those that failed get their turn again after it.
            scrubber.failed.clear();
        }
        match next {
            Next::Group(pg, full_speed) => {
                let began_ms = clock::now_ms();
                let verified = verify_group(node, pg, full_speed, &mut pace, period_ms).await;
                match verified {
                    Ok(true) => {
                        scrubber.verified[usize::from(pg.0)] = began_ms;
                        let set = move |store: &dyn ChunkStore| store.set_scrubbed(pg, began_ms);
                        flat(node.at_the_disk("scrub", set).await)?;
                    }
                    Ok(false) => {}
                    Err(reason) => {
                        tracing::warn!(group = pg.0, reason, "a group cannot be verified now");
                        scrubber.failed.insert(pg);
                    }
                }
            }
            Next::OrderDone => {
                scrubber.order.done = scrubber.order.number;
                scrubber.save(node).await?;
                tracing::info!(order = scrubber.order.done, "everything is verified");
            }
            Next::Sleep(until_ms) => {
                let wait =
                    Duration::from_millis(until_ms.saturating_sub(clock::now_ms()).max(1000));
                // A sender that is gone means that the node stops, which ends this anyway.
                drop(tokio::time::timeout(wait.min(SLEEP_MAX), orders.changed()).await);
            }
        }
    }
}

impl Scrubber {
    /// What was known before. A group that was never verified and is empty counts as verified now:
    /// what comes is verified when it is put. Blocks.
    fn load(store: &dyn ChunkStore, period_ms: u64, now_ms: u64) -> Result<Self, StoreError> {
        let mut verified = Vec::with_capacity(usize::from(PG_COUNT));
        for (pg, at_ms) in (0..PG_COUNT).map(PgId).zip(store.scrubbed()?) {
            verified.push(match at_ms {
                Some(at_ms) => at_ms.min(now_ms),
                None => match oldest_put(store, pg)? {
                    Some(at_ms) => at_ms.min(now_ms),
                    None => {
                        store.set_scrubbed(pg, now_ms)?;
                        now_ms
                    }
                },
            });
        }
        let order = store.load(Meta::Scrub)?.and_then(|bytes| Order::decode(&bytes));
        let (order, failed) = (order.unwrap_or_default(), BTreeSet::new());
        Ok(Self { verified, order, period_ms, failed })
    }

    async fn save(&self, node: &Node) -> Result<(), String> {
        let value = vec![(Meta::Scrub, self.order.encode())];
        flat(node.at_the_disk("scrub", move |store| store.save(&value)).await)
    }

    /// What the heartbeat shall say. Empty groups count as verified now.
    async fn tell(&mut self, node: &Node) -> Result<(), String> {
        let now_ms = clock::now_ms();
        let mut by_age: Vec<PgId> = (0..PG_COUNT).map(PgId).collect();
        by_age.sort_by_key(|pg| self.verified[usize::from(pg.0)]);
        let look = move |store: &dyn ChunkStore| {
            let mut empty = BTreeSet::new();
            if store.totals().chunks == 0 {
                return Ok((by_age.into_iter().collect(), None));
            }
            for pg in by_age {
                if !is_empty(store, pg)? {
                    return Ok((empty, Some(pg)));
                }
                empty.insert(pg);
            }
            Ok((empty, None))
        };
        let (empty, oldest) = flat(node.at_the_disk("scrub", look).await)?;
        for pg in empty {
            self.verified[usize::from(pg.0)] = now_ms;
        }
        let oldest_ms = oldest.map_or(0, |pg| self.verified[usize::from(pg.0)].max(1));
        let told = &node.upkeep.scrubbed;
        told.oldest_ms.store(oldest_ms, Ordering::Relaxed);
        told.order.store(self.order.done, Ordering::Relaxed);
        Ok(())
    }

    fn next(&self, now_ms: u64) -> Next {
        let groups = (0u16..).zip(&self.verified);
        let groups = groups.filter(|(pg, _)| !self.failed.contains(&PgId(*pg)));
        let Some((pg, at_ms)) = groups.min_by_key(|(_, at_ms)| **at_ms) else {
            return Next::Sleep(now_ms.saturating_add(FAILED_AGAIN_MS));
        };
        if self.order.number > self.order.done {
            let before = *at_ms < self.order.heard_ms;
            return match before {
                true => Next::Group(PgId(pg), true),
                false if self.failed.is_empty() => Next::OrderDone,
                false => Next::Sleep(now_ms.saturating_add(FAILED_AGAIN_MS)),
            };
        }
        // Half of the period is left to get through those that are due.
        let due_ms = at_ms.saturating_add(self.period_ms / 2);
        if due_ms <= now_ms { Next::Group(PgId(pg), false) } else { Next::Sleep(due_ms) }
    }
}

impl Order {
    fn encode(self) -> Vec<u8> {
        [self.number, self.heard_ms, self.done].map(u64::to_be_bytes).concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let [number, heard_ms, done] = *words else { return None };
        let [number, heard_ms, done] = [number, heard_ms, done].map(u64::from_be_bytes);
        Some(Self { number, heard_ms, done })
    }
}

/// Verifies every chunk of a group. False if it was given up for the moment.
async fn verify_group(
    node: &Arc<Node>,
    pg: PgId,
    full_speed: bool,
    pace: &mut Pace,
    period_ms: u64,
) -> Result<bool, String> {
    let mut after: Option<ChunkId> = None;
    let mut orders = node.upkeep.orders.subscribe();
    orders.mark_unchanged();
    loop {
        if !full_speed {
            // It makes way for clients, and yet never stops.
            let heavy = node.traffic.is_heavy(Instant::now());
            let bytes = node.store.totals().bytes;
            let rate = u128::from(bytes) * 2000 / u128::from(period_ms);
            let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(TRICKLE);
            pace.set(if heavy { TRICKLE } else { rate }, Instant::now());
            let wait = pace.wait(Instant::now());
            if wait > Duration::ZERO {
                // A sender that is gone means that the node stops, which ends this anyway.
                drop(tokio::time::timeout(wait.min(SLEEP_MAX), orders.changed()).await);
                if is_ordered(node) {
                    return Ok(false);
                }
                continue;
            }
        }
        let from = after;
        let step = node.at_the_disk("scrub", move |store| verify_some(store, pg, from.as_ref()));
        let step = flat(step.await)?;
        metrics::counter!("atoll_chunk_scrubbed_total").increment(step.chunks);
        metrics::counter!("atoll_chunk_scrubbed_bytes_total").increment(step.bytes);
        if !full_speed {
            pace.spend(step.bytes, Instant::now());
        }
        node.upkeep.lack(step.corrupt, Duration::ZERO);
        match step.last {
            Some(last) => after = Some(last),
            None => return Ok(true),
        }
    }
}

/// Whether an operator wants everything verified that is not yet.
fn is_ordered(node: &Node) -> bool {
    let wanted = node.upkeep.orders.borrow().map_or(0, |orders| orders.scrub);
    wanted > node.upkeep.scrubbed.order.load(Ordering::Relaxed)
}

/// What one step came to.
#[derive(Debug, Default)]
struct Step {
    chunks: u64,
    bytes: u64,
    /// Chunks with wrong bytes.
    corrupt: Vec<ChunkId>,
    /// Where to go on; `None` at the end of the group.
    last: Option<ChunkId>,
}

/// Verifies some chunks of a group, those after `after`. Blocks.
fn verify_some(
    store: &dyn ChunkStore,
    pg: PgId,
    after: Option<&ChunkId>,
) -> Result<Step, StoreError> {
    let records = store.list_group(pg, after, STEP_RECORDS)?;
    let full = records.len() == STEP_RECORDS;
    let mut step = Step::default();
    for (id, record) in records {
        if step.bytes >= STEP_BYTES {
            return Ok(step);
        }
        step.last = Some(id);
        if record.body != Body::Present {
            continue;
        }
        store.forget_cached(&id);
        match ops::get::examine(store, &id) {
            Ok(bytes) => {
                step.chunks += 1;
                step.bytes += bytes.map_or(0, |bytes| bytes.len() as u64);
            }
            Err(StoreError::Corrupt { .. }) => {
                step.bytes += u64::from(record.len);
                step.corrupt.push(id);
            }
            Err(error) => return Err(error),
        }
    }
    if !full {
        step.last = None;
    }
    Ok(step)
}

/// Whether a group has no chunk that can be verified. Blocks.
fn is_empty(store: &dyn ChunkStore, pg: PgId) -> Result<bool, StoreError> {
    if store.group_count(pg)? > 0 {
        return Ok(false);
    }
    Ok(oldest_put(store, pg)?.is_none())
}

/// When the oldest present chunk of a group was put. Blocks.
fn oldest_put(store: &dyn ChunkStore, pg: PgId) -> Result<Option<u64>, StoreError> {
    let (mut oldest, mut after) = (None, None);
    loop {
        let records: Vec<(ChunkId, Record)> = store.list_group(pg, after.as_ref(), STEP_RECORDS)?;
        let present = records.iter().filter(|(_, record)| record.body == Body::Present);
        let at_ms = present.map(|(_, record)| record.at_ms).min();
        oldest = [oldest, at_ms].into_iter().flatten().min();
        match records.last().filter(|_| records.len() == STEP_RECORDS) {
            Some((last, _)) => after = Some(*last),
            None => return Ok(oldest),
        }
    }
}

fn flat<T>(done: Result<Result<T, StoreError>, atoll_proto::WireError>) -> Result<T, String> {
    done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::Epoch;
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Mark, NewChunk};

    const DAY: u64 = 86_400_000;

    fn fill(store: &MemoryStore, count: u16) -> Vec<NewChunk> {
        let chunk = |n: u16| {
            let bytes = Bytes::from(n.to_be_bytes().repeat(50));
            NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 5 * DAY }
        };
        let chunks: Vec<NewChunk> = (0..count).map(chunk).collect();
        store.put_batch(&chunks).unwrap();
        chunks
    }

    #[test]
    fn a_flipped_bit_is_found_and_taken_out() {
        let store = MemoryStore::default();
        let chunks = fill(&store, 2000);
        let wrong = &chunks[7];
        store.mark(&[(wrong.id, Mark::Live)], 0, None).unwrap();
        let mut bytes = wrong.bytes.to_vec();
        bytes[3] ^= 1;
        store.damage(&wrong.id, Bytes::from(bytes));
        let (mut corrupt, mut seen) = (Vec::new(), 0);
        for pg in (0..PG_COUNT).map(PgId) {
            let mut after = None;
            loop {
                let step = verify_some(&store, pg, after.as_ref()).unwrap();
                corrupt.extend(step.corrupt);
                seen += step.chunks;
                let Some(last) = step.last else { break };
                after = Some(last);
            }
        }
        assert_eq!((corrupt, seen), (vec![wrong.id], 1999));
        assert!(!store.has(&wrong.id).unwrap());
        assert_eq!(store.totals().lacking, 1);
    }

    #[test]
    fn what_was_verified_longest_ago_is_next_once_it_is_due() {
        let store = MemoryStore::default();
        fill(&store, 3);
        let now_ms = 10 * DAY;
        let mut scrubber = Scrubber::load(&store, 8 * DAY, now_ms).unwrap();
        let Next::Group(first, false) = scrubber.next(now_ms) else { panic!() };
        assert!(!is_empty(&store, first).unwrap());
        for pg in 0..PG_COUNT {
            scrubber.verified[usize::from(pg)] = now_ms + u64::from(pg);
        }
        assert_eq!(scrubber.next(now_ms), Next::Sleep(now_ms + 4 * DAY));
        assert_eq!(scrubber.next(now_ms + 4 * DAY), Next::Group(PgId(0), false));
    }

    #[test]
    fn an_order_is_done_when_everything_was_verified_after_it() {
        let store = MemoryStore::default();
        let mut scrubber = Scrubber::load(&store, DAY, DAY).unwrap();
        scrubber.order = Order { number: 3, heard_ms: 2 * DAY, done: 2 };
        for _ in 0..PG_COUNT {
            let Next::Group(pg, true) = scrubber.next(2 * DAY) else { panic!() };
            scrubber.verified[usize::from(pg.0)] = 2 * DAY;
        }
        assert_eq!(scrubber.next(2 * DAY), Next::OrderDone);
        scrubber.order.done = 3;
        assert!(matches!(scrubber.next(2 * DAY), Next::Sleep(_)));
    }

    #[test]
    fn times_survive_and_groups_that_were_empty_count_as_verified() {
        let store = MemoryStore::default();
        let before = Scrubber::load(&store, DAY, 7 * DAY).unwrap();
        assert!(before.verified.iter().all(|at_ms| *at_ms == 7 * DAY));
        fill(&store, 100);
        let after = Scrubber::load(&store, DAY, 9 * DAY).unwrap();
        assert_eq!(after.verified, before.verified);
        let upgraded = MemoryStore::default();
        let chunks = fill(&upgraded, 1);
        let after = Scrubber::load(&upgraded, DAY, 9 * DAY).unwrap();
        assert_eq!(after.verified[usize::from(chunks[0].id.pg().0)], 5 * DAY);
    }

    proptest! {
        #[test]
        fn orders_round_trip(number: u64, heard_ms: u64, done: u64, noise: Vec<u8>) {
            let order = Order { number, heard_ms, done };
            prop_assert_eq!(Order::decode(&order.encode()), Some(order));
            prop_assert_eq!(Order::decode(&noise).is_some(), noise.len() == 24);
        }
    }
}
