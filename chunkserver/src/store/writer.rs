//! Group commit: one thread that stores what everybody wants stored.
//!
//! [`Writer::put`] queues chunks and waits until they are durable. While the thread waits for one
//! sync, further puts gather; the next batch takes all of them, so that a sync serves as many puts
//! as came during the one before. The queue is bounded in bytes: a slow disk slows its writers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use atoll_proto::ChunkId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{Batched, ChunkStore, NewChunk, StoreError};

/// Bytes of chunks that may wait for the disk.
const QUEUE_BYTES_MAX: u32 = 64 << 20;
/// Puts that may wait for the disk.
const QUEUE_PUTS_MAX: usize = 4096;
/// A batch takes no further put once it holds this many bytes.
const BATCH_BYTES: usize = 16 << 20;
/// A batch takes no further put once it holds this many chunks.
const BATCH_CHUNKS: usize = 8192;
/// How long a put waits for room in the queue before it is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(8);

/// A handle to the writing thread.
#[derive(Debug)]
pub struct Writer {
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    room: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Job {
    chunks: Vec<NewChunk>,
    done: oneshot::Sender<Result<(), StoreError>>,
    /// Held until the job is done.
    _room: Room,
}

/// A share of the queue; given back when dropped.
#[derive(Debug)]
struct Room(OwnedSemaphorePermit);

impl Room {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("atoll_chunk_queue_bytes").increment(permit.num_permits() as f64);
        Self(permit)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        metrics::gauge!("atoll_chunk_queue_bytes").decrement(self.0.num_permits() as f64);
    }
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(store: Arc<dyn ChunkStore>) -> std::io::Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE_PUTS_MAX);
        let thread = std::thread::Builder::new()
            .name("chunk-writer".to_owned())
            .spawn(move || write_all(store.as_ref(), jobs))?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX as usize)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Stores verified chunks; when it returns without an error they are durable. A caller that
    /// stops waiting does not stop the write.
    ///
    /// # Errors
    /// As [`ChunkStore::put_batch`], for the whole batch the chunks were in.
    pub async fn put(&self, chunks: Vec<NewChunk>) -> Result<(), StoreError> {
        let queue = lock(&self.queue).clone().ok_or(StoreError::Closed)?;
        let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, QUEUE_BYTES_MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(wanted);
        // A disk that stalls must not gather the batches of callers that gave up long ago.
        let room = tokio::time::timeout(ROOM_WAIT_MAX, room).await;
        let room = room.map_err(|_late| StoreError::Busy)?.map_err(|_closed| StoreError::Closed)?;
        let room = Room::new(room);
        let (done, wait) = oneshot::channel();
        let job = Job { chunks, done, _room: room };
        match queue.send_timeout(job, ROOM_WAIT_MAX).await {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(StoreError::Busy),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(StoreError::Closed),
        }
        drop(queue);
        wait.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Takes no more puts, stores what is queued, and ends the thread. Blocks.
    pub fn stop(&self) {
        drop(lock(&self.queue).take());
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the chunk writer panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write_all(store: &dyn ChunkStore, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let batch = gather(first, &mut jobs);
        write_batch(store, batch);
    }
}

/// The first job and all that wait behind it, up to the size of a batch.
fn gather(first: Job, jobs: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let weigh = |job: &Job| -> usize { job.chunks.iter().map(|chunk| chunk.bytes.len()).sum() };
    let (mut bytes, mut chunks) = (weigh(&first), first.chunks.len());
    let mut batch = vec![first];
    while bytes < BATCH_BYTES && chunks < BATCH_CHUNKS {
        let Ok(job) = jobs.try_recv() else { break };
        bytes += weigh(&job);
        chunks += job.chunks.len();
        batch.push(job);
    }
    batch
}

fn write_batch(store: &dyn ChunkStore, mut batch: Vec<Job>) {
    let mut chunks = Vec::with_capacity(batch.iter().map(|job| job.chunks.len()).sum());
    let mut ids: Vec<Vec<ChunkId>> = Vec::with_capacity(batch.len());
    for job in &mut batch {
        ids.push(job.chunks.iter().map(|chunk| chunk.id).collect());
        chunks.append(&mut job.chunks);
    }
    let started = std::time::Instant::now();
    let outcome = store.put_batch(&chunks);
    count(batch.len(), &outcome, started.elapsed());
    let refused: HashSet<ChunkId> = match &outcome {
        Ok(done) => done.refused.iter().copied().collect(),
        Err(_) => HashSet::new(),
    };
    let answer = outcome.map(|_done| ());
    for (job, ids) in batch.into_iter().zip(ids) {
        // Only those who brought it hear of a chunk that was taken down.
        let answer = match ids.iter().find(|id| refused.contains(id)) {
            Some(id) => Err(StoreError::Erased { id: *id }),
            None => answer.clone(),
        };
        // The caller may have given up; the chunks are stored all the same.
        drop(job.done.send(answer));
    }
}

fn count(puts: usize, outcome: &Result<Batched, StoreError>, took: Duration) {
    match outcome {
        Ok(done) => {
            metrics::counter!("atoll_chunk_puts_total").increment(puts as u64);
            metrics::counter!("atoll_chunk_stored_total").increment(done.written as u64);
            metrics::counter!("atoll_chunk_stored_bytes_total").increment(done.bytes);
            metrics::counter!("atoll_chunk_known_total").increment(done.known as u64);
            metrics::histogram!("atoll_chunk_batch_bytes").record(done.bytes as f64);
            if done.written > 0 {
                metrics::counter!("atoll_chunk_syncs_total").increment(1);
                metrics::histogram!("atoll_chunk_batch_seconds").record(took.as_secs_f64());
            }
        }
        Err(error) => {
            metrics::counter!("atoll_chunk_put_failures_total").increment(puts as u64);
            tracing::warn!(puts, %error, "a batch of chunks was not stored");
        }
    }
}

#[cfg(test)]
mod writer_tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::memory::MemoryStore;
    use atoll_proto::Epoch;
    use bytes::Bytes;

    fn chunk(text: String) -> NewChunk {
        let bytes = Bytes::from(text);
        NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 0 }
    }

    #[tokio::test]
    async fn everything_acknowledged_is_stored_and_stop_drains() {
        let store = Arc::new(MemoryStore::default());
        let writer = Arc::new(Writer::start(store.clone()).unwrap());
        let mut puts = tokio::task::JoinSet::new();
        for n in 0..200 {
            let writer = writer.clone();
            puts.spawn(async move {
                let chunk = chunk(format!("chunk {}", n / 2));
                writer.put(vec![chunk.clone()]).await.unwrap();
                chunk.id
            });
        }
        while let Some(id) = puts.join_next().await {
            assert!(store.has(&id.unwrap()).unwrap());
        }
        assert_eq!(store.totals().chunks, 100);
        let stopped = writer.clone();
        tokio::task::spawn_blocking(move || stopped.stop()).await.unwrap();
        let late = writer.put(vec![chunk("late".to_owned())]).await;
        assert_eq!(late, Err(StoreError::Closed));
    }

    #[tokio::test]
    async fn who_brings_what_was_taken_down_is_refused_and_nobody_else() {
        let store = Arc::new(MemoryStore::default());
        let writer = Arc::new(Writer::start(store.clone()).unwrap());
        let (bad, good) = (chunk("taken down".to_owned()), chunk("good".to_owned()));
        store.refuse(Arc::new(HashSet::from([bad.id])));
        let both = [vec![bad.clone()], vec![good.clone()], vec![good.clone(), bad.clone()]];
        let mut puts = tokio::task::JoinSet::new();
        for chunks in both {
            let writer = writer.clone();
            puts.spawn(async move { (chunks.len(), chunks[0].id, writer.put(chunks).await) });
        }
        while let Some(put) = puts.join_next().await {
            let (len, first, outcome) = put.unwrap();
            let refused = Err(StoreError::Erased { id: bad.id });
            let expected = if len == 1 && first == good.id { Ok(()) } else { refused };
            assert_eq!(outcome, expected);
        }
        assert!(store.has(&good.id).unwrap() && !store.has(&bad.id).unwrap());
    }

    #[tokio::test]
    async fn a_full_store_refuses_and_recovers() {
        let store = Arc::new(MemoryStore::with_capacity(3));
        let writer = Writer::start(store.clone()).unwrap();
        let refused = writer.put(vec![chunk("too long".to_owned())]).await;
        assert!(matches!(refused, Err(StoreError::Full { .. })));
        store.resize(100);
        writer.put(vec![chunk("too long".to_owned())]).await.unwrap();
    }
}
