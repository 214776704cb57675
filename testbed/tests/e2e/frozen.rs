//! A chunkserver that is frozen holds its connections and answers nothing. Nobody waits for it:
//! not a read, not a write, not a deploy.

use std::fs::File;
use std::io::Write as _;
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
/// What is waited at most, beside what the disk itself made everybody wait: the promise is far less,
/// but a busy machine must not decide a test. A request that waits for the server takes longer.
const STALL_MAX: Duration = Duration::from_secs(3);
/// A write needs this many syncs one after another at most: on two servers, each perhaps behind one
/// under way, and once more when the first attempt is given up.
const SYNCS: u32 = 6;
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
        let fault = Fault::Freeze(frozen);
        // One client that has connections to the frozen server, and one that has none yet.
        let fresh = cluster.client().await?;
        fault.apply(&cluster)?;
        let end = Arc::new(AtomicBool::new(false));
        let mut reading = Vec::new();
        for (who, client) in [("old", &client), ("new", &fresh)] {
            let client = client.clone();
            let (stored, end) = (stored.clone(), end.clone());
            reading.push((who, "reads", tokio::spawn(read(client, stored, end, seed))));
        }
        for (who, client) in [("old", &client), ("new", &fresh)] {
            let (client, end) = (client.clone(), end.clone());
            let seed = seed ^ number << 8 ^ u64::from(who == "new");
            reading.push((who, "writes", tokio::spawn(write(client, end, seed))));
        }
        let disk = {
            let (path, end) = (cluster.work().join("witness"), end.clone());
            tokio::task::spawn_blocking(move || witness(&path, &end))
        };
        let began = Instant::now();
        let site = format!("frozen-{number}");
        cluster.deploy(&source, &site).with_context(|| format!("deploy under {fault:?}"))?;
        cluster.tell(format_args!("the deploy took {:?}", began.elapsed()));
        tokio::time::sleep(FROZEN.saturating_sub(began.elapsed())).await;
        end.store(true, Ordering::SeqCst);
        let mut longest = Duration::ZERO;
        for (who, what, task) in reading {
            let measured = task.await?.with_context(|| format!("{what} of the {who} client"))?;
            cluster.tell(format_args!("{what} of the {who} client: {}", measured.shown()));
            ensure!(measured.count > 10, "{what} of the {who} client: {measured:?}");
            longest = longest.max(measured.longest);
        }
        fault.undo(&cluster)?;
        let disk = disk.await?.context("the disk's witness")?;
        cluster.tell(format_args!("syncs with no server between: {}", disk.shown()));
        let most = STALL_MAX + SYNCS * disk.longest;
        ensure!(longest < most, "{frozen} frozen: something took {longest:?}, more than {most:?}");
        cluster.wait_healthy()?;
    }
    cluster.finish()
}

/// What a small write and its sync take on this disk meanwhile, with no server between.
fn witness(path: &Path, end: &AtomicBool) -> Result<Measured> {
    let mut file = File::create(path)?;
    let mut measured = Measured::default();
    while !end.load(Ordering::SeqCst) {
        let began = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        measured.add(began.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(measured)
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
