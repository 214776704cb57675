//! Repair: fetches what is lacking from those who have it, several batches side by side, so that
//! a lost server is filled at the speed of its disk and not of single questions.
//!
//! What is in the server's own quarantine comes from there. While [`super::salvage`] takes back what
//! was set aside on the own disk, repair waits. Everything else is asked of members
//! and of those who leave the group, verified, and stored like any put. Memory is bounded by the
//! batches under way; repair makes way for clients unless a chunk has only one other place left.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_net::task::Tasks;
use atoll_net::{CallError, CallOptions, Role, Shutdown, task};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, GetMany};
use atoll_proto::cluster::{ClusterView, NodeState};
use atoll_proto::ids::PG_COUNT;
use atoll_proto::{ChunkId, NodeId, PgId, limits};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::clock;
use crate::node::Node;
use crate::reconcile::known::lacking_of;
use crate::reconcile::pace::Pace;
use crate::reconcile::queue::{Batch, DEAD_RETRY, Fate};
use crate::store::{Body, ChunkStore, NewChunk, StoreError};

/// Batches under way at once. An answer has at most `limits::BODY_BYTES_MAX`, so that repair holds
/// at most 96 MiB.
const FETCHES_MAX: usize = 6;
/// Batches under way from one source.
const FETCHES_PER_SOURCE: usize = 3;
/// Bytes a batch is meant to bring.
const BATCH_BYTES: u64 = 4 << 20;
/// Looks at the own disk at once, and how many chunks each is for.
const LOOKS_MAX: usize = 2;
const LOOK_CHUNKS: usize = 256;
/// How long a source may take for a batch.
const FETCH_DEADLINE: Duration = limits::CHUNK_DEADLINE;
/// Groups of which what is lacking is read at once.
const LOAD_GROUPS: usize = 64;
/// How often it is seen whether the store lacks what is not in the queue.
const LOAD_EVERY: Duration = Duration::from_secs(60);
/// How long repair rests when the disk is full.
const FULL_REST: Duration = Duration::from_secs(5);
/// How often repair looks whether what is on the own disk was taken back, if nobody says so.
const SALVAGE_LOOK: Duration = Duration::from_secs(1);

/// What the batches under way share.
struct Repairs {
    node: Arc<Node>,
    shared: Mutex<Shared>,
}

struct Shared {
    under_way: HashMap<NodeId, usize>,
    /// Looks at the own disk under way.
    looking: usize,
    /// Bytes of a chunk, about: to guess how many make a batch.
    chunk_bytes: u64,
    pace: Option<Pace>,
    /// The disk was full: nothing is fetched until then.
    rest_until: Option<Instant>,
    /// Where reading what is lacking goes on, because the queue was full there.
    load_from: Option<PgId>,
}

/// Runs until shutdown.
pub(crate) async fn repair(node: Arc<Node>, shutdown: Shutdown) {
    let now = Instant::now();
    let pace = node.upkeep.settings.repair_bytes_per_s.map(|rate| Pace::new(rate, now));
    let shared = Shared {
        under_way: HashMap::new(),
        looking: 0,
        chunk_bytes: u64::from(limits::CHUNK_BYTES),
        pace,
        rest_until: None,
        load_from: None,
    };
    let repairs = Arc::new(Repairs { node, shared: Mutex::new(shared) });
    let fetches = Tasks::new();
    tokio::select! {
        () = repairs.dispatch(&fetches) => {}
        () = shutdown.wait() => {}
    }
    // What is being written is written all the same; the rest is asked for again next time.
    fetches.drain(Duration::ZERO).await;
}

impl Repairs {
    async fn dispatch(self: &Arc<Self>, fetches: &Tasks) {
        let mut views = self.node.view_changes();
        self.follow_view(&mut views);
        // When everything that is lacking was last read from the store.
        let mut loaded: Option<Instant> = None;
        loop {
            let wait = if self.waits_for_salvage() {
                loaded = None;
                SALVAGE_LOOK
            } else {
                let wants_more = self.node.upkeep.queue().wants_more();
                let due = loaded.is_none_or(|loaded| self.has_missed_some(loaded.elapsed()));
                if wants_more || due {
                    self.load().await;
                    loaded = Some(Instant::now());
                }
                self.start(fetches).unwrap_or(LOAD_EVERY).min(LOAD_EVERY)
            };
            tokio::select! {
                () = self.node.upkeep.queue_changed() => {}
                () = tokio::time::sleep(wait) => {}
                changed = views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.follow_view(&mut views);
                }
            }
        }
    }

    /// Whether the store lacks more than is in the queue: nothing should be, but what is lacking must
    /// not be forgotten. Dead letters that made way take their turn as rarely as those that did not.
    fn has_missed_some(&self, waited: Duration) -> bool {
        let queue = self.node.upkeep.queue();
        let every = if queue.has_room() { LOAD_EVERY } else { DEAD_RETRY };
        let more = self.node.store.totals().lacking > queue.len() as u64;
        waited >= every && more && !queue.is_full()
    }

    /// What is on the own disk is not fetched over the network: while it is being taken back, repair
    /// waits, unless that takes long.
    fn waits_for_salvage(&self) -> bool {
        let slow = self.node.upkeep.salvage_slow.load(Ordering::Acquire);
        self.node.store.unsalvaged() && !slow
    }

    /// Starts what may be started. Returns how long to wait where that is known.
    fn start(self: &Arc<Self>, fetches: &Tasks) -> Option<Duration> {
        self.look_all(fetches);
        if let Some(rest) = self.start_all(fetches) {
            return Some(rest);
        }
        let due = self.node.upkeep.queue().next_due()?;
        let ms = due.saturating_sub(self.node.upkeep.elapsed());
        Some(Duration::from_millis(ms.max(1)))
    }

    /// The readers that are up are others.
    fn follow_view(&self, views: &mut watch::Receiver<u64>) {
        views.borrow_and_update();
        let Some(view) = self.node.placement.view() else { return };
        let sources = (0..PG_COUNT).map(|pg| sources(&view, self.node.id, PgId(pg))).collect();
        let upkeep = &self.node.upkeep;
        upkeep.queue().set_sources(sources, upkeep.elapsed());
    }

    /// Reads from the store what is lacking, the most urgent groups first, as far as it fits; where it
    /// did not all fit, the next time goes on there. So what nobody has, and is let go and listed
    /// again, cannot keep other groups out for ever.
    async fn load(&self) {
        let mut groups = self.node.upkeep.queue().by_urgency();
        let from = self.lock().load_from.take();
        let from = from.and_then(|first| groups.iter().position(|pg| *pg == first));
        groups.rotate_left(from.unwrap_or(0));
        for some in groups.chunks(LOAD_GROUPS) {
            let (first, some) = (some.first().copied(), some.to_vec());
            let read = self.node.at_the_disk("lacking", move |store| {
                let each = some.iter().map(|pg| lacking_of(store, *pg, None));
                each.collect::<Result<Vec<_>, StoreError>>()
            });
            match read.await {
                Ok(Ok(found)) => {
                    let upkeep = &self.node.upkeep;
                    upkeep.enqueue(found.into_iter().flatten(), upkeep.elapsed());
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot list what is lacking"),
                Err(error) => tracing::debug!(%error, "cannot list what is lacking"),
            }
            if self.node.upkeep.queue().is_full() {
                self.lock().load_from = first;
                return;
            }
        }
    }

    /// Starts to look at what is due: some of it may be here after all.
    fn look_all(self: &Arc<Self>, fetches: &Tasks) {
        let upkeep = &self.node.upkeep;
        upkeep.queue().wake(upkeep.elapsed());
        while self.lock().looking < LOOKS_MAX {
            let ids = upkeep.queue().take_fresh(upkeep.elapsed(), LOOK_CHUNKS);
            if ids.is_empty() {
                return;
            }
            self.lock().looking += 1;
            let repairs = Arc::clone(self);
            fetches.spawn("look", async move { repairs.look(ids).await });
        }
    }

    async fn look(&self, ids: Vec<ChunkId>) {
        let (now_ms, asked) = (clock::now_ms(), ids.clone());
        let looked =
            self.node.at_the_disk("repair", move |store| wanted(store, &asked, now_ms)).await;
        let wanted: HashSet<ChunkId> = match looked {
            Ok(Ok(wanted)) => wanted.into_iter().collect(),
            // Whether they are here is not known; they are looked at again before they are stored.
            Ok(Err(_)) | Err(_) => ids.iter().copied().collect(),
        };
        let upkeep = &self.node.upkeep;
        upkeep.queue().looked(ids.into_iter().map(|id| (id, wanted.contains(&id))));
        self.lock().looking -= 1;
        upkeep.wake_repair();
    }

    /// Starts as many batches as may be under way. Returns how long to wait where that is known.
    fn start_all(self: &Arc<Self>, fetches: &Tasks) -> Option<Duration> {
        loop {
            let now = Instant::now();
            let mut shared = self.lock();
            if let Some(until) = shared.rest_until.filter(|until| *until > now) {
                return Some(until - now);
            }
            let wait = shared.pace.as_mut().map_or(Duration::ZERO, |pace| pace.wait(now));
            if wait > Duration::ZERO {
                return Some(wait);
            }
            let mut queue = self.node.upkeep.queue();
            let lanes =
                if self.node.traffic.is_heavy(now) && !queue.is_urgent() { 1 } else { FETCHES_MAX };
            let total: usize = shared.under_way.values().sum();
            if total >= lanes {
                return None;
            }
            let under_way = &shared.under_way;
            let free = |source: NodeId| {
                FETCHES_PER_SOURCE.saturating_sub(under_way.get(&source).copied().unwrap_or(0))
            };
            let most = BATCH_BYTES.div_ceil(shared.chunk_bytes.max(1));
            let most = usize::try_from(most).unwrap_or(1).clamp(1, limits::PUT_CHUNKS_MAX);
            let batch = queue.take(most, free)?;
            drop(queue);
            *shared.under_way.entry(batch.source).or_default() += 1;
            drop(shared);
            let repairs = Arc::clone(self);
            fetches.spawn("repair", async move {
                let source = batch.source;
                let fates = repairs.fetch(batch).await;
                repairs.finish(source, fates);
            });
        }
    }

    fn finish(&self, source: NodeId, fates: Vec<(ChunkId, Fate)>) {
        let upkeep = &self.node.upkeep;
        let mut shared = self.lock();
        if let Some(count) = shared.under_way.get_mut(&source) {
            *count = count.saturating_sub(1);
        }
        drop(shared);
        let empty = {
            let mut queue = upkeep.queue();
            queue.settle(source, fates, upkeep.elapsed());
            queue.len() == 0
        };
        if empty {
            upkeep.tell_mended();
        }
        upkeep.wake_repair();
    }

    async fn fetch(&self, batch: Batch) -> Vec<(ChunkId, Fate)> {
        let Batch { source, ids } = batch;
        let now_ms = clock::now_ms();
        let looked = {
            let ids = ids.clone();
            self.node.at_the_disk("repair", move |store| wanted(store, &ids, now_ms)).await
        };
        let wanted = match looked {
            Ok(Ok(wanted)) => wanted,
            Ok(Err(error)) => return self.not_stored(&ids, &error),
            Err(_) => return all(&ids, Fate::Later),
        };
        let is_wanted: HashSet<ChunkId> = wanted.iter().copied().collect();
        let mut fates: Vec<(ChunkId, Fate)> = ids
            .into_iter()
            .filter(|id| !is_wanted.contains(id))
            .map(|id| (id, Fate::Done))
            .collect();
        if wanted.is_empty() {
            return fates;
        }
        match self.get(source, &wanted).await {
            Ok((lens, complete, body)) => {
                self.spend(body.len() as u64, lens.iter().flatten().count() as u64);
                fates.append(&mut self.store(source, wanted, lens, complete, body).await);
            }
            Err(reason) => {
                tracing::debug!(%source, reason, "a source of repairs did not answer");
                fates.append(&mut all(&wanted, Fate::Unanswered));
            }
        }
        fates
    }

    async fn get(
        &self,
        source: NodeId,
        ids: &[ChunkId],
    ) -> Result<(Vec<Option<u32>>, bool, Bytes), String> {
        let view = self.node.placement.view().ok_or("no placement table is known")?;
        let addr = view.node(source).ok_or("its address is not known")?.info.addr;
        let request = ChunkRequest::GetMany(GetMany { ids: ids.to_vec() });
        let options = CallOptions::within(FETCH_DEADLINE);
        let endpoint = &self.node.endpoint;
        let answer: Result<(ChunkResponse, Bytes), CallError> =
            endpoint.call(addr, Role::Chunkserver, &request, Vec::new(), options).await;
        if matches!(answer, Err(CallError::Unreachable { .. })) {
            self.node.peers.of(source).note(false, Instant::now());
            self.node.look_again.notify_one();
        }
        match answer.map_err(|error| error.to_string())? {
            (ChunkResponse::Many { lens, complete }, body) if lens.len() == ids.len() => {
                Ok((lens, complete, body))
            }
            _ => Err("it answered with the wrong kind of message".to_owned()),
        }
    }

    /// Verifies what came and stores it.
    async fn store(
        &self,
        source: NodeId,
        ids: Vec<ChunkId>,
        lens: Vec<Option<u32>>,
        complete: bool,
        body: Bytes,
    ) -> Vec<(ChunkId, Fate)> {
        let epoch = self.node.placement.epoch();
        let asked = ids.clone();
        let cut = task::spawn_blocking("verify", move || {
            let mut cut = cut(&ids, &lens, complete, body);
            cut.good.retain(|(id, bytes)| {
                let good = ChunkId::of(bytes) == *id;
                if !good {
                    tracing::warn!(chunk = %id, %source, "a source sent wrong bytes");
                    cut.fates.push((*id, Fate::NotThere));
                }
                good
            });
            cut
        });
        let Ok(Cut { good, mut fates }) = cut.await else { return all(&asked, Fate::Later) };
        if good.is_empty() {
            return fates;
        }
        let at_ms = clock::now_ms();
        let ids: Vec<ChunkId> = good.iter().map(|(id, _)| *id).collect();
        let bytes: u64 = good.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let chunks = good.into_iter().map(|(id, bytes)| NewChunk { id, bytes, epoch, at_ms });
        match self.node.keep(chunks.collect()).await {
            Ok(()) => {
                metrics::counter!("atoll_chunk_repaired_total").increment(ids.len() as u64);
                metrics::counter!("atoll_chunk_repaired_bytes_total").increment(bytes);
                fates.append(&mut all(&ids, Fate::Done));
            }
            Err(error) => fates.append(&mut self.not_stored(&ids, &error)),
        }
        fates
    }

    fn not_stored(&self, ids: &[ChunkId], error: &impl std::fmt::Display) -> Vec<(ChunkId, Fate)> {
        tracing::warn!(%error, chunks = ids.len(), "chunks cannot be repaired now");
        self.lock().rest_until = Some(Instant::now() + FULL_REST);
        all(ids, Fate::Later)
    }

    /// Remembers what was fetched, for the rate and for the size of batches.
    fn spend(&self, bytes: u64, chunks: u64) {
        let mut shared = self.lock();
        if let Some(pace) = &mut shared.pace {
            pace.spend(bytes, Instant::now());
        }
        if let Some(each) = bytes.checked_div(chunks) {
            shared.chunk_bytes = (shared.chunk_bytes * 3 + each) / 4;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all(ids: &[ChunkId], fate: Fate) -> Vec<(ChunkId, Fate)> {
    ids.iter().map(|id| (*id, fate)).collect()
}

/// The readers of a group that may be asked: not this node, and up.
fn sources(view: &ClusterView, me: NodeId, pg: PgId) -> Vec<NodeId> {
    let up = |id: &NodeId| view.node(*id).is_some_and(|node| node.state == NodeState::Up);
    let mut sources: Vec<NodeId> =
        view.table.readers(pg).filter(|id| *id != me).filter(up).collect();
    sources.dedup();
    sources
}

/// Those of the chunks that have to be fetched: they are lacking, and not in quarantine here in
/// good order. Blocks.
fn wanted(
    store: &dyn ChunkStore,
    ids: &[ChunkId],
    now_ms: u64,
) -> Result<Vec<ChunkId>, StoreError> {
    let mut wanted = Vec::new();
    for id in ids {
        let Some(record) = store.record(id)?.filter(|record| record.is_lacking()) else { continue };
        let restored = record.body == Body::Quarantined && store.restore(id, now_ms)?;
        if !restored {
            wanted.push(*id);
        }
    }
    Ok(wanted)
}

/// An answer, taken apart.
#[derive(Debug, Default)]
struct Cut {
    good: Vec<(ChunkId, Bytes)>,
    fates: Vec<(ChunkId, Fate)>,
}

/// Takes an answer apart; one that does not add up is none.
fn cut(ids: &[ChunkId], lens: &[Option<u32>], complete: bool, body: Bytes) -> Cut {
    let sum: u64 = lens.iter().flatten().map(|len| u64::from(*len)).sum();
    if sum != body.len() as u64 || lens.len() != ids.len() {
        return Cut { good: Vec::new(), fates: all(ids, Fate::Unanswered) };
    }
    // Where the room ended is not told; the last chunk that came is before it.
    let last = lens.iter().rposition(Option::is_some);
    let (mut cut, mut rest) = (Cut::default(), body);
    for (at, (id, len)) in ids.iter().zip(lens).enumerate() {
        match len {
            Some(len) => cut.good.push((*id, rest.split_to(*len as usize))),
            None if !complete && last.is_some_and(|last| at > last) => {
                cut.fates.push((*id, Fate::Again));
            }
            None => cut.fates.push((*id, Fate::NotThere)),
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::Epoch;

    use super::*;
    use crate::store::Mark;
    use crate::store::memory::MemoryStore;

    const IDS: [ChunkId; 4] =
        [ChunkId([1; 32]), ChunkId([2; 32]), ChunkId([3; 32]), ChunkId([4; 32])];

    #[test]
    fn an_answer_is_taken_apart_or_is_none() {
        let body = Bytes::from_static(b"abc");
        let lens = [None, Some(1), Some(2), None];
        let whole = cut(&IDS, &lens, true, body.clone());
        let good = [(IDS[1], Bytes::from_static(b"a")), (IDS[2], Bytes::from_static(b"bc"))];
        assert_eq!(whole.good, good);
        assert_eq!(whole.fates, [(IDS[0], Fate::NotThere), (IDS[3], Fate::NotThere)]);
        let short = cut(&IDS, &lens, false, body.clone());
        assert_eq!(short.fates, [(IDS[0], Fate::NotThere), (IDS[3], Fate::Again)]);
        for wrong in [
            cut(&IDS, &lens, true, Bytes::from_static(b"ab")),
            cut(&IDS, &[Some(u32::MAX); 4], true, body.clone()),
            cut(&IDS, &lens[1..], true, body),
        ] {
            assert!(wrong.good.is_empty());
            assert_eq!(wrong.fates, all(&IDS, Fate::Unanswered));
        }
        let nothing = cut(&IDS, &[None; 4], false, Bytes::new());
        assert_eq!(nothing.fates, all(&IDS, Fate::NotThere), "nor is it asked for ever");
    }

    #[test]
    fn what_is_in_quarantine_in_good_order_is_not_fetched() {
        let store = MemoryStore::default();
        let chunk = |text: &'static str| {
            let bytes = Bytes::from_static(text.as_bytes());
            NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 0 }
        };
        let (good, bad, here) = (chunk("good"), chunk("bad"), chunk("here"));
        store.put_batch(&[good.clone(), bad.clone(), here.clone()]).unwrap();
        assert_eq!(store.quarantine(&[good.id, bad.id], 0).unwrap(), 2);
        store.damage(&bad.id, Bytes::from_static(b"bAd"));
        let absent = ChunkId([9; 32]);
        let ids = [good.id, bad.id, here.id, absent];
        store.mark(&ids.map(|id| (id, Mark::Live)), 0, None).unwrap();
        let unknown = ChunkId([8; 32]);
        let asked = [good.id, bad.id, here.id, absent, unknown];
        assert_eq!(wanted(&store, &asked, 0).unwrap(), [bad.id, absent]);
        assert!(store.has(&good.id).unwrap());
    }
}
