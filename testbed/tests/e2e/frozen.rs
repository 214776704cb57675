//! A chunkserver that is frozen holds its connections and answers nothing. Nobody waits for it:
//! not a read, not a write, not a deploy.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use atoll_client::Cluster;
use atoll_proto::ChunkId;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Fault, Node, Tree, seed};
use bytes::Bytes;
use rand::Rng as _;

/// How long the server is frozen.
const FROZEN: Duration = Duration::from_secs(10);
/// What is waited at most. The promise is far less; a request that waits for the server takes longer
/// than this.
const STALL_MAX: Duration = Duration::from_secs(3);
/// A disk that stalls everybody must not decide a test: it does not stall them so many times in a row.
const ROUNDS: u32 = 3;
/// Chunks stored before.
const CHUNKS: usize = 240;

/// What one kind of operation took.
#[derive(Debug, Default)]
struct Measured {
    count: usize,
    longest: Duration,
    /// The sum, for the mean.
    all: Duration,
}

impl Measured {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.longest = self.longest.max(took);
        self.all += took;
    }

    fn shown(&self) -> String {
        let mean = self.all.checked_div(u32::try_from(self.count).unwrap_or(1).max(1));
        let mean = mean.unwrap_or_default();
        format!("{} in all, longest {:?}, mean {mean:?}", self.count, self.longest)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_chunkserver_stalls_no_read_and_no_write() -> Result<()> {
    let seed = seed::or(22);
    let cluster = DevCluster::builder().edges(1).shields(0).seed(seed).start()?;
    let tree = Tree::ordinary(seed, 30);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    let client = cluster.client().await?;
    let mut rng = seed::rng(seed);
    let mut stored = Vec::new();
    for number in 0..CHUNKS {
        let size = if number % 8 == 0 { 1 << 20 } else { rng.random_range(1..40_000) };
        let content = random(&mut rng, size);
        stored.push((client.store(content.clone()).await?.0, content));
    }
    let stored: Arc<[(ChunkId, Bytes)]> = stored.into();

    for number in 1..=3 {
        let frozen = Node::chunkserver(number);
        let mut longest = Vec::new();
        while longest.iter().all(|stall| *stall >= STALL_MAX) {
            let round = longest.len() as u32;
            ensure!(round < ROUNDS, "{frozen} frozen: something took long each time: {longest:?}");
            let site = format!("frozen-{number}-{round}");
            longest.push(freeze(&cluster, seed, frozen, &client, &stored, &source, &site).await?);
            cluster.wait_healthy()?;
        }
    }
    cluster.finish()
}

/// Reads, writes and deploys while a server is frozen; returns what the slowest read or write took.
async fn freeze(
    cluster: &DevCluster,
    seed: u64,
    frozen: Node,
    client: &Cluster,
    stored: &Arc<[(ChunkId, Bytes)]>,
    source: &Path,
    site: &str,
) -> Result<Duration> {
    let fault = Fault::Freeze(frozen);
    // One client that has connections to the frozen server, and one that has none yet.
    let fresh = cluster.client().await?;
    fault.apply(cluster)?;
    let end = Arc::new(AtomicBool::new(false));
    let mut running = Vec::new();
    for (who, client) in [("old", client), ("new", &fresh)] {
        let seed = seed ^ frozen.id << 8 ^ u64::from(who == "new");
        let reading = read(client.clone(), stored.clone(), end.clone(), seed);
        running.push((who, "reads", tokio::spawn(reading)));
        running.push((who, "writes", tokio::spawn(write(client.clone(), end.clone(), seed))));
    }
    let began = Instant::now();
    cluster.deploy(source, site).with_context(|| format!("deploy under {fault:?}"))?;
    cluster.tell(format_args!("the deploy took {:?}", began.elapsed()));
    tokio::time::sleep(FROZEN.saturating_sub(began.elapsed())).await;
    end.store(true, Ordering::SeqCst);
    let mut longest = Duration::ZERO;
    for (who, what, task) in running {
        let measured = task.await?.with_context(|| format!("{what} of the {who} client"))?;
        cluster.tell(format_args!("{what} of the {who} client: {}", measured.shown()));
        ensure!(measured.count > 10, "{what} of the {who} client: {measured:?}");
        longest = longest.max(measured.longest);
    }
    fault.undo(cluster)?;
    Ok(longest)
}

/// Reads chunks, by themselves and many together, until the end.
async fn read(
    client: Cluster,
    stored: Arc<[(ChunkId, Bytes)]>,
    end: Arc<AtomicBool>,
    seed: u64,
) -> Result<Measured> {
    let mut rng = seed::rng(seed);
    let mut measured = Measured::default();
    while !end.load(Ordering::SeqCst) {
        let first = rng.random_range(0..stored.len());
        let count = if measured.count.is_multiple_of(4) { 20 } else { 1 };
        let wanted = &stored[first..(first + count).min(stored.len())];
        let ids: Vec<ChunkId> = wanted.iter().map(|(id, _)| *id).collect();
        let began = Instant::now();
        let found = match ids.as_slice() {
            [one] => vec![client.read_chunk(*one).await?],
            many => client.read_chunks(many).await?,
        };
        measured.add(began.elapsed());
        let right = wanted.iter().map(|(_, content)| content).eq(&found);
        ensure!(right, "wrong bytes came back");
    }
    Ok(measured)
}

/// Stores chunks, each when the one before is durable, until the end.
async fn write(client: Cluster, end: Arc<AtomicBool>, seed: u64) -> Result<Measured> {
    let mut rng = seed::rng(seed);
    let mut measured = Measured::default();
    while !end.load(Ordering::SeqCst) {
        let size =
            if measured.count.is_multiple_of(8) { 1 << 20 } else { rng.random_range(1..40_000) };
        let content = random(&mut rng, size);
        let began = Instant::now();
        let (id, receipts) = client.store(content).await?;
        measured.add(began.elapsed());
        let holders = receipts.iter().filter(|receipt| receipt.chunks.iter().any(|c| c.0 == id));
        ensure!(holders.count() >= 2, "acknowledged by too few: {receipts:?}");
    }
    Ok(measured)
}
