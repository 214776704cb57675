//! A running master: opens its data, joins consensus, serves until shutdown.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::admin::{self, Readiness};
use atoll_net::task::{Boxed, Tasks};
use atoll_net::{Endpoint, Identity, NetError, Role, ServeLimits, Shutdown};
use tokio::sync::watch;

use crate::admission::{self, Admission};
use crate::audit;
use crate::config::Config;
use crate::identity::{self, DataError};
use crate::live;
use crate::ops;
use crate::raft::state::{stored_voters, write_durably};
use crate::raft::{Consensus, LogBounds, Storage};
use crate::server::{Master, MasterService, Settings};
use crate::store::StoreError;
use crate::tasks;

/// How long running requests may take to finish at shutdown.
const DRAIN: Duration = Duration::from_secs(3);

/// Why a master did not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Certificates or sockets.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The data directory must not be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The configuration does not fit together.
    #[error("cannot start the master: {0}")]
    Config(String),
    /// The database or consensus failed.
    #[error("the master stopped: {0}")]
    Failed(String),
}

/// Runs a master until shutdown is triggered.
///
/// # Errors
/// When it cannot start, or its disk fails while it runs.
pub fn run(config: Config, shutdown: Shutdown) -> Boxed<'static, Result<(), RunError>> {
    Box::pin(run_here(config, shutdown))
}

async fn run_here(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    config.check().map_err(RunError::Config)?;
    describe_metrics();
    let identity = Identity::load(&config.identity)?;
    let peer = identity.peer()?;
    if peer.role != Role::Master || peer.cluster != config.cluster {
        let message = format!(
            "its certificate in {} is for a {} of cluster {}, not for a master of {}",
            config.identity.display(),
            peer.role,
            peer.cluster,
            config.cluster
        );
        return Err(RunError::Config(message));
    }
    let own = identity::check(&config)?;
    let (readiness, ready) = watch::channel(Readiness::not("starting"));
    let storage = open(&config).await?;
    let fresh = storage.log_is_empty().map_err(|error| DataError::new(&config.data, error))?;
    let voters = storage.voters().map_err(|error| DataError::new(&config.data, error))?;
    identity::check_log(&config, &voters, own.used(), fresh)?;
    let admission = Admission::new(own.incarnation(), own.founders(), !fresh);
    check_cluster(&config, &storage)?;

    let endpoint = Endpoint::bind(config.listen, &identity)?;
    let admin = admin::serve(config.admin, ready, shutdown.clone())?;
    let served = serve(&config, storage, admission, endpoint.clone(), admin, readiness, shutdown);
    let served = Box::pin(served).await;
    endpoint.close().await;
    served
}

fn describe_metrics() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_gauge!("atoll_master_applied_index", "Log index of the last applied entry.");
    describe_gauge!("atoll_master_publish_seq", "Latest entry of the publish log.");
    describe_gauge!("atoll_master_epoch", "Epoch of the placement table.");
    describe_gauge!("atoll_master_term", "Raft term.");
    describe_gauge!("atoll_master_leader", "1 while this master leads.");
    describe_gauge!("atoll_master_queue_length", "Changes waiting to be proposed.");
    describe_gauge!("atoll_master_unreferenced", "Chunks that nothing refers to any more.");
    describe_counter!("atoll_master_log_syncs_total", "Syncs of the Raft log and vote.");
    describe_counter!("atoll_master_collected_total", "Chunks proposed for collection.");
    describe_gauge!(
        "atoll_master_groups_moving",
        "Placement groups on their way to other members."
    );
    describe_gauge!("atoll_master_disk_used_percent", "How full the master's disk is.");
    describe_counter!(
        "atoll_master_live_reads_total",
        "Inodes read from the database to seal live sites."
    );
    describe_counter!("atoll_master_live_pages_total", "Pages that seals of live sites made anew.");
    describe_counter!("atoll_master_relayed_acks_total", "Acknowledgements through shields.");
    describe_counter!("atoll_master_relayed_renewals_total", "Renewals of leases through shields.");
    describe_histogram!("atoll_master_operations_per_entry", "Changes in one log entry.");
    describe_histogram!(
        "atoll_master_commit_seconds",
        metrics::Unit::Seconds,
        "Time from proposing an entry until it is applied."
    );
}

/// Opens the databases, which may have to replay their logs.
async fn open(config: &Config) -> Result<Storage, RunError> {
    let config = config.clone();
    let open = move || {
        Storage::open(&config.data).map_err(|error| {
            let reason = match error {
                StoreError::Damaged { .. } => {
                    let voters = stored_voters(&config.data);
                    format!("{error}. {}", identity::way_back(&config, &voters))
                }
                _ => error.to_string(),
            };
            DataError::new(&config.data, reason)
        })
    };
    let opened = atoll_net::task::spawn_blocking("open-storage", open).await;
    Ok(opened.map_err(|error| RunError::Failed(error.to_string()))??)
}

/// The state itself says of which cluster it is, too.
fn check_cluster(config: &Config, storage: &Storage) -> Result<(), DataError> {
    let record = crate::store::meta::cluster(&*storage.state());
    let record = record.map_err(|error| DataError::new(&config.data, error))?;
    match record {
        Some(record) if record.cluster != config.cluster => {
            let reason = format!(
                "its state belongs to cluster {}, not to {}",
                record.cluster, config.cluster
            );
            Err(DataError::new(&config.data, reason))
        }
        _ => Ok(()),
    }
}

async fn serve(
    config: &Config,
    storage: Storage,
    admission: Admission,
    endpoint: Endpoint,
    admin: SocketAddr,
    readiness: watch::Sender<Readiness>,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let failed = |error: StoreError| RunError::Failed(error.to_string());
    let masters = config.masters(endpoint.local_addr());
    let consensus =
        Consensus::start(config.id, storage, endpoint.clone(), masters, LogBounds::default())
            .await
            .map_err(failed)?;
    let fresh = !admission.is_admitted();
    if !fresh {
        identity::claim(config)?;
        consensus.elect_if_alone().await;
    }

    let settings = Settings {
        cluster: config.cluster,
        zone: config.zone.clone(),
        url_template: config.url_template.clone(),
        chunk_bytes: config.chunk_bytes,
        bootstrap: config.bootstrap,
        bootstrap_token: config.bootstrap_token_hash,
        placement_settle_ms: config.placement_settle_ms,
        collect_after_ms: config.collect_after_ms,
        collect_every_ms: config.collect_every_ms,
        audit_days: config.audit_days,
        data: config.data.clone(),
        replace_after_ms: config.replace_after_ms,
    };
    let master = Arc::new(Master::new(
        consensus.clone(),
        endpoint.clone(),
        settings,
        admission,
        shutdown.clone(),
    ));
    master.disk.measure(&config.data);
    remove_leftovers(&config.data);
    let running = Tasks::new();
    running.spawn("leadership", tasks::leadership::run(master.clone()));
    running.spawn("placement", tasks::placement::run(master.clone()));
    running.spawn("live", live::task::run(master.clone()));
    running.spawn("audit", audit::run(master.clone()));
    running.spawn("collect", tasks::collect::run(master.clone()));
    running.spawn("sessions", tasks::sessions::run(master.clone()));
    running.spawn("aliases", tasks::aliases::run(master.clone()));
    running.spawn("upkeep", tasks::upkeep::run(master.clone(), config.data.clone()));
    let started = Start { config: config.clone(), admin };
    running.spawn("readiness", report_ready(master.clone(), started, readiness));

    let limits = ServeLimits { drain: DRAIN, ..ServeLimits::default() };
    let service = Arc::new(MasterService(master.clone()));
    let serving = endpoint.serve(service, limits, shutdown.clone());
    let joining = async {
        let joined = if fresh { admission::join(&master, config).await } else { Ok(()) };
        match joined {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    };
    let outcome = tokio::select! {
        () = serving => Ok(()),
        error = Box::pin(joining) => {
            tracing::error!(%error, "this master must not take part");
            Err(error)
        }
        reason = consensus.failed() => {
            tracing::error!(reason, "consensus failed; this master stops");
            Err(RunError::Failed(reason))
        }
    };
    drop(running);
    consensus.stop().await;
    let databases = consensus.databases();
    drop((master, consensus));
    databases.closed().await;
    outcome
}

/// Removes what a backup or a recount left behind when the master was killed.
fn remove_leftovers(data: &Path) {
    for name in [ops::backup::DIRECTORY, audit::DIRECTORY] {
        match std::fs::remove_dir_all(data.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, name, "cannot remove what is left; it only takes space");
            }
            _ => {}
        }
    }
}

/// What is told once the master serves.
struct Start {
    config: Config,
    admin: SocketAddr,
}

/// Says that the master is ready as soon as it knows a leader and the cluster is made.
async fn report_ready(master: Arc<Master>, start: Start, readiness: watch::Sender<Readiness>) {
    let mut announced = false;
    loop {
        let led = master.consensus.position().leader.is_some();
        let made = master.cluster_record().is_ok();
        let state = match (led, made) {
            (true, true) => Readiness::ready(),
            (false, _) => Readiness::not("the masters have no leader"),
            (true, false) => Readiness::not("the cluster is not made yet"),
        };
        if state.ready && !announced {
            announced = true;
            if let Err(error) = announce(&master, &start) {
                tracing::error!(%error, "cannot write the ready file");
            }
        }
        readiness.send_if_modified(|before| {
            let changed = *before != state;
            *before = state;
            changed
        });
        let mut applied = master.consensus.applied();
        let pause = if announced { Duration::from_millis(500) } else { Duration::from_millis(20) };
        tokio::select! {
            _ = applied.changed(), if !announced => {}
            () = tokio::time::sleep(pause) => {}
            () = master.shutdown.wait() => return,
        }
    }
}

fn announce(master: &Master, start: &Start) -> Result<(), String> {
    let config = &start.config;
    tracing::info!(addr = %master.addr(), admin = %start.admin, id = config.id, "serving");
    let Some(file) = &config.ready_file else { return Ok(()) };
    let addresses = serde_json::json!({
        "addr": master.addr().to_string(),
        "admin": start.admin.to_string(),
    });
    write_durably(file, addresses.to_string().as_bytes()).map_err(|error| error.to_string())
}
