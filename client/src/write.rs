//! The path of a write: chunk → head of its placement group → receipts of those that have it.
//!
//! Chunks for the same head travel together: while one batch is under way the next gathers
//! (Nagle's idea), so that a lone chunk goes at once and ten thousand small ones go in few
//! requests. Puts are idempotent, so a batch whose outcome is unknown is simply sent again,
//! through another head when there is one. Nobody waits for a head that answers nothing at all: its
//! batch goes to other heads beside it, and what waits for it goes to them alone ([`hedged`]).

mod hedged;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_proto::cluster::ClusterView;
use atoll_proto::content::{Extent, ExtentList};
use atoll_proto::master::{AdmitPage, Change, Changed, ObjectKind};
use atoll_proto::receipt::Receipt;
use atoll_proto::{ChunkId, Content, NodeId, Retry, limits};
use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::locate::{Replica, write_order};
use crate::{ClientError, Cluster};

/// Bytes of chunks one writer holds in memory.
const IN_FLIGHT_BYTES: u32 = 64 << 20;
/// Full batches under way to one head at a time.
const BATCHES_PER_HEAD: usize = 4;
/// Chunks in one batch: every commit carries the receipts of whole batches.
const BATCH_CHUNKS: usize = 128;
/// Bytes at which a batch is full.
const BATCH_BYTES: usize = 2 << 20;
/// How often a chunk is sent before its write fails.
const ATTEMPTS: u32 = 7;

/// Writes chunks in batches. Cheap to clone; all clones share room and batches.
#[derive(Clone)]
pub struct ChunkWriter {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Cluster,
    room: Arc<Semaphore>,
    state: Mutex<State>,
    /// Notified when no chunk is on its way any more.
    idle: Notify,
}

#[derive(Default)]
struct State {
    heads: HashMap<NodeId, Head>,
    /// Chunks that are not yet durable or failed.
    open: usize,
    /// Receipts nobody waits for by ticket.
    collected: Vec<Arc<Vec<Receipt>>>,
    /// First failure nobody waits for by ticket.
    failed: Option<ClientError>,
}

#[derive(Default)]
struct Head {
    waiting: Vec<Item>,
    waiting_bytes: usize,
    in_flight: usize,
}

struct Item {
    id: ChunkId,
    bytes: Bytes,
    attempts: u32,
    done: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

type Outcome = Result<Arc<Vec<Receipt>>, ClientError>;

/// A chunk on its way. Dropping it leaves the receipts to [`ChunkWriter::flush`].
pub struct PutTicket {
    id: ChunkId,
    done: oneshot::Receiver<Outcome>,
    shared: Arc<Shared>,
}

impl Cluster {
    /// A writer of its own, with its own bound on memory.
    pub fn writer(&self) -> ChunkWriter {
        ChunkWriter {
            shared: Arc::new(Shared {
                cluster: self.clone(),
                room: Arc::new(Semaphore::new(IN_FLIGHT_BYTES as usize)),
                state: Mutex::new(State::default()),
                idle: Notify::new(),
            }),
        }
    }

    /// Stores one chunk durably.
    ///
    /// # Errors
    /// `TooFewReplicas` or `Unreachable` when not enough servers took it.
    pub async fn store(&self, bytes: Bytes) -> Result<(ChunkId, Vec<Receipt>), ClientError> {
        let ticket = self.writer().put(bytes).await?;
        Ok((ticket.id(), ticket.durable().await?))
    }

    /// The content of a file with these extents, which `receipts` cover as far as they are new.
    /// A long list is stored as list chunks and admitted; the receipts are then used up.
    ///
    /// # Errors
    /// `Missing` when extents are neither known nor covered; else as [`Cluster::store`].
    pub async fn seal_content(
        &self,
        extents: Vec<Extent>,
        receipts: &[Receipt],
    ) -> Result<Content, ClientError> {
        if !Content::needs_lists(extents.len()) {
            return Ok(Content::from_extents(extents));
        }
        let size = extents.iter().map(|extent| u64::from(extent.len)).sum();
        let mut lists = Vec::new();
        for part in extents.chunks(limits::LIST_CHUNK_ENTRIES) {
            let bytes = Bytes::from(ExtentList::V1(part.to_vec()).encode());
            let len = u32::try_from(bytes.len()).map_err(|_| ClientError::Malformed {
                what: "a list chunk is too long".to_owned(),
            })?;
            let (id, mut cover) = self.store(bytes).await?;
            let ids = part.iter().filter_map(|extent| extent.id).collect();
            cover.extend(covering(receipts, &ids));
            self.admit(vec![AdmitPage { id, kind: ObjectKind::List }], cover).await?;
            lists.push((len, id));
        }
        Ok(Content::Lists { size, lists })
    }

    /// Admits pages and chunks to the object table.
    ///
    /// # Errors
    /// `Missing` with the chunks that are neither known nor covered.
    pub async fn admit(
        &self,
        pages: Vec<AdmitPage>,
        receipts: Vec<Receipt>,
    ) -> Result<(), ClientError> {
        match self.change(Change::Admit { pages, receipts }).await?.1 {
            Changed::Admitted => Ok(()),
            Changed::Missing { ids } => Err(ClientError::Missing { ids }),
            _ => Err(ClientError::unexpected("the master")),
        }
    }
}

/// Those receipts that cover some of these chunks.
pub fn covering(receipts: &[Receipt], ids: &std::collections::HashSet<ChunkId>) -> Vec<Receipt> {
    let covers = |receipt: &&Receipt| receipt.chunks.iter().any(|(id, _)| ids.contains(id));
    receipts.iter().filter(covers).cloned().collect()
}

impl PutTicket {
    /// The chunk's id.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// Waits until the chunk is durable; the receipts may cover its whole batch.
    ///
    /// # Errors
    /// Why it could not be stored.
    pub async fn durable(mut self) -> Result<Vec<Receipt>, ClientError> {
        match (&mut self.done).await {
            Ok(outcome) => outcome.map(|receipts| receipts.to_vec()),
            Err(_) => Err(ClientError::unexpected("the writer")),
        }
    }
}

impl Drop for PutTicket {
    fn drop(&mut self) {
        self.done.close();
        if let Ok(outcome) = self.done.try_recv() {
            self.shared.collect(outcome);
        }
    }
}

impl ChunkWriter {
    /// Hashes and sends a chunk; waits only for room.
    ///
    /// # Errors
    /// As [`ChunkWriter::put_hashed`].
    pub async fn put(&self, bytes: Bytes) -> Result<PutTicket, ClientError> {
        let id = ChunkId::of(&bytes);
        self.put_hashed(id, bytes).await
    }

    /// Sends a chunk whose hash is known; waits only for room.
    ///
    /// # Errors
    /// When the cluster's view cannot be had, or the chunk is larger than any chunk may be.
    pub async fn put_hashed(&self, id: ChunkId, bytes: Bytes) -> Result<PutTicket, ClientError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if len == 0 || len > limits::CHUNK_BYTES_MAX {
            return Err(ClientError::Malformed {
                what: format!("a chunk of {} bytes is not between 1 and 8 MiB", bytes.len()),
            });
        }
        let room = self.shared.room.clone();
        let Ok(permit) = room.acquire_many_owned(len.max(4096)).await else {
            return Err(ClientError::unexpected("the writer"));
        };
        let view = self.shared.cluster.view().await?;
        let (sender, receiver) = oneshot::channel();
        let item = Item { id, bytes, attempts: 0, done: sender, _room: permit };
        let head = write_order(&view, id.pg(), &self.shared.cluster).first().copied();
        self.shared.lock().open += 1;
        match head {
            Some(head) => self.shared.enqueue(head, vec![item]),
            // No chunkserver yet: the retry loop waits for one.
            None => retry_later(self.shared.clone(), vec![item], "no chunkserver is known".into()),
        }
        Ok(PutTicket { id, done: receiver, shared: self.shared.clone() })
    }

    /// Waits until everything put so far is durable; returns the receipts that no ticket took.
    ///
    /// # Errors
    /// The first failure that no ticket took.
    pub async fn flush(&self) -> Result<Vec<Receipt>, ClientError> {
        loop {
            let idle = self.shared.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            {
                let mut state = self.shared.lock();
                if state.open == 0 {
                    if let Some(error) = state.failed.take() {
                        return Err(error);
                    }
                    let collected = std::mem::take(&mut state.collected);
                    return Ok(collected.iter().flat_map(|some| some.iter().cloned()).collect());
                }
            }
            idle.await;
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, outcome: Outcome) {
        let mut state = self.lock();
        match outcome {
            Ok(receipts) => {
                let again = state.collected.iter().rev().take(BATCHES_PER_HEAD * 4);
                if !again.into_iter().any(|have| Arc::ptr_eq(have, &receipts)) {
                    state.collected.push(receipts);
                }
            }
            Err(error) => {
                state.failed.get_or_insert(error);
            }
        }
    }

    /// Ends an item: by its ticket, or into the collection when nobody holds the ticket.
    fn finish(&self, item: Item, outcome: Outcome) {
        if let Err(outcome) = item.done.send(outcome) {
            self.collect(outcome);
        }
        let mut state = self.lock();
        state.open -= 1;
        if state.open == 0 {
            drop(state);
            self.idle.notify_waiters();
        }
    }

    fn enqueue(self: &Arc<Self>, head: Replica, items: Vec<Item>) {
        let mut state = self.lock();
        let queue = state.heads.entry(head.node).or_default();
        queue.waiting_bytes += items.iter().map(|item| item.bytes.len()).sum::<usize>();
        queue.waiting.extend(items);
        drop(state);
        self.pump(head);
    }

    /// Sends what may go: anything when nothing is under way, full batches beside others.
    fn pump(self: &Arc<Self>, head: Replica) {
        loop {
            let mut state = self.lock();
            let queue = state.heads.entry(head.node).or_default();
            let full = queue.waiting_bytes >= BATCH_BYTES || queue.waiting.len() >= BATCH_CHUNKS;
            let go = queue.in_flight == 0 || (full && queue.in_flight < BATCHES_PER_HEAD);
            if queue.waiting.is_empty() || !go {
                return;
            }
            let mut bytes = 0;
            let take = queue
                .waiting
                .iter()
                .take(BATCH_CHUNKS)
                .take_while(|item| {
                    let first = bytes == 0;
                    bytes += item.bytes.len();
                    first || bytes <= limits::PUT_BATCH_BYTES
                })
                .count();
            let batch: Vec<Item> = queue.waiting.drain(..take).collect();
            queue.waiting_bytes -= batch.iter().map(|item| item.bytes.len()).sum::<usize>();
            queue.in_flight += 1;
            drop(state);
            let shared = self.clone();
            atoll_net::task::spawn("chunk-batch", async move {
                shared.send(head, batch).await;
                shared.lock().heads.entry(head.node).or_default().in_flight -= 1;
                shared.pump(head);
            });
        }
    }

    async fn send(self: &Arc<Self>, head: Replica, mut batch: Vec<Item>) {
        let cluster = &self.cluster;
        match (cluster.session().await, cluster.view().await) {
            (Ok(session), Ok(view)) => hedged::send(self, head, batch, session, &view).await,
            (Err(ClientError::Refused(refusal)), _) if refusal.retry == Retry::Never => {
                for item in batch {
                    self.finish(item, Err(ClientError::Refused(refusal.clone())));
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                for item in &mut batch {
                    item.attempts += 1;
                }
                retry_later(self.clone(), batch, error.to_string());
            }
        }
    }

    /// Has what waits for a head that went silent sent to others.
    fn reroute(self: &Arc<Self>, view: &ClusterView, head: Replica) {
        let waiting = {
            let mut state = self.lock();
            let queue = state.heads.entry(head.node).or_default();
            queue.waiting_bytes = 0;
            std::mem::take(&mut queue.waiting)
        };
        let (groups, homeless) = self.by_head(Some(view), waiting);
        for (to, items) in groups {
            self.enqueue(to, items);
        }
        if !homeless.is_empty() {
            self.enqueue(head, homeless);
        }
    }

    /// Items by the head they should go to now, and those for which there is none.
    fn by_head(
        &self,
        view: Option<&ClusterView>,
        items: Vec<Item>,
    ) -> (Vec<(Replica, Vec<Item>)>, Vec<Item>) {
        let mut groups: HashMap<NodeId, (Replica, Vec<Item>)> = HashMap::new();
        let mut homeless = Vec::new();
        for item in items {
            let order = view.map(|view| write_order(view, item.id.pg(), &self.cluster));
            match order.as_ref().and_then(|order| order.first()) {
                Some(head) => {
                    groups.entry(head.node).or_insert_with(|| (*head, Vec::new())).1.push(item);
                }
                None => homeless.push(item),
            }
        }
        (groups.into_values().collect(), homeless)
    }
}

/// Waits a little, looks at the cluster again, and queues the items anew; those that were tried
/// often enough fail.
fn retry_later(shared: Arc<Shared>, items: Vec<Item>, reason: String) {
    metrics::counter!("atoll_client_put_retries_total").increment(items.len() as u64);
    atoll_net::task::spawn("chunk-retry", async move {
        let tries = items.iter().map(|item| item.attempts).max().unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(20 << tries.min(6))).await;
        let view = match shared.cluster.refresh_view().await {
            Ok(view) => Some(view),
            Err(_) => shared.cluster.view().await.ok(),
        };
        let (items, exhausted): (Vec<Item>, Vec<Item>) =
            items.into_iter().partition(|item| item.attempts < ATTEMPTS);
        for item in exhausted {
            let error = ClientError::TooFewReplicas { reason: reason.clone() };
            shared.finish(item, Err(error));
        }
        let (groups, mut homeless) = shared.by_head(view.as_deref(), items);
        for (head, items) in groups {
            shared.enqueue(head, items);
        }
        homeless.iter_mut().for_each(|item| item.attempts += 1);
        if !homeless.is_empty() {
            retry_later(shared, homeless, reason);
        }
    });
}
