//! From a chunk id to its bytes: cache, then one fetch upstream for all who ask.
//!
//! [`Chunks::get`] is the one way to a chunk in an edge: response bodies, manifest pages and a
//! shield's answers go through it. Upstream is anything that implements [`Upstream`]: shields and
//! the origin ([`upstream::Route`]) in an edge, the origin alone in a shield.

pub mod breaker;
pub mod coalesce;
pub mod erased;
pub mod origin;
pub mod serve;
pub mod shield;
pub mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atoll_proto::ChunkId;
use atoll_proto::erase::Erased;
use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::cache::Cache;
use coalesce::{Coalescer, NoFlight};
use erased::TakenDown;

/// Fetches under way at once.
const FLIGHTS_MAX: usize = 512;
/// Requests that may wait for fetches at once.
const WAITERS_MAX: usize = 16_384;
/// A fetch that takes longer has failed.
const FILL_DEADLINE: Duration = Duration::from_secs(30);

/// Where chunks come from that are not in the cache.
pub trait Upstream: Send + Sync + 'static {
    /// Fetches one whole chunk. The caller verifies it.
    fn fetch(&self, id: ChunkId) -> BoxFuture<'_, Result<Fetched, FillError>>;
}

/// What an upstream returned.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The bytes, not yet verified.
    pub bytes: Bytes,
    /// Who had them.
    pub source: Source,
}

/// Who had a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This node's memory.
    Memory,
    /// This node's disk.
    Disk,
    /// A shield; `true` if it had the chunk in its cache.
    Shield(bool),
    /// The chunkservers.
    Origin,
}

impl Source {
    /// Whether it was in this node's cache.
    pub fn is_hit(self) -> bool {
        matches!(self, Source::Memory | Source::Disk)
    }
}

/// A chunk, verified.
#[derive(Debug, Clone)]
pub struct Got {
    /// Its bytes.
    pub bytes: Bytes,
    /// Where they came from.
    pub source: Source,
    /// Whether another request had asked for them already.
    pub collapsed: bool,
}

/// Why a chunk cannot be had now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// This node has too much to do. This may pass.
    #[error("too many requests wait for upstream; try again in a moment")]
    Busy,
    /// Nobody upstream returned the chunk in good order. This may pass.
    #[error("chunk {} cannot be fetched: {reason}", id.short())]
    Upstream {
        /// Which.
        id: ChunkId,
        /// What was tried.
        reason: Arc<str>,
    },
    /// It was taken down. This does not pass.
    #[error("chunk {} was taken down", id.short())]
    Erased {
        /// Which.
        id: ChunkId,
    },
}

impl FillError {
    /// An error of upstream.
    pub fn upstream(id: ChunkId, reason: impl Into<Arc<str>>) -> FillError {
        FillError::Upstream { id, reason: reason.into() }
    }
}

/// Whether a chunk is worth a place on disk before it was asked for twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// As use will show.
    Use,
    /// Yes: a manifest page.
    Keep,
}

/// All chunks there are, some of them close at hand.
pub struct Chunks {
    cache: Arc<Cache>,
    coalescer: Coalescer<Result<(Bytes, Source), FillError>>,
    upstream: Arc<dyn Upstream>,
    taken_down: TakenDown,
    clears: AtomicU64,
}

impl Chunks {
    /// A cache in front of an upstream.
    pub fn new(cache: Arc<Cache>, upstream: Arc<dyn Upstream>) -> Chunks {
        let coalescer = Coalescer::new(FLIGHTS_MAX, WAITERS_MAX);
        let (taken_down, clears) = (TakenDown::default(), AtomicU64::new(0));
        Chunks { cache, coalescer, upstream, taken_down, clears }
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Drops chunks: whoever asks for one from now on gets bytes that were fetched after this was
    /// called, also when a fetch is under way. Returns how many were in memory.
    pub async fn drop_chunks(&self, ids: &[ChunkId]) -> usize {
        let dropped = self.cache.drop_chunks(ids.to_vec()).await;
        self.coalescer.forget(ids);
        dropped
    }

    /// Drops everything, in the same way.
    pub async fn clear(&self) {
        self.cache.clear().await;
        self.coalescer.forget_all();
        self.clears.fetch_add(1, Ordering::Release);
    }

    /// How often everything was dropped: what is at hand is not for ever.
    pub fn clears(&self) -> u64 {
        self.clears.load(Ordering::Acquire)
    }

    /// What was taken down.
    pub fn taken_down(&self) -> &TakenDown {
        &self.taken_down
    }

    /// Follows changes of the list of erased chunks, which are all of it if `anew`: when this returns,
    /// nobody gets what is erased, and nothing of it comes into the cache any more. Quick: its files are
    /// left to [`Cache::erase_from_disk`]. Returns how many chunks were in memory.
    pub fn take_down(&self, changes: &[Erased], anew: bool) -> usize {
        if changes.is_empty() && !anew {
            return 0;
        }
        let ids: Vec<ChunkId> = changes.iter().map(|change| change.id).collect();
        let erased = self.taken_down.learn(changes, anew);
        let in_memory = self.cache.refuse(Arc::new(erased));
        self.coalescer.forget(&ids);
        in_memory
    }

    /// One whole chunk, verified. Cancel-safe: a fetch that began goes on and fills the cache.
    ///
    /// # Errors
    /// When it is neither in the cache nor to be had upstream, or was taken down.
    pub async fn get(&self, id: ChunkId, worth: Worth) -> Result<Got, FillError> {
        if self.taken_down.is_erased(&id) {
            return Err(FillError::Erased { id });
        }
        if let Some(bytes) = self.cache.memory(&id) {
            metrics::counter!("atoll_edge_cache_hits_total", "tier" => "memory").increment(1);
            return Ok(Got { bytes, source: Source::Memory, collapsed: false });
        }
        let (cache, upstream) = (self.cache.clone(), self.upstream.clone());
        let landed = self.coalescer.run(id, || fill(cache, upstream, id, worth)).await;
        let landed = landed.map_err(|error| match error {
            NoFlight::Busy => FillError::Busy,
            NoFlight::Died => FillError::upstream(id, error.to_string()),
        })?;
        if landed.joined {
            metrics::counter!("atoll_edge_fill_waiters_total").increment(1);
        }
        // It may have been taken down while it was on its way.
        if self.taken_down.is_erased(&id) {
            return Err(FillError::Erased { id });
        }
        let (bytes, source) = landed.value?;
        Ok(Got { bytes, source, collapsed: landed.joined })
    }
}

/// The work of one flight.
async fn fill(
    cache: Arc<Cache>,
    upstream: Arc<dyn Upstream>,
    id: ChunkId,
    worth: Worth,
) -> Result<(Bytes, Source), FillError> {
    let since = cache.epoch();
    // It may have arrived between the look into the cache and this flight.
    if let Some(bytes) = cache.memory(&id) {
        metrics::counter!("atoll_edge_cache_hits_total", "tier" => "memory").increment(1);
        return Ok((bytes, Source::Memory));
    }
    if let Some(bytes) = cache.disk(id).await {
        metrics::counter!("atoll_edge_cache_hits_total", "tier" => "disk").increment(1);
        return Ok((bytes, Source::Disk));
    }
    metrics::counter!("atoll_edge_cache_misses_total").increment(1);
    let started = Instant::now();
    let fetched = match tokio::time::timeout(FILL_DEADLINE, upstream.fetch(id)).await {
        Ok(fetched) => fetched,
        Err(_) => Err(FillError::upstream(id, "it took too long")),
    };
    let fetched = fetched.and_then(|fetched| verified(id, fetched));
    let outcome = if fetched.is_ok() { "ok" } else { "error" };
    metrics::histogram!("atoll_edge_fill_seconds", "outcome" => outcome)
        .record(started.elapsed().as_secs_f64());
    let Fetched { bytes, source } = fetched?;
    let label = if source == Source::Origin { "origin" } else { "shield" };
    metrics::counter!("atoll_edge_upstream_chunks_total", "source" => label).increment(1);
    metrics::counter!("atoll_edge_upstream_bytes_total", "source" => label)
        .increment(bytes.len() as u64);
    cache.insert(id, bytes.clone(), since);
    if worth == Worth::Keep {
        cache.keep(id, &bytes, since);
    }
    Ok((bytes, source))
}

fn verified(id: ChunkId, fetched: Fetched) -> Result<Fetched, FillError> {
    if ChunkId::of(&fetched.bytes) == id {
        return Ok(fetched);
    }
    metrics::counter!("atoll_edge_upstream_corrupt_total").increment(1);
    Err(FillError::upstream(id, "the bytes have the wrong hash"))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;

    /// An upstream in memory that takes faults as data.
    #[derive(Default)]
    pub(crate) struct FakeUpstream {
        pub(crate) chunks: Mutex<HashMap<ChunkId, Bytes>>,
        pub(crate) fetches: AtomicUsize,
        pub(crate) down: AtomicBool,
        pub(crate) corrupt: AtomicBool,
    }

    impl FakeUpstream {
        pub(crate) fn add(&self, bytes: impl Into<Bytes>) -> ChunkId {
            let bytes = bytes.into();
            let id = ChunkId::of(&bytes);
            self.chunks.lock().unwrap().insert(id, bytes);
            id
        }

        pub(crate) fn fetches(&self) -> usize {
            self.fetches.load(Ordering::SeqCst)
        }
    }

    impl Upstream for FakeUpstream {
        fn fetch(&self, id: ChunkId) -> BoxFuture<'_, Result<Fetched, FillError>> {
            Box::pin(async move {
                self.fetches.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if self.down.load(Ordering::SeqCst) {
                    return Err(FillError::upstream(id, "down"));
                }
                if self.corrupt.load(Ordering::SeqCst) {
                    let bytes = Bytes::from_static(b"wrong");
                    return Ok(Fetched { bytes, source: Source::Origin });
                }
                let found = self.chunks.lock().unwrap().get(&id).cloned();
                let bytes = found.ok_or_else(|| FillError::upstream(id, "no such chunk"))?;
                Ok(Fetched { bytes, source: Source::Origin })
            })
        }
    }

    #[tokio::test]
    async fn a_chunk_is_fetched_once_and_then_a_hit() {
        let upstream = Arc::new(FakeUpstream::default());
        let id = upstream.add("hello");
        let chunks = Arc::new(Chunks::new(Arc::new(Cache::in_memory(1 << 20)), upstream.clone()));
        let all = futures_util::future::join_all((0..50).map(|_| chunks.get(id, Worth::Use))).await;
        assert!(all.iter().all(|got| got.as_ref().unwrap().bytes == "hello"));
        assert_eq!(all.iter().filter(|got| !got.as_ref().unwrap().collapsed).count(), 1);
        assert_eq!(chunks.get(id, Worth::Use).await.unwrap().source, Source::Memory);
        assert_eq!(upstream.fetches(), 1);
    }

    #[tokio::test]
    async fn wrong_bytes_are_never_passed_on_nor_kept() {
        let upstream = Arc::new(FakeUpstream::default());
        let id = upstream.add("right");
        let chunks = Chunks::new(Arc::new(Cache::in_memory(1 << 20)), upstream.clone());
        upstream.corrupt.store(true, Ordering::SeqCst);
        assert!(matches!(chunks.get(id, Worth::Use).await, Err(FillError::Upstream { .. })));
        upstream.corrupt.store(false, Ordering::SeqCst);
        assert_eq!(chunks.get(id, Worth::Use).await.unwrap().bytes, "right");
    }

    #[tokio::test]
    async fn what_was_taken_down_is_given_to_nobody_and_is_on_no_disk() {
        use atoll_proto::erase::Erasure;
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let (id, other) = (upstream.add("taken down"), upstream.add("other"));
        let cache = Arc::new(Cache::open(1 << 20, dir.path(), 64 << 20).unwrap());
        let chunks = Chunks::new(cache, upstream.clone());
        for id in [id, other] {
            chunks.get(id, Worth::Keep).await.unwrap();
        }
        chunks.cache().flush().await;
        let change = |index, what| [Erased { index, id, what }];
        assert_eq!(chunks.take_down(&change(1, Erasure::Erased), false), 1);
        assert_eq!(chunks.get(id, Worth::Use).await.unwrap_err(), FillError::Erased { id });
        assert_eq!(upstream.fetches(), 2);
        assert!(chunks.cache().memory(&id).is_none() && chunks.cache().disk(id).await.is_none());
        assert_eq!(chunks.cache().erase_from_disk().await.unwrap(), 1);
        assert_eq!(chunks.cache().erase_from_disk().await.unwrap(), 0);
        assert_eq!(chunks.get(other, Worth::Use).await.unwrap().source, Source::Memory);
        // A list that names it stays, and what it is the list of is not served.
        chunks.take_down(&change(2, Erasure::Withheld), false);
        assert_eq!(chunks.get(id, Worth::Use).await.unwrap().bytes, "taken down");
        let lists = vec![(10, id)];
        assert!(chunks.taken_down().covers(&atoll_proto::Content::Lists { lists, size: 10 }));
        chunks.take_down(&change(3, Erasure::Lifted), false);
        let lists = vec![(10, id)];
        assert!(!chunks.taken_down().covers(&atoll_proto::Content::Lists { lists, size: 10 }));
        // A list that begins anew replaces what was known.
        chunks.take_down(&change(4, Erasure::Erased), false);
        let erased = Erased { index: 1, id: other, what: Erasure::Erased };
        chunks.take_down(&[erased], true);
        assert_eq!(chunks.get(id, Worth::Use).await.unwrap().bytes, "taken down");
        assert!(chunks.get(other, Worth::Use).await.is_err());
    }

    #[tokio::test]
    async fn what_is_on_its_way_when_it_is_taken_down_does_not_come_in() {
        use atoll_proto::erase::Erasure;
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let id = upstream.add("taken down");
        let cache = Arc::new(Cache::open(1 << 20, dir.path(), 64 << 20).unwrap());
        let chunks = Chunks::new(cache.clone(), upstream.clone());
        // Under way: asked for, and not answered.
        let mut under_way = Box::pin(chunks.get(id, Worth::Keep));
        assert!(futures_util::poll!(&mut under_way).is_pending());
        // Begun by somebody who had looked before, and sets out after.
        let late = fill(cache.clone(), upstream.clone(), id, Worth::Keep);
        chunks.take_down(&[Erased { index: 1, id, what: Erasure::Erased }], false);
        assert_eq!(under_way.await.unwrap_err(), FillError::Erased { id });
        late.await.unwrap();
        assert!(cache.memory(&id).is_none());
        cache.flush().await;
        assert_eq!(cache.erase_from_disk().await.unwrap(), 0, "nothing came to the disk");
    }

    #[tokio::test]
    async fn pages_outlive_a_restart_without_a_second_use() {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(FakeUpstream::default());
        let (page, data) = (upstream.add("page"), upstream.add("data"));
        let open = || Arc::new(Cache::open(1 << 20, dir.path(), 64 << 20).unwrap());
        let chunks = Chunks::new(open(), upstream.clone());
        chunks.get(page, Worth::Keep).await.unwrap();
        chunks.get(data, Worth::Use).await.unwrap();
        chunks.cache().flush().await;
        drop(chunks);
        upstream.down.store(true, Ordering::SeqCst);
        let chunks = Chunks::new(open(), upstream);
        assert_eq!(chunks.get(page, Worth::Use).await.unwrap().source, Source::Disk);
        assert!(chunks.get(data, Worth::Use).await.is_err());
    }
}
