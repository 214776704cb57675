//! A chunkserver from start to end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::admin::Readiness;
use atoll_net::masters::MASTERS_FILE;
use atoll_net::task::{AbortOnDrop, Boxed, Tasks};
use atoll_net::{Endpoint, Identity, Role, ServeLimits, Shutdown, admin, task, telemetry};
use atoll_proto::cluster::{NodeInfo, NodeKind};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use tokio::sync::watch;

use crate::config::Config;
use crate::error::RunError;
use crate::marker;
use crate::masters::Masters;
use crate::node::Node;
use crate::ops::ChunkService;
use crate::placement::Placement;
use crate::reconcile::Upkeep;
use crate::reconcile::pause::Pauses;
use crate::store::writer::Writer;
use crate::store::{ChunkStore, StoreError};
use crate::tasks::{erase, feed, heartbeat, reconcile, repair, salvage, scrub, sweep};

/// How long the tasks of upkeep may take to stop.
const TASKS_STOP_WAIT: Duration = Duration::from_secs(2);

/// How long requests under way may take to finish at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs a chunkserver until shutdown. Chunks are served as soon as the socket is bound; puts are
/// taken once a master has answered.
///
/// # Errors
/// When the data is not this node's, an address is taken, or the disk cannot be used.
pub fn run(config: Config, shutdown: Shutdown) -> Boxed<'static, Result<(), RunError>> {
    Box::pin(run_here(config, shutdown))
}

async fn run_here(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    telemetry::init("chunkserver", "info");
    describe();
    config.check().map_err(|reason| RunError::Config { path: "chunkserver".into(), reason })?;
    let identity = Identity::load(&config.identity)?;
    check_certificate(&config, &identity)?;
    let store = open_store(&config).await?;
    run_on(config, store, None, shutdown).await
}

/// As [`run`], on a store that is open; it is closed at the end. `pauses` hold the work up where a
/// test wants that.
///
/// # Errors
/// As [`run`].
pub fn run_on(
    config: Config,
    store: Arc<dyn ChunkStore>,
    pauses: Option<Arc<dyn Pauses>>,
    shutdown: Shutdown,
) -> Boxed<'static, Result<(), RunError>> {
    Box::pin(run_here_on(config, store, pauses, shutdown))
}

async fn run_here_on(
    config: Config,
    store: Arc<dyn ChunkStore>,
    pauses: Option<Arc<dyn Pauses>>,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    config.check().map_err(|reason| RunError::Config { path: "chunkserver".into(), reason })?;
    let identity = Identity::load(&config.identity)?;
    check_certificate(&config, &identity)?;
    let outcome = serve(&config, &identity, Arc::clone(&store), pauses, shutdown).await;
    let closed = task::spawn_blocking("close-store", move || store.close()).await;
    closed.map_err(|error| system("close the chunk store", error))?;
    outcome
}

async fn open_store(config: &Config) -> Result<Arc<dyn ChunkStore>, RunError> {
    let (data, cluster, node) = (config.data.clone(), config.cluster, config.node());
    let reserve = config.reserve_bytes;
    let opening =
        task::spawn_blocking("open-store", move || marker::open(&data, cluster, node, reserve));
    let store = opening.await.map_err(|error| system("open the chunk store", error))??;
    Ok(Arc::new(store))
}

async fn serve(
    config: &Config,
    identity: &Identity,
    store: Arc<dyn ChunkStore>,
    pauses: Option<Arc<dyn Pauses>>,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let failed = |source: StoreError| RunError::Store { dir: config.data.clone(), source };
    let placement = Placement::load(config.cluster, Arc::clone(&store)).map_err(failed)?;
    let endpoint = Endpoint::bind(config.listen, identity)?;
    let (readiness, ready) = watch::channel(Readiness::not("starting"));
    let admin = admin::serve(config.admin, ready.clone(), shutdown.clone())?;
    let writer = Writer::start(Arc::clone(&store)).map_err(|error| system("start", error))?;
    let file = Some(config.data.join(MASTERS_FILE));
    let masters = Masters::new(endpoint.clone(), config.masters.clone(), file);
    let upkeep = Upkeep::new(config.upkeep(), pauses);
    let id = config.node();
    let node = Node::new(id, endpoint.clone(), store, writer, masters, placement, upkeep);
    let node = Arc::new(node);
    let addr = config.advertise.unwrap_or_else(|| endpoint.local_addr());
    let touch = heartbeat::keep_in_touch(
        Arc::clone(&node),
        info(config, addr),
        readiness,
        shutdown.clone(),
    );
    let mut touch = AbortOnDrop::new(task::spawn("heartbeat", touch));
    let tasks = Tasks::new();
    tasks.spawn("erase", erase::follow(Arc::clone(&node), shutdown.clone()));
    tasks.spawn("feed", feed::follow(Arc::clone(&node), shutdown.clone()));
    tasks.spawn("reconcile", reconcile::keep_equal(Arc::clone(&node), shutdown.clone()));
    tasks.spawn("repair-all", repair::repair(Arc::clone(&node), shutdown.clone()));
    tasks.spawn("salvage", salvage::salvage(Arc::clone(&node), shutdown.clone()));
    tasks.spawn("scrub", scrub::scrub(Arc::clone(&node), shutdown.clone()));
    tasks.spawn("sweep", sweep::sweep(Arc::clone(&node), shutdown.clone()));
    let announce = announce(config, ready, addr, admin);
    let service = Arc::new(ChunkService::new(Arc::clone(&node)));
    let limits = ServeLimits { drain: DRAIN, ..ServeLimits::default() };
    let serving = endpoint.serve(service, limits, shutdown);
    let outcome = tokio::select! {
        () = serving => Ok(()),
        Err(error) = announce => Err(error),
    };
    if outcome.is_ok() {
        touch.join().await.map_err(|error| system("end the heartbeat", error))?;
    }
    // They stop by themselves; what one has begun at the disk is finished there.
    tasks.drain(TASKS_STOP_WAIT).await;
    endpoint.close().await;
    let stopped = task::spawn_blocking("stop-writer", move || node.writer.stop()).await;
    stopped.map_err(|error| system("end the writer", error))?;
    tracing::info!("stopped");
    outcome
}

fn info(config: &Config, addr: SocketAddr) -> NodeInfo {
    NodeInfo {
        id: config.node(),
        name: config.name.clone(),
        kind: NodeKind::Chunkserver,
        addr,
        zone: config.zone.clone(),
        region: config.region.clone(),
        weight: config.weight,
        edge: None,
    }
}

/// Writes the ready file once the node is ready; ends at once if it never gets so.
async fn announce(
    config: &Config,
    mut ready: watch::Receiver<Readiness>,
    addr: SocketAddr,
    admin: SocketAddr,
) -> Result<(), RunError> {
    tracing::info!(%addr, %admin, data = %config.data.display(), "serving chunks");
    let Some(path) = &config.ready_file else { return Ok(()) };
    if ready.wait_for(|readiness| readiness.ready).await.is_err() {
        return Ok(());
    }
    let text = serde_json::json!({ "addr": addr, "admin": admin }).to_string();
    let written = replace(path, &text);
    written.map_err(|source| RunError::File { verb: "write", path: path.clone(), source })
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let draft = path.with_extension("new");
    std::fs::write(&draft, text)?;
    std::fs::rename(&draft, path)
}

fn check_certificate(config: &Config, identity: &Identity) -> Result<(), RunError> {
    let found = identity.peer()?;
    let expected = atoll_net::Peer {
        cluster: config.cluster,
        role: Role::Chunkserver,
        name: config.name.clone(),
    };
    if found == expected {
        return Ok(());
    }
    Err(RunError::Certificate {
        path: config.identity.clone(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

fn system(verb: &'static str, error: impl ToString) -> RunError {
    RunError::System { verb, reason: error.to_string() }
}

fn describe() {
    describe_counter!("atoll_chunk_puts_total", "Puts stored, relayed ones included.");
    describe_counter!("atoll_chunk_put_failures_total", "Puts the store refused.");
    describe_counter!(
        "atoll_chunk_put_corrupt_total",
        "Puts with bytes that were not their hash's."
    );
    describe_counter!("atoll_chunk_stored_total", "Chunks written.");
    describe_counter!("atoll_chunk_stored_bytes_total", Unit::Bytes, "Bytes of chunks written.");
    describe_counter!("atoll_chunk_known_total", "Chunks put that were here already.");
    describe_counter!("atoll_chunk_syncs_total", "Batches synced to disk.");
    describe_histogram!("atoll_chunk_batch_bytes", Unit::Bytes, "Bytes of one batch.");
    describe_histogram!("atoll_chunk_batch_seconds", Unit::Seconds, "Time to write and sync one.");
    describe_gauge!("atoll_chunk_queue_bytes", Unit::Bytes, "Bytes waiting to be stored.");
    describe_counter!("atoll_chunk_reads_total", "Chunks read and verified.");
    describe_counter!("atoll_chunk_read_bytes_total", Unit::Bytes, "Their bytes.");
    describe_counter!("atoll_chunk_verify_failures_total", "Reads that gave wrong bytes.");
    describe_counter!("atoll_chunk_relays_total", "Shares sent to other members, by outcome.");
    describe_counter!("atoll_chunk_relay_skipped_total", "Shares not sent: the member is behind.");
    describe_counter!("atoll_chunk_too_few_replicas_total", "Puts refused: too few members.");
    describe_counter!("atoll_chunk_masters_refused_total", "Answers of masters not followed.");
    describe_gauge!("atoll_chunk_chunks", "Chunks present.");
    describe_gauge!("atoll_chunk_bytes", Unit::Bytes, "Bytes of chunks present.");
    describe_gauge!("atoll_chunk_free_bytes", Unit::Bytes, "Bytes free on the disk.");
    describe_gauge!("atoll_chunk_corrupt_found", "Chunks ever found corrupt.");
    describe_upkeep();
}

fn describe_upkeep() {
    describe_counter!("atoll_chunk_deltas_total", "Changes followed from the master's feed.");
    describe_counter!("atoll_chunk_compared_bytes_total", Unit::Bytes, "Bytes of comparison.");
    describe_counter!("atoll_chunk_roots_compared_total", "Roots compared.");
    describe_counter!("atoll_chunk_mismatches_total", "Roots that differed.");
    describe_counter!("atoll_chunk_repaired_total", "Chunks fetched because they were lacking.");
    describe_counter!("atoll_chunk_repaired_bytes_total", Unit::Bytes, "Their bytes.");
    describe_counter!(
        "atoll_chunk_dead_letters_let_go_total",
        "Dead letters that left the full queue of repair to what may be fetched."
    );
    describe_counter!("atoll_chunk_salvaged_total", "Chunks taken back from damaged stores.");
    describe_counter!("atoll_chunk_salvaged_bytes_total", Unit::Bytes, "Their bytes.");
    describe_counter!("atoll_chunk_scrubbed_total", "Chunks read and verified by the scrubber.");
    describe_counter!("atoll_chunk_scrubbed_bytes_total", Unit::Bytes, "Their bytes.");
    describe_counter!("atoll_chunk_pending_swept_total", "Chunks never referred to, taken out.");
    describe_counter!("atoll_chunk_erased_total", "Chunks deleted because they were taken down.");
    describe_counter!("atoll_chunk_erased_bytes_total", Unit::Bytes, "Their bytes.");
    describe_counter!("atoll_chunk_purged_total", "Chunks deleted from quarantine.");
    describe_counter!("atoll_chunk_purged_bytes_total", Unit::Bytes, "Their bytes.");
    describe_gauge!("atoll_chunk_lacking", "Live chunks that are not here in good order.");
    describe_gauge!("atoll_chunk_dead_letters", "Those that nobody seems to have.");
    describe_gauge!("atoll_chunk_quarantined", "Chunks in quarantine.");
}
